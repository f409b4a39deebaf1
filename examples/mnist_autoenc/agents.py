"""Agents, loss and data of the autoencoder of digits."""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse.host import core
from examples import data

SETTINGS = ["--vocab_size=10", "--batch_size=16", "--n_epochs=50"]


class Sender(nn.Module):
    """Returns log-probabilities of the symbols."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, vocab_size))

    def forward(self, images: torch.Tensor, aux_input: Any = None) -> torch.Tensor:
        return self.score(images).log_softmax(dim=1)


class Receiver(nn.Module):
    """Returns the brightness of every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.draw = nn.Sequential(nn.LeakyReLU(), nn.Linear(400, 784), nn.Sigmoid())

    def forward(self, symbol: torch.Tensor, receiver_input: Any = None, aux_input: Any = None) -> torch.Tensor:
        return self.draw(symbol)


def loss(
    sender_input: torch.Tensor,
    message: torch.Tensor,
    receiver_input: Any,
    receiver_output: torch.Tensor,
    labels: torch.Tensor,
    aux_input: Any,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The cross-entropy per pixel."""
    return F.binary_cross_entropy(receiver_output, sender_input.flatten(1), reduction="none").mean(dim=1), {}


def add_options(parser: argparse.ArgumentParser) -> None:
    data.add_options(parser)
    parser.add_argument("--temperature", type=float, default=1.0, help="first Gumbel-Softmax temperature (default: 1)")


def build_agents(opts: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    return Sender(opts.vocab_size), core.SymbolReceiverWrapper(Receiver(), opts.vocab_size, agent_input_size=400)


def build_data(opts: argparse.Namespace) -> tuple[data.Batches, data.Batches]:
    train, validation = data.load(opts)
    return (
        data.Batches(*train, batch_size=opts.batch_size),
        data.Batches(*validation, batch_size=opts.batch_size, shuffle=False),
    )
