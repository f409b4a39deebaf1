"""Reads archives of NumPy, .npz, that a user was given.

Nothing that a file says of itself is believed: sizes are checked before memory is taken, and nothing in it is executed.
"""

from __future__ import annotations

import pathlib
import zipfile
from collections.abc import Iterable
from typing import Any

import numpy as np

_MOST_COMPRESSED = 1100  # of deflate, by which npz and HDF5 files are compressed, at most 1032


def read(path: pathlib.Path, what: str, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of an archive, by name; those that are neither required nor optional are not read.

    Args:
        path: the archive, the value of ``--root``.
        what: what it should hold, for errors.
        required: the names of arrays that it must have.
        optional: the names of arrays that it may have.

    Raises:
        FileNotFoundError, ValueError: the file is missing, is no such archive, or is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--root: there is no file {path}")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"--root: {path} cannot be read as {what}: it is not an .npz archive")
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = set(required) - set(archive.files)
            if missing:
                raise ValueError(f"it has no array named {' and none named '.join(sorted(missing))}")
            names = [name for name in (*required, *optional) if name in archive.files]
            for name in names:
                _check_entry(archive.zip, name)
            return {name: archive[name] for name in names}
    except Exception as error:  # a damaged archive raises whatever zip, zlib or numpy happen to
        raise ValueError(f"--root: {path} cannot be read as {what}: {error or type(error).__name__}") from error


def _check_entry(archive: zipfile.ZipFile, name: str) -> None:
    """Refuses an array whose header declares more than is there, for which NumPy would allocate memory."""
    entry = archive.getinfo(f"{name}.npy" if f"{name}.npy" in archive.namelist() else name)
    check_size(entry.file_size, entry.compress_size)
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"{name} has an unknown format")
        shape, _, dtype = readers[version](file)
        declared = dtype.itemsize * int(np.prod([int(n) for n in shape], dtype=object))
        if not dtype.hasobject and declared != entry.file_size - file.tell():
            raise ValueError(f"{name} declares {declared} bytes, but has {entry.file_size - file.tell()}")


def check_size(declared: int, stored: int) -> None:
    """Refuses sizes in bytes that no data of the stored size can have, before memory is allocated for them."""
    if declared > _MOST_COMPRESSED * stored + 10_000:
        raise ValueError(f"it declares {declared} bytes, but has only {stored}")


def describe(value: Any) -> str:
    """An array in words, for errors."""
    return f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
