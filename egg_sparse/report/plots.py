"""Plots of groups of runs: metrics over epochs, receiver calls and seconds, with bands over seeds."""

from __future__ import annotations

import io
import pathlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from egg_sparse.report.experiments import Curve, is_number
from egg_sparse.report.groups import Group
from egg_sparse.report.runs import Run
from egg_sparse.zoo import look

Band = Literal["std", "range"]
BANDS = {
    "std": "the band is one standard deviation to either side of it",
    "range": "the band goes from the lowest to the highest seed",
}
"""What the bands can be, in words."""

AXES = {
    "epochs": "epoch",
    "calls": "receiver calls in training",
    "seconds": "seconds of training",
}
"""What the horizontal axis can be, and its label."""

_LONGEST_NAME = 34


@dataclass(frozen=True)
class Line:
    """The mean of a group, and what its seeds differ by.

    Args:
        group: the group.
        x: the places, means over seeds.
        y: the means.
        low: the lower edge of the band.
        high: the upper edge of the band.
    """

    group: Group
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Plot:
    """A plot, before it is drawn.

    Args:
        name: the name of its file.
        curve: the metric.
        axis: a key of :data:`AXES`.
        lines: a line for each group that reports the metric.
        levels: the groups that report it in the test alone, and its mean there.
        chance: the value that guessing reaches, if it is the same for all.
        caption: what is drawn, in words.
    """

    name: str
    curve: Curve
    axis: str
    lines: list[Line]
    levels: list[tuple[Group, float]]
    chance: float | None
    caption: str


def points(run: Run, curve: Curve, axis: str) -> dict[int, tuple[float, float]]:
    """The places and values of a run's metric, by epoch; those whose place is not known are left out."""
    places = _places(run, axis)
    return {
        record["epoch"]: (places[record["epoch"]], float(record[curve.metric]))
        for record in run.metrics
        if record["mode"] == curve.phase and curve.metric in record and record["epoch"] in places
    }


def _places(run: Run, axis: str) -> dict[int, float]:
    if axis == "epochs":
        return {record["epoch"]: float(record["epoch"]) for record in run.metrics}
    costs = {record["epoch"]: record for record in run.costs if {"seconds", "examples"} <= record.keys()}
    if axis == "seconds":
        return {epoch: float(record["seconds"]) for epoch, record in costs.items()}
    trained = {record["epoch"]: record for record in run.metrics if record["mode"] == "train"}
    total, examples, places = 0.0, 0.0, {}
    for epoch in sorted(costs):
        # a method that samples has a fixed number of calls, which only its results tell
        calls: Any = trained.get(epoch, {}).get("receiver_calls", run.results.get("receiver_calls"))
        if not is_number(calls):
            return {}
        total += calls * (costs[epoch]["examples"] - examples)
        examples = costs[epoch]["examples"]
        places[epoch] = total
    return places


def plan(name: str, groups: Sequence[Group], curve: Curve, axis: str = "epochs", band: Band = "std") -> Plot | None:
    """What is drawn of a metric; None if no run reports it.

    Args:
        name: the name of the file.
        groups: the groups.
        curve: the metric.
        axis: a key of :data:`AXES`.
        band: what the bands are.
    """
    lines, levels, shortened = [], [], False
    for group in groups:
        found = [points(run, curve, axis) for run in group.runs]
        common = sorted(set(found[0]).intersection(*found[1:])) if found else []
        shortened |= any(len(each) > len(common) for each in found)
        if common:
            values = np.array([[each[epoch] for epoch in common] for each in found])
            lines.append(_line(group, values[:, :, 0], values[:, :, 1], band))
        elif curve.test and axis == "epochs":
            tested = [run.results[curve.test] for run in group.runs if is_number(run.results.get(curve.test))]
            levels += [(group, float(np.mean(tested)))] if tested else []
    if not lines:
        return None
    chances = {_chance(curve, run) for group in groups for run in group.runs}
    several = any(len(line.group.runs) > 1 for line in lines)
    sentences = [
        f"{curve.label[:1].upper()}{curve.label[1:]} over {_over(axis)}",
        f"A line is the mean over seeds, and {BANDS[band]}" if several else "A line is a single run",
    ]
    if levels:
        sentences.append("A level line without a curve is the value in the test: the training does not report it")
    if shortened:
        sentences.append("A line ends where not all of its seeds go on")
    chance = chances.pop() if len(chances) == 1 else None
    return Plot(name, curve, axis, lines, levels, chance, ". ".join(sentences) + ".")


def _chance(curve: Curve, run: Run) -> float | None:
    try:
        return curve.chance(run.options) if curve.chance else None
    except (ArithmeticError, KeyError, TypeError):  # of options that no run of the zoo has
        return None


def _over(axis: str) -> str:
    return {"epochs": "epochs"}.get(axis, AXES[axis])


def _line(group: Group, x: np.ndarray, y: np.ndarray, band: Band) -> Line:
    mean = y.mean(0)
    if band == "range":
        low, high = y.min(0), y.max(0)
    else:
        std = y.std(0, ddof=1) if len(y) > 1 else np.zeros_like(mean)
        low, high = mean - std, mean + std
    return Line(group, x.mean(0), mean, low, high)


def draw(plot: Plot) -> Any:
    """Draws a plot; within :func:`egg_sparse.zoo.look.applied`."""
    names = len(plot.lines) + len(plot.levels) + (plot.chance is not None)
    figure = look.new_figure(5.6, max(3.3, 0.25 * names + 1.2))
    axes = figure.add_subplot()
    labels = []
    for line in plot.lines:
        group = line.group
        if len(group.runs) > 1:
            low = np.maximum(line.low, line.y.min() * 0.5) if plot.curve.log else line.low
            axes.fill_between(line.x, low, line.high, color=group.color, alpha=0.18, linewidth=0)
        axes.plot(line.x, line.y, color=group.color, linestyle=group.style, marker="." if len(line.x) < 12 else None)
        labels.append(look.Label(line.x[-1], line.y[-1], _short(group.name), group.color))
    for group, level in plot.levels:
        axes.axhline(level, color=group.color, linestyle=(0, (1, 3)), linewidth=1.5)
        labels.append(look.Label(float("inf"), level, f"{_short(group.name)} (test)", group.color))
    if plot.curve.log:
        look.counts_on_log_axis(axes)
    if plot.chance is not None:
        labels.append(look.draw_chance(axes, plot.chance))
    if plot.axis == "epochs":
        look.whole_numbers(axes.xaxis)
    elif plot.axis == "calls" and _spans(plot, 10):
        axes.set_xscale("log")
    axes.set_xlabel(AXES[plot.axis])
    axes.set_ylabel(look.wrapped(plot.curve.label))
    axes.grid(True)
    look.write_beside(axes, labels)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the places stay as they are, in whatever format the figure is saved
    return figure


def _spans(plot: Plot, times: float) -> bool:
    ends = [line.x[-1] for line in plot.lines]
    return max(ends) > times * min(ends) > 0


def _short(text: str) -> str:
    if len(text) <= _LONGEST_NAME:
        return text
    half = (_LONGEST_NAME - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def save(figure: Any, folder: pathlib.Path, name: str) -> None:
    """Saves a figure as PNG and PDF."""
    for suffix in ("png", "pdf"):
        look.save(figure, folder / f"{name}.{suffix}")


_VARIABLES = {
    look.INK: "ink",
    look.GREY: "grey",
    **{color: f"color-{i}" for i, color in enumerate(look.PALETTE)},
}


def to_svg(figure: Any, prefix: str) -> str:
    """A figure as an SVG element to be put into a page, whose style sheet chooses the colors.

    Texts are outlines, so that no text of a run is in it.

    Args:
        figure: the figure.
        prefix: what the names of its parts begin with, another one for each figure of a page.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    for pattern in (r"<!--.*?-->\s*", r"<metadata>.*?</metadata>\s*", r"<style.*?</style>\s*"):
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    for color, name in _VARIABLES.items():
        text = re.sub(color, f"var(--{name})", text, flags=re.IGNORECASE)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
