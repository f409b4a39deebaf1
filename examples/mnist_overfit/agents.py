"""Agents, loss and data of the classification of digits, some of whose labels are random."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import nn

from egg_sparse.host import core
from examples import data
from examples.mnist_classification.agents import in_pairs, le_net, loss

__all__ = ["SETTINGS", "add_options", "build_agents", "build_data", "loss"]

SETTINGS = ["--vocab_size=1024", "--batch_size=32", "--lr=0.001", "--n_epochs=10"]
N_CLASSES = 10


class Sender(nn.Module):
    """Returns log-probabilities of the symbols."""

    def __init__(self, vocab_size: int, deeper: bool) -> None:
        super().__init__()
        self.vision = le_net()
        self.score = nn.Sequential(*[nn.Linear(400, 400)] * deeper, nn.Linear(400, vocab_size))

    def forward(self, images: torch.Tensor, aux_input: Any = None) -> torch.Tensor:
        return self.score(self.vision(images)).log_softmax(dim=1)


class Receiver(nn.Module):
    """Returns log-probabilities of the classes."""

    def __init__(self, deeper: bool) -> None:
        super().__init__()
        self.classify = nn.Sequential(*[nn.Linear(400, 400)] * deeper, nn.Linear(400, N_CLASSES))

    def forward(self, symbol: torch.Tensor, receiver_input: Any = None, aux_input: Any = None) -> torch.Tensor:
        return self.classify(symbol).log_softmax(dim=1)


def corrupted(classes: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    """Classes ``(n,)``, of which a random share is replaced by those of other images."""
    generator = torch.Generator().manual_seed(seed)
    replaced = torch.rand(len(classes), generator=generator) < share
    return torch.where(replaced, classes[torch.randperm(len(classes), generator=generator)], classes)


def add_options(parser: argparse.ArgumentParser) -> None:
    data.add_options(parser)
    parser.add_argument("--temperature", type=float, default=1.0, help="Gumbel-Softmax temperature (default: 1)")
    parser.add_argument("--early_stopping_thr", type=float, default=1.0, help="accuracy that is enough (default: 1)")
    parser.add_argument(
        "--p_corrupt", type=float, default=0.5, help="share of random labels in training (default: 0.5)"
    )
    parser.add_argument(
        "--deeper", choices=("neither", "sender", "receiver"), default="neither", help="agent with one more layer"
    )


def build_agents(opts: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    receiver = core.SymbolReceiverWrapper(Receiver(opts.deeper == "receiver"), opts.vocab_size, agent_input_size=400)
    return Sender(opts.vocab_size, opts.deeper == "sender"), receiver


def build_data(opts: argparse.Namespace) -> tuple[data.Batches, data.Batches]:
    (images, classes), validation = data.load(opts)
    classes = corrupted(classes, opts.p_corrupt, opts.random_seed + 1)

    def pairs(images: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return in_pairs(images, classes, N_CLASSES)

    return (
        data.Batches(images, classes, batch_size=opts.batch_size, transform=pairs),
        data.Batches(*validation, batch_size=1000, shuffle=False, transform=pairs),
    )
