"""The metrics of epochs: means, and a file of them."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from egg_sparse import host


def mean_metrics(loss: float, logs: host.core.Interaction) -> dict[str, float]:
    """The loss, and the mean of every metric in an Interaction's ``aux``."""
    return {"loss": loss, **{name: float(value.float().mean()) for name, value in logs.aux.items()}}


class MetricsWriter(host.core.Callback):
    """Keeps the mean metrics of each epoch and phase ("train", "validation") in ``history``, and writes them to a file.

    Only the leading process writes.

    Args:
        path: the file, to which a line with a JSON object is appended per epoch and phase; None to write none.
    """

    def __init__(self, path: str | pathlib.Path | None = None) -> None:
        self.path = None if path is None else pathlib.Path(path)
        self.history: list[dict[str, Any]] = []

    def _write(self, mode: str, loss: float, logs: host.core.Interaction, epoch: int) -> None:
        metrics = {**mean_metrics(loss, logs), "mode": mode, "epoch": epoch}
        self.history.append(metrics)
        if self.path is not None and self.trainer.distributed_context.is_leader:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")

    def on_epoch_end(self, loss: float, logs: host.core.Interaction, epoch: int) -> None:
        self._write("train", loss, logs, epoch)

    def on_validation_end(self, loss: float, logs: host.core.Interaction, epoch: int) -> None:
        self._write("validation", loss, logs, epoch)
