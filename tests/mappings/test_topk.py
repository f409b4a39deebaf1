"""The k best bit-vectors against all 2^D of them."""

import itertools
import math
import time
from fractions import Fraction

import entmax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from egg_sparse.mappings import arrays as arrays_of_numpy
from egg_sparse.mappings import topk_bit_vectors, topk_sparsemax
from egg_sparse.mappings.topk import candidates_and_steps, flip_candidates


def all_bit_vectors(n_bits, dtype=torch.float64):
    return torch.tensor(list(itertools.product([0, 1], repeat=n_bits)), dtype=dtype)


@pytest.mark.parametrize(("k", "count"), [(1, 1), (2, 2), (3, 3), (10, 17), (32, 95), (100, 474)])
def test_number_of_candidates(k, count):
    assert len(flip_candidates(k, 4096)) == count


@pytest.mark.parametrize("n_bits", [1, 2, 3, 4, 5])
def test_candidates_are_those_that_dominate_fewer_than_k(n_bits):
    """The definition, tried for every pair of sets of ranks."""
    sets = [set(c) for r in range(n_bits + 1) for c in itertools.combinations(range(n_bits), r)]

    def at_most(first, second):
        first, second = sorted(first, reverse=True), sorted(second, reverse=True)
        return len(first) <= len(second) and all(a <= b for a, b in zip(first, second, strict=False))

    for k in range(1, 2**n_bits + 2):
        expected = {
            frozenset(s) for s in sets if sum(at_most(t, s) for t in sets if t != s) < k and all(r < k - 1 for r in s)
        }
        found = [frozenset(row[row > 0] - 1) for row in flip_candidates(k, n_bits).numpy()]
        assert len(found) == len(expected)
        assert set(found) == expected


@pytest.mark.parametrize("n_bits", [1, 5, 40])
@pytest.mark.parametrize("k", [1, 2, 17, 200])
def test_steps_lead_to_each_candidate_once(k, n_bits):
    candidates, steps = candidates_and_steps(k, n_bits)
    reached = torch.cat([torch.zeros(1, dtype=torch.long), *(of_sets for of_sets, _, _ in steps)])
    assert sorted(reached.tolist()) == list(range(len(candidates)))
    for of_sets, of_parents, ranks in steps:
        assert torch.equal(candidates[of_sets][:, 0], ranks + 1)
        assert torch.equal(candidates[of_sets][:, 1:], candidates[of_parents][:, :-1])


def slow_candidates(k, n_bits):
    """A search by the sum of ranks that compares each set with all candidates so far."""
    n_ranks = min(k - 1, n_bits)
    longest = max(1, k.bit_length() - 1)
    found = np.zeros((1, longest), dtype=np.int64)
    level = [(0,) * longest]
    while level:
        successors = set()
        for ranks in level:
            size = sum(rank > 0 for rank in ranks)
            if size < longest and (size == 0 or ranks[size - 1] > 1) and n_ranks:
                successors.add((*ranks[:size], 1, *ranks[size + 1 :]))
            for i in range(size):
                if ranks[i] < n_ranks and (i == 0 or ranks[i] + 1 < ranks[i - 1]):
                    successors.add((*ranks[:i], ranks[i] + 1, *ranks[i + 1 :]))
        level = [ranks for ranks in sorted(successors) if (found <= np.array(ranks)).all(1).sum() < k]
        if level:
            found = np.concatenate([found, np.array(level)])
    return found


@pytest.mark.parametrize("n_bits", [1, 2, 3, 4, 5, 7, 10, 16, 40, 4096])
def test_candidates_and_their_order_equal_those_of_a_slow_search(n_bits):
    for k in (*range(1, 41), 63, 64, 65, 100, 200):
        np.testing.assert_array_equal(flip_candidates(k, n_bits), slow_candidates(k, n_bits))


def test_long_lists_of_candidates_take_seconds_at_most():
    start = time.perf_counter()
    assert len(flip_candidates(9_999, 4_096)) > 200_000
    assert time.perf_counter() - start < 10


def test_many_of_the_best_equal_the_best_of_all():
    x = torch.randn(3, 14, dtype=torch.float64)
    k = 2**13
    vectors, values = topk_bit_vectors(x, k)
    best = (x @ all_bit_vectors(14).t()).sort(1, descending=True).values[:, :k]
    torch.testing.assert_close(values.t(), best, atol=1e-12, rtol=0)
    torch.testing.assert_close((vectors * x).sum(-1), values, atol=1e-12, rtol=0)
    place_values = 2 ** torch.arange(14.0, dtype=torch.float64)
    assert all(len(set((vectors[:, b] @ place_values).tolist())) == k for b in range(3))


def test_refuses_k_that_is_too_large():
    assert topk_bit_vectors(torch.zeros(1, 3), 10**9)[0].shape == (8, 1, 3)
    for mapping in (topk_bit_vectors, topk_sparsemax):
        with pytest.raises(ValueError, match=r"\bk\b.*16384.*\b15 bits.*20000"):
            mapping(torch.zeros(1, 15), 20_000)


def test_gradient_of_a_value_is_its_bit_vector():
    """This holds at scores of 0 as well."""
    x = torch.tensor([[0.0, 1.0, -0.5, 0.0]], dtype=torch.float64, requires_grad=True)
    vectors, values = topk_bit_vectors(x, 16)
    for vector, value in zip(vectors[:, 0], values[:, 0], strict=True):
        assert torch.equal(torch.autograd.grad(value, x, retain_graph=True)[0][0], vector)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("numpy_on_cpu", [True, False])
@pytest.mark.filterwarnings("error")
def test_the_largest_numbers(dtype, numpy_on_cpu, monkeypatch):
    """The order is right even if sums overflow, and values are infinite only where they do."""
    monkeypatch.setattr(arrays_of_numpy, "NUMPY_ON_CPU", numpy_on_cpu)
    largest = torch.finfo(dtype).max
    shares = [[0.99, 0.9, -0.7, 0.55, -0.95], [-0.98, -0.8, 1e-3, 0.0, 0.3], [1e-30, -0.25, 0.6, 0.1, -0.97]]
    x = (torch.tensor(shares, dtype=torch.float64) * largest).to(dtype).requires_grad_()
    for k in (1, 3, 32):
        vectors, values = topk_bit_vectors(x, k)
        exact = [
            sorted(
                (
                    (sum(Fraction(score) for score, bit in zip(row, bits, strict=True) if bit), bits)
                    for bits in itertools.product([0, 1], repeat=5)
                ),
                key=lambda pair: -pair[0],
            )[:k]
            for row in x.tolist()
        ]
        for b in range(3):
            for (score, _), vector, value in zip(exact[b], vectors[:, b], values[:, b], strict=True):
                bits = vector.tolist()
                own = sum(Fraction(s) for s, bit in zip(x[b].tolist(), bits, strict=True) if bit)
                assert abs(own - score) <= Fraction(largest) / 10**6  # of scores that are equal but for rounding, any
                if abs(score) > largest:
                    assert value.item() == (math.inf if score > 0 else -math.inf)
                else:
                    assert abs(Fraction(value.item()) - own) <= Fraction(largest) / 10**6
        d = topk_sparsemax(x, k)
        assert d.support_size.tolist() == [1, min(k, 2), 1]
        assert (d.mode == (x > 0)).all()
        (d.entropy().sum() + values[torch.isfinite(values)].sum() / largest).backward()
        assert torch.isfinite(x.grad).all()


scores_and_k = st.integers(1, 6).flatmap(
    lambda n_bits: st.tuples(
        arrays("float64", (3, n_bits), elements=st.floats(-2, 2) | st.sampled_from([0.0, 1.0, -1.0, 1e-30])),
        st.integers(1, 2**n_bits + 2),
    )
)


@given(scores_and_k)
@settings(max_examples=200, deadline=None)
def test_equals_the_best_of_all(case):
    x, k = torch.from_numpy(case[0]), case[1]
    n_bits = x.shape[1]
    vectors, values = topk_bit_vectors(x, k)
    assert vectors.shape == (min(k, 2**n_bits), 3, n_bits)
    best = (x @ all_bit_vectors(n_bits).t()).sort(1, descending=True).values[:, :k]
    torch.testing.assert_close(values.t(), best, atol=1e-12, rtol=0)
    torch.testing.assert_close((vectors * x).sum(-1), values, atol=1e-12, rtol=0)
    assert ((vectors == 0) | (vectors == 1)).all()
    for b in range(3):
        assert len({tuple(row) for row in vectors[:, b].tolist()}) == len(vectors)


@pytest.mark.slow
@given(scores_and_k)
@settings(max_examples=200, deadline=None)
def test_sparsemax_of_the_best(case):
    x, k = torch.from_numpy(case[0]), case[1]
    n_bits = x.shape[1]
    d = topk_sparsemax(x, k)
    everything = all_bit_vectors(n_bits)
    total = x @ everything.t()
    best = total.sort(1, descending=True).values[:, :k]
    expected = entmax.sparsemax(best, dim=1)
    rows = d.probs.shape[0]
    torch.testing.assert_close(d.probs.t(), expected[:, :rows], atol=1e-10, rtol=0)
    assert (expected[:, rows:] < 1e-10).all()
    torch.testing.assert_close(d.probs.sum(0), torch.ones(3, dtype=torch.float64))
    exact = entmax.sparsemax(total, dim=1)
    for b in range(3):
        if d.is_exact[b]:
            found = torch.stack([d.log_prob(z.expand(3, -1))[b] for z in everything]).exp()
            torch.testing.assert_close(found, exact[b], atol=1e-8, rtol=0)
    assert d.is_exact.all() or k < 2**n_bits


def test_is_exact_says_where_terms_are_missing():
    d = topk_sparsemax(torch.tensor([[5.0, -5.0, 5.0], [0.01, 0.01, 0.01]]), k=4)
    assert d.is_exact.tolist() == [True, False]


def test_ties_are_in_the_documented_order():
    vectors, _ = topk_bit_vectors(torch.tensor([[0.5, -0.5, 0.5]]), k=5)
    assert vectors[:, 0].tolist() == [[1, 0, 1], [0, 0, 1], [1, 1, 1], [1, 0, 0], [0, 1, 1]]
    vectors, _ = topk_bit_vectors(torch.zeros(1, 3), k=3)
    assert vectors[:, 0].tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("k", [1, 4, 40])
def test_gradients(k):
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(5, dtype=torch.float64)

    def expected(scores):
        d = topk_sparsemax(scores, k)
        return (d.probs[:, :, None] * d.messages * weights).sum((0, 2)), topk_bit_vectors(scores, k)[1]

    assert torch.autograd.gradcheck(expected, (x,))


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_gradients_at_breakpoints_are_finite(scale):
    x = torch.full((2, 4), scale, requires_grad=True)
    d = topk_sparsemax(x, 6)
    (d.entropy().sum() + d.mean.sum()).backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_any_scale(scale):
    x = torch.randn(4, 6) * scale
    vectors, values = topk_bit_vectors(x, 8)
    torch.testing.assert_close((vectors * x).sum(-1) / scale, values / scale, atol=1e-5, rtol=1e-5)
    d = topk_sparsemax(x, 8)
    assert d.support_size.tolist() == ([8] * 4 if scale < 1 else [1] * 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types_strides_and_empty_batches(dtype):
    x = torch.randn(6, 4).to(dtype)
    d = topk_sparsemax(x.t(), 5)
    assert d.messages.dtype == topk_bit_vectors(x, 5)[0].dtype == dtype
    assert d.probs.dtype == topk_bit_vectors(x, 5)[1].dtype == torch.promote_types(dtype, torch.float32)
    same = topk_sparsemax(x.t().contiguous(), 5)
    assert torch.equal(d.messages, same.messages)
    empty = topk_sparsemax(torch.zeros(0, 4, dtype=dtype), 5)
    assert empty.mode.shape == (0, 4)
    assert empty.is_exact.shape == (0,)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert topk_sparsemax(x, 5).messages.dtype == torch.promote_types(dtype, torch.float32)


def test_examples_do_not_mix():
    x = torch.randn(8, 10)
    order = torch.randperm(8)
    d, permuted = topk_sparsemax(x, 7), topk_sparsemax(x[order], 7)
    torch.testing.assert_close(d.mean[order], permuted.mean)


@pytest.mark.parametrize(
    ("scores", "k", "error"),
    [
        (torch.zeros(3), 2, r"scores.*\(3,\)"),
        (torch.zeros(3, 0), 2, "D >= 1 bits"),
        (torch.zeros(3, 2).long(), 2, "floating point"),
        (torch.zeros(3, 2), 0, "k .* 0"),
        (torch.zeros(3, 2), 2.0, "k .* float"),
        (torch.tensor([[math.nan, 1.0]]), 2, "scores.*1 of 2"),
        (torch.tensor([[-math.inf, math.inf]]), 2, "scores.*2 of 2"),
    ],
)
def test_refuses(scores, k, error):
    for mapping in (topk_bit_vectors, topk_sparsemax):
        with pytest.raises((TypeError, ValueError), match=error):
            mapping(scores, k)
