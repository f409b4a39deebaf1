"""Bounded supports: sizes, inclusion probabilities and unbiasedness, against a bisection and many draws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from egg_sparse import SparseDistribution
from egg_sparse.mappings import softmax, sparsemap_bit_vectors
from egg_sparse.mappings.resampling import draw_by_group, drawn_rows, inclusion_probabilities, resample


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


def padded(values, groups, n_groups):
    """Values by group ``(N, G)``, each column in descending order, and the row and column of every value."""
    order = values.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    sizes = torch.bincount(groups, minlength=n_groups)
    rank = torch.arange(len(values)) - (sizes.cumsum(0) - sizes)[groups[order]]
    columns = values.new_zeros(len(values), n_groups)
    rows = torch.empty_like(groups)
    rows[order] = rank
    columns[rows, groups] = values
    return columns, rows


@given(
    st.integers(0, 2**16),
    st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(any),
    st.integers(1, 14),
    st.sampled_from([1.0, 10.0, 60.0, 700.0]),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_groups_are_drawn_as_padded_columns(seed, sizes, max_support, span, dtype, has_ties):
    """Groups in any order, empty ones among them, weights of 0, and weights that are 300 orders of magnitude apart."""
    torch.manual_seed(seed)
    groups = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[torch.randperm(sum(sizes))]
    weights = torch.exp(-span * torch.rand(len(groups), dtype=torch.float64)).to(dtype)
    if has_ties:
        weights = torch.where(torch.rand(len(groups)) < 0.5, weights, weights.max())
    weights[torch.rand(len(groups)) < 0.2] = 0
    drawn, q, is_exact = draw_by_group(weights, groups, len(sizes), max_support)
    columns, rows = padded(weights, groups, len(sizes))
    expected = inclusion_probabilities(columns, max_support)
    assert q.dtype == torch.float64
    torch.testing.assert_close(q, expected[rows, groups].double(), rtol=1e-12, atol=1e-12)
    n_positive = (columns > 0).sum(0)
    assert torch.equal(is_exact, n_positive <= max_support)
    assert torch.equal(torch.bincount(groups[drawn], minlength=len(sizes)), n_positive.clamp(max=max_support))
    assert not drawn[weights == 0].any()
    assert drawn[(q == 1) & (weights > 0)].all(), "what is certain is drawn"


def test_groups_are_drawn_with_their_inclusion_probabilities():
    """Each of three distributions, 5,000 times, in mixed order."""
    columns = torch.tensor([[0.6, 0.2, 0.1, 0.05, 0.03, 0.02], [0.2] * 5 + [0.0], [0.4, 0.3, 0.3, 0.0, 0.0, 0.0]])
    n_draws = 5000
    weights = columns.repeat(n_draws, 1).flatten()
    groups = torch.arange(3 * n_draws).repeat_interleave(6)
    mixed = torch.randperm(len(weights))
    drawn = torch.empty_like(weights, dtype=torch.bool)
    drawn[mixed], q, is_exact = draw_by_group(weights[mixed], groups[mixed], 3 * n_draws, 3)
    frequency = drawn.view(n_draws, 3, 6).double().mean(0)
    expected = torch.stack(
        [torch.tensor(inclusion_by_bisection(row.tolist(), 3), dtype=torch.float64) for row in columns]
    )
    error = (expected * (1 - expected) / n_draws).sqrt()
    assert ((frequency - expected).abs() <= 5 * error + 1e-6).all()
    assert is_exact.tolist() == [False, False, True] * n_draws
    sums = torch.zeros(3 * n_draws, dtype=torch.float64).index_add(
        0, groups[mixed], torch.where(drawn[mixed], weights[mixed] / q.clamp(min=1e-9), 0)
    )
    torch.testing.assert_close(sums, torch.ones_like(sums))


def test_many_groups_do_not_round_small_weights_away():
    """A running sum over all groups is 2,000 here, and the weights of interest are 1e-12."""
    weights = torch.tensor([1.0, *[1e-12] * 9], dtype=torch.float64).repeat(2000)
    groups = torch.arange(2000).repeat_interleave(10)
    drawn, q, _ = draw_by_group(weights, groups, 2000, 4)
    torch.testing.assert_close(q.view(2000, 10)[:, 1:], torch.full((2000, 9), 1 / 3, dtype=torch.float64))
    assert (drawn.view(2000, 10).sum(1) == 4).all()
