"""Agents, loss and data of the autoencoder of one-hot vectors."""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse.host import core
from examples import data

SETTINGS = ["--vocab_size=10", "--batch_size=512", "--lr=0.001", "--n_epochs=20"]


class Sender(nn.Module):
    """Returns log-probabilities of the symbols."""

    def __init__(self, n_features: int, n_hidden: int, vocab_size: int) -> None:
        super().__init__()
        self.score = nn.Sequential(
            *(nn.Linear(n_features, n_hidden), nn.Linear(n_hidden, n_hidden), nn.Tanh()),
            nn.Linear(n_hidden, vocab_size),
        )

    def forward(self, features: torch.Tensor, aux_input: Any = None) -> torch.Tensor:
        return self.score(features).log_softmax(dim=1)


class Receiver(nn.Module):
    """Returns scores of the features."""

    def __init__(self, n_embedding: int, n_hidden: int, n_features: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(n_embedding, n_hidden), nn.Tanh(), nn.Linear(n_hidden, n_features))

    def forward(self, symbol: torch.Tensor, receiver_input: Any = None, aux_input: Any = None) -> torch.Tensor:
        return self.score(symbol)


def loss(
    sender_input: torch.Tensor,
    message: torch.Tensor,
    receiver_input: Any,
    receiver_output: torch.Tensor,
    labels: torch.Tensor,
    aux_input: Any,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    correct = (receiver_output.argmax(dim=1) == labels).float()
    return F.cross_entropy(receiver_output, labels, reduction="none"), {"acc": correct}


def add_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("--mode", choices=("rf", "gs"), default="rf", help="score function or Gumbel-Softmax (default: rf)")
    option("--n_features", type=int, default=10, help="length of the vectors (default: 10)")
    option("--batches_per_epoch", type=int, default=100, help="training batches per epoch (default: 100)")
    option("--sender_hidden", type=int, default=10, help="units of the sender's hidden layers (default: 10)")
    option("--receiver_hidden", type=int, default=10, help="units of the receiver's hidden layer (default: 10)")
    option("--receiver_embedding", type=int, default=10, help="size of the receiver's symbols (default: 10)")
    option("--sender_entropy_coeff", type=float, default=0.1, help="coefficient of the entropy (default: 0.1)")
    option("--temperature", type=float, default=1.0, help="first Gumbel-Softmax temperature (default: 1)")


def build_agents(opts: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    sender = Sender(opts.n_features, opts.sender_hidden, opts.vocab_size)
    receiver = Receiver(opts.receiver_embedding, opts.receiver_hidden, opts.n_features)
    return sender, core.SymbolReceiverWrapper(receiver, opts.vocab_size, opts.receiver_embedding)


def build_data(opts: argparse.Namespace) -> tuple[data.DrawnBatches, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Random vectors for training; each vector once for validation."""

    def one_hot(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return F.one_hot(features, opts.n_features).float(), features

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        return one_hot(torch.randint(opts.n_features, (opts.batch_size,)))

    return data.DrawnBatches(draw, opts.batches_per_epoch), [one_hot(torch.arange(opts.n_features))]
