"""Images of digits, and loaders of batches."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from egg_sparse.zoo import images
from egg_sparse.zoo.cli import number

N_TRAINING_DIGITS = 1400


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of :func:`load`."""
    parser.add_argument(
        "--data_root", default=None, help="folder of torchvision's MNIST; scikit-learn's digits if none"
    )
    parser.add_argument("--n_images", type=number(int, at_least=2), default=None, help="training images (default: all)")


def load(opts: argparse.Namespace) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Images ``(n, 1, 28, 28)`` with values from 0 to 1 and classes ``(n,)``, for training and for validation.

    These are the ones of MNIST, which is downloaded if ``opts.data_root`` lacks it. Without ``opts.data_root`` they are
    scikit-learn's 8x8 digits, enlarged.
    """
    if opts.data_root is None:
        digits = images.digits()
        digits = digits.take(np.random.default_rng(0).permutation(len(digits)))
        train, validation = (digits.take(rows) for rows in np.split(np.arange(len(digits)), [N_TRAINING_DIGITS]))
    else:
        train, validation = images.torchvision("mnist", opts.data_root)
    return _tensors(train.take(np.arange(len(train))[: opts.n_images])), _tensors(validation)


def _tensors(grey: images.GreyImages) -> tuple[torch.Tensor, torch.Tensor]:
    size = math.isqrt(grey.pixels.shape[1])
    pixels = torch.from_numpy(grey.pixels).float().view(-1, 1, size, size) / (grey.levels - 1)
    return F.interpolate(pixels, size=(28, 28), mode="bilinear"), torch.from_numpy(grey.classes)


class Batches:
    """Batches of the rows of tensors, in another order every epoch.

    Args:
        tensors: tensors with as many rows each.
        batch_size: rows per batch.
        shuffle: whether the order changes.
        drop_last: whether a last batch that is smaller is left out.
        transform: a function from a batch of each tensor to what the game is given.
    """

    def __init__(
        self,
        *tensors: torch.Tensor,
        batch_size: int,
        shuffle: bool = True,
        drop_last: bool = False,
        transform: Callable[..., Any] = lambda *batch: batch,
    ) -> None:
        self.tensors = tensors
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.transform = transform

    def __len__(self) -> int:
        whole, rest = divmod(len(self.tensors[0]), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Any]:
        n_rows = len(self.tensors[0])
        order = torch.randperm(n_rows) if self.shuffle else torch.arange(n_rows)
        for rows in order.split(self.batch_size)[: len(self)]:
            yield self.transform(*(tensor[rows] for tensor in self.tensors))


class DrawnBatches:
    """As many batches per epoch, each of them drawn anew by a function."""

    def __init__(self, draw: Callable[[], Any], n_batches: int) -> None:
        self.draw = draw
        self.n_batches = n_batches

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[Any]:
        return (self.draw() for _ in range(self.n_batches))
