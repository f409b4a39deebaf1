"""Agents of the game: the maps between objects and the networks that write and read messages."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Sender(nn.Module):
    """A linear map from objects ``(B, n_inputs)`` to the state with which a message begins, ``(B, n_hidden)``."""

    def __init__(self, n_inputs: int, n_hidden: int) -> None:
        super().__init__()
        self.begin = nn.Linear(n_inputs, n_hidden)

    def forward(self, objects: torch.Tensor, aux_input: Any = None) -> torch.Tensor:
        return self.begin(objects)


class Receiver(nn.Module):
    """A linear map from read messages ``(B, n_hidden)`` to scores of all attributes' values, ``(B, n_outputs)``."""

    def __init__(self, n_hidden: int, n_outputs: int) -> None:
        super().__init__()
        self.score = nn.Linear(n_hidden, n_outputs)

    def forward(self, read: torch.Tensor, receiver_input: Any = None, aux_input: Any = None) -> torch.Tensor:
        return self.score(read)
