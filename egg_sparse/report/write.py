"""Writes a report: a page, tables and plots."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from egg_sparse.files import whole_file
from egg_sparse.report import page, plots, tables
from egg_sparse.report.experiments import EXPERIMENTS, OTHER, columns_of
from egg_sparse.report.groups import group
from egg_sparse.report.runs import Run
from egg_sparse.zoo import look, run_folder

PAGE_FILE, RUNS_FILE = "index.html", "runs.csv"


def write(
    runs: Sequence[Run],
    out: str | pathlib.Path,
    by: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    band: plots.Band = "std",
    title: str = "Report",
) -> list[tables.Table]:
    """Writes ``index.html``, ``runs.csv``, and for each experiment tables and plots.

    Args:
        runs: the runs.
        out: the folder to write to, which is made; what an earlier report wrote is replaced.
        by: the options that make a row; None for all that differ.
        metrics: the results that make the columns; None for those of the experiment.
        band: what the bands of the plots are.
        title: the heading of the page.

    Returns:
        The tables.

    Raises:
        ImportError: pandas, matplotlib or jinja2 is not installed.
        OSError: the folder, or a file in it, cannot be written.
        ValueError: every run is left out; an option or a result is unknown; the folder holds other things.
    """
    whole = [run for run in runs if not run.fault]
    if not whole:
        faults = "; ".join(f"{run.folder}: {run.fault}" for run in runs)
        raise ValueError(f"there is nothing to report, since every run is left out: {faults}")
    by_experiment = [
        (experiment, [run for run in whole if run.experiment is experiment]) for experiment in (*EXPERIMENTS, OTHER)
    ]
    _check(whole, by, metrics)
    found = []
    for experiment, own in by_experiment:
        if own:
            names = None if metrics is None else [name for name in metrics if any(name in run.results for run in own)]
            columns = columns_of(experiment, [run.results for run in own], names)
            options = None if by is None else [name for name in by if any(name in run.options for run in own)]
            found.append((experiment, tables.summarize(experiment.title, group(own, options), columns)))
    folder = _make(pathlib.Path(out))
    sections = []
    for experiment, table in found:
        name = experiment.name or "other"
        _write(folder / f"{name}.md", tables.to_markdown(table))
        _write(folder / f"{name}.tex", tables.to_latex(table, name.replace("_", "-")))
        _write(folder / f"{name}.csv", tables.to_csv(table))
        sections.append(_draw(page.Section(experiment, table), folder, name, band))
    _write(folder / RUNS_FILE, tables.runs_csv(runs))
    _write(folder / PAGE_FILE, page.render(title, sections, runs))
    return [table for _, table in found]


def _check(runs: Sequence[Run], by: Sequence[str] | None, metrics: Sequence[str] | None) -> None:
    """Refuses names that no run of any experiment has."""
    columns_of(OTHER, [run.results for run in runs], None if metrics is None else list(metrics))
    group(runs, by)


def _draw(section: page.Section, folder: pathlib.Path, name: str, band: plots.Band) -> page.Section:
    groups = section.table.groups
    first, *others = section.experiment.curves
    wanted = [(first, "epochs"), (first, "calls"), (first, "seconds"), *((curve, "epochs") for curve in others)]
    with look.applied():
        for curve, axis in wanted:
            phase = "" if curve.phase == "validation" else f"-{curve.phase}"
            file = f"{name}-{curve.metric}{phase}-{axis}"
            plot = plots.plan(file, groups, curve, axis, band)
            if plot is None:
                why = "no run reports it" if axis == "epochs" else f"no run has {run_folder.COSTS_FILE}"
                section.notes.append(f"There is no plot of {curve.label} over {plots.AXES[axis]}: {why}.")
                continue
            figure = plots.draw(plot)
            plots.save(figure, folder, file)
            section.figures.append(page.Figure(plots.to_svg(figure, file), plot.caption))
    return section


def _make(folder: pathlib.Path) -> pathlib.Path:
    """Makes the folder.

    Raises:
        OSError: it cannot be made.
        ValueError: it has files and none of them is a report's.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = any(folder.iterdir()) and not (folder / PAGE_FILE).is_file()
    except OSError as error:
        raise OSError(f"--out: the folder {folder} cannot be made or read: {error.strerror}") from error
    if others:
        raise ValueError(f"--out: {folder} holds other files; choose a new folder, or one that holds a report")
    return folder


def _write(path: pathlib.Path, text: str) -> None:
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="replace")
