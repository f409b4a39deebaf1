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

import numpy as np
import torch

from egg_sparse.report import runs
from egg_sparse.zoo import look

TRAINING_IMAGES = {"digits": 1258, "mnist": 55_000, "fashion-mnist": 55_000}


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


def read(folder: str, title: str) -> dict[str, Any]:
    """The options that matter, the curves and the results of one run.

    Raises:
        ValueError: the run is damaged or has not ended.
    """
    run = runs.read(folder)
    if run.fault:
        raise ValueError(f"{folder}: {run.fault}")
    opts, results, records, name = run.options, run.results, run.metrics, run.experiment.name
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
    found = [read(folder, title) for title, folders in titles.items() for folder in folders.split(",")]
    lines = ",\n".join(json.dumps(run) for run in found)
    pathlib.Path(out).write_text(f'{{"torch": "{torch.__version__}", "runs": [\n{lines}\n]}}\n', encoding="utf-8")


def draw(out: str, source: str) -> None:
    found = json.loads(pathlib.Path(source).read_text(encoding="utf-8"))["runs"]
    experiment = EXPERIMENTS[found[0]["experiment"]]
    rows = list(dict.fromkeys(run["data"] for run in found))
    with look.applied():
        figure = look.new_figure(9.6, 3.4 * len(rows))
        axes = figure.subplots(len(rows), len(experiment.panels), squeeze=False)
        for row, data in zip(axes, rows, strict=True):
            for axis, panel in zip(row, experiment.panels, strict=True):
                _draw_panel(axis, panel, experiment.unit, [run for run in found if run["data"] == data])
                if len(rows) > 1:
                    axis.set_title(data)
        look.save(figure, pathlib.Path(out))


def _draw_panel(axes: Any, panel: Panel, unit: str, found: list[dict[str, Any]]) -> None:
    modes = {run["title"]: run["mode"] for run in found}
    labels = []
    for (title, mode), (color, style) in zip(modes.items(), look.looks_of(modes.values()), strict=True):
        curves = [run["curves"][panel.metric] for run in found if (run["title"], run["mode"]) == (title, mode)]
        values = np.array([curve["value"] for curve in curves])
        if values.size:
            x = curves[0][unit]
            axes.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)
            axes.plot(x, values.mean(0), color=color, linestyle=style)
            labels.append(look.Label(x[-1], values.mean(0)[-1], title, color))
        elif panel.metric == "support":  # of a distribution that has no zeros
            axes.axhline(found[0]["vocab_size"], color=color, linestyle=(0, (1, 3)), linewidth=1.5)
            labels.append(look.Label(math.inf, found[0]["vocab_size"], f"{title}: all", color))
    axes.set(xlabel=unit, ylabel=panel.label)
    if panel.log:
        look.counts_on_log_axis(axes)
    if panel.metric == "acc":
        axes.set_ylim(0, 1)
        labels.append(look.draw_chance(axes, 1 / found[0]["game_size"]))
    axes.grid(True)
    look.write_beside(axes, labels)


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
