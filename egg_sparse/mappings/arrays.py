"""Small arrays: of NumPy on the CPU, where each of its operations takes a third of the time of PyTorch's; else tensors.

What is to run on both is written in what they have in common, with :func:`module` for the functions.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch

#: Of NumPy, or a tensor.
Array: TypeAlias = Any

#: False: tensors on the CPU as well.
NUMPY_ON_CPU = True


def native(tensor: Array) -> Array:
    """What to compute with: the memory of a tensor on the CPU as an array, others as they are; without gradient."""
    if isinstance(tensor, np.ndarray):
        return tensor
    tensor = tensor.detach()
    on_cpu = tensor.device.type == "cpu" and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return tensor.numpy() if on_cpu and NUMPY_ON_CPU else tensor


def as_tensor(array: Array) -> torch.Tensor:
    """The other way round, on the same memory."""
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


def module(array: Array) -> Any:
    """The module whose functions take it: NumPy or PyTorch."""
    found: ModuleType = np if isinstance(array, np.ndarray) else torch
    return found


def zeros(shape: tuple[int, ...], like: Array) -> Array:
    """Zeros of the type of another array, on its device."""
    return np.zeros(shape, like.dtype) if isinstance(like, np.ndarray) else like.new_zeros(shape)


def cast(array: Array, like: Array) -> Array:
    """The array in the type of another one."""
    return array.astype(like.dtype, copy=False) if isinstance(array, np.ndarray) else array.to(like.dtype)


def wide(array: Array) -> Array:
    """The array in float64, or in float32 where the device has none."""
    if isinstance(array, np.ndarray):
        return array.astype(np.float64, copy=False)
    return array.to(torch.float32 if array.device.type == "mps" else torch.float64)


def numbers(n: int, like: Array) -> Array:
    """0, ..., n - 1, as integers, on the device of another array."""
    return np.arange(n) if isinstance(like, np.ndarray) else torch.arange(n, device=like.device)


def take(array: Array, positions: Array) -> Array:
    """Of every row of a (B, V) array what is at its positions (B, n)."""
    return array[numbers(len(array), array)[:, None], positions]
