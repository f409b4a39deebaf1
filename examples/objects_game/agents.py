"""Agents, loss and data of the game of objects and distractors."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import nn

from examples import data, sequences
from examples.basic_games.agents import all_objects, tuples
from examples.basic_games.agents import discrimination_loss as loss

__all__ = ["SETTINGS", "add_options", "build_agents", "build_data", "loss"]

SETTINGS = ["--vocab_size=20", "--max_len=2", "--batch_size=32", "--lr=0.001", "--n_epochs=5"]


class Sender(sequences.Sender):
    """Returns the hidden state ``(B, hidden)`` from which the message is unrolled."""

    def forward(self, features: torch.Tensor, aux_input: Any = None) -> torch.Tensor:
        return super().forward(features, aux_input).tanh()


def add_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("--n_dimensions", type=int, default=5, help="numbers that describe an object (default: 5)")
    option("--n_values", type=int, default=4, help="a number is one of 1, 2, ..., n_values (default: 4)")
    option("--n_distractors", type=int, default=3, help="objects beside the target (default: 3)")
    option("--train_samples", type=int, default=4800, help="tuples for training (default: 4800)")
    option("--validation_samples", type=int, default=1000, help="tuples for validation (default: 1000)")
    option("--temperature", type=float, default=1.0, help="first Gumbel-Softmax temperature (default: 1)")
    sequences.add_options(parser, hidden=50)


def build_agents(opts: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    sender = Sender(opts.n_dimensions, opts.sender_hidden)
    return sender, sequences.PointingReceiver(opts.n_dimensions, opts.receiver_hidden)


def build_data(opts: argparse.Namespace) -> tuple[data.Batches, data.Batches]:
    """Random tuples of different objects; the same ones for every seed."""
    generator = torch.Generator().manual_seed(111)
    objects = 1 + all_objects(opts.n_dimensions, opts.n_values).float()
    n_candidates = opts.n_distractors + 1
    train, validation = (
        tuples(objects, n_candidates, n_samples, generator)
        for n_samples in (opts.train_samples, opts.validation_samples)
    )
    return (
        data.Batches(*train, batch_size=opts.batch_size),
        data.Batches(*validation, batch_size=500, shuffle=False),
    )
