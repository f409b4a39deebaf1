"""The look of all pictures: colors, sizes, and names beside lines in place of legends."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

BLUE, VERMILION, GREEN, PURPLE, AMBER, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, AMBER, SKY)
"""Colors that the color-blind can tell apart.

Source: Okabe and Ito, "Color Universal Design" (2008).
"""

INK, GREY, LIGHT = "#222222", "#6b6b6b", "#c8c8c8"
"""What is written, what is less important (such as chance), and what is only a background."""

COLORS_OF_METHODS = {
    "marg": BLUE,
    "sparsemap": BLUE,
    "sfe": VERMILION,
    "rf": VERMILION,
    "gs": GREEN,
    "nvil": PURPLE,
    "sumsample": AMBER,
    "topksparse": SKY,
}
"""The color of a method in every picture, by ``--mode``."""

STYLES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
"""Styles of lines, for those that share a color."""

FONT_SIZE = 11.0
SMALL = 10.0
RESOLUTION = 150
_SETTINGS: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": FONT_SIZE,
    "axes.labelsize": FONT_SIZE,
    "axes.titlesize": FONT_SIZE + 1,
    "figure.titlesize": FONT_SIZE + 1,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GREY,
    "grid.alpha": 0.22,
    "lines.linewidth": 2.0,
    "savefig.dpi": RESOLUTION,
    "svg.fonttype": "path",
    "svg.hashsalt": "egg_sparse",
    "pdf.fonttype": 42,
}


class Label(NamedTuple):
    """The name of a line.

    Args:
        x: the place of the line's end, in the units of the axes.
        y: its height.
        text: the name, as plain text.
        color: the line's color.
    """

    x: float
    y: float
    text: str
    color: str


@contextmanager
def applied() -> Iterator[None]:
    """Gives this look to what is drawn and saved within, and leaves matplotlib's settings as they were."""
    import matplotlib
    from matplotlib.rcsetup import cycler

    with matplotlib.rc_context({**_SETTINGS, "axes.prop_cycle": cycler(color=PALETTE)}):
        yield


def new_figure(width: float, height: float) -> Any:
    """A figure of this size in inches, without a window; to be used within :func:`applied`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def looks_of(methods: Iterable[str]) -> list[tuple[str, Any]]:
    """A color and a line style for each line, no two alike where that is possible.

    A line has the color of its method, which is the same in every picture. Several lines of one method differ in style,
    and from the fifth on in color.

    Args:
        methods: the method of each line, a value of ``--mode`` or another word.

    Example:
        >>> looks_of(["marg", "marg", "gs"])
        [('#0072b2', '-'), ('#0072b2', (0, (5, 1.5))), ('#009e73', '-')]
    """
    methods = list(methods)
    used = {COLORS_OF_METHODS.get(method) for method in methods}
    free = [color for color in PALETTE if color not in used]
    own: dict[str, str] = {}
    taken: set[tuple[str, Any]] = set()
    looks = []
    for method in methods:
        color = COLORS_OF_METHODS.get(method) or own.get(method)
        if color is None:
            color = own[method] = free.pop(0) if free else INK
        choices = [(each, style) for each in (color, *free, *PALETTE) for style in STYLES]
        look = next((each for each in choices if each not in taken), (color, "-"))
        taken.add(look)
        looks.append(look)
    return looks


def wrapped(label: str) -> str:
    """The label of an axis, with its unit in a second line if it is long."""
    return label.replace(" (", "\n(", 1) if len(label) > 36 else label


def whole_numbers(axis: Any) -> None:
    """Ticks an axis at whole numbers alone, such as epochs."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def counts_on_log_axis(axes: Any) -> None:
    """Makes the vertical axis logarithmic, with ticks such as 2, 4, 8, unless two of these would not be on it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    if high < 4 * max(low, 1e-9):
        return
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_locator(LogLocator(base=2, numticks=10))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw_chance(axes: Any, value: float) -> Label:
    """Draws the value that guessing reaches, and returns its label."""
    axes.axhline(value, color=GREY, linestyle=":", linewidth=1.5)
    return Label(float("inf"), value, f"chance: {value:.4g}", GREY)


def write_beside(axes: Any, labels: Iterable[Label], size: float = SMALL) -> None:
    """Writes names to the right of the axes, at the heights of their lines and as far apart as lines of text are.

    The limits of the axes are fixed by that, so it comes last.

    Args:
        axes: the axes, in a grid of subplots.
        labels: the names; an infinite ``x`` is the right edge.
        size: the size of the type in points.
    """
    axes.set_xlim(axes.get_xlim())
    axes.set_ylim(axes.get_ylim())
    to_axes = axes.transData + axes.transAxes.inverted()
    right = axes.get_xlim()[1]
    ends = []
    for label in labels:
        x, y = to_axes.transform((min(label.x, right), label.y))
        ends.append((float(y), min(float(x), 1.0), label))
    ends.sort(key=lambda end: (end[0], end[2].text))
    line = _line_height(axes, size)
    places = [end[0] for end in ends]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + line)
    top = 1.0
    for i in reversed(range(len(places))):
        places[i] = min(places[i], top)
        top = places[i] - line
    for (height, x, label), place in zip(ends, places, strict=True):
        style: dict[str, Any] = {"transform": axes.transAxes, "color": label.color, "clip_on": False}
        axes.plot([x, 1.0, 1.03], [height, height, place], linewidth=0.8, linestyle=(0, (1, 2)), **style)
        axes.text(1.04, place, label.text, fontsize=size, verticalalignment="center", parse_math=False, **style)


def _line_height(axes: Any, size: float) -> float:
    """The height of a line of text, in heights of the axes."""
    figure, grid = axes.figure, axes.get_subplotspec().get_gridspec()
    inches = figure.get_size_inches()[1] / grid.nrows
    return 1.25 * size / 72 / (0.74 * inches)


def save(figure: Any, path: pathlib.Path) -> None:
    """Saves a figure in the format of the path's suffix, without the time of day."""
    suffix = path.suffix.removeprefix(".")
    metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(suffix)
    figure.savefig(path, format=suffix, metadata=metadata)
