"""The score-function estimators against exact enumeration: the mean of their gradient over many draws."""

import pytest
import torch
from torch import nn

from egg_sparse import host
from egg_sparse.estimators import (
    BitVectorSampler,
    NeuralBaseline,
    SymbolGameScoreFunction,
    SymbolSampler,
)
from enumeration import DRAWS, SCORES, Receiver, Scores, assert_unbiased, exact_gradients, family, loss

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


@pytest.mark.parametrize("kind", ["symbols", "bits"])
def test_an_acting_receiver_gets_a_gradient(kind):
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


def test_evaluation_plays_the_greedy_message_once():
    game = SymbolGameScoreFunction(
        BitVectorSampler(Scores("bits", 2)), Receiver("bits"), loss, baseline="sample"
    ).eval()
    _, interaction = game(torch.zeros(2, 1), None)
    assert interaction.message.tolist() == [[1.0, 0.0, 1.0]] * 2
    assert (interaction.aux["receiver_calls"] == 1).all()
    assert "baseline" not in interaction.aux


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"baseline": "mean"}, "baseline .*'mean'"),
        ({"baseline": "leave_one_out"}, "leave_one_out.* n_samples .* 1"),
        ({"n_samples": 0}, "n_samples .* 0"),
        ({"baseline": nn.Identity()}, r"baseline .*\(2,\).*\(2, 1\)"),
    ],
)
def test_options_that_make_no_estimator_are_refused(options, error):
    with pytest.raises((TypeError, ValueError), match=error):
        SymbolGameScoreFunction(BitVectorSampler(Scores("bits", 2)), Receiver("bits"), loss, **options)(
            torch.zeros(2, 1), None
        )


def test_an_agent_without_a_sampler_is_refused():
    with pytest.raises((TypeError, ValueError), match="SymbolSampler"):
        SymbolGameScoreFunction(Scores("bits", 2), Receiver("bits"), loss)(torch.zeros(2, 1), None)
