"""Relaxed messages: their frequencies, gradients and formats."""

import pytest
import torch
from torch import nn

from egg_sparse import host
from egg_sparse.estimators import (
    BitVectorSampler,
    RelaxedWrapper,
    SymbolGameRelaxed,
    SymbolSampler,
)
from enumeration import DRAWS, SCORES, Receiver, Scores, family, loss


@pytest.mark.parametrize("kind", ["symbols", "bits"])
def test_relaxed_messages_have_the_frequencies_and_the_mean_gradient_of_their_family(kind):
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


def test_a_relaxed_sender_plays_eggs_gumbel_game():
    game = host.core.SymbolGameGS(
        RelaxedWrapper(BitVectorSampler(Scores("bits", 4))), lambda message, *_: message, lambda *a: (a[3].sum(-1), {})
    )
    optimized, interaction = game(torch.zeros(4, 1), None)
    optimized.backward()
    assert interaction.message.shape == (4, 3)


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"temperature .* 0\.0"):
        RelaxedWrapper(BitVectorSampler(Scores("bits", 2)), temperature=0.0)


def test_a_game_of_messages_that_are_not_relaxed_is_refused():
    with pytest.raises(TypeError, match=r"RelaxedWrapper.* BitVectorSampler"):
        SymbolGameRelaxed(BitVectorSampler(Scores("bits", 2)), Receiver("bits"), loss)
