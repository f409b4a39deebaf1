"""Callbacks that end the training early."""

from __future__ import annotations

from egg_sparse.standin.callbacks import Callback
from egg_sparse.standin.interaction import Interaction


class EarlyStopper(Callback):
    """Keeps the history that a stopping rule looks at, of validation or of training."""

    def __init__(self, validation: bool = True) -> None:
        super().__init__()
        self.train_stats: list[tuple[float, Interaction]] = []
        self.validation_stats: list[tuple[float, Interaction]] = []
        self.epoch = 0
        self.validation = validation

    def on_epoch_end(self, loss: float, logs: Interaction, epoch: int) -> None:
        if not self.validation:
            self.epoch = epoch
            self.train_stats.append((loss, logs))
            self.trainer.should_stop = self.should_stop()

    def on_validation_end(self, loss: float, logs: Interaction, epoch: int) -> None:
        if self.validation:
            self.validation_stats.append((loss, logs))
            self.trainer.should_stop = self.should_stop()

    def should_stop(self) -> bool:
        raise NotImplementedError()  # the rule is the subclass's


class EarlyStopperAccuracy(EarlyStopper):
    """Stops as soon as the mean of ``field_name`` reaches the threshold."""

    def __init__(self, threshold: float, field_name: str = "acc", validation: bool = True) -> None:
        super().__init__(validation)
        self.threshold = threshold
        self.field_name = field_name

    def should_stop(self) -> bool:
        _, interaction = (self.validation_stats if self.validation else self.train_stats)[-1]
        return interaction.aux[self.field_name].mean() >= self.threshold  # type: ignore[return-value]
