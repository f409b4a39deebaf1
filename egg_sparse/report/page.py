"""A page that needs nothing but itself: tables, plots, options, commands, and the runs that are left out."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from egg_sparse.report.experiments import Experiment
from egg_sparse.report.groups import Group, is_setting, repeated, text_of
from egg_sparse.report.runs import Run
from egg_sparse.report.tables import Table
from egg_sparse.report.template import PAGE
from egg_sparse.zoo import look
from egg_sparse.zoo.cli import as_arguments, require


@dataclass(frozen=True)
class Figure:
    """A plot on the page.

    Args:
        svg: the SVG element, see :func:`egg_sparse.report.plots.to_svg`.
        caption: what it shows.
    """

    svg: str
    caption: str


@dataclass(frozen=True)
class Section:
    """An experiment on the page.

    Args:
        experiment: the experiment.
        table: the means of its settings.
        figures: the plots.
        notes: further sentences.
    """

    experiment: Experiment
    table: Table
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def render(title: str, sections: Sequence[Section], runs: Sequence[Run]) -> str:
    """The page as HTML. Whatever comes from a run's folder is escaped.

    Args:
        title: the heading.
        sections: the experiments.
        runs: all runs that were found.

    Raises:
        ImportError: jinja2 is not installed.
    """
    jinja2 = require("jinja2", "jinja2")
    left_out = [run for run in runs if run.fault]
    n_groups = sum(len(section.table.groups) for section in sections)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    safe = require("markupsafe", "jinja2").Markup
    return environment.from_string(PAGE).render(
        title=title,
        summary=f"{_count(len(runs) - len(left_out), 'run')} of {_count(n_groups, 'setting')}.",
        n_runs=len(runs),
        left_out=left_out,
        sections=[_context(section, safe) for section in sections],
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _context(section: Section, safe: Any) -> dict[str, Any]:
    groups = [_group_context(section.experiment, group) for group in section.table.groups]
    return {
        "title": section.experiment.title,
        "anchor": section.experiment.name or "other",
        "table": section.table,
        "rows": list(zip(groups, section.table.cells, strict=True)),
        "notes": [*section.table.notes, *repeated(section.table.groups), *section.notes],
        "figures": [{"svg": safe(figure.svg), "caption": figure.caption} for figure in section.figures],
        "groups": groups,
    }


def _group_context(experiment: Experiment, group: Group) -> dict[str, Any]:
    options = group.runs[0].options
    shared = {
        name: value
        for name, value in options.items()
        if all(repr(run.options.get(name)) == repr(value) for run in group.runs)
    }
    colors = {color: f"var(--color-{i})" for i, color in enumerate(look.PALETTE)}
    return {
        "title": group.title,
        "n_seeds": len(group.seeds),
        "runs": group.runs,
        "command": command(experiment, group) if experiment.name else "",
        "options": [(name, text_of(value) if name in shared else "differs") for name, value in options.items()],
        "variable": colors.get(group.color, "var(--ink)"),
        "dashes": " ".join(str(3 * length) for length in group.style[1]) if isinstance(group.style, tuple) else "",
    }


def command(experiment: Experiment, group: Group) -> str:
    """The commands of a group's runs, a line each, without options that have their default."""
    defaults = _defaults(experiment.name)
    lines = []
    for run in group.runs:
        own = {
            name: value
            for name, value in run.options.items()
            if is_setting(name) and not (name in defaults and repr(defaults[name]) == repr(value))
        }
        arguments = as_arguments({"mode": run.mode, **own, "random_seed": run.seed})
        lines.append(f"python -m egg_sparse.zoo.{experiment.name} {shlex.join(arguments)}")
    return "\n".join(lines)


@cache
def _defaults(experiment: str) -> dict[str, Any]:
    """The defaults of the options of an experiment, where its parser knows them."""
    parser = importlib.import_module(f"egg_sparse.zoo.{experiment}.train").build_parser()
    return {**{action.dest: action.default for action in parser._actions}, **parser.defaults}
