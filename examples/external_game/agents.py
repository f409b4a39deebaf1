"""Agents, losses and data of the vectors that come from a file."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import torch
from torch import nn
from torch.distributions import Categorical

from examples import data, sequences
from examples.basic_games.agents import discrimination_loss as differentiable_loss
from examples.signal_game.agents import success_loss

__all__ = ["SETTINGS", "add_options", "build_agents", "build_data", "differentiable_loss", "success_loss"]

SETTINGS = ["--vocab_size=4", "--max_len=2", "--batch_size=8", "--lr=0.005", "--n_epochs=250"]
DATA = pathlib.Path(__file__).parent / "number_of_ones.csv"


class ActingReceiver(sequences.Receiver):
    """Names a class: returns it, its log-probability and the entropy. In evaluation it names the likeliest class."""

    def forward(self, hidden: torch.Tensor, receiver_input: Any = None, aux_input: Any = None) -> Any:
        of_classes = Categorical(logits=super().forward(hidden))
        named = of_classes.sample() if self.training else of_classes.logits.argmax(dim=1)
        return named, of_classes.log_prob(named), of_classes.entropy()


def add_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("--mode", choices=("gs", "rf"), default="gs", help="Gumbel-Softmax or score function (default: gs)")
    option("--train_data", default=DATA, help=f"lines of numbers, a semicolon, and a class (default: {DATA.name})")
    option("--validation_data", default=DATA, help="a file of the same form, with the same classes")
    option("--sender_entropy_coeff", type=float, default=0.1, help="coefficient of the entropy (default: 0.1)")
    option("--receiver_entropy_coeff", type=float, default=0.01, help="coefficient in mode rf (default: 0.01)")
    option("--temperature", type=float, default=1.0, help="Gumbel-Softmax temperature (default: 1)")
    sequences.add_options(parser, hidden=30)


def build_agents(opts: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    vectors, classes = read(opts.train_data)
    receiver = ActingReceiver if opts.mode == "rf" else sequences.Receiver
    sender = sequences.Sender(vectors.shape[1], opts.sender_hidden)
    return sender, receiver(opts.receiver_hidden, int(classes.max()) + 1)


def read(file: str | pathlib.Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors ``(n, n_features)`` and classes ``(n,)``; a line that begins with # is a comment."""
    lines = pathlib.Path(file).read_text(encoding="utf-8").splitlines()
    fields = [line.split(";") for line in lines if line.strip() and not line.startswith("#")]
    vectors = torch.tensor([[float(feature) for feature in features.split()] for features, _ in fields])
    return vectors, torch.tensor([int(label) for _, label in fields])


def build_data(opts: argparse.Namespace) -> tuple[data.Batches, data.Batches]:
    return (
        data.Batches(*read(opts.train_data), batch_size=opts.batch_size),
        data.Batches(*read(opts.validation_data), batch_size=opts.batch_size, shuffle=False),
    )
