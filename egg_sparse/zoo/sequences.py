"""Agents and games of messages of several symbols, which the experiments share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from egg_sparse import RnnSenderSparsemax, SenderReceiverRnnMarg, TransformerSenderSparsemax, host
from egg_sparse.callbacks import symbols_of

core = host.core

CELLS = ("rnn", "gru", "lstm", "transformer")
EVALUATION_SEED = 20200724


@dataclass(frozen=True)
class Coder:
    """The sizes of a network that writes or reads messages.

    Attributes:
        cell: one of ``CELLS``.
        embedding: the size of embedded symbols.
        hidden: the size of the hidden state, or of a Transformer's feed-forward layer.
        layers: the number of layers.
        heads: the number of a Transformer's attention heads.
    """

    cell: str
    embedding: int
    hidden: int
    layers: int = 1
    heads: int = 4

    @property
    def state(self) -> int:
        """The size of what an agent gives to a sender or gets from a receiver."""
        return self.embedding if self.cell == "transformer" else self.hidden


@dataclass(frozen=True)
class SequenceParts:
    """The parts from which a method builds a game of messages of several symbols.

    Attributes:
        sender: the agent that returns the state with which a message begins.
        writer: the sizes of the network that writes messages.
        receiver: the agent that is given the read message.
        reader: the sizes of the network that reads messages.
        loss: the loss, as EGG's games take it.
        vocab_size: the number of symbols, with the end symbol 0.
        max_len: the number of symbols of the longest message, without the end symbol.
        options: the options of every game.
    """

    sender: nn.Module
    writer: Coder
    receiver: nn.Module
    reader: Coder
    loss: Callable
    vocab_size: int
    max_len: int
    options: Mapping[str, Any]


def own_metrics(loss: torch.Tensor, interaction: Any) -> tuple[torch.Tensor, Any]:
    """What a game of EGG's returns, with the metrics of this package's games.

    ``length`` is the number of symbols before the end symbol, which EGG counts, too. The metrics have no graph: an
    epoch's Interactions would keep the graph of every step.
    """
    metrics = {name: value.detach() for name, value in interaction.aux.items()}
    interaction.aux = {**metrics, "length": metrics["length"] - 1}
    return loss, interaction


class ReinforceGame(host.core.SenderReceiverRnnReinforce):
    """EGG's game with the metrics of :func:`own_metrics`.

    Its running-mean baselines are in the checkpoint, so that a resumed run has them.
    """

    _STATE = ("mean_baseline", "n_points")

    def get_extra_state(self) -> dict[str, Any]:
        baselines = self.mechanics.baselines.items()
        return {
            key: {name: getattr(each, name) for name in self._STATE if hasattr(each, name)} for key, each in baselines
        }

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any]:
        return own_metrics(*super().forward(*args, **kwargs))

    def set_extra_state(self, state: dict[str, Any]) -> None:
        for key, values in state.items():
            for name, value in values.items():
                setattr(self.mechanics.baselines[key], name, value)


class GumbelGame(host.core.SenderReceiverRnnGS):
    """EGG's game, with the metrics of :func:`own_metrics`."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any]:
        return own_metrics(*super().forward(*args, **kwargs))


class _EncoderAttention(nn.MultiheadAttention):
    """The attention to one vector per example, as EGG's decoder calls it and PyTorch no longer does."""

    def forward(self, query: Any, key: Any, value: Any, static_kv: bool = True) -> Any:  # type: ignore[override]
        return super().forward(query, key.unsqueeze(0), value.unsqueeze(0))


def _sizes(coder: Coder, parts: SequenceParts) -> dict[str, Any]:
    """The sizes of a network, as EGG's agents take them."""
    return {
        "vocab_size": parts.vocab_size,
        "embed_dim": coder.embedding,
        "hidden_size": coder.hidden,
        "num_layers": coder.layers,
    }


def reinforce_sender(parts: SequenceParts) -> nn.Module:
    """EGG's sender that samples messages."""
    sizes: dict[str, Any] = {**_sizes(parts.writer, parts), "max_len": parts.max_len}
    if parts.writer.cell != "transformer":
        return core.RnnSenderReinforce(parts.sender, **sizes, cell=parts.writer.cell)
    sender = core.TransformerSenderReinforce(parts.sender, **sizes, num_heads=parts.writer.heads)
    if host.is_egg():
        for layer in sender.transformer.layers:
            layer.encoder_attn.__class__ = _EncoderAttention
    return sender


def reading_receiver(parts: SequenceParts) -> nn.Module:
    """EGG's receiver that reads discrete messages.

    A Transformer reads without a causal mask: with one, EGG's reads the symbol after the end.
    """
    sizes = _sizes(parts.reader, parts)
    if parts.reader.cell != "transformer":
        return core.RnnReceiverDeterministic(parts.receiver, **sizes, cell=parts.reader.cell)
    more: dict[str, Any] = {"max_len": parts.max_len, "num_heads": parts.reader.heads, "causal": False}
    return core.TransformerReceiverDeterministic(parts.receiver, **sizes, **more)


def exact_sender(parts: SequenceParts, normalizer: Any, max_support: int, **control: Any) -> nn.Module:
    """The sender that returns the distribution over messages.

    Args:
        parts: the parts of the game.
        normalizer: the normalizer of the scores, as :class:`egg_sparse.RnnSenderSparsemax` takes it.
        max_support: the largest number of messages per example.
        control: the fixed temperature; nothing for support control.
    """
    sizes: dict[str, Any] = {**_sizes(parts.writer, parts), "max_len": parts.max_len}
    options: dict[str, Any] = {"normalizer": normalizer, "max_support": max_support, **control}
    if parts.writer.cell != "transformer":
        return RnnSenderSparsemax(parts.sender, **sizes, cell=parts.writer.cell, **options)
    return TransformerSenderSparsemax(parts.sender, **sizes, num_heads=parts.writer.heads, **options)


def exact_game(parts: SequenceParts, sender: nn.Module, entropy_coeff: float, length_cost: float) -> nn.Module:
    """The game that sums the loss over the sender's messages."""
    return SenderReceiverRnnMarg(
        sender,
        reading_receiver(parts),
        parts.loss,
        sender_entropy_coeff=entropy_coeff,
        length_cost=length_cost,
        **parts.options,
    )


def reinforce_game(parts: SequenceParts, baseline: type, entropy_coeff: float, length_cost: float) -> nn.Module:
    """EGG's game that samples messages and learns by REINFORCE."""
    return ReinforceGame(
        reinforce_sender(parts),
        reading_receiver(parts),
        parts.loss,
        sender_entropy_coeff=entropy_coeff,
        length_cost=length_cost,
        baseline_type=baseline,
        **parts.options,
    )


def gumbel_game(parts: SequenceParts, temperature: float, straight_through: bool, length_cost: float) -> nn.Module:
    """EGG's game of relaxed messages, which has neither an entropy coefficient nor Transformers nor layers."""
    writer, reader, vocab_size = parts.writer, parts.reader, parts.vocab_size
    sender = core.RnnSenderGS(
        parts.sender,
        vocab_size,
        writer.embedding,
        writer.hidden,
        parts.max_len,
        temperature,
        writer.cell,
        straight_through=straight_through,
    )
    receiver = core.RnnReceiverGS(parts.receiver, vocab_size, reader.embedding, reader.hidden, reader.cell)
    return GumbelGame(sender, receiver, parts.loss, length_cost, **parts.options)


@torch.no_grad()
def play(game: nn.Module, loader: Iterable, device: torch.device, evaluation: str = "greedy") -> dict[str, Any]:
    """Plays examples once, and returns what the game reports of each, and its ``message``, on the CPU.

    Args:
        game: the game.
        loader: the batches of examples.
        device: the device that plays them.
        evaluation: "greedy" for the most probable symbol at each step, "expected" for the sum over messages.
    """
    game.to(device).eval()
    figures: dict[str, list[torch.Tensor]] = {}
    expected = evaluation == "expected"
    if expected:
        game.evaluation = evaluation  # type: ignore[assignment]
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(EVALUATION_SEED)
            for batch in loader:
                _, played = game(*core.batch.Batch(*batch).to(device))
                for name, value in {**played.aux, "message": symbols_of(played.message)}.items():
                    figures.setdefault(name, []).append(value.cpu())
    finally:
        if expected:
            game.evaluation = "greedy"  # type: ignore[assignment]
    return {name: torch.cat(values) for name, values in figures.items()}
