"""Data of the bit-vector VAE: images of grey levels, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from egg_sparse.zoo import images
from egg_sparse.zoo.images import GreyImages, part_of

SOURCES = ("digits", *images.TORCHVISION)
PAPERS_TRAINING = 55_000
_DIGITS_SPLIT_SEED = 20201208


@dataclass
class Split:
    train: GreyImages
    validation: GreyImages
    test: GreyImages


def load(source: str, data_root: str) -> Split:
    """Reads and splits a data source: of 60,000 training images the last 5,000 are for validation, as in the paper.

    Args:
        source: one of SOURCES.
        data_root: torchvision's folder.

    Raises:
        ImportError, OSError: the data, or the package that reads it, is missing or damaged.
    """
    if source == "digits":
        digits = images.digits()
        order = np.random.default_rng(_DIGITS_SPLIT_SEED).permutation(len(digits))
        test, validation, train = np.split(order, [len(digits) // 5, 3 * len(digits) // 10])
        return Split(digits.take(train), digits.take(validation), digits.take(test))
    train_images, test_images = images.torchvision(source, data_root, 60_000)
    indices = np.arange(len(train_images))
    return Split(
        train_images.take(indices[:PAPERS_TRAINING]), train_images.take(indices[PAPERS_TRAINING:]), test_images
    )


class ImageLoader:
    """Batches (grey levels in [0, 1], grey levels as integers), ``(B, n_pixels)`` each.

    The order of epoch e depends on (seed, e) alone.

    Args:
        source: the images.
        batch_size: examples per batch; the last one may be smaller.
        seed: of the order.
        fixed: every epoch brings the images in their own order, as for validation and test.
        part: (i, n), for the i-th of n processes: its part of every batch.
    """

    def __init__(
        self,
        source: GreyImages,
        batch_size: int,
        seed: int = 0,
        fixed: bool = False,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.source = source
        self.pixels = torch.from_numpy(source.pixels)
        self.batch_size = batch_size
        self.seed = seed
        self.fixed = fixed
        self.part = part
        self.epoch = 1

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is, counted from 1; it counts on by itself."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(len(self.source), self.batch_size)
        return whole + (rest >= self.part[1])

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = np.arange(len(self.source))
        if not self.fixed:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(len(order))
        self.epoch += 1
        for index in range(len(self)):
            batch = order[index * self.batch_size : (index + 1) * self.batch_size]
            pixels = self.pixels[torch.from_numpy(part_of(batch, self.part))]
            yield pixels.float() / (self.source.levels - 1), pixels
