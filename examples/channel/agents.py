"""Agents, loss and data of the concepts that are not equally frequent."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn

from examples import data, sequences
from examples.simple_autoenc.agents import loss

__all__ = ["SETTINGS", "add_options", "build_agents", "build_data", "loss"]

SETTINGS = ["--vocab_size=5", "--max_len=5", "--batch_size=128", "--lr=0.001", "--n_epochs=20"]


def add_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("--n_features", type=int, default=50, help="concepts (default: 50)")
    option(
        "--probs",
        choices=("uniform", "powerlaw"),
        default="powerlaw",
        help="frequencies of the concepts: equal, or that of concept k proportional to 1 / k (default: powerlaw)",
    )
    option("--batches_per_epoch", type=int, default=100, help="training batches per epoch (default: 100)")
    option("--length_cost", type=float, default=0.0, help="cost of a symbol (default: 0)")
    option("--sender_entropy_coeff", type=float, default=0.1, help="coefficient of the entropy (default: 0.1)")
    option("--early_stopping_thr", type=float, default=0.9999, help="accuracy that is enough (default: 0.9999)")
    sequences.add_options(parser, cell="lstm", hidden=100)


def build_agents(opts: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    return (
        sequences.Sender(opts.n_features, opts.sender_hidden),
        sequences.Receiver(opts.receiver_hidden, opts.n_features),
    )


def build_data(opts: argparse.Namespace) -> tuple[data.DrawnBatches, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Concepts drawn by frequency for training; each concept once for validation."""
    rank = torch.arange(1, opts.n_features + 1)
    frequencies = 1 / rank if opts.probs == "powerlaw" else torch.ones(opts.n_features)

    def one_hot(concepts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return F.one_hot(concepts, opts.n_features).float(), concepts

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        return one_hot(frequencies.multinomial(opts.batch_size, replacement=True))

    return data.DrawnBatches(draw, opts.batches_per_epoch), [one_hot(torch.arange(opts.n_features))]
