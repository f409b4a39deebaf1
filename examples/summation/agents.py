"""Agents, loss and data of the strings of a and b."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import nn

from egg_sparse.host import core
from egg_sparse.zoo.cli import number
from examples import data, sequences
from examples.basic_games.agents import discrimination_loss as loss

__all__ = ["SETTINGS", "add_options", "build_agents", "build_data", "loss"]

SETTINGS = ["--vocab_size=20", "--max_len=2", "--batch_size=32", "--n_epochs=5"]

_Batch = tuple[torch.Tensor, torch.Tensor]


class Sender(nn.Module):
    """Reads strings ``(B, length)`` of a (1) and b (2), with 0 after their end; returns the hidden state after them."""

    def __init__(self, opts: argparse.Namespace) -> None:
        super().__init__()
        self.encoder = core.RnnEncoder(3, opts.sender_embedding, opts.sender_hidden, opts.sender_cell)

    def forward(self, strings: torch.Tensor, aux_input: Any = None) -> torch.Tensor:
        return self.encoder(strings)


def add_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("--max_n", type=number(int, at_least=2), default=10, help="a string has fewer a, and fewer b (default: 10)")
    option("--batches_per_epoch", type=int, default=100, help="batches of training and of validation (default: 100)")
    option("--temperature", type=float, default=0.5, help="Gumbel-Softmax temperature (default: 0.5)")
    sequences.add_options(parser, cell="lstm")


def build_agents(opts: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    return Sender(opts), sequences.Receiver(opts.receiver_hidden, 2)


def build_data(opts: argparse.Namespace) -> tuple[data.DrawnBatches, list[_Batch]]:
    """Random strings; the same ones whenever the validation is played."""
    drawn_once = torch.Generator().manual_seed(7)
    validation = [draw(opts, drawn_once) for _ in range(opts.batches_per_epoch)]
    return data.DrawnBatches(lambda: draw(opts), opts.batches_per_epoch), validation


def draw(opts: argparse.Namespace, generator: torch.Generator | None = None) -> _Batch:
    """Strings and labels: 1 for as many a as b in one half of the batch, 0 for the other half."""
    labels = (torch.arange(opts.batch_size) < opts.batch_size // 2).long()
    n_a = torch.randint(1, opts.max_n, (opts.batch_size,), generator=generator)
    shift = torch.randint(1, opts.max_n, (opts.batch_size,), generator=generator)
    n_a = torch.where(labels == 1, n_a, torch.randint(opts.max_n, (opts.batch_size,), generator=generator))
    n_b = torch.where(labels == 1, n_a, (n_a + shift) % opts.max_n)
    position = torch.arange(2 * opts.max_n)
    return (position < n_a[:, None]).long() + 2 * (
        (position >= n_a[:, None]) & (position < (n_a + n_b)[:, None])
    ), labels
