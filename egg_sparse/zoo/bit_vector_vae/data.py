"""Data of the bit-vector VAE: images of grey levels, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from egg_sparse.zoo import images
from egg_sparse.zoo.images import GreyImages
from egg_sparse.zoo.loaders import Part, ShuffledLoader, part_of

SOURCES = ("digits", "npz", *images.TORCHVISION)
PAPERS_TRAINING = 55_000
_SPLIT_SEED = 20201208


@dataclass
class Split:
    train: GreyImages
    validation: GreyImages
    test: GreyImages


def load(source: str, data_root: str, root: str | None = None) -> Split:
    """Reads and splits a data source: of 60,000 training images the last 5,000 are for validation, as in the paper.

    Args:
        source: one of SOURCES.
        data_root: torchvision's folder.
        root: the file of npz, see :func:`egg_sparse.zoo.images.npz`.

    Raises:
        ImportError, OSError, ValueError: the data, or the package that reads it, is missing or damaged.
    """
    if source == "npz":
        own, own_test, _ = images.npz(root, labeled=False)
        return Split(*images.split(own, own_test, _SPLIT_SEED))
    if source == "digits":
        digits = images.digits()
        order = np.random.default_rng(_SPLIT_SEED).permutation(len(digits))
        test, validation, train = np.split(order, [len(digits) // 5, 3 * len(digits) // 10])
        return Split(digits.take(train), digits.take(validation), digits.take(test))
    train_images, test_images = images.torchvision(source, data_root, 60_000)
    indices = np.arange(len(train_images))
    return Split(
        train_images.take(indices[:PAPERS_TRAINING]), train_images.take(indices[PAPERS_TRAINING:]), test_images
    )


class ImageLoader(ShuffledLoader):
    """Batches (grey levels in [0, 1], grey levels as integers), ``(B, n_pixels)`` each.

    Args:
        source: the images.
        batch_size, seed, fixed, part: see :class:`ShuffledLoader`.
    """

    def __init__(
        self,
        source: GreyImages,
        batch_size: int,
        seed: int = 0,
        fixed: bool = False,
        part: Part = (0, 1),
    ) -> None:
        super().__init__(len(source), batch_size, seed, fixed, part)
        self.source = source
        self.pixels = torch.from_numpy(source.pixels)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _, _, chosen in self._batches():
            pixels = self.pixels[torch.from_numpy(part_of(chosen, self.part))]
            yield pixels.float() / (self.source.levels - 1), pixels
