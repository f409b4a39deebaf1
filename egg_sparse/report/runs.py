"""Finds and reads the folders of runs. What is damaged is named, and nothing in a folder is executed."""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from egg_sparse.report import experiments
from egg_sparse.report.experiments import Experiment, is_number
from egg_sparse.zoo import run_folder
from egg_sparse.zoo.cli import require

Record = dict[str, Any]


@dataclass
class Run:
    """A run, as its folder tells it.

    Args:
        folder: the run folder.
        options: the contents of ``opts.json``.
        results: the contents of ``results.json``.
        metrics: the lines of ``metrics.jsonl``.
        costs: the lines of ``costs.jsonl``.
        fault: why the run is left out of all means, in a sentence; None for a whole run.
    """

    folder: pathlib.Path
    options: Record = field(default_factory=dict)
    results: Record = field(default_factory=dict)
    metrics: list[Record] = field(default_factory=list)
    costs: list[Record] = field(default_factory=list)
    fault: str | None = None

    @property
    def experiment(self) -> Experiment:
        return experiments.of(self.options)

    @property
    def mode(self) -> str:
        return str(self.options.get("mode", ""))

    @property
    def seed(self) -> Any:
        return self.options.get("random_seed")


def find(folders: Iterable[str | pathlib.Path]) -> list[pathlib.Path]:
    """The run folders among these folders and all folders in them, each once, sorted.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: there is no run.
    """
    roots = [pathlib.Path(folder) for folder in folders]
    found: dict[pathlib.Path, pathlib.Path] = {}
    for root in roots:
        if not root.is_dir():
            raise FileNotFoundError(f"FOLDER: there is no folder {root}")
        for place, below, files in os.walk(root):
            below[:] = [name for name in below if name != run_folder.CHECKPOINTS]
            if run_folder.OPTIONS_FILE in files:
                folder = pathlib.Path(place)
                found.setdefault(folder.resolve(), folder)
    if not found:
        names = ", ".join(map(str, roots))
        raise ValueError(f"FOLDER: no runs in {names}; a run's folder has an {run_folder.OPTIONS_FILE}")
    return sorted(found.values())


def read_all(folders: Iterable[str | pathlib.Path]) -> list[Run]:
    """Reads all runs in these folders, see :func:`find`."""
    return [read(folder) for folder in find(folders)]


def read(folder: str | pathlib.Path) -> Run:
    """Reads a run. What is wrong with it is in its ``fault``."""
    run = Run(pathlib.Path(folder))
    try:
        run.fault = _read_into(run)
    except (OSError, ValueError) as error:
        run.fault = _sentence(error).replace(f"{run.folder}{os.sep}", "its ")
    return run


def _read_into(run: Run) -> str | None:
    run.options = run_folder.load_options_of(run.folder)
    file = run.folder / run_folder.METRICS_FILE
    damaged = 0
    if file.is_file():
        records, damaged = run_folder.read_records(file)
        run.metrics = [_numbers(record) for record in records if isinstance(record.get("mode"), str)]
    file = run.folder / run_folder.COSTS_FILE
    if file.is_file():
        records, more = run_folder.read_records(file)
        run.costs, damaged = [_numbers(record) for record in records], damaged + more
    file = run.folder / run_folder.RESULTS_FILE
    if not file.is_file():
        epochs = max((record["epoch"] for record in run.metrics), default=0)
        return f"it has no {file.name}: it has not ended (epochs trained: {epochs} of {run.options.get('n_epochs')})"
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        return f"its {file.name} cannot be read as JSON: {_sentence(error)}"
    if not isinstance(results, dict):
        return f"its {file.name} must hold one object"
    run.results = {name: value for name, value in results.items() if isinstance(value, (bool, int, float, str))}
    if damaged:
        lines = "a line that is" if damaged == 1 else f"{damaged} lines that are"
        return f"its {run_folder.METRICS_FILE} or {run_folder.COSTS_FILE} has {lines} damaged"
    return _not_finite(run)


def _numbers(record: Record) -> Record:
    """The numbers of a line, and its phase."""
    return {name: value for name, value in record.items() if is_number(value) or name == "mode"}


def _not_finite(run: Run) -> str | None:
    for name, value in run.results.items():
        if is_number(value) and not _finite(value):
            return f"its result {name} is {_shortened(value)}, which is not finite"
    for record in (*run.metrics, *run.costs):
        for name, value in record.items():
            if is_number(value) and not _finite(value):
                return f"its {name} in epoch {record['epoch']} is {_shortened(value)}, which is not finite"
    return None


def _shortened(value: float) -> str:
    digits = str(value)
    return digits if len(digits) <= 30 else f"{digits[:27]}..."


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split())


def row_of(run: Run) -> Record:
    """What a run has: folder, experiment, fault, options, and results; one named as an option gets ``_result``."""
    row = {"folder": str(run.folder), "experiment": run.experiment.name, "fault": run.fault, **run.options}
    results = {name: value for name, value in run.results.items() if name != "mode"}
    return {**row, **{f"{name}_result" if name in row else name: value for name, value in results.items()}}


def frame(runs: Iterable[Run]) -> Any:
    """A pandas.DataFrame with a row for each run, see :func:`row_of`.

    Raises:
        ImportError: pandas is not installed.
    """
    return require("pandas", "pandas").DataFrame([row_of(run) for run in runs])
