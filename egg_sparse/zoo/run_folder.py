"""The folder of a run: its options, metrics, checkpoints and curves."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import time
from typing import Any

OPTIONS_FILE, METRICS_FILE, CURVES_FILE, CHECKPOINTS = "opts.json", "metrics.jsonl", "curves.png", "checkpoints"

# What says where and on what a run happens, not what it computes, is not taken over by --evaluate.
_NOT_SAVED = {
    "checkpoint_dir",
    "cuda",
    "debug",
    "device",
    "distributed_context",
    "evaluate",
    "load_from_checkpoint",
    "no_cuda",
    "out",
    "preemptable",
    "resume",
}


current: pathlib.Path | None = None
"""The folder of the run of this process, once it has one."""


def create(out: str | None, experiment: str, name: str, goes_on: bool) -> pathlib.Path:
    """Makes the folder.

    Args:
        out: the folder; None for one of a new name in ``runs/experiment``.
        experiment: the folder of runs of one kind.
        name: what the new name starts with.
        goes_on: the run continues an earlier one, whose folder it may be.

    Raises:
        OSError: it cannot be written to.
        ValueError: it holds another run, whose metrics would mix with this one's.
    """
    folder = (
        pathlib.Path(out) if out else pathlib.Path("runs") / experiment / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"--out: cannot write to the run folder {folder}: {error.strerror or error}") from error
    if (folder / OPTIONS_FILE).exists() and not goes_on:
        raise ValueError(f"--out: {folder} holds a run already; choose another folder, or --resume {folder}")
    global current
    current = folder
    return folder


def save_options(folder: pathlib.Path, opts: argparse.Namespace) -> None:
    saved = {name: value for name, value in sorted(vars(opts).items()) if name not in _NOT_SAVED}
    _replace(folder / OPTIONS_FILE, json.dumps(saved, indent=2) + "\n")


def _replace(file: pathlib.Path, text: str) -> None:
    """Writes a file so that at any moment there is the whole old one or the whole new one."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, file)


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
    return {name: value for name, value in saved.items() if name not in _NOT_SAVED}


def keep_metrics_until(folder: pathlib.Path, epoch: int) -> list[dict[str, Any]]:
    """Takes the epochs after this one out of ``metrics.jsonl``, and returns those that stay.

    They are what an interrupted run reported before it could save, or half of a line.
    """
    file = folder / METRICS_FILE
    kept = []
    if file.is_file():
        for line in file.read_bytes().splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and isinstance(record.get("epoch"), int) and record["epoch"] <= epoch:
                kept.append(record)
        _replace(file, "".join(json.dumps(record) + "\n" for record in kept))
    return kept


def plot_curves(folder: pathlib.Path, history: list[dict[str, Any]], panels: dict[str, str], title: str) -> None:
    """Draws ``curves.png``: a panel per metric (name -> label of its axis) that was reported, over epochs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shown = {name: label for name, label in panels.items() if any(name in record for record in history)}
    if not shown:
        return
    figure = Figure(figsize=(4.8 * len(shown), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for position, (name, label) in enumerate(shown.items(), 1):
        axes = figure.add_subplot(1, len(shown), position)
        for mode, style in (("train", "--"), ("validation", "-")):
            points = [
                (record["epoch"], record[name]) for record in history if record["mode"] == mode and name in record
            ]
            if points:
                epochs, values = zip(*points, strict=True)
                axes.plot(epochs, values, style, label=mode, marker="." if len(points) < 30 else None)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title, fontsize="medium")
    figure.savefig(folder / CURVES_FILE, dpi=120)
