"""Objects of several attributes, the combinations that training never shows, and batches of objects."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from egg_sparse.zoo.loaders import Part, ShuffledLoader, part_of

SPLITS = ("combinations", "values")
MAX_OBJECTS = 1_000_000
NOT_SCORED = -1
"""The label of an attribute that a loss leaves out."""

_SPLIT_SEED = 20200505


@dataclass(frozen=True)
class Split:
    """Objects, ``(n, n_attributes)`` values each: a value is a number from 0 to n_values - 1.

    Attributes:
        train: the objects that agents learn from.
        unseen: objects whose values all occur in training, but never together.
        new_values: objects with one value that does not occur in training; none if all values do.
    """

    train: torch.Tensor
    unseen: torch.Tensor
    new_values: torch.Tensor


def all_objects(n_attributes: int, n_values: int) -> np.ndarray:
    """All combinations of values, ``(n_values ** n_attributes, n_attributes)``, the last attribute changing fastest.

    Raises:
        ValueError: there are more than ``MAX_OBJECTS``.
    """
    if n_attributes * math.log(n_values) > math.log(MAX_OBJECTS) + 1e-9:
        raise ValueError(
            f"--n_attributes and --n_values must give at most {MAX_OBJECTS} objects, got {n_values} to the power of "
            f"{n_attributes}"
        )
    return np.indices((n_values,) * n_attributes).reshape(n_attributes, -1).T


def _split_combinations(objects: np.ndarray, n_values: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Holds out a share of the objects, drawn from all but ``n_values`` objects that show every value once.

    Raises:
        ValueError: the share leaves no object to hold out, or too few to learn from.
    """
    rng = np.random.default_rng(_SPLIT_SEED)
    n_objects, n_attributes = objects.shape
    n_held_out = int(share * n_objects)
    most = n_objects - n_values
    if not 1 <= n_held_out <= most:
        raise ValueError(
            f"--hold_out must leave out at least 1 and at most {most} of the {n_objects} objects, so that every value "
            f"stays in training, got {share}, which leaves out {n_held_out}"
        )
    shown = np.stack([rng.permutation(n_values) for _ in range(n_attributes)], axis=1)
    position = np.ravel_multi_index(tuple(shown.T), (n_values,) * n_attributes)
    others = rng.permutation(np.setdiff1d(np.arange(n_objects), position))
    held_out = np.zeros(n_objects, dtype=bool)
    held_out[others[:n_held_out]] = True
    return objects[~held_out], objects[held_out]


def split(n_attributes: int, n_values: int, kind: str, share: float) -> Split:
    """Splits all objects into those for training and those that are held out; it does not depend on a run's seed.

    Args:
        n_attributes: the number of attributes.
        n_values: the number of values of each attribute.
        kind: "combinations" to hold out some of all objects, with each value at least once in training; "values" to
            leave the value 0 of every attribute out of training, as EGG does, and hold out some of the other objects.
        share: the share of the objects that is held out.

    Raises:
        ValueError: there are too many objects, or too few for this share.
    """
    objects = all_objects(n_attributes, n_values)
    new_values = objects[:0]
    if kind == "values":
        if n_values < 3:
            raise ValueError(f"--n_values must be at least 3 with --split values, got {n_values}")
        new_values = objects[(objects == 0).sum(axis=1) == 1]
        train, unseen = _split_combinations(objects[(objects > 0).all(axis=1)] - 1, n_values - 1, share)
        train, unseen = train + 1, unseen + 1
    else:
        train, unseen = _split_combinations(objects, n_values, share)
    return Split(*(torch.from_numpy(np.ascontiguousarray(part)) for part in (train, unseen, new_values)))


class ObjectLoader(ShuffledLoader):
    """Batches (objects, labels): one-hot rows of all attributes ``(B, n_attributes * n_values)``, and their values
    ``(B, n_attributes)``.

    Args:
        objects: the objects' values.
        n_values: the number of values of an attribute.
        batch_size, seed, fixed, part: see :class:`ShuffledLoader`.
        times: how often an epoch shows each object.
        ignore_zeros: whether values of 0 have the label ``NOT_SCORED``.
    """

    def __init__(
        self,
        objects: torch.Tensor,
        n_values: int,
        batch_size: int,
        seed: int = 0,
        fixed: bool = False,
        part: Part = (0, 1),
        times: int = 1,
        ignore_zeros: bool = False,
    ) -> None:
        super().__init__(len(objects) * times, batch_size, seed, fixed, part)
        self.inputs = F.one_hot(objects, n_values).flatten(1).float()
        self.labels = objects.masked_fill(objects == 0, NOT_SCORED) if ignore_zeros else objects

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _, _, chosen in self._batches():
            rows = torch.from_numpy(part_of(chosen, self.part) % len(self.inputs))
            yield self.inputs[rows], self.labels[rows]
