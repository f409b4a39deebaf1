"""Draws support and negative ELBO over training steps, of runs of the bit-vector VAE.

python docs/curves.py OUT.png TITLE=RUN,RUN,... TITLE=RUN,...

Runs of one title are drawn as their mean. A row of panels is drawn for every data source.
"""

import json
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt

PANELS = {"support": "support in training (bit-vectors)", "negative_elbo": "negative ELBO in training (nats)"}
TRAINING_IMAGES = {"digits": 1258, "mnist": 55_000, "fashion-mnist": 55_000}


def read(run: str) -> tuple[str, np.ndarray, dict[str, np.ndarray]]:
    """The data of a run, training steps, and the metrics at them."""
    folder = pathlib.Path(run)
    opts = json.loads((folder / "opts.json").read_text())
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    records = [record for record in records if record["mode"] == "train"]
    steps = -(-TRAINING_IMAGES[opts["data"]] // opts["batch_size"])
    values = {name: np.array([record.get(name, np.nan) for record in records]) for name in PANELS}
    return opts["data"], steps * np.array([record["epoch"] for record in records]), values


def main(out: str, *groups: str) -> None:
    found = {}
    for group in groups:
        title, runs = group.split("=", 1)
        for run in runs.split(","):
            data, steps, values = read(run)
            found.setdefault(data, {}).setdefault(title, []).append((steps, values))
    figure, axes = plt.subplots(len(found), 2, figsize=(10, 3.4 * len(found)), layout="constrained", squeeze=False)
    for row, (data, titles) in zip(axes, found.items(), strict=True):
        for axis, (name, label) in zip(row, PANELS.items(), strict=True):
            for title, runs in titles.items():
                mean = np.mean([values[name] for _, values in runs], 0)
                if not np.isnan(mean).all():
                    axis.plot(runs[0][0], mean, label=title, marker="." if len(mean) < 20 else None)
            axis.set(title=data, xlabel="steps", ylabel=label)
            if name == "support":
                axis.set_yscale("log")
            axis.grid(alpha=0.3)
        row[1].legend(fontsize="small")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
