"""The game: its loss, and the agents in the game of each method."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse import host
from egg_sparse.zoo import methods, sequences, training
from egg_sparse.zoo.compo_vs_generalization.archs import Receiver, Sender
from egg_sparse.zoo.compo_vs_generalization.data import NOT_SCORED
from egg_sparse.zoo.methods import Method
from egg_sparse.zoo.sequences import Coder, SequenceParts

core = host.core


def reconstruction_loss(
    _sender_input: Any, _message: Any, _receiver_input: Any, receiver_output: torch.Tensor, labels: Any, _aux_input: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The mean cross-entropy of an object's attributes, in nats.

    ``acc`` is 1 where all attributes are right, ``acc_or`` the share of those that are; attributes with the label
    ``NOT_SCORED`` are left out.
    """
    scores = receiver_output.unflatten(1, (labels.shape[1], -1))
    losses = F.cross_entropy(scores.transpose(1, 2), labels, ignore_index=NOT_SCORED, reduction="none")
    scored = labels != NOT_SCORED
    right = scored & (scores.argmax(-1) == labels)
    n_scored = scored.sum(1)
    acc = (right.sum(1) == n_scored).to(losses.dtype)
    return losses.sum(1) / n_scored, {"acc": acc, "acc_or": right.sum(1) / n_scored}


BASELINES = {
    "mean": core.baselines.MeanBaseline,
    "builtin": core.baselines.BuiltInBaseline,
    "no": core.baselines.NoBaseline,
}
"""EGG's baselines, by ``--baseline``."""


def _exact_game(opts: argparse.Namespace, parts: SequenceParts) -> nn.Module:
    normalizer = methods.alpha_of(opts.normalizer)
    sender = sequences.exact_sender(parts, normalizer, opts.max_support, **methods.wrapper_options(opts))
    return sequences.exact_game(parts, sender, opts.sender_entropy_coeff, opts.length_cost)


def _reinforce_game(opts: argparse.Namespace, parts: SequenceParts) -> nn.Module:
    baseline = BASELINES[opts.baseline]
    return sequences.reinforce_game(parts, baseline, opts.sender_entropy_coeff, opts.length_cost)


def _gumbel_game(opts: argparse.Namespace, parts: SequenceParts) -> nn.Module:
    return sequences.gumbel_game(parts, opts.temperature, opts.straight_through, opts.length_cost)


METHODS = {
    "marg": replace(
        methods.MARG,
        build=_exact_game,
        normalizer="entmax15",
        controls_support=False,
        options=("normalizer", "max_support", "temperature", "sender_entropy_coeff"),
    ),
    "rf": Method("REINFORCE", _reinforce_game, options=("baseline", "sender_entropy_coeff")),
    "gs": Method(
        "Gumbel-Softmax",
        _gumbel_game,
        options=("temperature", "straight_through"),
        one_hot=True,
        trained_messages=methods.GS.trained_messages,
    ),
}
"""The methods, by ``--mode``, with EGG's names; REINFORCE and Gumbel-Softmax are EGG's own games."""


def coders(opts: argparse.Namespace) -> tuple[Coder, Coder]:
    """The sizes of the networks that write and read messages."""
    names = ("cell", "emb", "hidden", "num_layers", "num_heads")
    writer, reader = (Coder(*(getattr(opts, f"{agent}_{name}") for name in names)) for agent in ("sender", "receiver"))
    return writer, reader


def build_game(opts: argparse.Namespace) -> nn.Module:
    """The agents in the game that trains them. Interactions keep messages and scalars."""
    writer, reader = coders(opts)
    n_inputs = opts.n_attributes * opts.n_values
    parts = SequenceParts(
        Sender(n_inputs, writer.state),
        writer,
        Receiver(reader.state, n_inputs),
        reader,
        reconstruction_loss,
        opts.vocab_size,
        opts.max_len,
        options=training.quiet_logging(),
    )
    return METHODS[opts.mode].build(opts, parts)
