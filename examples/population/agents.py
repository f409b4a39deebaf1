"""Agents, loss and data of the population."""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse.host import core
from examples import data

SETTINGS = ["--vocab_size=64", "--batch_size=64", "--lr=0.001", "--n_epochs=30"]
N_FEATURES = 784


class Sender(nn.Module):
    """Returns log-probabilities of the symbols."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Flatten(), nn.Linear(N_FEATURES, vocab_size), nn.BatchNorm1d(vocab_size))

    def forward(self, images: torch.Tensor, aux_input: Any = None) -> torch.Tensor:
        return self.score(images).log_softmax(dim=1)


class Receiver(nn.Module):
    """Returns scores ``(B, B)`` of a batch's images, among which each message's own is to be found."""

    def __init__(self, n_hidden: int, n_embedding: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.embed = nn.Sequential(
            *(nn.Flatten(), nn.Linear(N_FEATURES, n_hidden), nn.LayerNorm(n_hidden), nn.ReLU()),
            nn.Linear(n_hidden, n_embedding, bias=False),
        )

    def forward(self, symbol: torch.Tensor, images: torch.Tensor, aux_input: Any = None) -> torch.Tensor:
        cosine = F.normalize(symbol, dim=1) @ F.normalize(self.embed(images), dim=1).t()
        return cosine / self.temperature


def loss(
    sender_input: torch.Tensor,
    message: torch.Tensor,
    receiver_input: torch.Tensor,
    receiver_output: torch.Tensor,
    labels: torch.Tensor,
    aux_input: Any,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    own = torch.arange(len(receiver_output), device=receiver_output.device)
    correct = (receiver_output.argmax(dim=1) == own).float()
    return F.cross_entropy(receiver_output, own, reduction="none"), {"acc": correct}


def add_options(parser: argparse.ArgumentParser) -> None:
    data.add_options(parser)
    option = parser.add_argument
    option("--n_senders", type=int, default=3, help="senders in the population (default: 3)")
    option("--n_receivers", type=int, default=3, help="receivers in the population (default: 3)")
    option("--gs_temperature", type=float, default=5.0, help="Gumbel-Softmax temperature (default: 5)")
    option("--recv_temperature", type=float, default=0.1, help="what similarities are divided by (default: 0.1)")
    option("--recv_hidden_dim", type=int, default=256, help="units of the receivers' hidden layer (default: 256)")


def build_agents(opts: argparse.Namespace) -> tuple[list[nn.Module], list[nn.Module]]:
    """All senders, and all receivers."""

    def receiver() -> nn.Module:
        agent = Receiver(opts.recv_hidden_dim, opts.vocab_size, opts.recv_temperature)
        return core.SymbolReceiverWrapper(agent, opts.vocab_size, opts.vocab_size)

    return [Sender(opts.vocab_size) for _ in range(opts.n_senders)], [receiver() for _ in range(opts.n_receivers)]


def build_data(opts: argparse.Namespace) -> tuple[data.Batches, data.Batches]:
    """Images for the sender, classes, and the same images for the receiver."""
    (images, classes), (new_images, new_classes) = data.load(opts)
    return (
        data.Batches(images, classes, images, batch_size=opts.batch_size, drop_last=True),
        data.Batches(new_images, new_classes, new_images, batch_size=opts.batch_size, shuffle=False, drop_last=True),
    )
