"""The conversion of EGG's games to games with the exact expectation over messages."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import nn

from egg_sparse import host
from egg_sparse.games import CommunicationMarg, SymbolGameMarg
from egg_sparse.games.snapshot import Snapshot
from egg_sparse.wrappers import ScoringWrapper, SparsemaxWrapper


def marginalize(game: Any, **options: Any) -> Any:
    """Converts an EGG game to the same game with the exact expectation over messages in place of EGG's estimator.

    The agents are those of the given game, not copies, so that training either game trains both. Loss, entropy
    coefficients, logging strategies and mode (training or evaluation) stay the same. So does the receiver: one that
    acts still acts, and the game looks through a ``ReinforceDeterministicWrapper``.

    Args:
        game: the game: EGG's ``SymbolGameReinforce``, ``SymbolGameGS``, or a ``PopulationGame`` over senders of one
            symbol.
        options: options of :class:`egg_sparse.SparsemaxWrapper` (``normalizer``, ``temperature``, ...) and of
            :class:`egg_sparse.SymbolGameMarg` (``strategy``, ``max_support``, ``evaluation``, ...), which override
            those of the game.

    Returns:
        A :class:`egg_sparse.SymbolGameMarg`; for a population, a ``PopulationGame`` with a
        :class:`egg_sparse.CommunicationMarg`.

    Raises:
        TypeError: the game, one of its agents, or an option is none of the above; the error says what to do.

    Example:
        >>> from egg_sparse.host import core
        >>> class Sender(nn.Linear):
        ...     def forward(self, sender_input, aux_input=None):
        ...         return super().forward(sender_input)
        >>> class Receiver(nn.Linear):
        ...     def forward(self, message, receiver_input=None, aux_input=None):
        ...         return super().forward(message)
        >>> def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        ...     return (receiver_output - sender_input).pow(2).sum(1), {}
        >>> game = core.SymbolGameGS(core.GumbelSoftmaxWrapper(Sender(5, 100)), Receiver(100, 5), loss)
        >>> game = marginalize(game)
        >>> game.sender.message_format, game(torch.randn(8, 5), None)[0].shape
        ('one_hot', torch.Size([]))
    """
    wrapper_options, game_options = _split_options(options)
    if host.egg_class(game, "SymbolGameReinforce", "SymbolGameGS"):
        is_deterministic = host.egg_class(game.receiver, "ReinforceDeterministicWrapper")
        if host.egg_class(game, "SymbolGameReinforce") and not is_deterministic:
            game_options.setdefault("receiver_acts", True)
        sender = _converted_sender(game.sender, wrapper_options)
        converted: Any = SymbolGameMarg(sender, game.receiver, game.loss, **{**_options_of(game), **game_options})
    elif host.egg_class(game, "PopulationGame"):
        if isinstance(game.game, CommunicationMarg):
            raise TypeError("game is a population with a CommunicationMarg already: it needs no conversion")
        host.refuse_several_symbols(game.game)
        converted = copy.copy(game)
        converted._modules = dict(game._modules)
        converted.agents_loss_sampler = _converted_sampler(game.agents_loss_sampler, wrapper_options)
        converted.game = CommunicationMarg(**{**_options_of(game.game), **game_options})
    else:
        host.refuse_several_symbols(game)
        if isinstance(game, (SymbolGameMarg, CommunicationMarg)):
            raise TypeError(f"game is a {type(game).__name__} already: it needs no conversion")
        cls = type(game)
        remedy = "wrap its sender's agent with SparsemaxWrapper, and give it to SymbolGameMarg"
        if cls.__name__ == "PopulationGame":
            remedy = "use egg.core's PopulationGame, with CommunicationMarg over senders in a SparsemaxWrapper"
        elif isinstance(getattr(game, "game", None), nn.Module):
            remedy = "it holds a game itself, so set game.game = marginalize(game.game)"
        raise TypeError(
            "game must be EGG's SymbolGameReinforce, SymbolGameGS or PopulationGame, got "
            f"{cls.__module__}.{cls.__name__}: {remedy}"
        )
    return converted.train(game.training)


def _split_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the wrapper, and those of the game."""
    wrapper_names = set(inspect.signature(SparsemaxWrapper).parameters) - {"agent", "message_format"}
    game_names = set(inspect.signature(CommunicationMarg).parameters)
    for name in options:
        if name == "message_format":
            raise TypeError("message_format is no option here: it follows from the game that is converted")
        if name not in wrapper_names | game_names:
            raise TypeError(
                f"{name} is no option of SparsemaxWrapper ({', '.join(sorted(wrapper_names))}) or of SymbolGameMarg "
                f"({', '.join(sorted(game_names))})"
            )
    return (
        {name: value for name, value in options.items() if name in wrapper_names},
        {name: value for name, value in options.items() if name in game_names},
    )


def _options_of(game: Any) -> dict[str, Any]:
    """The options that an EGG game shares with :class:`egg_sparse.SymbolGameMarg`."""
    names = ("sender_entropy_coeff", "receiver_entropy_coeff", "train_logging_strategy", "test_logging_strategy")
    return {name: getattr(game, name) for name in names if hasattr(game, name)}


def _converted_sender(sender: Any, options: dict[str, Any]) -> nn.Module:
    """The agent of a sender in a wrapper of EGG's, in a wrapper of this package."""
    if host.egg_class(sender, "ReinforceWrapper"):
        return SparsemaxWrapper(sender.agent, message_format="index", **options)
    if host.egg_class(sender, "GumbelSoftmaxWrapper"):
        return SparsemaxWrapper(sender.agent, message_format="one_hot", **options)
    if isinstance(sender, ScoringWrapper):
        raise TypeError(
            f"the sender is a {type(sender).__name__} already: give it to SymbolGameMarg, not to an EGG game that "
            "is then converted"
        )
    host.refuse_several_symbols(sender)
    raise TypeError(
        "the sender must be a ReinforceWrapper or a GumbelSoftmaxWrapper around an agent that scores symbols, got "
        f"{type(sender).__name__}: wrap its agent with SparsemaxWrapper, and give it to SymbolGameMarg"
    )


def _converted_sampler(sampler: Any, options: dict[str, Any]) -> nn.Module:
    """The same sampler over converted senders; random number generators keep their state."""
    missing = [name for name in ("senders", "receivers", "losses") if not hasattr(sampler, name)]
    if missing:
        raise TypeError(
            f"agents_loss_sampler must have {' and '.join(missing)}, as EGG's samplers do; {type(sampler).__name__} "
            "does not: build a sampler over senders in a SparsemaxWrapper"
        )
    snapshot = Snapshot([], torch.device("cpu"))
    converted = copy.copy(sampler)
    converted.__dict__.update(
        {name: list(value) for name, value in vars(sampler).items() if isinstance(value, list)},
        _modules=dict(sampler._modules),
    )
    converted.senders = nn.ModuleList(_converted_sender(sender, options) for sender in sampler.senders)
    if hasattr(converted, "reset_order"):
        converted.reset_order()
    snapshot.restore()
    return converted
