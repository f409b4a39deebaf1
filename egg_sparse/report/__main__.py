"""Writes a report of runs: ``python -m egg_sparse.report FOLDER...``."""

from __future__ import annotations

import argparse
import sys

from egg_sparse.report import tables
from egg_sparse.report.plots import BANDS
from egg_sparse.report.runs import read_all
from egg_sparse.report.write import PAGE_FILE, write
from egg_sparse.zoo import cli

PROG = "egg_sparse.report"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROG}",
        description="Writes tables, plots and a page of the runs in folders, with means over seeds.",
    )
    option = parser.add_argument
    option("folders", nargs="+", metavar="FOLDER", type=cli.path, help="a run folder, or a folder that has runs in it")
    option("--out", type=cli.path, default="report", help="folder to write to (default: report)")
    rows = "options that make a row (default: all that differ between runs, but for the seed)"
    option("--by", nargs="+", metavar="OPTION", help=rows)
    columns = "results that make the columns, as results.json names them (default: those of the experiment)"
    option("--metrics", nargs="+", metavar="METRIC", help=columns)
    bands = "band of the plots: the standard deviation over seeds, or the lowest to the highest (default: std)"
    option("--band", choices=tuple(BANDS), default="std", help=bands)
    option("--title", default="Report", help="heading of the page")
    option("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(params: list[str]) -> None:
    """Writes the report that the command line asks for, and prints its tables."""
    opts = build_parser().parse_args(params)
    for module, package in (("pandas", "pandas"), ("jinja2", "jinja2"), ("matplotlib.figure", "matplotlib")):
        cli.require(module, package)
    runs = read_all(opts.folders)
    for run in runs:
        if run.fault:
            print(_printable(f"{PROG}: {run.folder} is left out: {run.fault}"), file=sys.stderr, flush=True)
    written = write(runs, opts.out, opts.by, opts.metrics, opts.band, opts.title)
    print(_printable("\n".join(map(tables.to_markdown, written))))
    print(f"# tables, plots and a page: {opts.out}/{PAGE_FILE}", flush=True)


def _printable(text: str) -> str:
    """A text without halves of characters, which names of files and JSON can have."""
    return text.encode(errors="replace").decode()


if __name__ == "__main__":
    sys.exit(cli.run(PROG, main))
