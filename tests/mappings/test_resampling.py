"""Bounded supports: sizes, inclusion probabilities and unbiasedness, against a bisection and many draws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from egg_sparse import SparseDistribution
from egg_sparse.mappings import softmax, sparsemap_bit_vectors
from egg_sparse.mappings.resampling import drawn_rows, inclusion_probabilities, resample


def inclusion_by_bisection(probs, max_support):
    """The inclusion probabilities of one example by their definition: c with sum min(1, c p) = K."""
    if sum(p > 0 for p in probs) <= max_support:
        return [float(p > 0) for p in probs]
    low, high = 0.0, 1e12
    for _ in range(200):
        c = (low + high) / 2
        low, high = (low, c) if sum(min(1, c * p) for p in probs) > max_support else (c, high)
    return [min(1, c * p) for p in probs]


@given(
    st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1)), min_size=1, max_size=12).filter(any),
    st.integers(1, 12),
)
@settings(max_examples=200, deadline=None)
def test_inclusion_probabilities_and_draws(weights, max_support):
    w = torch.tensor(weights, dtype=torch.float64).sort(descending=True).values
    probs = (w / w.sum())[:, None]
    q = inclusion_probabilities(probs, max_support)
    expected = torch.tensor(inclusion_by_bisection(probs[:, 0].tolist(), max_support), dtype=torch.float64)
    torch.testing.assert_close(q[:, 0], expected, atol=1e-6, rtol=1e-6)
    rows = drawn_rows(q, max_support)
    size = min(max_support, int((probs > 0).sum()))
    drawn = rows[:size, 0].tolist()
    assert drawn == sorted(set(drawn))
    assert (q[drawn] > 0).all()
    assert set((expected >= 1 - 1e-9).nonzero().flatten().tolist()) <= set(drawn), "what is certain is drawn"


def uneven(vocab_size=12):
    scores = torch.randn(3, vocab_size, dtype=torch.float64) * torch.tensor([[0.0], [1.0], [4.0]])
    distribution = softmax(scores)
    probs = torch.where(distribution.probs < 0.02, 0, distribution.probs)
    return SparseDistribution(distribution.messages, probs / probs.sum(0))


def repeated(d, times):
    """The distribution with each example ``times`` times, so that one call draws for all of them."""
    return SparseDistribution(
        *(part.repeat_interleave(times, 1) for part in (d.messages, d.probs)), validate_args=False
    )


@pytest.mark.parametrize("max_support", [1, 2, 5, 11])
def test_expectations_are_unbiased(max_support):
    d = uneven()
    assert len(d.support_size.unique()) > 1
    values = torch.randn(12, dtype=torch.float64)
    exact = d.expectation(values[d.messages])
    bounded = resample(repeated(d, 4000), max_support)
    assert len(bounded.probs) == max_support
    assert torch.equal(bounded.support_size, d.support_size.clamp(max=max_support).repeat_interleave(4000))
    estimates = bounded.expectation(values[bounded.messages]).view(3, 4000)
    error = estimates.std(1) / 4000**0.5
    assert ((estimates.mean(1) - exact).abs() <= 5 * error + 1e-12).all()
    within = d.support_size <= max_support
    assert torch.equal(bounded.is_exact, within.repeat_interleave(4000))
    torch.testing.assert_close(estimates[within], exact[within, None].expand(-1, 4000))


def test_no_bound_no_change():
    d = uneven()
    assert resample(d, 12) is d
    assert torch.equal(d.weights, d.probs)


def test_probabilities_stay_the_messages_own():
    d = uneven()
    bounded = resample(d, 3)
    for b in range(3):
        for message, prob, padding in zip(
            bounded.messages[:, b], bounded.probs[:, b], ~bounded.mask[:, b], strict=True
        ):
            assert padding or prob == d.probs[(d.messages[:, b] == message) & d.mask[:, b], b]
    assert not bounded.ratios.requires_grad


def test_bit_vectors():
    d = sparsemap_bit_vectors(0.3 * torch.randn(4, 9, dtype=torch.float64))
    bounded = resample(repeated(d, 3000), 4)
    assert bounded.messages.shape == (4, 12_000, 9)
    torch.testing.assert_close(bounded.mean.view(4, 3000, 9).mean(1), d.mean, atol=0.1, rtol=0)


@pytest.mark.parametrize("size", [1000, 100_000])
def test_large_vocabularies(size):
    """Running sums of so many float32 probabilities are rounded."""
    d = softmax(torch.randn(4, size) * 0.1)
    bounded = resample(d, 256)
    assert bounded.support_size.tolist() == [256] * 4
    for b in range(4):
        assert len(bounded.messages[:, b].unique()) == 256
    torch.testing.assert_close(bounded.weights.sum(0), torch.ones(4), atol=0.05, rtol=0)
