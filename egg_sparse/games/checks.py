"""What a receiver and a loss may return, and whether the sum over an example's own messages is its expected loss."""

from __future__ import annotations

import numbers
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from egg_sparse.games.snapshot import Snapshot


def looks_like_action(output: Any) -> bool:
    """Whether a receiver's output has the shape of (action, log-probability, entropy)."""
    return (
        isinstance(output, tuple)
        and len(output) == 3
        and all(isinstance(part, torch.Tensor) and part.dim() <= 1 for part in output[1:])
    )


def warn_of_possible_action() -> None:
    """Warns that a receiver's three tensors go to the loss as they are."""
    warnings.warn(
        "the receiver returns three tensors, which go to the loss as they are; give the game receiver_acts=True if "
        "they are (action, log-probability, entropy), or False to silence this",
        RuntimeWarning,
        stacklevel=2,
    )


def unpacked_action(output: Any, size: int) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """The action of a receiver that acts, its log-probability ``(B,)`` and its entropy ``(B,)``.

    Of several actions per example, the log-probability is that of all together, the entropy their mean.
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
    if not isinstance(loss, torch.Tensor):
        raise TypeError(f"the loss must return a tensor of losses per example, got {type(loss).__name__}")
    if loss.dim() == 0:
        raise ValueError(
            "the loss must return one value per example, but returned a scalar: it must not average over the batch "
            '(for the losses of torch.nn.functional, give reduction="none")'
        )
    if loss.shape != (size,):
        views = (
            ": of several views of an example, as NTXent has, return the mean, and take negatives from the inputs, not "
            "from messages"
        )
        several = loss.dim() == 1 and len(loss) > size and len(loss) % size == 0
        raise ValueError(
            f"the loss must return one value per example, of shape ({size},), but returned shape {tuple(loss.shape)}"
            f"{views * several}"
        )


def per_example(name: str, value: Any, size: int, device: torch.device, of_pairs: bool) -> torch.Tensor:
    """What the loss reported under a name, with the examples on axis 0.

    What has no value per example, such as an average over the batch, stands there once for every example. Of pairs of
    examples and messages there is no such average: how many there are of an example depends on its support.
    """
    if not isinstance(value, (torch.Tensor, numbers.Real)):
        raise TypeError(f"the loss must report tensors or numbers, but {name} is a {type(value).__name__}")
    if isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == size:
        return value
    if of_pairs:
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


def is_per_batch(value: Any, size: int) -> bool:
    """Whether what the loss reported has no value per example, such as an accuracy that is a mean over the batch."""
    return not (isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == size)


def warn_of_averages(names: list[str]) -> None:
    """Warns that the loss reports these as numbers per batch, whose expectation is approximate."""
    warnings.warn(
        f"the loss reports {', '.join(names)} as one number per batch, whose expected value is an approximation: "
        "return one value per example",
        RuntimeWarning,
        stacklevel=2,
    )


_OF_ANOTHER_FORMAT = re.compile(r"cannot be multiplied|not implemented for '(Long|Int)'|scalar type|dtype|as indices")


@contextmanager
def explained_format_error(messages: torch.Tensor) -> Iterator[None]:
    """Says which format the messages have if an operation of the receiver or the loss seems to need the other."""
    try:
        yield
    except (RuntimeError, IndexError) as error:
        if not _OF_ANOTHER_FORMAT.search(str(error)):
            raise
        given, other, name = "symbol ids", "one-hot rows", "one_hot"
        if messages.is_floating_point():
            given, other, name = "vectors", "symbol ids", "index"
        raise ValueError(
            f"with {given} as messages the receiver or the loss failed: {error}; if it needs {other}, give the "
            f'sender\'s wrapper message_format="{name}"'
        ) from error


@contextmanager
def checked_vocabulary(receiver: Any, message: torch.Tensor, vocab_size: int | None) -> Iterator[None]:
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
def explained_index_error(vocab_size: int | None) -> Iterator[None]:
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
    """The layers that make an example's output depend on the other examples, and on their messages."""
    if not isinstance(receiver, nn.Module):
        return []
    return [
        layer
        for layer in receiver.modules()
        if isinstance(layer, _BatchNorm) and (layer.training or not layer.track_running_stats)
    ]


def warn_of_batch_norms(layers: list[_BatchNorm]) -> None:
    """Warns of :func:`batch_norms`, if there are any."""
    if layers:
        warnings.warn(
            f"{type(layers[0]).__name__} in training normalizes an example by the messages of the other examples in "
            "the batch: each row of messages is played as a batch of its own, so that the expected loss is "
            "approximate; LayerNorm or GroupNorm keep it exact",
            RuntimeWarning,
            stacklevel=2,
        )


@torch.no_grad()
def that_see_messages(
    layers: list[_BatchNorm],
    play: Callable[[torch.Tensor], Any],
    messages: torch.Tensor,
    agents: list[Any],
) -> list[_BatchNorm]:
    """Those layers whose input changes with the messages.

    Both calls begin with the same random numbers and a copy of the same buffers, and leave nothing behind.

    Args:
        layers: layers of the receiver.
        play: plays one message per example, ``(B,)`` or ``(B, D)``.
        messages: two messages per example, ``(2, B)`` or ``(2, B, D)``.
        agents: the receiver and the loss that are called.
    """
    before = Snapshot(agents, messages.device)
    seen: list[dict[int, list[torch.Tensor]]] = []

    def note(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen[-1].setdefault(id(layer), []).append(inputs[0].detach().clone())

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        for message in messages:
            before.lend()
            seen.append({})
            play(message)
    finally:
        for hook in hooks:
            hook.remove()
        before.reclaim()
    first, second = seen

    def changes(layer: nn.Module) -> bool:
        one, other = first.get(id(layer), []), second.get(id(layer), [])
        return len(one) != len(other) or not all(map(torch.equal, one, other))

    return [layer for layer in layers if changes(layer)]


@torch.no_grad()
def change_by_others(
    losses_of: Callable[[torch.Tensor], torch.Tensor], messages: torch.Tensor, agents: list[Any]
) -> float | None:
    r"""The largest change of an example's loss when the messages of other examples are exchanged, and its own is not.

    Every pair of examples is tried: in the round of a binary digit, the examples whose number has that digit get
    another message, and the losses of the others are compared; then the other way round. Every call begins with the
    same random numbers and a copy of the same buffers, and leaves nothing behind.

    Args:
        losses_of: plays one message per example, ``(B,)`` or ``(B, D)``; returns losses ``(B,)``.
        messages: two messages per example, ``(2, B)`` or ``(2, B, D)``.
        agents: the receiver and the loss that are called.

    Returns:
        The change; 0 where it is within rounding; None where it cannot be told, since losses are not finite,
        those of the same messages differ between two calls, or the number of random draws depends on the messages.
    """
    size = messages.shape[1]
    layers = batch_norms(agents[0])
    if any(not layer.track_running_stats for layer in layers):
        return None
    before = Snapshot(agents, messages.device)
    draws: list[Any] = []

    def played(message: torch.Tensor) -> torch.Tensor:
        before.lend()
        losses = losses_of(message)
        draws.append(before.draws())
        return losses

    own = messages[0]
    try:
        for layer in layers:
            layer.training = False
        losses = played(own)
        eps = torch.finfo(losses.dtype).eps
        changes, can_be_told = [torch.zeros_like(losses)], torch.isfinite(losses).all()
        digits = torch.arange(size, device=messages.device)[:, None] >> torch.arange(
            (size - 1).bit_length(), device=messages.device
        )
        for value in (0, 1):
            for exchanged in ((digits & 1) == value).t():
                message = torch.where(exchanged.view(-1, *(1,) * (own.dim() - 1)), messages[1], own)
                others = played(message)
                change = (others - losses).abs()
                rounding = eps * (32 * torch.maximum(others.abs(), losses.abs()) + 1)
                changes.append(torch.where(exchanged | (change <= rounding), 0, change))
                can_be_told = can_be_told & (exchanged | torch.isfinite(others)).all()
        can_be_told = can_be_told & (played(own) == losses).all()
    finally:
        for layer in layers:
            layer.training = True
        before.reclaim()
    largest, told = torch.stack((torch.stack(changes).amax(), can_be_told.to(losses.dtype))).tolist()
    return largest if told and all(state == draws[0] for state in draws) else None
