"""Games of messages of several symbols in which the loss is the exact expectation over messages, or unbiased for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse import host
from egg_sparse.distribution import SparseDistribution
from egg_sparse.games.base import Option, check_number
from egg_sparse.games.calls import Batch, ReceiverCall, Strategy
from egg_sparse.games.marginal import Coupled, Evaluation, GameOfAgents, MarginalGame, Mechanics
from egg_sparse.games.sequence_receivers import output_at_end, reads_plainly, shared_prefixes
from egg_sparse.games.snapshot import Snapshot

_DETERMINISTIC_RECEIVERS = ("RnnReceiverDeterministic", "TransformerReceiverDeterministic")


@dataclass(repr=False)
class SequenceCall(ReceiverCall):
    """EGG's call of a receiver of several symbols, and of a loss.

    Args:
        takes_lengths: whether the receiver's fourth argument is the length of the messages.
        reads_one_hot: whether the receiver reads one-hot rows ``(B, L, V)`` and returns an output for every position,
            as EGG's ``RnnReceiverGS`` does; the output at the end symbol counts, and the loss is given that symbol.
        is_deterministic: whether the receiver returns an output with a log-probability and an entropy of 0.
    """

    takes_lengths: bool = False
    reads_one_hot: bool = False
    is_deterministic: bool = False

    def received(self, message: torch.Tensor) -> Any:
        if not self.is_first:
            return super().received(message)
        # a call of its own for the check, so that the first step of a resumed run is computed like any other
        snapshot = Snapshot(self.agents, message.device)
        with torch.no_grad():
            super().received(message)
        snapshot.restore()
        return replace(self, is_first=False).received(message)

    def _call_receiver(self, message: torch.Tensor) -> Any:
        inputs = (self.batch.receiver_input, self.batch.aux_input)
        if self.reads_one_hot:
            if not self.is_first and reads_plainly(self.receiver, message):
                return output_at_end(self.receiver, message, _lengths(message), *inputs)
            outputs = self.receiver(self._one_hot(message), *inputs)
            return outputs[torch.arange(len(message), device=message.device), _lengths(message) - 1]
        with nullcontext() if self.is_first else shared_prefixes(self.receiver):  # the first call checks all layers
            output = self.receiver(message, *inputs, *([_lengths(message)] if self.takes_lengths else []))
        return output[0] if self.is_deterministic and isinstance(output, tuple) else output

    def _message_for_loss(self, message: torch.Tensor) -> torch.Tensor:
        if not self.reads_one_hot:
            return message
        ends = _lengths(message) - 1
        return self._one_hot(message.gather(1, ends[:, None])[:, 0])

    def _one_hot(self, symbols: torch.Tensor) -> torch.Tensor:
        parameters = self.receiver.parameters() if isinstance(self.receiver, nn.Module) else ()
        dtype = next((value.dtype for value in parameters if value.is_floating_point()), torch.get_default_dtype())
        if self.vocab_size is None:
            raise ValueError("the sender's distribution must have a vocab_size for a receiver of one-hot rows")
        read = getattr(getattr(_unwrapped(self.receiver), "embedding", None), "in_features", self.vocab_size)
        if read != self.vocab_size:
            raise ValueError(
                f"the sender's vocabulary has {self.vocab_size} symbols, but the receiver reads one-hot rows of {read}"
            )
        return F.one_hot(symbols, self.vocab_size).to(dtype)


def _lengths(messages: torch.Tensor) -> torch.Tensor:
    """The lengths ``(N,)`` of messages ``(N, L)`` that are 0 from the end symbol on, as EGG counts them."""
    return (messages != 0).sum(1) + 1


def _unwrapped(receiver: Any) -> Any:
    """The module that a DataParallel or torch.compile wraps; any other receiver as it is."""
    while isinstance(receiver, nn.DataParallel) or hasattr(receiver, "_orig_mod"):
        receiver = receiver.module if isinstance(receiver, nn.DataParallel) else receiver._orig_mod
    return receiver


def _check_positions(receiver: Any, max_len: int) -> None:
    """Raises ValueError if EGG's Transformer receiver has too few positions for messages of ``max_len`` symbols."""
    encoder: Any = getattr(receiver, "encoder", None)
    if not host.egg_class(encoder, "TransformerEncoder") or encoder.base_encoder.embed_positions is None:
        return
    n_read = encoder.max_len - (not encoder.causal)
    if n_read < max_len:
        raise ValueError(f"the receiver's max_len must be at least the sender's, {max_len}, got {n_read}")


def _takes_lengths(receiver: Any) -> bool:
    """Whether a receiver can be called with four arguments: message, receiver_input, aux_input and lengths."""
    receiver = _unwrapped(receiver)
    while host.egg_class(receiver, "ReinforceWrapper", "ReinforceDeterministicWrapper"):
        receiver = _unwrapped(receiver.agent)
    function = receiver.forward if isinstance(receiver, nn.Module) else receiver
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return True
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) >= 4


class SequenceGame(MarginalGame):
    """The base of the two games of messages of several symbols."""

    length_cost = Option[float](check_number)
    _wrapper = "RnnSenderSparsemax"
    _mechanics = "CommunicationRnnMarg"

    def __init__(
        self,
        sender_entropy_coeff: float = 0.0,
        receiver_entropy_coeff: float = 0.0,
        length_cost: float = 0.0,
        strategy: Strategy = "gather",
        chunk_size: int | None = None,
        evaluation: Evaluation = "greedy",
        train_logging_strategy: host.core.LoggingStrategy | None = None,
        test_logging_strategy: host.core.LoggingStrategy | None = None,
        receiver_acts: bool | None = None,
        coupled: Coupled = "refuse",
    ) -> None:
        super().__init__(
            sender_entropy_coeff=sender_entropy_coeff,
            receiver_entropy_coeff=receiver_entropy_coeff,
            strategy=strategy,
            chunk_size=chunk_size,
            evaluation=evaluation,
            max_support=None,
            train_logging_strategy=train_logging_strategy,
            test_logging_strategy=test_logging_strategy,
            receiver_acts=receiver_acts,
            coupled=coupled,
        )
        self.length_cost = length_cost

    def _refuse(self, sender: Callable) -> None:
        cls = host.egg_class(sender, *host.SENDERS_OF_SEVERAL_SYMBOLS)
        if cls is not None:
            new = "TransformerSenderSparsemax" if cls.__name__.startswith("Transformer") else "RnnSenderSparsemax"
            raise TypeError(
                f"the sender is EGG's {cls.__name__}, which samples a message: use {new} around the same agent, or "
                "marginalize(game) on EGG's game"
            )

    def _check_distribution(self, distribution: SparseDistribution) -> None:
        if distribution.lengths is None:
            raise TypeError(
                "the sender sends one symbol or a bit-vector: give it to SymbolGameMarg, or use RnnSenderSparsemax"
            )

    def _receiver_call(self, distribution: Any, receiver: Callable, loss: Callable, batch: Batch) -> SequenceCall:
        if not distribution.batch_shape.numel():
            raise ValueError("the batch is empty: a game needs at least one example")
        unwrapped = _unwrapped(receiver)
        _check_positions(unwrapped, distribution.messages.shape[2] - 1)
        is_deterministic = (
            host.egg_class(unwrapped, *_DETERMINISTIC_RECEIVERS) is not None
            and not self.receiver_acts
            and not self.receiver_entropy_coeff
        )
        acts = False if is_deterministic else self.receiver_acts
        return SequenceCall(
            receiver,
            loss,
            batch,
            acts=True if host.is_acting(receiver) and acts is None else acts,
            keep_output=self._logging_strategy.store_receiver_output,
            vocab_size=distribution.vocab_size,
            takes_lengths=_takes_lengths(receiver),
            reads_one_hot=host.egg_class(unwrapped, "RnnReceiverGS") is not None,
            is_deterministic=is_deterministic,
        )

    def _sent_distribution(self, sender: Callable, batch: Batch) -> SparseDistribution:
        if self.training or self.evaluation != "greedy":
            return super()._sent_distribution(sender, batch)
        # the draws of a bounded support are for metrics alone, and a validation is not to change the training after it
        parameter = next(sender.parameters(), None) if isinstance(sender, nn.Module) else None
        snapshot = Snapshot([], torch.device("cpu") if parameter is None else parameter.device)
        distribution = super()._sent_distribution(sender, batch)
        snapshot.restore()
        return distribution

    def _greedy(self, distribution: SparseDistribution, sender: Callable, batch: Batch) -> SparseDistribution:
        sent = sender(batch.sender_input, batch.aux_input)
        message = sent.mode if isinstance(sent, SparseDistribution) else sent[0]
        greedy = SparseDistribution(
            message[None],
            torch.ones_like(distribution.probs[:1]),
            distribution.vocab_size,
            validate_args=False,
            lengths=_lengths(message)[None],
        )
        return greedy

    def _is_exact(self, distribution: SparseDistribution) -> torch.Tensor:
        if distribution.is_exact is None:
            return torch.ones_like(distribution.support_size, dtype=torch.bool)
        return distribution.is_exact


class SenderReceiverRnnMarg(SequenceGame, GameOfAgents):
    r"""A Sender/Receiver game of messages of several symbols whose loss is the expectation over all messages,

    .. math:: \frac{1}{B} \sum_b \Big( \sum_m p_b(m) (\ell_b(m) + \lambda\, |m|) - c\, H(p_b) \Big),

    with the entropy H of the whole message in nats and its length :math:`|m|`, which counts the end symbol. It takes
    the place of EGG's ``SenderReceiverRnnReinforce`` or ``SenderReceiverRnnGS``; receiver and loss stay as they are.
    Where the sender's ``max_support`` bounds the number of messages, loss and gradients are unbiased estimates.

    Args:
        sender: the sender: :class:`egg_sparse.RnnSenderSparsemax`, :class:`egg_sparse.TransformerSenderSparsemax`, or a
            module that returns a SparseDistribution over sequences.
        receiver: EGG's ``RnnReceiverDeterministic``, ``RnnReceiverReinforce``, ``RnnReceiverGS`` or
            ``TransformerReceiverDeterministic``, or any other, called as ``receiver(message, receiver_input, aux_input,
            lengths)`` if it takes four arguments and without the lengths if not. Messages are ``(B, max_len + 1)``
            symbol ids, 0 from the end symbol on. Of the outputs of ``RnnReceiverGS``, one per position, the one at the
            end symbol counts.
        loss: the loss, as in :class:`egg_sparse.SymbolGameMarg`. With ``RnnReceiverGS`` its message is the one-hot end
            symbol, as in EGG.
        sender_entropy_coeff: the coefficient c. EGG's game weighs the mean entropy of a symbol, which is smaller.
        receiver_entropy_coeff: the coefficient of the entropy of a receiver that acts; 0 for any other.
        length_cost: the cost :math:`\lambda` of a symbol.
        strategy: the method of playing all messages, as in :class:`egg_sparse.SymbolGameMarg`. "gather" plays the pairs
            of example and message in one call, and needs inputs with the examples on axis 0; "loop" calls the receiver
            once per row of messages.
        chunk_size: the largest number of messages per example that are played at a time, as in
            :class:`egg_sparse.SymbolGameMarg`.
        evaluation: the messages in evaluation: "greedy" for the message whose every symbol is the most probable one, as
            in EGG; "expected" for the loss above, which is an estimate where the sender's ``max_support`` bounds it.
        train_logging_strategy: EGG's LoggingStrategy in training; None to keep everything.
        test_logging_strategy: EGG's LoggingStrategy in evaluation; None to keep everything.
        receiver_acts: whether the receiver returns (action, log-probability, entropy); None for yes if it is one of
            EGG's that do.
        coupled: as in :class:`egg_sparse.SymbolGameMarg`.

    The Interaction carries the most probable message that was played in training and the greedy one in evaluation,
    ``message_length`` as EGG counts it, with the end symbol, and in ``aux``, per example: the expectations of the
    loss's metrics; ``task_loss``; ``length``, the expected number of symbols before the end symbol; ``sender_entropy``
    of the message in nats; ``support``, the number of messages, at most ``max_support``; ``receiver_calls``, unless
    only the greedy message was played; ``exact``, 1 where no message was dropped, else 0.

    Raises:
        TypeError, ValueError: an option is none of the above; the sender does not send sequences; and what
            :class:`egg_sparse.SymbolGameMarg` raises.

    Example:
        >>> from egg_sparse import RnnSenderSparsemax
        >>> class Agent(nn.Linear):
        ...     def forward(self, inputs, *others):
        ...         return super().forward(inputs)
        >>> sender = RnnSenderSparsemax(Agent(5, 8), vocab_size=10, embed_dim=4, hidden_size=8, max_len=3, cell="gru")
        >>> receiver = host.core.RnnReceiverDeterministic(Agent(8, 5), vocab_size=10, embed_dim=4, hidden_size=8)
        >>> def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        ...     return (receiver_output - sender_input).pow(2).sum(1), {}
        >>> game = SenderReceiverRnnMarg(sender, receiver, loss, length_cost=0.01)
        >>> loss, interaction = game(torch.randn(8, 5), None)
        >>> interaction.message.shape, interaction.message_length.shape
        (torch.Size([8, 4]), torch.Size([8]))

    Source: Correia et al. (NeurIPS 2020) for the sum over a sparse support; :mod:`egg_sparse.mappings.sequences` for
    sequences.
    """

    def __init__(
        self,
        sender: nn.Module,
        receiver: nn.Module,
        loss: Callable,
        sender_entropy_coeff: float = 0.0,
        receiver_entropy_coeff: float = 0.0,
        length_cost: float = 0.0,
        strategy: Strategy = "gather",
        chunk_size: int | None = None,
        evaluation: Evaluation = "greedy",
        train_logging_strategy: host.core.LoggingStrategy | None = None,
        test_logging_strategy: host.core.LoggingStrategy | None = None,
        receiver_acts: bool | None = None,
        coupled: Coupled = "refuse",
    ) -> None:
        super().__init__(
            sender_entropy_coeff=sender_entropy_coeff,
            receiver_entropy_coeff=receiver_entropy_coeff,
            length_cost=length_cost,
            strategy=strategy,
            chunk_size=chunk_size,
            evaluation=evaluation,
            train_logging_strategy=train_logging_strategy,
            test_logging_strategy=test_logging_strategy,
            receiver_acts=receiver_acts,
            coupled=coupled,
        )
        self.sender = sender
        self.receiver = receiver
        self.loss = loss


class CommunicationRnnMarg(SequenceGame, Mechanics):
    """The mechanics of :class:`SenderReceiverRnnMarg` without agents of its own, for EGG's ``PopulationGame``.

    Called as ``mechanics(sender, receiver, loss, sender_input, labels, receiver_input, aux_input)``. The options, the
    Interaction and the errors are those of :class:`SenderReceiverRnnMarg`.

    Example:
        >>> from egg_sparse import RnnSenderSparsemax
        >>> class Agent(nn.Linear):
        ...     def forward(self, inputs, *others):
        ...         return super().forward(inputs)
        >>> senders = [RnnSenderSparsemax(Agent(5, 8), 10, embed_dim=4, hidden_size=8, max_len=3) for _ in range(2)]
        >>> receivers = [host.core.RnnReceiverDeterministic(Agent(8, 5), 10, embed_dim=4, hidden_size=8)]
        >>> def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        ...     return (receiver_output - sender_input).pow(2).sum(1), {}
        >>> sampler = host.core.UniformAgentSampler(senders, receivers, [loss])
        >>> game = host.core.PopulationGame(CommunicationRnnMarg(), sampler)
        >>> game(torch.randn(8, 5), None)[1].message.shape
        torch.Size([8, 4])
    """
