"""Agents, losses and data of the games about objects with attributes."""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from examples import data, sequences

SETTINGS = ["--vocab_size=10", "--max_len=4", "--batch_size=32", "--n_epochs=24"]


def reconstruction_loss(
    sender_input: torch.Tensor,
    message: torch.Tensor,
    receiver_input: Any,
    receiver_output: torch.Tensor,
    labels: torch.Tensor,
    aux_input: Any,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The cross-entropy per attribute, from labels ``(B, n_attributes)``."""
    scores = receiver_output.unflatten(1, (labels.shape[1], -1))
    loss = F.cross_entropy(scores.transpose(1, 2), labels, reduction="none").mean(dim=1)
    return loss, {"acc": (scores.argmax(dim=2) == labels).all(dim=1).float()}


def discrimination_loss(
    sender_input: torch.Tensor,
    message: torch.Tensor,
    receiver_input: torch.Tensor,
    receiver_output: torch.Tensor,
    labels: torch.Tensor,
    aux_input: Any,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The cross-entropy of the target's position ``(B,)``."""
    correct = (receiver_output.argmax(dim=1) == labels).float()
    return F.cross_entropy(receiver_output, labels, reduction="none"), {"acc": correct}


LOSSES = {"reco": reconstruction_loss, "discri": discrimination_loss}


def add_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("--mode", choices=("rf", "gs"), default="rf", help="score function or Gumbel-Softmax (default: rf)")
    option("--game_type", choices=LOSSES, default="reco", help="reconstruction or discrimination (default: reco)")
    option("--n_attributes", type=int, default=3, help="attributes of an object (default: 3)")
    option("--n_values", type=int, default=5, help="values of an attribute (default: 5)")
    option("--n_candidates", type=int, default=5, help="objects that the receiver discriminates (default: 5)")
    option("--n_games", type=int, default=800, help="training games, whose objects are drawn (default: 800)")
    option("--sender_entropy_coeff", type=float, default=0.1, help="coefficient of the entropy (default: 0.1)")
    option("--temperature", type=float, default=1.0, help="first Gumbel-Softmax temperature (default: 1)")
    sequences.add_options(parser, cell="gru", hidden=64)


def build_agents(opts: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    n_features = opts.n_attributes * opts.n_values
    if opts.game_type == "reco":
        receiver: nn.Module = sequences.Receiver(opts.receiver_hidden, n_features)
    else:
        receiver = sequences.PointingReceiver(n_features, opts.receiver_hidden)
    return sequences.Sender(n_features, opts.sender_hidden), receiver


def build_data(opts: argparse.Namespace) -> tuple[data.Batches, data.Batches]:
    """Games with four fifths of all objects for training, with the others for validation; the same for every seed."""
    generator = torch.Generator().manual_seed(7)
    objects = all_objects(opts.n_attributes, opts.n_values)
    objects = objects[torch.randperm(len(objects), generator=generator)]
    n_known = len(objects) * 4 // 5
    one_hot = F.one_hot(objects, opts.n_values).flatten(1).float()
    if opts.game_type == "discri":
        train = tuples(one_hot[:n_known], opts.n_candidates, opts.n_games, generator)
        validation = tuples(one_hot[n_known:], opts.n_candidates, 500, generator)
        return (
            data.Batches(*train, batch_size=opts.batch_size),
            data.Batches(*validation, batch_size=500, shuffle=False),
        )
    drawn = torch.randint(n_known, (opts.n_games,), generator=generator)
    return (
        data.Batches(one_hot[drawn], objects[drawn], batch_size=opts.batch_size),
        data.Batches(one_hot[n_known:], objects[n_known:], batch_size=500, shuffle=False),
    )


def all_objects(n_attributes: int, n_values: int) -> torch.Tensor:
    """All combinations of values, ``(n_values ** n_attributes, n_attributes)``."""
    return torch.cartesian_prod(*[torch.arange(n_values)] * n_attributes).view(-1, n_attributes)


def tuples(
    objects: torch.Tensor, n_candidates: int, n_tuples: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random games: the target, its position among the candidates, and the candidates, all of them different."""
    rows = torch.rand(n_tuples, len(objects), generator=generator).topk(n_candidates, dim=1).indices
    labels = torch.randint(n_candidates, (n_tuples,), generator=generator)
    candidates = objects[rows]
    return candidates[torch.arange(n_tuples), labels], labels, candidates
