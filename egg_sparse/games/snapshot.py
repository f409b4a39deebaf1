"""Snapshots: the state that a call of an agent may change, kept so that it can be restored."""

from __future__ import annotations

import random
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy as is_uninitialized


class Snapshot:
    """The present state of some agents and of all random number generators.

    An agent's state is that of its buffers, and of the tensors and numbers that a module, or a loss that is an object,
    keeps as plain attributes.

    Args:
        agents: the agents.
        device: the device whose random number generator is kept, beside those of PyTorch on the CPU, NumPy and Python.

    Example:
        >>> snapshot = Snapshot([], torch.device("cpu"))
        >>> first = torch.rand(1)
        >>> snapshot.restore()
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
        """The device's module, such as ``torch.cuda``; None for the CPU and for devices without a generator."""
        module = None if self._device.type == "cpu" else getattr(torch, self._device.type, None)
        return module if hasattr(module, "get_rng_state") else None

    def _current_random_state(self) -> tuple[Any, ...]:
        module = self._device_module()
        device_state = None if module is None else module.get_rng_state()
        return torch.get_rng_state(), device_state, np.random.get_state(), random.getstate()

    def comparable_random_state(self) -> list[Any]:
        """The present state of all random number generators, in a form that ``==`` compares."""
        cpu_state, device_state, numpy_state, python_state = self._current_random_state()
        return [
            cpu_state.tolist(),
            None if device_state is None else device_state.tolist(),
            [part.tolist() if hasattr(part, "tolist") else part for part in numpy_state],
            python_state,
        ]

    def is_unchanged(self) -> bool:
        """Whether the agents' state is what it was; the random number generators do not count."""
        for owner, attributes, contents in zip(self._owners, self._attributes, self._contents, strict=True):
            now = _plain_attributes(owner)
            if now.keys() != attributes.keys() or any(now[name] is not kept for name, kept in attributes.items()):
                return False
            buffers = {name: buffer for name, buffer in _buffers(owner).items() if buffer is not None}
            if buffers.keys() != contents.keys():
                return False
            if not all(torch.equal(buffer, contents[name]) for name, buffer in buffers.items()):
                return False
        return True

    def restore(self) -> None:
        """Restores the state; the buffers' contents are written to the tensors that held them."""
        self._restore_all_but_buffers()
        for owner, buffers, contents in zip(self._owners, self._buffers, self._contents, strict=True):
            for name, content in contents.items():
                buffer = buffers[name]
                if not _overlaps_itself(buffer):  # nothing can have been written to one that does
                    # as data, so that a graph which has saved the buffer does not count it as changed
                    buffer.data.copy_(content)
            _set_buffers(owner, buffers, contents)

    def start_trial(self) -> None:
        """Restores the state with copies of the buffers in their place, so that a call leaves the buffers untouched."""
        self._restore_all_but_buffers()
        for owner, buffers, contents in zip(self._owners, self._buffers, self._contents, strict=True):
            copies = {name: content.clone() for name, content in contents.items()}
            _set_buffers(owner, {**buffers, **copies}, contents)

    def end_trials(self) -> None:
        """Restores the state after :meth:`start_trial`, with the buffers themselves."""
        self._restore_all_but_buffers()
        for owner, buffers, contents in zip(self._owners, self._buffers, self._contents, strict=True):
            _set_buffers(owner, buffers, contents)

    def _restore_all_but_buffers(self) -> None:
        for owner, attributes in zip(self._owners, self._attributes, strict=True):
            for name in _plain_attributes(owner).keys() - attributes.keys():
                del vars(owner)[name]
            vars(owner).update(attributes)
        cpu_state, device_state, numpy_state, python_state = self._random_state
        torch.set_rng_state(cpu_state)
        if device_state is not None:
            self._device_module().set_rng_state(device_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def is_lazy(agents: list[Any]) -> bool:
    """Whether an agent has parameters or buffers whose shape its first call determines."""
    modules = [owner for owner in _with_submodules(agents) if isinstance(owner, nn.Module)]
    kept = [value for module in modules for value in (*module._parameters.values(), *module._buffers.values())]
    return any(value is not None and is_uninitialized(value) for value in kept)


def holds_vmapped_tensor(agents: list[Any], *inputs: Any) -> bool:
    """Whether an agent, or a dictionary among the inputs, keeps a tensor that exists only within torch.func.vmap."""
    kept = [value for owner in _with_submodules(agents) for value in (*vars(owner).values(), *_buffers(owner).values())]
    kept += [value for given in inputs if isinstance(given, dict) for value in given.values()]
    return any(isinstance(value, torch.Tensor) and torch._C._functorch.is_batchedtensor(value) for value in kept)


def _with_submodules(agents: list[Any]) -> list[Any]:
    """Every module of the agents, and every agent that is another object with attributes, once."""
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


def _set_buffers(owner: Any, buffers: dict[str, Any], contents: dict[str, torch.Tensor]) -> None:
    """Gives a module these buffers; a scripted one, which keeps its own, gets their contents."""
    if isinstance(owner, torch.jit.ScriptModule):
        for name, content in contents.items():
            _buffers(owner)[name].data.copy_(content)
    elif isinstance(owner, nn.Module):
        owner._buffers.clear()
        owner._buffers.update(buffers)


def _overlaps_itself(tensor: torch.Tensor) -> bool:
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
