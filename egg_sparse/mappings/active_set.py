r"""SparseMAP over any set of structures whose best member can be found, by the active-set method, batched.

A structure is a bit-vector z of a set Z; its score is <x, z>, plus extra(z) if parts of the score are no bits. With one
on- and one off-indicator per bit, SparseMAP is

    max_{p in the simplex over Z}  sum_z p_z (<x, z> + extra(z)) - 1/2 ||mu||^2 - 1/2 ||1 - mu||^2,   mu = sum_z p_z z.

All that is needed of Z is an oracle: the structure with the highest score, for any x. At mu, the structure that
improves most is the best one for the scores x - 2 mu + 1, and by how much its score there exceeds the mean score is the
duality gap: mu is optimal if and only if it is 0, and ||mu - mu*||^2 is never above it.

Every example has its own active structures, and K, the inverse of [[0, 1'], [1, G]] with G their Gram matrix, which
changes by one outer product when a structure enters or leaves. K starts with row and column 0 of the constraint that
probabilities sum to 1; those of unused slots are 0, so that examples with fewer structures need no masks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from egg_sparse.distribution import SparseDistribution
from egg_sparse.mappings.scores import check_scores, result_type, synchronise, working_copy

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
            exact: what it never returns is taken for not better. It may also have two methods:
            ``extra_scores(structures)``, the part of their scores that no bit holds, for structures ``(K, B, D)`` as
            ``(K, B)``, differentiable in whatever it depends on; and ``for_examples(rows)``, the same oracle for some
            of the examples, a ``(N,)`` tensor of their indices. Without the latter it is always asked for all of
            them, also when most are solved.
        max_iter: at most so many structures enter or leave; then a warning tells how large the gap still is.
        tol: the duality gap at which to stop; no marginal is further than :math:`\sqrt{\mathrm{tol}}` from the
            solution.

    Returns:
        SparseDistribution with messages ``(K, B, D)``, most probable first. Its ``duality_gap`` ``(B,)`` certifies
        the solution. Probabilities are differentiable with the support kept as it is, as everywhere but at
        breakpoints it stays.

    Raises:
        TypeError, ValueError: scores of another type or shape, NaN or infinite; max_iter below 1; tol negative;
            structures or extra scores from the oracle of another shape, or structures other than zeros and ones.

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
    synchronise(finite)
    if x.device.type != "mps":
        x = x.double()
    with torch.autocast(scores.device.type, enabled=False):
        solution = _Solver(x.detach(), oracle).solve(max_iter, tol)
        values = (solution.structures * x).sum(-1)
        if hasattr(oracle, "extra_scores"):
            values = values + oracle.extra_scores(solution.structures)
        probs = _OfFixedSupport.apply(values, solution.probs, solution.sensitivities)
    dtype = result_type(scores)
    distribution = SparseDistribution(solution.structures.to(dtype), probs.to(dtype), validate_args=False)
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


class _OfFixedSupport(torch.autograd.Function):
    """Probabilities ``(K, B)`` that were solved for, with the gradient of those of a support that stays."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, probs: torch.Tensor, sensitivities: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(sensitivities)
        return probs.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_probs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (sensitivities,) = ctx.saved_tensors
        return torch.einsum("bij,jb->ib", sensitivities, grad_probs), None, None


class _Solution(NamedTuple):
    """Of the whole batch with K first, of N of its examples with N first."""

    examples: torch.Tensor  # (N,)
    structures: torch.Tensor  # (K, B, D) or (N, K, D)
    probs: torch.Tensor  # (K, B) or (N, K)
    sensitivities: torch.Tensor  # (N, K, K), symmetric: how a probability changes with a structure's score
    gap: torch.Tensor  # (N,)


class _Solver:
    """The active sets of a batch: vectors v = sqrt(2) (z - 1/2), whose Gram matrix is that of the indicators.

    (Up to a constant, which the constraint on the sum of the probabilities takes away.)
    """

    def __init__(self, x: torch.Tensor, oracle: Oracle) -> None:
        self.x, self._oracle = x, oracle
        self._all, self._all_oracle = x, oracle  # also of the examples that are solved
        self.examples = torch.arange(len(x), device=x.device)  # those that are not solved
        self._solved: list[_Solution] = []
        self.norm = x.shape[1] / 2  # of every vector, squared
        self.used = 1
        self.stalled = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self._allocate(32)
        vectors, extra = self._best(x)
        if not bool((vectors.abs() == math.sqrt(2) / 2).all()):
            raise ValueError("oracle must return structures of zeros and ones")
        self.vectors[:, 0], self.extra[:, 0], self.probs[:, 0] = vectors, extra, 1
        self.inverse[:, 0, 0] = -self.norm
        self.inverse[:, 0, 1] = self.inverse[:, 1, 0] = 1

    def _allocate(self, slots: int) -> None:
        batch, n_bits = self.x.shape
        self.vectors = self.x.new_zeros(batch, slots, n_bits)
        self.extra = self.x.new_zeros(batch, slots)
        self.probs = self.x.new_zeros(batch, slots)
        self.inverse = self.x.new_zeros(batch, slots + 1, slots + 1)
        self.products = self.x.new_ones(batch, slots + 1)  # with the entering vector; 1 for the constraint

    def _best(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors of the oracle's structures, and the part of their scores that no bit holds."""
        asked = scores
        whole_batch = len(self.examples) < len(self._all) and self._oracle is self._all_oracle
        if whole_batch:
            asked = self._all.clone()
            asked[self.examples] = scores
        structures = self._oracle(asked)
        if not isinstance(structures, torch.Tensor) or structures.shape != asked.shape:
            got = tuple(structures.shape) if isinstance(structures, torch.Tensor) else type(structures).__name__
            raise ValueError(f"oracle must return structures of the scores' shape {tuple(asked.shape)}, got {got}")
        structures = structures.to(scores.dtype)
        extra = scores.new_zeros(len(asked))
        if hasattr(self._oracle, "extra_scores"):
            of_structures = self._oracle.extra_scores(structures[None])
            if of_structures.shape != (1, len(asked)):
                raise ValueError(
                    f"extra_scores must return (K, B) = {(1, len(asked))} for structures of shape "
                    f"{(1, *asked.shape)}, got {tuple(of_structures.shape)}"
                )
            extra = of_structures[0].detach()
        if whole_batch:
            structures, extra = structures[self.examples], extra[self.examples]
        return (structures - 0.5) * math.sqrt(2), extra

    @torch.no_grad()
    def solve(self, max_iter: int, tol: float) -> _Solution:
        rounding = self.x.abs().sum(1) + self.extra[:, 0].abs()
        tolerance = tol + 16 * torch.finfo(self.x.dtype).eps * rounding
        largest_gap = 0.0
        unsettled = None  # examples whose probabilities are not optimal for their active set; None if there are none
        for iteration in range(max_iter + 1):
            n = self.used
            center = torch.bmm(self.probs[:, None, :n], self.vectors[:, :n])[:, 0]
            gradient = torch.sub(self.x, center, alpha=math.sqrt(2))
            vector, extra = self._best(gradient)
            gap = ((vector - center) * gradient).sum(1) * math.sqrt(0.5)
            gap += extra - (self.probs[:, :n] * self.extra[:, :n]).sum(1)
            enters = (gap > tolerance) & ~self.stalled
            moves = enters
            if unsettled is not None:
                enters = enters & ~unsettled
                moves = enters | unsettled
            n_moves = int(moves.sum())
            if n_moves <= len(moves) // 2 or iteration == max_iter:
                stays = moves & (iteration < max_iter)
                solved = (~stays).nonzero()[:, 0]
                if len(solved):
                    largest_gap = max(largest_gap, float((gap - tolerance)[solved].max()) + tol)
                    self._solved.append(self._solution(solved, gap[solved]))
                if iteration == max_iter or not n_moves:
                    break
                kept = stays.nonzero()[:, 0]
                self._keep(kept)
                vector, extra, gap, tolerance, enters, moves = (
                    of_example[kept] for of_example in (vector, extra, gap, tolerance, enters, moves)
                )
                unsettled = None if unsettled is None else unsettled[kept]
            unsettled = self._step(vector, extra, gap, enters, moves, unsettled)
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
        vector: torch.Tensor,
        extra: torch.Tensor,
        gap: torch.Tensor,
        enters: torch.Tensor,
        moves: torch.Tensor,
        unsettled: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """Moves probabilities towards what is optimal, until one reaches 0; returns where that was before the end."""
        self._make_room()
        n = self.used
        probs, inverse, products = self.probs[:, :n], self.inverse[:, : n + 1, : n + 1], self.products[:, : n + 1]
        products[:, 1:] = torch.bmm(self.vectors[:, :n], vector[:, :, None])[..., 0]
        weights = torch.bmm(inverse, products[:, :, None])[..., 0]  # of the projection on the active set's affine hull
        distance = self.norm - (products * weights).sum(1)  # squared, of the new vector from that hull
        smallest = self.norm * 1e-8
        direction, full_step = -weights[:, 1:], gap / distance.clamp(min=0)
        if unsettled is not None:
            values = torch.bmm(self.vectors[:, :n], self.x[:, :, None])[..., 0] * math.sqrt(0.5) + self.extra[:, :n]
            right = torch.cat((torch.ones_like(values[:, :1]), values), 1)
            optimum = torch.bmm(inverse, right[:, :, None])[:, 1:, 0]
            direction = torch.where(unsettled[:, None], optimum - probs, direction)
            full_step = full_step.masked_fill(unsettled, 1)
        limit, leaving = torch.where(direction < -1e-12, probs / -direction, math.inf).min(1)
        blocked = moves & (limit < full_step)
        after = weights.gather(1, leaving[:, None] + 1).square() / self._diagonal().gather(1, leaving[:, None])
        dependent = enters & (torch.where(blocked, distance + after[:, 0], distance) < smallest)
        # its gain is a rounding error: nothing more can be had for this example
        self.stalled |= dependent
        enters, moves, blocked = enters & ~dependent, moves & ~dependent, blocked & ~dependent
        step = torch.minimum(limit, full_step).where(moves, 0)
        probs.addcmul_(step[:, None], direction).clamp_(min=0)
        self.probs[:, n] = step if unsettled is None else step * enters

        rows = blocked.nonzero()[:, 0]
        if len(rows):
            weights[rows], distance[rows] = self._remove(rows, leaving[rows], products[rows])
        scale = (enters / distance.clamp(min=smallest)).sqrt()[:, None]
        change = torch.cat((weights * scale, -scale), 1)
        self.inverse[:, : n + 2, : n + 2].addcmul_(change[:, :, None], change[:, None])
        self.vectors[:, n] = vector
        self.extra[:, n] = extra
        self.used += 1
        return blocked if len(rows) else None

    def _remove(
        self, rows: torch.Tensor, slots: torch.Tensor, products: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes one structure out of each of some examples; returns the new vector's projection on what remains."""
        n = self.used
        inverse = self.inverse[rows, : n + 1, : n + 1]
        some = torch.arange(len(rows), device=rows.device)
        column = inverse[some, slots + 1]
        inverse.addcmul_(column[:, :, None], (column / column[some, slots + 1][:, None])[:, None], value=-1)
        inverse[some, slots + 1] = 0
        inverse[some, :, slots + 1] = 0
        self.inverse[rows, : n + 1, : n + 1] = inverse
        self.probs[rows, slots] = 0
        weights = torch.bmm(inverse, products[:, :, None])[..., 0]
        return weights, self.norm - (products * weights).sum(1)

    def _make_room(self) -> None:
        """Ensures a free slot: packs the active structures together, and doubles the slots if they are needed."""
        slots = self.probs.shape[1]
        if self.used < slots:
            return
        active = self._diagonal() + self.inverse[:, 1:, 0].abs() > 0
        kept = int(active.sum(1).max())
        order = active.long().argsort(dim=1, descending=True, stable=True)[:, :kept]
        batch = torch.arange(len(order), device=order.device)[:, None]
        vectors, extra, probs = self.vectors[batch, order], self.extra[batch, order], self.probs[batch, order]
        self._allocate(slots if kept <= slots // 2 else 2 * slots)
        self.vectors[:, :kept], self.extra[:, :kept], self.probs[:, :kept] = vectors, extra, probs
        self.inverse[:, : kept + 1, : kept + 1] = self._inverse_of(vectors, active.gather(1, order))
        self.used = kept

    def _diagonal(self) -> torch.Tensor:
        return self.inverse[:, 1:, 1:].diagonal(dim1=1, dim2=2)

    @staticmethod
    def _inverse_of(vectors: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        """K from scratch, free of what the many small changes have rounded."""
        batch, slots, _ = vectors.shape
        system = vectors.new_zeros(batch, slots + 1, slots + 1)
        vectors = vectors * active[:, :, None]
        system[:, 1:, 1:] = vectors @ vectors.mT + torch.diag_embed((~active).to(vectors.dtype))
        system[:, 0, 1:] = system[:, 1:, 0] = active.to(vectors.dtype)
        inverse = torch.linalg.inv(system)
        inverse[:, 1:, 1:] *= active[:, :, None] & active[:, None]
        return inverse

    def _keep(self, rows: torch.Tensor) -> None:
        """Leaves out all other examples, which are solved."""
        self.x, self.examples, self.stalled = self.x[rows], self.examples[rows], self.stalled[rows]
        self.vectors, self.extra, self.probs = self.vectors[rows], self.extra[rows], self.probs[rows]
        self.inverse, self.products = self.inverse[rows], self.products[rows]
        if hasattr(self._all_oracle, "for_examples"):
            self._oracle = self._all_oracle.for_examples(self.examples)

    def _solution(self, rows: torch.Tensor, gap: torch.Tensor) -> _Solution:
        """What is found for some of the examples."""
        probs = self.probs[rows]
        probs, slots = probs.topk(int((probs > 0).sum(1).max()), dim=1)
        probs = probs / probs.sum(1, keepdim=True)
        rows = rows[:, None]
        structures = (self.vectors[rows, slots] > 0).to(self.x.dtype)
        inverse = self.inverse[rows[:, :, None], slots[:, :, None] + 1, slots[:, None] + 1]
        sensitivities = inverse * (probs > 0)[:, :, None] * (probs > 0)[:, None]
        return _Solution(self.examples[rows[:, 0]], structures, probs, sensitivities, gap)

    def _joined(self) -> _Solution:
        """What is found for all examples, in their order."""
        batch, n_bits = self._all.shape
        rows = max((found.probs.shape[1] for found in self._solved), default=1)
        structures = self._all.new_zeros(rows, batch, n_bits)
        probs, sensitivities = self._all.new_zeros(rows, batch), self._all.new_zeros(batch, rows, rows)
        gap = self._all.new_zeros(batch)
        for found in self._solved:
            k = found.probs.shape[1]
            structures[:k, found.examples] = found.structures.transpose(0, 1)
            probs[:k, found.examples] = found.probs.t()
            sensitivities[found.examples, :k, :k] = found.sensitivities
            gap[found.examples] = found.gap
        return _Solution(self.examples, structures, probs, sensitivities, gap)
