"""The folder of a run: its options, metrics, costs, checkpoints, curves and results."""

from __future__ import annotations

import argparse
import json
import pathlib
import secrets
import shlex
import time
from typing import Any

from egg_sparse.files import whole_file

OPTIONS_FILE, METRICS_FILE, CURVES_FILE, CHECKPOINTS = "opts.json", "metrics.jsonl", "curves.png", "checkpoints"
RESULTS_FILE, COSTS_FILE, WANDB_FILE, BEST = "results.json", "costs.jsonl", "wandb_id", "best.tar"

NOT_SAVED = {
    "checkpoint_dir",
    "config",
    "cuda",
    "debug",
    "device",
    "distributed_context",
    "evaluate",
    "load_from_checkpoint",
    "no_cuda",
    "out",
    "preemptable",
    "quick",
    "resume",
}
"""Options of where a run happens, not of what it computes: --evaluate and --resume do not take them over."""

_OLD_TENSORBOARD_DIR = "runs/"
"""The folder for all runs that runs of egg_sparse 0.2 have in their options, though they wrote nothing to it."""


current: pathlib.Path | None = None
"""The folder of the run of this process, once it has one."""

trained = False
"""Whether the training of that run has ended and only its test is left."""


def create(opts: argparse.Namespace, experiment: str, goes_on: bool, unchanged: bool = False) -> pathlib.Path:
    """Makes the folder of a run and writes ``opts.json``, which marks the folder as the run's own.

    Args:
        opts: all options; without ``--out`` the folder gets a new name in ``runs/experiment``.
        experiment: the folder of runs of one kind.
        goes_on: whether the run continues the one that is in the folder.
        unchanged: whether an ``opts.json`` and a ``results.json`` that are there stay as they are.

    Raises:
        OSError: the folder cannot be written to.
        ValueError: the folder holds another run, whose metrics would mix with this one's.
    """
    global current, trained
    named = pathlib.Path("runs") / experiment / f"{opts.mode}-{opts.random_seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = pathlib.Path(opts.out) if opts.out else named
    try:
        folder = folder if opts.out else _make_new(named)
        folder.mkdir(parents=True, exist_ok=True)
        if goes_on and not unchanged:
            (folder / RESULTS_FILE).unlink(missing_ok=True)  # of fewer epochs, or of other options
        if not (goes_on and unchanged and (folder / OPTIONS_FILE).is_file()):
            _write_options(opts, folder, new=not goes_on)
    except OSError as error:
        raise OSError(f"--out: cannot write to the run folder {folder}: {error.strerror or error}") from error
    current, trained = folder, False
    return folder


def _make_new(folder: pathlib.Path) -> pathlib.Path:
    """Makes a folder of this name, or with a number behind it where another run has that one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    number, made = 1, folder
    while True:
        try:
            made.mkdir()
            return made
        except FileExistsError:
            number += 1
            made = folder.with_name(f"{folder.name}-{number}")


def saved_options(opts: argparse.Namespace) -> dict[str, Any]:
    """The options of a run that ``opts.json`` holds, sorted: those of what it computes, not of where."""
    return {name: value for name, value in sorted(vars(opts).items()) if name not in NOT_SAVED}


def wandb_id(folder: pathlib.Path) -> str:
    """The name by which Weights & Biases knows a run, drawn once and kept in its folder."""
    file = folder / WANDB_FILE
    if not file.is_file():
        with whole_file(file) as unfinished:
            unfinished.write_text(secrets.token_hex(4), encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()


def _write_options(opts: argparse.Namespace, folder: pathlib.Path, new: bool) -> None:
    try:
        with whole_file(folder / OPTIONS_FILE, new) as unfinished:
            unfinished.write_text(json.dumps(saved_options(opts), indent=2) + "\n", encoding="utf-8")
    except FileExistsError:
        raise ValueError(
            f"--out: {folder} holds a run already; choose another folder, or --resume {shlex.quote(str(folder))}"
        ) from None


def save_figure(figure: Any, path: pathlib.Path) -> None:
    """Saves a figure as a PNG."""
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, format="png")


def write_results(folder: pathlib.Path, results: dict[str, Any]) -> None:
    """Writes ``results.json``, the last file of a run, so that there is a whole one or none.

    Raises:
        OSError: the folder cannot be written to.
    """
    try:
        with whole_file(folder / RESULTS_FILE) as unfinished:
            unfinished.write_text(json.dumps(results) + "\n", encoding="utf-8")
    except OSError as error:
        raise OSError(f"cannot write {RESULTS_FILE} to the run folder {folder}: {error.strerror or error}") from error


def remove_unfinished(*folders: pathlib.Path) -> None:
    """Removes the files that a killed run was writing."""
    for folder in folders:
        for unfinished in folder.glob(".*.unfinished"):
            unfinished.unlink(missing_ok=True)


def holds(folder: str, file: str) -> bool:
    """Whether a file lies in a folder, or in one of its folders."""
    return pathlib.Path(folder).resolve() in pathlib.Path(file).resolve().parents


def load_options(checkpoint: str) -> dict[str, Any]:
    """The options of the run that a checkpoint belongs to.

    Raises:
        FileNotFoundError: the checkpoint, or the opts.json beside or above it, is missing.
        ValueError: the opts.json is not an object of plain values.
    """
    path = pathlib.Path(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(f"--load_from_checkpoint: there is no checkpoint at {path}")
    for folder in list(path.resolve().parents)[:3]:
        if (folder / OPTIONS_FILE).is_file():
            return load_options_of(folder)
    raise FileNotFoundError(
        f"--evaluate takes the options from {OPTIONS_FILE} in the run folder, but there is none near {path}"
    )


def load_options_of(folder: pathlib.Path) -> dict[str, Any]:
    """The options of the run in a folder.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: its opts.json is not an object of plain values.
    """
    file = folder / OPTIONS_FILE
    if not file.is_file():
        raise FileNotFoundError(f"there is no run in {folder}: it has no {OPTIONS_FILE}")
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(saved, dict) or not all(
        value is None or isinstance(value, (bool, int, float, str)) for value in saved.values()
    ):
        raise ValueError(f"{file} must hold one object of options with plain values")
    if saved.get("tensorboard_dir") == _OLD_TENSORBOARD_DIR and not saved.get("tensorboard"):
        del saved["tensorboard_dir"]
    return {name: value for name, value in saved.items() if name not in NOT_SAVED}


def read_records(file: pathlib.Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a file that are objects with an epoch, and the number of the others, which are damaged."""
    records, damaged = [], 0
    for line in file.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict) and type(record.get("epoch")) is int:
            records.append(record)
        else:
            damaged += 1
    return records, damaged


def keep_metrics_until(folder: pathlib.Path, epoch: int, name: str = METRICS_FILE) -> list[dict[str, Any]]:
    """Removes the epochs after this one, and damaged lines, from ``metrics.jsonl``, and returns the others.

    An interrupted run reports epochs that it does not save, and may write half a line.

    Args:
        folder: the run folder.
        epoch: the last epoch to keep.
        name: the name of another file of epochs.
    """
    file = folder / name
    kept = []
    if file.is_file():
        kept = [record for record in read_records(file)[0] if record["epoch"] <= epoch]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        if text.encode() != file.read_bytes():
            with whole_file(file) as unfinished:
                unfinished.write_text(text, encoding="utf-8")
    return kept
