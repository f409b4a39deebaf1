"""Data of the semi-supervised VAE: images of which few are labeled, and batches of both with binarized pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from egg_sparse.zoo import images
from egg_sparse.zoo.images import GreyImages
from egg_sparse.zoo.loaders import Part, ShuffledLoader, part_of

SOURCES = ("digits", "mnist", "npz")
PAPERS_SPLIT_SEED = 351245
PAPERS_VALIDATION, PAPERS_LABELED = 10_000, 5_000
_SPLIT_SEED = 20201207
DIGITS_LABELED = 100
N_CLASSES = 10
"""The number of classes of digits and mnist."""


@dataclass
class Split:
    labeled: GreyImages
    unlabeled: GreyImages
    validation: GreyImages
    test: GreyImages
    n_classes: int = field(default=N_CLASSES, kw_only=True)


def papers_split(n_labeled: int = PAPERS_LABELED) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of MNIST's training images: labeled, unlabeled and validation.

    The split is the paper's: 10,000 of the 60,000 are drawn for validation, then ``n_labeled`` of the others get labels
    (5,000 in the paper).

    Source: deep-spin/sparse-marginalization-lvm, whose index files hold the same numbers.
    """
    random = np.random.RandomState(PAPERS_SPLIT_SEED)
    validation = random.choice(60_000, PAPERS_VALIDATION, replace=False)
    others = np.setdiff1d(np.arange(60_000), validation)
    labeled = random.choice(others, n_labeled, replace=False)
    return labeled, np.setdiff1d(others, labeled), validation


def load(source: str, data_root: str, n_labeled: int | None, root: str | None = None) -> Split:
    """Reads and splits a data source.

    Args:
        source: one of SOURCES.
        data_root: torchvision's folder, for mnist.
        n_labeled: images with a label; None for 5,000 of mnist, 100 of digits, and a tenth of npz.
        root: the file of npz, see :func:`egg_sparse.zoo.images.npz`.

    Raises:
        ImportError, OSError: the data, or the package that reads it, is missing or damaged.
        ValueError: there are fewer images than labels asked for, or the file of npz is not as it should be.
    """
    if source == "mnist":
        train, test = images.torchvision(source, data_root, 60_000)
        _check(n_labeled, 60_000 - PAPERS_VALIDATION)
        labeled, unlabeled, validation = papers_split(n_labeled or PAPERS_LABELED)
        return Split(train.take(labeled), train.take(unlabeled), train.take(validation), test)
    own, given_test, n_classes = images.npz(root, True) if source == "npz" else (images.digits(), None, N_CLASSES)
    others, for_validation, for_test = images.split(own, given_test, _SPLIT_SEED)
    _check(n_labeled, len(others))
    default = DIGITS_LABELED if source == "digits" else max(1, len(others) // 10)
    first, rest = np.split(np.arange(len(others)), [n_labeled or default])
    return Split(others.take(first), others.take(rest), for_validation, for_test, n_classes=n_classes)


def _check(n_labeled: int | None, available: int) -> None:
    if n_labeled is not None and n_labeled >= available:
        raise ValueError(f"--n_labeled must be below {available}, the number of training images, got {n_labeled}")


def binarized(pixels: np.ndarray, levels: int, random: np.random.Generator) -> torch.Tensor:
    """Pixels that are 1 with a probability in proportion to their grey level, float32 of the same shape."""
    return torch.from_numpy((pixels > random.integers(0, levels - 1, pixels.shape, dtype=np.uint8)).astype(np.float32))


class SemiSupervisedLoader(ShuffledLoader):
    """Batches (images, classes, images, labeled batch); the last is a dict of ``images`` and ``classes``.

    Pixels are binarized anew for every epoch. Batch i of epoch e depends on (seed, e, i) alone.

    Args:
        unlabeled: the images that an epoch goes through once.
        labeled: the images with labels, or None for no labeled batch. Unlabeled image i comes with labeled image i
            modulo the number of labeled images, as in the paper's code.
        batch_size, seed, fixed, part: see :class:`ShuffledLoader`.
    """

    def __init__(
        self,
        unlabeled: GreyImages,
        labeled: GreyImages | None,
        batch_size: int,
        seed: int = 0,
        fixed: bool = False,
        part: Part = (0, 1),
    ) -> None:
        super().__init__(len(unlabeled), batch_size, seed, fixed, part)
        self.unlabeled = unlabeled
        self.labeled = labeled

    def __iter__(self) -> Iterator[tuple]:
        for epoch, index, chosen in self._batches():
            random = np.random.default_rng([self.seed, epoch, index])
            pixels, classes = self._batch(self.unlabeled, chosen, random)
            if self.labeled is None:
                yield pixels, classes, pixels
            else:
                of_labeled = self._batch(self.labeled, chosen % len(self.labeled), random)
                yield pixels, classes, pixels, dict(zip(("images", "classes"), of_labeled, strict=True))

    def _batch(
        self, source: GreyImages, chosen: np.ndarray, random: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = binarized(source.pixels[chosen], source.levels, random).numpy()
        return torch.from_numpy(part_of(pixels, self.part)), torch.from_numpy(
            part_of(source.classes[chosen], self.part)
        )
