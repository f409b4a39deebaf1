"""A progress bar of the training."""

from __future__ import annotations

from egg_sparse import host
from egg_sparse.callbacks.metrics import mean_metrics


class TrainingProgress(host.core.Callback):
    """A progress bar of the whole training, with the last metrics of the validation, or of the training without one.

    Args:
        n_epochs: the last epoch of the training.
        batches_per_epoch: the number of training batches per epoch.
        metrics: the names of the metrics to show, of which those that are not reported are left out.
    """

    def __init__(
        self,
        n_epochs: int,
        batches_per_epoch: int,
        metrics: tuple[str, ...] = ("acc", "loss", "support", "sender_entropy"),
    ) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        self.metrics = metrics
        self.batches_per_epoch = batches_per_epoch
        whole = Column(no_wrap=True)
        self.progress = Progress(
            TextColumn(f"epoch [bold]{{task.fields[epoch]}}[/bold]/{n_epochs}", table_column=whole),
            BarColumn(
                bar_width=None, complete_style="cyan", finished_style="green", table_column=Column(ratio=1, min_width=8)
            ),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True, table_column=whole),
            TextColumn("{task.fields[shown]}", table_column=Column(ratio=5, no_wrap=True, overflow="ellipsis")),
            expand=True,
        )
        self.task = self.progress.add_task("", total=n_epochs * batches_per_epoch, epoch="0", shown="")

    def _show(self, phase: str, loss: float, logs: host.core.Interaction) -> None:
        means = mean_metrics(loss, logs)
        shown = "  ".join(f"{name} [bold]{means[name]:.3f}[/bold]" for name in self.metrics if name in means)
        self.progress.update(self.task, shown=f"[dim]{phase}[/dim]  {shown}")

    def on_train_begin(self, trainer_instance: host.core.Trainer) -> None:
        super().on_train_begin(trainer_instance)
        self.progress.update(self.task, completed=trainer_instance.start_epoch * self.batches_per_epoch)
        self.progress.start()

    def on_epoch_begin(self, epoch: int) -> None:
        self.progress.update(self.task, epoch=str(epoch))

    def on_batch_end(self, logs: host.core.Interaction, loss: float, batch_id: int, is_training: bool = True) -> None:
        if is_training:
            self.progress.advance(self.task)

    def on_epoch_end(self, loss: float, logs: host.core.Interaction, epoch: int) -> None:
        if self.trainer.validation_data is None or self.trainer.validation_freq <= 0:
            self._show("train", loss, logs)

    def on_validation_end(self, loss: float, logs: host.core.Interaction, epoch: int) -> None:
        self._show("validation", loss, logs)

    def on_train_end(self) -> None:
        self.stop()

    def stop(self) -> None:
        """Releases the terminal, at the end of the training or after an exception."""
        self.progress.stop()
