"""Draws docs/decompositions.png: one set of marginals, three distributions over bit-vectors.

python docs/decompositions.py
"""

import pathlib

import matplotlib
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from egg_sparse.mappings import sparsemap_bit_vectors
from egg_sparse.mappings.sparsemap import DECOMPOSITIONS

SCORES = torch.tensor([[0.8, 0.5, 0.2, 0.0, -0.3, -0.6]], dtype=torch.float64)
WEIGHTS = torch.tensor([1.0, -2.0, 3.0, 1.0, 2.0, -1.0], dtype=torch.float64)


def expectations(distribution) -> dict[str, float]:
    """Of a linear function of the message, and of two that are not."""
    bits_on = distribution.messages.sum(-1)
    functions = {
        "a linear function": distribution.messages @ WEIGHTS,
        "number of bits on, squared": bits_on**2,
        "bits 0 and 1 both on": distribution.messages[..., 0] * distribution.messages[..., 1],
    }
    return {name: distribution.expectation(values).item() for name, values in functions.items()}


def main() -> None:
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.4), width_ratios=[1, 1, 1, 1.5], layout="constrained")
    found = {}
    for axis, name in zip(axes, DECOMPOSITIONS, strict=False):
        distribution = sparsemap_bit_vectors(SCORES, decomposition=name)
        found[name] = expectations(distribution)
        axis.imshow(distribution.messages[:, 0], cmap="Blues", vmin=0, vmax=1.4, aspect="auto")
        axis.set(title=name, xlabel="bit", xticks=range(SCORES.shape[1]))
        axis.set_yticks(range(len(distribution.probs)), [f"{p:.3f}" for p in distribution.probs[:, 0]])
        axis.set_xticks([i - 0.5 for i in range(1, SCORES.shape[1])], minor=True)
        axis.set_yticks([i - 0.5 for i in range(1, len(distribution.probs))], minor=True)
        axis.grid(which="minor", color="white", linewidth=2)
        axis.tick_params(which="minor", length=0)
    axes[0].set_ylabel("probability of the message")
    height = 0.25
    names = list(next(iter(found.values())))
    for position, (name, values) in enumerate(found.items()):
        offsets = [i + (position - 1) * height for i in range(len(names))]
        bars = axes[3].barh(offsets, list(values.values()), height, label=name)
        axes[3].bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
    axes[3].set_yticks(range(len(names)), [name.replace(", ", ",\n") for name in names])
    axes[3].invert_yaxis()
    axes[3].set(title="expectation of", xlim=(0, 17))
    axes[3].legend(loc="lower right")
    figure.savefig(pathlib.Path(__file__).with_name("decompositions.png"), dpi=110)
    for name, values in found.items():
        print(name, {key: round(value, 3) for key, value in values.items()})


if __name__ == "__main__":
    main()
