"""SparseMAP over bit-vectors: marginals against a general quadratic solver, distributions against the marginals."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize

from egg_sparse.mappings import decompositions, sparsemap_bit_vectors, sparsemap_marginals

BOTH = pytest.mark.parametrize("decomposition", ["systematic", "threshold"])

scores_and_budget = st.integers(1, 9).flatmap(
    lambda n_bits: st.tuples(
        arrays(
            "float64",
            (3, n_bits),
            elements=st.floats(-3, 3) | st.sampled_from([0.0, 1.0, -1.0, 0.5, -0.5, 1e-30, 1e30, -1e30]),
        ),
        st.none() | st.integers(0, n_bits + 1),
    )
)


def solve(x, budget):
    """The quadratic program itself, by sequential least squares."""

    def negative(mu):
        return -(x @ mu - 0.5 * mu @ mu - 0.5 * (1 - mu) @ (1 - mu))

    limits = [] if budget is None else [{"type": "ineq", "fun": lambda mu: budget - mu.sum()}]
    start = np.zeros(len(x))
    return minimize(negative, start, bounds=[(0, 1)] * len(x), constraints=limits, method="SLSQP", tol=1e-14).x


@pytest.mark.parametrize("budget", [None, 0, 1, 2, 4, 10])
@pytest.mark.parametrize("n_bits", [1, 3, 10])
def test_marginals_equal_a_quadratic_solver(n_bits, budget):
    x = 1.5 * torch.randn(10, n_bits, dtype=torch.float64)
    expected = np.stack([solve(row, budget) for row in x.numpy()])
    np.testing.assert_allclose(sparsemap_marginals(x, budget).numpy(), expected, atol=1e-5)


def duality_gap(x, mu, budget):
    """max_z <g, z> - <g, mu> over vertices z, for the gradient g of the objective at mu: 0 at the optimum alone."""
    gradient = x - 2 * mu + 1
    gains = gradient.clamp(min=0).sort(1, descending=True).values
    best = gains if budget is None else gains[:, :budget]
    return best.sum(1) - (gradient * mu).sum(1)


@pytest.mark.slow
@given(scores_and_budget)
@settings(max_examples=300, deadline=None)
def test_duality_gap(case):
    x, budget = torch.from_numpy(case[0]).clamp(-50, 50), case[1]
    mu = sparsemap_marginals(x, budget)
    assert ((mu >= 0) & (mu <= 1)).all()
    assert (mu.sum(1) <= (x.shape[1] if budget is None else budget) + 1e-9).all()
    assert (duality_gap(x, mu, budget) < 1e-9).all()


@pytest.mark.parametrize("budget", [None, 100])
@pytest.mark.parametrize("n_bits", [1000, 4096])
def test_duality_gap_of_many_bits(n_bits, budget):
    x = torch.randn(8, n_bits, dtype=torch.float64)
    assert (duality_gap(x, sparsemap_marginals(x, budget), budget) < 1e-6).all()


@BOTH
@given(case=scores_and_budget)
@example(case=(np.full((3, 4), 0.0), 2))
@example(case=(np.array([[0.4, -0.4, 0.2, -0.2]] * 3), 2))
@settings(max_examples=300, deadline=None)
def test_distribution(decomposition, case):
    x, budget = torch.from_numpy(case[0]), case[1]
    if decomposition == "threshold":
        budget = None
    d = sparsemap_bit_vectors(x, budget, decomposition)
    torch.testing.assert_close(d.mean, sparsemap_marginals(x, budget), atol=1e-12, rtol=0)
    torch.testing.assert_close(d.probs.sum(0), torch.ones(3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert (d.probs >= 0).all()
    assert (d.probs[:-1] >= d.probs[1:]).all()
    assert (d.support_size <= x.shape[1] + 1).all()
    assert d.support_size.max() == len(d.probs)
    assert ((d.messages == 0) | (d.messages == 1)).all()
    if budget is not None:
        assert (d.messages.sum(-1)[d.mask] <= budget).all()
    for b in range(3):
        terms = d.messages[d.mask[:, b], b].tolist()
        assert len({tuple(term) for term in terms}) == len(terms)


@given(arrays("float32", st.tuples(st.just(4), st.integers(1, 40)), elements=st.floats(-1.5, 1.5, width=32)), st.data())
@settings(max_examples=200, deadline=None)
def test_budget_is_never_broken_in_float32(x, data):
    budget = data.draw(st.integers(0, x.shape[1]))
    d = sparsemap_bit_vectors(torch.from_numpy(x), budget)
    assert (d.messages.sum(-1)[d.mask] <= budget).all()
    torch.testing.assert_close(d.mean, sparsemap_marginals(torch.from_numpy(x), budget), atol=2e-5, rtol=0)


def test_messages_that_are_computed_in_parts(monkeypatch):
    x = torch.randn(20, 30, dtype=torch.float64)
    whole = sparsemap_bit_vectors(x)
    for entries in (1, 4 * x.numel(), 7 * x.numel() + 1):
        monkeypatch.setattr(decompositions, "_IN_CACHE", entries)
        d = sparsemap_bit_vectors(x)
        assert torch.equal(d.messages, whole.messages)
        torch.testing.assert_close(d.mean, sparsemap_marginals(x), atol=1e-12, rtol=0)


def test_systematic_messages_have_about_the_mean_number_of_bits():
    x = torch.randn(20, 30, dtype=torch.float64)
    d = sparsemap_bit_vectors(x)
    total, sizes = sparsemap_marginals(x).sum(1), d.messages.sum(-1)
    assert ((sizes == total.floor()) | (sizes == total.ceil()))[d.mask].all()


def test_threshold_messages_are_nested():
    d = sparsemap_bit_vectors(torch.randn(20, 12, dtype=torch.float64), decomposition="threshold")
    for b in range(20):
        terms = sorted(
            ({i for i, bit in enumerate(row) if bit} for row in d.messages[d.mask[:, b], b].tolist()), key=len
        )
        assert all(small < large for small, large in itertools.pairwise(terms))


def test_decompositions_agree_on_linear_functions_and_differ_on_others():
    x = 0.8 * torch.randn(5, 8, dtype=torch.float64).clamp(-1, 1)
    weights = torch.randn(8, dtype=torch.float64)
    first, second = (sparsemap_bit_vectors(x, None, name) for name in ("systematic", "threshold"))
    linear = [d.expectation(d.messages @ weights) for d in (first, second)]
    torch.testing.assert_close(*linear)
    pairs = [d.expectation(d.messages[:, :, 0] * d.messages[:, :, 1]) for d in (first, second)]
    assert (pairs[0] - pairs[1]).abs().max() > 0.01


@BOTH
@pytest.mark.parametrize("budget", [None, 2])
def test_gradients(decomposition, budget):
    if decomposition == "threshold" and budget is not None:
        pytest.skip("refused")
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: sparsemap_marginals(s, budget), (x,))
    assert torch.autograd.gradcheck(lambda s: sparsemap_bit_vectors(s, budget, decomposition).probs, (x,))
    assert torch.autograd.gradcheck(lambda s: sparsemap_bit_vectors(s, budget, decomposition).mean, (x,))


@BOTH
@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("budget", [None, 0, 2, 4])
def test_gradients_at_breakpoints_are_finite(decomposition, value, budget):
    x = torch.full((2, 4), value, requires_grad=True)
    d = sparsemap_bit_vectors(x, None if decomposition == "threshold" else budget, decomposition)
    (d.entropy().sum() + d.mean.pow(2).sum()).backward()
    assert torch.isfinite(x.grad).all()


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types_strides_and_empty_batches(decomposition, dtype):
    x = torch.randn(6, 4).to(dtype)
    d = sparsemap_bit_vectors(x.t(), None, decomposition)
    assert d.messages.dtype == dtype
    assert d.probs.dtype == sparsemap_marginals(x).dtype == torch.promote_types(dtype, torch.float32)
    same = sparsemap_bit_vectors(x.t().contiguous(), None, decomposition)
    assert torch.equal(d.messages, same.messages)
    empty = sparsemap_bit_vectors(torch.zeros(0, 4, dtype=dtype), None, decomposition)
    assert empty.mode.shape == (0, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        d = sparsemap_bit_vectors(x, None, decomposition)
        assert d.probs.dtype == d.messages.dtype == torch.promote_types(dtype, torch.float32)


@BOTH
def test_examples_do_not_mix(decomposition):
    x = torch.randn(8, 10, dtype=torch.float64)
    order = torch.randperm(8)
    d, permuted = (sparsemap_bit_vectors(s, None, decomposition) for s in (x, x[order]))
    torch.testing.assert_close(d.mean[order], permuted.mean)
    torch.testing.assert_close(d.entropy()[order], permuted.entropy())


@pytest.mark.parametrize(
    ("scores", "options", "error"),
    [
        (torch.zeros(3), {}, r"scores.*\(3,\)"),
        (torch.zeros(3, 2).long(), {}, "floating point"),
        (torch.zeros(3, 2), {"budget": -1}, "budget.*-1"),
        (torch.zeros(3, 2), {"budget": 1.5}, "budget.*float"),
        (torch.tensor([[math.nan, 1.0]]), {}, "scores.*1 of 2"),
        (torch.tensor([[math.nan, math.inf]]), {"budget": 1}, "scores.*2 of 2"),
    ],
)
def test_refuses(scores, options, error):
    for mapping in (sparsemap_marginals, sparsemap_bit_vectors):
        with pytest.raises((TypeError, ValueError), match=error):
            mapping(scores, **options)


def test_refuses_decompositions():
    with pytest.raises(ValueError, match=r"decomposition.*'random'"):
        sparsemap_bit_vectors(torch.zeros(1, 2), decomposition="random")
    with pytest.raises(ValueError, match='"threshold" cannot keep a budget: its largest set has all bits'):
        sparsemap_bit_vectors(torch.zeros(1, 2), budget=1, decomposition="threshold")


def test_the_largest_numbers_draw_no_warning(recwarn):
    largest = torch.finfo(torch.float32).max
    x = torch.tensor([[largest, -largest, 1.0, largest]])
    for budget in (None, 1, 2):
        assert sparsemap_bit_vectors(x, budget).mean.sum() == (3 if budget is None else budget)
    assert not len(recwarn)
