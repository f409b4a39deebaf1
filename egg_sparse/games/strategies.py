"""Strategies: how a receiver and a loss written for one message per example are evaluated on a whole support.

``vmap`` maps the plain call over the rows of the support, ``gather`` plays only the (message, example) pairs of
non-zero probability, and ``loop`` calls the receiver once per row. All give the same result, that of ``loop`` over the
whole vocabulary, as long as no example's loss depends on the messages of other examples, which
``egg_sparse.games.checks.coupling`` measures.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint

from egg_sparse.distribution import SparseDistribution
from egg_sparse.games import checks
from egg_sparse.games.snapshot import Snapshot, holds_vmapped_tensor, is_lazy

logger = logging.getLogger("egg_sparse")

Strategy = Literal["auto", "vmap", "gather", "loop"]


@dataclass(frozen=True, eq=False, repr=False)
class Batch:
    """The four inputs of a game, as EGG names them."""

    sender_input: Any
    labels: Any
    receiver_input: Any = None
    aux_input: Any = None


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

    @property
    def agents(self) -> list[Any]:
        """What may have state: the receiver and the loss."""
        return [self.receiver, self.loss]

    def __call__(self, message: torch.Tensor) -> dict[str, torch.Tensor]:
        """Plays one message per example; all returned values have the examples on axis 0."""
        batch, size = self.batch, message.shape[0]
        checked = checks.checked_vocabulary(self.receiver, message, self.vocab_size) if self.is_first else nullcontext()
        with checked, checks.explained_index_error(None if message.is_floating_point() else self.vocab_size):
            output = self.receiver(message, batch.receiver_input, batch.aux_input)
        values: dict[str, torch.Tensor] = {}
        if self.acts:
            output, values["receiver_log_prob"], values["receiver_entropy"] = checks.unpacked_action(output, size)
        elif self.acts is None and self.is_first and checks.looks_like_action(output):
            checks.warn_of_possible_action()
        returned = self.loss(batch.sender_input, message, batch.receiver_input, output, batch.labels, batch.aux_input)
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


def play(
    distribution: SparseDistribution, call: ReceiverCall, strategy: Strategy, chunk_size: int | None, greedy: bool
) -> Outcome:
    """Plays the support of the distribution, or only its most probable messages if ``greedy``."""
    messages = distribution.messages[:1] if greedy else distribution.messages
    rows, batch_size = messages.shape[:2]
    if greedy or strategy == "loop":
        values = _play_loop(messages, call, None if greedy else chunk_size)
    elif strategy == "vmap":
        values = _play_vmap(messages, call, chunk_size)
    else:
        values = _play_gather(distribution, call, chunk_size)
    output = values.pop("receiver_output", None)
    if strategy == "gather" and not greedy:
        receiver_calls = distribution.support_size
    else:
        receiver_calls = torch.full((batch_size,), rows, device=messages.device)
    return Outcome(values, None if output is None else output[0], receiver_calls)


def _in_chunks(
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


@functools.cache
def vmap_can_be_recomputed() -> bool:
    """Whether torch.func.vmap works under the hooks that recomputation needs, as it does from torch 2.6 on."""
    try:
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved):
            torch.func.vmap(torch.neg)(torch.zeros(1))
    except RuntimeError:
        return False
    return True


def _play_vmap(messages: torch.Tensor, call: ReceiverCall, chunk_size: int | None) -> dict[str, torch.Tensor]:
    if chunk_size is not None and torch.is_grad_enabled() and not vmap_can_be_recomputed():
        raise RuntimeError(
            f"chunk_size needs torch 2.6 or newer with strategy vmap, this is {torch.__version__}; use loop"
        )
    return _in_chunks(torch.func.vmap(call.__call__, randomness="different"), messages, chunk_size)


def _play_loop(messages: torch.Tensor, call: ReceiverCall, chunk_size: int | None) -> dict[str, torch.Tensor]:
    def play_rows(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        with checks.explained_format_error(messages) if call.is_first else nullcontext():
            values = [call(message) for message in rows]
        return {name: torch.stack([row[name] for row in values]) for name in values[0]}

    return _in_chunks(play_rows, messages, chunk_size)


def _play_gather(
    distribution: SparseDistribution, call: ReceiverCall, chunk_size: int | None
) -> dict[str, torch.Tensor]:
    if checks.batch_norms(call.receiver):
        raise ValueError(
            "strategy gather cannot play a receiver with BatchNorm in training, which would normalize over an example "
            "once for each of its messages; use vmap or loop"
        )
    batch_size = distribution.probs.shape[1]
    rows, examples = distribution.mask.nonzero(as_tuple=True)

    def play_pairs(pairs: torch.Tensor) -> dict[str, torch.Tensor]:
        row, example = pairs.unbind(1)

        def gathered(name: str, value: Any) -> Any:
            if isinstance(value, dict):
                return {key: gathered(f"{name}[{key!r}]", item) for key, item in value.items()}
            if isinstance(value, (list, tuple)):
                return [gathered(f"{name}[{i}]", item) for i, item in enumerate(value)]
            if not isinstance(value, torch.Tensor) or value.dim() == 0:
                return value
            if value.shape[0] != batch_size:
                raise ValueError(
                    f"strategy gather needs the examples on axis 0 of {name}, which has shape {tuple(value.shape)} "
                    f"for {batch_size} examples; use vmap or loop"
                )
            return value[example]

        batch = Batch(*(gathered(part.name, getattr(call.batch, part.name)) for part in fields(Batch)))
        return replace(call, batch=batch, is_gathered=True)(distribution.messages[row, example])

    pairs = torch.stack((rows, examples), 1)
    values = _in_chunks(play_pairs, pairs, None if chunk_size is None else chunk_size * batch_size)
    output = values.pop("receiver_output", None)
    placed = {
        name: value.new_zeros(*distribution.probs.shape, *value.shape[1:]).index_put((rows, examples), value)
        for name, value in values.items()
    }
    if output is not None:
        placed["receiver_output"] = output[:batch_size].unsqueeze(0)  # row 0 comes first and is never padding
    return placed


def play_automatically(
    distribution: SparseDistribution, call: ReceiverCall, known: Strategy | None, chunk_size: int | None
) -> tuple[Outcome, Strategy | None]:
    """Plays with ``vmap``, or with ``loop`` if vmap cannot trace the receiver, and returns the strategy that worked.

    A strategy that is ``known`` to work is used again. A lazy receiver is first called with ``loop``, which finds out
    its shapes; no strategy is known after that. Whatever a failed attempt with ``vmap`` has changed is restored.
    ``gather`` is never chosen, since whether inputs have their examples on axis 0 cannot be seen from outside.
    """
    cause: Exception | None = None
    if known is None and is_lazy(call.agents):
        return play(distribution, call, "loop", chunk_size, greedy=False), None
    if known != "loop":
        before = None if known else Snapshot(call.agents, distribution.messages.device)
        try:
            outcome = play(distribution, call, "vmap", chunk_size, greedy=False)
            if known is None and holds_vmapped_tensor(call.agents, call.batch.aux_input):
                raise RuntimeError("it keeps a tensor that exists within torch.func.vmap alone")
        except (MemoryError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:  # whatever vmap cannot trace, or the receiver's own fault, which loop will raise
            if before:
                before.restore()
            cause = error
        else:
            if known is None:
                logger.info("strategy auto plays this receiver with vmap")
            return outcome, "vmap"
    outcome = play(distribution, call, "loop", chunk_size, greedy=False)
    if cause is not None:
        reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        warnings.warn(
            f"strategy auto calls the receiver once per message (loop), since vmap cannot trace it: {reason}",
            RuntimeWarning,
            stacklevel=2,
        )
    return outcome, "loop"
