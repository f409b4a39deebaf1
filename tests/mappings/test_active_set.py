"""The active-set method and chains against a quadratic solver, the gap over all structures, and closed forms."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize
from torch.utils._python_dispatch import TorchDispatchMode

from egg_sparse.mappings import arrays as small_arrays
from egg_sparse.mappings import sparsemap_active_set, sparsemap_bit_vectors, sparsemap_chain, sparsemap_marginals
from egg_sparse.mappings.chain import viterbi

DECOMPOSITIONS = pytest.mark.parametrize("decomposition", ["threshold", "active_set"])

values = st.floats(-3, 3) | st.sampled_from([0.0, 1.0, -1.0, 0.5, -0.5, 1e-30, 1e3, -1e3])


def all_bit_vectors(n_bits):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n_bits)), dtype=torch.float64)


def chain_scores(x, transitions, sequences):
    """The scores (B, S) of the sequences (S, D) for each example."""
    return x @ sequences.T + transitions @ (sequences[:, 1:] * sequences[:, :-1]).T


def gap_over_all(mu, score, structures, mean_score):
    """The duality gap (B,) by its definition: the maximum is over all structures."""
    gains = score - 2 * mu @ structures.T + structures.sum(1)
    return gains.amax(1) - (mean_score - 2 * mu.pow(2).sum(1) + mu.sum(1))


def exactly(k):
    return lambda scores: torch.zeros_like(scores).scatter(1, scores.topk(k, dim=1).indices, 1.0)


def projection(score, structures):
    """The solution of one example's quadratic program over all structures, by sequential least squares."""

    def negative(p):
        mu = p @ structures
        return -(p @ score - 0.5 * mu @ mu - 0.5 * (1 - mu) @ (1 - mu))

    n = len(structures)
    simplex = {"type": "eq", "fun": lambda p: p.sum() - 1}
    start = np.full(n, 1 / n)
    found = minimize(negative, start, bounds=[(0, 1)] * n, constraints=simplex, method="SLSQP", tol=1e-14)
    return found.x @ structures, -found.fun


@DECOMPOSITIONS
@pytest.mark.parametrize("n_bits", [1, 2, 4])
def test_chain_equals_a_quadratic_solver(n_bits, decomposition):
    x = torch.randn(6, n_bits, dtype=torch.float64)
    transitions = 2 * torch.randn(6, n_bits - 1, dtype=torch.float64)
    sequences = all_bit_vectors(n_bits)
    score = chain_scores(x, transitions, sequences)
    mu = sparsemap_chain(x, transitions, decomposition).mean
    for b in range(6):
        expected, _ = projection(score[b].numpy(), sequences.numpy())
        np.testing.assert_allclose(mu[b].numpy(), expected, atol=1e-5)


@DECOMPOSITIONS
@given(
    case=st.integers(1, 8).flatmap(
        lambda n: st.tuples(*(arrays("float64", (3, m), elements=values) for m in (n, n - 1)))
    )
)
@settings(max_examples=150, deadline=None)
def test_chain_is_optimal_over_all_sequences(decomposition, case):
    x, transitions = map(torch.from_numpy, case)
    d = sparsemap_chain(x, transitions, decomposition)
    sequences = all_bit_vectors(x.shape[1])
    score = chain_scores(x, transitions, sequences)
    own = d.expectation((d.messages * x).sum(-1) + (d.messages[..., 1:] * d.messages[..., :-1] * transitions).sum(-1))
    gap = gap_over_all(d.mean, score, sequences, own)
    assert (gap < 1e-8 * (1 + score.abs().amax(1))).all()
    torch.testing.assert_close(d.probs.sum(0), torch.ones(3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert (d.probs[:-1] >= d.probs[1:]).all()
    assert (d.support_size <= x.shape[1] + 1).all()
    for b in range(3):
        terms = d.messages[d.mask[:, b], b].tolist()
        assert len({tuple(term) for term in terms}) == len(terms)


@DECOMPOSITIONS
def test_chain_without_transitions_is_bits(decomposition):
    x = torch.randn(20, 12, dtype=torch.float64)
    d = sparsemap_chain(x, torch.zeros(11, dtype=torch.float64), decomposition)
    torch.testing.assert_close(d.mean, sparsemap_marginals(x), atol=5e-5, rtol=0)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("numpy_on_cpu", [True, False])
def test_long_chains_are_optimal(scale, numpy_on_cpu, monkeypatch):
    monkeypatch.setattr(small_arrays, "NUMPY_ON_CPU", numpy_on_cpu)
    x, transitions = (scale * torch.randn(4, n, dtype=torch.float64) for n in (1000, 999))
    d = sparsemap_chain(x, transitions)
    mu, pairs = d.mean, d.expectation(d.messages[..., 1:] * d.messages[..., :-1])
    residual = x - 2 * mu + 1
    best = viterbi(residual, transitions)
    gap = ((best - mu) * residual).sum(1) + ((best[:, 1:] * best[:, :-1] - pairs) * transitions).sum(1)
    assert gap.abs().max() < 1e-8
    assert d.support_size.min() > 2


@DECOMPOSITIONS
@pytest.mark.parametrize("forbidding", [-1e4, -1e12, -1e30, -1e300])
def test_transitions_that_forbid(forbidding, decomposition):
    """A transition that is negative enough keeps two bits from being on together, however negative it is."""
    x, transitions = torch.randn(20, 12, dtype=torch.float64), torch.randn(20, 11, dtype=torch.float64)
    forbidden = torch.rand(20, 11) < 0.3
    d, expected = (
        sparsemap_chain(x, torch.where(forbidden, number, transitions), decomposition)
        for number in (forbidding, -100.0)
    )
    torch.testing.assert_close(d.mean, expected.mean, atol=1e-10, rtol=0)
    assert (d.messages[..., 1:] * d.messages[..., :-1] * forbidden)[d.mask].sum() == 0


def test_decompositions_of_chains_agree_on_bits_and_pairs():
    x, transitions = torch.randn(20, 12, dtype=torch.float64), torch.randn(20, 11, dtype=torch.float64)
    first, second = (sparsemap_chain(x, transitions, name, tol=1e-14) for name in ("threshold", "active_set"))
    torch.testing.assert_close(first.mean, second.mean, atol=1e-6, rtol=0)
    pairs = [d.expectation(d.messages[..., 1:] * d.messages[..., :-1]) for d in (first, second)]
    torch.testing.assert_close(*pairs, atol=1e-5, rtol=0)


def test_sequences_of_chains_that_attract_are_nested():
    d = sparsemap_chain(torch.randn(20, 12, dtype=torch.float64), torch.rand(20, 11, dtype=torch.float64))
    by_size = d.messages.gather(0, d.messages.sum(-1, keepdim=True).argsort(0).expand_as(d.messages))
    assert (by_size[1:] >= by_size[:-1]).all()


def test_rounding_makes_no_sequence():
    """A chain that reads the same in both directions has pairs of equal marginals, computed in different ways."""
    half, half_transitions = torch.randn(50, 6, dtype=torch.float64), torch.randn(50, 6, dtype=torch.float64)
    x = torch.cat((half, torch.randn(50, 1, dtype=torch.float64), half.flip(1)), 1)
    d = sparsemap_chain(x, torch.cat((half_transitions, half_transitions.flip(1)), 1))
    assert d.probs[d.mask].min() > 1e-9


@pytest.mark.parametrize("budget", [None, 0, 1, 5, 32, 40])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0, 1e30])
def test_bits_and_budget_equal_the_closed_form(budget, scale):
    x = scale * torch.randn(16, 32, dtype=torch.float64)
    d = sparsemap_bit_vectors(x, budget, "active_set")
    torch.testing.assert_close(d.mean, sparsemap_marginals(x, budget), atol=5e-5, rtol=0)
    assert d.duality_gap.max() < 1e-6
    assert (d.support_size <= 33).all()
    if budget is not None:
        assert (d.messages.sum(-1)[d.mask] <= budget).all()


@given(arrays("float64", st.tuples(st.just(3), st.integers(1, 9)), elements=values), st.data())
@settings(max_examples=150, deadline=None)
def test_bits_and_budget_with_ties(x, data):
    budget = data.draw(st.none() | st.integers(0, x.shape[1] + 1))
    d = sparsemap_bit_vectors(torch.from_numpy(x), budget, "active_set")
    torch.testing.assert_close(d.mean, sparsemap_marginals(torch.from_numpy(x), budget), atol=5e-5, rtol=0)
    torch.testing.assert_close(d.probs.sum(0), torch.ones(3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert (d.support_size <= x.shape[1] + 1).all()


@pytest.mark.parametrize("k", [1, 2, 4])
def test_an_oracle_of_the_users(k):
    x = torch.randn(10, 5, dtype=torch.float64)
    d = sparsemap_active_set(x, exactly(k))
    assert (d.messages.sum(-1)[d.mask] == k).all()
    structures = all_bit_vectors(5)
    structures = structures[structures.sum(1) == k]
    for b in range(10):
        expected, _ = projection((x @ structures.T)[b].numpy(), structures.numpy())
        np.testing.assert_allclose(d.mean[b].numpy(), expected, atol=1e-5)


def test_more_structures_than_first_slots():
    x = torch.randn(4, 120, dtype=torch.float64).clamp(-0.9, 0.9)
    d = sparsemap_active_set(x, lambda s: (s > 0).to(s.dtype), tol=1e-10)
    assert d.support_size.min() > 32
    torch.testing.assert_close(d.mean, sparsemap_marginals(x), atol=1e-5, rtol=0)


def solve(mapping, x, transitions, tol):
    if mapping.startswith("chain"):
        return sparsemap_chain(x, transitions, "threshold" if mapping == "chain" else "active_set", tol=tol)
    return sparsemap_bit_vectors(x, 2 if mapping == "budget" else None, "active_set", tol=tol)


@pytest.mark.parametrize("mapping", ["bits", "budget", "chain", "chain, active set"])
def test_gradients(mapping):
    """Also of the expected value of a number per structure, which depends on the decomposition."""
    numbers, place_values = torch.randn(32, dtype=torch.float64), 2 ** torch.arange(5)
    for _ in range(5):
        x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
        transitions = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

        def expectations(x, transitions):
            d = solve(mapping, x, transitions, 1e-14)
            of_structures = numbers[(d.messages.detach().long() * place_values).sum(-1)]
            return d.mean, (d.probs * of_structures).sum(0)

        inputs = (x, transitions) if mapping.startswith("chain") else (x,)
        assert torch.autograd.gradcheck(lambda x, t=None, f=expectations: f(x, t), inputs)


@pytest.mark.parametrize("mapping", ["bits", "budget", "chain", "chain, active set"])
def test_rounding_does_not_choose_the_support(mapping):
    """At the solution for some structures whole sets of others tie; rounding must not decide which of them enters."""
    x, transitions = torch.randn(64, 8, dtype=torch.float64), torch.randn(64, 7, dtype=torch.float64)
    d = solve(mapping, x, transitions, 1e-9)
    for _ in range(5):
        nudged = solve(mapping, x + 1e-15 * torch.randn_like(x), transitions, 1e-9)
        assert torch.equal(d.messages[d.mask], nudged.messages[nudged.mask])


def test_an_oracle_may_change_its_scores():
    x = torch.randn(4, 8, dtype=torch.float64)
    d = sparsemap_active_set(x, lambda s: s.sign_().clamp_(min=0))
    torch.testing.assert_close(d.mean, sparsemap_marginals(x), atol=1e-6, rtol=0)


def test_more_structures_than_slots_at_first():
    x = 2 * torch.rand(3, 300, dtype=torch.float64) - 1
    for budget in (None, 30):
        d = sparsemap_bit_vectors(x, budget, "active_set")
        assert d.support_size.max() > 64
        torch.testing.assert_close(d.mean, sparsemap_marginals(x, budget), atol=1e-6, rtol=0)
        assert d.duality_gap.max() < 1e-9


def test_gradient_of_the_marginals_equals_the_closed_form():
    x = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(6, 8, dtype=torch.float64)
    for budget in (None, 2):
        means = sparsemap_bit_vectors(x, budget, "active_set", tol=1e-14).mean, sparsemap_marginals(x, budget)
        grads = [torch.autograd.grad((mean * weights).sum(), x)[0] for mean in means]
        torch.testing.assert_close(*grads, atol=1e-6, rtol=0)


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("budget", [None, 0, 2, 4])
def test_gradients_at_breakpoints_are_finite(value, budget):
    x = torch.full((2, 4), value, requires_grad=True)
    d = sparsemap_bit_vectors(x, budget, "active_set")
    (d.entropy().sum() + d.mean.pow(2).sum()).backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("n_bits", range(1, 9))
@pytest.mark.parametrize("numpy_on_cpu", [True, False])
def test_viterbi_equals_brute_force(n_bits, numpy_on_cpu, monkeypatch):
    monkeypatch.setattr(small_arrays, "NUMPY_ON_CPU", numpy_on_cpu)
    x, transitions = (torch.randn(50, n, dtype=torch.float64) for n in (n_bits, n_bits - 1))
    sequences = all_bit_vectors(n_bits)
    best = chain_scores(x, transitions, sequences).argmax(1)
    assert torch.equal(viterbi(x, transitions), sequences[best])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types_strides_and_empty_batches(dtype):
    x = torch.randn(6, 4).to(dtype)
    for solve in (
        lambda x: sparsemap_bit_vectors(x, None, "active_set"),
        lambda x: sparsemap_bit_vectors(x, 2, "active_set"),
        lambda x: sparsemap_chain(x, torch.zeros(x.shape[1] - 1, dtype=dtype)),
        lambda x: sparsemap_chain(x, torch.zeros(x.shape[1] - 1, dtype=dtype), "active_set"),
    ):
        d = solve(x.t())
        assert d.messages.dtype == dtype
        assert d.probs.dtype == torch.promote_types(dtype, torch.float32)
        assert torch.equal(d.messages, solve(x.t().contiguous()).messages)
        assert solve(torch.zeros(0, 4, dtype=dtype)).mode.shape == (0, 4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert solve(x).messages.dtype == torch.promote_types(dtype, torch.float32)


@DECOMPOSITIONS
def test_examples_do_not_mix(decomposition):
    x, transitions = torch.randn(8, 10, dtype=torch.float64), torch.randn(8, 9, dtype=torch.float64)
    order = torch.randperm(8)
    d, permuted = (
        sparsemap_chain(*chain, decomposition) for chain in ((x, transitions), (x[order], transitions[order]))
    )
    torch.testing.assert_close(d.mean[order], permuted.mean)
    torch.testing.assert_close(d.entropy()[order], permuted.entropy())


def test_warns_where_it_stops_early():
    with pytest.warns(RuntimeWarning, match=r"max_iter=3.*gap"):
        d = sparsemap_bit_vectors(torch.randn(4, 20), None, "active_set", max_iter=3)
    assert d.duality_gap.max() > 1e-9
    torch.testing.assert_close(d.probs.sum(0), torch.ones(4))


@pytest.mark.parametrize(
    ("scores", "transitions", "options", "error"),
    [
        (torch.zeros(2, 3), torch.zeros(3), {}, r"transitions.*\(3,\)"),
        (torch.zeros(2, 3), torch.zeros(2).long(), {}, "transitions.*int64"),
        (torch.zeros(2, 3), [0.0, 0.0], {}, "transitions.*list"),
        (torch.zeros(2, 3), torch.tensor([0.0, torch.nan]), {}, "transitions.*1 of 2"),
        (torch.zeros(2, 3) / 0, torch.zeros(2), {}, "scores.*6 of 6"),
        (torch.zeros(2, 3), torch.zeros(2), {"max_iter": 0}, "max_iter.* 0"),
        (torch.zeros(2, 3), torch.zeros(2), {"max_iter": 1.5}, "max_iter.*float"),
        (torch.zeros(2, 3), torch.zeros(2), {"tol": -1}, "tol .*-1"),
        (torch.zeros(2, 3), torch.zeros(2), {"solver": "magic"}, "solver.*'magic'"),
        (torch.zeros(2, 3), torch.zeros(2), {"decomposition": "magic"}, "decomposition.*'magic'"),
    ],
)
def test_refuses(scores, transitions, options, error):
    with pytest.raises((TypeError, ValueError), match=error):
        sparsemap_chain(scores, transitions, **options)


class OddlyScored:
    """An oracle of all bit-vectors whose extra scores have a wrong shape."""

    def __call__(self, scores):
        return (scores > 0).to(scores.dtype)

    def extra_scores(self, structures):
        return structures.sum()


@pytest.mark.parametrize(
    ("oracle", "error"),
    [
        (lambda s: s[:, :2], r"oracle.*\(2, 3\).*\(2, 2\)"),
        (lambda s: None, "oracle.*NoneType"),
        (lambda s: s + 0.5, "oracle.*1\\.5"),
        (OddlyScored(), r"extra_scores.*\(1, 2\)"),
    ],
)
def test_refuses_oracles(oracle, error):
    with pytest.raises(ValueError, match=error):
        sparsemap_active_set(torch.ones(2, 3), oracle)


class FailsLater:
    """An oracle of all bit-vectors that returns wrong structures or extra scores for one example from a call on."""

    def __init__(self, call, spoil, spoil_extra=None):
        self.call, self.calls, self.spoil = call, 0, spoil
        if spoil_extra is not None:
            self.extra_scores = lambda structures: self.spoilt(
                structures.new_zeros(structures.shape[:2]), spoil_extra, 0
            )

    def spoilt(self, found, spoil, ahead):
        if self.calls + ahead > self.call:
            found = found.clone()
            found[..., -1] = spoil(found[..., -1])
        return found

    def __call__(self, scores):
        found = self.spoilt((scores > 0).to(scores.dtype).T, self.spoil, 1).T
        self.calls += 1
        return found


def unchanged(found):
    return found


@pytest.mark.parametrize("numpy_on_cpu", [True, False])
@pytest.mark.parametrize("call", [0, 1, 2, 5])
@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda found: found * torch.nan, r"oracle.*\bnan\b"),
        (lambda found: found + torch.inf, r"oracle.*\binf\b"),
        (lambda found: 2 * found + 2, r"oracle.*\b[24]\b"),
        (lambda found: -found - 1e-300, r"oracle.*-(1|1e-300)\b"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_refuses_structures_at_any_call(call, spoil, error, numpy_on_cpu, monkeypatch):
    monkeypatch.setattr(small_arrays, "NUMPY_ON_CPU", numpy_on_cpu)
    oracle = FailsLater(call, spoil)
    with pytest.raises(ValueError, match=error):
        sparsemap_active_set(torch.randn(5, 10, dtype=torch.float64).clamp(-0.9, 0.9), oracle)
    assert oracle.calls == call + 1


@pytest.mark.parametrize("numpy_on_cpu", [True, False])
@pytest.mark.parametrize(
    ("call", "value"),
    [*itertools.product([0, 1, 2, 5], [torch.nan, torch.inf, -torch.inf]), (1, 1.7e308), (2, -1.7e308)],
)
@pytest.mark.filterwarnings("error")
def test_refuses_extra_scores_at_any_call(call, value, numpy_on_cpu, monkeypatch):
    monkeypatch.setattr(small_arrays, "NUMPY_ON_CPU", numpy_on_cpu)
    oracle = FailsLater(call, unchanged, lambda found: found.double() + value)
    with pytest.raises(ValueError, match=rf"extra_scores.*{value:g}".replace("+", r"\+")):
        sparsemap_active_set(torch.randn(5, 10, dtype=torch.float64).clamp(-0.9, 0.9), oracle)
    assert oracle.calls <= max(call + 1, 2)


@pytest.mark.parametrize("numpy_on_cpu", [True, False])
@pytest.mark.parametrize("call", [2, 3, 5])
def test_refuses_an_oracle_that_is_not_exact(call, numpy_on_cpu, monkeypatch):
    monkeypatch.setattr(small_arrays, "NUMPY_ON_CPU", numpy_on_cpu)
    oracle = FailsLater(call, lambda found: 1 - found)  # the worst structure of one example
    with pytest.raises(ValueError, match=r"oracle must return the best structure.*scores [0-9.]+ less"):
        sparsemap_active_set(torch.randn(5, 10, dtype=torch.float64).clamp(-0.9, 0.9), oracle)
    assert oracle.calls == call + 1


def test_an_oracle_may_compute_in_single_precision():
    for scale in (0.1, 1.0, 100.0, 1e6):
        x = scale * torch.randn(16, 30, dtype=torch.float64)
        d = sparsemap_active_set(x, lambda scores: exactly(10)(scores.float()).to(scores.dtype))
        torch.testing.assert_close(d.mean, sparsemap_active_set(x, exactly(10)).mean, atol=1e-2, rtol=0)


def test_checks_of_the_oracle_do_not_wait_for_the_device(monkeypatch):
    """Each call of the oracle costs one transfer, which also tells whether to go on."""

    class Transfers(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += function is torch.ops.aten._local_scalar_dense.default
            return function(*args, **(kwargs or {}))

    monkeypatch.setattr(small_arrays, "NUMPY_ON_CPU", False)
    oracle = FailsLater(10**6, unchanged, unchanged)
    with Transfers() as transfers:
        sparsemap_active_set(torch.randn(8, 20, dtype=torch.float64), oracle)
    assert oracle.calls > 10
    assert transfers.count <= oracle.calls + 4


def test_an_oracle_that_depends_on_the_example():
    sizes = torch.arange(1, 9)

    def sized(scores):
        ranks = scores.argsort(dim=1, descending=True).argsort(dim=1)
        return (ranks < sizes[:, None]).to(scores.dtype)

    x = torch.randn(8, 12, dtype=torch.float64)
    d = sparsemap_active_set(x, sized)
    for b in range(8):
        alone = sparsemap_active_set(x[b : b + 1], exactly(b + 1))
        torch.testing.assert_close(d.mean[b], alone.mean[0], atol=1e-6, rtol=0)
