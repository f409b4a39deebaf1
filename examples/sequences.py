"""Agents and options of the games with messages of several symbols."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import nn

CELLS = ("rnn", "gru", "lstm")


class Sender(nn.Linear):
    """Returns the hidden state ``(B, hidden)`` from which the message is unrolled."""

    def forward(self, features: torch.Tensor, aux_input: Any = None) -> torch.Tensor:
        return super().forward(features)


class Receiver(nn.Linear):
    """Returns scores from the hidden state ``(B, hidden)`` after the message."""

    def forward(self, hidden: torch.Tensor, receiver_input: Any = None, aux_input: Any = None) -> torch.Tensor:
        return super().forward(hidden)


class PointingReceiver(nn.Module):
    """Returns scores of candidates ``(B, n_candidates, n_features)`` from the hidden state after the message."""

    def __init__(self, n_features: int, n_hidden: int) -> None:
        super().__init__()
        self.embed = nn.Linear(n_features, n_hidden)

    def forward(self, hidden: torch.Tensor, candidates: torch.Tensor, aux_input: Any = None) -> torch.Tensor:
        return torch.bmm(self.embed(candidates).tanh(), hidden.unsqueeze(2)).squeeze(2)


def add_options(parser: argparse.ArgumentParser, *, cell: str = "rnn", hidden: int = 10, embedding: int = 10) -> None:
    """Adds the options of both agents' recurrent networks, with these defaults."""
    for agent in ("sender", "receiver"):
        option = parser.add_argument
        option(f"--{agent}_cell", choices=CELLS, default=cell, help=f"cell of the {agent} (default: {cell})")
        option(f"--{agent}_hidden", type=int, default=hidden, help=f"units of the cell (default: {hidden})")
        option(f"--{agent}_embedding", type=int, default=embedding, help=f"size of symbols (default: {embedding})")
