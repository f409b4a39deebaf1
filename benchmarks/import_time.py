"""Time of ``import egg_sparse`` beside that of ``import torch``, in alternating fresh processes."""

from __future__ import annotations

import statistics
import subprocess
import sys

from benchmarks.measure import Settings, Table

CODE = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def seconds(module: str) -> float:
    """The time that a fresh process takes to import a module."""
    return float(subprocess.run([sys.executable, "-c", CODE.format(module)], capture_output=True, check=True).stdout)


def tables(settings: Settings) -> list[Table]:
    times: dict[str, list[float]] = {"torch": [], "egg_sparse": []}
    for module in times:
        seconds(module)
    for _ in range(settings.repeated(7)):
        for module, measured in times.items():
            measured.append(seconds(module))
    baseline = statistics.median(times["torch"])
    rows = [
        {
            "import": module,
            "s": statistics.median(measured),
            "s above torch": statistics.median(measured) - baseline,
            "ratio": statistics.median(measured) / baseline,
        }
        for module, measured in times.items()
    ]
    return [Table("import_time", "Time of an import in a fresh process", rows)]
