"""Reads pickled arrays and lists of labels without trusting them.

The reader makes no object of any other class, and gives NumPy's code nothing that is unchecked: an array of objects
that declares more elements than it has makes ``numpy.ndarray.__setstate__`` read beyond its memory. It does not use the
C unpickler, which a file of ten bytes makes take gigabytes. Python's own unpickler collects the parts of an array, and
the reader puts them together where they fit.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np


def load(content: bytes) -> np.ndarray:
    """The array, or the list as an array, that was pickled.

    Raises:
        UnpicklingError: it is something else.
        Exception: the file is damaged; the kind depends on the damage.
    """
    value = _Unpickler(io.BytesIO(content)).load()
    if isinstance(value, _Array):
        return value.array()
    if not isinstance(value, (list, tuple)):
        raise pickle.UnpicklingError(f"it must hold an array or a list, got {type(value).__name__}")
    return _of_elements(value, (len(value),))


class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        build = _BUILDERS.get((module.replace("numpy._core.", "numpy.core."), name))
        if build is None:
            raise pickle.UnpicklingError(f"it contains {module}.{name}, which is neither an array nor a string")
        return _Builder(build)


class _Builder:
    """A function that a pickle may call, and do nothing else with."""

    __slots__ = ("build",)

    def __init__(self, build: Callable[..., Any]) -> None:
        self.build = build

    def __call__(self, *args: Any) -> Any:
        return self.build(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes what it is read with")


class _Type:
    """A numpy.dtype: integers, floats, booleans, text, bytes or objects."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.byte_order = code, "|"

    def __setstate__(self, state: Any) -> None:
        self.byte_order = state[1]

    def dtype(self) -> np.dtype:
        if not re.fullmatch(r"[iufUS]\d{1,6}|b1|O8", self.code) or self.byte_order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"it has elements of type {self.code!r}")
        return np.dtype(self.byte_order + self.code)


class _Array:
    """The parts of a numpy.ndarray: shape, type, order and elements."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __setstate__(self, state: Any) -> None:
        self.parts = state[-4:]

    def array(self) -> np.ndarray:
        shape, kind, fortran, elements = self.parts
        if not all(type(length) is int and length >= 0 for length in shape):
            raise pickle.UnpicklingError(f"it has an array of shape {shape}")
        order: Any = "F" if fortran else "C"
        dtype = kind.dtype()
        if dtype.kind == "O":
            return _of_elements(elements, shape, order)
        if len(elements) != math.prod(shape) * dtype.itemsize:
            raise pickle.UnpicklingError(f"it has an array of shape {shape} with {len(elements)} bytes of {dtype}")
        return np.frombuffer(bytes(elements), dtype).reshape(shape, order=order)


def _of_elements(elements: Any, shape: tuple[int, ...], order: Any = "C") -> np.ndarray:
    kinds = {str if isinstance(element, str) else type(element) for element in elements}
    if len(kinds) > 1 or not kinds <= {str, int}:
        # lists of lists, each of the same one again and again, would fill any memory as an array
        raise pickle.UnpicklingError("it must hold strings alone, or integers alone")
    if kinds == {str} and len(elements) * max(map(len, elements)) > 100 * sum(len(text) + 1 for text in elements):
        raise pickle.UnpicklingError("it has a string that is far longer than the others")  # an array pads all to it
    if len(elements) != math.prod(shape):
        raise pickle.UnpicklingError(f"it has an array of shape {shape} with {len(elements)} elements")
    return np.array(elements).reshape(shape, order=order)


def _scalar(kind: _Type, content: bytes) -> Any:
    return _Array((), kind, False, content).array().item()


def _from_buffer(content: bytes, kind: _Type, shape: tuple[int, ...], order: str) -> _Array:
    return _Array(shape, kind, order == "F", content)


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 pickles bytes under the old protocols; no other codec is let in."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("it contains an encoded text other than latin1")
    return text.encode("latin1")


_BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy", "ndarray"): lambda *_: _Array(),
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _latin1,
}
