"""Agents, loss and data of the classification of digits."""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse.host import core
from examples import data

SETTINGS = ["--vocab_size=1024", "--batch_size=32", "--lr=0.001", "--n_epochs=10"]


def le_net() -> nn.Sequential:
    """From two digits side by side, ``(B, 1, 28, 56)``, to 400 features."""
    return nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.LeakyReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(20, 50, 5), nn.LeakyReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(4 * 11 * 50, 400), nn.LeakyReLU()),
    )


class Sender(nn.Module):
    """Returns log-probabilities of the symbols."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vision = le_net()
        self.score = nn.Linear(400, vocab_size)

    def forward(self, images: torch.Tensor, aux_input: Any = None) -> torch.Tensor:
        return self.score(self.vision(images)).log_softmax(dim=1)


class Receiver(nn.Module):
    """Returns log-probabilities of the classes."""

    def __init__(self, n_classes: int, n_hidden: int) -> None:
        super().__init__()
        hidden = [layer for _ in range(n_hidden) for layer in (nn.LeakyReLU(), nn.Linear(400, 400))]
        self.classify = nn.Sequential(*hidden, nn.LeakyReLU(), nn.Linear(400, n_classes))

    def forward(self, symbol: torch.Tensor, receiver_input: Any = None, aux_input: Any = None) -> torch.Tensor:
        return self.classify(symbol).log_softmax(dim=1)


def loss(
    sender_input: torch.Tensor,
    message: torch.Tensor,
    receiver_input: Any,
    receiver_output: torch.Tensor,
    labels: torch.Tensor,
    aux_input: Any,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    correct = (receiver_output.argmax(dim=1) == labels).float()
    return F.nll_loss(receiver_output, labels, reduction="none"), {"acc": correct}


def in_pairs(images: torch.Tensor, classes: torch.Tensor, n_labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every image of a batch's first half beside one of its second half, and the other way round.

    The label of digits a and b is the number ab modulo ``n_labels``. An image without a partner is left out.
    """
    half = len(images) // 2
    left, right = torch.arange(2 * half), torch.arange(2 * half).roll(half)
    return torch.cat((images[left], images[right]), dim=3), (10 * classes[left] + classes[right]) % n_labels


def add_options(parser: argparse.ArgumentParser) -> None:
    data.add_options(parser)
    parser.add_argument("--temperature", type=float, default=1.0, help="Gumbel-Softmax temperature (default: 1)")
    parser.add_argument(
        "--early_stopping_thr", type=float, default=0.98, help="accuracy that is enough (default: 0.98)"
    )
    parser.add_argument("--n_labels", type=int, default=10, help="classes of the pairs of digits (default: 10)")
    parser.add_argument("--n_hidden", type=int, default=0, help="the receiver's hidden layers (default: 0)")


def build_agents(opts: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    receiver = Receiver(opts.n_labels, opts.n_hidden)
    return Sender(opts.vocab_size), core.SymbolReceiverWrapper(receiver, opts.vocab_size, agent_input_size=400)


def build_data(opts: argparse.Namespace) -> tuple[data.Batches, data.Batches]:
    train, validation = data.load(opts)

    def pairs(images: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return in_pairs(images, classes, opts.n_labels)

    return (
        data.Batches(*train, batch_size=opts.batch_size, transform=pairs),
        data.Batches(*validation, batch_size=1000, shuffle=False, transform=pairs),
    )
