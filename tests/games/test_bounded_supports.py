"""Bounded supports: the mean gradient over many draws equals the exact one, for symbols and bit-vectors."""

import pytest
import torch

from egg_sparse import SparseMAPBitVectorWrapper, SparsemaxWrapper, SymbolGameMarg, TopKSparsemaxWrapper
from egg_sparse.estimators import (
    SymbolGameScoreFunction,
    SymbolSampler,
)
from enumeration import DRAWS, Receiver, Scores, assert_unbiased, exact_gradients, loss, messages_of


@pytest.mark.parametrize("bound", ["sum_and_sample", "resample"])
@pytest.mark.parametrize("max_support", [1, 2, 4])
def test_bounded_softmax_is_unbiased(max_support, bound):
    torch.manual_seed(0)
    agent, receiver = Scores("symbols"), Receiver("symbols")
    game = SymbolGameMarg(
        SparsemaxWrapper(agent, "softmax"),
        receiver,
        loss,
        sender_entropy_coeff=0.3,
        max_support=max_support,
        bound=bound,
    )
    value, interaction = assert_unbiased(agent, game, receiver, exact_gradients("symbols", 0.3))
    assert (interaction.aux["receiver_calls"] == max_support + (bound == "sum_and_sample")).all()
    assert (interaction.aux["exact"] == 0).all()
    assert (interaction.aux["support"] == 5).all()
    optimized, _ = game(torch.zeros(DRAWS, 1), None)
    assert abs(optimized.item() - value.item()) < 0.02


@pytest.mark.parametrize("bound", ["sum_and_sample", "resample"])
@pytest.mark.parametrize("wrapper", ["sparsemax", "top-k", "sparsemap"])
def test_a_bounded_sparse_distribution_is_unbiased(wrapper, bound):
    torch.manual_seed(0)
    kind = "symbols" if wrapper == "sparsemax" else "bits"
    agent, receiver = Scores(kind), Receiver(kind)
    wrap = {
        "sparsemax": lambda agent: SparsemaxWrapper(agent, support=None),
        "top-k": lambda agent: TopKSparsemaxWrapper(agent, k=6, support=None),
        "sparsemap": lambda agent: SparseMAPBitVectorWrapper(agent, support=None),
    }[wrapper]
    game = SymbolGameMarg(wrap(agent), receiver, loss, sender_entropy_coeff=0.3, max_support=1, bound=bound)
    one = wrap(Scores(kind, 1))

    def probabilities(scores):
        one.agent.scores = None
        one.agent.forward = lambda *_: scores
        d = one(None)
        return d.log_prob(messages_of(kind)[:, None]).exp()[:, 0]

    assert_unbiased(agent, game, receiver, exact_gradients(kind, 0.3, probabilities))


@pytest.mark.parametrize("bound", ["sum_and_sample", "resample"])
def test_small_supports_stay_exact(bound):
    scores = torch.tensor([[3.0, 0.0, -1.0], [0.2, 0.1, 0.0]], requires_grad=True)
    agent = Scores("symbols", 1)
    del agent.scores
    agent.scores = scores
    values = torch.randn(3)

    def pick(message, *_):
        return values[message]

    losses = []
    for max_support in (None, 2):
        game = SymbolGameMarg(SparsemaxWrapper(agent, support=None), pick, loss, max_support=max_support, bound=bound)
        torch.manual_seed(1)
        optimized, _ = game(torch.zeros(2, 1), None)
        losses.append(torch.autograd.grad(optimized, scores)[0][0])
    torch.testing.assert_close(*losses)  # the first example has one message


def test_resampling_has_less_variance_than_sampling():
    """At equal receiver calls: two messages resampled, two sampled with each other's loss as baseline."""
    variances = {}
    for name in ("resample", "leave one out"):
        torch.manual_seed(0)
        agent, receiver = Scores("symbols"), Receiver("symbols")
        if name == "resample":
            game = SymbolGameMarg(SparsemaxWrapper(agent, "softmax"), receiver, loss, max_support=2)
        else:
            game = SymbolGameScoreFunction(SymbolSampler(agent), receiver, loss, "leave_one_out", n_samples=2)
        game(torch.zeros(DRAWS, 1), None)[0].backward()
        variances[name] = (agent.scores.grad * DRAWS).var(0).sum().item()
    assert variances["resample"] < variances["leave one out"] / 2


@pytest.mark.parametrize(("max_support", "error"), [(0, "max_support .* 0"), (1.5, "max_support .* float")])
def test_a_bound_that_is_no_count_is_refused(max_support, error):
    with pytest.raises((TypeError, ValueError), match=error):
        SymbolGameMarg(SparsemaxWrapper(Scores("symbols", 2)), Receiver("symbols"), loss, max_support=max_support)
