"""Images with grey levels, of scikit-learn, torchvision, and archives of one's own, for the zoo."""

from __future__ import annotations

import os
import pathlib
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from egg_sparse.zoo import archives
from egg_sparse.zoo.cli import require

TORCHVISION = ("mnist", "fashion-mnist")


@dataclass
class GreyImages:
    """Pixels ``(n, n_pixels)`` uint8 of ``levels`` grey levels, 0 is black, and classes ``(n,)``.

    ``height`` is the number of rows of an image; None for an image that is nearly square.
    """

    pixels: np.ndarray
    classes: np.ndarray
    levels: int
    height: int | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, indices: np.ndarray) -> GreyImages:
        return GreyImages(self.pixels[indices], self.classes[indices], self.levels, self.height)


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


def npz(root: str | None, labeled: bool) -> tuple[GreyImages, GreyImages | None, int]:
    """The images of an archive, its test images or None, and the number of classes.

    ``images`` have the shape (n, height, width) or (n, n_pixels), and so have ``test_images``, if they are there: uint8
    from 0 to 255, or floating-point numbers from 0 to 1, which become 256 grey levels. ``labels`` and ``test_labels``
    ``(n,)`` are integers or strings.

    Args:
        root: the path of the archive, the value of ``--root``.
        labeled: whether labels are read; without, all images are of class 0.

    Raises:
        FileNotFoundError, ValueError: there is no such archive, or its arrays are not these.
    """
    if not root:
        raise ValueError("--data npz needs --root, the .npz file")
    path = pathlib.Path(os.path.expanduser(root))
    needs = ("images", "labels") if labeled else ("images",)
    arrays = archives.read(path, " and ".join(needs), needs, [f"test_{name}" for name in needs])
    if labeled and ("test_images" in arrays) != ("test_labels" in arrays):
        raise ValueError(f"--root: {path} must have both test_images and test_labels, or neither")
    levels = {name: _grey_levels(arrays[name], name, path) for name in ("images", "test_images") if name in arrays}
    shapes = [arrays[name].shape[1:] for name in levels]
    if shapes[1:] and shapes[0] != shapes[1]:
        raise ValueError(f"--root: {path}: test_images must be of shape {shapes[0]}, as images are, got {shapes[1]}")
    height = shapes[0][0] if len(shapes[0]) == 2 else None
    classes = _classes(arrays, path) if labeled else {name: np.zeros(len(part), int) for name, part in levels.items()}
    parts = [GreyImages(levels[name], classes[name], 256, height) for name in levels]
    n_classes = 1 + int(classes["images"].max())
    return parts[0], parts[1] if len(parts) > 1 else None, n_classes


def _grey_levels(images: np.ndarray, name: str, path: pathlib.Path) -> np.ndarray:
    """Images as grey levels ``(n, n_pixels)``, uint8 from 0 to 255."""
    is_float = images.dtype.kind == "f"
    if images.ndim not in (2, 3) or not images.size or not (is_float or images.dtype == np.uint8):
        raise ValueError(
            f"--root: {path}: {name} must be uint8, or floating-point numbers from 0 to 1, of shape (n, height, width) "
            f"or (n, n_pixels), got {archives.describe(images)}"
        )
    images = images.reshape(len(images), -1)
    if is_float:
        if not (images.min() >= 0 and images.max() <= 1):  # also where one is NaN
            raise ValueError(
                f"--root: {path}: {name} must be from 0 to 1 if they are floating-point numbers, got "
                f"{images.min():.4g} to {images.max():.4g}"
            )
        images = np.rint(images.astype(np.float32) * 255).astype(np.uint8)
    if images.max() < 32:
        warnings.warn(
            f"--root: {path}: the brightest pixel of {name} is {images.max()} of 255; expected are whole numbers up to "
            "255, or floating-point numbers up to 1",
            stacklevel=2,
        )
    return images


def _classes(arrays: dict[str, np.ndarray], path: pathlib.Path) -> dict[str, np.ndarray]:
    """The classes of images and test images, numbered from 0 in the order of the labels."""
    for images, labels in (("images", "labels"), ("test_images", "test_labels")):
        if labels in arrays:
            found, n = arrays[labels], len(arrays[images])
            if found.dtype.kind not in "iuUS" or found.shape != (n,):
                raise ValueError(
                    f"--root: {path}: {labels} must be integers or strings of shape ({n},), one for each of {images}, "
                    f"got {archives.describe(found)}"
                )
    names, classes = np.unique(arrays["labels"], return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"--root: {path}: labels must be of at least two classes, got {len(names)}")
    numbered = {"images": classes}
    if "test_labels" in arrays:
        unknown = np.setdiff1d(arrays["test_labels"], names)
        if len(unknown):
            raise ValueError(f"--root: {path}: test_labels must be among labels, which lack {unknown[0]!r}")
        numbered["test_images"] = np.searchsorted(names, arrays["test_labels"])
    return numbered


def split(images: GreyImages, test: GreyImages | None, seed: int) -> tuple[GreyImages, GreyImages, GreyImages]:
    """Training, validation and test images: a tenth for validation, and a fifth for test unless there are test images.

    Raises:
        ValueError: there are too few.
    """
    if len(images) < 10:
        raise ValueError(f"--root: there must be at least 10 images to split, got {len(images)}")
    order = np.random.default_rng(seed).permutation(len(images))
    n_test = 0 if test else len(images) // 5
    for_test, validation, train = np.split(order, [n_test, n_test + len(images) // 10])
    return images.take(train), images.take(validation), test or images.take(for_test)
