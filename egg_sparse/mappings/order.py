"""Sorting the rows of small matrices, of which the mappings need only the order."""

from __future__ import annotations

import numpy as np
import torch

_POSITION = 2**32 - 1


def ascending(values: torch.Tensor, n: int | None = None) -> torch.Tensor:
    """Positions of the smallest values of every row, in ascending order, equal ones by position.

    On the CPU NumPy sorts, whose vector instructions take a tenth of the time of ``torch.sort``.

    Args:
        values: ``(B, V)``, non-negative.
        n: how many; None for all.

    Returns:
        ``(B, n)`` long.

    Example:
        >>> ascending(torch.tensor([[0.5, 0.0, 0.5, 0.25]]))
        tensor([[1, 3, 0, 2]])
    """
    return _order(values, n, 1)


def descending(values: torch.Tensor, n: int | None = None) -> torch.Tensor:
    """Positions of the largest values of every row, in descending order; else as :func:`ascending`."""
    return _order(values, n, -1)


def _order(values: torch.Tensor, n: int | None, sign: int) -> torch.Tensor:
    values = values.detach()
    n_values = values.shape[1]
    n = n_values if n is None else n
    on_cpu = values.device.type == "cpu" and not torch._C._functorch.is_functorch_wrapped_tensor(values)
    if values.dtype == torch.float32 and (on_cpu or 2 * n <= n_values):
        # The bits of non-negative floats are ordered as they are; with the position below them no two are equal.
        position = torch.arange(n_values, device=values.device)
        keys = torch.add(position, values.abs().view(torch.int32), alpha=sign * 2**32)
        if on_cpu:
            keys = torch.from_numpy(np.sort(keys.numpy(), axis=1))[:, :n]
        else:
            keys = keys.topk(n, dim=1, largest=False).values
        return keys.bitwise_and(_POSITION)
    if on_cpu:
        return torch.from_numpy(np.argsort(sign * values.numpy(), axis=1, kind="stable")[:, :n])
    return values.sort(dim=1, stable=True, descending=sign < 0).indices[:, :n]
