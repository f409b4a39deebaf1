"""The Trainer: epochs, validation, checkpoints and callbacks around a game."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterable
from typing import Any

import torch

from egg_sparse.standin.batch import Batch
from egg_sparse.standin.callbacks import Callback, Checkpoint, CheckpointSaver, TensorboardLogger
from egg_sparse.standin.distributed import get_preemptive_checkpoint_dir
from egg_sparse.standin.interaction import Interaction
from egg_sparse.standin.util import get_opts, move_to


class Trainer:
    """Trains a game with the options that ``init`` parsed.

    Args:
        game: called as ``game(sender_input, labels, receiver_input, aux_input)``; returns (loss, Interaction).
        optimizer: the optimizer of the game's parameters.
        train_data: yields batches; iterated once per epoch.
        optimizer_scheduler: stepped once per epoch.
        validation_data: None for no validation.
        device: the options' device by default.
        callbacks: called in their order.
        grad_norm: largest norm of the gradient; larger ones are scaled down.
        aggregate_interaction_logs: whether the log has the interactions of all processes, not of the leading one alone.
    """

    def __init__(
        self,
        game: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        train_data: Iterable,
        optimizer_scheduler: Any = None,
        validation_data: Iterable | None = None,
        device: torch.device | None = None,
        callbacks: list[Callback] | None = None,
        grad_norm: float | None = None,
        aggregate_interaction_logs: bool = True,
    ) -> None:
        opts = get_opts()
        self.game: Any = game
        self.optimizer = optimizer
        self.optimizer_scheduler = optimizer_scheduler
        self.train_data = train_data
        self.validation_data = validation_data
        self.validation_freq = opts.validation_freq
        self.device = opts.device if device is None else device
        self.should_stop = False
        self.start_epoch = 0
        self.callbacks = callbacks if callbacks else []
        self.grad_norm = grad_norm
        self.aggregate_interaction_logs = aggregate_interaction_logs
        self.update_freq = opts.update_freq
        self.checkpoint_path: pathlib.Path | None = None

        if opts.load_from_checkpoint is not None:
            print(f"# Initializing model, trainer, and optimizer from {opts.load_from_checkpoint}")
            self.load_from_checkpoint(opts.load_from_checkpoint)

        self.distributed_context = opts.distributed_context
        if self.distributed_context.is_distributed:
            print("# Distributed context: ", self.distributed_context)
        if self.distributed_context.is_leader:
            self._add_leader_callbacks(opts)
        self._place_on_device()
        self.scaler = torch.amp.GradScaler("cuda") if opts.fp16 else None

    def _add_leader_callbacks(self, opts: Any) -> None:
        if not any(isinstance(callback, CheckpointSaver) for callback in self.callbacks):
            if opts.preemptable:
                if not opts.checkpoint_dir:
                    raise AssertionError("checkpointing directory has to be specified")
                self.checkpoint_path = get_preemptive_checkpoint_dir(opts.checkpoint_dir)
                self.load_from_latest(self.checkpoint_path)
            elif opts.checkpoint_dir is not None:
                self.checkpoint_path = pathlib.Path(opts.checkpoint_dir)
            if self.checkpoint_path:
                self.callbacks.append(CheckpointSaver(self.checkpoint_path, checkpoint_freq=opts.checkpoint_freq))
        if opts.tensorboard:
            if not opts.tensorboard_dir:
                raise AssertionError("tensorboard directory has to be specified")
            self.callbacks.append(TensorboardLogger())

    def _place_on_device(self) -> None:
        if self.distributed_context.is_distributed:
            on_gpu = torch.device(self.device).type == "cuda"
            if on_gpu:
                self.device = torch.device("cuda", self.distributed_context.local_rank)
                torch.cuda.set_device(self.device)
            self.game.to(self.device)
            self.game = torch.nn.parallel.DistributedDataParallel(
                self.game, device_ids=[self.device] if on_gpu else None, find_unused_parameters=True
            )
        else:
            self.game.to(self.device)
        self.optimizer.state = move_to(self.optimizer.state, self.device)

    def _play(self, batch: Any) -> tuple[torch.Tensor, Interaction]:
        if not isinstance(batch, Batch):
            batch = Batch(*batch)
        return self.game(*batch.to(self.device))

    def _logged(self, interaction: Interaction) -> Interaction:
        if self.distributed_context.is_distributed and self.aggregate_interaction_logs:
            interaction = Interaction.gather_distributed_interactions(interaction)  # type: ignore[assignment]
        is_on_gpu = any(
            part.is_cuda for part in torch.utils._pytree.tree_leaves(vars(interaction)) if torch.is_tensor(part)
        )
        interaction.to("cpu", non_blocking=True)
        if is_on_gpu:
            torch.cuda.current_stream(self.device).synchronize()  # once for all tensors
        return interaction

    def eval(self, data: Iterable | None = None) -> tuple[float, Interaction]:
        """Plays the validation data, or ``data``, in evaluation mode; returns the mean loss and all interactions."""
        mean_loss: Any = 0.0
        interactions: list[Interaction] = []
        self.game.eval()
        with torch.no_grad():
            for batch in self.validation_data if data is None else data:  # type: ignore[union-attr]
                loss, interaction = self._play(batch)
                interaction = self._logged(interaction)
                mean_loss += loss
                for callback in self.callbacks:
                    callback.on_batch_end(interaction, loss, len(interactions), is_training=False)  # type: ignore[arg-type]
                interactions.append(interaction)
        mean_loss /= len(interactions)
        return mean_loss.item(), Interaction.from_iterable(interactions)

    def train_epoch(self) -> tuple[float, Interaction]:
        """One pass over the training data; returns the mean loss and all interactions."""
        mean_loss: Any = 0
        interactions: list[Interaction] = []
        self.game.train()
        self.optimizer.zero_grad()
        for batch_id, batch in enumerate(self.train_data):
            with torch.amp.autocast("cuda") if self.scaler else contextlib.nullcontext():
                loss, interaction = self._play(batch)
                loss = loss / self.update_freq
            (self.scaler.scale(loss) if self.scaler else loss).backward()
            if batch_id % self.update_freq == self.update_freq - 1:
                self._step()
            mean_loss += loss.detach()
            interaction = self._logged(interaction)
            for callback in self.callbacks:
                callback.on_batch_end(interaction, loss, batch_id)  # type: ignore[arg-type]
            interactions.append(interaction)
        if self.optimizer_scheduler:
            self.optimizer_scheduler.step()
        mean_loss /= len(interactions)
        return mean_loss.item(), Interaction.from_iterable(interactions)

    def _step(self) -> None:
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        if self.grad_norm:
            torch.nn.utils.clip_grad_norm_(self.game.parameters(), self.grad_norm)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad()

    def train(self, n_epochs: int) -> None:
        """Trains up to epoch ``n_epochs``, or until a callback sets ``should_stop``."""
        for callback in self.callbacks:
            callback.on_train_begin(self)
        for epoch in range(self.start_epoch + 1, n_epochs + 1):
            for callback in self.callbacks:
                callback.on_epoch_begin(epoch)
            train_loss, train_interaction = self.train_epoch()
            for callback in self.callbacks:
                callback.on_epoch_end(train_loss, train_interaction, epoch)

            validation_loss = validation_interaction = None
            if self.validation_data is not None and self.validation_freq > 0 and epoch % self.validation_freq == 0:
                for callback in self.callbacks:
                    callback.on_validation_begin(epoch)
                validation_loss, validation_interaction = self.eval()
                for callback in self.callbacks:
                    callback.on_validation_end(validation_loss, validation_interaction, epoch)

            if self.should_stop:
                for callback in self.callbacks:
                    callback.on_early_stopping(
                        train_loss, train_interaction, epoch, validation_loss, validation_interaction
                    )
                break
        for callback in self.callbacks:
            callback.on_train_end()

    def load(self, checkpoint: Checkpoint) -> None:
        """Takes over game, optimizer, scheduler and epoch."""
        self.game.load_state_dict(checkpoint.model_state_dict)
        self.optimizer.load_state_dict(checkpoint.optimizer_state_dict)
        if checkpoint.optimizer_scheduler_state_dict:
            self.optimizer_scheduler.load_state_dict(checkpoint.optimizer_scheduler_state_dict)
        self.start_epoch = checkpoint.epoch

    def load_from_checkpoint(self, path: str | pathlib.Path) -> None:
        print(f"# loading trainer state from {path}")
        self.load(torch.load(path, map_location="cpu", weights_only=True))

    def load_from_latest(self, path: pathlib.Path) -> None:
        """Loads the newest checkpoint of a folder, if there is one."""
        files = sorted(path.glob("*.tar"), key=lambda file: file.stat().st_ctime)
        if files:
            self.load_from_checkpoint(files[-1])
