"""The metrics of epochs: their means, what senders add to them, and where they are written."""

from __future__ import annotations

import abc
import json
import pathlib
from typing import Any

import torch

from egg_sparse import host


def mean_metrics(loss: float, logs: host.core.Interaction) -> dict[str, float]:
    """The loss, and the mean of every metric in an Interaction's ``aux``."""
    means = {
        name: float((value if value.is_floating_point() else value.float()).mean()) for name, value in logs.aux.items()
    }
    return {"loss": loss, **means}


class _MetricsLogger(host.core.Callback, abc.ABC):
    """The base of callbacks that write the mean metrics of each epoch and phase, "train" or "validation"."""

    @abc.abstractmethod
    def _log(self, metrics: dict[str, float], mode: str, epoch: int) -> None:
        """Writes the metrics; called in the leading process alone."""

    def _open(self, trainer: host.core.Trainer) -> None:
        """Begins the writing; called in the leading process alone."""

    def on_train_begin(self, trainer_instance: host.core.Trainer) -> None:
        super().on_train_begin(trainer_instance)
        if trainer_instance.distributed_context.is_leader:
            self._open(trainer_instance)

    def _write(self, mode: str, loss: float, logs: host.core.Interaction, epoch: int) -> None:
        if self.trainer.distributed_context.is_leader:
            self._log(mean_metrics(loss, logs), mode, epoch)

    def on_epoch_end(self, loss: float, logs: host.core.Interaction, epoch: int) -> None:
        self._write("train", loss, logs, epoch)

    def on_validation_end(self, loss: float, logs: host.core.Interaction, epoch: int) -> None:
        self._write("validation", loss, logs, epoch)

    def on_train_end(self) -> None:
        self.close()

    def close(self) -> None:
        """Ends the writing, at the end of the training or after an exception."""


class MetricsWriter(_MetricsLogger):
    """Keeps the mean metrics of each epoch and phase ("train", "validation") in ``history``, and writes them to a file.

    Only the leading process writes.

    Args:
        path: the file, to which a line with a JSON object is appended per epoch and phase; None to write none.
    """

    def __init__(self, path: str | pathlib.Path | None = None) -> None:
        self.path = None if path is None else pathlib.Path(path)
        self.history: list[dict[str, Any]] = []

    def _write(self, mode: str, loss: float, logs: host.core.Interaction, epoch: int) -> None:
        self.history.append({**mean_metrics(loss, logs), "mode": mode, "epoch": epoch})
        super()._write(mode, loss, logs, epoch)

    def _log(self, metrics: dict[str, float], mode: str, epoch: int) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**metrics, "mode": mode, "epoch": epoch}) + "\n")


class TensorboardMetrics(_MetricsLogger):
    """Writes the mean metrics of each epoch for TensorBoard, as ``train/NAME`` and ``validation/NAME``.

    EGG's TensorboardLogger writes the same numbers with ``test`` for ``validation``, and needs ``--tensorboard``. Only
    the leading process makes a file.

    Args:
        folder: the folder of the event files.

    Raises:
        ImportError: at the beginning of the training, if tensorboard is not installed.
    """

    def __init__(self, folder: str | pathlib.Path) -> None:
        self.folder = pathlib.Path(folder)
        self._writer: Any = None

    def _open(self, trainer: host.core.Trainer) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(f"TensorboardMetrics needs tensorboard: pip install tensorboard ({error})") from error
        # the epochs that an interrupted run reported, but did not save, are run and reported again
        epoch = trainer.start_epoch
        self._writer = SummaryWriter(str(self.folder), purge_step=epoch + 1 if epoch else None)

    def _log(self, metrics: dict[str, float], mode: str, epoch: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"{mode}/{name}", value, epoch)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandbMetrics(_MetricsLogger):
    """Logs the mean metrics of each epoch to Weights & Biases, as ``train/NAME`` and ``validation/NAME``.

    The step is the epoch. EGG's WandbLogger logs losses, gradients and weights, and nothing of what is in ``aux``. Only
    the leading process has a run. ``WANDB_MODE=offline``, or ``mode="offline"``, writes to a file alone.

    Args:
        options: the arguments of ``wandb.init``: ``project``, ``dir``, ``config``, ``id``, ...

    Raises:
        ImportError: at the beginning of the training, if wandb is not installed.
        OSError: at the beginning of the training, if wandb cannot start a run.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self._run: Any = None

    def _open(self, trainer: host.core.Trainer) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError(f"WandbMetrics needs wandb: pip install wandb ({error})") from error
        options = dict(self.options)
        if options.get("dir"):
            # wandb's own process, which an earlier run may have started in another folder, writes the file
            options["dir"] = str(pathlib.Path(options["dir"]).absolute())
        try:
            self._run = wandb.init(**options)
        except wandb.Error as error:
            raise OSError(
                f"wandb cannot start a run; WANDB_MODE=offline needs no account and no network: {error}"
            ) from error

    def _log(self, metrics: dict[str, float], mode: str, epoch: int) -> None:
        named = {f"{mode}/{name}": value for name, value in metrics.items()}
        self._run.log({**named, "epoch": epoch}, step=epoch)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None


class SenderState(host.core.Callback):
    """Adds the sender's temperature and the learning rate to the metrics, for the callbacks behind it in the list.

    ``temperature`` is that at the end of the epoch, with which the validation is played. ``support_pressure`` is the
    weight by which support control holds the support up (:mod:`egg_sparse.support`). ``learning_rate`` is that of the
    epoch, of the optimizer's first group of parameters. What a sender lacks is left out.

    Args:
        sender: the sender.
        prefix: the beginning of these names, which tells the senders of a population apart.

    Example:
        >>> import torch
        >>> from egg_sparse import SparsemaxWrapper
        >>> logs = host.core.Interaction.empty()
        >>> SenderState(SparsemaxWrapper(torch.nn.Linear(2, 3), temperature=2.5)).on_validation_end(0.0, logs, 1)
        >>> logs.aux
        {'temperature': tensor([2.5000], dtype=torch.float64)}
    """

    def __init__(self, sender: Any, prefix: str = "") -> None:
        self.sender = sender
        self.prefix = prefix
        self._learning_rate: float | None = None

    def on_epoch_begin(self, epoch: int) -> None:
        self._learning_rate = float(self.trainer.optimizer.param_groups[0]["lr"])

    def _add(self, logs: host.core.Interaction) -> None:
        control = getattr(self.sender, "control", None)
        state = {
            "temperature": getattr(self.sender, "temperature", None),
            "support_pressure": getattr(control, "pressure", None),
            "learning_rate": self._learning_rate,
        }
        for name, value in state.items():
            if value is not None:
                logs.aux[self.prefix + name] = torch.as_tensor(value, dtype=torch.float64).detach().cpu().reshape(-1)

    def on_epoch_end(self, loss: float, logs: host.core.Interaction, epoch: int) -> None:
        self._add(logs)

    def on_validation_end(self, loss: float, logs: host.core.Interaction, epoch: int) -> None:
        self._add(logs)
