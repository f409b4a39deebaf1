"""Interaction: what was said in a batch, or in many; LoggingStrategy: which parts of it are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from egg_sparse.standin.batch import Batch

_TENSOR_FIELDS = ("sender_input", "receiver_input", "labels", "message", "receiver_output", "message_length")


@dataclass
class LoggingStrategy:
    store_sender_input: bool = True
    store_receiver_input: bool = True
    store_labels: bool = True
    store_aux_input: bool = True
    store_message: bool = True
    store_receiver_output: bool = True
    store_message_length: bool = True

    def filtered_interaction(
        self,
        sender_input: torch.Tensor | None,
        receiver_input: torch.Tensor | None,
        labels: torch.Tensor | None,
        aux_input: dict[str, torch.Tensor] | None,
        message: torch.Tensor | None,
        receiver_output: torch.Tensor | None,
        message_length: torch.Tensor | None,
        aux: dict[str, torch.Tensor],
    ) -> Interaction:
        """An Interaction of the parts that this strategy keeps; ``aux`` is always kept."""
        return Interaction(
            sender_input=sender_input if self.store_sender_input else None,
            receiver_input=receiver_input if self.store_receiver_input else None,
            labels=labels if self.store_labels else None,
            aux_input=aux_input if self.store_aux_input else None,
            message=message if self.store_message else None,
            receiver_output=receiver_output if self.store_receiver_output else None,
            message_length=message_length if self.store_message_length else None,
            aux=aux,
        )

    @classmethod
    def minimal(cls) -> LoggingStrategy:
        return cls(False, False, False, False, False, False, False)

    @classmethod
    def maximal(cls) -> LoggingStrategy:
        return cls()


def _concatenate(parts: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    tensors = [part for part in parts if part is not None]
    if not tensors:
        return None
    if len(tensors) < len(parts):
        raise RuntimeError("Appending empty and non-empty interactions logs. Normally this shouldn't happen!")
    return torch.cat(tensors, dim=0)


def _merge(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    merged = dict(first.items())
    for key, value in second.items():
        merged[key] = torch.cat((merged[key], value)) if key in merged else value
    return merged


@dataclass(unsafe_hash=True)
class Interaction:
    """The inputs, messages and outputs of a batch; ``aux`` holds what the loss reports per example."""

    sender_input: torch.Tensor | None
    receiver_input: torch.Tensor | None
    labels: torch.Tensor | None
    aux_input: dict[str, torch.Tensor] | None

    message: torch.Tensor | None
    receiver_output: torch.Tensor | None

    message_length: torch.Tensor | None
    aux: dict[str, torch.Tensor]

    def __add__(self, other: Interaction) -> Interaction:
        fields: dict[str, Any] = {
            name: _concatenate([getattr(self, name), getattr(other, name)]) for name in _TENSOR_FIELDS
        }
        return Interaction(
            **fields,
            aux_input=_merge(self.aux_input, other.aux_input),  # type: ignore[arg-type]
            aux=_merge(self.aux, other.aux),
        )

    @property
    def size(self) -> int:
        """How many examples are logged."""
        for name in _TENSOR_FIELDS:
            if getattr(self, name) is not None:
                return getattr(self, name).size(0)
        raise RuntimeError("Cannot determine interaction log size; it is empty.")

    def to(self, *args: Any, **kwargs: Any) -> Interaction:
        """Moves all tensors, in place; returns this same interaction."""

        def move(part: Any) -> Any:
            return part.to(*args, **kwargs) if torch.is_tensor(part) else part

        for name in _TENSOR_FIELDS:
            setattr(self, name, move(getattr(self, name)))
        if self.aux_input:
            self.aux_input = {key: move(value) for key, value in self.aux_input.items()}
        if self.aux:
            self.aux = {key: move(value) for key, value in self.aux.items()}
        return self

    @staticmethod
    def from_iterable(interactions: Sequence[Interaction]) -> Interaction:
        """One interaction of many, in order. All must log the same parts."""
        if not interactions:
            raise AssertionError("interaction list must not be empty")
        first = interactions[0]
        for other in interactions:
            if len(other.aux) != len(first.aux):
                raise AssertionError("found two interactions of different aux size")
            if first.aux_input is None:
                if other.aux_input:
                    raise AssertionError("some aux_info are defined some are not, this should not happen")
            elif len(other.aux_input) != len(first.aux_input):  # type: ignore[arg-type]
                raise AssertionError("found two interactions of different aux_info size")
        fields: dict[str, Any] = {
            name: _concatenate([getattr(each, name) for each in interactions]) for name in _TENSOR_FIELDS
        }
        aux: dict[str, Any] = {key: _concatenate([each.aux[key] for each in interactions]) for key in first.aux}
        aux_input: dict[str, Any] | None = None
        if first.aux_input is not None:
            aux_input = {
                key: _concatenate([each.aux_input[key] for each in interactions])  # type: ignore[index]
                for key in first.aux_input
            }
        return Interaction(**fields, aux_input=aux_input, aux=aux)

    @staticmethod
    def empty() -> Interaction:
        return Interaction(None, None, None, {}, None, None, None, {})

    @staticmethod
    def gather_distributed_interactions(log: Interaction) -> Interaction | None:
        """The interactions of all processes, in the order of their ranks, on the CPU."""
        if not dist.is_initialized():
            raise AssertionError("torch.distributed must be initialized beforehand")
        device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")

        def gather(part: torch.Tensor | None) -> torch.Tensor | None:
            if part is None:
                return None
            part = part.contiguous().to(device)
            parts = [torch.zeros_like(part) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, part)
            return torch.cat(parts, dim=0).cpu()

        fields: dict[str, Any] = {name: gather(getattr(log, name)) for name in _TENSOR_FIELDS}
        aux_input: dict[str, Any] = {key: gather(value) for key, value in (log.aux_input or {}).items()}
        aux: dict[str, Any] = {key: gather(value) for key, value in (log.aux or {}).items()}
        return Interaction(**fields, aux_input=aux_input, aux=aux)


def dump_interactions(
    game: torch.nn.Module,
    dataset: torch.utils.data.DataLoader,
    gs: bool,
    variable_length: bool,
    device: torch.device | None = None,
    apply_padding: bool = True,
) -> Interaction:
    """Plays the whole dataset in evaluation mode and returns all that was said.

    Args:
        game: the game.
        dataset: yields batches.
        gs: messages are one-hot or relaxed: log the symbol ids instead.
        variable_length: messages are sequences.
        device: the device to play on; CUDA if there is any, by default.
        apply_padding: set everything after a sequence's end to 0.
    """
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    was_training = game.training
    game.eval()
    full: Any = None
    with torch.no_grad():
        for batch in dataset:
            if not isinstance(batch, Batch):
                batch = Batch(*batch)
            _, interaction = game(*batch.to(device))
            interaction = interaction.to("cpu")
            if gs:
                interaction.message = interaction.message.argmax(dim=-1)
            if apply_padding and variable_length:
                if interaction.message_length is None:
                    raise AssertionError("message_length must be logged for variable-length messages")
                positions = torch.arange(interaction.message.size(1))
                interaction.message[positions >= interaction.message_length.long().unsqueeze(1)] = 0
            full = interaction if full is None else full + interaction
    game.train(mode=was_training)
    return full
