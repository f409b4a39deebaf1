"""Data of the signal game: images as feature vectors, grouped by concept, and batches of games drawn from them."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from egg_sparse.zoo import images as grey_images
from egg_sparse.zoo.loaders import EpochLoader, Part, part_of
from egg_sparse.zoo.signal_game import files

SOURCES = ("digits", "imagenet", "npz", *grey_images.TORCHVISION)
_SPLIT_SEED = 20200724  # of the split into train, validation and test images, which no --random_seed changes


@dataclass
class Images:
    """Feature vectors ``(n, n_features)`` by concept: concept c has ``counts[c]`` of them from ``starts[c]`` on."""

    features: torch.Tensor
    starts: np.ndarray
    counts: np.ndarray

    @classmethod
    def from_labels(cls, features: np.ndarray, labels: np.ndarray) -> Images:
        order = np.argsort(labels, kind="stable")
        _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
        return cls(torch.from_numpy(np.ascontiguousarray(features[order], dtype=np.float32)), starts, counts)


@dataclass
class SignalData:
    train: Images
    validation: Images
    test: Images

    @property
    def n_features(self) -> int:
        return self.train.features.shape[1]


def distinct_integers(rng: np.random.Generator, below: np.ndarray, count: int) -> np.ndarray:
    """``count`` distinct integers per row, in random order, uniform over those below ``below`` (B,); (B, count).

    Floyd's sampling, for all rows at once: the cost does not depend on how many integers there are. Rows without a
    repetition among the first draws are left as they are.

    Source: Bentley and Floyd, "A Sample of Brilliance" (Communications of the ACM, 1987).
    """
    last = below[:, None] - count + np.arange(count)
    chosen = rng.integers(0, last.T + 1).T.copy()
    in_order = np.sort(chosen, axis=1)
    repeats = np.flatnonzero((in_order[:, 1:] == in_order[:, :-1]).any(1))
    some, last = chosen[repeats], last[repeats]
    for position in range(1, count):
        repeated = (some[:, :position] == some[:, position, None]).any(1)
        some[:, position] = np.where(repeated, last[:, position], some[:, position])
    chosen[repeats] = some
    return rng.permuted(chosen, axis=1)


class GameLoader(EpochLoader):
    """Batches (sender_input, labels, receiver_input) of games: images ``(game_size, B, n_features)``, labels ``(B,)``.

    The sender's first image is the target; the receiver has the same images in another order, the label says where
    the target is. Batch i of epoch e depends on (seed, e, i) alone.

    Args:
        images: the images of the games.
        game_size: candidates, the target among them. They are of different concepts, or all of the same one if
            ``same``, and always different images.
        batch_size, n_batches: examples per batch, batches per epoch.
        seed, fixed, part: see :class:`egg_sparse.zoo.loaders.EpochLoader`.
        name: the name of these images, for errors.

    Raises:
        ValueError: there are too few concepts, or too few images of a concept.
    """

    def __init__(
        self,
        images: Images,
        game_size: int,
        batch_size: int,
        n_batches: int,
        seed: int,
        same: bool = False,
        fixed: bool = False,
        name: str = "training",
        part: Part = (0, 1),
        batch_first: bool = False,
    ) -> None:
        super().__init__(seed, fixed, part)
        self.batch_first = batch_first
        self.images = images
        self.game_size = game_size
        self.batch_size = batch_size
        self.n_batches = n_batches
        self.same = same
        self.concepts = np.flatnonzero(images.counts >= (game_size if same else 1))
        if same and not len(self.concepts):
            raise ValueError(
                f"--game_size must be at most {images.counts.max()}, the most {name} images that one concept has "
                f"(--same draws all candidates from one concept), got {game_size}"
            )
        if not same and len(self.concepts) < game_size:
            raise ValueError(
                f"--game_size must be at most {len(self.concepts)}, the number of concepts among the {name} images, "
                f"got {game_size}"
            )

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        epoch = self._next_epoch()
        for index in range(self.n_batches):
            yield self._batch(np.random.default_rng([self.seed, epoch, index]))

    def _batch(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        starts, counts = self.images.starts, self.images.counts
        if self.same:
            concept = self.concepts[rng.integers(len(self.concepts), size=self.batch_size)]
            chosen = starts[concept][:, None] + distinct_integers(rng, counts[concept], self.game_size)
        else:
            available = np.full(self.batch_size, len(self.concepts))
            concepts = self.concepts[distinct_integers(rng, available, self.game_size)]
            chosen = starts[concepts] + rng.integers(counts[concepts])
        order = rng.permuted(np.tile(np.arange(self.game_size), (self.batch_size, 1)), axis=1)
        chosen, order = part_of(chosen, self.part), part_of(order, self.part)
        for_receiver = np.take_along_axis(chosen, order, axis=1)
        return self._features(chosen), torch.from_numpy((order == 0).argmax(1)), self._features(for_receiver)

    def _features(self, chosen: np.ndarray) -> torch.Tensor:
        """The images of games ``(B, game_size)``, in the loader's order of axes."""
        chosen = chosen if self.batch_first else chosen.T
        features = self.images.features.index_select(0, torch.from_numpy(chosen.flatten()))
        return features.view(*chosen.shape, features.shape[1])


def load(source: str, root: str | None, data_root: str, same: bool, standardize: bool = True) -> SignalData:
    """Reads and splits a data source.

    Args:
        source: one of SOURCES.
        root: the folder of imagenet, or the file of npz.
        data_root: torchvision's folder, for mnist and fashion-mnist.
        same: candidates will share a concept; images that are concepts of their own then go by their class.
        standardize: pixels have mean 0 and standard deviation 1 over the training images; False: they are brightness
            from 0 to 1.

    Raises:
        ImportError, OSError, ValueError: the data, or the package that reads it, is missing or damaged.
    """
    if source == "imagenet":
        return _imagenet(_required(root, source))
    if source == "npz":
        features, labels = files.read_npz(pathlib.Path(_required(root, source)))
        return _split(features, labels)
    if source == "digits":
        digits = grey_images.digits()
        pixels = digits.pixels.astype(float) if standardize else _brightness(digits)
        return _split(pixels, digits.classes if same else np.arange(len(digits)), standardize=standardize)
    train, test = grey_images.torchvision(source, data_root)
    if not same:
        train.classes, test.classes = np.arange(len(train)), np.arange(len(test))
    return _split(_brightness(train), train.classes, _brightness(test), test.classes, standardize)


def _brightness(grey: grey_images.GreyImages) -> np.ndarray:
    return grey.pixels.astype(np.float32) / (grey.levels - 1)


def _required(root: str | None, source: str) -> str:
    if not root:
        what = "the .npz file" if source == "npz" else "the folder with train/ and test/"
        raise ValueError(f"--data {source} needs --root, {what}")
    return os.path.expanduser(root)


def _split(
    features: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray | None = None,
    test_labels: np.ndarray | None = None,
    standardize: bool = True,
) -> SignalData:
    """Holds out a tenth of the images for validation, and a fifth for test unless there are test images."""
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(features))
    if test is None or test_labels is None:
        held_out = len(order) // 5
        test, test_labels = features[order[:held_out]], labels[order[:held_out]]
        order = order[held_out:]
    n_validation = len(order) // 10
    validation, train = order[:n_validation], order[n_validation:]
    if not (len(train) and len(validation) and len(test)):
        raise ValueError(
            f"there must be at least 20 images to split into train, validation and test, got {len(features)}"
        )
    mean, deviation = 0.0, 1.0
    if standardize:
        mean, deviation = float(features[train].mean()), float(features[train].std()) or 1.0

    def images(values: np.ndarray, classes: np.ndarray) -> Images:
        return Images.from_labels((values - mean) / deviation, classes)

    return SignalData(
        images(features[train], labels[train]),
        images(features[validation], labels[validation]),
        images(test, test_labels),
    )


def _imagenet(root: str) -> SignalData:
    folder = pathlib.Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"--root: there is no folder {folder}")
    train, test = files.read_imagenet_part(folder / "train"), files.read_imagenet_part(folder / "test")
    if train[0].shape[1] != test[0].shape[1]:
        raise ValueError(
            f"--root: train and test images must have as many features, got {train[0].shape[1]} and {test[0].shape[1]}"
        )
    return _split(*train, *test, standardize=False)
