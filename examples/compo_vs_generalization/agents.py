"""Agents, loss and data of the objects of which some combinations are held out."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn

from examples import data, sequences
from examples.basic_games.agents import all_objects
from examples.basic_games.agents import reconstruction_loss as loss

__all__ = ["SETTINGS", "add_options", "build_agents", "build_data", "loss"]

SETTINGS = ["--vocab_size=11", "--max_len=3", "--batch_size=64", "--lr=0.001", "--n_epochs=15"]


def add_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("--n_attributes", type=int, default=2, help="attributes of an object (default: 2)")
    option("--n_values", type=int, default=10, help="values of an attribute (default: 10)")
    option("--p_hold_out", type=float, default=0.1, help="share of the combinations that are held out (default: 0.1)")
    option("--data_scaler", type=int, default=64, help="how often an epoch has each object (default: 64)")
    option("--sender_entropy_coeff", type=float, default=0.1, help="coefficient of the entropy (default: 0.1)")
    sequences.add_options(parser, cell="gru", hidden=100)


def build_agents(opts: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    n_features = opts.n_attributes * opts.n_values
    return sequences.Sender(n_features, opts.sender_hidden), sequences.Receiver(opts.receiver_hidden, n_features)


def build_data(opts: argparse.Namespace) -> tuple[data.Batches, data.Batches]:
    """Objects for training, and the held-out ones for validation; the same ones for every seed."""
    objects = all_objects(opts.n_attributes, opts.n_values)
    objects = objects[torch.randperm(len(objects), generator=torch.Generator().manual_seed(7))]
    n_new = round(opts.p_hold_out * len(objects))
    new, known = objects[:n_new], objects[n_new:].repeat(opts.data_scaler, 1)

    def one_hot(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return F.one_hot(values, opts.n_values).flatten(1).float(), values

    return (
        data.Batches(known, batch_size=opts.batch_size, transform=one_hot),
        data.Batches(new, batch_size=1000, shuffle=False, transform=one_hot),
    )
