"""Loaders of batches that depend on the run's seed, the epoch and the batch's number alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

Part = tuple[int, int]
"""(i, n): the i-th of n processes, counted from 0, which share every batch."""


def part_of(batch: np.ndarray, part: Part) -> np.ndarray:
    """The part of a batch's examples that one of several processes plays, as many for each.

    What cannot be shared equally is left out.
    """
    size = len(batch) // part[1]
    return batch[part[0] * size : (part[0] + 1) * size]


class OnDevice:
    """A loader whose batches are on a GPU before the Trainer asks for them, so that it does not wait for each tensor.

    Tensors are copied from pinned memory, while the device still computes; one that a batch has twice is copied once.

    Args:
        loader: the loader.
        device: the device.
    """

    def __init__(self, loader: Any, device: torch.device) -> None:
        self.loader = loader
        self.device = device

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        self.loader.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            yield self._moved(batch, {})

    def _moved(self, part: Any, known: dict[int, torch.Tensor]) -> Any:
        if isinstance(part, dict):
            return {name: self._moved(value, known) for name, value in part.items()}
        if isinstance(part, tuple):
            return tuple(self._moved(value, known) for value in part)
        if id(part) not in known:
            known[id(part)] = part.pin_memory().to(self.device, non_blocking=True)
        return known[id(part)]


class EpochLoader:
    """What loaders share: the number of the epoch, on which a resumed run's batches depend.

    A subclass implements ``__len__``, the number of batches, and ``__iter__``, which asks :meth:`_next_epoch` once.

    Args:
        seed: the seed of all random numbers.
        fixed: whether every epoch brings the same batches, as for validation and test.
        part: the part of every batch that this process plays.
    """

    def __init__(self, seed: int = 0, fixed: bool = False, part: Part = (0, 1)) -> None:
        self.seed = seed
        self.fixed = fixed
        self.part = part
        self.epoch = 1

    def set_epoch(self, epoch: int) -> None:
        """Sets which epoch the next iteration is, counted from 1; later ones count on."""
        self.epoch = epoch

    def _next_epoch(self) -> int:
        """The epoch that begins, 0 if all are the same."""
        epoch = 0 if self.fixed else self.epoch
        self.epoch += 1
        return epoch


class ShuffledLoader(EpochLoader):
    """A loader that goes through examples once per epoch, in an order that depends on the seed and the epoch.

    Args:
        n_examples: the number of examples.
        batch_size: examples per batch; the last one may be smaller.
        seed, fixed, part: see :class:`EpochLoader`; the order of fixed epochs is the examples' own.
    """

    def __init__(
        self, n_examples: int, batch_size: int, seed: int = 0, fixed: bool = False, part: Part = (0, 1)
    ) -> None:
        super().__init__(seed, fixed, part)
        self.n_examples = n_examples
        self.batch_size = batch_size

    def __len__(self) -> int:
        whole, rest = divmod(self.n_examples, self.batch_size)
        return whole + (rest >= self.part[1])

    def _batches(self) -> Iterator[tuple[int, int, Any]]:
        """The epoch, the batch's number in it, and the positions of all its examples."""
        epoch = self._next_epoch()
        order = np.arange(self.n_examples)
        if not self.fixed:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.n_examples)
        for index in range(len(self)):
            yield epoch, index, order[index * self.batch_size : (index + 1) * self.batch_size]
