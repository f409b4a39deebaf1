"""Images with grey levels, of scikit-learn and torchvision, for the zoo."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from egg_sparse.zoo.cli import require

TORCHVISION = ("mnist", "fashion-mnist")


@dataclass
class GreyImages:
    """Pixels ``(n, n_pixels)`` uint8 of ``levels`` grey levels, 0 is black, and classes ``(n,)``."""

    pixels: np.ndarray
    classes: np.ndarray
    levels: int

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, indices: np.ndarray) -> GreyImages:
        return GreyImages(self.pixels[indices], self.classes[indices], self.levels)


def digits() -> GreyImages:
    """scikit-learn's 1,797 digits of 8 x 8 pixels with 17 grey levels, embedded in that package."""
    loaded = require("sklearn.datasets", "scikit-learn").load_digits()
    return GreyImages(loaded.data.astype(np.uint8), loaded.target.astype(np.int64), 17)


def torchvision(source: str, data_root: str, n_training: int | None = None) -> tuple[GreyImages, GreyImages]:
    """Training and test images of MNIST or Fashion-MNIST, of 28 x 28 pixels with 256 grey levels.

    Args:
        source: one of TORCHVISION.
        data_root: torchvision's folder, filled by a download if it is empty.
        n_training: the number of training images that there must be; None for any number.

    Raises:
        ImportError, OSError: torchvision or the data is missing and cannot be had, or is damaged.
    """
    datasets = require("torchvision.datasets", "torchvision")
    dataset = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}[source]
    root = os.path.expanduser(data_root)
    parts = []
    for train in (True, False):
        try:
            images = dataset(root, train=train, download=True)
            _check(images.data, images.targets)
        except Exception as error:  # network, disk and format errors of the download and the reader
            raise OSError(
                f"--data_root: cannot read or download {dataset.__name__} in {root}: {' '.join(str(error).split())}"
            ) from error
        pixels = images.data.numpy().reshape(len(images.data), -1)
        parts.append(GreyImages(pixels, images.targets.numpy(), 256))
    if n_training is not None and len(parts[0]) != n_training:
        raise OSError(
            f"--data_root: {dataset.__name__} in {root} must have {n_training} training images, got {len(parts[0])}"
        )
    return parts[0], parts[1]


def _check(pixels: Any, classes: Any) -> None:
    """Refuses what torchvision reads without complaint from files that do not belong together."""
    if tuple(pixels.shape[1:]) != (28, 28) or tuple(classes.shape) != (len(pixels),) or not len(pixels):
        raise ValueError(
            f"there must be images of 28 x 28 pixels, each with a class, got {tuple(pixels.shape)} with "
            f"{tuple(classes.shape)} classes"
        )
    if int(classes.min()) < 0 or int(classes.max()) > 9:
        raise ValueError(f"classes must be 0 to 9, got {int(classes.min())} to {int(classes.max())}")
