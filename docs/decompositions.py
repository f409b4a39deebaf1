"""Draws docs/decompositions.png: one set of marginals, three distributions over bit-vectors.

python docs/decompositions.py
"""

import pathlib
from typing import Any

import torch
from matplotlib.colors import ListedColormap

from egg_sparse.distribution import SparseDistribution
from egg_sparse.mappings import sparsemap_bit_vectors
from egg_sparse.mappings.sparsemap import DECOMPOSITIONS
from egg_sparse.zoo import look

SCORES = torch.tensor([[0.8, 0.5, 0.2, 0.0, -0.3, -0.6]], dtype=torch.float64)
WEIGHTS = torch.tensor([1.0, -2.0, 3.0, 1.0, 2.0, -1.0], dtype=torch.float64)


def expectations(distribution: SparseDistribution) -> dict[str, float]:
    """Of a linear function of the message, and of two that are not."""
    bits_on = distribution.messages.sum(-1)
    functions = {
        "a linear function": distribution.messages @ WEIGHTS,
        "number of bits on, squared": bits_on**2,
        "bits 0 and 1 both on": distribution.messages[..., 0] * distribution.messages[..., 1],
    }
    return {name: distribution.expectation(values).item() for name, values in functions.items()}


def draw_messages(axes: Any, distribution: SparseDistribution, title: str, color: str) -> None:
    """Draws a row for each message, whose filled cells are the bits that are on."""
    messages = distribution.messages[:, 0]
    axes.imshow(messages, cmap=ListedColormap([f"{look.LIGHT}55", color]), vmin=0, vmax=1, aspect="auto")
    axes.set_title(title, color=color, fontweight="bold")
    axes.set(xlabel="bit", xticks=range(messages.shape[1]))
    axes.set_yticks(range(len(messages)), [f"{p:.2f}" for p in distribution.probs[:, 0]])
    axes.set_xticks([i - 0.5 for i in range(1, messages.shape[1])], minor=True)
    axes.set_yticks([i - 0.5 for i in range(1, len(messages))], minor=True)
    axes.grid(which="minor", color="white", linewidth=2.5, alpha=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def draw_expectations(axes: Any, found: dict[str, dict[str, float]], colors: dict[str, str]) -> None:
    """Draws the expectations of each function as bars with their values, named beside the first function's."""
    names = list(next(iter(found.values())))
    height = 0.27
    for position, (title, values) in enumerate(found.items()):
        offsets = [i + (position - 1) * height for i in range(len(names))]
        bars = axes.barh(offsets, list(values.values()), 0.9 * height, color=colors[title])
        shown = [f"{value:.2f}" if i else f"{value:.2f} {title}" for i, value in enumerate(values.values())]
        for text in axes.bar_label(bars, shown, padding=3, fontsize=look.SMALL):
            text.set_color(colors[title])
    axes.set_yticks(range(len(names)), [name.replace(", ", ",\n") for name in names])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set(title="expectation of", xlim=(0, 18))


def main() -> None:
    distributions = {name: sparsemap_bit_vectors(SCORES, decomposition=name) for name in DECOMPOSITIONS}
    colors = dict(zip(DECOMPOSITIONS, look.PALETTE, strict=False))
    found = {name: expectations(distribution) for name, distribution in distributions.items()}
    with look.applied():
        figure = look.new_figure(13, 3.6)
        axes = figure.subplots(1, len(found) + 1, width_ratios=[1] * len(found) + [1.6])
        for axis, (name, distribution) in zip(axes, distributions.items(), strict=False):
            draw_messages(axis, distribution, name, colors[name])
        axes[0].set_ylabel("probability of the message")
        draw_expectations(axes[-1], found, colors)
        look.save(figure, pathlib.Path(__file__).with_name("decompositions.png"))
    for name, values in found.items():
        print(name, {key: round(value, 3) for key, value in values.items()})


if __name__ == "__main__":
    main()
