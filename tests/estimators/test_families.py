"""Families of messages against the enumeration of all of their messages."""

import pytest
import torch

from egg_sparse.estimators import BitVectorSampler, SymbolSampler
from enumeration import SCORES, Scores, family, messages_of


def enumerated(kind):
    """Messages, probabilities by definition, and the family, of one example."""
    messages, scores = messages_of(kind), SCORES[kind]
    if kind == "symbols":
        return messages, scores.exp() / scores.exp().sum(), family(kind, scores[None])
    on = 1 / (1 + (-scores).exp())
    return messages, torch.where(messages == 1, on, 1 - on).prod(1), family(kind, scores[None])


@pytest.mark.parametrize("kind", ["symbols", "bits"])
def test_probabilities_and_entropy_are_those_of_the_enumeration(kind):
    messages, probs, distribution = enumerated(kind)
    log_probs = torch.cat([distribution.log_prob(message[None]) for message in messages])
    torch.testing.assert_close(log_probs.exp(), probs)
    torch.testing.assert_close(distribution.entropy(), -(probs * probs.log()).sum()[None])


@pytest.mark.parametrize("kind", ["symbols", "bits"])
def test_the_mode_is_the_most_probable_message(kind):
    messages, probs, distribution = enumerated(kind)
    assert torch.equal(distribution.mode, messages[probs.argmax()][None])


@pytest.mark.parametrize("kind", ["symbols", "bits"])
def test_samples_occur_as_often_as_they_are_probable(kind):
    messages, probs, _ = enumerated(kind)
    samples = family(kind, SCORES[kind].expand(20_000, -1)).sample()
    same = samples == messages[:, None] if kind == "symbols" else (samples == messages[:, None]).all(-1)
    torch.testing.assert_close(same.double().mean(1), probs, atol=0.02, rtol=0)


@pytest.mark.parametrize("straight_through", [True, False])
@pytest.mark.parametrize("kind", ["symbols", "bits"])
def test_relaxed_messages_have_the_format_of_messages_made_alike(kind, straight_through):
    _, _, distribution = enumerated(kind)
    relaxed, alike = distribution.relaxed(0.5, straight_through), distribution.as_relaxed(distribution.sample())
    assert relaxed.shape == alike.shape
    assert relaxed.dtype == alike.dtype
    assert ((relaxed == 0) | (relaxed == 1)).all() == straight_through
    assert ((alike == 0) | (alike == 1)).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match=r"scores .* 2 of 2"):
        BitVectorSampler(lambda *_: torch.full((1, 2), value))(None)


@pytest.mark.parametrize(
    ("wrapper", "kind", "link"),
    [
        (SymbolSampler, "symbols", lambda scores: scores.softmax(-1)),
        (BitVectorSampler, "bits", torch.sigmoid),
    ],
)
def test_the_temperature_divides_the_scores(wrapper, kind, link):
    sampler = wrapper(Scores(kind, 1), temperature=2.0)
    torch.testing.assert_close(
        sampler(None).mean if kind == "bits" else sampler(None).probs, link(SCORES[kind][None] / 2)
    )
    with pytest.raises(ValueError, match=r"temperature .*-3"):
        sampler.temperature = -3
