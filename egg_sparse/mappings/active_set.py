r"""SparseMAP over any set of structures whose best member can be found, by the active-set method, batched.

A structure is a bit-vector z of a set Z; its score is <x, z>, plus extra(z) if parts of the score are no bits. With one
on- and one off-indicator per bit, SparseMAP is

    max_{p in the simplex over Z}  sum_z p_z (<x, z> + extra(z)) - 1/2 ||mu||^2 - 1/2 ||1 - mu||^2,   mu = sum_z p_z z.

All that is needed of Z is an oracle: the structure with the highest score, for any x. At mu, the structure that
improves most is the best one for the scores x - 2 mu + 1, and by how much its score there exceeds the mean score is the
duality gap: mu is optimal if and only if it is 0, and ||mu - mu*||^2 is never above it.

In what follows the problem is halved: max_p sum_z p_z (<(x + 1) / 2, z> + extra(z) / 2) - 1/2 ||mu||^2, less a
constant. Every example has its own active structures, and K, the inverse of [[0, 1'], [1, G]] with G their Gram matrix,
whose row and column 0 are those of the constraint that probabilities sum to 1. It is kept as

    K = [[b_0, b'], [b, 0]] + F F'

(``base``, and ``columns`` of F). A structure that enters adds a column to F: that is as exact as a Cholesky factor, and
little to compute. One that leaves takes its row f out of F, F - F f f' / f'f, whereby b changes, which at first is 1
for the first structure alone. Rows of unused slots are 0, so that examples with fewer structures need no masks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch

from egg_sparse.distribution import SparseDistribution
from egg_sparse.mappings.arrays import Array, as_tensor, cast, module, native, numbers, wide, zeros
from egg_sparse.mappings.order import order
from egg_sparse.mappings.scores import check_scores, message_type, probability_type, synchronise_sums, working_copy

MAX_ITER = 1000
TOL = 1e-9

#: Scores ``(B, D)`` to the best structure of each example, ``(B, D)`` of zeros and ones. May have more, see
#: :func:`sparsemap_active_set`.
Oracle = Callable[[torch.Tensor], torch.Tensor]


def sparsemap_active_set(
    scores: torch.Tensor,
    oracle: Oracle,
    max_iter: int = MAX_ITER,
    tol: float = TOL,
) -> SparseDistribution:
    r"""SparseMAP over the structures that an oracle knows,

    .. math:: \max_{p \in \triangle(Z)} \sum_{z \in Z} p_z \big(\langle x, z \rangle + \mathrm{extra}(z)\big)
        - \tfrac12 \|\mu\|^2 - \tfrac12 \|1 - \mu\|^2, \qquad \mu = \sum_{z \in Z} p_z z .

    Starts from the best structure; solves for the probabilities of the active ones; drops those that reach 0, or
    adds the structure that improves most, until none improves by more than ``tol``. Computes in float64 where the
    device has it.

    Args:
        scores: ``(B, D)``, floating point, finite; one per bit of a structure.
        oracle: a function that returns for scores ``(B, D)`` the structures that maximise
            :math:`\langle \mathrm{scores}, z \rangle + \mathrm{extra}(z)`, ``(B, D)`` of zeros and ones. It must be
            exact: what it never returns is taken for not better, and a structure worse than those that it returned
            before, by more than single precision rounds, is refused. It may also have two methods:
            ``extra_scores(structures)``, the part of their scores that no bit holds, for structures ``(K, B, D)`` as
            ``(K, B)``, differentiable in whatever it depends on; and ``for_examples(rows)``, the same oracle for some
            of the examples, a ``(N,)`` tensor of their indices. Without the latter it is always asked for all of
            them, also when most are solved.
        max_iter: at most so many structures enter or leave; then a warning tells how large the gap still is.
        tol: the duality gap at which to stop; no marginal is further than :math:`\sqrt{\mathrm{tol}}` from the
            solution.

    Returns:
        SparseDistribution with messages ``(K, B, D)`` of the scores' type, most probable first. Its ``duality_gap``
        ``(B,)`` certifies the solution. Probabilities, in at least float32, are differentiable with the support kept
        as it is, as everywhere but at breakpoints it stays.

    Raises:
        TypeError, ValueError: scores of another type or shape, NaN or infinite, or with sums that overflow;
            max_iter below 1; tol negative; at any call, structures or extra scores from the oracle of another shape,
            structures other than zeros and ones, or not the best, or extra scores that are NaN or infinite.

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
    x, finite = working_copy(scores)
    x = wide(x)
    synchronise_sums(x, finite)
    # of what the oracle returns, numbers that are not finite are refused, not warned of
    with torch.autocast(scores.device.type, enabled=False), np.errstate(over="ignore", invalid="ignore"):
        solution = _Solver(x.detach(), oracle).solve(max_iter, tol)
        scores_of_terms = (solution.structures * x).sum(-1)
        if hasattr(oracle, "extra_scores"):
            scores_of_terms = scores_of_terms + _extra_scores(oracle, solution.structures)
        probs = _OfFixedSupport.apply(scores_of_terms, solution.probs, solution.slots, solution.columns)
    distribution = SparseDistribution(
        solution.structures.to(message_type(scores)), probs.to(probability_type(scores)), validate_args=False
    )
    distribution.duality_gap = solution.gap
    return distribution


def check_stopping(max_iter: int, tol: float) -> None:
    """Raises TypeError or ValueError unless they can stop a solver."""
    if isinstance(max_iter, bool) or not isinstance(max_iter, int):
        raise TypeError(f"max_iter must be an integer, got {type(max_iter).__name__}")
    if max_iter < 1:
        raise ValueError(f"max_iter must be at least 1, got {max_iter}")
    if not 0 <= tol < math.inf:
        raise ValueError(f"tol must be a finite number of at least 0, got {tol}")


def tie(scores: torch.Tensor) -> float:
    """What scores may differ by for the oracles here to take them as equal.

    At a solution for some of the structures, whole sets of others gain the same. Which of them enters must not depend
    on how a sum was rounded, or neighbouring scores, and other devices, would get another decomposition.
    """
    return 1e-12 if scores.dtype == torch.float64 else 1e-5


class _OfFixedSupport(torch.autograd.Function):
    """Probabilities ``(K, B)`` that were solved for, with the gradient of those of a support that stays."""

    @staticmethod
    def forward(
        ctx: Any, scores: torch.Tensor, probs: torch.Tensor, slots: torch.Tensor, columns: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(probs, slots, columns)
        return probs.clone()

    @staticmethod
    def backward(ctx: Any, grad_probs: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        probs, slots, columns = ctx.saved_tensors
        positive = probs.t() > 0
        of_slots = columns.new_zeros(columns.shape[0], columns.shape[2])
        of_slots = of_slots.scatter_add(1, slots, grad_probs.t() * positive)
        of_slots = _product(columns.mT, _product(columns, of_slots)) / 2
        return (of_slots.gather(1, slots) * positive).t(), None, None, None


def _extra_scores(oracle: Any, structures: torch.Tensor) -> torch.Tensor:
    """What the oracle says of structures (K, B, D): (K, B)."""
    found = oracle.extra_scores(structures)
    if not isinstance(found, torch.Tensor) or found.shape != structures.shape[:2]:
        got = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise ValueError(
            f"extra_scores must return (K, B) = {tuple(structures.shape[:2])} for structures of shape "
            f"{tuple(structures.shape)}, got {got}"
        )
    return found


class _Solution(NamedTuple):
    """Of N examples of a batch, or of all."""

    examples: Array  # (N,)
    structures: Array  # (N, K, D); in the end (K, B, D)
    probs: Array  # (N, K); in the end (K, B)
    slots: Array  # (N, K), of the structures
    columns: Array  # (N, C, S), of F, without the constraint
    gap: Array  # (N,)


class _Solver:
    """The active sets of a batch."""

    def __init__(self, x: torch.Tensor, oracle: Oracle) -> None:
        self.x = native(x)
        self.xp = module(self.x)
        self._oracle = oracle
        self._has_extra = hasattr(oracle, "extra_scores")
        self._all, self._all_oracle = self.x, oracle  # also of the examples that are solved
        self.examples = numbers(len(x), self.x)  # those that are not solved
        self._numbers = self.examples
        self._solved: list[_Solution] = []
        self._eps = x.shape[1] * torch.finfo(x.dtype).eps
        self.used = 1
        self.stalled = self.examples < 0
        self._allocate(min(max(32, x.shape[1]), 64))
        self._precision = max(1e-6, tie(x))  # of sums, relative: that of oracles that compute in float32
        structures, extra = self._best(self.x)
        if not bool(((structures == 0) | (structures == 1)).all()):
            self._refuse(structures, extra, self.examples)
        self.structures[:, 0], self.extra[:, 0], self.probs[:, 0] = structures, extra, 1
        self.base[:, 0], self.base[:, 1] = -structures.sum(1), 1

    def _allocate(self, slots: int) -> None:
        batch, n_bits = self.x.shape
        self.structures = self._zeros(batch, slots, n_bits)
        self.extra = self._zeros(batch, slots)
        self.probs = self._zeros(batch, slots)
        self.base = self._zeros(batch, slots + 1)
        self.columns = self._zeros(batch, slots, slots + 1)
        self.products = self._zeros(batch, slots + 1) + 1  # with the structure that enters; 1 for the constraint

    def _zeros(self, *shape: int) -> Array:
        return zeros(shape, self.x)

    def _dot(self, one: Array, other: Array) -> Array:
        """The product of every row of one (N, C) with that of the other."""
        return self.xp.einsum("nc,nc->n", one, other)

    def _best(self, scores: Array) -> tuple[Array, Array]:
        """The oracle's structures, and the part of their scores that no bit holds: 0.0 if there is none."""
        whole_batch = len(self.examples) < len(self._all) and self._oracle is self._all_oracle
        if whole_batch:
            asked_of_all = self._all + 0
            asked_of_all[self.examples] = scores
            scores = asked_of_all
        asked = as_tensor(scores).clone()  # which the oracle may change
        found = self._oracle(asked)
        if not isinstance(found, torch.Tensor) or found.shape != asked.shape:
            got = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise ValueError(f"oracle must return structures of the scores' shape {tuple(asked.shape)}, got {got}")
        if found.dtype != asked.dtype:
            found = found.to(asked.dtype)
        structures: Array = native(found)
        extra: Array = 0.0
        if self._has_extra:
            extra = native(_extra_scores(self._oracle, found[None])[0].detach().to(asked.dtype))
        if whole_batch:
            structures, extra = structures[self.examples], extra[self.examples] if self._has_extra else 0.0
        return structures, extra

    def _refuse(self, structures: Array, extra: Array, gap: Array) -> NoReturn:
        """Raises ValueError with what is wrong with structures of the oracle, or their extra scores."""
        found = as_tensor(structures)
        found = found[(found != 0) & (found != 1)]
        if len(found):
            raise ValueError(f"oracle must return structures of zeros and ones, got one that holds {found[0].item():g}")
        if self._has_extra:
            extras = torch.cat((as_tensor(extra), as_tensor(self.extra[:, 0])))
            extras = extras[~torch.isfinite(4 * extras)]
            if len(extras):
                raise ValueError(
                    f"extra_scores of the oracle must return numbers with finite sums, got {extras[0].item():g}"
                )
        raise ValueError(
            "oracle must return the best structure of every example, got one that scores "
            f"{-float(gap.min()):.3g} less than those that it returned before do on average"
        )

    @torch.no_grad()
    def solve(self, max_iter: int, tol: float) -> _Solution:
        rounding = abs(self.x).sum(1) + abs(self.extra[:, 0])
        tolerance = tol + 16 * float(self.xp.finfo(self.x.dtype).eps) * rounding
        largest = float(self.xp.finfo(self.x.dtype).max) / 4
        least_gap = -tolerance - self._precision * (rounding + self.x.shape[1])
        largest_gap = 0.0
        unsettled = None  # examples whose probabilities are not optimal for their active set; None if there are none
        for iteration in range(max_iter + 1):
            n = self.used
            mean = _product(self.structures[:, :n].swapaxes(1, 2), self.probs[:, :n])
            gradient = self.x - 2 * mean + 1
            structure, extra = self._best(gradient)
            gap = self._dot(structure - mean, gradient)
            if self._has_extra:
                gap += extra - self._dot(self.probs[:, :n], self.extra[:, :n])
            enters = (gap > tolerance) & ~self.stalled
            moves = enters
            if unsettled is not None:
                enters = enters & ~unsettled
                moves = enters | unsettled
            count = self.xp.count_nonzero
            n_wrong = count(structure * structure != structure) + count(~((gap >= least_gap) & (gap < largest)))
            n_moves = int(count(moves) - (len(moves) + 1) * n_wrong)  # one transfer from the device tells both
            if n_moves < 0:
                self._refuse(structure, extra, gap)
            worth_leaving_out = n_moves <= len(moves) // 2 and self.structures[:, :n].nbytes > 1_000_000
            if not n_moves or iteration == max_iter or worth_leaving_out:
                stays = moves & (iteration < max_iter)
                solved = ~stays
                if len(gap):
                    largest_gap = max(largest_gap, tol + float((gap - tolerance)[solved].max()))
                self._solved.append(self._solution(solved, gap[solved]))
                if iteration == max_iter or not n_moves:
                    break
                self._keep(stays)
                structure, gap, tolerance, least_gap, enters, moves = (
                    of_example[stays] for of_example in (structure, gap, tolerance, least_gap, enters, moves)
                )
                extra = extra[stays] if self._has_extra else 0.0
                unsettled = None if unsettled is None else unsettled[stays]
            unsettled = self._step(structure, extra, gap, enters, moves, unsettled)
        if largest_gap > tol:
            warnings.warn(
                f"the active set stopped after {iteration} of max_iter={max_iter} iterations with a duality gap of "
                f"{largest_gap:.1e}, above tol={tol:.1e}",
                RuntimeWarning,
                stacklevel=3,
            )
        return self._joined()

    def _step(
        self,
        structure: Array,
        extra: Array,
        gap: Array,
        enters: Array,
        moves: Array,
        unsettled: Array | None,
    ) -> Array | None:
        """Moves probabilities towards what is optimal, until one reaches 0; returns where that was before the end."""
        self._make_room()
        n = self.used
        probs, base, columns = self.probs[:, :n], self.base[:, : n + 1], self.columns[:, :n, : n + 1]
        products = self.products[:, : n + 1]
        products[:, 1:] = _product(self.structures[:, :n], structure)
        norm = structure.sum(1)
        weights, distance = self._projection(base, columns, products, norm)
        smallest = 2.5e-9 * structure.shape[1]
        direction, full_step = -weights[:, 1:], gap / (2 * distance).clip(self._eps)
        if unsettled is not None:
            values = (_product(self.structures[:, :n], self.x + 1) + self.extra[:, :n]) / 2
            of_columns = columns[:, :, 0] + _product(columns[:, :, 1:], values)
            optimum = base[:, 1:] + _product(columns[:, :, 1:].swapaxes(1, 2), of_columns)
            direction = self.xp.where(unsettled[:, None], optimum - probs, direction)
            full_step[unsettled] = 1
        limits = self.xp.where(direction < -1e-12, probs / (-direction).clip(1e-12), math.inf)
        leaving = limits.argmin(1)
        limit = limits[self._numbers[: len(limits)], leaving]
        blocked = moves & (limit < full_step)
        rows = self._numbers[: len(blocked)][blocked]
        after = distance
        if len(rows):
            slots = leaving[rows]
            removed = self.columns[rows, :n, slots + 1]
            after = distance + 0
            after[rows] += weights[rows, slots + 1] ** 2 / self._dot(removed, removed)
        dependent = enters & (after < smallest)
        # its gain is a rounding error: nothing more can be had for this example
        self.stalled |= dependent
        enters, moves, blocked = enters & ~dependent, moves & ~dependent, blocked & ~dependent
        step = self.xp.where(moves, self.xp.minimum(limit, full_step), 0)
        probs += step[:, None] * direction
        probs[probs < 0] = 0
        self.probs[:, n] = step if unsettled is None else step * enters

        if len(rows):
            left = blocked[rows]
            rows = rows[left]
            self._remove(rows, slots[left], removed[left])
            weights[rows], distance[rows] = self._projection(
                self.base[rows, : n + 1], self.columns[rows, :n, : n + 1], products[rows], norm[rows]
            )
        scale = self.xp.sqrt(enters / distance.clip(smallest))
        self.columns[:, n, : n + 1] = weights * scale[:, None]
        self.columns[:, n, n + 1] = -scale
        self.structures[:, n] = structure
        self.extra[:, n] = extra
        self.used += 1
        return blocked if len(rows) else None

    def _projection(self, base: Array, columns: Array, products: Array, norm: Array) -> tuple[Array, Array]:
        """K times the products of a structure: the weights of its projection on the active set's affine hull, after
        the constraint's multiplier; and its squared distance from that hull.
        """
        weights = _product(columns.swapaxes(1, 2), _product(columns, products))
        weights[:, 0] += self._dot(base, products)
        weights[:, 1:] += base[:, 1:]
        return weights, norm - self._dot(products, weights)

    def _remove(self, rows: Array, slots: Array, removed: Array) -> None:
        """Takes one structure out of each of some examples, given its row of F."""
        n = self.used
        base, columns = self.base[rows, : n + 1], self.columns[rows, :n, : n + 1]
        own = self._numbers[: len(rows)]
        scaled = removed / self._dot(removed, removed)[:, None]
        row_of_product = _product(columns.swapaxes(1, 2), scaled)
        share = base[own, slots + 1]
        base[:, 0] -= share * (row_of_product[:, 0] + share * self._dot(scaled, scaled))
        base -= share[:, None] * row_of_product
        columns -= removed[:, :, None] * row_of_product[:, None]
        base[own, slots + 1] = 0
        columns[own, :, slots + 1] = 0
        self.base[rows, : n + 1], self.columns[rows, :n, : n + 1] = base, columns
        self.probs[rows, slots] = 0

    def _make_room(self) -> None:
        """Ensures a free slot: packs the active structures together, and doubles the slots if they are needed."""
        slots = self.probs.shape[1]
        if self.used < slots:
            return
        active = (self.columns[:, :, 1:] ** 2).sum(1) + abs(self.base[:, 1:]) > 0
        kept = int(active.sum(1).max())
        slots_kept = order(cast(active, self.x), kept, -1)
        rows = self._numbers[: len(active), None]
        active, structures = active[rows, slots_kept], self.structures[rows, slots_kept]
        extra, probs = self.extra[rows, slots_kept], self.probs[rows, slots_kept]
        self._allocate(slots if kept <= slots // 2 else 2 * slots)
        self.structures[:, :kept], self.extra[:, :kept], self.probs[:, :kept] = structures, extra, probs
        self._factorise(active)
        self.used = kept

    def _factorise(self, active: Array) -> None:
        """K from scratch, of which the first slots are active, free of what the many small changes have rounded."""
        n = active.shape[1]
        structures = self.structures[:, :n]
        # relative to the structure in the first slot, which is active
        gram = structures @ structures.swapaxes(1, 2)
        norm, with_first = gram[:, 0, 0], gram[:, 1:, 0] - gram[:, :1, 0]
        gram = gram[:, 1:, 1:] - norm[:, None, None] - with_first[:, :, None] - with_first[:, None]
        both = active[:, 1:, None] & active[:, None, 1:]
        others = numbers(n - 1, gram)
        gram = self.xp.where(both, gram, cast(others[:, None] == others, gram))
        inverse = self.xp.linalg.inv(self.xp.linalg.cholesky(gram))
        inverse = self.xp.where(both, inverse, 0)
        self.base[:, 0], self.base[:, 1] = -norm, 1
        self.columns[:, : n - 1, 0] = -_product(inverse, with_first)
        self.columns[:, : n - 1, 1] = -inverse.sum(2)
        self.columns[:, : n - 1, 2 : n + 1] = inverse

    def _keep(self, rows: Array) -> None:
        """Leaves out all other examples, which are solved."""
        self.x, self.examples, self.stalled = self.x[rows], self.examples[rows], self.stalled[rows]
        self.structures, self.extra, self.probs = self.structures[rows], self.extra[rows], self.probs[rows]
        self.base, self.columns, self.products = self.base[rows], self.columns[rows], self.products[rows]
        if hasattr(self._all_oracle, "for_examples"):
            self._oracle = self._all_oracle.for_examples(as_tensor(self.examples))

    def _solution(self, solved: Array, gap: Array) -> _Solution:
        """What is found for some of the examples."""
        n = self.used
        probs = self.probs[solved, :n]
        n_terms = int((probs > 0).sum(1).max()) if len(probs) else 1
        slots = order(probs, n_terms, -1)
        rows = self._numbers[: len(solved)][solved][:, None]
        probs = self.probs[rows, slots]
        slots = self.xp.where(probs > 0, slots, slots[:, :1])  # padded rows repeat the first
        columns = self.columns[:, :n, 1 : n + 1]
        return _Solution(
            self.examples[solved],
            self.structures[rows, slots],
            probs / probs.sum(1)[:, None],
            slots,
            columns if bool(solved.all()) else columns[solved],
            gap,
        )

    def _joined(self) -> _Solution:
        """What is found for all examples, in their order, as tensors."""
        solution = self._solved[0]
        if len(self._solved) > 1:
            batch, n_bits = self._all.shape
            n_terms = max(found.probs.shape[1] for found in self._solved)
            n = max(found.columns.shape[1] for found in self._solved)
            solution = _Solution(
                self._numbers,
                self._zeros(batch, n_terms, n_bits),
                self._zeros(batch, n_terms),
                zeros((batch, n_terms), self._numbers),
                self._zeros(batch, n, n),
                self._zeros(batch),
            )
            for found in self._solved:
                k, n = found.probs.shape[1], found.columns.shape[1]
                solution.structures[found.examples, :k] = found.structures
                solution.structures[found.examples, k:] = found.structures[:, :1]
                solution.probs[found.examples, :k] = found.probs
                solution.slots[found.examples, :k] = found.slots
                solution.slots[found.examples, k:] = found.slots[:, :1]
                solution.columns[found.examples, :n, :n] = found.columns
                solution.gap[found.examples] = found.gap
        examples, structures, probs, slots, columns, gap = map(as_tensor, solution)
        return _Solution(examples, structures.transpose(0, 1), probs.t(), slots, columns, gap)


def _product(matrices: Array, vectors: Array) -> Array:
    """(N, R, C) times (N, C)."""
    return (matrices @ vectors[:, :, None])[:, :, 0]
