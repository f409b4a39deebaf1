"""What a call of an agent changes beside its result, kept to be put back."""

from __future__ import annotations

import random
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy as is_uninitialized


class Snapshot:
    """The state of some agents and of all random number generators, as they are now.

    The state is that of buffers, and of tensors and numbers that a module, or a loss that is an object, keeps as plain
    attributes.

    Args:
        agents: the agents.
        device: the device whose random numbers they draw, beside those of PyTorch on the CPU, NumPy and Python.

    Example:
        >>> before = Snapshot([], torch.device("cpu"))
        >>> first = torch.rand(1)
        >>> before.restore()
        >>> bool(torch.rand(1) == first)
        True
    """

    def __init__(self, agents: list[Any], device: torch.device) -> None:
        self._owners = _with_submodules(agents)
        self._attributes = [_plain_attributes(owner) for owner in self._owners]
        self._buffers = [dict(_buffers(owner)) for owner in self._owners]
        self._contents = [
            {name: buffer.detach().clone() for name, buffer in buffers.items() if buffer is not None}
            for buffers in self._buffers
        ]
        self._device = device
        self._random_state = self._current_random_state()

    def _device_module(self) -> Any:
        """``torch.cuda``, say; None for the CPU, and for devices without random numbers of their own."""
        module = None if self._device.type == "cpu" else getattr(torch, self._device.type, None)
        return module if hasattr(module, "get_rng_state") else None

    def _current_random_state(self) -> tuple[Any, ...]:
        module = self._device_module()
        on_device = None if module is None else module.get_rng_state()
        return torch.get_rng_state(), on_device, np.random.get_state(), random.getstate()

    def draws(self) -> list[Any]:
        """The state of all random number generators, in a form that can be compared with ``==``."""
        on_cpu, on_device, of_numpy, of_python = self._current_random_state()
        device_state = None if on_device is None else on_device.tolist()
        return [
            on_cpu.tolist(),
            device_state,
            [part.tolist() if hasattr(part, "tolist") else part for part in of_numpy],
            of_python,
        ]

    def restore(self) -> None:
        """Puts everything back, the buffers' contents into the tensors that held them."""
        self._restore_all_but_buffers()
        for owner, buffers, contents in zip(self._owners, self._buffers, self._contents, strict=True):
            for name, content in contents.items():
                buffer = buffers[name]
                if not _overlaps_itself(buffer):  # or nothing can have been written to it
                    # as data, so that a graph which has saved the buffer does not count it as changed
                    buffer.data.copy_(content)
            _set_buffers(owner, buffers)

    def lend(self) -> None:
        """Puts everything back, with copies in place of the buffers, which stay as they are until :meth:`reclaim`."""
        self._restore_all_but_buffers()
        for owner, buffers, contents in zip(self._owners, self._buffers, self._contents, strict=True):
            _set_buffers(owner, {**buffers, **{name: content.clone() for name, content in contents.items()}})

    def reclaim(self) -> None:
        """Puts everything back after :meth:`lend`, the buffers untouched."""
        self._restore_all_but_buffers()
        for owner, buffers in zip(self._owners, self._buffers, strict=True):
            _set_buffers(owner, buffers)

    def _restore_all_but_buffers(self) -> None:
        for owner, attributes in zip(self._owners, self._attributes, strict=True):
            for name in _plain_attributes(owner).keys() - attributes.keys():
                del vars(owner)[name]
            vars(owner).update(attributes)
        on_cpu, on_device, of_numpy, of_python = self._random_state
        torch.set_rng_state(on_cpu)
        if on_device is not None:
            self._device_module().set_rng_state(on_device)
        np.random.set_state(of_numpy)
        random.setstate(of_python)


def is_lazy(agents: list[Any]) -> bool:
    """Whether an agent has parameters or buffers whose shape its first call will find out."""
    modules = [owner for owner in _with_submodules(agents) if isinstance(owner, nn.Module)]
    kept = [value for module in modules for value in (*module._parameters.values(), *module._buffers.values())]
    return any(value is not None and is_uninitialized(value) for value in kept)


def holds_vmapped_tensor(agents: list[Any], *inputs: Any) -> bool:
    """Whether an agent, or a dictionary among the inputs, has kept a tensor that exists within torch.func.vmap only."""
    kept = [value for owner in _with_submodules(agents) for value in (*vars(owner).values(), *_buffers(owner).values())]
    kept += [value for given in inputs if isinstance(given, dict) for value in given.values()]
    return any(isinstance(value, torch.Tensor) and torch._C._functorch.is_batchedtensor(value) for value in kept)


def _with_submodules(agents: list[Any]) -> list[Any]:
    """The modules of the agents, and the agents that are other objects with attributes, each once."""
    owners: dict[int, Any] = {}
    for agent in agents:
        modules = agent.modules() if isinstance(agent, nn.Module) else [agent] if _has_state(agent) else []
        owners.update((id(owner), owner) for owner in modules)
    return list(owners.values())


def _has_state(agent: Any) -> bool:
    return hasattr(agent, "__dict__") and not isinstance(agent, (type, FunctionType, MethodType))


def _plain_attributes(owner: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(owner).items()
        if isinstance(value, (torch.Tensor, int, float)) and name != "training"
    }


def _buffers(owner: Any) -> dict[str, Any]:
    return owner._buffers if isinstance(owner, nn.Module) else {}


def _set_buffers(owner: Any, buffers: dict[str, Any]) -> None:
    if isinstance(owner, nn.Module):
        owner._buffers.clear()
        owner._buffers.update(buffers)


def _overlaps_itself(tensor: torch.Tensor) -> bool:
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
