"""Finds losses, scores and gradients that are not finite at the step where they appear, and names them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import nn

from egg_sparse import host
from egg_sparse.mappings.scores import NotFiniteError

# words with which torch.distributions and torch.multinomial, which the sampling methods use, refuse NaN
_SAMPLED_NAN = ("found invalid values:", "probability tensor contains either")


def in_words(error: Exception) -> str | None:
    """The sentence that says what is not finite, or None if the error has another cause."""
    if isinstance(error, NotFiniteError):
        return str(error)
    if any(words in str(error) for words in _SAMPLED_NAN):
        return "the scores of an agent are not finite"
    return None


class FaultGuard(host.core.Callback):
    """Checks every training loss and gradient before the optimizer uses it.

    If one is not finite, the guard saves a checkpoint of the weights before that step and raises a FloatingPointError,
    which names the tensor, the step and the seed of the batch; or it skips the step. Under ``--fp16`` it leaves
    gradients that overflow to the gradient scaler, which skips such steps by itself. On a GPU the fused Adam leaves out
    the step by itself, and the guard says so at the next step or at the epoch's end, so that no step waits for it.

    Args:
        game: the game that is trained.
        optimizer: the optimizer of its parameters.
        seed: the run's random seed; batch i, counted from 0, of epoch e is drawn with (seed, e, i).
        batches_per_epoch: the number of training batches per epoch.
        skip: whether the step is skipped, instead of the run stopped.
        fp16: whether the Trainer scales gradients.
        save: the function that saves a checkpoint under a name and returns its path.
    """

    def __init__(
        self,
        game: nn.Module,
        optimizer: torch.optim.Optimizer,
        seed: int,
        batches_per_epoch: int,
        skip: bool = False,
        fp16: bool = False,
        save: Callable[[str], Any] | None = None,
    ) -> None:
        self.game = game
        self.names = {id(parameter): name for name, parameter in game.named_parameters()}
        self.seed = seed
        self.batches_per_epoch = batches_per_epoch
        self.skip = skip
        self.fp16 = fp16
        self.save = save
        self.epoch = 1
        self.batches = 0  # of this epoch, so far
        self.losses: list[tuple[int, torch.Tensor]] = []  # of the batches since the last step
        #: of the last step on a GPU, until it is read: the event after which values are on the host, the values, and
        #: the name and the batch of each
        self.unread: tuple[Any, torch.Tensor, list[tuple[str, int]]] | None = None
        self.hooks = [game.register_forward_hook(self._keep_loss), optimizer.register_step_pre_hook(self._check)]

    def on_epoch_begin(self, epoch: int) -> None:
        self.epoch, self.batches = epoch, 0
        self.losses.clear()

    def on_batch_end(self, logs: Any, loss: Any, batch_id: int, is_training: bool = True) -> None:
        if self.fp16 and is_training and not bool(torch.as_tensor(loss).isfinite()):
            self._found("the loss is not finite", batch_id)  # the gradient scaler would skip every step from here on

    def on_epoch_end(self, loss: float, logs: Any, epoch: int) -> None:
        self._report()

    def on_train_end(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def stop(self, fault: str, batch: int | None = None) -> NoReturn:
        """Saves a checkpoint and raises FloatingPointError.

        Args:
            fault: the sentence that says what is not finite.
            batch: the number of the batch in this epoch; None for the one that is played now, which cannot be skipped.
        """
        saved = self.save(f"not-finite-{self.epoch}") if self.save else None
        kept = f"; the weights of that moment are in {saved}" if saved else ""
        hint = "" if batch is None else "; --on_nan skip leaves out such steps"
        raise FloatingPointError(f"{fault} {self._place(batch)}{kept}{hint}")

    def _place(self, batch: int | None) -> str:
        if not self.game.training:
            return f"in the validation of epoch {self.epoch}"
        index = self.batches if batch is None else batch
        step = (self.epoch - 1) * self.batches_per_epoch + index + 1
        return f"at step {step}, in epoch {self.epoch} (batch seed {self.seed}, {self.epoch}, {index})"

    def _keep_loss(self, game: nn.Module, _inputs: Any, output: tuple[torch.Tensor, Any]) -> None:
        if game.training:
            self.losses.append((self.batches, output[0].detach()))
            self.batches += 1

    def _check(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._report()
        losses, self.losses = self.losses, []
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.fp16 or not parameters:
            return
        gradients: list[Any] = [p.grad for p in parameters]
        if gradients[0].device.type == "cuda" and all(group.get("fused") for group in optimizer.param_groups):
            self._check_on_device(optimizer, losses, gradients, parameters)
            return
        norms = torch._foreach_norm(gradients)
        fault = None
        if not bool(torch.stack([*norms, *(loss.to(norms[0]) for _, loss in losses)]).sum().isfinite()):
            fault = self._fault(losses, parameters)
        if fault is not None:
            self._found(*fault)
        found = fault is not None
        if self._shares_faults:
            flag = torch.tensor(float(found), device=norms[0].device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            found = bool(flag)
        if found:
            for parameter in parameters:
                parameter.grad = None

    def _check_on_device(
        self,
        optimizer: Any,
        losses: list[tuple[int, torch.Tensor]],
        gradients: list[torch.Tensor],
        parameters: list[nn.Parameter],
    ) -> None:
        """Lets the device leave out a step with a fault, which the host reports when it comes to the next step.

        The host does not wait for the device.
        """
        largest = torch._foreach_norm(gradients, math.inf)  # not a sum of squares, which may overflow
        checked = torch.stack([*(loss.to(largest[0]) for _, loss in losses), *largest])
        found = (~checked.isfinite()).any().float()
        if self._shares_faults:
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        optimizer.found_inf = found  # as a gradient scaler sets it, and a fused step heeds it
        copied = checked.to("cpu", non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        of_losses = [("the loss", batch) for batch, _ in losses]
        self.unread = event, copied, [*of_losses, *((self._gradient_of(p), self.batches - 1) for p in parameters)]

    def _report(self) -> None:
        """Reads what the device has found in the step before."""
        if self.unread is None:
            return
        event, copied, places = self.unread
        self.unread = None
        event.synchronize()
        for value, (name, batch) in zip(copied.tolist(), places, strict=True):
            if not math.isfinite(value):
                self._found(f"{name} is not finite", batch)
                return

    def _gradient_of(self, parameter: nn.Parameter) -> str:
        return f"the gradient of {self.names.get(id(parameter), 'a parameter')}"

    def _fault(self, losses: list[tuple[int, torch.Tensor]], parameters: list[nn.Parameter]) -> tuple[str, int] | None:
        """What is not finite, and its batch; None if only a sum of large numbers overflowed."""
        for batch, loss in losses:
            if not bool(loss.isfinite()):
                return "the loss is not finite", batch
        for parameter in parameters:
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                return f"{self._gradient_of(parameter)} is not finite", self.batches - 1
        return None

    @property
    def _shares_faults(self) -> bool:
        """Whether a step is to be skipped in all of several processes or in none.

        All processes have the same gradients, but the loss of a single one may be infinite.
        """
        distributed = torch.distributed
        return self.skip and distributed.is_available() and distributed.is_initialized()

    def _found(self, fault: str, batch: int) -> None:
        if not self.skip:
            self.stop(fault, batch)
        print(f"# skipping a step: {fault} {self._place(batch)}", file=sys.stderr, flush=True)
