"""Finds losses, scores and gradients that are not finite at the step where they appear, and names them."""

from __future__ import annotations

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
    gradients that overflow to the gradient scaler, which skips such steps by itself.

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
        """What is not finite, and its batch; None if only a sum of large numbers overflowed."""
        for batch, loss in losses:
            if not bool(loss.isfinite()):
                return "the loss is not finite", batch
        for parameter in parameters:
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                name = self.names.get(id(parameter), "a parameter")
                return f"the gradient of {name} is not finite", self.batches - 1
        return None

    def _in_any_process(self, found: bool, device: torch.device) -> bool:
        """Whether any process found a fault: a step is skipped in all of them or in none.

        All processes have the same gradients, but the loss of a single one may be infinite.
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
