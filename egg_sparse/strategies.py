"""Playing every term: how a receiver and a loss written for one message per example are evaluated on all of them.

Three strategies, one result. ``vmap`` maps the plain call over the rows of the support, ``gather`` plays only the
(message, example) pairs that have a probability, ``loop`` calls the receiver once per row. The slow, obvious
version that they must equal is ``loop`` over the whole vocabulary.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from egg_sparse.distribution import SparseDistribution

logger = logging.getLogger("egg_sparse")

STRATEGIES = ("auto", "vmap", "gather", "loop")


@dataclass
class Played:
    """What came of every term: ``values`` holds "loss" ``(K, B)``, whatever the loss reported under "aux/..."
    ``(K, B, ...)`` and, for a receiver that acts, "receiver_log_prob" and "receiver_entropy" ``(K, B)``.
    """

    values: dict[str, torch.Tensor]
    receiver_output: torch.Tensor | None
    decoder_calls: torch.Tensor


@dataclass(repr=False)
class Round:
    """One batch of a game: the agents' counterparts of a plain EGG call, less the message."""

    receiver: Callable
    loss: Callable
    sender_input: Any
    labels: Any
    receiver_input: Any
    aux_input: Any
    keep_output: bool
    vocab_size: int | None = None
    check_vocabulary: bool = True

    def __call__(self, message: torch.Tensor) -> dict[str, torch.Tensor]:
        """Plays one message per example; everything returned has the examples on axis 0."""
        checked = (
            _checked_vocabulary(self.receiver, message, self.vocab_size) if self.check_vocabulary else nullcontext()
        )
        with checked, _explained_index_error(self.vocab_size):
            output = self.receiver(message, self.receiver_input, self.aux_input)
        acts = _is_action(output)
        output, log_prob, entropy = output if acts else (output, None, None)
        returned = self.loss(self.sender_input, message, self.receiver_input, output, self.labels, self.aux_input)
        if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], dict)):
            raise TypeError(f"the loss must return (loss per example, dict of tensors), got {type(returned).__name__}")
        loss, aux = returned
        size = message.shape[0]
        _check_loss(loss, size)
        values = {"loss": loss}
        for name, value in aux.items():
            values[f"aux/{name}"] = _per_example(name, value, size, message.device)
        if acts:
            values["receiver_log_prob"] = _per_example("receiver's log_prob", log_prob, size, message.device)
            values["receiver_entropy"] = _per_example("receiver's entropy", entropy, size, message.device)
        if self.keep_output and isinstance(output, torch.Tensor):
            values["receiver_output"] = output
        return values


def _is_action(output: Any) -> bool:
    """Whether a receiver returned (action, log-probability, entropy), as those in EGG's Reinforce wrappers do."""
    return (
        isinstance(output, tuple)
        and len(output) == 3
        and all(isinstance(part, torch.Tensor) and part.dim() <= 1 for part in output[1:])
    )


def _check_loss(loss: Any, size: int) -> None:
    if not isinstance(loss, torch.Tensor):
        raise TypeError(f"the loss must return a tensor of losses per example, got {type(loss).__name__}")
    if loss.dim() == 0:
        raise ValueError(
            "the loss must return one value per example, but returned a scalar: it must not average over the batch "
            '(for the losses of torch.nn.functional, give reduction="none")'
        )
    if loss.shape != (size,):
        raise ValueError(
            f"the loss must return one value per example, of shape ({size},), but returned shape {tuple(loss.shape)}"
        )


def _per_example(name: str, value: Any, size: int, device: torch.device) -> torch.Tensor:
    """What has the examples on axis 0 as it is; anything else once for every example."""
    if isinstance(value, (bool, int, float)):
        value = torch.full((), float(value), device=device)
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"the loss must report tensors or numbers, but {name} is a {type(value).__name__}")
    if value.dim() and value.shape[0] == size:
        return value
    if value.dim() == 1 and value.numel() == 1:
        value = value.reshape(())
    return value.expand(size, *value.shape)


@contextmanager
def _checked_vocabulary(receiver: Any, message: torch.Tensor, vocab_size: int | None) -> Iterator[None]:
    """Raises ValueError if the layer of the receiver that reads the message cannot read every message of the
    sender, also where the symbols that it lacks do not occur in this batch.
    """
    if vocab_size is None or not isinstance(receiver, nn.Module):
        yield
        return
    symbols = not message.is_floating_point()

    def check(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not inputs or not _is_view(inputs[0], message):
            return
        if isinstance(layer, nn.Linear):
            if symbols:
                raise ValueError(
                    f"the receiver reads its message with {layer}, which needs one-hot messages, but gets symbol "
                    'ids: give the sender\'s wrapper message_format="one_hot"'
                )
            covered = layer.in_features
        elif isinstance(layer, nn.Embedding):
            if not symbols and type(layer) is nn.Embedding:
                raise ValueError(
                    f"the receiver reads its message with {layer}, which needs symbol ids, but gets one-hot messages: "
                    'give the sender\'s wrapper message_format="index"'
                )
            covered = layer.num_embeddings
        else:
            return
        if covered < vocab_size or (covered != vocab_size and not symbols):
            raise ValueError(
                f"the sender's vocabulary has {vocab_size} symbols, but the receiver reads them with {layer}, "
                f"which covers {covered}"
            )

    layers = [layer for layer in receiver.modules() if isinstance(layer, (nn.Linear, nn.Embedding))]
    hooks = [layer.register_forward_pre_hook(check) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _explained_index_error(vocab_size: int | None) -> Iterator[None]:
    try:
        yield
    except IndexError as error:
        if vocab_size is None:
            raise
        raise ValueError(
            f"the receiver raised an IndexError ({error}); it must be able to read symbols 0 to {vocab_size - 1}"
        ) from error


def _is_view(tensor: Any, message: torch.Tensor) -> bool:
    if tensor is message:
        return True
    if not isinstance(tensor, torch.Tensor):
        return False
    try:
        return tensor.untyped_storage().data_ptr() == message.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a vmapped tensor has no storage
        return False


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
        played = [game_round(message) for message in rows]
        return {name: torch.stack([values[name] for values in played]) for name in played[0]}

    return _in_chunks(play_rows, messages, chunk_size)


def _play_gather(
    distribution: SparseDistribution, game_round: Round, chunk_size: int | None
) -> dict[str, torch.Tensor]:
    receiver = game_round.receiver
    if normalizes_over_batch(receiver):
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

        of_pairs = Round(
            receiver,
            _without_scalars(game_round.loss),
            pick("sender_input", game_round.sender_input),
            pick("labels", game_round.labels),
            pick("receiver_input", game_round.receiver_input),
            pick("aux_input", game_round.aux_input),
            game_round.keep_output,
            game_round.vocab_size,
            game_round.check_vocabulary,
        )
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


def _without_scalars(loss: Callable) -> Callable:
    def checked(*args: Any) -> Any:
        returned = loss(*args)
        aux = returned[1] if isinstance(returned, tuple) and len(returned) == 2 else {}
        for name, value in aux.items():
            if isinstance(value, torch.Tensor) and value.dim() == 0:
                raise ValueError(
                    f"strategy gather needs one value of {name} per example, but the loss reports a scalar, an average "
                    "over a batch that it sees in pieces; use vmap or loop, or return one value per example"
                )
        return returned

    return checked


def normalizes_over_batch(receiver: Any) -> bool:
    """Whether an example's output depends on the others, which makes ``gather`` another computation."""
    return isinstance(receiver, nn.Module) and any(
        isinstance(layer, _BatchNorm) and (layer.training or not layer.track_running_stats)
        for layer in receiver.modules()
    )


def play_automatically(
    distribution: SparseDistribution, game_round: Round, known: str | None, chunk_size: int | None
) -> tuple[Played, str]:
    """Plays with ``vmap``, or with ``loop`` where that cannot trace the receiver, and says which it was.

    What is ``known`` to work is used again. ``gather`` is never chosen: whether an example's loss depends on the other
    examples, which would make it another loss there, cannot be seen from outside.
    """
    cause: Exception | None = None
    if known != "loop":
        try:
            played = play(distribution, game_round, "vmap", chunk_size, greedy=False)
        except (MemoryError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:  # whatever vmap cannot trace, or the receiver's own fault, which loop will raise
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
