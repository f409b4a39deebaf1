"""Plots of a run: metrics over epochs, images, histograms."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from egg_sparse.zoo import look, run_folder


def grid(images: torch.Tensor, columns: int, path: pathlib.Path, title: str, height: int | None = None) -> None:
    """Draws grey images ``(n, n_pixels)`` with values in [0, 1], 0 is black, row by row.

    Args:
        images: the images.
        columns: the number of images in a row.
        path: the path of the PNG.
        title: the title above them.
        height: the pixels of an image from top to bottom; None for what makes it as nearly square as possible.
    """
    n_pixels = images.shape[1]
    if height is None:
        height = next(each for each in range(math.isqrt(n_pixels), 0, -1) if n_pixels % each == 0)
    width = n_pixels // height
    rows = -(-len(images) // columns)
    canvas = torch.ones(rows * columns, height + 1, width + 1)
    canvas[: len(images), :height, :width] = images.detach().cpu().reshape(-1, height, width)
    canvas = canvas.reshape(rows, columns, height + 1, width + 1).transpose(1, 2).reshape(rows * (height + 1), -1)
    scale = 0.6 / math.sqrt(height * width)  # inches a pixel
    size = [max(0.12, scale * side) for side in (width, height)]
    with look.applied():
        figure = look.new_figure(max(3.0, size[0] * columns), size[1] * rows + 0.4)
        axes = figure.add_subplot()
        axes.imshow(canvas.numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=look.SMALL)
        axes.set_axis_off()
        run_folder.save_figure(figure, path)


def histogram(values: torch.Tensor, path: pathlib.Path, label: str) -> None:
    """Draws how often each whole number occurs."""
    numbers, counts = values.long().unique(return_counts=True)
    with look.applied():
        figure = look.new_figure(4.8, 3.2)
        axes = figure.add_subplot()
        axes.bar(numbers.tolist(), counts.tolist(), color=look.BLUE)
        axes.set(xlabel=label, ylabel="test images")
        look.whole_numbers(axes.xaxis)
        run_folder.save_figure(figure, path)


@dataclass(frozen=True)
class Curve:
    """One metric over epochs.

    Args:
        phase: "train" or "validation".
        metric: the metric's name in ``metrics.jsonl``.
        kind: the word that tells it from the panel's other curves of this phase, such as "greedy".
        test: the name of the same quantity in the test's results, which is drawn at the last epoch.
        test_kind: the ``kind`` of that quantity, if it is another.
    """

    phase: str
    metric: str
    kind: str = ""
    test: str | None = None
    test_kind: str | None = None

    def label(self, phase: str, kind: str) -> str:
        return f"{phase}, {kind}" if kind else phase


@dataclass(frozen=True)
class Panel:
    """Curves of one quantity.

    Args:
        quantity: the label of the vertical axis, with the unit.
        curves: the training's curve and up to two of the validation.
        chance: the value that guessing reaches.
    """

    quantity: str
    curves: tuple[Curve, ...]
    chance: float | None = None


def compared(quantity: str, metric: str, test: str | None = None, training: str = "") -> Panel:
    """A panel of a metric that has one meaning in training, validation and test.

    Args:
        quantity: the label of the vertical axis.
        metric: the metric's name.
        test: the metric's name in the test's results.
        training: the word that tells the training's messages from the others.
    """
    return Panel(quantity, (Curve("train", metric, training), Curve("validation", metric, test=test)))


def curves(
    history: list[dict[str, Any]],
    results: dict[str, Any],
    panels: Iterable[Panel],
    path: pathlib.Path,
    title: str,
) -> None:
    """Draws panels of metrics over epochs, each curve with its name beside it; nothing if none was reported.

    Args:
        history: the records of ``metrics.jsonl``.
        results: the test's results.
        panels: the panels; a panel or a curve without reported values is left out.
        path: the path of the PNG.
        title: the title above all panels.
    """
    shown = [panel for panel in panels if any(_points(history, curve) for curve in panel.curves)]
    if not shown:
        return
    columns = len(shown) if len(shown) < 4 else 2
    rows = -(-len(shown) // columns)
    with look.applied():
        figure = look.new_figure(5.6 * columns, 3.4 * rows + 0.3)
        for position, panel in enumerate(shown, 1):
            _plot_panel(figure.add_subplot(rows, columns, position), panel, history, results)
        figure.suptitle(title)
        run_folder.save_figure(figure, path)


def _points(history: list[dict[str, Any]], curve: Curve) -> list[tuple[int, float]]:
    return [
        (record["epoch"], record[curve.metric])
        for record in history
        if record["mode"] == curve.phase and curve.metric in record
    ]


def _plot_panel(axes: Any, panel: Panel, history: list[dict[str, Any]], results: dict[str, Any]) -> None:
    labels = []
    validation_colors = iter((look.VERMILION, look.GREEN))
    last_epoch = max(record["epoch"] for record in history)
    for curve in panel.curves:
        train = curve.phase == "train"
        color = look.BLUE if train else next(validation_colors)
        points = _points(history, curve)
        if points:
            epochs, values = zip(*points, strict=True)
            marker = "." if len(points) < 30 else None
            axes.plot(epochs, values, "--" if train else "-", color=color, marker=marker)
            name = curve.label("training" if train else curve.phase, curve.kind)
            labels.append(look.Label(epochs[-1], values[-1], name, color))
        if curve.test in results:
            value = results[curve.test]
            axes.plot([last_epoch], [value], "D", color=color, markeredgecolor="white", markersize=8, clip_on=False)
            kind = curve.kind if curve.test_kind is None else curve.test_kind
            labels.append(look.Label(last_epoch, value, f"{curve.label('test', kind)}: {value:.4g}", color))
    if panel.chance is not None:
        labels.append(look.draw_chance(axes, panel.chance))
    axes.set(xlabel="epoch", ylabel=look.wrapped(panel.quantity))
    look.whole_numbers(axes.xaxis)
    axes.grid(True)
    look.write_beside(axes, labels)
