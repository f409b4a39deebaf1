"""Batch: what a data loader hands to a game."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from egg_sparse.standin.util import move_to


class Batch:
    """Sender's input, labels, receiver's input and auxiliary input, in the order of a game's arguments."""

    def __init__(
        self,
        sender_input: torch.Tensor,
        labels: torch.Tensor | None = None,
        receiver_input: torch.Tensor | None = None,
        aux_input: dict[Any, Any] | None = None,
    ) -> None:
        self.sender_input = sender_input
        self.labels = labels
        self.receiver_input = receiver_input
        self.aux_input = aux_input

    def __getitem__(self, idx: int) -> Any:
        if idx not in (0, 1, 2, 3):
            raise IndexError("Trying to access a wrong index in the batch")
        return list(self)[idx]

    def __iter__(self) -> Iterator[Any]:
        return iter([self.sender_input, self.labels, self.receiver_input, self.aux_input])

    def to(self, device: torch.device) -> Batch:
        """Moves all tensors, nested ones too, to a device; returns this same batch."""
        self.sender_input, self.labels, self.receiver_input, self.aux_input = (move_to(part, device) for part in self)
        return self
