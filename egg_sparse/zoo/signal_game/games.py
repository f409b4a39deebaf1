"""The signal game: its losses, and the agents in the game of each method."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse import host
from egg_sparse.estimators import NeuralBaseline, SymbolSampler
from egg_sparse.zoo import methods, sequences, training
from egg_sparse.zoo.methods import SYMBOL_METHODS, GameParts, Method
from egg_sparse.zoo.sequences import Coder, SequenceParts
from egg_sparse.zoo.signal_game.archs import BatchFirst, MLPSender, PaperSender, Receiver

core = host.core


def loss_nll(
    _sender_input: Any, _message: Any, _receiver_input: Any, receiver_output: torch.Tensor, labels: Any, _aux_input: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The target's negative log-likelihood in nats; ``acc`` is 1 where the target is the best candidate."""
    nll = F.nll_loss(receiver_output, labels, reduction="none")
    return nll, {"acc": (receiver_output.argmax(dim=1) == labels).float()}


def loss_nll_and_report(*args: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """:func:`loss_nll`, which it also reports as ``nll``."""
    nll, aux = loss_nll(*args)
    return nll, {**aux, "nll": nll.detach()}


def loss_acc(
    _sender_input: Any, _message: Any, _receiver_input: Any, receiver_output: torch.Tensor, labels: Any, _aux_input: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """-1 where the receiver's guess, a sampled index, is the target, else 0: not differentiable."""
    acc = (receiver_output == labels).float()
    return -acc, {"acc": acc}


class ReinforceGame(host.core.SymbolGameReinforce):
    """EGG's game, with its running-mean baseline in the checkpoint, so that a resumed run has it."""

    _STATE = ("mean_baseline", "n_points")

    def get_extra_state(self) -> dict[str, Any]:
        return {name: getattr(self.baseline, name) for name in self._STATE if hasattr(self.baseline, name)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        for name in self._STATE:
            if name in state:
                setattr(self.baseline, name, state[name])


EGGS_BASELINES = {
    "runavg": core.baselines.MeanBaseline,
    "builtin": core.baselines.BuiltInBaseline,
    "none": core.baselines.NoBaseline,
}


def _reinforce_game(opts: argparse.Namespace, parts: GameParts) -> nn.Module:
    """EGG's game, or this package's where the baseline is the loss of a second sample, which EGG does not have."""
    guesses = opts.loss_type == "acc"
    loss, receiver_entropy_coeff = (loss_acc, opts.entropy_coeff) if guesses else (loss_nll, 0.0)
    if opts.baseline_type == "sample":
        receiver = core.ReinforceWrapper(parts.receiver) if guesses else parts.receiver
        options = {**parts.options, "receiver_entropy_coeff": receiver_entropy_coeff}
        return methods.score_function_game(
            opts, replace(parts, receiver=receiver, loss=loss, options=options), "sample"
        )
    return ReinforceGame(
        core.ReinforceWrapper(parts.sender),
        core.ReinforceWrapper(parts.receiver) if guesses else core.ReinforceDeterministicWrapper(parts.receiver),
        loss,
        sender_entropy_coeff=opts.entropy_coeff,
        receiver_entropy_coeff=receiver_entropy_coeff,
        baseline_type=EGGS_BASELINES[opts.baseline_type],
        **parts.options,
    )


def _gumbel_game(opts: argparse.Namespace, parts: GameParts) -> nn.Module:
    """EGG's game, which has no entropy coefficient."""
    sender = core.GumbelSoftmaxWrapper(parts.sender, temperature=opts.gs_tau, straight_through=opts.straight_through)
    return core.SymbolGameGS(sender, parts.receiver, parts.loss, **parts.options)


def _reading(method: Method, *options: str, **changes: Any) -> Method:
    """The method with further options of this experiment."""
    return replace(method, options=(*method.options, *options), **changes)


METHODS = {
    **SYMBOL_METHODS,
    "marg": _reading(SYMBOL_METHODS["marg"], "normalizer", "entropy_coeff"),
    "sfe": _reading(SYMBOL_METHODS["sfe"], "entropy_coeff", "loss_type", build=_reinforce_game),
    "nvil": _reading(SYMBOL_METHODS["nvil"], "entropy_coeff"),
    "sumsample": _reading(SYMBOL_METHODS["sumsample"], "normalizer", "entropy_coeff"),
    "gs": replace(SYMBOL_METHODS["gs"], build=_gumbel_game),
}
"""The methods, by ``--mode``: score function and Gumbel-Softmax are EGG's own games here."""


def _exact_sequence_game(opts: argparse.Namespace, parts: SequenceParts) -> nn.Module:
    normalizer = methods.alpha_of(opts.normalizer)
    sender = sequences.exact_sender(parts, normalizer, opts.max_support, **methods.wrapper_options(opts))
    return sequences.exact_game(parts, sender, opts.entropy_coeff, opts.length_cost)


def _reinforce_sequence_game(opts: argparse.Namespace, parts: SequenceParts) -> nn.Module:
    baseline = EGGS_BASELINES[opts.baseline_type]
    return sequences.reinforce_game(parts, baseline, opts.entropy_coeff, opts.length_cost)


def _gumbel_sequence_game(opts: argparse.Namespace, parts: SequenceParts) -> nn.Module:
    return sequences.gumbel_game(parts, opts.gs_tau, opts.straight_through, opts.length_cost)


SEQUENCE_METHODS = {
    "marg": _reading(METHODS["marg"], "max_support", build=_exact_sequence_game),
    "sfe": replace(METHODS["sfe"], build=_reinforce_sequence_game),
    "gs": replace(METHODS["gs"], build=_gumbel_sequence_game),
}
"""The methods for messages of several symbols, by ``--mode``."""


def methods_of(opts: argparse.Namespace) -> dict[str, Method]:
    """The methods for messages of ``--max_len`` symbols, by ``--mode``."""
    return SEQUENCE_METHODS if opts.max_len > 1 else METHODS


def build_sequence_game(opts: argparse.Namespace, n_features: int) -> nn.Module:
    """The agents in the game of messages of several symbols that trains them; images come batch first."""
    coder = Coder(opts.cell, opts.embedding_size, opts.hidden_size)
    sizes: dict[str, Any] = {"n_features": n_features, "vocab_size": coder.state}
    for_sender = {**sizes, "hidden_size": opts.hidden_size, "temperature": 1.0}
    sender: nn.Module = MLPSender(**for_sender)
    if opts.sender == "paper":
        sender = PaperSender(**for_sender, embedding_size=opts.embedding_size)
    receiver = Receiver(**sizes, embedding_size=opts.embedding_size, one_hot=True)
    parts = SequenceParts(
        BatchFirst(sender, position=0),
        coder,
        BatchFirst(receiver, position=1),
        coder,
        loss_nll_and_report,
        opts.vocab_size,
        opts.max_len,
        options=training.quiet_logging(),
    )
    return SEQUENCE_METHODS[opts.mode].build(opts, parts)


def build_agents(opts: argparse.Namespace, n_features: int) -> tuple[nn.Module, Receiver]:
    """The sender, which returns scores of symbols, and the receiver, which returns log-probabilities of candidates.

    The sender divides its scores by the temperature where no wrapper does.
    """
    method = METHODS[opts.mode]
    sizes: dict[str, Any] = {"n_features": n_features, "vocab_size": opts.vocab_size}
    for_sender = {**sizes, "hidden_size": opts.hidden_size, "temperature": 1.0 if method.sums else opts.temperature}
    for_receiver = {**sizes, "embedding_size": opts.embedding_size, "one_hot": method.one_hot}
    if opts.sender == "paper":
        return PaperSender(**for_sender, embedding_size=opts.embedding_size), Receiver(**for_receiver)
    return MLPSender(**for_sender), Receiver(**for_receiver, symbol_std=(3 * opts.vocab_size) ** -0.5)


def build_game(opts: argparse.Namespace, sender: nn.Module, receiver: Receiver) -> nn.Module:
    """The agents in the game that trains them. Interactions keep messages and scalars, no images."""
    parts = GameParts(
        sender,
        receiver,
        loss_nll,
        sampler=lambda agent, _temperature: SymbolSampler(agent),
        neural_baseline=partial(NeuralBaseline, receiver.embed.in_features, select=_target),
        options=training.quiet_logging(),
    )
    return METHODS[opts.mode].build(opts, parts)


def _target(images: torch.Tensor) -> torch.Tensor:
    return images[0]
