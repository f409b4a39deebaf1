"""The mappings against projections found by other means: exhaustive search over supports, and root finding."""

import itertools
import math

import entmax as entmax_library
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import brentq

from egg_sparse.mappings import entmax, entmax15, softmax, sparsemax

MAPPINGS = {
    "softmax": (softmax, 1.0),
    "sparsemax": (sparsemax, 2.0),
    "entmax15": (entmax15, 1.5),
    "entmax1.3": (lambda x: entmax(x, 1.3), 1.3),
    "entmax2.7": (lambda x: entmax(x, torch.tensor(2.7)), 2.7),
}
by_mapping = pytest.mark.parametrize(("mapping", "alpha"), MAPPINGS.values(), ids=MAPPINGS)


def dense(distribution, vocab_size):
    probs = torch.zeros(distribution.probs.shape[1], vocab_size, dtype=distribution.probs.dtype)
    return probs.scatter_add(1, distribution.messages.t(), distribution.probs.t())


def brute_force_sparsemax(x):
    """Tries every support: the optimum is the projection on the affine hull of one of them."""
    best, best_distance = None, math.inf
    for size in range(1, len(x) + 1):
        for support in itertools.combinations(range(len(x)), size):
            p = [0.0] * len(x)
            shift = (sum(x[i] for i in support) - 1) / size
            for i in support:
                p[i] = x[i] - shift
            distance = sum((a - b) ** 2 for a, b in zip(p, x, strict=True))
            if min(p) >= -1e-12 and distance < best_distance:
                best, best_distance = p, distance
    return best


def threshold_entmax(x, alpha):
    """p_i = [(alpha - 1) x_i - tau]_+ ^ (1 / (alpha - 1)), tau by Brent's method; softmax for alpha = 1."""
    if alpha == 1:
        total = sum(math.exp(v - max(x)) for v in x)
        return [math.exp(v - max(x)) / total for v in x]
    z = [(alpha - 1) * v for v in x]

    def p(tau):
        return [max(0.0, v - tau) ** (1 / (alpha - 1)) for v in z]

    tau = brentq(lambda tau: sum(p(tau)) - 1, max(z) - 1 - 1e-9, max(z), xtol=1e-15, rtol=1e-14)
    return p(tau)


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=7))
@settings(max_examples=100, deadline=None)
def test_sparsemax_equals_the_best_of_all_supports(x):
    found = dense(sparsemax(torch.tensor([x], dtype=torch.float64)), len(x))[0]
    torch.testing.assert_close(found, torch.tensor(brute_force_sparsemax(x), dtype=torch.float64), atol=1e-9, rtol=0)


@by_mapping
@given(x=arrays("float64", (3, 9), elements=st.floats(-5, 5)))
@settings(max_examples=40, deadline=None)
def test_equals_root_finding(mapping, alpha, x):
    found = dense(mapping(torch.from_numpy(x)), 9)
    expected = torch.tensor([threshold_entmax(row.tolist(), alpha) for row in x], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@by_mapping
@given(x=arrays("float32", st.tuples(st.integers(1, 4), st.integers(1, 40)), elements=st.floats(-1e4, 1e4, width=32)))
@settings(max_examples=60, deadline=None)
def test_invariants(mapping, alpha, x):
    scores = torch.from_numpy(x)
    d = mapping(scores)
    torch.testing.assert_close(d.probs.sum(0), torch.ones(len(x)), atol=1e-5, rtol=0)
    assert (d.probs >= 0).all()
    assert (d.probs[:-1] >= d.probs[1:]).all()
    assert d.probs.shape[0] == d.support_size.max()
    for messages, size in zip(d.messages.t(), d.support_size, strict=True):
        assert len(set(messages.tolist())) == size
    best = scores.gather(1, d.mode[:, None])[:, 0]
    torch.testing.assert_close(best, scores.amax(1), atol=1e-5, rtol=1e-5)
    assert d.vocab_size == x.shape[1]


@by_mapping
def test_adding_a_constant_changes_nothing(mapping, alpha):
    scores = torch.randn(5, 8, dtype=torch.float64)
    torch.testing.assert_close(dense(mapping(scores), 8), dense(mapping(scores + 1000), 8), atol=1e-9, rtol=0)


@by_mapping
@pytest.mark.parametrize("scale", [1e-30, 1e6, 1e30])
def test_any_scale_of_scores(mapping, alpha, scale):
    scores = torch.tensor([[3.0, 1.0, -2.0], [0.0, 0.0, -1.0]]) * scale
    probs = dense(mapping(scores), 3)
    expected = [[1 / 3] * 3] * 2 if scale < 1 else [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]
    torch.testing.assert_close(probs, torch.tensor(expected), atol=1e-6, rtol=0)


@by_mapping
def test_gradients(mapping, alpha):
    scores = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: dense(mapping(x), 6) @ weights, (scores,), atol=1e-4)


def test_gradient_of_learned_alpha():
    scores = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    alpha = torch.tensor(1.6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, a: dense(entmax(x, a), 6), (scores, alpha), atol=1e-4)


def test_alpha_per_example():
    scores = torch.randn(2, 6, dtype=torch.float64)
    both = dense(entmax(scores, torch.tensor([[1.2], [1.9]])), 6)
    torch.testing.assert_close(both[:1], dense(entmax(scores[:1], 1.2), 6), atol=1e-6, rtol=0)
    torch.testing.assert_close(both[1:], dense(entmax(scores[1:], 1.9), 6), atol=1e-6, rtol=0)


def test_ties_go_to_the_lower_id():
    d = sparsemax(torch.tensor([[0.5, 1.0, 1.0, 0.5, 1.0]]))
    assert d.messages[:3, 0].tolist() == [1, 2, 4]
    d = softmax(torch.zeros(2, 300))
    assert torch.equal(d.messages, torch.arange(300)[:, None].expand(300, 2))


@by_mapping
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_type_of_probabilities(mapping, alpha, dtype):
    assert mapping(torch.randn(4, 20).to(dtype)).probs.dtype == torch.promote_types(dtype, torch.float32)


@by_mapping
def test_float32_under_autocast(mapping, alpha):
    scores = torch.randn(4, 20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        d = mapping(scores.bfloat16())
    assert d.probs.dtype == torch.float32
    torch.testing.assert_close(d.probs, mapping(scores.bfloat16().float()).probs)


@by_mapping
def test_empty_batch_one_symbol_and_strides(mapping, alpha):
    empty = mapping(torch.zeros(0, 5))
    assert empty.probs.shape == (1, 0)
    assert empty.mode.shape == (0,)
    assert mapping(torch.tensor([[3.0]])).probs.tolist() == [[1.0]]
    scores = torch.randn(6, 4, dtype=torch.float64)
    torch.testing.assert_close(dense(mapping(scores.t()), 6), dense(mapping(scores.t().contiguous()), 6))


@by_mapping
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_refuses_scores_that_are_not_finite(mapping, alpha, bad):
    scores = torch.zeros(2, 3)
    scores[1, 2] = bad
    with pytest.raises(ValueError, match=r"scores.*1 of 6"):
        mapping(scores)


@by_mapping
def test_refuses_other_shapes_and_types(mapping, alpha):
    with pytest.raises(ValueError, match=r"scores.*shape"):
        mapping(torch.zeros(3))
    with pytest.raises(ValueError, match="V >= 1"):
        mapping(torch.zeros(3, 0))
    with pytest.raises(TypeError, match=r"scores.*int64"):
        mapping(torch.zeros(3, 2).long())
    with pytest.raises(TypeError, match="scores must be a tensor"):
        mapping([[1.0]])


@pytest.mark.parametrize("alpha", [1, 0.5, math.inf, math.nan, torch.tensor(1.0), torch.tensor([[1.5], [0.9]])])
def test_refuses_alpha_not_above_1(alpha):
    with pytest.raises(ValueError, match="above 1"):
        entmax(torch.zeros(2, 3), alpha)


def test_refuses_alpha_of_another_shape():
    with pytest.raises(ValueError, match=r"alpha.*shape"):
        entmax(torch.zeros(2, 3), torch.full((3, 1), 1.5))
    with pytest.raises(TypeError, match=r"alpha.*int64"):
        entmax(torch.zeros(2, 3), torch.tensor(2))


# The largest scores of a vocabulary are selected before they are projected: these are compared with the whole one.
LARGE = {
    "softmax": (softmax, lambda x: torch.softmax(x, -1)),
    "sparsemax": (sparsemax, lambda x: entmax_library.sparsemax(x, -1)),
    "entmax15": (entmax15, lambda x: entmax_library.entmax15(x, -1)),
    "entmax1.3": (lambda x, t=1.0: entmax(x, 1.3, t), lambda x: entmax_library.entmax_bisect(x, 1.3, -1)),
    "entmax2.7": (
        lambda x, t=1.0: entmax(x, torch.tensor(2.7), t),
        lambda x: entmax_library.entmax_bisect(x, torch.tensor(2.7).to(x), -1),
    ),
    "entmax, alphas": (
        lambda x, t=1.0: entmax(x, torch.linspace(1.4, 4, len(x))[:, None], t),
        lambda x: entmax_library.entmax_bisect(x, torch.linspace(1.4, 4, len(x))[:, None].to(x), -1),
    ),
}
of_large_vocabularies = pytest.mark.parametrize(("mapping", "reference"), LARGE.values(), ids=LARGE)


def check_with_reference(scores, mapping, reference, tolerance):
    """Probabilities, order, padding and gradients of the mapping are those of the entmax package in float64."""
    scores = scores.clone().requires_grad_()
    exact_scores = scores.detach().double().requires_grad_()
    found, expected = mapping(scores), reference(exact_scores)
    torch.testing.assert_close(dense(found, scores.shape[1]).double(), expected, atol=tolerance, rtol=0)
    probs, messages = found.probs.detach().t(), found.messages.t()
    assert (probs[:, :-1] >= probs[:, 1:]).all()
    assert (probs[:, -1] > 0).any()
    same = (probs[:, :-1] == probs[:, 1:]) & (probs[:, 1:] > 0)
    assert (messages[:, :-1] < messages[:, 1:])[same].all()
    assert torch.equal(torch.where(probs > 0, messages, messages[:, :1]), messages)
    values = torch.randn(scores.shape[1], dtype=torch.float64)
    (grad,) = torch.autograd.grad((found.probs.double() * values[found.messages]).sum(), scores)
    (exact,) = torch.autograd.grad((expected * values).sum(), exact_scores)
    assert grad.dtype == scores.dtype
    torch.testing.assert_close(grad.double(), exact, atol=max(100 * tolerance, torch.finfo(grad.dtype).eps), rtol=0.01)


@of_large_vocabularies
@pytest.mark.parametrize("vocab_size", [257, 300, 1000, 5000])
@pytest.mark.parametrize("scale", [0.03, 0.3, 3.0])
def test_large_vocabularies(mapping, reference, vocab_size, scale):
    scores = scale * torch.randn(5, vocab_size, dtype=torch.float64)
    scores[0, -1] = scores[0].max() + scale  # in the last block, which may be a short one
    scores[1] = scores[1].sort().values  # the best symbols are in one block
    check_with_reference(scores, mapping, reference, 1e-10)
    check_with_reference(scores.float(), mapping, reference, 2e-5)
    check_with_reference(scores.t().contiguous().t(), mapping, reference, 1e-10)


@of_large_vocabularies
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_vocabularies_in_half_precision(mapping, reference, dtype):
    scores = torch.randn(4, 3000).to(dtype)  # with many ties
    assert len(scores[0].unique()) < 2900
    check_with_reference(scores, mapping, reference, 2e-5)


@of_large_vocabularies
@pytest.mark.parametrize("vocab_size", [257, 1024])
def test_ties_in_large_vocabularies(mapping, reference, vocab_size):
    scores = torch.randn(4, vocab_size).round()
    check_with_reference(scores, mapping, reference, 2e-5)
    scores = torch.zeros(3, vocab_size)
    check_with_reference(scores, mapping, reference, 2e-5)
    assert torch.equal(mapping(scores).messages, torch.arange(vocab_size)[:, None].expand(vocab_size, 3))
    scores[1:, 7] = 1e4  # the support of one example is everything, that of the others one symbol
    check_with_reference(scores, mapping, reference, 2e-5)


@of_large_vocabularies
def test_large_scores_of_large_vocabularies(mapping, reference):
    """The differences of scores are exact, while a threshold below the largest score is rounded to it."""
    scores = 8 * torch.randint(0, 3, (3, 600)) + 1e8
    check_with_reference(scores, mapping, lambda x: reference(x - x.detach().amax(1, keepdim=True)), 2e-5)


@of_large_vocabularies
@pytest.mark.parametrize("temperature", [0.01, 0.7, 20.0])
def test_temperature(mapping, reference, temperature):
    for vocab_size in (9, 700):
        scores = torch.randn(3, vocab_size)
        for divisor in (temperature, torch.tensor(temperature)):
            check_with_reference(scores, lambda x, t=divisor: mapping(x, t), lambda x: reference(x / temperature), 2e-5)


@of_large_vocabularies
def test_one_or_no_example_of_a_large_vocabulary(mapping, reference):
    check_with_reference(torch.randn(1, 900), mapping, reference, 2e-5)
    scores = torch.zeros(0, 900, requires_grad=True)
    empty = mapping(scores)
    assert empty.probs.shape == empty.messages.shape == (1, 0)
    (grad,) = torch.autograd.grad(empty.probs.sum(), scores)
    assert grad.shape == (0, 900)


@of_large_vocabularies
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_refuses_scores_of_large_vocabularies_that_are_not_finite(mapping, reference, bad):
    for symbol in (0, 500, 1022):
        scores = torch.randn(3, 1023)
        scores[1, symbol] = bad
        with pytest.raises(ValueError, match=r"scores.*1 of 3069"):
            mapping(scores)


@pytest.mark.parametrize("mapping", [sparsemax, entmax15, lambda x: entmax(x, 1.3)])
def test_gradients_of_large_vocabularies(mapping):
    scores = torch.randn(2, 270, dtype=torch.float64, requires_grad=True)
    assert mapping(scores).support_size.max() < 135
    weights = torch.randn(270, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: dense(mapping(x), 270) @ weights, (scores,), atol=1e-4, fast_mode=True)
    assert torch.autograd.gradgradcheck(
        lambda x: (dense(mapping(x), 270).pow(2) @ weights).cos(), (scores,), atol=1e-4, fast_mode=True
    )


def test_gradients_of_a_learned_alpha_and_of_the_temperature():
    scores = torch.randn(2, 400, dtype=torch.float64, requires_grad=True)
    numbers = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (1.6, 0.8)]
    weights = torch.randn(400, dtype=torch.float64)
    alone = lambda alpha, temperature: dense(entmax(scores.detach(), alpha, temperature), 400) @ weights  # noqa: E731
    assert torch.autograd.gradcheck(alone, numbers, atol=1e-4)


@of_large_vocabularies
def test_tiny_temperatures(mapping, reference):
    for vocab_size in (9, 700):
        scores = torch.randn(3, vocab_size)
        found = mapping(scores, 1e-300)
        assert found.probs.tolist() == [[1.0] * 3]
        assert torch.equal(found.mode, scores.argmax(1))


@pytest.mark.parametrize("temperature", [0, -1.0, math.inf, math.nan])
def test_refuses_temperatures_not_above_0(temperature):
    for mapping in (softmax, sparsemax, entmax15, lambda x, t: entmax(x, 1.3, t)):
        with pytest.raises(ValueError, match=r"temperature.*above 0"):
            mapping(torch.zeros(2, 3), temperature)


def test_refuses_alpha_not_above_1_for_large_vocabularies():
    for alpha in (torch.tensor(1.0), torch.tensor([[1.5], [0.9]]), torch.tensor(math.nan)):
        with pytest.raises(ValueError, match=r"alpha.*above 1"):
            entmax(torch.randn(2, 600), alpha)


@pytest.mark.gpu
@by_mapping
def test_cuda_equals_cpu_with_one_synchronization(mapping, alpha):
    scores = torch.randn(64, 256)
    on_cpu, on_gpu = mapping(scores), mapping(scores.cuda())
    torch.testing.assert_close(dense(on_cpu, 256), dense_on_cpu(on_gpu, 256), atol=1e-6, rtol=0)


def dense_on_cpu(distribution, vocab_size):
    from egg_sparse import SparseDistribution

    return dense(SparseDistribution(distribution.messages.cpu(), distribution.probs.cpu(), vocab_size), vocab_size)
