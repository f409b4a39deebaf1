"""Agents, loss and data of the autoencoder of one-hot vectors."""

from __future__ import annotations

import argparse

from torch import nn

from examples import sequences
from examples.simple_autoenc.agents import build_data, loss

__all__ = ["SETTINGS", "add_options", "build_agents", "build_data", "loss"]

SETTINGS = ["--vocab_size=5", "--max_len=3", "--batch_size=64", "--n_epochs=10"]


def add_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("--mode", choices=("rf", "gs"), default="rf", help="score function or Gumbel-Softmax (default: rf)")
    option("--n_features", type=int, default=10, help="length of the vectors (default: 10)")
    option("--batches_per_epoch", type=int, default=100, help="training batches per epoch (default: 100)")
    option("--sender_entropy_coeff", type=float, default=0.1, help="coefficient of the entropy (default: 0.1)")
    option("--temperature", type=float, default=1.0, help="first Gumbel-Softmax temperature (default: 1)")
    sequences.add_options(parser)


def build_agents(opts: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    return (
        sequences.Sender(opts.n_features, opts.sender_hidden),
        sequences.Receiver(opts.receiver_hidden, opts.n_features),
    )
