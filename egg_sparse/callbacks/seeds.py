"""Random numbers and batches that depend on the epoch alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from egg_sparse import host


class EpochSetter(host.core.Callback):
    """Calls a data loader's ``set_epoch`` before every epoch, so that a resumed run sees the same batches.

    Args:
        loader: the data loader.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def on_epoch_begin(self, epoch: int) -> None:
        self.loader.set_epoch(epoch)


class EpochSeeds(host.core.Callback):
    """Seeds all random number generators before every epoch, from the run's seed and the epoch's number.

    A run that is resumed from an epoch's checkpoint then uses the same random numbers as an uninterrupted one.

    Args:
        seed: the run's random seed.
        rank: the number of this process, which gives every process other random numbers.
    """

    def __init__(self, seed: int, rank: int = 0) -> None:
        self.seed = seed
        self.rank = rank

    def on_epoch_begin(self, epoch: int) -> None:
        torch_seed, numpy_seed, python_seed = np.random.SeedSequence([self.seed, epoch, self.rank]).generate_state(3)
        torch.manual_seed(int(torch_seed))
        np.random.seed(int(numpy_seed))
        random.seed(int(python_seed))
