r"""SparseMAP marginals of bit-vectors, with or without a budget, in closed form.

With one on- and one off-indicator per bit, SparseMAP of scores x is

    mu = argmax_{mu in conv(Z)}  <x, mu> - ||mu||^2 + <1, mu>,    Z = {z in {0, 1}^D : <1, z> <= budget}

(each indicator contributes half a squared norm). It separates into bits: mu = clip((x + 1 - tau) / 2, 0, 1), where
tau >= 0 is the smallest with <1, mu> <= budget; tau = 0 without a budget.
"""

from __future__ import annotations

import numpy as np
import torch

from egg_sparse.mappings.arrays import A, as_array, as_array_like, as_tensor, gather, namespace
from egg_sparse.mappings.order import order
from egg_sparse.mappings.scores import check_scores, synchronize, working_copy


def sparsemap_marginals(scores: torch.Tensor, budget: int | None = None) -> torch.Tensor:
    r"""The probability of every bit under SparseMAP,

    .. math:: \mu = \arg\max_{\mu \in [0, 1]^D,\ \sum_i \mu_i \le b}
        \langle x, \mu \rangle - \tfrac12 \|\mu\|^2 - \tfrac12 \|1 - \mu\|^2 .

    Args:
        scores: ``(B, D)``, floating point, finite.
        budget: the largest number of bits that are on; None for any number.

    Returns:
        ``(B, D)``, in at least float32, exact: with a budget, the solution is found by sorting.

    Raises:
        TypeError: scores that are not a floating-point tensor; budget that is not an integer.
        ValueError: scores of another shape, NaN or infinite; budget negative.

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
    synchronize(finite)
    mu, _ = marginals(x, budget)
    return mu


def check_budget(budget: int | None) -> None:
    """Raises TypeError or ValueError unless the budget is None or a non-negative integer."""
    if budget is not None:
        if isinstance(budget, bool) or not isinstance(budget, int):
            raise TypeError(f"budget must be None or an integer, got {type(budget).__name__}")
        if budget < 0:
            raise ValueError(f"budget must be at least 0, got {budget}")


def marginals(x: A, budget: int | None) -> tuple[A, A | None]:
    """The marginals ``(B, D)``, differentiable for a tensor x, and for which examples the budget limits them.

    Args:
        x: checked scores, ``(B, D)``.
        budget: the largest number of bits that are on; None for any number.

    Returns:
        The marginals, and a ``(B,)`` bool array, or None if the budget limits none.
    """
    free = ((x + 1) / 2).clip(0, 1)
    n_bits = x.shape[1]
    if budget is None or budget >= n_bits:
        return free, None
    limited = free.sum(1) > budget
    if budget == 0:
        return free * 0, limited
    # Relative to the budget-th largest score tau is in [-1, 1], and only scores in [-2, 2] matter: nothing is lost to
    # rounding, whatever the scores' scale.
    with np.errstate(over="ignore"):
        y = (x - nth_largest(x, budget)).clip(-2, 2)
    solution = _solve_budget(as_array(as_tensor(y)), budget)
    fractional, full = (as_array_like(as_tensor(bits), y) for bits in solution)
    xp = namespace(x)
    n_fractional = fractional.sum(1)[:, None]
    tau = ((y + 1) * fractional).sum(1)[:, None] + xp.astype(2 * (full.sum(1)[:, None] - budget), x)
    tau = tau / xp.astype(n_fractional.clip(1), x)
    # if no bit is fractional, the sum is the budget for a range of tau
    mu = xp.where(n_fractional > 0, ((y + 1 - tau) / 2).clip(0, 1), xp.astype(full, x))
    return xp.where(limited[:, None], mu, free), limited


def nth_largest(x: A, n: int) -> A:
    """The n-th largest of each row, ``(B, 1)``, without a gradient."""
    if isinstance(x, np.ndarray):
        return np.partition(x, x.shape[1] - n, axis=1)[:, x.shape[1] - n, None]
    return x.detach().topk(n, dim=1).values[:, -1:]


def _solve_budget(y: A, budget: int) -> tuple[A, A]:
    """The bits with a marginal strictly between 0 and 1, and those with marginal 1, ``(B, D)`` bool."""
    # f(tau) = sum_i clip((y_i + 1 - tau) / 2, 0, 1) has slope -1/2 for each bit from tau = y_i - 1 to y_i + 1. Three is
    # added to all breakpoints, so that none is negative.
    xp, n_bits = namespace(y), y.shape[1]
    begins, ends = y + 2, y + 4
    breakpoints = xp.concat((begins, ends), 1)
    positions = order(breakpoints)
    breakpoints = gather(breakpoints, positions)
    slope = (xp.astype(positions >= n_bits, y) - 0.5).cumsum(1)
    falls = (slope[:, :-1] * (breakpoints[:, 1:] - breakpoints[:, :-1])).cumsum(1)
    # f is n_bits + falls at all breakpoints but the first
    segment = (falls > budget - n_bits).sum(1)[:, None].clip(0, 2 * n_bits - 2)
    middle = (gather(breakpoints, segment) + gather(breakpoints, segment + 1)) / 2
    return (begins < middle) & (ends > middle), begins >= middle
