"""Time, memory, synchronizations and the description of the machine, as all benchmarks measure them."""

from __future__ import annotations

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


@dataclass
class Table:
    """A table of results.

    Attributes:
        name: the name of the table, which is that of its files.
        title: what the table shows, in one sentence.
        rows: the rows, each a dictionary from the name of a column to a number, a text or None.
    """

    name: str
    title: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for row in self.rows for column in row))

    def markdown(self) -> str:
        """The table in Markdown."""
        columns = self.columns
        numeric = [any(isinstance(row.get(column), (int, float)) for row in self.rows) for column in columns]
        lines = [columns, ["---:" if is_number else "---" for is_number in numeric]]
        lines += [[shown(row.get(column)) for column in columns] for row in self.rows]
        return "\n".join([f"**{self.title}**", "", *("| " + " | ".join(line) + " |" for line in lines)])

    def as_dict(self) -> dict[str, Any]:
        """The table as JSON holds it."""
        return asdict(self)


def shown(value: Any) -> str:
    """A number with three significant digits, a text as it is, nothing for None."""
    if value is None:
        return ""
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
    steps: Mapping[str, Step], repeats: int, device: torch.device, least_seconds: float = 0.02
) -> dict[str, list[float]]:
    """The seconds that each step takes, measured ``repeats`` times; steps take turns, so that a load meets all.

    Args:
        steps: the steps by name.
        repeats: the number of measurements of each.
        device: the device that computes.
        least_seconds: the shortest measurement; a step that is shorter is repeated within it.
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


def peak_gigabytes(module: str, function: str, *arguments: Any) -> float:
    """The peak memory of a process that calls ``module.function(*arguments)``, in GB.

    Of a function whose last argument is a CUDA device it is the peak of the allocated device memory, otherwise that of
    the process (on Linux).
    """
    code = (
        f"import {module} as m, benchmarks.measure as measure, torch; a = {arguments!r}; "
        f"m.{function}(*a); measure.print_peak(str(a[-1]) if a else 'cpu')"
    )
    root = pathlib.Path(__file__).resolve().parent.parent
    paths = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    if result.returncode:
        raise RuntimeError(f"the process that measures the memory of {module}.{function} failed: {result.stderr}")
    return float(result.stdout.splitlines()[-1])


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
    described = {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "host": host.describe(),
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described
