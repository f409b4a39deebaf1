r"""SparseMAP over any set of structures that has a MAP oracle, by the active-set method, batched.

A structure is a bit-vector z of a set Z; its score is <x, z> + extra(z), where extra(z) is what no single bit scores.
With one on- and one off-indicator per bit, SparseMAP is

    max_{p in the simplex over Z}  sum_z p_z (<x, z> + extra(z)) - 1/2 ||mu||^2 - 1/2 ||1 - mu||^2,   mu = sum_z p_z z.

The method needs an oracle only: the structure with the highest score, for any x. At mu, the structure that improves the
objective most is the best one for the residual scores x - 2 mu + 1. The difference between its score there and the mean
score is the duality gap: mu is optimal if and only if it is 0, and ||mu - mu*||^2 is at most the gap.

Half of the objective is, but for a constant, sum_z p_z values_z - 1/2 ||mu||^2 with values_z = <(x + 1) / 2, z> +
extra(z) / 2. On the active structures alone, without the bounds p >= 0, it has its maximum where the constraint's
multiplier and p are K [1; values], with K the inverse of [[0, 1'], [1, G]] and G the structures' Gram matrix (see
:mod:`egg_sparse.mappings.bordered_inverse`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, NoReturn

import numpy as np
import torch

from egg_sparse.distribution import SparseDistribution
from egg_sparse.mappings.arrays import A, Namespace, as_array, as_tensor, matvec, namespace, vecdot, widen
from egg_sparse.mappings.bordered_inverse import BorderedInverse
from egg_sparse.mappings.order import order
from egg_sparse.mappings.scores import check_scores, message_type, probability_type, synchronize_sums

MAX_ITER = 1000
TOL = 1e-9

# Squared distance from the affine hull of the active structures, per bit, up to which a structure is in it. Structures
# have whole numbers as inner products, so that larger distances are well above rounding errors.
_DEPENDENT = 2.5e-9
# Rate at which a probability must fall to limit a step: slower ones fall by rounding errors alone.
_FALLS = 1e-12
# Rounding error of the gap in units of the last place of the sum of all |scores|.
_GAP_ULPS = 16
# Relative rounding error of an oracle's scores that is not refused: that of sums in float32.
_ORACLE_PRECISION = 1e-6
# Slots at first: as many as bits, of which a solution needs at most one more, within these bounds.
_FIRST_SLOTS = (32, 64)
# Bytes of active structures from which it saves time to leave solved examples out of the batch.
_COMPACT_BYTES = 1_000_000

#: Scores ``(B, D)`` to the best structure of each example, ``(B, D)`` of zeros and ones. May have further methods, see
#: :func:`sparsemap_active_set`.
Oracle = Callable[[torch.Tensor], torch.Tensor]


def sparsemap_active_set(
    scores: torch.Tensor,
    oracle: Oracle,
    max_iter: int = MAX_ITER,
    tol: float = TOL,
) -> SparseDistribution:
    r"""SparseMAP over the structures of an oracle,

    .. math:: \max_{p \in \triangle(Z)} \sum_{z \in Z} p_z \big(\langle x, z \rangle + \mathrm{extra}(z)\big)
        - \tfrac12 \|\mu\|^2 - \tfrac12 \|1 - \mu\|^2, \qquad \mu = \sum_{z \in Z} p_z z .

    The solver starts from the best structure. It solves for the probabilities of the active structures, drops a
    structure whose probability reaches 0, and adds the structure that improves the objective most, until none improves
    it by more than ``tol``. It computes in float64 if the device has it.

    Args:
        scores: ``(B, D)``, floating point, finite; one per bit of a structure.
        oracle: a function from scores ``(B, D)`` to the structures that maximize
            :math:`\langle \mathrm{scores}, z \rangle + \mathrm{extra}(z)`, ``(B, D)`` of zeros and ones. It must be
            exact to single precision: a structure worse than the earlier ones is refused. It may be an object with
            two further methods. ``extra_scores(structures)`` maps structures ``(K, B, D)`` to the part of their scores
            that is not in the bits, ``(K, B)``, differentiable in whatever it depends on. ``for_examples(rows)``
            returns the oracle for some of the examples, given a ``(N,)`` tensor of their indices; without it the
            oracle is called for all examples even if most are solved.
        max_iter: the largest number of iterations, in each of which a structure enters or leaves; if it is reached, a
            warning reports the remaining gap.
        tol: the duality gap at which to stop; each marginal is then within :math:`\sqrt{\mathrm{tol}}` of the
            solution.

    Returns:
        SparseDistribution with messages ``(K, B, D)`` of the scores' dtype, most probable first, and probabilities in
        at least float32. Its ``duality_gap`` ``(B,)`` certifies the solution. The gradient of the probabilities is
        that for a fixed support: the support changes at breakpoints only.

    Raises:
        TypeError: scores that are not a floating-point tensor; max_iter that is not an integer.
        ValueError: scores of another shape, NaN or infinite, or with sums that overflow; max_iter below 1; tol
            negative; from the oracle, at any call, structures or extra scores of another shape, structures other than
            zeros and ones or not the best ones, or extra scores that are NaN or infinite.

    Example:
        Exactly two bits on:

        >>> def exactly_two(scores):
        ...     return torch.zeros_like(scores).scatter(1, scores.topk(2, dim=1).indices, 1.0)
        >>> d = sparsemap_active_set(torch.tensor([[0.3, 0.1, -0.2, -1.0]]), exactly_two)
        >>> d.messages[d.mask].sum(-1).unique().tolist(), [round(mu, 3) for mu in d.mean[0].tolist()]
        ([2.0], [0.75, 0.65, 0.5, 0.1])

    Source: Niculae et al., "SparseMAP" (ICML 2018), section 3.2; the method is that of Nocedal and Wright, Numerical
    Optimization (2nd edition), section 16.5.
    """
    check_scores(scores, "D bits")
    check_stopping(max_iter, tol)
    x = widen(scores)
    synchronize_sums(x)
    # the solver refuses what is not finite in the oracle's results; NumPy need not warn as well
    with torch.autocast(scores.device.type, enabled=False), np.errstate(over="ignore", invalid="ignore"):
        solution = _Solver(as_array(x), oracle).solve(max_iter, tol)
        structures = solution.structures.transpose(0, 1)
        structure_scores = (structures * x).sum(-1)
        if hasattr(oracle, "extra_scores"):
            structure_scores = structure_scores + _extra_scores(oracle, structures)
        probs = _FixedSupport.apply(structure_scores, solution.probs.t(), solution.slots, solution.factor)
    distribution = SparseDistribution(
        structures.to(message_type(scores)), probs.to(probability_type(scores)), validate_args=False
    )
    distribution.duality_gap = solution.gap
    return distribution


def check_stopping(max_iter: int, tol: float) -> None:
    """Raises TypeError or ValueError unless max_iter is a positive integer and tol a non-negative number."""
    if isinstance(max_iter, bool) or not isinstance(max_iter, int):
        raise TypeError(f"max_iter must be an integer, got {type(max_iter).__name__}")
    if max_iter < 1:
        raise ValueError(f"max_iter must be at least 1, got {max_iter}")
    if not 0 <= tol < math.inf:
        raise ValueError(f"tol must be a finite number of at least 0, got {tol}")


def tie_tolerance(scores: torch.Tensor) -> float:
    """The difference of scores up to which oracles count them as equal.

    At the solution for some structures, whole sets of other structures often tie. Which one enters must not depend on
    rounding: otherwise neighboring scores, and other devices, get another decomposition.
    """
    return 1e-12 if scores.dtype == torch.float64 else 1e-5


class _FixedSupport(torch.autograd.Function):
    """Given probabilities ``(K, B)`` as a function of the structures' scores, with the gradient for a fixed support.

    With F' the factor without the constraint's column, the Jacobian is F'^T F' / 2 on the active structures.
    """

    @staticmethod
    def forward(
        ctx: Any, scores: torch.Tensor, probs: torch.Tensor, slots: torch.Tensor, factor: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(probs, slots, factor)
        return probs.clone()

    @staticmethod
    def backward(ctx: Any, grad_probs: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        probs, slots, factor = ctx.saved_tensors
        positive = probs.t() > 0
        grad_slots = factor.new_zeros(factor.shape[0], factor.shape[2])
        grad_slots = grad_slots.scatter_add(1, slots, grad_probs.t() * positive)
        grad_slots = matvec(factor.mT, matvec(factor, grad_slots)) / 2
        return (grad_slots.gather(1, slots) * positive).t(), None, None, None


def _extra_scores(oracle: Any, structures: torch.Tensor) -> torch.Tensor:
    """The oracle's extra scores (K, B) of structures (K, B, D), of the right shape."""
    extra = oracle.extra_scores(structures)
    if not isinstance(extra, torch.Tensor) or extra.shape != structures.shape[:2]:
        raise ValueError(
            f"extra_scores must return (K, B) = {tuple(structures.shape[:2])} for structures of shape "
            f"{tuple(structures.shape)}, got {_shape(extra)}"
        )
    return extra


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__


class _CheckedOracle(Generic[A]):
    """A user's oracle with checks of its results, called with arrays of the examples that are not solved."""

    def __init__(self, oracle: Oracle, scores: A) -> None:
        self._oracle = self._oracle_of_all = oracle
        self._scores_of_all: A = scores
        self.has_extra = hasattr(oracle, "extra_scores")
        self._no_extra: A = namespace(scores).zeros((len(scores),), scores)

    def restrict(self, examples: A) -> None:
        """Calls the oracle for these examples alone from now on, if it can be."""
        if hasattr(self._oracle_of_all, "for_examples"):
            self._oracle = self._oracle_of_all.for_examples(as_tensor(examples))

    def __call__(self, scores: A, examples: A) -> tuple[A, A]:
        """The best structures (N, D) for scores (N, D) of N examples, and their extra scores (N,)."""
        whole_batch = len(examples) < len(self._scores_of_all) and self._oracle is self._oracle_of_all
        if whole_batch:
            scores_of_all = self._scores_of_all + 0
            scores_of_all[examples] = scores
            scores = scores_of_all
        asked = as_tensor(scores).clone()  # the oracle may change it
        found = self._oracle(asked)
        if not isinstance(found, torch.Tensor) or found.shape != asked.shape:
            raise ValueError(
                f"oracle must return structures of the scores' shape {tuple(asked.shape)}, got {_shape(found)}"
            )
        if found.dtype != asked.dtype:
            found = found.to(asked.dtype)
        structures, extra = as_array(found), self._no_extra[: len(found)]
        if self.has_extra:
            extra = as_array(_extra_scores(self._oracle, found[None])[0].to(asked.dtype))
        return (structures[examples], extra[examples]) if whole_batch else (structures, extra)

    def refuse(self, structures: A, extra: A, gap: A) -> NoReturn:
        """Raises ValueError, which names what is wrong with the oracle's structures, its extra scores, or the gap."""
        found = as_tensor(structures)
        found = found[(found != 0) & (found != 1)]
        if len(found):
            raise ValueError(f"oracle must return structures of zeros and ones, got one that holds {found[0].item():g}")
        extras = as_tensor(extra)
        extras = extras[~torch.isfinite(4 * extras)]
        if len(extras):
            raise ValueError(f"extra_scores must return numbers with finite sums, got {extras[0].item():g}")
        raise ValueError(
            "oracle must return the best structure of every example, got one that scores "
            f"{-float(gap.min()):.3g} less than the mean score of those that it returned before"
        )


@dataclass
class _Solution(Generic[A]):
    """The solutions for N examples of the batch."""

    examples: A  # (N,)
    structures: A  # (N, K, D)
    probs: A  # (N, K)
    slots: A  # (N, K), of the structures
    factor: A  # (N, n, n), of the inverse, without the constraint
    gap: A  # (N,)


class _Solver(Generic[A]):
    """The active-set method for a batch: Nocedal and Wright, algorithm 16.3.

    Examples that are solved leave the batch. In each iteration one structure enters or leaves in each of the others.
    """

    def __init__(self, x: A, oracle: Oracle) -> None:
        self._xp: Namespace[A] = namespace(x)
        self.x: A = x
        self.rows: A = self._xp.arange(len(x), x)
        self.examples: A = self.rows  # the example in each row
        self.stalled: A = self.rows < 0  # the gap of these examples is a rounding error
        self._limits = torch.finfo(as_tensor(x).dtype)
        self._least_distance: float = x.shape[1] * _DEPENDENT
        self._rounding_distance: float = x.shape[1] * self._limits.eps
        self.oracle: _CheckedOracle[A] = _CheckedOracle(oracle, x)
        self._allocate(min(max(_FIRST_SLOTS[0], x.shape[1]), _FIRST_SLOTS[1]))
        structures, extra = self.oracle(x, self.examples)
        if not bool(((structures == 0) | (structures == 1)).all()):
            self.oracle.refuse(structures, extra, self.rows)
        self.structures[:, 0], self.extra[:, 0], self.probs[:, 0] = structures, extra, 1
        self.inverse: BorderedInverse[A] = BorderedInverse(structures, self.probs.shape[1])

    def _allocate(self, slots: int) -> None:
        batch, n_bits = self.x.shape
        self.structures: A = self._xp.zeros((batch, slots, n_bits), self.x)
        self.extra: A = self._xp.zeros((batch, slots), self.x)
        self.probs: A = self._xp.zeros((batch, slots), self.x)

    @torch.no_grad()
    def solve(self, max_iter: int, tol: float) -> _Solution[torch.Tensor]:
        count, limits = self._xp.count_nonzero, self._limits
        size = abs(self.x).sum(1) + abs(self.extra[:, 0])
        tolerance = tol + _GAP_ULPS * limits.eps * size
        least_gap = -tolerance - max(_ORACLE_PRECISION, tie_tolerance(as_tensor(self.x))) * (size + self.x.shape[1])
        unsettled: A | None = None  # where probabilities are not optimal for the active set yet; None if nowhere
        largest_gap, solutions = 0.0, []
        for iteration in range(max_iter + 1):
            n = self.inverse.n
            mean = matvec(self.structures[:, :n].swapaxes(1, 2), self.probs[:, :n])
            residual = self.x - 2 * mean + 1
            structure, extra = self.oracle(residual, self.examples)
            gap = vecdot(structure - mean, residual)
            if self.oracle.has_extra:
                gap += extra - vecdot(self.probs[:, :n], self.extra[:, :n])
            enters = (gap > tolerance) & ~self.stalled
            moves = enters
            if unsettled is not None:
                enters = enters & ~unsettled
                moves = enters | unsettled
            # refused: entries other than 0 and 1, a gap below 0, numbers that are not finite
            n_wrong = count(structure * structure != structure) + count(~((gap >= least_gap) & (gap < limits.max / 4)))
            n_moves = int(count(moves) - (len(moves) + 1) * n_wrong)  # one transfer from the device tells both
            if n_moves < 0:
                self.oracle.refuse(structure, self._xp.concat((extra, self.extra[:, 0]), 0), gap)

            ends = not n_moves or iteration == max_iter
            if ends or (n_moves <= len(moves) // 2 and self.structures[:, :n].nbytes > _COMPACT_BYTES):
                stays = moves & (iteration < max_iter)
                solved = ~stays
                if len(gap):
                    largest_gap = max(largest_gap, tol + float((gap - tolerance)[solved].max()))
                solutions.append(self._solution(solved, gap[solved]))
                if ends:
                    break
                self._keep(stays)
                structure, extra, gap, enters, moves = (v[stays] for v in (structure, extra, gap, enters, moves))
                tolerance, least_gap = tolerance[stays], least_gap[stays]
                unsettled = None if unsettled is None else unsettled[stays]
            unsettled = self._step(structure, extra, gap, enters, moves, unsettled)
        if largest_gap > tol:
            warnings.warn(
                f"the active set stopped after {iteration} of max_iter={max_iter} iterations with a duality gap of "
                f"{largest_gap:.1e}, above tol={tol:.1e}",
                RuntimeWarning,
                stacklevel=3,
            )
        return self._joined(solutions)

    def _step(self, structure: A, extra: A, gap: A, enters: A, moves: A, unsettled: A | None) -> A | None:
        """Moves the probabilities towards an optimum, until one of them reaches 0.

        Where a structure enters, it does so at the expense of its projection on the active set's affine hull; where
        the example is unsettled, the optimum is that for the active set. Returns where the step was cut short.
        """
        self._make_room()
        n = self.inverse.n
        active, probs = self.structures[:, :n], self.probs[:, :n]
        products, norms = matvec(active, structure), structure.sum(1)
        weights, distance = self.inverse.project(products, norms)
        direction, full_step = -weights[:, 1:], gap / (2 * distance).clip(self._rounding_distance)
        if unsettled is not None:
            values = (matvec(active, self.x + 1) + self.extra[:, :n]) / 2
            direction = self._xp.where(unsettled[:, None], self.inverse.solve(values) - probs, direction)
            full_step[unsettled] = 1

        # the first probability to reach 0
        limits = self._xp.where(direction < -_FALLS, probs / (-direction).clip(_FALLS), math.inf)
        leaving = limits.argmin(1)
        limit = limits[self.rows, leaving]
        blocked = moves & (limit < full_step)
        rows = self.rows[blocked]
        distance_after = distance
        if len(rows):
            distance_after = distance + 0
            distance_after[rows] += self.inverse.distance_gained(rows, leaving[rows], weights)
        # a structure within the hull improves the objective by a rounding error only: the example is solved
        dependent = enters & (distance_after < self._least_distance)
        self.stalled |= dependent
        enters, moves, blocked = enters & ~dependent, moves & ~dependent, blocked & ~dependent
        step = self._xp.where(moves, self._xp.minimum(limit, full_step), 0)
        probs += step[:, None] * direction
        probs[probs < 0] = 0
        self.probs[:, n] = step if unsettled is None else step * enters

        if len(rows):
            left = rows[blocked[rows]]
            self.inverse.remove(left, leaving[left])
            self.probs[left, leaving[left]] = 0
            weights[left], distance[left] = self.inverse.project(products[left], norms[left], left)
        self.inverse.append(weights, distance.clip(self._least_distance), enters)
        self.structures[:, n], self.extra[:, n] = structure, extra
        return blocked if len(rows) else None

    def _make_room(self) -> None:
        """Ensures a free slot: packs the active structures together, and doubles the slots if they are needed."""
        slots = self.probs.shape[1]
        if self.inverse.n < slots:
            return
        used = self.inverse.used()
        kept = int(used.sum(1).max())
        rows, kept_slots = self.rows[:, None], order(self._xp.astype(used, self.x), kept, -1)
        used, structures = used[rows, kept_slots], self.structures[rows, kept_slots]
        extra, probs = self.extra[rows, kept_slots], self.probs[rows, kept_slots]
        self._allocate(slots if kept <= slots // 2 else 2 * slots)
        self.structures[:, :kept], self.extra[:, :kept], self.probs[:, :kept] = structures, extra, probs
        self.inverse.refactorize(structures, used, self.probs.shape[1])

    def _keep(self, stays: A) -> None:
        """Leaves all other examples, which are solved, out of the batch."""
        self.x, self.examples, self.stalled = self.x[stays], self.examples[stays], self.stalled[stays]
        self.structures, self.extra, self.probs = self.structures[stays], self.extra[stays], self.probs[stays]
        self.rows = self.rows[: len(self.x)]
        self.inverse.keep(stays)
        self.oracle.restrict(self.examples)

    def _solution(self, solved: A, gap: A) -> _Solution[A]:
        """The solution for some of the examples."""
        n = self.inverse.n
        probs = self.probs[solved, :n]
        n_terms = int((probs > 0).sum(1).max()) if len(probs) else 1
        slots = order(probs, n_terms, -1)
        rows = self.rows[solved][:, None]
        probs = self.probs[rows, slots]
        slots = self._xp.where(probs > 0, slots, slots[:, :1])  # padded rows repeat the first
        factor = self.inverse.factor[:, :, 1:]
        return _Solution(
            self.examples[solved],
            self.structures[rows, slots],
            probs / probs.sum(1)[:, None],
            slots,
            factor if bool(solved.all()) else factor[solved],
            gap,
        )

    def _joined(self, solutions: list[_Solution[A]]) -> _Solution[torch.Tensor]:
        """The solution for all examples, in their order, as tensors."""
        joined = solutions[0]
        if len(solutions) > 1:
            batch = sum(len(found.gap) for found in solutions)
            n_terms = max(found.probs.shape[1] for found in solutions)
            n = max(found.factor.shape[1] for found in solutions)
            joined = _Solution(
                self._xp.arange(batch, self.x),
                self._xp.zeros((batch, n_terms, self.x.shape[1]), self.x),
                self._xp.zeros((batch, n_terms), self.x),
                self._xp.zeros((batch, n_terms), self.rows),
                self._xp.zeros((batch, n, n), self.x),
                self._xp.zeros((batch,), self.x),
            )
            for found in solutions:
                rows, k, n = found.examples, found.probs.shape[1], found.factor.shape[1]
                joined.structures[rows, :k], joined.structures[rows, k:] = found.structures, found.structures[:, :1]
                joined.probs[rows, :k] = found.probs
                joined.slots[rows, :k], joined.slots[rows, k:] = found.slots, found.slots[:, :1]
                joined.factor[rows, :n, :n] = found.factor
                joined.gap[rows] = found.gap
        return _Solution(*map(as_tensor, vars(joined).values()))
