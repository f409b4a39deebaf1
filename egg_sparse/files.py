"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import pathlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def whole_file(path: pathlib.Path, new: bool = False) -> Iterator[pathlib.Path]:
    """Lets a file be written so that at any moment there is the whole old one or the whole new one.

    Args:
        path: the file.
        new: whether there must be none yet. Of several processes that write it at once, one alone then succeeds.

    Yields:
        The name to write to, beside the file; what is there takes the file's place at the end.

    Raises:
        FileExistsError: there is one, though it must be new.
        OSError: the file cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")
    try:
        yield unfinished
        _synchronize(unfinished)
        if new:
            _link(unfinished, path)
        else:
            os.replace(unfinished, path)
        _synchronize(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def _synchronize(path: pathlib.Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(unfinished: pathlib.Path, path: pathlib.Path) -> None:
    try:
        os.link(unfinished, path)
    except FileExistsError:
        raise
    except OSError:  # the file system has no hard links
        with path.open("xb") as file:
            file.write(unfinished.read_bytes())
