"""The conversion of EGG's games to games with the exact expectation over messages."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse import host
from egg_sparse.games import CommunicationMarg, CommunicationRnnMarg, SenderReceiverRnnMarg, SymbolGameMarg
from egg_sparse.games.marginal import MarginalGame
from egg_sparse.games.snapshot import Snapshot
from egg_sparse.senders import RnnSenderSparsemax, SequenceSender, TransformerSenderSparsemax
from egg_sparse.wrappers import ScoringWrapper, SparsemaxWrapper, SparseWrapper

_GAMES_OF_SEQUENCES = ("SenderReceiverRnnReinforce", "SenderReceiverRnnGS")


def marginalize(game: Any, **options: Any) -> Any:
    """Converts an EGG game to the same game with the exact expectation over messages in place of EGG's estimator.

    The agents are those of the given game, not copies, so that training either game trains both. Loss, entropy
    coefficients, logging strategies and mode (training or evaluation) stay the same. So does the receiver: one that
    acts still acts, and the game looks through a ``ReinforceDeterministicWrapper``. The sender's entropy coefficient of
    a game of several symbols is divided by the length of the longest message, since EGG weighs the mean entropy of a
    symbol, and the exact game that of the message.

    Args:
        game: the game: EGG's ``SymbolGameReinforce`` or ``SymbolGameGS`` for messages of one symbol,
            ``SenderReceiverRnnReinforce`` or ``SenderReceiverRnnGS`` for messages of several, with RNN or Transformer
            senders, or a ``PopulationGame`` over the senders of the former three.
        options: options of the sender (``normalizer``, ``temperature``, ...) and of the game (``strategy``,
            ``max_support``, ``evaluation``, ...), which override those of the given game.

    Returns:
        A :class:`egg_sparse.SymbolGameMarg` or :class:`egg_sparse.SenderReceiverRnnMarg`; for a population, a
        ``PopulationGame`` with a :class:`egg_sparse.CommunicationMarg` or :class:`egg_sparse.CommunicationRnnMarg`.

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
    population = host.egg_class(game, "PopulationGame") is not None
    if population and isinstance(game.game, (CommunicationMarg, CommunicationRnnMarg)):
        raise TypeError(f"game is a population with a {type(game.game).__name__} already: it needs no conversion")
    several = host.egg_class(game, *_GAMES_OF_SEQUENCES) is not None or (population and _sends_sequences(game))
    mechanics = CommunicationRnnMarg if several else CommunicationMarg
    sender_options, game_options = _split_options(options, mechanics)
    if population:
        converted: Any = copy.copy(game)
        converted._modules = dict(game._modules)
        converted.agents_loss_sampler = _converted_sampler(game.agents_loss_sampler, sender_options, several)
        senders = converted.agents_loss_sampler.senders
        converted.game = mechanics(**{**_options_of(game.game, senders), **game_options})
        return converted.train(game.training)
    if several:
        sender = _converted_sender(game.sender, sender_options, several)
        game_options = {**_options_of(game, [sender]), **game_options}
        converted = SenderReceiverRnnMarg(sender, game.receiver, game.loss, **game_options)
    elif host.egg_class(game, "SymbolGameReinforce", "SymbolGameGS"):
        is_deterministic = host.egg_class(game.receiver, "ReinforceDeterministicWrapper")
        if host.egg_class(game, "SymbolGameReinforce") and not is_deterministic:
            game_options.setdefault("receiver_acts", True)
        sender = _converted_sender(game.sender, sender_options, several)
        game_options = {**_options_of(game, [sender]), **game_options}
        converted = SymbolGameMarg(sender, game.receiver, game.loss, **game_options)
    else:
        if isinstance(game, MarginalGame):
            raise TypeError(f"game is a {type(game).__name__} already: it needs no conversion")
        cls = type(game)
        remedy = "wrap its sender's agent with SparsemaxWrapper, and give it to SymbolGameMarg"
        if cls.__name__ == "PopulationGame":
            remedy = "use egg.core's PopulationGame, with CommunicationMarg over senders in a SparsemaxWrapper"
        elif host.egg_class(game, "CommunicationRnnReinforce"):
            remedy = "it has no agents, so convert the PopulationGame, or give that a CommunicationRnnMarg"
        elif isinstance(getattr(game, "game", None), nn.Module):
            remedy = "it holds a game itself, so set game.game = marginalize(game.game)"
        raise TypeError(
            "game must be EGG's SymbolGameReinforce, SymbolGameGS, SenderReceiverRnnReinforce, SenderReceiverRnnGS or "
            f"PopulationGame, got {cls.__module__}.{cls.__name__}: {remedy}"
        )
    return converted.train(game.training)


def _split_options(options: dict[str, Any], mechanics: type[nn.Module]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the sender, and those of the game."""
    several = mechanics is CommunicationRnnMarg
    shared = {"normalizer", "temperature", "support"}
    sender_names = shared | ({"max_support"} if several else set())
    game_names = set(inspect.signature(mechanics).parameters)
    for name in options:
        if name == "message_format":
            raise TypeError("message_format is no option here: it follows from the game that is converted")
        if name not in sender_names | game_names:
            sender = "RnnSenderSparsemax" if several else "SparsemaxWrapper"
            game = "SenderReceiverRnnMarg" if several else "SymbolGameMarg"
            raise TypeError(
                f"{name} is no option of {sender} ({', '.join(sorted(sender_names))}) or of {game} "
                f"({', '.join(sorted(game_names))})"
            )
    return (
        {name: value for name, value in options.items() if name in sender_names},
        {name: value for name, value in options.items() if name in game_names},
    )


def _options_of(game: Any, senders: Iterable[Any]) -> dict[str, Any]:
    """The options that an EGG game shares with the exact one, which has these senders."""
    names: tuple[str, ...] = (
        "sender_entropy_coeff",
        "receiver_entropy_coeff",
        "train_logging_strategy",
        "test_logging_strategy",
    )
    if host.egg_class(game, "SenderReceiverRnnReinforce"):
        game = game.mechanics
    if host.egg_class(game, "SenderReceiverRnnGS", "CommunicationRnnReinforce"):
        names = (*names, "length_cost")
    options = {name: getattr(game, name) for name in names if hasattr(game, name)}
    lengths = [sender.max_len + 1 for sender in senders if isinstance(sender, SequenceSender)]
    if lengths and "sender_entropy_coeff" in options:
        options["sender_entropy_coeff"] = options["sender_entropy_coeff"] / max(lengths)
    return options


def _sends_sequences(population: Any) -> bool:
    """Whether a population's game, or one of its senders, is for messages of several symbols."""
    senders = getattr(population.agents_loss_sampler, "senders", ())
    return host.egg_class(population.game, "CommunicationRnnReinforce") is not None or any(
        host.egg_class(sender, *host.SENDERS_OF_SEVERAL_SYMBOLS) for sender in senders
    )


def _converted_sender(sender: Any, options: dict[str, Any], several: bool) -> nn.Module:
    """The agent of a sender in a wrapper of EGG's, in a wrapper of this package, on the agent's device."""
    converted = _wrapped_agent(sender, options, several)
    parameter = next(sender.parameters(), None)
    if converted.control is not None and parameter is not None:
        converted.control.to(parameter.device)
    return converted


def _wrapped_agent(sender: Any, options: dict[str, Any], several: bool) -> SparseWrapper:
    if several:
        cls: Any = host.egg_class(sender, *host.SENDERS_OF_SEVERAL_SYMBOLS)
        if cls is not None:
            if type(sender).forward is not cls.forward or "forward" in vars(sender):
                raise TypeError(
                    f"the sender {type(sender).__name__} has a forward method of its own in place of {cls.__name__}'s, "
                    "which the exact sender would not call: write it as a SequenceSender, with begin and step"
                )
            is_rnn = cls.__name__.startswith("Rnn")
            return _rnn_sender(sender, options) if is_rnn else _transformer_sender(sender, options)
    else:
        host.refuse_several_symbols(sender)
        if host.egg_class(sender, "ReinforceWrapper"):
            return SparsemaxWrapper(sender.agent, message_format="index", **options)
        if host.egg_class(sender, "GumbelSoftmaxWrapper"):
            return SparsemaxWrapper(sender.agent, message_format="one_hot", **options)
    if isinstance(sender, ScoringWrapper):
        game = "SenderReceiverRnnMarg" if isinstance(sender, SequenceSender) else "SymbolGameMarg"
        raise TypeError(
            f"the sender is a {type(sender).__name__} already: give it to {game}, not to an EGG game that "
            "is then converted"
        )
    expected, wrapper, game = (
        (f"one of EGG's {', '.join(host.SENDERS_OF_SEVERAL_SYMBOLS)}", "RnnSenderSparsemax", "SenderReceiverRnnMarg")
        if several
        else (
            "a ReinforceWrapper or a GumbelSoftmaxWrapper around an agent that scores symbols",
            "SparsemaxWrapper",
            "SymbolGameMarg",
        )
    )
    raise TypeError(
        f"the sender must be {expected}, got {type(sender).__name__}: wrap its agent with {wrapper}, and give it to "
        f"{game}"
    )


class _OneHotEmbedding(nn.Module):
    """The linear layer with which EGG's RnnSenderGS embeds one-hot symbols, for symbol ids."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, symbols: torch.Tensor) -> torch.Tensor:
        embedded = F.embedding(symbols, self.linear.weight.t())
        return embedded if self.linear.bias is None else embedded + self.linear.bias


def _rnn_sender(sender: Any, options: dict[str, Any]) -> RnnSenderSparsemax:
    """EGG's RNN sender as one of this package, with the same layers."""
    cells = sender.cells if hasattr(sender, "cells") else nn.ModuleList([sender.cell])
    hidden_size = sender.hidden_to_output.in_features
    with torch.random.fork_rng():
        converted = RnnSenderSparsemax(
            sender.agent, sender.vocab_size, sender.embed_dim, hidden_size, sender.max_len, len(cells), **options
        )
    converted.hidden_to_output, converted.sos_embedding, converted.cells = (
        sender.hidden_to_output,
        sender.sos_embedding,
        cells,
    )
    is_linear = isinstance(sender.embedding, nn.Linear)
    converted.embedding = _OneHotEmbedding(sender.embedding) if is_linear else sender.embedding
    return converted


def _transformer_sender(sender: Any, options: dict[str, Any]) -> TransformerSenderSparsemax:
    """EGG's Transformer sender as one of this package, with the same layers."""
    layers = sender.transformer.layers
    with torch.random.fork_rng():
        converted = TransformerSenderSparsemax(
            sender.agent,
            sender.vocab_size,
            sender.embed_dim,
            sender.max_len,
            len(layers),
            layers[0].self_attn.num_heads,
            layers[0].fc1.out_features,
            sender.generate_style,
            sender.causal,
            **options,
        )
    for name in ("transformer", "embedding_to_vocab", "special_symbol_embedding", "embed_tokens"):
        setattr(converted, name, getattr(sender, name))
    return converted


def _converted_sampler(sampler: Any, options: dict[str, Any], several: bool) -> nn.Module:
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
    converted.senders = nn.ModuleList(_converted_sender(sender, options, several) for sender in sampler.senders)
    if hasattr(converted, "reset_order"):
        converted.reset_order()
    snapshot.restore()
    return converted
