"""Collects the curves of zoo runs in a JSON file, and draws them.

python docs/curves.py collect OUT.json TITLE=RUN,RUN,... TITLE=RUN,...
python docs/curves.py draw OUT.png IN.json

Each RUN is a run folder of the signal game or the bit-vector VAE. Runs of one title are drawn as their mean, with a
band from the lowest to the highest. Every data source has a row of panels.
"""

import argparse
import json
import math
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot as plt

plt.rcParams["font.size"] = 12

TRAINING_IMAGES = {"digits": 1258, "mnist": 55_000, "fashion-mnist": 55_000}
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito


@dataclass(frozen=True)
class Panel:
    """One metric of one phase.

    Args:
        phase: the phase of the records that have the metric.
        metric: the metric's name in metrics.jsonl.
        label: the axis label.
        log: whether the axis is logarithmic.
    """

    phase: str
    metric: str
    label: str
    log: bool = False


@dataclass(frozen=True)
class Experiment:
    """What is drawn of an experiment.

    Args:
        unit: what the horizontal axis counts.
        epoch_length: a function from a run's options to the length of an epoch in that unit.
        panels: the panels of a row.
    """

    unit: str
    epoch_length: Callable[[dict[str, Any]], int]
    panels: tuple[Panel, ...]


EXPERIMENTS = {
    "signal_game": Experiment(
        "epoch",
        lambda opts: 1,
        (
            Panel("validation", "acc", "success (share of games)"),
            Panel("validation", "support", "support (symbols)", log=True),
        ),
    ),
    "bit_vector_vae": Experiment(
        "step",
        lambda opts: math.ceil(TRAINING_IMAGES[opts["data"]] / opts["batch_size"]),
        (
            Panel("train", "support", "support in training (bit-vectors)", log=True),
            Panel("train", "negative_elbo", "negative ELBO in training (nats)"),
        ),
    ),
}


def read(run: str, title: str) -> dict[str, Any]:
    """The options that matter, the curves and the results of one run."""
    folder = pathlib.Path(run)
    opts, results = (json.loads((folder / f"{name}.json").read_text()) for name in ("opts", "results"))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    name = "signal_game" if "game_size" in opts else "bit_vector_vae"
    experiment = EXPERIMENTS[name]
    curves = {}
    for panel in experiment.panels:
        found = [(r["epoch"], r[panel.metric]) for r in records if r["mode"] == panel.phase and panel.metric in r]
        curves[panel.metric] = {
            experiment.unit: [experiment.epoch_length(opts) * epoch for epoch, _ in found],
            "value": [round(value, 5) for _, value in found],
        }
    kept = {key: round(value, 6) if isinstance(value, float) else value for key, value in results.items()}
    about = {
        "experiment": name,
        "title": title,
        "mode": opts["mode"],
        "data": opts["data"],
        "seed": opts["random_seed"],
    }
    symbols = {"vocab_size": opts["vocab_size"], "game_size": opts["game_size"]} if name == "signal_game" else {}
    return {**about, **symbols, "curves": curves, "results": kept}


def collect(out: str, groups: list[str]) -> None:
    titles = dict(group.split("=", 1) for group in groups)
    runs = [read(run, title) for title, folders in titles.items() for run in folders.split(",")]
    lines = ",\n".join(json.dumps(run) for run in runs)
    pathlib.Path(out).write_text(f'{{"torch": "{torch.__version__}", "runs": [\n{lines}\n]}}\n', encoding="utf-8")


def draw(out: str, source: str) -> None:
    runs = json.loads(pathlib.Path(source).read_text(encoding="utf-8"))["runs"]
    experiment = EXPERIMENTS[runs[0]["experiment"]]
    rows = list(dict.fromkeys(run["data"] for run in runs))
    size = {"figsize": (9, 3.6 * len(rows)), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(len(rows), len(experiment.panels), **size)
    for row, data in zip(axes, rows, strict=True):
        for axis, panel in zip(row, experiment.panels, strict=True):
            _draw_panel(axis, panel, experiment.unit, [run for run in runs if run["data"] == data])
            if len(rows) > 1:
                axis.set_title(data)
    figure.savefig(out, dpi=130)
    plt.close(figure)


def _draw_panel(axis: Any, panel: Panel, unit: str, runs: list[dict[str, Any]]) -> None:
    dense: list[str] = []  # methods whose distributions have no zeros
    ends = []
    for color, title in zip(COLORS, dict.fromkeys(run["title"] for run in runs), strict=False):
        curves = [run["curves"][panel.metric] for run in runs if run["title"] == title]
        values = np.array([curve["value"] for curve in curves])
        if not values.size:
            dense.append(title)
            continue
        x = curves[0][unit]
        axis.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)
        axis.plot(x, values.mean(0), color=color, linewidth=2)
        ends.append((values.mean(0)[-1], title, color))
    axis.set(xlabel=unit, ylabel=panel.label)
    if panel.log:
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    at_the_right = {"x": axis.get_xlim()[1], "ha": "right", "color": "0.3"}
    if panel.metric == "acc":
        candidates = runs[0]["game_size"]
        axis.axhline(1 / candidates, color="0.4", linestyle=":")
        axis.text(y=1 / candidates, s=f"chance (1/{candidates}) ", va="bottom", **at_the_right)
        axis.set_ylim(0, 1)
    if panel.metric == "support" and dense:
        symbols = runs[0]["vocab_size"]
        axis.axhline(symbols, color="0.4", linewidth=2)
        axis.text(y=symbols, s=",\n".join(dense) + f":\nall {symbols} symbols ", va="top", **at_the_right)
    axis.autoscale_view()
    _label(axis, sorted(ends))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)


def _label(axis: Any, ends: list[tuple[float, str, str]]) -> None:
    """Names lines at their right ends, from the lowest to the highest, without overlap."""
    to_axes = axis.transData + axis.transAxes.inverted()
    lowest = 0.0
    for value, title, color in ends:
        height = max(to_axes.transform((1, value))[1], lowest)
        axis.text(1.01, height, title, transform=axis.transAxes, va="center", color=color, fontweight="bold")
        lowest = height + 0.065


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("collect", help="write the curves and results of runs to a JSON file")
    command.add_argument("out")
    command.add_argument("groups", nargs="+", metavar="TITLE=RUN,RUN,...")
    command.set_defaults(do=collect)
    command = commands.add_parser("draw", help="draw such a file")
    command.add_argument("out")
    command.add_argument("source")
    command.set_defaults(do=draw)
    options = vars(parser.parse_args())
    options.pop("do")(**options)


if __name__ == "__main__":
    main()
