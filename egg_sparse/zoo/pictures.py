"""Pictures in the run folder."""

from __future__ import annotations

import math
import pathlib

import torch


def grid(images: torch.Tensor, columns: int, path: pathlib.Path, title: str) -> None:
    """Draws square grey images ``(n, n_pixels)`` with values in [0, 1], 0 is black, row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    side = math.isqrt(images.shape[1])
    rows = -(-len(images) // columns)
    canvas = torch.ones(rows * columns, side + 1, side + 1)
    canvas[: len(images), :side, :side] = images.detach().cpu().reshape(-1, side, side)
    canvas = canvas.reshape(rows, columns, side + 1, side + 1).transpose(1, 2).reshape(rows * (side + 1), -1)
    figure = Figure(figsize=(0.6 * columns, 0.6 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(canvas.numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize="small")
    axes.set_axis_off()
    figure.savefig(path, dpi=120)


def histogram(values: torch.Tensor, path: pathlib.Path, label: str) -> None:
    """Draws how often each whole number occurs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    numbers, counts = values.long().unique(return_counts=True)
    figure = Figure(figsize=(4.8, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.bar(numbers.tolist(), counts.tolist())
    axes.set(xlabel=label, ylabel="test images")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(path, dpi=120)
