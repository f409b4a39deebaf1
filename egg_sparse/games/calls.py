"""The call of a receiver and a loss that are written for one message per example, and its outcome."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint

from egg_sparse.games import checks

Strategy = Literal["auto", "vmap", "gather", "distinct", "loop"]


@dataclass(frozen=True, eq=False, repr=False)
class Batch:
    """The four inputs of a game, as EGG names them."""

    sender_input: Any
    labels: Any
    receiver_input: Any = None
    aux_input: Any = None

    def of_examples(self, examples: torch.Tensor, batch_size: int) -> Batch:
        """The inputs of some examples, which may repeat.

        Args:
            examples: the positions of the examples in the batch.
            batch_size: the number of examples in the batch.

        Raises:
            ValueError: a tensor among the inputs has no axis 0 of that size.
        """

        def chosen(name: str, value: Any) -> Any:
            if isinstance(value, dict):
                return {key: chosen(f"{name}[{key!r}]", item) for key, item in value.items()}
            if isinstance(value, (list, tuple)):
                return [chosen(f"{name}[{i}]", item) for i, item in enumerate(value)]
            if not isinstance(value, torch.Tensor) or value.dim() == 0:
                return value
            if value.shape[0] != batch_size:
                raise ValueError(
                    f"strategy gather needs the examples on axis 0 of {name}, which has shape {tuple(value.shape)} "
                    f"for {batch_size} examples; use vmap or loop"
                )
            return value[examples]

        return Batch(*(chosen(part.name, getattr(self, part.name)) for part in fields(Batch)))


@dataclass
class Outcome:
    """The result of playing K messages per example.

    Attributes:
        values: "loss" ``(K, B)``; every metric that the loss reports, as "aux/..." ``(K, B, ...)``; and, if the
            receiver acts, "receiver_log_prob" and "receiver_entropy" ``(K, B)``.
        receiver_output: the receiver's output for the first message of every example, if it is kept.
        receiver_calls: the number of messages ``(B,)`` that the receiver was given for an example.
    """

    values: dict[str, torch.Tensor]
    receiver_output: torch.Tensor | None
    receiver_calls: torch.Tensor

    @property
    def loss(self) -> torch.Tensor:
        return self.values["loss"]

    @property
    def acts(self) -> bool:
        """Whether the receiver acts, so that its log-probability and entropy are known."""
        return "receiver_log_prob" in self.values


@dataclass(repr=False)
class ReceiverCall:
    """EGG's call of a receiver and a loss on a batch, as a function of the message.

    Args:
        receiver: the receiver, called as in EGG.
        loss: the loss, called as in EGG.
        batch: the game's inputs.
        acts: whether the receiver returns (action, log-probability, entropy); None for no, with a warning if its
            output has that form.
        keep_output: whether the receiver's output is returned, too.
        vocab_size: the number of symbols that the receiver must be able to read; None if unknown.
        is_first: whether the receiver has not been called with this vocabulary before, so that its reading is checked.
        is_gathered: whether the inputs hold an example once for each of its messages.
        batch_averages: the names of the metrics that the loss has reported without a value per example.
        knows_products: False for a loss that is known to need a receiver's output once per example, see
            :mod:`egg_sparse.games.shared_outputs`; None if that is not known.
    """

    receiver: Callable
    loss: Callable
    batch: Batch
    acts: bool | None = None
    keep_output: bool = False
    vocab_size: int | None = None
    is_first: bool = True
    is_gathered: bool = False
    batch_averages: set[str] = field(default_factory=set)
    knows_products: bool | None = None

    @property
    def agents(self) -> list[Any]:
        """What may have state: the receiver and the loss."""
        return [self.receiver, self.loss]

    def __call__(self, message: torch.Tensor) -> dict[str, torch.Tensor]:
        """Plays one message per example; all returned values have the examples on axis 0."""
        return self.judged(message, self.received(message))

    def received(self, message: torch.Tensor) -> Any:
        """The receiver's output for one message per example."""
        checked = checks.checked_vocabulary(self.receiver, message, self.vocab_size) if self.is_first else nullcontext()
        with checked, checks.explained_index_error(None if message.is_floating_point() else self.vocab_size):
            return self._call_receiver(message)

    def _call_receiver(self, message: torch.Tensor) -> Any:
        return self.receiver(message, self.batch.receiver_input, self.batch.aux_input)

    def _message_for_loss(self, message: torch.Tensor) -> torch.Tensor:
        return message

    def judged(self, message: torch.Tensor, output: Any) -> dict[str, torch.Tensor]:
        """What the loss says of the receiver's output for one message per example."""
        batch, size = self.batch, message.shape[0]
        values: dict[str, torch.Tensor] = {}
        if self.acts:
            output, values["receiver_log_prob"], values["receiver_entropy"] = checks.unpacked_action(output, size)
        elif self.acts is None and self.is_first and checks.looks_like_action(output):
            checks.warn_of_possible_action()
        returned = self.loss(
            batch.sender_input,
            self._message_for_loss(message),
            batch.receiver_input,
            output,
            batch.labels,
            batch.aux_input,
        )
        if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], dict)):
            raise TypeError(f"the loss must return (loss per example, dict of tensors), got {type(returned).__name__}")
        loss, metrics = returned
        checks.check_loss(loss, size)
        values["loss"] = loss if loss.is_floating_point() else loss.float()
        for name, value in metrics.items():
            if not checks.is_per_example(value, size):
                self.batch_averages.add(name)
            values[f"aux/{name}"] = checks.expanded_metric(name, value, size, message.device, self.is_gathered)
        if self.keep_output and isinstance(output, torch.Tensor):
            values["receiver_output"] = output
        return values


@functools.cache
def vmap_can_be_recomputed() -> bool:
    """Whether torch.func.vmap works under the hooks that recomputation needs, as it does from torch 2.6 on."""
    try:
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved):
            torch.func.vmap(torch.neg)(torch.zeros(1))
    except RuntimeError:
        return False
    return True


def check_chunks(strategy: Strategy, chunk_size: int | None) -> None:
    """Raises RuntimeError if chunks, which a strategy plays with torch.func.vmap, could not be recomputed."""
    if chunk_size is not None and torch.is_grad_enabled() and not vmap_can_be_recomputed():
        raise RuntimeError(
            f"chunk_size needs torch 2.6 or newer with strategy {strategy}, this is {torch.__version__}; use loop"
        )


def in_chunks(
    function: Callable[[torch.Tensor], dict[str, torch.Tensor]], inputs: torch.Tensor, chunk_size: int | None
) -> dict[str, torch.Tensor]:
    """``function(inputs)``, computed in chunks of ``chunk_size`` rows unless that is None.

    Chunks are recomputed in the backward pass, so that only one chunk's activations are in memory at a time.
    """
    if chunk_size is None:
        return function(inputs)
    parts: list[Any] = [
        checkpoint(function, part, use_reentrant=False) if torch.is_grad_enabled() else function(part)
        for part in inputs.split(chunk_size)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
