"""Checkpoints of a run: written whole or not at all, read with checks, and found again."""

from __future__ import annotations

import copy
import os
import pathlib
import re
import sys
import zipfile
from typing import Any

import torch

from egg_sparse import host
from egg_sparse.callbacks.checkpoints import write


class RunCheckpoints(host.core.CheckpointSaver):
    """Saves ``{epoch}.tar`` at the end of an epoch, its validation included, and ``final.tar`` at the end.

    A checkpoint appears whole or not at all. This callback takes the place of the saver that EGG's Trainer would add,
    which writes in place, and before the validation.

    Args:
        folder: the folder of the checkpoints.
        frequency: epochs between checkpoints; 0 for the last one alone. An interrupted run saves its last whole epoch
            as well.
        keep: the number of checkpoints that stay, the newest ones, beside ``final.tar``.
    """

    def __init__(self, folder: str | pathlib.Path, frequency: int, keep: int) -> None:
        super().__init__(checkpoint_path=folder, checkpoint_freq=frequency)
        self.folder = pathlib.Path(folder)
        self.keep = keep
        self._unsaved: tuple[int, Any] | None = None

    def on_train_begin(self, trainer_instance: Any) -> None:
        super().on_train_begin(trainer_instance)
        self.epoch_counter = trainer_instance.start_epoch

    def on_epoch_end(self, loss: float, logs: Any, epoch: int) -> None:
        self.epoch_counter = epoch
        frequency = self.trainer.validation_freq
        validates = self.trainer.validation_data is not None and frequency > 0 and epoch % frequency == 0
        if not validates:
            self._save_epoch(epoch)

    def on_validation_end(self, loss: float, logs: Any, epoch: int) -> None:
        self._save_epoch(epoch)

    def _save_epoch(self, epoch: int) -> None:
        if self.checkpoint_freq > 0 and epoch % self.checkpoint_freq == 0:
            self._unsaved = None
            self.save_checkpoint(str(epoch))
            self._remove_old()
        else:
            self._unsaved = epoch, copy.deepcopy(self.get_checkpoint())

    def save_last_epoch(self) -> None:
        """Saves the last whole epoch, where the run is interrupted and the frequency has left it out."""
        if self._unsaved is not None:
            epoch, checkpoint = self._unsaved
            write(checkpoint, self.folder / f"{epoch}.tar")
            self._remove_old()

    def _remove_old(self) -> None:
        for old in numbered(self.folder)[self.keep :]:
            old.unlink(missing_ok=True)

    def save_checkpoint(self, filename: str) -> None:
        self.save_as(filename)

    def save_as(self, name: str) -> pathlib.Path:
        """Saves a checkpoint of this name, and returns its path."""
        path = self.folder / f"{name}.tar"
        write(self.get_checkpoint(), path)
        return path


def read(path: str | os.PathLike[str]) -> Any:
    """Reads a checkpoint that EGG's CheckpointSaver wrote onto the CPU, without executing anything that it contains.

    Returns:
        A named tuple with ``epoch``, ``model_state_dict``, ``optimizer_state_dict`` and
        ``optimizer_scheduler_state_dict``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or corrupted, contains objects other than tensors and plain values, or is
            not a checkpoint.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    try:
        _compare_checksums(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive raises whatever zip, pickle or torch happen to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as a checkpoint, it is damaged or of another kind: {reason}"
        ) from error
    if type(checkpoint).__name__ != "Checkpoint":
        raise ValueError(f"{path} is not a checkpoint of EGG's Trainer: it contains a {type(checkpoint).__name__}")
    if not (isinstance(checkpoint.epoch, int) and isinstance(checkpoint.model_state_dict, dict)):
        raise ValueError(f"{path} is not a checkpoint of EGG's Trainer: it has no epoch, or no weights")
    return checkpoint


def _compare_checksums(path: str | os.PathLike[str]) -> None:
    """Compares the checksums that torch.save writes, which torch.load ignores."""
    if not zipfile.is_zipfile(path):
        return  # the format of PyTorch before 1.6, which has none
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed, which no checkpoint is")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} is wrong")


def check_architecture(model: torch.nn.Module, state: dict[str, torch.Tensor], path: str | os.PathLike[str]) -> None:
    """Raises ValueError, naming the first difference, unless the state of a checkpoint fits the model."""
    expected, found = (
        {name: tuple(getattr(value, "shape", ())) for name, value in entries.items()}
        for entries in (model.state_dict(), state)
    )
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            there, here = found.get(name, "absent"), expected.get(name, "absent")
            raise ValueError(
                f"checkpoint {path} is of another architecture: {name} is {there} there and {here} here; "
                "give the options of the run that wrote it"
            )


def numbered(folder: pathlib.Path) -> list[pathlib.Path]:
    """The checkpoints of epochs, the newest first."""
    found = [path for path in folder.glob("*.tar") if re.fullmatch(r"\d+", path.stem)]
    return sorted(found, key=lambda path: int(path.stem), reverse=True)


def newest(folder: pathlib.Path) -> tuple[pathlib.Path, int] | None:
    """The checkpoint of the latest epoch that is whole, and that epoch; None if there is none.

    Every newer one that is damaged is named on standard error.
    """
    final = folder / "final.tar"
    found = _whole(final) if final.is_file() else None
    for path in numbered(folder):
        if found and int(path.stem) <= found[1]:
            break  # a run that goes on with more epochs has a final.tar of fewer
        newer = _whole(path)
        if newer:
            return newer
    return found


def _whole(path: pathlib.Path) -> tuple[pathlib.Path, int] | None:
    try:
        return path, int(read(path).epoch)
    except ValueError as error:
        print(f"# passing over a damaged checkpoint: {error}", file=sys.stderr, flush=True)
        return None
