r"""The inverse of a bordered Gram matrix, kept up to date while vectors enter and leave.

For vectors z_1, ..., z_n with the Gram matrix G it is

    K = [[0, 1'], [1, G]]^{-1} = [[b_0, b'], [b, 0]] + F'F,

which exists if no z_i is an affine combination of the others. Row and column 0 belong to the constraint that
coefficients sum to 1. A vector that enters adds a row to F, which is as accurate as a Cholesky factor. A vector that
leaves takes its column f out of F, F - f f'F / f'f, and changes b, which at first is 1 for the first vector alone.
Vectors are in slots; rows and columns of unused slots are 0, so that examples with fewer vectors need no masks.
"""

from __future__ import annotations

from typing import Generic

from egg_sparse.mappings.arrays import A, Namespace, inverse_factor, matvec, namespace, vecdot


class BorderedInverse(Generic[A]):
    """The inverse K for each example of a batch, at first of one vector.

    Args:
        vectors: the first vector of each example, ``(B, D)``.
        slots: the number of vectors there is room for.

    Example:
        >>> import torch
        >>> first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
        >>> inverse = BorderedInverse(first, slots=2)
        >>> weights, distance = inverse.project((first * second).sum(1, keepdim=True), second.sum(1))
        >>> weights[:, 1:], distance
        (tensor([[1.]]), tensor([1.]))
        >>> inverse.append(weights, distance, torch.tensor([True]))
        >>> inverse.solve(torch.tensor([[0.0, 0.25]]))
        tensor([[0.7500, 0.2500]])
    """

    def __init__(self, vectors: A, slots: int) -> None:
        self._xp: Namespace[A] = namespace(vectors)
        self._allocate(vectors, slots)
        self._base[:, 0], self._base[:, 1] = -vecdot(vectors, vectors), 1
        self.n = 1

    def _allocate(self, like: A, slots: int) -> None:
        self._base: A = self._xp.zeros((len(like), slots + 1), like)
        self._factor: A = self._xp.zeros((len(like), slots, slots + 1), like)
        self._bordered: A = self._xp.zeros((len(like), slots + 1), like) + 1  # 1 for the constraint, then products

    @property
    def base(self) -> A:
        """The row ``(B, 1 + n)`` of b_0 and b."""
        return self._base[:, : self.n + 1]

    @property
    def factor(self) -> A:
        """The matrix F, ``(B, n, 1 + n)``."""
        return self._factor[:, : self.n, : self.n + 1]

    def used(self) -> A:
        """Where a slot holds a vector, ``(B, n)``."""
        return (self.factor[:, :, 1:] ** 2).sum(1) + abs(self.base[:, 1:]) > 0

    def solve(self, values: A) -> A:
        """The coefficients p, ``(B, n)``, that maximize <values, p> - p'Gp / 2 and sum to 1; values ``(B, n)``."""
        factor = self.factor
        product = factor[:, :, 0] + matvec(factor[:, :, 1:], values)
        return self.base[:, 1:] + matvec(factor[:, :, 1:].swapaxes(1, 2), product)

    def project(self, products: A, norms: A, rows: A | None = None) -> tuple[A, A]:
        """The projection of another vector z on the affine hull of the vectors.

        Args:
            products: the inner products of z with the vectors, ``(B, n)``.
            norms: the inner product of z with itself, ``(B,)``.
            rows: the examples ``(N,)`` that the arguments are for, N instead of B; None for all.

        Returns:
            The coefficients of the projection after the constraint's multiplier, ``(B, 1 + n)``, and the squared
            distance of z from the hull, ``(B,)``.
        """
        base, factor, bordered = self.base, self.factor, self._bordered[:, : self.n + 1]
        if rows is not None:
            base, factor, bordered = base[rows], factor[rows], bordered[rows]
        bordered[:, 1:] = products
        weights = matvec(factor.swapaxes(1, 2), matvec(factor, bordered))
        weights[:, 0] += vecdot(base, bordered)
        weights[:, 1:] += base[:, 1:]
        return weights, norms - vecdot(bordered, weights)

    def append(self, weights: A, distances: A, enters: A) -> None:
        """Puts a vector into the next slot of each example.

        Args:
            weights: the first result of :meth:`project`.
            distances: the second one, positive.
            enters: ``(B,)`` bool: where it is False the slot stays unused.
        """
        n, scale = self.n, (enters / distances) ** 0.5
        self._factor[:, n, : n + 1] = weights * scale[:, None]
        self._factor[:, n, n + 1] = -scale
        self.n += 1

    def distance_gained(self, rows: A, slots: A, weights: A) -> A:
        """By how much a projected vector's squared distance grows if the vector in a slot leaves, ``(N,)``.

        Args:
            rows: the examples, ``(N,)``.
            slots: one slot of each, ``(N,)``.
            weights: the coefficients of the projection, as :meth:`project` returns them for all examples.
        """
        column = self._factor[rows, : self.n, slots + 1]
        return weights[rows, slots + 1] ** 2 / vecdot(column, column)

    def remove(self, rows: A, slots: A) -> None:
        """Takes one vector, given its slot ``(N,)``, out of some examples, ``(N,)``."""
        base, factor = self.base[rows], self.factor[rows]
        own = self._xp.arange(len(rows), rows)
        column = factor[own, :, slots + 1]
        scaled = column / vecdot(column, column)[:, None]
        row_of_product = matvec(factor.swapaxes(1, 2), scaled)
        share = base[own, slots + 1]
        base[:, 0] -= share * (row_of_product[:, 0] + share * vecdot(scaled, scaled))
        base -= share[:, None] * row_of_product
        factor -= column[:, :, None] * row_of_product[:, None]
        base[own, slots + 1] = 0
        factor[own, :, slots + 1] = 0
        self._base[rows, : self.n + 1], self._factor[rows, : self.n, : self.n + 1] = base, factor

    def refactorize(self, vectors: A, used: A, slots: int) -> None:
        """Computes all inverses anew, without the rounding errors of the updates.

        Args:
            vectors: the vectors, ``(B, n, D)``.
            used: ``(B, n)`` bool, whether a slot holds a vector; True for the first slot.
            slots: the number of vectors there is room for from now on.
        """
        self._allocate(vectors[:, 0], slots)
        self.n = n = vectors.shape[1]
        gram = vectors @ vectors.swapaxes(1, 2)
        # relative to the first vector, after which no constraint is left
        norm, with_first = gram[:, 0, 0], gram[:, 1:, 0] - gram[:, :1, 0]
        gram = gram[:, 1:, 1:] - norm[:, None, None] - with_first[:, :, None] - with_first[:, None]
        both = used[:, 1:, None] & used[:, None, 1:]
        others = self._xp.arange(n - 1, gram)
        identity = self._xp.astype(others[:, None] == others, gram)
        gram = self._xp.where(both, gram, identity)
        inverse = self._xp.where(both, inverse_factor(gram), 0)
        self._base[:, 0], self._base[:, 1] = -norm, 1
        self._factor[:, : n - 1, 0] = -matvec(inverse, with_first)
        self._factor[:, : n - 1, 1] = -inverse.sum(2)
        self._factor[:, : n - 1, 2 : n + 1] = inverse

    def keep(self, rows: A) -> None:
        """Keeps the examples of a mask ``(B,)`` or of indices, and leaves out the others."""
        self._base, self._factor, self._bordered = self._base[rows], self._factor[rows], self._bordered[rows]
