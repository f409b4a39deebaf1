r"""SparseMAP over bit-vectors, with or without a budget, in closed form.

With one on- and one off-indicator per bit, SparseMAP of scores x is

    mu = argmax_{mu in conv(Z)}  <x, mu> - ||mu||^2 + <1, mu>,    Z = {z in {0, 1}^D : <1, z> <= budget}

(each indicator contributes half a squared norm). It separates into bits: mu = clip((x + 1 - tau) / 2, 0, 1), where
tau >= 0 is the smallest with <1, mu> <= budget; tau = 0 without one. SparseMAP fixes mu alone: any distribution over
bit-vectors with that mean is a solution. Of the decompositions two are in closed form.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from egg_sparse.distribution import SparseDistribution
from egg_sparse.mappings import lpsmap
from egg_sparse.mappings.active_set import MAX_ITER, TOL, check_stopping, sparsemap_active_set
from egg_sparse.mappings.order import ascending, descending
from egg_sparse.mappings.scores import check_scores, result_type, synchronise, synchronise_finite, working_copy

DECOMPOSITIONS = ("systematic", "threshold", "active_set")


def sparsemap_marginals(scores: torch.Tensor, budget: int | None = None) -> torch.Tensor:
    r"""The probability of every bit under SparseMAP,

    .. math:: \mu = \arg\max_{\mu \in [0, 1]^D,\ \sum_i \mu_i \le b}
        \langle x, \mu \rangle - \tfrac12 \|\mu\|^2 - \tfrac12 \|1 - \mu\|^2 .

    Args:
        scores: ``(B, D)``, floating point, finite.
        budget: at most so many bits are on; None for any number.

    Returns:
        ``(B, D)`` of the scores' type. Exact also with a budget: the breakpoints are sorted, nothing is
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
    with torch.autocast(scores.device.type, enabled=False):
        mu, _ = _marginals(x, budget)
    return mu.to(result_type(scores))


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
            'decomposition "threshold" cannot keep a budget: its largest set has all bits that have a probability; '
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


def _marginals(x: torch.Tensor, budget: int | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The marginals, and for which examples the budget is what limits them (None if for none)."""
    free = ((x + 1) / 2).clamp(0, 1)
    n_bits = x.shape[1]
    if budget is None or budget >= n_bits:
        return free, None
    limited = free.detach().sum(1) > budget
    if budget == 0:
        return free * 0, limited
    # Relative to the budget-th largest score, tau lies in [-1, 1] and only scores in [-2, 2] matter, so that nothing
    # is lost to rounding, whatever the scores' scale.
    reference = x.detach().topk(budget, dim=1).values[:, -1:]
    y = (x - reference).clamp(-2, 2)
    linear, full = _solve_budget(y.detach(), budget)
    n_linear = linear.sum(1, keepdim=True)
    tau = ((y + 1) * linear).sum(1, keepdim=True) + 2 * (full.sum(1, keepdim=True) - budget)
    tau = tau / n_linear.clamp(min=1)
    # where no bit is in between, tau is anywhere on a plateau
    mu = torch.where(n_linear > 0, ((y + 1 - tau) / 2).clamp(0, 1), full.to(x.dtype))
    return torch.where(limited[:, None], mu, free), limited


def _solve_budget(y: torch.Tensor, budget: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which bits are strictly between 0 and 1 at the solution, and which are 1; (B, D) bool."""
    # f(tau) = sum_i clip((y_i + 1 - tau) / 2, 0, 1) has slope -1/2 per bit from y_i - 1 to y_i + 1; all plus 3, so
    # that none is negative
    begins, ends = y + 2, y + 4
    breakpoints = torch.cat((begins, ends), 1)
    order = ascending(breakpoints)
    breakpoints = breakpoints.gather(1, order)
    slope = torch.where(order < y.shape[1], -0.5, 0.5).to(y.dtype).cumsum(1)
    falls = (slope[:, :-1] * breakpoints.diff(dim=1)).cumsum(1)
    values = y.shape[1] + falls  # f at all breakpoints but the first
    segment = (values > budget).sum(1, keepdim=True).clamp(max=values.shape[1] - 1)
    middle = (breakpoints.gather(1, segment) + breakpoints.gather(1, segment + 1)) / 2
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
        SparseDistribution with messages ``(K, B, D)``, most probable first. Expectations of linear functions
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
    with torch.autocast(scores.device.type, enabled=False):
        x = scores.to(torch.promote_types(scores.dtype, torch.float32))
        probs, messages = _Decomposition.apply(x, budget, decomposition == "systematic")
    dtype = result_type(scores)
    return SparseDistribution(messages.to(dtype), probs.to(dtype), validate_args=False)


def _active_set(scores: torch.Tensor, budget: int | None, max_iter: int, tol: float) -> SparseDistribution:
    n_bits = scores.shape[1]
    x, finite = working_copy(scores)
    synchronise(finite)
    # scores beyond these bounds change nothing but the sums' rounding
    bounded = x.clamp(-2, 2)
    if budget is None or budget >= n_bits:
        distribution = sparsemap_active_set(bounded, lambda s: (s > 0).to(s.dtype), max_iter, tol)
    else:

        def best(bit_scores: torch.Tensor) -> torch.Tensor:
            values, positions = bit_scores.topk(budget, dim=1)
            return torch.zeros_like(bit_scores).scatter_(1, positions, (values > 0).to(bit_scores.dtype))

        if budget > 0:
            # where the budget is what limits, all bit-vectors have as many bits on, and a common shift changes nothing
            reference = x.detach().topk(budget, dim=1).values[:, -1:]
            limited = ((x.detach() + 1) / 2).clamp(0, 1).sum(1, keepdim=True) > budget
            bounded = torch.where(limited, (x - reference + 1).clamp(-2, 4), bounded)
        distribution = sparsemap_active_set(bounded, best, max_iter, tol)
    distribution.probs = distribution.probs.to(result_type(scores))
    distribution.messages = distribution.messages.to(distribution.probs.dtype)
    return distribution


class _Decomposition(torch.autograd.Function):
    """Probabilities (K, B) and bit-vectors (K, B, D) of the terms, most probable first.

    One function for all of it, since autograd's bookkeeping for its many small steps would take longer than they do.
    Both decompositions sort D numbers, fractions of running sums or marginals, and their probabilities are the gaps
    between neighbours, so one backward pass serves both.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, budget: int | None, systematic: bool) -> tuple[torch.Tensor, torch.Tensor]:
        batch, n_bits = x.shape
        mu, limited = _marginals(x, budget)
        if systematic:
            ends, whole = _laid_end_to_end(mu, limited, budget)
        else:
            ends, whole = mu, None
        # the edges 0 and 1 of the gaps, around the sorted numbers
        edges = F.pad(ends, (1, 1))
        edges[:, -1] = 1
        order = ascending(ends)
        torch.gather(ends, 1, order, out=edges[:, 1:-1])
        gaps = edges.diff(dim=1)

        rows = 1
        if batch:
            rows = synchronise_finite(x, gaps.sign().sum(1).amax())
        terms = descending(gaps, rows)
        probs = gaps.gather(1, terms)
        starts = edges.gather(1, terms).t().unsqueeze(-1)
        # compared into numbers, of which a boolean would be a slow copy
        if whole is None:
            messages = torch.lt(starts, ends, out=x.new_empty(rows, batch, n_bits))
        else:
            passed = torch.lt(starts, F.pad(ends, (1, 0)), out=whole.new_empty(rows, batch, n_bits + 1))
            messages = (passed[:, :, 1:] - passed[:, :, :-1]).add_(whole).to(x.dtype)
        ctx.save_for_backward(mu, order, terms)
        ctx.limited, ctx.systematic = limited, systematic
        ctx.mark_non_differentiable(messages)
        ctx.set_materialize_grads(False)  # one for the messages would take longer than all the rest
        return probs.t(), messages

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_probs: torch.Tensor | None, _: None) -> tuple[torch.Tensor | None, None, None]:
        if grad_probs is None:
            return None, None, None
        mu, order, terms = ctx.saved_tensors
        of_gaps = mu.new_zeros(len(mu), mu.shape[1] + 1).scatter_(1, terms, grad_probs.t())
        grad = torch.empty_like(mu).scatter_(1, order, of_gaps[:, :-1] - of_gaps[:, 1:])
        if ctx.systematic:
            grad = grad.flip(1).cumsum(1).flip(1)
        between = torch.addcmul(mu, mu, mu, value=-1).sign_()  # 1 where 0 < mu < 1
        grad *= between
        if ctx.limited is not None:
            shared = grad.sum(1, keepdim=True) / between.sum(1, keepdim=True).clamp_(min=1)
            grad.addcmul_(between, shared * ctx.limited[:, None], value=-1)
        return grad.div_(2), None, None


def _laid_end_to_end(
    mu: torch.Tensor, limited: torch.Tensor | None, budget: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the stretch of each bit ends, as a fraction, and the whole numbers in it, int8.

    Bit i is on for u if its stretch [end_{i-1}, end_i) holds u plus an integer: floor(end_i) + [u < fraction(end_i)]
    counts the integers n with u + n < end_i, and the bit is the difference of two such counts, 0 or 1.
    """
    on = mu.floor()  # kept out of the sums, whose rounding could switch them off
    ends = (mu - on).cumsum(1, dtype=torch.float64)
    if limited is not None and budget is not None:
        # sums that are whole but for rounding would make terms of no weight, and the last one break the budget
        nearest = ends.round()
        ends = torch.where((ends - nearest).abs() <= 8 * torch.finfo(mu.dtype).eps, nearest, ends)
        total = budget - on.sum(1, keepdim=True, dtype=ends.dtype)
        ends = torch.where(limited[:, None], torch.minimum(ends, total), ends)
    whole = ends.floor()
    fractions = ends.sub_(whole).to(mu.dtype)
    return fractions, on.add_(whole).sub_(F.pad(whole, (1, -1))).to(torch.int8)
