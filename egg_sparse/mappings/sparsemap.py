r"""SparseMAP over bit-vectors, with or without a budget: the choice between the closed forms and the active set."""

from __future__ import annotations

import torch

from egg_sparse.distribution import SparseDistribution
from egg_sparse.mappings import lpsmap
from egg_sparse.mappings.active_set import MAX_ITER, TOL, check_stopping, sparsemap_active_set, tie_tolerance
from egg_sparse.mappings.arrays import A, as_array, as_tensor, namespace
from egg_sparse.mappings.decompositions import decompose
from egg_sparse.mappings.marginals import check_budget, nth_largest
from egg_sparse.mappings.scores import check_scores, message_type, probability_type, synchronize, working_copy

DECOMPOSITIONS = ("systematic", "threshold", "active_set")


def check_options(
    budget: int | None,
    decomposition: str,
    solver: str = "native",
    max_iter: int = MAX_ITER,
    tol: float = TOL,
) -> None:
    """Raises TypeError or ValueError unless the options are valid and can be combined."""
    check_budget(budget)
    lpsmap.check_solver(solver)
    check_stopping(max_iter, tol)
    if decomposition not in DECOMPOSITIONS:
        raise ValueError(f"decomposition must be one of {', '.join(DECOMPOSITIONS)}, got {decomposition!r}")
    if budget is not None and decomposition == "threshold":
        raise ValueError(
            'decomposition "threshold" cannot keep a budget: its largest set has all bits with non-zero marginals; '
            'use "systematic" or "active_set"'
        )
    if budget is not None and decomposition == "active_set" and solver == "lpsmap":
        raise ValueError(
            'solver "lpsmap" has marginals for a budget, but no active set: use decomposition="systematic", or '
            'solver="native"'
        )


def sparsemap_bit_vectors(
    scores: torch.Tensor,
    budget: int | None = None,
    decomposition: str = "systematic",
    solver: str = "native",
    max_iter: int = MAX_ITER,
    tol: float = TOL,
) -> SparseDistribution:
    r"""A distribution over bit-vectors with the SparseMAP marginals as its mean, of at most D + 1 terms.

    See :func:`egg_sparse.mappings.sparsemap_marginals`.

    Args:
        scores: ``(B, D)``, floating point, finite.
        budget: the largest number of bits that are on in a bit-vector; None for any number.
        decomposition: the name of the distribution. "threshold" has the nested sets :math:`\{i : \mu_i \ge t\}`
            with the gaps between marginals as probabilities: bits are on together as much as possible. "systematic"
            lays the marginals end to end on a line, and the message for u in [0, 1) has the bits whose stretch holds
            u plus an integer: each message has :math:`\lfloor \sum_i \mu_i \rfloor` or
            :math:`\lceil \sum_i \mu_i \rceil` bits on. "active_set" is what
            :func:`egg_sparse.mappings.sparsemap_active_set` finds, as in the paper; it is much slower, and its mean
            is within :math:`\sqrt{\mathrm{tol}}` of the marginals.
        solver: "native", or "lpsmap" for the lp-sparsemap package, which solves one example after the other on the
            CPU, for comparison. With "active_set" the distribution is that of its own active set.
        max_iter: the largest number of iterations of "active_set"; if it is reached, there is a warning.
        tol: the duality gap at which "active_set" stops; "lpsmap" has a tolerance of its own.

    Returns:
        SparseDistribution with messages ``(K, B, D)`` of the scores' dtype, most probable first, and probabilities in
        at least float32. Expectations of linear functions are the same for all decompositions, others may differ.

    Raises:
        TypeError: scores that are not a floating-point tensor; budget or max_iter that is not an integer.
        ValueError: scores of another shape, NaN or infinite; budget negative, or given with "threshold", whose largest
            set may break it, or with "active_set" of "lpsmap", which does not support it; decomposition or solver
            unknown; max_iter below 1; tol negative.
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
        synchronize(torch.isfinite(scores.detach()))
        if budget is not None:
            mu = lpsmap.budget_marginals(scores, budget)
        else:
            distribution = lpsmap.bits(scores, max_iter)
            if decomposition == "active_set":
                return distribution
            mu = distribution.mean
        scores = 2 * mu - 1  # their marginals are mu
    elif decomposition == "active_set":
        return _active_set(scores, budget, max_iter, tol)
    probs, messages = decompose(scores.to(probability_type(scores)), budget, decomposition == "systematic")
    return SparseDistribution(messages.to(dtype), probs, validate_args=False)


def _active_set(scores: torch.Tensor, budget: int | None, max_iter: int, tol: float) -> SparseDistribution:
    x, finite = working_copy(scores)
    synchronize(finite)
    bounded = x.clamp(-2, 2)  # scores beyond these bounds change nothing but the sums' rounding
    if budget is None or budget >= scores.shape[1]:
        distribution = sparsemap_active_set(bounded, _positive, max_iter, tol)
    else:

        def best(bit_scores: torch.Tensor) -> torch.Tensor:
            return as_tensor(_best_positive(as_array(bit_scores), budget, tie_tolerance(bit_scores)))

        if budget > 0:
            # if the budget limits an example, all its bit-vectors have as many bits on, and a common shift of the
            # scores changes nothing
            shifted = (x - nth_largest(x, budget) + 1).clamp(-2, 4)
            limited = ((x.detach() + 1) / 2).clamp(0, 1).sum(1, keepdim=True) > budget
            bounded = torch.where(limited, shifted, bounded)
        distribution = sparsemap_active_set(bounded, best, max_iter, tol)
    distribution.messages = distribution.messages.to(message_type(scores))
    return distribution


def _best_positive(scores: A, n: int, tolerance: float) -> A:
    """1 for the n best scores of each row, the first ones among ties, if they are positive; else 0."""
    xp = namespace(scores)
    positions = xp.arange(scores.shape[1], scores)
    # numbers in the order of the scores, no two of a row equal
    keys = xp.astype((scores / tolerance).round(), positions) * len(positions) - positions
    is_best = keys >= nth_largest(keys, n) if n else keys > keys
    return xp.astype(is_best & (scores > tolerance), scores)


def _positive(scores: torch.Tensor) -> torch.Tensor:
    """1 where scores are positive by more than the tie tolerance, else 0."""
    return torch.gt(scores, tie_tolerance(scores), out=torch.empty_like(scores))
