"""Time, memory, synchronizations and the description of the machine, as all benchmarks measure them."""

from __future__ import annotations

import importlib.metadata
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from egg_sparse import host

Step = Callable[[], object]


@dataclass(frozen=True)
class Settings:
    """What a benchmark is asked for.

    Attributes:
        device: the device that computes.
        quick: whether the smallest sizes and two repeats suffice, which find errors, not times.
        repeats: the number of measurements of a step; None for the benchmark's own number.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    quick: bool = False
    repeats: int | None = None

    def repeated(self, usual: int) -> int:
        """The number of measurements of a step that is usually measured ``usual`` times."""
        return self.repeats or (2 if self.quick else usual)


@dataclass(frozen=True)
class Spread:
    """A number that several runs found.

    Attributes:
        median: the median of the runs.
        runs: the number that each run found.
    """

    median: float
    runs: list[float]


@dataclass
class Table:
    """A table of results.

    Attributes:
        name: the name of the table, which is that of its files.
        title: what the table shows, in one sentence.
        rows: the rows, each a dictionary from the name of a column to a number, a Spread, a text or None.
        notes: sentences below the table, such as which peer is not installed and has no row.
    """

    name: str
    title: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for row in self.rows for column in row))

    def markdown(self) -> str:
        """The table in Markdown."""
        columns = self.columns
        numeric = [any(isinstance(row.get(column), (int, float, Spread)) for row in self.rows) for column in columns]
        lines = [columns, ["---:" if is_number else "---" for is_number in numeric]]
        lines += [[shown(row.get(column)) for column in columns] for row in self.rows]
        notes = [line for note in self.notes for line in ("", note)]
        return "\n".join([f"**{self.title}**", "", *("| " + " | ".join(line) + " |" for line in lines), *notes])

    def as_dict(self) -> dict[str, Any]:
        """The table as JSON holds it."""
        return asdict(self)


def merged(tables: Sequence[Table]) -> Table:
    """One table of those that several runs made: a number in which they differ becomes a Spread.

    Raises:
        ValueError: the tables' rows differ in more than numbers.
    """

    def merge(cells: list[Any]) -> Any:
        if all(cell == cells[0] for cell in cells):
            return cells[0]
        if any(not isinstance(cell, (int, float)) for cell in cells):
            raise ValueError(
                f"runs of the table {tables[0].name} must have the same rows, but have {cells} in one cell"
            )
        return Spread(statistics.median(cells), cells)

    if len({len(table.rows) for table in tables}) > 1:
        raise ValueError(f"runs of the table {tables[0].name} must have equally many rows")
    rows = [
        {column: merge([row.get(column) for row in of_runs]) for column in of_runs[0]}
        for of_runs in zip(*(table.rows for table in tables), strict=True)
    ]
    note = f"Medians of {len(tables)} runs, with their range."
    return Table(tables[0].name, tables[0].title, rows, [note, *tables[0].notes])


def shown(value: Any) -> str:
    """A number with three significant digits, a Spread with its range, a text as it is, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, Spread):
        median, lowest, highest = shown(value.median), shown(min(value.runs)), shown(max(value.runs))
        return median if lowest == highest else f"{median} ({lowest} to {highest})"
    if isinstance(value, float):
        if not math.isfinite(value) or value == 0:
            return str(value)
        return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def synchronize(device: torch.device) -> None:
    """Waits until the device has computed everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_in_turns(
    steps: Mapping[str, Step],
    repeats: int,
    device: torch.device,
    least_seconds: float = 0.02,
    most_seconds: float = math.inf,
) -> dict[str, list[float]]:
    """The seconds that each step takes, measured ``repeats`` times; steps take turns, so that a load meets all.

    Args:
        steps: the steps by name.
        repeats: the number of measurements of each.
        device: the device that computes.
        least_seconds: the shortest measurement; a step that is shorter is repeated within it.
        most_seconds: the time of all measurements of a step after which, from the third on, it is left out.
    """

    def run(step: Step, times: int) -> float:
        synchronize(device)
        started = time.perf_counter()
        for _ in range(times):
            step()
        synchronize(device)
        return (time.perf_counter() - started) / times

    times = {}
    for name, step in steps.items():
        run(step, 1)
        times[name] = max(1, math.ceil(least_seconds / max(run(step, 1), 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            if len(seconds[name]) < 3 or times[name] * sum(seconds[name]) < most_seconds:
                seconds[name].append(run(step, times[name]))
    return seconds


def milliseconds(seconds: Sequence[float]) -> float:
    """The median, in milliseconds."""
    return 1e3 * statistics.median(seconds)


def ratio(seconds: Sequence[float], baseline: Sequence[float]) -> float:
    """The ratio of the medians."""
    return statistics.median(seconds) / statistics.median(baseline)


def fitted_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent e of the power law size^e that fits the values best, by least squares of logarithms."""
    logs = torch.tensor([sizes, values], dtype=torch.float64).log()
    x, y = logs - logs.mean(1, keepdim=True)
    return float((x * y).sum() / x.square().sum())


def synchronizations(step: Step, device: torch.device) -> int | None:
    """The number of times that a step waits for the device; None on the CPU."""
    if device.type != "cuda":
        return None
    step()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


def in_fresh_process(code: str, **environment: str) -> str:
    """The last line that Python code prints in a process of its own, where this repository can be imported.

    Args:
        code: the code.
        environment: environment variables that differ from this process's.

    Raises:
        RuntimeError: the process failed.
    """
    root = pathlib.Path(__file__).resolve().parent.parent
    paths = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    variables = {**os.environ, "PYTHONPATH": paths, **environment}
    result = subprocess.run([sys.executable, "-c", code], cwd=root, env=variables, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"the process that runs {code!r} failed: {result.stderr}")
    return result.stdout.splitlines()[-1]


def peak_gigabytes(module: str, function: str, *arguments: Any) -> float:
    """The peak memory of a process that calls ``module.function(*arguments)``, in GB.

    Of a function whose last argument is a CUDA device it is the peak of the allocated device memory, otherwise that of
    the process (on Linux).
    """
    code = (
        f"import {module} as m, benchmarks.measure as measure, torch; a = {arguments!r}; "
        f"m.{function}(*a); measure.print_peak(str(a[-1]) if a else 'cpu')"
    )
    return float(in_fresh_process(code))


def print_peak(device: str) -> None:
    """Prints the peak memory of this process, in GB."""
    if device.startswith("cuda"):
        print(torch.cuda.max_memory_allocated() / 1e9)
        return
    # not ru_maxrss, which a forked process starts with its parent's
    status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) * 1024 / 1e9)


def machine(device: torch.device) -> dict[str, str]:
    """The machine and the versions that a table is measured with."""
    names = [
        line.split(":", 1)[1].strip()
        for line in (pathlib.Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else [])
        if line.startswith("model name")
    ]
    versions = {}
    for package in ("numpy", "entmax", "pyro-ppl", "storchastic", "lp-sparsemap"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    described = {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **versions,
        "host": host.describe(),
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described
