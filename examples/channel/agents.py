"""Agents, loss and data of the concepts that are not equally frequent."""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse import host
from examples import data, sequences
from examples.simple_autoenc.agents import loss

__all__ = ["SETTINGS", "add_options", "build_agents", "build_data", "loss"]

SETTINGS = ["--vocab_size=5", "--max_len=5", "--batch_size=64", "--lr=0.001", "--n_epochs=6"]


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
    option("--transformer", action="store_true", help="Transformers instead of recurrent cells")
    option("--num_layers", type=int, default=1, help="layers of each Transformer (default: 1)")
    option("--num_heads", type=int, default=2, help="attention heads of each Transformer (default: 2)")
    sequences.add_options(parser, cell="lstm", hidden=100)


def build_agents(opts: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    if opts.transformer:
        n_sender, n_receiver = opts.sender_embedding, opts.receiver_embedding
    else:
        n_sender, n_receiver = opts.sender_hidden, opts.receiver_hidden
    return sequences.Sender(opts.n_features, n_sender), sequences.Receiver(n_receiver, opts.n_features)


class _Attention(nn.MultiheadAttention):
    """Takes what EGG's decoder gives: one more argument, and a key without an axis of positions."""

    def forward(  # type: ignore[override]
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, static_kv: bool = True
    ) -> Any:
        return super().forward(query, key.unsqueeze(0), value.unsqueeze(0))


def mended(sender: Any) -> Any:
    """EGG's Transformer sender, as EGG meant it; the stand-in's needs no change."""
    if host.is_egg():
        for layer in sender.transformer.layers:
            layer.encoder_attn.__class__ = _Attention
    return sender


def build_data(opts: argparse.Namespace) -> tuple[data.DrawnBatches, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Concepts drawn by frequency for training; each concept once for validation."""
    rank = torch.arange(1, opts.n_features + 1)
    frequencies = 1 / rank if opts.probs == "powerlaw" else torch.ones(opts.n_features)

    def one_hot(concepts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return F.one_hot(concepts, opts.n_features).float(), concepts

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        return one_hot(frequencies.multinomial(opts.batch_size, replacement=True))

    return data.DrawnBatches(draw, opts.batches_per_epoch), [one_hot(torch.arange(opts.n_features))]
