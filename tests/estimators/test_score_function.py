"""Every estimator against exact enumeration: the mean of its gradient over many draws, for symbols and bit-vectors."""

import itertools

import pytest
import torch
from torch import nn

from egg_sparse import SparseMAPBitVectorWrapper, SparsemaxWrapper, SymbolGameMarg, TopKSparsemaxWrapper, host
from egg_sparse.estimators import (
    BitVectors,
    BitVectorSampler,
    NeuralBaseline,
    RelaxedWrapper,
    SymbolGameRelaxed,
    SymbolGameScoreFunction,
    Symbols,
    SymbolSampler,
)

DRAWS = 20_000
SCORES = {
    "symbols": torch.tensor([0.3, -0.2, 0.8, 0.1, -1.0], dtype=torch.float64),
    "bits": torch.tensor([0.47, -0.7, 0.13], dtype=torch.float64),
}


class Scores(nn.Module):
    """The same scores for every one of many examples, so that a batch is a batch of draws."""

    def __init__(self, kind, draws=DRAWS):
        super().__init__()
        self.scores = nn.Parameter(SCORES[kind].repeat(draws, 1))

    def forward(self, sender_input, aux_input=None):
        return self.scores


class Receiver(nn.Module):
    """One number per message, not linear in it."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        n = 5 if kind == "symbols" else 8
        self.values = nn.Parameter(torch.linspace(-1, 2, n, dtype=torch.float64) ** 2)

    def forward(self, message, receiver_input=None, aux_input=None):
        if self.kind == "bits":
            message = (message * torch.tensor([4.0, 2.0, 1.0], dtype=message.dtype)).sum(-1).long()
        return self.values[message]


def loss(_sender_input, _message, _receiver_input, receiver_output, _labels, _aux_input):
    return receiver_output + receiver_output**2 / 4, {"value": receiver_output}


def family(kind, scores):
    return Symbols(scores) if kind == "symbols" else BitVectors(scores)


def messages_of(kind):
    if kind == "symbols":
        return torch.arange(5)
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64)


def exact_gradients(kind, entropy_coeff, probabilities=None):
    """Of the expected loss less the weighted entropy, for scores and receiver, summing over all messages."""
    scores, receiver = SCORES[kind].clone().requires_grad_(), Receiver(kind)
    messages = messages_of(kind)
    if probabilities is None:
        log_probs = family(kind, scores.expand(len(messages), -1)).log_prob(messages)
        probs, entropy = log_probs.exp(), -(log_probs.exp() * log_probs).sum()
    else:
        probs = probabilities(scores[None])
        entropy = -(probs * torch.where(probs > 0, probs, 1.0).log()).sum()
    losses, _ = loss(None, messages, None, receiver(messages), None, None)
    objective = (probs * losses).sum() - entropy_coeff * entropy
    return objective.detach(), *torch.autograd.grad(objective, (scores, receiver.values))


def assert_unbiased(agent, game, receiver, expected):
    value, of_scores, of_receiver = expected
    optimized, interaction = game(torch.zeros(DRAWS, 1), None)
    optimized.backward()
    draws = agent.scores.grad * DRAWS
    error = draws.std(0) / DRAWS**0.5
    assert ((draws.mean(0) - of_scores).abs() <= 5 * error + 1e-9).all(), (draws.mean(0), of_scores, error)
    torch.testing.assert_close(receiver.values.grad, of_receiver, atol=0.03, rtol=0)
    return value, interaction


SAMPLED = {
    "none": ({"baseline": "none"}, 1),
    "running mean": ({"baseline": "running_mean"}, 1),
    "a second sample": ({"baseline": "sample"}, 2),
    "leave one out": ({"baseline": "leave_one_out", "n_samples": 3}, 3),
    "several samples": ({"baseline": "sample", "n_samples": 2}, 3),
    "network": ({"baseline": "network"}, 1),
}


@pytest.mark.parametrize("kind", ["symbols", "bits"])
@pytest.mark.parametrize("name", SAMPLED)
def test_score_function_is_unbiased(kind, name):
    torch.manual_seed(0)
    options, calls = SAMPLED[name]
    if name == "network":
        options = {"baseline": NeuralBaseline(1, 8)}
    agent, receiver = Scores(kind), Receiver(kind)
    sender = SymbolSampler(agent) if kind == "symbols" else BitVectorSampler(agent)
    game = SymbolGameScoreFunction(sender, receiver, loss, sender_entropy_coeff=0.3, **options)
    game.mean_loss += 0.7  # a baseline need not be good
    _, interaction = assert_unbiased(agent, game, receiver, exact_gradients(kind, 0.3))
    assert (interaction.aux["receiver_calls"] == calls).all()
    entropy = family(kind, SCORES[kind][None]).entropy()
    torch.testing.assert_close(interaction.aux["sender_entropy"][:1], entropy)


def test_baselines_reduce_the_variance():
    variances = {}
    for name in ("none", "running mean", "a second sample", "leave one out"):
        torch.manual_seed(0)
        agent, receiver = Scores("bits"), Receiver("bits")
        game = SymbolGameScoreFunction(
            BitVectorSampler(agent), receiver, lambda *a: (loss(*a)[0] + 5, {}), **SAMPLED[name][0]
        )
        game(torch.zeros(DRAWS, 1), None)  # the running mean's first losses
        game(torch.zeros(DRAWS, 1), None)[0].backward()
        variances[name] = (agent.scores.grad * DRAWS).var(0).sum().item()
    assert variances["running mean"] < variances["none"] / 2
    assert variances["a second sample"] < variances["none"] / 2
    assert variances["leave one out"] < variances["a second sample"]


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


@pytest.mark.parametrize("kind", ["symbols", "bits"])
def test_relaxed_messages(kind):
    torch.manual_seed(0)
    agent = Scores(kind)
    sampler = SymbolSampler(agent) if kind == "symbols" else BitVectorSampler(agent)
    width = len(SCORES[kind])
    weights = torch.linspace(-1, 1, width, dtype=torch.float64)

    def receiver(message, *_):
        return message @ weights

    hard = RelaxedWrapper(sampler, temperature=0.5, straight_through=True)
    message = hard(None)
    assert set(message.detach().unique().tolist()) == {0.0, 1.0}
    frequencies = message.detach().mean(0)
    probs = SCORES[kind].softmax(-1) if kind == "symbols" else SCORES[kind].sigmoid()
    torch.testing.assert_close(frequencies, probs, atol=0.02, rtol=0)

    soft = RelaxedWrapper(sampler, temperature=1e-3)
    torch.testing.assert_close(soft(None).detach().mean(0), probs, atol=0.02, rtol=0)
    # of a linear loss the straight-through gradient at low temperatures is nearly exact in the mean
    game = SymbolGameRelaxed(RelaxedWrapper(sampler, 0.1), receiver, lambda *a: (a[3], {}), sender_entropy_coeff=0.3)
    optimized, interaction = game(torch.zeros(DRAWS, 1), None)
    optimized.backward()
    scores = SCORES[kind].clone().requires_grad_()
    exact = (scores.softmax(-1) if kind == "symbols" else scores.sigmoid()) @ weights
    exact = exact - 0.3 * family(kind, scores[None]).entropy()[0]
    expected = torch.autograd.grad(exact, scores)[0]
    torch.testing.assert_close((agent.scores.grad * DRAWS).mean(0), expected, atol=0.06, rtol=0)
    assert interaction.message.shape == (DRAWS, width)
    game.eval()
    greedy = game(torch.zeros(DRAWS, 1), None)[1].message
    mode = family(kind, SCORES[kind][None]).mode
    expected_mode = nn.functional.one_hot(mode, 5).double() if kind == "symbols" else mode
    torch.testing.assert_close(greedy[:1], expected_mode)


def test_in_eggs_gumbel_game():
    game = host.core.SymbolGameGS(
        RelaxedWrapper(BitVectorSampler(Scores("bits", 4))), lambda message, *_: message, lambda *a: (a[3].sum(-1), {})
    )
    optimized, interaction = game(torch.zeros(4, 1), None)
    optimized.backward()
    assert interaction.message.shape == (4, 3)


@pytest.mark.parametrize("kind", ["symbols", "bits"])
def test_trains_in_eggs_trainer_with_acting_receivers(kind):
    receiver = host.core.ReinforceWrapper(nn.Sequential(nn.Linear(3 if kind == "bits" else 5, 4), nn.LogSoftmax(-1)))

    def read(message, *_):
        rows = message.float() if kind == "bits" else nn.functional.one_hot(message, 5).float()
        return receiver(rows)

    sampler = (BitVectorSampler if kind == "bits" else SymbolSampler)(Scores(kind, 6))
    game = SymbolGameScoreFunction(
        sampler,
        read,
        lambda *a: ((a[3] != 1).float(), {}),
        sender_entropy_coeff=0.1,
        receiver_entropy_coeff=0.1,
        receiver_acts=True,
    )
    optimized, interaction = game(torch.zeros(6, 1), None)
    optimized.backward()
    assert receiver.agent[0].weight.grad.abs().sum() > 0
    assert interaction.aux["receiver_entropy"].shape == (6,)


def test_greedy_in_evaluation():
    game = SymbolGameScoreFunction(
        BitVectorSampler(Scores("bits", 2)), Receiver("bits"), loss, baseline="sample"
    ).eval()
    _, interaction = game(torch.zeros(2, 1), None)
    assert interaction.message.tolist() == [[1.0, 0.0, 1.0]] * 2
    assert (interaction.aux["receiver_calls"] == 1).all()
    assert "baseline" not in interaction.aux


@pytest.mark.parametrize(
    ("build", "error"),
    [
        (
            lambda s, r: SymbolGameScoreFunction(s, r, loss, baseline="mean"),
            "baseline .*'mean'",
        ),
        (lambda s, r: SymbolGameScoreFunction(s, r, loss, baseline="leave_one_out"), "leave_one_out.* n_samples .* 1"),
        (lambda s, r: SymbolGameScoreFunction(s, r, loss, n_samples=0), "n_samples .* 0"),
        (lambda s, r: RelaxedWrapper(s, temperature=0.0), r"temperature .* 0\.0"),
        (lambda s, r: SymbolGameRelaxed(s, r, loss), "RelaxedWrapper.* BitVectorSampler"),
        (lambda s, r: BitVectorSampler(s, temperature=-1), "temperature .*-1"),
        (lambda s, r: SymbolGameMarg(s, r, loss, max_support=0), "max_support .* 0"),
        (lambda s, r: SymbolGameMarg(s, r, loss, max_support=1.5), "max_support .* float"),
        (lambda s, r: SymbolGameScoreFunction(s.agent, r, loss)(torch.zeros(2, 1), None), "SymbolSampler"),
        (
            lambda s, r: SymbolGameScoreFunction(s, r, loss, baseline=nn.Identity())(torch.zeros(2, 1), None),
            r"baseline .*\(2,\).*\(2, 1\)",
        ),
    ],
)
def test_refuses(build, error):
    with pytest.raises((TypeError, ValueError), match=error):
        build(BitVectorSampler(Scores("bits", 2)), Receiver("bits"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_scores(value):
    with pytest.raises(ValueError, match=r"scores .* 2 of 2"):
        BitVectorSampler(lambda *_: torch.full((1, 2), value))(None)
