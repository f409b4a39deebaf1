"""Checks of what a receiver and a loss return, and of whether examples are independent of each other's messages."""

from __future__ import annotations

import numbers
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from egg_sparse.games.snapshot import Snapshot


def looks_like_action(output: Any) -> bool:
    """Whether a receiver's output has the form of (action, log-probability, entropy)."""
    return (
        isinstance(output, tuple)
        and len(output) == 3
        and all(isinstance(part, torch.Tensor) and part.dim() <= 1 for part in output[1:])
    )


def warn_of_possible_action() -> None:
    """Warns that the three tensors of a receiver's output are not taken for (action, log-probability, entropy)."""
    warnings.warn(
        "the receiver returns three tensors, which go to the loss as they are; give the game receiver_acts=True if "
        "they are (action, log-probability, entropy), or False to silence this",
        RuntimeWarning,
        stacklevel=2,
    )


def unpacked_action(output: Any, size: int) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """The action of a receiver that acts, its log-probability ``(B,)`` and its entropy ``(B,)``.

    If there are several actions per example, the log-probability is their joint one, and the entropies are averaged.
    """
    if not (isinstance(output, tuple) and len(output) == 3 and all(isinstance(part, torch.Tensor) for part in output)):
        raise TypeError(
            "a receiver that acts must return (action, log-probability, entropy), three tensors; "
            f"got {type(output).__name__}"
        )
    action, log_prob, entropy = output
    if log_prob.shape not in ((), (1,), (size,)):
        raise ValueError(
            f"the receiver's log-probability must be one number per example, ({size},), got {tuple(log_prob.shape)}"
        )
    if entropy.dim() > 1:
        entropy = entropy.flatten(1).mean(1)
    return action, log_prob.expand(size), entropy.expand(size)


def check_loss(loss: Any, size: int) -> None:
    """Raises TypeError or ValueError unless the loss is a tensor ``(size,)``."""
    if not isinstance(loss, torch.Tensor):
        raise TypeError(f"the loss must return a tensor of losses per example, got {type(loss).__name__}")
    if loss.dim() == 0:
        raise ValueError(
            "the loss must return one value per example, but returned a scalar: it must not average over the batch "
            '(for the losses of torch.nn.functional, give reduction="none")'
        )
    if loss.shape != (size,):
        remedy = (
            ": for several views of an example, as in NTXent, return their mean, and take negatives from the inputs, "
            "not from messages"
        )
        has_views = loss.dim() == 1 and len(loss) > size and len(loss) % size == 0
        raise ValueError(
            f"the loss must return one value per example, of shape ({size},), but returned shape {tuple(loss.shape)}"
            f"{remedy * has_views}"
        )


def is_per_example(value: Any, size: int) -> TypeGuard[torch.Tensor]:
    """Whether a metric has one value per example, which an accuracy that is a mean over the batch has not."""
    return isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == size


def expanded_metric(name: str, value: Any, size: int, device: torch.device, is_gathered: bool) -> torch.Tensor:
    """A metric of the loss with the examples on axis 0; a metric without that axis is repeated for every example.

    Gathered (message, example) pairs allow no average over the batch, since an example occurs once for each of its
    messages.
    """
    if not isinstance(value, (torch.Tensor, numbers.Real)):
        raise TypeError(f"the loss must report tensors or numbers, but {name} is a {type(value).__name__}")
    if is_per_example(value, size):
        return value
    if is_gathered:
        got = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"the number {value}"
        raise ValueError(
            f"strategy gather needs one value of {name} per example, but the loss, which gets {size} pairs of examples "
            f"and messages, reports {got}; use vmap or loop, or return one value per example"
        )
    if not isinstance(value, torch.Tensor):
        value = torch.full((), float(value), device=device)
    if value.dim() == 1 and value.numel() == 1:
        value = value.reshape(())
    return value.expand(size, *value.shape)


def warn_of_averages(names: list[str]) -> None:
    """Warns that the expectations of these metrics, of which the loss reports one value per batch, are approximate."""
    warnings.warn(
        f"the loss reports {', '.join(names)} as one number per batch, whose expected value is an approximation: "
        "return one value per example",
        RuntimeWarning,
        stacklevel=2,
    )


_FORMAT_ERROR = re.compile(r"cannot be multiplied|not implemented for '(Long|Int)'|scalar type|dtype|as indices")


@contextmanager
def explained_format_error(messages: torch.Tensor) -> Iterator[None]:
    """A context that explains errors which say that the receiver or the loss needs messages of the other format."""
    try:
        yield
    except (RuntimeError, IndexError) as error:
        if not _FORMAT_ERROR.search(str(error)):
            raise
        sent, needed, message_format = "symbol ids", "one-hot rows", "one_hot"
        if messages.is_floating_point():
            sent, needed, message_format = "vectors", "symbol ids", "index"
        remedy = f'give the sender\'s wrapper message_format="{message_format}"'
        if messages.dim() == 3 and not messages.is_floating_point():
            remedy = _READS_IDS
        raise ValueError(
            f"with {sent} as messages the receiver or the loss failed: {error}; if it needs {needed}, {remedy}"
        ) from error


_READS_IDS = (
    "embed the ids of several symbols with nn.Embedding: EGG's RnnReceiverGS alone is given one-hot rows of them"
)


@contextmanager
def checked_vocabulary(receiver: Any, message: torch.Tensor, vocab_size: int | None) -> Iterator[None]:
    """A context that raises ValueError if the layer of the receiver that reads the message does not cover all symbols.

    It does so whether or not the batch contains the symbols that the layer lacks.
    """
    if vocab_size is None or not isinstance(receiver, nn.Module):
        yield
        return
    has_symbol_ids = not message.is_floating_point()

    def check(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not inputs or not _is_view(inputs[0], message):
            return
        if isinstance(layer, nn.Linear):
            if has_symbol_ids:
                remedy = _READS_IDS if message.dim() == 2 else 'give the sender\'s wrapper message_format="one_hot"'
                raise ValueError(
                    f"the receiver reads its message with {layer}, which needs one-hot messages, but gets symbol "
                    f"ids: {remedy}"
                )
            covered = layer.in_features
        elif isinstance(layer, nn.Embedding):
            if not has_symbol_ids and type(layer) is nn.Embedding:
                raise ValueError(
                    f"the receiver reads its message with {layer}, which needs symbol ids, but gets one-hot messages: "
                    'give the sender\'s wrapper message_format="index"'
                )
            covered = layer.num_embeddings
        else:
            return
        if covered < vocab_size or (covered != vocab_size and not has_symbol_ids):
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
def explained_index_error(vocab_size: int | None) -> Iterator[None]:
    """A context that explains an IndexError of the receiver by the symbols that it must be able to read."""
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


def batch_norms(receiver: Any) -> list[_BatchNorm]:
    """The BatchNorm layers that normalize with the statistics of the batch."""
    if not isinstance(receiver, nn.Module):
        return []
    return [
        layer
        for layer in receiver.modules()
        if isinstance(layer, _BatchNorm) and (layer.training or not layer.track_running_stats)
    ]


def warn_of_batch_norms(layers: list[_BatchNorm]) -> None:
    """Warns that these layers, if there are any, make the expected loss approximate."""
    if layers:
        warnings.warn(
            f"{type(layers[0]).__name__} in training normalizes an example by the messages of the other examples in "
            "the batch: each row of messages is played as a batch of its own, so that the expected loss is "
            "approximate; LayerNorm or GroupNorm keep it exact",
            RuntimeWarning,
            stacklevel=2,
        )


@torch.no_grad()
def message_dependent(
    layers: list[_BatchNorm],
    play: Callable[[torch.Tensor], Any],
    messages: torch.Tensor,
    agents: list[Any],
) -> list[_BatchNorm]:
    """The layers whose input changes with the messages.

    Both calls start from the same random state and a copy of the same buffers, and leave no trace.

    Args:
        layers: layers of the receiver.
        play: a function that plays one message per example, ``(B,)`` or ``(B, D)``.
        messages: two messages per example, ``(2, B)`` or ``(2, B, D)``.
        agents: the receiver and the loss that are called.
    """
    snapshot = Snapshot(agents, messages.device)
    inputs_of_calls: list[dict[int, list[torch.Tensor]]] = []

    def record(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        inputs_of_calls[-1].setdefault(id(layer), []).append(inputs[0].detach().clone())

    hooks = [layer.register_forward_pre_hook(record) for layer in layers]
    try:
        for message in messages:
            snapshot.start_trial()
            inputs_of_calls.append({})
            play(message)
    finally:
        for hook in hooks:
            hook.remove()
        snapshot.end_trials()
    first, second = inputs_of_calls

    def changes(layer: nn.Module) -> bool:
        one, other = first.get(id(layer), []), second.get(id(layer), [])
        return len(one) != len(other) or not all(map(torch.equal, one, other))

    return [layer for layer in layers if changes(layer)]


@torch.no_grad()
def coupling(
    losses_of: Callable[[torch.Tensor], torch.Tensor], messages: torch.Tensor, agents: list[Any]
) -> float | None:
    r"""The largest change of an example's loss when messages of other examples change, and its own message does not.

    Every pair of examples is tried: for every binary digit, the examples whose index has a 1 there change their
    message, and the losses of the others are compared; then those whose index has a 0. Every call starts from the same
    random state and a copy of the same buffers, and leaves no trace.

    Args:
        losses_of: a function from one message per example, ``(B,)`` or ``(B, D)``, to losses ``(B,)``.
        messages: two messages per example, ``(2, B)`` or ``(2, B, D)``.
        agents: the receiver and the loss that are called.

    Returns:
        The change; 0 if it is within rounding; None if it cannot be told, because losses are not finite, losses of the
        same messages differ between two calls, or the use of random numbers depends on the messages.
    """
    size = messages.shape[1]
    layers = batch_norms(agents[0])
    if any(not layer.track_running_stats for layer in layers):
        return None
    snapshot = Snapshot(agents, messages.device)
    random_states: list[Any] = []

    def trial(message: torch.Tensor) -> torch.Tensor:
        snapshot.start_trial()
        losses = losses_of(message)
        random_states.append(snapshot.comparable_random_state())
        return losses

    own = messages[0]
    try:
        for layer in layers:
            layer.training = False
        losses = trial(own)
        eps = torch.finfo(losses.dtype).eps
        changes, can_be_told = [torch.zeros_like(losses)], torch.isfinite(losses).all()
        digits = torch.arange(size, device=messages.device)[:, None] >> torch.arange(
            (size - 1).bit_length(), device=messages.device
        )
        for value in (0, 1):
            for is_changed in ((digits & 1) == value).t():
                message = torch.where(is_changed.view(-1, *(1,) * (own.dim() - 1)), messages[1], own)
                changed_losses = trial(message)
                change = (changed_losses - losses).abs()
                rounding = eps * (32 * torch.maximum(changed_losses.abs(), losses.abs()) + 1)
                changes.append(torch.where(is_changed | (change <= rounding), 0, change))
                can_be_told = can_be_told & (is_changed | torch.isfinite(changed_losses)).all()
        can_be_told = can_be_told & (trial(own) == losses).all()
    finally:
        for layer in layers:
            layer.training = True
        snapshot.end_trials()
    largest, told = torch.stack((torch.stack(changes).amax(), can_be_told.to(losses.dtype))).tolist()
    return largest if told and all(state == random_states[0] for state in random_states) else None
