"""What a report shows of each experiment: the columns of its table, and its plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from egg_sparse.zoo.experiments import experiment_of

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        name: the name in ``results.json``.
        title: the heading.
        unit: the unit, written behind the heading.
        best: which mean is the best; None for what is a cost or a description.
        digits: digits after the decimal point.
        scale: the factor of the values that are shown, 100 for percent.
        counts: whether a value that is the same whole number in all runs, such as one call, is shown as that.
    """

    name: str
    title: str
    unit: str = ""
    best: Literal["max", "min"] | None = None
    digits: int = 3
    scale: float = 1.0
    counts: bool = False

    @property
    def heading(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title


@dataclass(frozen=True)
class Curve:
    """A metric over the training.

    Args:
        metric: the name in ``metrics.jsonl``.
        label: the label of the vertical axis, with its unit.
        phase: "validation" or "train".
        log: whether the axis is logarithmic.
        chance: a function from a run's options to the value that guessing reaches.
        test: the name in ``results.json`` of what is drawn, as a level line, for runs without the metric.
    """

    metric: str
    label: str
    phase: str = "validation"
    log: bool = False
    chance: Callable[[Options], float] | None = None
    test: str | None = None


@dataclass(frozen=True)
class Experiment:
    """What is shown of an experiment.

    Args:
        name: its folder in ``egg_sparse/zoo``; "" for runs of none of them.
        title: its name.
        columns: the columns of its table.
        curves: what is drawn over epochs; the first is drawn over receiver calls and seconds, too.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    curves: tuple[Curve, ...]


_COSTS = (
    Column("receiver_calls", "receiver calls per example", digits=1, counts=True),
    Column("seconds", "seconds", digits=1),
)


def _chance_of_object(opts: Options) -> float:
    return float(opts["n_values"]) ** -opts["n_attributes"]


EXPERIMENTS = (
    Experiment(
        "signal_game",
        "Signal game",
        (
            Column("acc", "success, greedy", best="max"),
            Column("acc_expected", "success, expected", best="max"),
            Column("support", "support", digits=1, counts=True),
            *_COSTS,
        ),
        (
            Curve("acc", "validation success (share of games)", chance=lambda opts: 1 / opts["game_size"]),
            Curve("support", "support (messages)", log=True, test="support"),
        ),
    ),
    Experiment(
        "semi_supervised_vae",
        "Semi-supervised VAE",
        (
            Column("acc", "test accuracy", "%", best="max", digits=2, scale=100),
            Column("negative_elbo", "negative ELBO", "nats", best="min", digits=2),
            Column("support", "support", counts=True),
            Column("receiver_calls", "receiver calls per example", counts=True),
            Column("seconds", "seconds", digits=1),
        ),
        (
            Curve("acc", "validation accuracy (share of images)", chance=lambda opts: 0.1),
            Curve("negative_elbo", "validation negative ELBO (nats)"),
            Curve("support", "support (classes)", log=True, test="support"),
        ),
    ),
    Experiment(
        "bit_vector_vae",
        "Bit-vector VAE",
        (
            Column("negative_elbo", "negative ELBO", "nats", best="min", digits=1),
            Column("rate", "rate", "nats", digits=1),
            Column("distortion", "distortion", "nats", best="min", digits=1),
            Column("bits_per_dimension", "bits per dimension", best="min"),
            Column("support", "support", digits=1, counts=True),
            *_COSTS,
        ),
        (
            Curve("negative_elbo", "validation negative ELBO (nats)"),
            Curve("bits_per_dimension", "validation bits per dimension"),
            Curve("support", "support (bit-vectors)", log=True),
        ),
    ),
    Experiment(
        "compo_vs_generalization",
        "Compositionality and generalization",
        (
            Column("acc_train", "training objects", best="max"),
            Column("acc_unseen", "held-out objects", best="max"),
            Column("acc_new_values", "new values", best="max"),
            Column("topsim", "topographic similarity, greedy", digits=2),
            Column("posdis", "posdis, greedy", digits=2),
            Column("bosdis", "bosdis, greedy", digits=2),
            Column("length", "length", "symbols", digits=2),
            Column("support", "support", digits=1, counts=True),
            *_COSTS,
        ),
        (
            Curve("acc", "held-out objects (share that are right)", chance=_chance_of_object),
            Curve("acc", "training objects (share that are right while training)", "train", chance=_chance_of_object),
            Curve("support", "support (messages)", log=True),
        ),
    ),
)
"""The experiments of the zoo, in the order of a report."""

OTHER = Experiment("", "Other runs", (), (Curve("loss", "validation loss"),))
"""What is shown of a run that is of no experiment of the zoo: all numbers of its results."""


def of(options: Options) -> Experiment:
    """What is shown of a run with these options."""
    name = experiment_of(options)
    return next((each for each in EXPERIMENTS if each.name == name), OTHER)


def columns_of(experiment: Experiment, results: list[Options], names: list[str] | None = None) -> list[Column]:
    """The columns of a table: those that a result has, or those that are asked for.

    Args:
        experiment: the experiment.
        results: the contents of ``results.json`` of its runs.
        names: the names of the results to show, in this order; None for the experiment's own.

    Raises:
        ValueError: no run has a result of a name.
    """
    numbers = dict.fromkeys(name for each in results for name, value in each.items() if is_number(value))
    if names is None:
        shown = experiment.columns or tuple(Column(name, name) for name in numbers)
        return [column for column in shown if column.name in numbers]
    unknown = [name for name in names if name not in numbers]
    if unknown:
        raise ValueError(f"--metrics: no run has the result {unknown[0]}; there are {', '.join(sorted(numbers))}")
    known = {column.name: column for column in experiment.columns}
    return [known.get(name, Column(name, name)) for name in names]


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a number, finite or not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
