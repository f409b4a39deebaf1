"""A GPU for machines without one: tensors that say that they are on ``cuda:0``, and compute on the CPU.

Inside of :func:`emulated` PyTorch behaves as if there were a GPU, as far as a program can see it through its tensors:

- A tensor that is moved to :data:`DEVICE`, or made there, says so, and so does whatever is computed from it: forward,
  backward, under ``torch.func.vmap``, ``torch.autocast`` and checkpointing. Random numbers are those of the CPU.
- An operation that mixes such a tensor with one on the CPU fails. What CUDA allows is allowed: zero-dimensional CPU
  tensors where values are combined element by element, and CPU tensors as indices, which are a copy to the device.
- Where CUDA makes the program wait for the device, that is counted, and so are copies to and from the device.

These synchronize, once each if not said otherwise:

- ``item``, ``tolist``, ``bool``, ``int``, ``float`` of a tensor, ``cpu()``, ``to("cpu")`` unless it has
  ``non_blocking=True``, and copies into CPU tensors
- ``torch.cuda.synchronize``, and ``synchronize`` of a stream, but not that of an event, which may be long past
- ``nonzero``, ``argwhere``, ``where`` of a condition alone, ``masked_select``, and ``unique`` of any kind
- indexing with boolean masks, once per mask, reading and writing, and again in the backward pass; but not writing a
  Python number, which is ``masked_fill``
- ``repeat_interleave`` with a tensor of repeats and no ``output_size``; ``equal``; ``allclose``; ``bincount``
- ``torch.linalg.inv``, ``cholesky`` and others that look for errors; ``torch.normal`` with a tensor of deviations
- ``multinomial`` without replacement, or of one draw, twice before torch 2.5

How it is done: to PyTorch's C++ code the tensors are on the device "meta", which every build has, and which has neither
kernels to fall back on nor streams or threads. A dispatch mode computes every operation on the CPU tensors that they
hold; a function mode says "cuda" to the program wherever PyTorch says "meta", and the other way round. Nothing is
registered and nothing outlasts the context. What is not emulated: ``resize_``, storages, streams, and the layers that
CUDA has kernels of its own for (recurrent ones, attention).
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.variable import Variable
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("cuda", 0)
NON_BLOCKING = "non-blocking copy"
_PYTORCH = str(pathlib.Path(torch.__file__).parent)
_META = torch.device("meta")


@dataclass
class Counted:
    """Where the program waited for the device, and where it copied to it and from it, as "file:line operation"."""

    synchronizations: list[str] = field(default_factory=list)
    copies_to_device: list[str] = field(default_factory=list)
    copies_to_host: list[str] = field(default_factory=list)


class DeviceTensor(torch.Tensor):
    """A tensor on the device; ``host`` is the CPU tensor that holds its values."""

    host: torch.Tensor
    device = DEVICE  # also where PyTorch's own Python code asks

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> DeviceTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            layout=host.layout,
            device=_META,
        )
        tensor.host = host
        return tensor

    def __repr__(self) -> str:
        return f"{self.host!r} on {DEVICE}"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _computed(func, args, kwargs or {})


class Accelerator:
    """The emulated device, as tests see it."""

    device = DEVICE

    def to(self, value: Any) -> Any:
        """A module, or tensors in any structure, on the device."""
        if isinstance(value, nn.Module):
            return value.to(DEVICE)
        return tree_map(lambda x: x.to(DEVICE) if isinstance(x, torch.Tensor) else x, value)

    def host(self, value: Any) -> Any:
        """The values of tensors in any structure, without a synchronization and without a graph.

        Raises:
            AssertionError: a tensor is not on the device.
        """

        def of_tensor(x: Any) -> Any:
            if not isinstance(x, torch.Tensor):
                return x
            assert isinstance(x, DeviceTensor), f"a tensor of shape {tuple(x.shape)} is not on the device"
            return x.host

        return tree_map(of_tensor, value)

    @contextmanager
    def count(self) -> Iterator[Counted]:
        """Collects what synchronizes, and what is copied to the device."""
        counted = Counted()
        _COUNTING.append(counted)
        try:
            yield counted
        finally:
            _COUNTING.remove(counted)


_COUNTING: list[Counted] = []


@contextmanager
def emulated() -> Iterator[Accelerator]:
    """Makes PyTorch, in this thread, behave as if it had a GPU."""
    swap = torch.__future__.get_swap_module_params_on_conversion()
    names = _Names()
    with ExitStack() as stack:
        # modules keep their parameters when they move, as with a GPU, where an optimizer may know them already
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swap)
        torch.__future__.set_swap_module_params_on_conversion(True)
        engine = _Engine(Variable._execution_engine, names)
        stack.enter_context(mock.patch.object(Variable, "_execution_engine", engine))
        for place, name, substitute in _SUBSTITUTES:
            stack.enter_context(mock.patch.object(place, name, substitute))
        stack.enter_context(_Kernels())
        stack.enter_context(names)
        yield Accelerator()


def _true(*_: Any) -> bool:
    return True


def _false(*_: Any) -> bool:
    return False


def _random_state(*_: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _set_random_state(state: torch.Tensor, *_: Any) -> None:
    torch.set_rng_state(state)


def _synchronize(*_: Any) -> None:
    _add("synchronize", synchronizations=1)


class _Stream:
    synchronize = staticmethod(_synchronize)


class _Event:
    """An event of a device that computes at once."""

    def record(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


_SUBSTITUTES = (
    (torch.cuda.amp.common, "amp_definitely_not_available", _false),
    (torch.cuda, "is_bf16_supported", _true),
    (torch.cuda, "synchronize", _synchronize),
    (torch.cuda, "current_stream", lambda *_: _Stream()),
    (torch.cuda, "Event", _Event),
    (torch.cuda, "get_rng_state", _random_state),
    (torch.cuda, "set_rng_state", _set_random_state),
)


class _Engine:
    """Autograd's engine, whose Python functions see the device by its name too."""

    def __init__(self, engine: Any, names: _Names) -> None:
        self._engine = engine
        self._names = names

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run_backward(self, *args: Any, **kwargs: Any) -> Any:
        with self._names:
            return self._engine.run_backward(*args, **kwargs)


# ---------------------------------------------------------------------------------------------------------------------
# What the program says and sees


class _Names(TorchFunctionMode):
    """Says "cuda" to the program where PyTorch says "meta"."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _ANSWERS and _on_device(args[0]):
            return _ANSWERS[func](*args)
        if func is torch.Tensor.pin_memory:
            return args[0]  # where the CPU's memory is, makes no difference here
        if func is torch.Tensor.cuda:
            func, args, kwargs = torch.Tensor.to, (args[0], _META), {}
        args = tuple(_translated(x, func is torch.Tensor.to) for x in args)
        kwargs = {name: _translated(x, name == "device") for name, x in kwargs.items()}
        if func in _OF_DATA:
            return _made_of_data(func, args, kwargs)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and _on_device(args[0]):
            args = (args[0], _index(args[1]), *(_assigned(value, args[0].dtype) for value in args[2:]))
        if torch.is_autocast_enabled("cuda"):
            args, kwargs = _autocast(func, args, kwargs)
        result = func(*args, **kwargs)
        return DEVICE if isinstance(result, torch.device) and result.type == "meta" else result


def _on_device(value: Any) -> bool:
    return isinstance(value, DeviceTensor) or (isinstance(value, torch.Tensor) and value.device.type == "meta")


def _translated(value: Any, may_be_string: bool) -> Any:
    if isinstance(value, torch.device):
        return _META if value.type == "cuda" else value
    if may_be_string and isinstance(value, str) and value.split(":")[0] == "cuda":
        return _META
    return value


def _index(index: Any) -> Any:
    """Lists of an index as tensors, which PyTorch would make on the device "meta", without values."""
    if isinstance(index, tuple):
        return tuple(map(_index, index))
    return torch.as_tensor(index) if isinstance(index, (list, np.ndarray)) else index


def _assigned(value: Any, dtype: torch.dtype) -> Any:
    """Numbers as CPU tensors: CUDA's indexing takes them so, and tells them from tensors on the device."""
    return torch.tensor(value, dtype=dtype) if isinstance(value, (bool, int, float)) else value


def _no_numpy(*_: Any) -> Any:
    raise TypeError(
        f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() to copy it to the host first"
    )


def _address(tensor: torch.Tensor) -> Any:
    return (tensor.host if isinstance(tensor, DeviceTensor) else tensor).untyped_storage()


_ANSWERS: dict[Any, Callable] = {
    torch.Tensor.is_cuda.__get__: lambda _: True,  # type: ignore[attr-defined]
    torch.Tensor.is_meta.__get__: lambda _: False,  # type: ignore[attr-defined]
    torch.Tensor.get_device: lambda _: DEVICE.index,
    torch.Tensor.untyped_storage: _address,
    torch.Tensor.data_ptr: lambda tensor: _address(tensor).data_ptr(),
    torch.Tensor.tolist: lambda tensor: tensor.to("cpu").tolist(),
    torch.Tensor.__format__: lambda tensor, form: format(repr(tensor) if tensor.dim() else tensor.item(), form),
    torch.Tensor.numpy: _no_numpy,
    torch.Tensor.__array__: _no_numpy,
}
_OF_DATA = {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor}


def _made_of_data(func: Any, args: tuple, kwargs: dict) -> torch.Tensor:
    """A tensor of Python's or NumPy's numbers: made on the CPU, then copied."""
    device = kwargs.pop("device", None)
    if func is torch.Tensor.new_tensor:
        like, *args = args
        kwargs.setdefault("dtype", like.dtype)
        func, device = torch.tensor, device or _translated(like.device, False)
    requires_grad = kwargs.pop("requires_grad", False)
    made = func(*args, **kwargs)
    made = made if device is None else made.to(device)
    return made.requires_grad_() if requires_grad else made


_HALF = {
    *(torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum, torch.tensordot, torch.mv),
    *(torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.bmm, torch.Tensor.__matmul__, torch.Tensor.__rmatmul__),
    *(F.linear, F.conv1d, F.conv2d, F.conv3d),
}
_FULL = {
    *(torch.softmax, torch.log_softmax, torch.exp, torch.log, torch.log1p, torch.pow, torch.sum, torch.cumsum),
    *(torch.logsumexp, torch.norm, torch.Tensor.softmax, torch.Tensor.log_softmax, torch.Tensor.exp, torch.Tensor.log),
    *(torch.Tensor.log1p, torch.Tensor.pow, torch.Tensor.sum, torch.Tensor.cumsum, torch.Tensor.logsumexp),
    *(F.softmax, F.log_softmax, F.nll_loss, F.cross_entropy, F.mse_loss, F.softplus, F.gumbel_softmax),
}


def _autocast(func: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The arguments in the type in which autocasting computes a function."""
    if func not in _HALF and func not in _FULL:
        return args, kwargs
    dtype = torch.get_autocast_dtype("cuda") if func in _HALF else torch.float32

    def cast(x: Any) -> Any:
        eligible = _on_device(x) and x.is_floating_point() and x.dtype != torch.float64
        return x.to(dtype) if eligible and x.dtype != dtype else x

    return tree_map(cast, (args, kwargs))


# ---------------------------------------------------------------------------------------------------------------------
# What the device does


class _Kernels(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: tuple, kwargs: dict) -> Any:
    """An operation's result, on the device if an argument is, or if the operation is told to make it there."""
    with torch._C.DisableTorchFunction():
        tensors: list[torch.Tensor] = []
        _mapped(args, tensors.append), _mapped(list(kwargs.values()), tensors.append)
        there = [x for x in tensors if isinstance(x, DeviceTensor)]
        here = [x for x in tensors if not isinstance(x, DeviceTensor)]
        assert all(x.device.type != "meta" for x in here), f"{func} has an argument that is a true meta tensor"
        target = kwargs.get("device")
        if not there and (target is None or target.type != "meta"):
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if there:
            _refuse_mixture(func, name, args, here)
        _count(func, name, args, kwargs)
        if target is not None and target.type == "meta":
            kwargs = {**kwargs, "device": torch.device("cpu")}
        result = func(*_mapped(args, _host), **{key: _mapped(value, _host) for key, value in kwargs.items()})
        if any(x.shape != x.host.shape for x in there):
            if name not in _RESHAPING:
                raise NotImplementedError(f"{func} changes the shape of a tensor in place, which is not emulated")
            with torch._C._DisableTorchDispatch():
                func(*args, **kwargs)  # what PyTorch itself knows of the tensor
        if target is not None and target.type == "cpu":
            return result
        known = {id(_host(x)): x for x in tensors}
        return _mapped(result, lambda x: known[id(x)] if id(x) in known else DeviceTensor(x))


def _mapped(value: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """``tree_map`` for what operations are given and return, in a fraction of the time."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if type(value) in (list, tuple):
        return type(value)([_mapped(x, function) for x in value])
    return value


def _host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.host if isinstance(tensor, DeviceTensor) else tensor


_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl", "_index_put_impl_", "_unsafe_index")
_RESHAPING = ("squeeze_", "unsqueeze_", "t_", "transpose_")
_COPYING = ("copy_", "copy", "_to_copy")
_ALSO_SCALARS = ("fill_", "fill", "masked_fill_", "masked_fill", *_INDEXING, *_COPYING)


def _refuse_mixture(func: Any, name: str, args: tuple, here: list[torch.Tensor]) -> None:
    takes_scalars = torch.Tag.pointwise in func.tags or name in _ALSO_SCALARS or name.startswith(("_foreach", "_fused"))
    indices = [id(x) for x in args[1]] if name in _INDEXING else []
    for x in here:
        if (x.dim() == 0 and takes_scalars) or name in _COPYING or id(x) in indices:
            continue
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and cpu: {func} "
            f"was given a CPU tensor of shape {tuple(x.shape)} and type {x.dtype}"
        )


_SYNCHRONIZING = {
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "allclose", "bincount", "_linalg_check_errors"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
}
_ONE_DRAW_SYNCHRONIZES = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 5)


def _count(func: Any, name: str, args: tuple, kwargs: dict) -> None:
    copies = synchronizations = copies_to_host = 0
    if name in _SYNCHRONIZING:
        synchronizations = 1
    elif name == "repeat_interleave":
        synchronizations = int(kwargs.get("output_size") is None)
    elif name == "normal":
        deviation = args[1] if len(args) > 1 else kwargs.get("std")
        synchronizations = int(isinstance(deviation, torch.Tensor))
    elif name == "multinomial":
        replacement = args[2] if len(args) > 2 else kwargs.get("replacement", False)
        synchronizations = 2 * (_ONE_DRAW_SYNCHRONIZES and (args[1] == 1 or not replacement))
    elif name in _INDEXING:
        given = [x for x in args[1] if x is not None]
        masks = [x for x in given if isinstance(x, DeviceTensor) and x.dtype in (torch.bool, torch.uint8)]
        value = args[2] if len(args) > 2 else None
        as_masked_fill = value is not None and not isinstance(value, DeviceTensor) and len(masks) == len(given) == 1
        synchronizations = 0 if as_masked_fill else len(masks)
        copies = sum(not isinstance(x, DeviceTensor) for x in given)
    elif name == "_to_copy":
        target, was_there = kwargs.get("device"), isinstance(args[0], DeviceTensor)
        copies = int(not was_there)
        copies_to_host = int(was_there and target is not None and target.type == "cpu")
        if kwargs.get("non_blocking"):
            name = NON_BLOCKING
        else:
            synchronizations = copies_to_host
    elif name in ("copy_", "copy"):
        to_device, from_device = (isinstance(x, DeviceTensor) for x in args[:2])
        copies, copies_to_host = int(to_device and not from_device), int(from_device and not to_device)
        synchronizations = copies_to_host
    _add(name, synchronizations, copies, copies_to_host)


def _add(name: str, synchronizations: int = 0, copies_to_device: int = 0, copies_to_host: int = 0) -> None:
    if synchronizations or copies_to_device or copies_to_host:
        place = _place(name)
        for counted in _COUNTING:
            counted.synchronizations.extend([place] * synchronizations)
            counted.copies_to_device.extend([place] * copies_to_device)
            counted.copies_to_host.extend([place] * copies_to_host)


def _place(name: str) -> str:
    """The line of the program that asked for an operation."""
    frame = sys._getframe()
    while frame.f_back and frame.f_code.co_filename.startswith((_PYTORCH, __file__, "<")):
        frame = frame.f_back
    return f"{'/'.join(pathlib.Path(frame.f_code.co_filename).parts[-2:])}:{frame.f_lineno} {name}"
