"""The checkpoint of the best epoch."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any, Literal

import torch

from egg_sparse import host
from egg_sparse.callbacks.metrics import mean_metrics
from egg_sparse.files import whole_file

LOWER_IS_BETTER = (
    "bits_per_dimension",
    "conditional_elbo_loss",
    "distortion",
    "length",
    "loss",
    "negative_elbo",
    "nll",
    "rate",
    "task_loss",
)
"""Metrics of which the lowest value is the best."""


def direction_of(metric: str) -> Literal["min", "max"]:
    """Whether the lowest or the highest value of a metric is the best: losses fall, what begins with "acc" rises.

    Raises:
        ValueError: the metric is none of these.
    """
    if metric in LOWER_IS_BETTER:
        return "min"
    if metric.startswith("acc"):
        return "max"
    raise ValueError(f'mode must be "min" or "max" for the metric {metric!r}, of which the direction is not known')


def write(checkpoint: Any, path: pathlib.Path) -> None:
    """Writes a checkpoint so that at any moment there is the whole old one or the whole new one.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    path.parent.mkdir(exist_ok=True, parents=True)
    try:
        with whole_file(path) as unfinished, unfinished.open("wb") as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:
        # how torch.save says that it could not write
        if "inline_container" not in str(error) and "write" not in str(error):
            raise
        raise OSError(f"cannot write a checkpoint to {path.parent}: is the disk full?") from error


class BestCheckpoint(host.core.Callback):
    """Keeps the checkpoint of the epoch with the best validation metric, in the format of EGG's CheckpointSaver.

    The file appears whole or not at all. Beside it, ``NAME.json`` says which metric, value and epoch it is of, so that
    a training that goes on from a checkpoint knows the best so far. Of equal values the first one stays, and NaN is
    never the best. Only the leading process writes. It does not take the place of EGG's CheckpointSaver.

    Args:
        path: the file of the checkpoint, such as "checkpoints/best.tar".
        metric: the name of the metric, "loss" or one in the Interaction's ``aux``, or one that a callback before this
            one adds.
        mode: whether the lowest or the highest value is the best; None for that of :func:`direction_of`.

    Raises:
        ValueError: ``mode`` is needed; at the beginning of the training, if there is no validation; at the end of the
            first validation, if there is no such metric.

    Example:
        >>> BestCheckpoint("checkpoints/best.tar", "acc").mode
        'max'
    """

    def __init__(self, path: str | pathlib.Path, metric: str, mode: Literal["min", "max"] | None = None) -> None:
        if mode not in (None, "min", "max"):
            raise ValueError(f'mode must be "min", "max" or None, got {mode!r}')
        self.path = pathlib.Path(path)
        self.metric = metric
        self.mode = direction_of(metric) if mode is None else mode
        self.best: float | None = None
        self._saver = host.core.CheckpointSaver(self.path.parent)

    @property
    def _record(self) -> pathlib.Path:
        return self.path.with_suffix(".json")

    def on_train_begin(self, trainer_instance: host.core.Trainer) -> None:
        super().on_train_begin(trainer_instance)
        if trainer_instance.validation_data is None or trainer_instance.validation_freq <= 0:
            raise ValueError("the best checkpoint is that of the best validation, but the training has none")
        self._saver.trainer = trainer_instance
        self.best = self._best_before() if trainer_instance.start_epoch else None

    def _best_before(self) -> float | None:
        """The best value of the training that goes on; None if that kept none, or one of another metric."""
        if not (self.path.is_file() and self._record.is_file()):
            return None
        try:
            found = json.loads(self._record.read_text(encoding="utf-8"))
            metric, mode, value = found["metric"], found["mode"], float(found["value"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(
                f"{self._record} must say the metric, mode and value of {self.path.name}: {error}"
            ) from error
        return value if (metric, mode) == (self.metric, self.mode) else None

    def on_validation_end(self, loss: float, logs: host.core.Interaction, epoch: int) -> None:
        metrics = mean_metrics(loss, logs)
        if self.metric not in metrics:
            raise ValueError(f"metric must be one of {', '.join(metrics)}, got {self.metric!r}")
        value = metrics[self.metric]
        sign = 1 if self.mode == "max" else -1
        if math.isnan(value) or (self.best is not None and sign * value <= sign * self.best):
            return
        self.best = value
        if not self.trainer.distributed_context.is_leader:
            return
        self._saver.epoch_counter = epoch
        write(self._saver.get_checkpoint(), self.path)
        record = {"metric": self.metric, "mode": self.mode, "value": value, "epoch": epoch}
        with whole_file(self._record) as unfinished:
            unfinished.write_text(json.dumps(record) + "\n", encoding="utf-8")
