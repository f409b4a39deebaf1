"""Callbacks of the Trainer: loggers, checkpoints, annealing."""

from __future__ import annotations

import json
import os
import pathlib
import re
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from egg_sparse.standin.interaction import Interaction
from egg_sparse.standin.util import get_summary_writer

if TYPE_CHECKING:
    from egg_sparse.standin.trainers import Trainer


class Callback:
    """Does nothing at each of the Trainer's events; subclasses override what they need."""

    trainer: Trainer

    def on_train_begin(self, trainer_instance: Trainer) -> None:
        self.trainer = trainer_instance

    def on_train_end(self) -> None:
        return

    def on_early_stopping(
        self,
        train_loss: float,
        train_logs: Interaction,
        epoch: int,
        test_loss: float | None = None,
        test_logs: Interaction | None = None,
    ) -> None:
        return

    def on_validation_begin(self, epoch: int) -> None:
        return

    def on_validation_end(self, loss: float, logs: Interaction, epoch: int) -> None:
        return

    def on_epoch_begin(self, epoch: int) -> None:
        return

    def on_epoch_end(self, loss: float, logs: Interaction, epoch: int) -> None:
        return

    def on_batch_end(self, logs: Interaction, loss: float, batch_id: int, is_training: bool = True) -> None:
        return


class ConsoleLogger(Callback):
    """Prints the mean of everything in ``aux`` after each validation, and each epoch if asked to."""

    def __init__(self, print_train_loss: bool = False, as_json: bool = False) -> None:
        self.print_train_loss = print_train_loss
        self.as_json = as_json

    def aggregate_print(self, loss: float, logs: Interaction, mode: str, epoch: int) -> None:
        means: dict[str, Any] = {"loss": loss, **{key: value.mean().item() for key, value in logs.aux.items()}}
        if self.as_json:
            print(json.dumps({**means, "mode": mode, "epoch": epoch}), flush=True)
        else:
            listed = ", ".join(sorted(f"{key}={value}" for key, value in means.items()))
            print(f"{mode}: epoch {epoch}, loss {loss}, {listed}", flush=True)

    def on_validation_end(self, loss: float, logs: Interaction, epoch: int) -> None:
        self.aggregate_print(loss, logs, "test", epoch)

    def on_epoch_end(self, loss: float, logs: Interaction, epoch: int) -> None:
        if self.print_train_loss:
            self.aggregate_print(loss, logs, "train", epoch)


class TensorboardLogger(Callback):
    """Writes the loss and the mean of everything in ``aux``."""

    def __init__(self, writer: Any = None) -> None:
        self.writer = writer if writer else get_summary_writer()

    def _write(self, loss: float, logs: Interaction, mode: str, epoch: int) -> None:
        self.writer.add_scalar(tag=f"{mode}/loss", scalar_value=loss, global_step=epoch)
        for key, value in logs.aux.items():
            self.writer.add_scalar(tag=f"{mode}/{key}", scalar_value=value.mean(), global_step=epoch)

    def on_validation_end(self, loss: float, logs: Interaction, epoch: int) -> None:
        self._write(loss, logs, "test", epoch)

    def on_epoch_end(self, loss: float, logs: Interaction, epoch: int) -> None:
        self._write(loss, logs, "train", epoch)

    def on_train_end(self) -> None:
        self.writer.close()


class TemperatureUpdater(Callback):
    """Multiplies an agent's ``temperature`` by ``decay`` every ``update_frequency`` epochs, down to a minimum."""

    def __init__(self, agent: Any, decay: float = 0.9, minimum: float = 0.1, update_frequency: int = 1) -> None:
        if not hasattr(agent, "temperature"):
            raise AssertionError("Agent must have a `temperature` attribute")
        if isinstance(agent.temperature, torch.nn.Parameter):
            raise AssertionError("When using TemperatureUpdater, `temperature` cannot be trainable")
        self.agent = agent
        self.decay = decay
        self.minimum = minimum
        self.update_frequency = update_frequency

    def on_epoch_end(self, loss: float, logs: Interaction, epoch: int) -> None:
        if epoch % self.update_frequency == 0:
            self.agent.temperature = max(self.minimum, self.agent.temperature * self.decay)


class Checkpoint(NamedTuple):
    epoch: int
    model_state_dict: dict[str, Any]
    optimizer_state_dict: dict[str, Any]
    optimizer_scheduler_state_dict: dict[str, Any] | None


class CheckpointSaver(Callback):
    """Saves game and optimizer as ``{epoch}.tar`` every ``checkpoint_freq`` epochs, and as ``final.tar``."""

    def __init__(
        self,
        checkpoint_path: str | pathlib.Path,
        checkpoint_freq: int = 1,
        prefix: str = "",
        max_checkpoints: int = sys.maxsize,
    ) -> None:
        self.checkpoint_path = pathlib.Path(checkpoint_path)
        self.checkpoint_freq = checkpoint_freq
        self.prefix = prefix
        self.max_checkpoints = max_checkpoints
        self.epoch_counter = 0

    def on_epoch_end(self, loss: float, logs: Interaction, epoch: int) -> None:
        self.epoch_counter = epoch
        if self.checkpoint_freq > 0 and epoch % self.checkpoint_freq == 0:
            self.save_checkpoint(filename=f"{self.prefix}_{epoch}" if self.prefix else str(epoch))

    def on_train_end(self) -> None:
        self.save_checkpoint(filename=f"{self.prefix}_final" if self.prefix else "final")

    def save_checkpoint(self, filename: str) -> None:
        """Writes the checkpoint beside its final name first, so that no half-written one is ever seen."""
        self.checkpoint_path.mkdir(exist_ok=True, parents=True)
        if len(self.get_checkpoint_files()) > self.max_checkpoints:
            self.remove_oldest_checkpoint()
        unfinished = self.checkpoint_path / f".{filename}.unfinished"
        try:
            torch.save(self.get_checkpoint(), unfinished)
            os.replace(unfinished, self.checkpoint_path / f"{filename}.tar")
        finally:
            unfinished.unlink(missing_ok=True)

    def get_checkpoint(self) -> Checkpoint:
        trainer = self.trainer
        game: Any = trainer.game.module if trainer.distributed_context.is_distributed else trainer.game
        scheduler = trainer.optimizer_scheduler
        return Checkpoint(
            epoch=self.epoch_counter,
            model_state_dict=game.state_dict(),
            optimizer_state_dict=trainer.optimizer.state_dict(),
            optimizer_scheduler_state_dict=scheduler.state_dict() if scheduler else None,
        )

    def get_checkpoint_files(self) -> list[str]:
        return [name for name in os.listdir(self.checkpoint_path) if ".tar" in name]

    @staticmethod
    def natural_sort(to_sort: list[str]) -> list[str]:
        """Sorts names by the numbers in them: file2 before file10."""

        def parts(name: str) -> list[tuple[bool, int, str]]:
            return [
                (not part.isdigit(), int(part) if part.isdigit() else 0, part.lower())
                for part in re.split("([0-9]+)", name)
                if part
            ]

        return sorted(to_sort, key=parts)

    def remove_oldest_checkpoint(self) -> None:
        (self.checkpoint_path / self.natural_sort(self.get_checkpoint_files())[0]).unlink()


class InteractionSaver(Callback):
    """Saves the interactions of given epochs under ``{checkpoint_dir}/interactions``."""

    def __init__(
        self,
        train_epochs: list[int] | None = None,
        test_epochs: list[int] | None = None,
        checkpoint_dir: str = "",
        aggregated_interaction: bool = True,
    ) -> None:
        self.train_epochs = train_epochs if isinstance(train_epochs, list) else []
        self.test_epochs = test_epochs if isinstance(test_epochs, list) else []
        if any(epoch <= 0 for epoch in self.train_epochs + self.test_epochs):
            raise AssertionError("train_epochs and test_epochs count from 1")
        self.checkpoint_dir = (pathlib.Path(checkpoint_dir) if checkpoint_dir else pathlib.Path()) / "interactions"
        self.aggregated_interaction = aggregated_interaction

    @staticmethod
    def dump_interactions(
        logs: Interaction, mode: str, epoch: int, rank: int, dump_dir: str | pathlib.Path = "./interactions"
    ) -> None:
        folder = pathlib.Path(dump_dir) / mode / f"epoch_{epoch}"
        folder.mkdir(exist_ok=True, parents=True)
        torch.save(logs, folder / f"interaction_gpu{rank}")

    def _dump(self, logs: Interaction, mode: str, epoch: int) -> None:
        context = self.trainer.distributed_context
        if context.is_leader or not self.aggregated_interaction:
            self.dump_interactions(logs, mode, epoch, context.rank, self.checkpoint_dir)

    def on_validation_end(self, loss: float, logs: Interaction, epoch: int) -> None:
        if epoch in self.test_epochs:
            self._dump(logs, "validation", epoch)

    def on_epoch_end(self, loss: float, logs: Interaction, epoch: int) -> None:
        if epoch in self.train_epochs:
            self._dump(logs, "train", epoch)


class ProgressBarLogger(Callback):
    """A rich progress bar per epoch, beside a table of the metrics of all epochs so far."""

    def __init__(
        self, n_epochs: int, train_data_len: int = 0, test_data_len: int = 0, use_info_table: bool = True
    ) -> None:
        from rich.console import Group
        from rich.live import Live
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.table import Table

        self.n_epochs = n_epochs
        self.train_data_len = train_data_len
        self.test_data_len = test_data_len
        self.use_info_table = use_info_table
        self.info_table = Table("Phase")
        self.progress = Progress(
            TextColumn("[bold]Epoch {task.fields[epoch]}/{task.fields[n_epochs]} | [blue]{task.fields[mode]}"),
            BarColumn(),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        fields: dict[str, Any] = {"start": False, "visible": False, "epoch": 0, "n_epochs": n_epochs}
        self.train_p = self.progress.add_task("", total=train_data_len or None, mode="Train", **fields)
        self.test_p = self.progress.add_task("", total=test_data_len or None, mode="Test", **fields)
        self.live = Live(Group(self.info_table, self.progress) if use_info_table else self.progress)
        self.live.start()

    def _begin(self, task: Any, total: int, epoch: int) -> None:
        self.progress.reset(task, total=total or None, visible=True, epoch=epoch)

    def _end(self, task: Any, loss: float, logs: Interaction, epoch: int, phase: str) -> int:
        self.progress.stop_task(task)
        self.progress.update(task, visible=False)
        if self.use_info_table:
            means = {"epoch": str(epoch), "loss": f"{loss:.3f}"}
            means.update((key, f"{float(value.float().mean()):.3f}") for key, value in logs.aux.items())
            known = [str(column.header) for column in self.info_table.columns[1:]]
            for name in means:
                if name not in known:
                    self.info_table.add_column(name)
                    known.append(name)
            self.info_table.add_row(phase, *(means.get(name, "") for name in known))
        return int(self.progress.tasks[task].completed)

    def on_epoch_begin(self, epoch: int) -> None:
        self._begin(self.train_p, self.train_data_len, epoch)

    def on_epoch_end(self, loss: float, logs: Interaction, epoch: int) -> None:
        self.train_data_len = self._end(self.train_p, loss, logs, epoch, "train") or self.train_data_len

    def on_validation_begin(self, epoch: int) -> None:
        self._begin(self.test_p, self.test_data_len, epoch)

    def on_validation_end(self, loss: float, logs: Interaction, epoch: int) -> None:
        self.test_data_len = self._end(self.test_p, loss, logs, epoch, "test") or self.test_data_len

    def on_batch_end(self, logs: Interaction, loss: float, batch_id: int, is_training: bool = True) -> None:
        self.progress.update(self.train_p if is_training else self.test_p, advance=1)

    def on_train_end(self) -> None:
        self.live.stop()
