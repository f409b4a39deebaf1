"""Playing every term: how a receiver and a loss written for one message per example are evaluated on all of them.

Three strategies, one result. ``vmap`` maps the plain call over the rows of the support, ``gather`` plays only the
(message, example) pairs of non-zero probability, ``loop`` calls the receiver once per row. The slow, obvious
version that they must equal is ``loop`` over the whole vocabulary. All of them need losses in which no example depends
on the messages of other examples; ``egg_sparse.games.checks.change_by_others`` finds out.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from egg_sparse.distribution import SparseDistribution
from egg_sparse.games import checks
from egg_sparse.games.snapshot import Snapshot, holds_vmapped_tensor, is_lazy

logger = logging.getLogger("egg_sparse")

STRATEGIES = ("auto", "vmap", "gather", "loop")


@dataclass
class Played:
    """What came of every term: ``values`` holds "loss" ``(K, B)``, whatever the loss reported under "aux/..."
    ``(K, B, ...)`` and, for a receiver that acts, "receiver_log_prob" and "receiver_entropy" ``(K, B)``.
    """

    values: dict[str, torch.Tensor]
    receiver_output: torch.Tensor | None
    receiver_calls: torch.Tensor


@dataclass(repr=False)
class Round:
    """One batch of a game: what a plain EGG call of receiver and loss is given, less the message.

    Args:
        receiver, loss, sender_input, labels, receiver_input, aux_input: as in EGG.
        acts: whether the receiver returns (action, log-probability, entropy); None for no, with a warning if its
            output looks like it.
        keep_output: whether the receiver's output is returned as well.
        vocab_size: the number of symbols that the receiver must be able to read; None if unknown.
        first: whether the receiver is played for the first time, and what it can read is checked.
        of_pairs: whether the inputs hold an example once for each of its messages.
        per_batch: the names of what the loss has reported without a value per example.
    """

    receiver: Callable
    loss: Callable
    sender_input: Any
    labels: Any
    receiver_input: Any
    aux_input: Any
    acts: bool | None = None
    keep_output: bool = False
    vocab_size: int | None = None
    first: bool = True
    of_pairs: bool = False
    per_batch: set[str] = field(default_factory=set)

    @property
    def agents(self) -> list[Any]:
        return [self.receiver, self.loss]

    def __call__(self, message: torch.Tensor) -> dict[str, torch.Tensor]:
        """Plays one message per example; everything returned has the examples on axis 0."""
        readable = checks.checked_vocabulary(self.receiver, message, self.vocab_size) if self.first else nullcontext()
        with readable, checks.explained_index_error(None if message.is_floating_point() else self.vocab_size):
            output = self.receiver(message, self.receiver_input, self.aux_input)
        size, values = message.shape[0], {}
        if self.acts:
            output, values["receiver_log_prob"], values["receiver_entropy"] = checks.unpacked_action(output, size)
        elif self.acts is None and self.first and checks.looks_like_action(output):
            checks.warn_of_possible_action()
        returned = self.loss(self.sender_input, message, self.receiver_input, output, self.labels, self.aux_input)
        if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], dict)):
            raise TypeError(f"the loss must return (loss per example, dict of tensors), got {type(returned).__name__}")
        loss, aux = returned
        checks.check_loss(loss, size)
        values["loss"] = loss if loss.is_floating_point() else loss.float()
        for name, value in aux.items():
            if checks.is_per_batch(value, size):
                self.per_batch.add(name)
            values[f"aux/{name}"] = checks.per_example(name, value, size, message.device, self.of_pairs)
        if self.keep_output and isinstance(output, torch.Tensor):
            values["receiver_output"] = output
        return values


def play(
    distribution: SparseDistribution, game_round: Round, strategy: str, chunk_size: int | None, greedy: bool
) -> Played:
    """Plays all terms of the distribution, or only its most probable messages if ``greedy``."""
    messages = distribution.messages[:1] if greedy else distribution.messages
    rows, batch = messages.shape[:2]
    if greedy or strategy == "loop":
        values = _play_loop(messages, game_round, None if greedy else chunk_size)
    elif strategy == "vmap":
        values = _play_vmap(messages, game_round, chunk_size)
    else:
        values = _play_gather(distribution, game_round, chunk_size)
    output = values.pop("receiver_output", None)
    if strategy == "gather" and not greedy:
        calls = distribution.support_size
    else:
        calls = torch.full((batch,), rows, device=messages.device)
    return Played(values, None if output is None else output[0], calls)


def _in_chunks(
    function: Callable[[torch.Tensor], dict[str, torch.Tensor]], inputs: torch.Tensor, chunk_size: int | None
) -> dict[str, torch.Tensor]:
    """``function(inputs)``, of slices of ``chunk_size`` rows if one is given.

    Slices are recomputed in the backward pass, so that the activations of one alone are in memory.
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
    """Whether torch.func.vmap works under the hooks that recomputation needs: from torch 2.6 on."""
    try:
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved):
            torch.func.vmap(torch.neg)(torch.zeros(1))
    except RuntimeError:
        return False
    return True


def _play_vmap(messages: torch.Tensor, game_round: Round, chunk_size: int | None) -> dict[str, torch.Tensor]:
    if chunk_size is not None and torch.is_grad_enabled() and not vmap_can_be_recomputed():
        raise RuntimeError(
            f"chunk_size needs torch 2.6 or newer with strategy vmap, this is {torch.__version__}; use loop"
        )

    def play_row(message: torch.Tensor) -> dict[str, torch.Tensor]:
        return game_round(message)

    return _in_chunks(torch.func.vmap(play_row, randomness="different"), messages, chunk_size)


def _play_loop(messages: torch.Tensor, game_round: Round, chunk_size: int | None) -> dict[str, torch.Tensor]:
    def play_rows(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        with checks.explained_format_error(messages) if game_round.first else nullcontext():
            played = [game_round(message) for message in rows]
        return {name: torch.stack([values[name] for values in played]) for name in played[0]}

    return _in_chunks(play_rows, messages, chunk_size)


def _play_gather(
    distribution: SparseDistribution, game_round: Round, chunk_size: int | None
) -> dict[str, torch.Tensor]:
    if checks.batch_norms(game_round.receiver):
        raise ValueError(
            "strategy gather cannot play a receiver with BatchNorm in training: it would normalise over examples as "
            "often as they have messages; use vmap or loop"
        )
    batch = distribution.probs.shape[1]
    rows, examples = distribution.mask.nonzero(as_tuple=True)

    def play_pairs(pairs: torch.Tensor) -> dict[str, torch.Tensor]:
        row, example = pairs.unbind(1)

        def pick(name: str, value: Any) -> Any:
            if isinstance(value, dict):
                return {key: pick(f"{name}[{key!r}]", item) for key, item in value.items()}
            if isinstance(value, (list, tuple)):
                return [pick(f"{name}[{i}]", item) for i, item in enumerate(value)]
            if not isinstance(value, torch.Tensor) or value.dim() == 0:
                return value
            if value.shape[0] != batch:
                raise ValueError(
                    f"strategy gather needs the examples on axis 0 of {name}, which has shape {tuple(value.shape)} "
                    f"for {batch} examples; use vmap or loop"
                )
            return value[example]

        inputs = {
            name: pick(name, getattr(game_round, name))
            for name in ("sender_input", "labels", "receiver_input", "aux_input")
        }
        of_pairs = replace(game_round, **inputs, of_pairs=True)
        return of_pairs(distribution.messages[row, example])

    pairs = torch.stack((rows, examples), 1)
    values = _in_chunks(play_pairs, pairs, None if chunk_size is None else chunk_size * batch)
    output = values.pop("receiver_output", None)
    placed = {
        name: value.new_zeros(*distribution.probs.shape, *value.shape[1:]).index_put((rows, examples), value)
        for name, value in values.items()
    }
    if output is not None:
        placed["receiver_output"] = output[:batch].unsqueeze(0)  # row 0 comes first and is never padding
    return placed


def play_automatically(
    distribution: SparseDistribution, game_round: Round, known: str | None, chunk_size: int | None
) -> tuple[Played, str | None]:
    """Plays with ``vmap``, or with ``loop`` where that cannot trace the receiver, and says which it was.

    What is ``known`` to work is used again. The first call of a receiver that finds out its shapes in it is a plain
    one, after which nothing is known yet. What a first attempt with ``vmap`` has changed beside its result is put back.
    ``gather`` is never chosen: whether inputs have their examples on axis 0 cannot be seen from outside.
    """
    cause: Exception | None = None
    if known is None and is_lazy(game_round.agents):
        return play(distribution, game_round, "loop", chunk_size, greedy=False), None
    if known != "loop":
        before = None if known else Snapshot(game_round.agents, distribution.messages.device)
        try:
            played = play(distribution, game_round, "vmap", chunk_size, greedy=False)
            if known is None and holds_vmapped_tensor(game_round.agents, game_round.aux_input):
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
            return played, "vmap"
    played = play(distribution, game_round, "loop", chunk_size, greedy=False)
    if cause is not None:
        reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        warnings.warn(
            f"strategy auto calls the receiver once per message (loop), since vmap cannot trace it: {reason}",
            RuntimeWarning,
            stacklevel=2,
        )
    return played, "loop"
