r"""SparseMAP over bit-vectors, with or without a budget, in closed form.

With one on- and one off-indicator per bit, SparseMAP of scores x is

    mu = argmax_{mu in conv(Z)}  <x, mu> - ||mu||^2 + <1, mu>,    Z = {z in {0, 1}^D : <1, z> <= budget}

(each indicator contributes half a squared norm). It separates into bits: mu = clip((x + 1 - tau) / 2, 0, 1), where
tau >= 0 is the smallest with <1, mu> <= budget; tau = 0 without one. SparseMAP fixes mu alone: any distribution over
bit-vectors with that mean is a solution. Of the decompositions two are in closed form.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from egg_sparse.distribution import SparseDistribution
from egg_sparse.mappings import lpsmap
from egg_sparse.mappings.active_set import MAX_ITER, TOL, check_stopping, sparsemap_active_set, tie
from egg_sparse.mappings.arrays import Array, as_tensor, cast, module, native, numbers, take, zeros
from egg_sparse.mappings.order import order
from egg_sparse.mappings.scores import (
    check_scores,
    message_type,
    probability_type,
    synchronise,
    synchronise_finite,
    working_copy,
)

DECOMPOSITIONS = ("systematic", "threshold", "active_set")


def sparsemap_marginals(scores: torch.Tensor, budget: int | None = None) -> torch.Tensor:
    r"""The probability of every bit under SparseMAP,

    .. math:: \mu = \arg\max_{\mu \in [0, 1]^D,\ \sum_i \mu_i \le b}
        \langle x, \mu \rangle - \tfrac12 \|\mu\|^2 - \tfrac12 \|1 - \mu\|^2 .

    Args:
        scores: ``(B, D)``, floating point, finite.
        budget: at most so many bits are on; None for any number.

    Returns:
        ``(B, D)``, in at least float32. Exact also with a budget: the breakpoints are sorted, nothing is
        iterated.

    Raises:
        TypeError, ValueError: scores of another type or shape, NaN or infinite; budget negative.

    Example:
        >>> sparsemap_marginals(torch.tensor([[3.0, 0.0, -0.5]]))
        tensor([[1.0000, 0.5000, 0.2500]])
        >>> sparsemap_marginals(torch.tensor([[0.5, 0.5, -3.0]]), budget=1)
        tensor([[0.5000, 0.5000, 0.0000]])

    Source: Niculae et al., "SparseMAP" (ICML 2018); the indicators are those of LP-SparseMAP (Niculae and
    Martins, ICML 2020).
    """
    check_scores(scores, "D bits")
    check_budget(budget)
    x, finite = working_copy(scores)
    synchronise(finite)
    mu, _ = _marginals(x, budget)
    return mu


def check_options(
    budget: int | None,
    decomposition: str,
    solver: str = "native",
    max_iter: int = MAX_ITER,
    tol: float = TOL,
) -> None:
    """Raises TypeError or ValueError unless these can be had together."""
    check_budget(budget)
    lpsmap.check_solver(solver)
    check_stopping(max_iter, tol)
    if decomposition not in DECOMPOSITIONS:
        raise ValueError(f"decomposition must be one of {', '.join(DECOMPOSITIONS)}, got {decomposition!r}")
    if budget is not None and decomposition == "threshold":
        raise ValueError(
            'decomposition "threshold" cannot keep a budget: its largest set has all bits of non-zero marginal; '
            'use "systematic" or "active_set"'
        )
    if budget is not None and decomposition == "active_set" and solver == "lpsmap":
        raise ValueError(
            'solver "lpsmap" has marginals for a budget, but no active set: use decomposition="systematic", or '
            'solver="native"'
        )


def check_budget(budget: int | None) -> None:
    """Raises TypeError or ValueError unless so many bits can be on."""
    if budget is not None:
        if isinstance(budget, bool) or not isinstance(budget, int):
            raise TypeError(f"budget must be None or an integer, got {type(budget).__name__}")
        if budget < 0:
            raise ValueError(f"budget must be at least 0, got {budget}")


def _marginals(x: Array, budget: int | None) -> tuple[Array, Array | None]:
    """The marginals, and for which examples the budget is what limits them (None if for none)."""
    free = ((x + 1) / 2).clip(0, 1)
    n_bits = x.shape[1]
    if budget is None or budget >= n_bits:
        return free, None
    limited = free.sum(1) > budget
    if budget == 0:
        return free * 0, limited
    # Relative to the budget-th largest score, tau lies in [-1, 1] and only scores in [-2, 2] matter, so that nothing
    # is lost to rounding, whatever the scores' scale.
    with np.errstate(over="ignore"):
        y = (x - _largest(x, budget)).clip(-2, 2)
    linear, full = _solve_budget(native(y), budget)
    if module(x) is torch:
        linear, full = as_tensor(linear), as_tensor(full)
    n_linear = linear.sum(1)[:, None]
    tau = ((y + 1) * linear).sum(1)[:, None] + cast(2 * (full.sum(1)[:, None] - budget), x)
    tau = tau / cast(n_linear.clip(1), x)
    # where no bit is in between, tau is anywhere on a plateau
    where = module(x).where
    mu = where(n_linear > 0, ((y + 1 - tau) / 2).clip(0, 1), cast(full, x))
    return where(limited[:, None], mu, free), limited


def _largest(x: Array, n: int) -> Array:
    """The n-th largest of every row, (B, 1), without gradient."""
    if module(x) is torch:
        return x.detach().topk(n, dim=1).values[:, -1:]
    n_bits = x.shape[1]
    return np.partition(x, n_bits - n, axis=1)[:, n_bits - n, None]


def _solve_budget(y: Array, budget: int) -> tuple[Array, Array]:
    """Which bits are strictly between 0 and 1 at the solution, and which are 1; (B, D) bool."""
    # f(tau) = sum_i clip((y_i + 1 - tau) / 2, 0, 1) has slope -1/2 per bit from y_i - 1 to y_i + 1; all plus 3, so
    # that none is negative
    xp, n_bits = module(y), y.shape[1]
    begins, ends = y + 2, y + 4
    breakpoints = xp.concatenate((begins, ends), 1)
    positions = order(breakpoints)
    breakpoints = take(breakpoints, positions)
    slope = xp.cumsum(cast(positions >= n_bits, y) - 0.5, 1)
    falls = xp.cumsum(slope[:, :-1] * (breakpoints[:, 1:] - breakpoints[:, :-1]), 1)
    # n_bits + falls is f at all breakpoints but the first
    segment = (falls > budget - n_bits).sum(1)[:, None].clip(0, 2 * n_bits - 2)
    middle = (take(breakpoints, segment) + take(breakpoints, segment + 1)) / 2
    return (begins < middle) & (ends > middle), begins >= middle


def sparsemap_bit_vectors(
    scores: torch.Tensor,
    budget: int | None = None,
    decomposition: str = "systematic",
    solver: str = "native",
    max_iter: int = MAX_ITER,
    tol: float = TOL,
) -> SparseDistribution:
    r"""A distribution over bit-vectors whose mean is :func:`sparsemap_marginals`: at most D + 1 terms.

    Args:
        scores: ``(B, D)``, floating point, finite.
        budget: every bit-vector has at most so many bits on; None for any number.
        decomposition: how the marginals become a distribution. "threshold": the nested sets
            :math:`\{i : \mu_i \ge t\}` with the gaps between marginals as probabilities; bits are on together
            as much as they can be. "systematic": the marginals are laid end to end on a line, and the message
            for u in [0, 1) has the bits whose stretch holds u plus an integer; every message has
            :math:`\lfloor \sum_i \mu_i \rfloor` or :math:`\lceil \sum_i \mu_i \rceil` bits on. "active_set": those
            that :func:`egg_sparse.mappings.sparsemap_active_set` finds, as in the paper; slower by one to two
            orders of magnitude, and its mean is within :math:`\sqrt{\mathrm{tol}}` of the marginals.
        solver: "native"; or "lpsmap", the lp-sparsemap package where it is installed: one example after the
            other, on the CPU, for comparison. With "active_set" the distribution is that of its own active set.
        max_iter: for "active_set": at most so many bit-vectors enter or leave; then a warning says so.
        tol: for "active_set": the duality gap at which to stop. Not for "lpsmap", which has its own.

    Returns:
        SparseDistribution with messages ``(K, B, D)`` of the scores' type, most probable first, and probabilities
        in at least float32. Expectations of linear functions
        are the same for all decompositions, those of others may differ.

    Raises:
        TypeError, ValueError: scores of another type or shape, NaN or infinite; budget negative, or given with
            "threshold", whose largest set may break it, or with "active_set" of "lpsmap", which has none;
            decomposition or solver unknown; max_iter below 1; tol negative.
        ImportError: solver "lpsmap" without lp-sparsemap.

    Example:
        >>> d = sparsemap_bit_vectors(torch.tensor([[0.0, 0.25, -3.0]]), decomposition="threshold")
        >>> d.messages[:, 0].tolist(), d.probs[:, 0].tolist()
        ([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [0.5, 0.375, 0.125])
        >>> d.mean
        tensor([[0.5000, 0.6250, 0.0000]])

    Source: for "systematic", Madow, "On the Theory of Systematic Sampling, II" (Annals of Mathematical
    Statistics, 1949).
    """
    check_scores(scores, "D bits")
    check_options(budget, decomposition, solver, max_iter, tol)
    dtype = message_type(scores)
    if solver == "lpsmap":
        synchronise(torch.isfinite(scores.detach()))
        if budget is not None:
            mu = lpsmap.budget_marginals(scores, budget)
        else:
            distribution = lpsmap.bits(scores, max_iter)
            if decomposition == "active_set":
                return distribution
            mu = distribution.mean
        scores = 2 * mu - 1  # whose marginals are mu
    elif decomposition == "active_set":
        return _active_set(scores, budget, max_iter, tol)
    probs, messages = _Decomposition.apply(scores.to(probability_type(scores)), budget, decomposition == "systematic")
    return SparseDistribution(messages.to(dtype), probs, validate_args=False)


def _active_set(scores: torch.Tensor, budget: int | None, max_iter: int, tol: float) -> SparseDistribution:
    n_bits = scores.shape[1]
    x, finite = working_copy(scores)
    synchronise(finite)
    # scores beyond these bounds change nothing but the sums' rounding
    bounded = x.clamp(-2, 2)
    if budget is None or budget >= n_bits:
        distribution = sparsemap_active_set(bounded, _positive, max_iter, tol)
    else:

        def best(bit_scores: torch.Tensor) -> torch.Tensor:
            positions = (bit_scores / tie(bit_scores)).round_().topk(budget, dim=1).indices
            return torch.zeros_like(bit_scores).scatter_(1, positions, _positive(bit_scores).gather(1, positions))

        if budget > 0:
            # where the budget is what limits, all bit-vectors have as many bits on, and a common shift changes nothing
            reference = x.detach().topk(budget, dim=1).values[:, -1:]
            limited = ((x.detach() + 1) / 2).clamp(0, 1).sum(1, keepdim=True) > budget
            bounded = torch.where(limited, (x - reference + 1).clamp(-2, 4), bounded)
        distribution = sparsemap_active_set(bounded, best, max_iter, tol)
    distribution.messages = distribution.messages.to(message_type(scores))
    return distribution


def _positive(scores: torch.Tensor) -> torch.Tensor:
    """1 where scores are positive by more than a tie."""
    return torch.gt(scores, tie(scores), out=torch.empty_like(scores))


class _Decomposition(torch.autograd.Function):
    """Probabilities (K, B) and bit-vectors (K, B, D) of the terms, most probable first.

    One function for all of it, since autograd's bookkeeping for its many small steps would take longer than they do.
    Both decompositions sort D numbers, fractions of running sums or marginals, and their probabilities are the gaps
    between neighbours, so one backward pass serves both.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, budget: int | None, systematic: bool) -> tuple[torch.Tensor, torch.Tensor]:
        scores = native(x)
        on_host = isinstance(scores, np.ndarray)
        if on_host:
            synchronise_finite(x)  # before NumPy warns
        batch, n_bits = x.shape
        mu, limited = _marginals(scores, budget)
        ends, whole = _laid_end_to_end(mu, limited, budget) if systematic else (mu, None)
        # the edges 0 and 1 of the gaps, around the sorted numbers
        edges = zeros((batch, n_bits + 2), mu)
        edges[:, -1] = 1
        sorted_bits = order(ends)
        edges[:, 1:-1] = take(ends, sorted_bits)
        gaps = edges[:, 1:] - edges[:, :-1]

        rows = 1
        if batch:
            largest = (gaps > 0).sum(1).max()
            rows = int(largest) if on_host else synchronise_finite(x, largest)
        terms = order(gaps, rows, -1)
        probs, starts = take(gaps, terms), take(edges, terms)
        starts = module(starts).where(probs > 0, starts, starts[:, :1])  # padded rows repeat the first
        messages = _messages(starts, ends, whole)
        ctx.save_for_backward(*map(as_tensor, (mu, sorted_bits, terms)))
        ctx.limited, ctx.systematic = limited, systematic
        ctx.mark_non_differentiable(messages)
        ctx.set_materialize_grads(False)  # one for the messages would take longer than all the rest
        return as_tensor(probs).t(), messages

    @staticmethod
    def backward(ctx: Any, grad_probs: torch.Tensor | None, _: None) -> tuple[torch.Tensor | None, None, None]:
        if grad_probs is None:
            return None, None, None
        # tensors where a graph is created: the gradient, which is linear in grad_probs, can be differentiated again
        convert = as_tensor if torch.is_grad_enabled() else native
        mu, sorted_bits, terms = map(convert, ctx.saved_tensors)
        rows = numbers(len(mu), mu)[:, None]
        of_gaps = zeros((mu.shape[0], mu.shape[1] + 1), mu)
        of_gaps[rows, terms] = convert(grad_probs.t())
        grad = zeros(mu.shape, mu)
        grad[rows, sorted_bits] = of_gaps[:, :-1] - of_gaps[:, 1:]
        if ctx.systematic:
            grad = convert(as_tensor(grad).flip(1).cumsum(1).flip(1))
        between = (mu > 0) & (mu < 1)
        grad = grad * between
        if ctx.limited is not None:
            shared = grad.sum(1) / cast(between.sum(1).clip(1), mu)
            grad = grad - between * (shared * convert(ctx.limited))[:, None]
        return as_tensor(grad / 2), None, None


def _laid_end_to_end(mu: Array, limited: Array | None, budget: int | None) -> tuple[Array, Array]:
    """Where the stretch of each bit ends, as a fraction, and the whole numbers in it.

    Bit i is on for u if its stretch [end_{i-1}, end_i) holds u plus an integer: floor(end_i) + [u < fraction(end_i)]
    counts the integers n with u + n < end_i, and the bit is the difference of two such counts, 0 or 1.
    """
    xp = module(mu)
    on = xp.floor(mu)  # kept out of the sums, whose rounding could switch them off
    ends = native(as_tensor(mu - on).cumsum(1, dtype=torch.float64))
    if limited is not None and budget is not None:
        # sums that are whole but for rounding would make terms of no weight, and the last one break the budget
        nearest = xp.round(ends)
        ends = xp.where(abs(ends - nearest) <= 8 * xp.finfo(mu.dtype).eps, nearest, ends)
        total = cast(budget - on.sum(1)[:, None], ends)
        ends = xp.where(limited[:, None], xp.minimum(ends, total), ends)
    whole = xp.floor(ends)
    fractions = cast(ends - whole, mu)
    on += whole
    on[:, 1:] -= whole[:, :-1]
    return fractions, on


def _messages(of_terms: Array, of_bits: Array, whole: Array | None) -> torch.Tensor:
    """The bit-vectors (K, B, D) for u from the starts (B, K) of the terms on: where u < end, and with whole numbers the
    difference of such counts.
    """
    batch, n_bits = of_bits.shape
    starts, ends = as_tensor(of_terms).t().unsqueeze(-1), as_tensor(of_bits)
    # compared into numbers, of which a boolean would be a slow copy
    if whole is None:
        return torch.lt(starts, ends, out=ends.new_empty(len(starts), batch, n_bits))
    counts = torch.empty(len(starts), batch, n_bits + 1, dtype=torch.int8, device=ends.device)
    torch.lt(starts, F.pad(ends, (1, 0)), out=counts)
    return (counts[:, :, 1:] - counts[:, :, :-1]).add_(as_tensor(whole).to(torch.int8)).to(ends.dtype)
