"""Draws docs/idea.png: the exact sum over a sparse support, a sampled message, and a relaxed message.

python docs/pictures.py
"""

import pathlib
from typing import Any

import torch
from matplotlib.patches import FancyBboxPatch, Rectangle

from egg_sparse.mappings import sparsemax
from egg_sparse.zoo import look
from egg_sparse.zoo.look import GREY, LIGHT

EXACT, SAMPLED, RELAXED = (look.COLORS_OF_METHODS[mode] for mode in ("marg", "sfe", "gs"))
SYMBOLS = (3, 17, 29, 42, 58, 77, 104, 130, 151, 180, 203, 231)
SCORES = torch.tensor([[-0.4, 0.9, -0.1, 0.4, 0.1, -0.6, 0.2, -0.3, 0.0, -0.5, 0.6, -0.2]])
NOISE = torch.tensor([[0.4, -0.3, 1.0, 0.1, 0.9, 0.6, -0.2, 1.1, 0.2, 0.8, 0.7, 0.3]])
X_SENDER, X_BARS, X_MESSAGE, X_RECEIVER, X_LOSS = 1.5, 3.05, 5.25, 6.85, 8.3
BARS_WIDTH = 1.6
DRAWN = SYMBOLS.index(203)


def box(axis: Any, x: float, y: float, text: str) -> None:
    axis.add_patch(
        FancyBboxPatch((x, y - 0.22), 0.86, 0.44, boxstyle="round,pad=0.04", facecolor="#eef3f7", edgecolor=GREY)
    )
    axis.text(x + 0.43, y, text, ha="center", va="center", fontsize=12)


def arrow(axis: Any, start: tuple[float, float], end: tuple[float, float], color: str = GREY) -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "shrinkA": 0, "shrinkB": 0})


def bars(axis: Any, y: float, probabilities: list[float], color: str, caption: str) -> None:
    """A bar for each symbol that is drawn; those of probability 0 are gray stubs."""
    width = BARS_WIDTH / len(probabilities)
    for position, probability in enumerate(probabilities):
        height = max(probability * 1.05, 0.02)
        shape = Rectangle((X_BARS + position * width, y - 0.32), 0.8 * width, height)
        shape.set(facecolor=color if probability > 0 else LIGHT)
        axis.add_patch(shape)
    axis.plot([X_BARS, X_BARS + BARS_WIDTH], [y - 0.32] * 2, color=GREY, linewidth=0.8)
    axis.text(X_BARS + BARS_WIDTH / 2, y - 0.5, caption, ha="center", va="center", fontsize=11, color=GREY)


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
    axis.text(-0.05, y - 0.18, remark, fontsize=11, color=GREY, va="center")
    box(axis, X_SENDER, y, "sender")
    arrow(axis, (X_SENDER + 0.94, y), (X_BARS - 0.06, y))
    axis.text((X_SENDER + 0.9 + X_BARS) / 2, y + 0.14, "scores", ha="center", va="center", fontsize=11, color=GREY)
    box(axis, X_RECEIVER, y, "receiver")


def exact(axis: Any, y: float) -> None:
    row(axis, y, "exact sum", "egg_sparse", EXACT)
    distribution = sparsemax(SCORES)
    dense = torch.zeros(len(SYMBOLS)).scatter(0, distribution.messages[:, 0], distribution.probs[:, 0])
    bars(axis, y, dense.tolist(), EXACT, "sparsemax: most are 0")
    terms = [
        (SYMBOLS[int(i)], float(p)) for i, p in zip(distribution.messages[:, 0], distribution.probs[:, 0], strict=True)
    ]
    for height, (symbol, probability) in zip((0.42, 0.0, -0.42), terms, strict=True):
        message(axis, y + height, f"symbol {symbol}", EXACT)
        arrow(axis, (X_BARS + BARS_WIDTH + 0.06, y), (X_MESSAGE - 0.06, y + height), EXACT)
        arrow(axis, (X_MESSAGE + 1.06, y + height), (X_RECEIVER - 0.06, y + height / 3), EXACT)
        arrow(axis, (X_RECEIVER + 0.92, y + height / 3), (X_LOSS - 0.06, y + height), EXACT)
        axis.text(X_LOSS, y + height, f"{probability:.2f} x its loss", fontsize=12, va="center", color=EXACT)
    for height in (0.21, -0.21):
        axis.text(X_LOSS + 0.16, y + height, "+", fontsize=12, va="center", ha="center", color=EXACT)


def sample(axis: Any, y: float) -> None:
    row(axis, y, "sample one", "score function", SAMPLED)
    bars(axis, y, SCORES.softmax(1)[0].tolist(), SAMPLED, "softmax: none is 0")
    message(axis, y, f"symbol {SYMBOLS[DRAWN]}", SAMPLED)
    arrow(axis, (X_BARS + BARS_WIDTH + 0.06, y), (X_MESSAGE - 0.06, y), SAMPLED)
    arrow(axis, (X_MESSAGE + 1.06, y), (X_RECEIVER - 0.06, y), SAMPLED)
    arrow(axis, (X_RECEIVER + 0.92, y), (X_LOSS - 0.06, y), SAMPLED)
    axis.text(X_LOSS, y, "loss of one draw:\na noisy gradient", fontsize=12, va="center", color=SAMPLED)


def relax(axis: Any, y: float) -> None:
    row(axis, y, "relax", "Gumbel-Softmax", RELAXED)
    mixture = (SCORES + NOISE).softmax(1)[0].tolist()
    bars(axis, y, mixture, RELAXED, "softmax of noisy scores")
    width = 1.0 / len(mixture)
    for position, weight in enumerate(mixture):
        shape = Rectangle((X_MESSAGE + position * width, y - 0.14), width, 0.28)
        shape.set(facecolor=RELAXED, alpha=min(1.0, 0.1 + 4 * weight))
        axis.add_patch(shape)
    axis.text(X_MESSAGE + 0.5, y - 0.5, "a mixture of all 256", ha="center", va="center", fontsize=11, color=GREY)
    arrow(axis, (X_BARS + BARS_WIDTH + 0.06, y), (X_MESSAGE - 0.06, y), RELAXED)
    arrow(axis, (X_MESSAGE + 1.06, y), (X_RECEIVER - 0.06, y), RELAXED)
    arrow(axis, (X_RECEIVER + 0.92, y), (X_LOSS - 0.06, y), RELAXED)
    axis.text(X_LOSS, y, "loss of a mixture:\na biased gradient", fontsize=12, va="center", color=RELAXED)


def draw(axis: Any) -> None:
    axis.set(xlim=(-0.1, 9.9), ylim=(-0.75, 4.45))
    axis.axis("off")
    headings = {
        X_BARS + BARS_WIDTH / 2: "a probability for each\nof 256 symbols (12 drawn)",
        X_MESSAGE + 0.5: "messages that\nare played",
        X_LOSS + 0.6: "what is\nminimized",
    }
    for x, text in headings.items():
        axis.text(x, 4.15, text, ha="center", va="center", fontsize=11.5, color=GREY)
    for line in (2.28, 0.78):
        axis.axhline(line, color=LIGHT, linewidth=0.8)
    exact(axis, 3.1)
    sample(axis, 1.55)
    relax(axis, 0.05)


def main() -> None:
    with look.applied():
        figure = look.new_figure(10, 5.2)
        figure.set_layout_engine("none")
        draw(figure.add_axes((0.01, 0.01, 0.98, 0.98)))
        look.save(figure, pathlib.Path(__file__).with_name("idea.png"))


if __name__ == "__main__":
    main()
