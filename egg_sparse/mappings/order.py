"""The order of the values in each row of a small matrix."""

from __future__ import annotations

import numpy as np
import torch

from egg_sparse.mappings.arrays import A, as_array, as_tensor, gather, namespace

_POSITION_BITS = 32
_FEW_OF = 512  # row length from which NumPy selects the n smallest before it sorts them


def descending(values: torch.Tensor, n: int | None = None) -> torch.Tensor:
    """Positions of the n largest values of each row, in descending order of the values, ties by position.

    On the CPU NumPy sorts: its vectorized sort is faster than ``torch.sort``.

    Args:
        values: ``(B, V)``, non-negative.
        n: the number of positions; None for all.

    Returns:
        ``(B, n)`` long.

    Example:
        >>> descending(torch.tensor([[0.5, 0.0, 0.5, 0.25]]))
        tensor([[0, 2, 3, 1]])
    """
    return as_tensor(order(as_array(values), n, -1))


def order(values: A, n: int | None = None, sign: int = 1) -> A:
    """:func:`descending` for sign -1; for sign 1 the n smallest values in ascending order."""
    n_values = values.shape[1]
    n = n_values if n is None else n
    if not isinstance(values, np.ndarray):
        if values.dtype == torch.float32 and 2 * n <= n_values:
            return _keys(values, sign).topk(n, dim=1, largest=False).values.bitwise_and(2**_POSITION_BITS - 1)
        return values.sort(dim=1, stable=True, descending=sign < 0).indices[:, :n]
    select = n_values >= _FEW_OF and 0 < 4 * n < n_values
    if values.dtype == np.float32:
        keys = _keys(values, sign)
        if select:
            keys.partition(n, axis=1)
            keys = keys[:, :n]
        keys.sort(axis=1)
        return keys[:, :n] & (2**_POSITION_BITS - 1)
    values = sign * values
    if select:
        positions = _smallest(values, n)
        return gather(positions, np.argsort(gather(values, positions), axis=1, kind="stable"))
    return np.argsort(values, axis=1, kind="stable")[:, :n]


def _keys(values: A, sign: int) -> A:
    """Integers in the order of float32 values, no two of a row equal: the bits of a value, then its position.

    The bits of non-negative floats, read as integers, have the order of the floats.
    """
    positions = namespace(values).arange(values.shape[1], values)
    if isinstance(values, np.ndarray):
        keys = abs(values).view(np.int32).astype(np.int64)
        keys *= sign * 2**_POSITION_BITS
        keys += positions
        return keys
    return torch.add(positions, values.abs().view(torch.int32), alpha=sign * 2**_POSITION_BITS)


def _smallest(values: np.ndarray, n: int) -> np.ndarray:
    """Positions (B, n), ascending, of the n smallest values of each row, the first ones among ties."""
    last = np.partition(values, n - 1, axis=1)[:, n - 1, None]
    smaller, equal = values < last, values == last
    equal &= equal.cumsum(1) <= n - smaller.sum(1)[:, None]
    return np.nonzero(smaller | equal)[1].reshape(len(values), n)
