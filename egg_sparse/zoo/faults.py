"""Losses, scores and gradients that are not finite: found at the step where they appear, and named."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import nn

from egg_sparse import host
from egg_sparse.mappings.scores import NotFiniteError

# how torch.distributions and torch.multinomial, which all the sampling methods use, say that scores are NaN
_SAMPLED_NAN = ("found invalid values:", "probability tensor contains either")


def in_words(error: Exception) -> str | None:
    """What is not finite, if that is what the error is about."""
    if isinstance(error, NotFiniteError):
        return str(error)
    if any(words in str(error) for words in _SAMPLED_NAN):
        return "the scores of an agent are not finite"
    return None


class FaultGuard(host.core.Callback):
    """Looks at every training loss and gradient before it reaches the weights.

    Where one is not finite, the run stops with a FloatingPointError that says which tensor it was, at which step and
    with which seed its batch was drawn, after a checkpoint of the weights before that step; or the step is skipped.
    Under ``--fp16`` gradients that overflow are left to the gradient scaler, which skips such steps by itself.

    Args:
        game: what the Trainer trains.
        optimizer: its optimizer.
        seed: of the run; batch i, counted from 0, of epoch e is drawn with (seed, e, i).
        batches_per_epoch: training batches per epoch.
        skip: skip the step instead of stopping.
        fp16: whether the Trainer scales gradients.
        save: saves a checkpoint of the name that it is called with, and returns where.
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
        self.hooks = [game.register_forward_hook(self._keep_loss), optimizer.register_step_pre_hook(self._check)]

    def on_epoch_begin(self, epoch: int) -> None:
        self.epoch, self.batches = epoch, 0
        self.losses.clear()

    def on_batch_end(self, logs: Any, loss: Any, batch_id: int, is_training: bool = True) -> None:
        if self.fp16 and is_training and not bool(torch.as_tensor(loss).isfinite()):
            self._found("the loss is not finite", batch_id)  # the gradient scaler would skip every step from here on

    def on_train_end(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def stop(self, fault: str, batch: int | None = None) -> NoReturn:
        """Ends the run.

        Args:
            fault: what is not finite.
            batch: of this epoch; None for the one that is being played, which cannot be left out.
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
        losses, self.losses = self.losses, []
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.fp16 or not parameters:
            return
        norms = torch._foreach_norm([p.grad for p in parameters])
        fault = None
        if not bool(torch.stack([*norms, *(loss.to(norms[0]) for _, loss in losses)]).sum().isfinite()):
            fault = self._fault(losses, parameters)
        if fault is not None:
            self._found(*fault)
        if self._in_any_process(fault is not None, norms[0].device):
            for parameter in parameters:
                parameter.grad = None

    def _fault(self, losses: list[tuple[int, torch.Tensor]], parameters: list[nn.Parameter]) -> tuple[str, int] | None:
        """What is not finite, and its batch. None: all is, but for the sum of numbers that are too large."""
        for batch, loss in losses:
            if not bool(loss.isfinite()):
                return "the loss is not finite", batch
        for parameter in parameters:
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                name = self.names.get(id(parameter), "a parameter")
                return f"the gradient of {name} is not finite", self.batches - 1
        return None

    def _in_any_process(self, found: bool, device: torch.device) -> bool:
        """A step is skipped in all processes or in none: gradients they share, but not every process may have an
        infinite loss.
        """
        distributed = torch.distributed
        if not (self.skip and distributed.is_available() and distributed.is_initialized()):
            return found
        flag = torch.tensor(float(found), device=device)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        return bool(flag)

    def _found(self, fault: str, batch: int) -> None:
        if not self.skip:
            self.stop(fault, batch)
        print(f"# skipping a step: {fault} {self._place(batch)}", file=sys.stderr, flush=True)
