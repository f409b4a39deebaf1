"""Runs benchmarks, prints their tables and saves each as JSON and Markdown.

python -m benchmarks                                 all of them
python -m benchmarks receivers signal_game_step      some of them
python -m benchmarks --runs 3                        three times, in fresh processes: medians of the runs, and ranges
python -m benchmarks --quick                         the smallest sizes, which find errors, not times
"""

from __future__ import annotations

import argparse
import importlib
import json
import pathlib
import pkgutil
import shlex
import subprocess
import sys
import tempfile
import traceback
from typing import NoReturn

import torch

import benchmarks
from benchmarks import measure
from benchmarks.measure import Settings, Table


def names() -> list[str]:
    """The names of all benchmarks, the modules of this package that define ``tables``."""
    found = pkgutil.iter_modules(benchmarks.__path__)
    folder = pathlib.Path(__file__).parent
    return [
        module.name for module in found if "\ndef tables(" in (folder / f"{module.name}.py").read_text(encoding="utf-8")
    ]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message}\n")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number of at least 1, got {text!r}")
    return int(text)


def parsed(params: list[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = _Parser("benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"the benchmarks; all if none: {', '.join(names())}")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="the device that computes")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes and two repeats")
    parser.add_argument("--repeats", type=_count, help="the number of measurements of each step")
    parser.add_argument("--runs", type=_count, default=1, help="the number of runs in fresh processes")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/benchmarks"), help="the folder of tables"
    )
    args = parser.parse_args(params)
    for name in args.names:
        if name not in names():
            parser.error(f"NAME must be one of {', '.join(names())}, got {name!r}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA device, and torch finds none here")
    args.names = args.names or names()
    return args


def save(table: Table, command: str, machine: dict[str, str], folder: pathlib.Path) -> None:
    """Prints a table and saves it, with the command and the machine, as ``NAME.json`` and ``NAME.md``."""
    print(f"{table.markdown()}\n", flush=True)
    described = ", ".join(f"{name} {value}" for name, value in machine.items())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{table.name}.md").write_text(f"{table.markdown()}\n\n`{command}`\n\n{described}\n", encoding="utf-8")
    content = {"command": command, "machine": machine, **table.as_dict()}
    (folder / f"{table.name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def tables_of(name: str, args: argparse.Namespace) -> list[Table]:
    """The tables of a benchmark, of one run in this process or of several in processes of their own."""
    if args.runs == 1:
        settings = Settings(torch.device(args.device), args.quick, args.repeats)
        return importlib.import_module(f"benchmarks.{name}").tables(settings)
    options = [
        f"--device={args.device}",
        *["--quick"] * args.quick,
        *[f"--repeats={args.repeats}"] * bool(args.repeats),
    ]
    runs: dict[str, list[Table]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for run in range(args.runs):
            out = pathlib.Path(folder) / str(run)
            command = [sys.executable, "-m", "benchmarks", name, *options, f"--out={out}"]
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            for file in sorted(out.glob("*.json"), key=lambda file: file.stat().st_mtime_ns):
                content = json.loads(file.read_text(encoding="utf-8"))
                table = Table(*(content[part] for part in ("name", "title", "rows", "notes")))
                runs.setdefault(table.name, []).append(table)
    return [measure.merged(tables) for tables in runs.values()]


def main(params: list[str] | None = None) -> int:
    args = parsed(params)
    command = shlex.join(["python", "-m", "benchmarks", *(sys.argv[1:] if params is None else params)])
    machine = measure.machine(torch.device(args.device))
    failed = []
    for name in args.names:
        try:
            for table in tables_of(name, args):
                save(table, command, machine, args.out)
        except Exception:
            traceback.print_exc()
            failed.append(name)
    if failed:
        print(f"these benchmarks failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
