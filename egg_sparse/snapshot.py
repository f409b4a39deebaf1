"""What a call of an agent changes beside its result, kept to be put back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn


class Snapshot:
    """The buffers of some agents and the state of all random number generators, as they are now.

    Args:
        agents: the agents; those that are no modules have no buffers.
        device: the device whose random numbers they draw, beside those of PyTorch on the CPU, NumPy and Python.

    Example:
        >>> before = Snapshot([], torch.device("cpu"))
        >>> first = torch.rand(1)
        >>> before.restore()
        >>> bool(torch.rand(1) == first)
        True
    """

    def __init__(self, agents: list[Any], device: torch.device) -> None:
        modules = [module for agent in agents if isinstance(agent, nn.Module) for module in agent.modules()]
        self._buffers = [
            (module, name, buffer, buffer.detach().clone())
            for module in modules
            for name, buffer in module._buffers.items()
            if buffer is not None
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

    @torch.no_grad()
    def restore(self) -> None:
        """Puts everything back."""
        for module, name, buffer, content in self._buffers:
            buffer.data.copy_(
                content
            )  # as data, so that a graph which has saved the buffer does not count it as changed
            module._buffers[name] = buffer
        on_cpu, on_device, of_numpy, of_python = self._random_state
        torch.set_rng_state(on_cpu)
        if on_device is not None:
            self._device_module().set_rng_state(on_device)
        np.random.set_state(of_numpy)
        random.setstate(of_python)
