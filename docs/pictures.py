"""Draws docs/idea.png: the exact sum over a sparse support, a sampled message, and a relaxed message.

python docs/pictures.py
"""

import pathlib
from typing import Any

import matplotlib
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch, Rectangle

from egg_sparse.mappings import sparsemax

BLUE, ORANGE, GREEN, GRAY, LIGHT = "#0072b2", "#d55e00", "#009e73", "#444444", "#c8c8c8"
SYMBOLS = (3, 17, 29, 42, 58, 77, 104, 130, 151, 180, 203, 231)
SCORES = torch.tensor([[-0.4, 0.9, -0.1, 0.4, 0.1, -0.6, 0.2, -0.3, 0.0, -0.5, 0.6, -0.2]])
NOISE = torch.tensor([[0.4, -0.3, 1.0, 0.1, 0.9, 0.6, -0.2, 1.1, 0.2, 0.8, 0.7, 0.3]])
X_SENDER, X_BARS, X_MESSAGE, X_RECEIVER, X_LOSS = 1.5, 3.05, 5.25, 6.85, 8.3
BARS_WIDTH = 1.6
DRAWN = SYMBOLS.index(203)


def box(axis: Any, x: float, y: float, text: str) -> None:
    axis.add_patch(
        FancyBboxPatch((x, y - 0.22), 0.86, 0.44, boxstyle="round,pad=0.04", facecolor="#eef3f7", edgecolor=GRAY)
    )
    axis.text(x + 0.43, y, text, ha="center", va="center", fontsize=12)


def arrow(axis: Any, start: tuple[float, float], end: tuple[float, float], color: str = GRAY) -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "shrinkA": 0, "shrinkB": 0})


def bars(axis: Any, y: float, probabilities: list[float], color: str, caption: str) -> None:
    """A bar for each symbol that is drawn; those of probability 0 are gray stubs."""
    width = BARS_WIDTH / len(probabilities)
    for position, probability in enumerate(probabilities):
        height = max(probability * 1.05, 0.02)
        shape = Rectangle((X_BARS + position * width, y - 0.32), 0.8 * width, height)
        shape.set(facecolor=color if probability > 0 else LIGHT)
        axis.add_patch(shape)
    axis.plot([X_BARS, X_BARS + BARS_WIDTH], [y - 0.32] * 2, color=GRAY, linewidth=0.8)
    axis.text(X_BARS + BARS_WIDTH / 2, y - 0.5, caption, ha="center", va="center", fontsize=11, color=GRAY)


def message(axis: Any, y: float, text: str, color: str) -> None:
    axis.text(
        X_MESSAGE + 0.5,
        y,
        text,
        ha="center",
        va="center",
        fontsize=11.5,
        color="white",
        bbox={"boxstyle": "round,pad=0.28", "facecolor": color, "edgecolor": "none"},
    )


def row(axis: Any, y: float, title: str, remark: str, color: str) -> None:
    axis.text(-0.05, y + 0.16, title, fontsize=14, fontweight="bold", color=color, va="center")
    axis.text(-0.05, y - 0.18, remark, fontsize=11, color=GRAY, va="center")
    box(axis, X_SENDER, y, "sender")
    arrow(axis, (X_SENDER + 0.94, y), (X_BARS - 0.06, y))
    axis.text((X_SENDER + 0.9 + X_BARS) / 2, y + 0.14, "scores", ha="center", va="center", fontsize=11, color=GRAY)
    box(axis, X_RECEIVER, y, "receiver")


def exact(axis: Any, y: float) -> None:
    row(axis, y, "exact sum", "egg_sparse", BLUE)
    distribution = sparsemax(SCORES)
    dense = torch.zeros(len(SYMBOLS)).scatter(0, distribution.messages[:, 0], distribution.probs[:, 0])
    bars(axis, y, dense.tolist(), BLUE, "sparsemax: most are 0")
    terms = [
        (SYMBOLS[int(i)], float(p)) for i, p in zip(distribution.messages[:, 0], distribution.probs[:, 0], strict=True)
    ]
    for height, (symbol, probability) in zip((0.42, 0.0, -0.42), terms, strict=True):
        message(axis, y + height, f"symbol {symbol}", BLUE)
        arrow(axis, (X_BARS + BARS_WIDTH + 0.06, y), (X_MESSAGE - 0.06, y + height), BLUE)
        arrow(axis, (X_MESSAGE + 1.06, y + height), (X_RECEIVER - 0.06, y + height / 3), BLUE)
        arrow(axis, (X_RECEIVER + 0.92, y + height / 3), (X_LOSS - 0.06, y + height), BLUE)
        axis.text(X_LOSS, y + height, f"{probability:.2f} x its loss", fontsize=12, va="center", color=BLUE)
    for height in (0.21, -0.21):
        axis.text(X_LOSS + 0.16, y + height, "+", fontsize=12, va="center", ha="center", color=BLUE)


def sample(axis: Any, y: float) -> None:
    row(axis, y, "sample one", "score function", ORANGE)
    bars(axis, y, SCORES.softmax(1)[0].tolist(), ORANGE, "softmax: none is 0")
    message(axis, y, f"symbol {SYMBOLS[DRAWN]}", ORANGE)
    arrow(axis, (X_BARS + BARS_WIDTH + 0.06, y), (X_MESSAGE - 0.06, y), ORANGE)
    arrow(axis, (X_MESSAGE + 1.06, y), (X_RECEIVER - 0.06, y), ORANGE)
    arrow(axis, (X_RECEIVER + 0.92, y), (X_LOSS - 0.06, y), ORANGE)
    axis.text(X_LOSS, y, "loss of one draw:\na noisy gradient", fontsize=12, va="center", color=ORANGE)


def relax(axis: Any, y: float) -> None:
    row(axis, y, "relax", "Gumbel-Softmax", GREEN)
    mixture = (SCORES + NOISE).softmax(1)[0].tolist()
    bars(axis, y, mixture, GREEN, "softmax of noisy scores")
    width = 1.0 / len(mixture)
    for position, weight in enumerate(mixture):
        shape = Rectangle((X_MESSAGE + position * width, y - 0.14), width, 0.28)
        shape.set(facecolor=GREEN, alpha=min(1.0, 0.1 + 4 * weight))
        axis.add_patch(shape)
    axis.text(X_MESSAGE + 0.5, y - 0.5, "a mixture of all 256", ha="center", va="center", fontsize=11, color=GRAY)
    arrow(axis, (X_BARS + BARS_WIDTH + 0.06, y), (X_MESSAGE - 0.06, y), GREEN)
    arrow(axis, (X_MESSAGE + 1.06, y), (X_RECEIVER - 0.06, y), GREEN)
    arrow(axis, (X_RECEIVER + 0.92, y), (X_LOSS - 0.06, y), GREEN)
    axis.text(X_LOSS, y, "loss of a mixture:\na biased gradient", fontsize=12, va="center", color=GREEN)


def main() -> None:
    figure, axis = plt.subplots(figsize=(10, 5.2))
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.99)
    axis.set(xlim=(-0.1, 9.9), ylim=(-0.75, 4.45))
    axis.axis("off")
    headings = {
        X_BARS + BARS_WIDTH / 2: "a probability for each\nof 256 symbols (12 drawn)",
        X_MESSAGE + 0.5: "messages that\nare played",
        X_LOSS + 0.6: "what is\nminimized",
    }
    for x, text in headings.items():
        axis.text(x, 4.15, text, ha="center", va="center", fontsize=11.5, color=GRAY)
    for line in (2.28, 0.78):
        axis.axhline(line, color=LIGHT, linewidth=0.8)
    exact(axis, 3.1)
    sample(axis, 1.55)
    relax(axis, 0.05)
    figure.savefig(pathlib.Path(__file__).with_name("idea.png"), dpi=160, facecolor="white")


if __name__ == "__main__":
    main()
