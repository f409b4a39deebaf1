"""How much longer ``import egg_sparse`` takes than ``import torch``: medians of alternating fresh processes.

python benchmarks/import_time.py
"""

import statistics
import subprocess
import sys

CODE = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def seconds(module: str) -> float:
    return float(subprocess.run([sys.executable, "-c", CODE.format(module)], capture_output=True, check=True).stdout)


def main() -> None:
    times: dict[str, list[float]] = {"torch": [], "egg_sparse": []}
    for module in times:
        seconds(module)
    for _ in range(7):
        for module, measured in times.items():
            measured.append(seconds(module))
    torch_time, package_time = (statistics.median(measured) for measured in times.values())
    print(
        f"import torch {torch_time:.2f} s, import egg_sparse {package_time:.2f} s: {package_time - torch_time:+.2f} s"
    )


if __name__ == "__main__":
    main()
