"""One text for NumPy's arrays and PyTorch's tensors.

The solvers do many operations on small arrays. On the CPU they compute in NumPy, whose operations take less time to
start than PyTorch's; elsewhere, and within transforms of ``torch.func``, they compute in PyTorch. A function for both
is generic in :data:`A`, and mypy checks it once for each library; what the libraries spell differently is in
:class:`Namespace`. A public function converts its tensors with :func:`as_array` before it calls generic functions, and
their results with :func:`as_tensor`.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import numpy as np
import torch

#: A NumPy array or a tensor, and the same one for all arguments of a function.
A = TypeVar("A", np.ndarray, torch.Tensor)

#: Whether solvers compute in NumPy on the CPU. Tests turn it off to run in PyTorch there as well.
NUMPY_ON_CPU = True


class Namespace(Protocol[A]):
    """The functions that NumPy and PyTorch spell differently, or that are no methods of both."""

    def where(self, condition: A, x: A, y: A | float, /) -> A: ...
    def minimum(self, x: A, y: A, /) -> A: ...
    def floor(self, x: A, /) -> A: ...
    def concat(self, arrays: tuple[A, ...], axis: int, /) -> A: ...
    def count_nonzero(self, x: A, /) -> Any: ...
    def einsum(self, equation: str, x: A, y: A, /) -> A: ...
    def sums(self, values: A, groups: A, /) -> A: ...
    def zeros(self, shape: tuple[int, ...], like: A, /) -> A: ...
    def arange(self, n: int, like: A, /) -> A: ...
    def astype(self, x: A, like: A, /) -> A: ...


class _NumPy:
    concat = staticmethod(np.concatenate)
    count_nonzero = staticmethod(np.count_nonzero)
    einsum = staticmethod(np.einsum)

    @staticmethod
    def where(condition: np.ndarray, x: np.ndarray, y: np.ndarray | float) -> np.ndarray:
        return np.where(condition, x, y)

    @staticmethod
    def minimum(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.minimum(x, y)

    @staticmethod
    def floor(x: np.ndarray) -> np.ndarray:
        return np.floor(x)

    @staticmethod
    def sums(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
        return np.bincount(groups, values)

    @staticmethod
    def zeros(shape: tuple[int, ...], like: np.ndarray) -> np.ndarray:
        return np.zeros(shape, like.dtype)

    @staticmethod
    def arange(n: int, like: np.ndarray) -> np.ndarray:
        return np.arange(n)

    @staticmethod
    def astype(x: np.ndarray, like: np.ndarray) -> np.ndarray:
        return x.astype(like.dtype, copy=False)


class _PyTorch:
    minimum = staticmethod(torch.minimum)
    floor = staticmethod(torch.floor)
    concat = staticmethod(torch.cat)
    count_nonzero = staticmethod(torch.count_nonzero)
    einsum = staticmethod(torch.einsum)

    @staticmethod
    def where(condition: torch.Tensor, x: torch.Tensor, y: torch.Tensor | float) -> torch.Tensor:
        return torch.where(condition, x, y)

    @staticmethod
    def sums(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(values).index_add(0, groups, values)  # as many as values, for want of a smaller bound

    @staticmethod
    def zeros(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        return like.new_zeros(shape)

    @staticmethod
    def arange(n: int, like: torch.Tensor) -> torch.Tensor:
        return torch.arange(n, device=like.device)

    @staticmethod
    def astype(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return x.to(like.dtype)


_NUMPY: Namespace[np.ndarray] = _NumPy()
_PYTORCH: Namespace[torch.Tensor] = _PyTorch()


def namespace(array: A) -> Namespace[A]:
    """The functions for arrays of this library; their shapes, dtypes and devices follow from an argument ``like``."""
    if isinstance(array, np.ndarray):
        return _NUMPY
    return _PYTORCH


def as_array(tensor: torch.Tensor) -> Any:
    """The array to compute with, without a gradient: a NumPy array on the same memory, or the tensor itself.

    Its static type is Any, so that functions generic in :data:`A`, which are checked for both types, take it.
    """
    tensor = tensor.detach()
    on_cpu = tensor.device.type == "cpu" and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return tensor.numpy() if on_cpu and NUMPY_ON_CPU else tensor


def as_tensor(array: A) -> torch.Tensor:
    """The tensor on the same memory."""
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


def as_array_like(tensor: torch.Tensor, like: A) -> A:
    """The tensor as an array of the same library as another one, on the same memory."""
    return tensor.numpy() if isinstance(like, np.ndarray) else tensor


def gather(array: A, positions: A) -> A:
    """The elements of each row of a (B, V) array at its positions (B, n)."""
    return array[namespace(array).arange(len(array), array)[:, None], positions]


def inverse_factor(matrices: A) -> A:
    """The inverses (N, n, n) of the lower Cholesky factors of matrices (N, n, n)."""
    lower = torch.linalg.cholesky(as_tensor(matrices))
    identity = torch.eye(lower.shape[1], dtype=lower.dtype, device=lower.device)
    return as_array_like(torch.linalg.solve_triangular(lower, identity, upper=False), matrices)


def matvec(matrices: A, vectors: A) -> A:
    """The products (N, R) of matrices (N, R, C) and vectors (N, C)."""
    return (matrices @ vectors[:, :, None])[:, :, 0]


def vecdot(x: A, y: A) -> A:
    """The inner products (N,) of vectors (N, C)."""
    return namespace(x).einsum("nc,nc->n", x, y)


def widen(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float64, or in float32 on a device without float64."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)
