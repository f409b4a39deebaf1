"""Reads the files of the signal game's data: archives of NumPy, and the HDF5 and pickle files of the paper's features.

Nothing that a file says of itself is believed: sizes are checked before memory is taken, and nothing in it is executed.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from egg_sparse.zoo import archives
from egg_sparse.zoo.cli import require
from egg_sparse.zoo.signal_game import pickled_arrays


def read_npz(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Features ``(n, n_features)`` float32 and labels ``(n,)`` of an archive with arrays of these names.

    Raises:
        FileNotFoundError, ValueError: the file is missing, is no such archive, or is damaged.
    """
    arrays = archives.read(path, "features and labels", ("features", "labels"))
    return _check(arrays["features"], arrays["labels"], str(path))


def read_pickled(path: pathlib.Path) -> np.ndarray:
    """The array of integers or strings that a file holds, see :mod:`egg_sparse.zoo.signal_game.pickled_arrays`.

    Raises:
        FileNotFoundError, ValueError: the file is missing, holds anything else, or is damaged.
    """
    try:
        return pickled_arrays.load(path.read_bytes())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--root: there is no file {path}") from error
    except Exception as error:  # a damaged pickle raises almost anything
        raise ValueError(f"--root: {path} is refused: {error or type(error).__name__}") from error


def read_imagenet_part(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Features ``(n, n_features)`` of unit length, float32, and concepts ``(n,)`` of a folder ``train`` or ``test``.

    Raises:
        ImportError, FileNotFoundError, ValueError: h5py or a file is missing, or a file is damaged.
    """
    h5py = require("h5py", "h5py")
    path = folder / "ours_images_single_sm0.h5"
    labels = read_pickled(folder / "ours_images_single_sm0.objects")
    paths = read_pickled(folder / "ours_images_paths_sm0.objects")
    if not path.is_file():
        raise FileNotFoundError(f"--root: there is no file {path}")
    try:
        with h5py.File(path, "r") as file:
            if len(file) != 1:
                raise ValueError(f"it must hold one dataset, not {len(file)}")
            dataset = file[next(iter(file))]
            if getattr(dataset, "ndim", 0) != 2 or dataset.shape[0] != len(labels):
                raise ValueError(f"its dataset must have shape ({len(labels)}, n_features), as there are labels")
            if dataset.is_virtual or dataset.external or dataset.file != file:
                raise ValueError("its dataset takes its numbers from another file")
            if dataset.dtype.kind not in "fiu":
                raise ValueError(f"its dataset must hold numbers, got {dataset.dtype}")
            archives.check_size(dataset.nbytes, dataset.id.get_storage_size())
            features = dataset[()]
    except Exception as error:  # h5py raises OSError, KeyError, RuntimeError by the kind of damage
        raise ValueError(f"--root: {path} cannot be read: {error}") from error
    if len(paths) != len(labels):
        raise ValueError(f"--root: {folder} has {len(labels)} labels but {len(paths)} paths")
    features, labels = _check(features, labels, str(path))
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(norms > 0, norms, 1), labels


def _check(features: Any, labels: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    if not (isinstance(features, np.ndarray) and features.dtype.kind in "fiu" and features.ndim == 2):
        raise ValueError(
            f"{where}: features must be numbers of shape (n, n_features), got {archives.describe(features)}"
        )
    if not (isinstance(labels, np.ndarray) and labels.dtype.kind in "iuUS" and labels.ndim == 1):
        raise ValueError(f"{where}: labels must be integers or strings of shape (n,), got {archives.describe(labels)}")
    if len(features) != len(labels) or not features.size:
        raise ValueError(f"{where}: there must be a label for every image, got {len(labels)} for {len(features)}")
    with np.errstate(over="ignore"):  # what is infinite in float32 is refused
        features = features.astype(np.float32)
    if not np.isfinite(features).all():
        raise ValueError(f"{where}: features must be finite, some are NaN or infinite")
    return features, labels
