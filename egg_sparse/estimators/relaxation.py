"""Gumbel-Softmax for symbols and bit-vectors, with the sender's entropy, which EGG's own game does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import nn

from egg_sparse import host
from egg_sparse.distribution import SparseDistribution
from egg_sparse.estimators.families import BitVectors, Symbols
from egg_sparse.estimators.score_function import Evaluation, sampling_distribution
from egg_sparse.games.base import OneMessageGame, Option, expected_metrics, of_first_row, one_of
from egg_sparse.games.calls import Batch
from egg_sparse.mappings.scores import check_temperature


class RelaxedWrapper(nn.Module):
    r"""Makes a sampler send relaxed messages, which have a gradient: Gumbel-Softmax, or binary concrete for bits.

    Args:
        sender: the sampler: an agent wrapped by :class:`egg_sparse.estimators.SymbolSampler` or
            :class:`egg_sparse.estimators.BitVectorSampler`.
        temperature: the relaxation's temperature, towards 0 of which messages become discrete and gradients large. It
            is a plain attribute, which EGG's ``TemperatureUpdater`` and :class:`egg_sparse.callbacks.StepTemperature`
            can anneal.
        straight_through: whether messages are discrete in the forward pass, with the relaxation's gradient.

    It returns ``(B, V)`` for symbols and ``(B, D)`` for bits, and works in EGG's ``SymbolGameGS`` as well; in
    evaluation mode it returns the most probable message.

    Raises:
        TypeError, ValueError: the temperature is not above 0, or the sender is not wrapped.

    Example:
        >>> from egg_sparse.estimators import BitVectorSampler
        >>> wrapper = RelaxedWrapper(BitVectorSampler(nn.Linear(10, 32)), straight_through=True)
        >>> wrapper.sender(torch.randn(4, 10)).relaxed(1.0, True).unique().tolist()
        [0.0, 1.0]
    """

    def __init__(self, sender: nn.Module, temperature: float = 1.0, straight_through: bool = False) -> None:
        super().__init__()
        self.sender = sender
        self.temperature = temperature
        self.straight_through = straight_through
        check_temperature(temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, straight_through={self.straight_through}"

    def with_distribution(
        self, sender_input: Any, aux_input: Any = None, sampled: bool = False
    ) -> tuple[torch.Tensor, Symbols | BitVectors]:
        """The message, and the discrete distribution that it relaxes.

        In evaluation mode the message is the most probable one, or a sample if ``sampled``.
        """
        check_temperature(self.temperature)
        distribution = sampling_distribution(self.sender, sender_input, aux_input)
        if self.training:
            message = distribution.relaxed(self.temperature, self.straight_through)
        else:
            message = distribution.as_relaxed(distribution.sample() if sampled else distribution.mode)
        return message, distribution

    def forward(self, sender_input: Any, aux_input: Any = None) -> torch.Tensor:
        return self.with_distribution(sender_input, aux_input)[0]


class SymbolGameRelaxed(OneMessageGame):
    """A one-message game with relaxed messages and the exact entropy of the sender; its gradient is biased.

    Args:
        sender: the sender, a :class:`RelaxedWrapper`.
        receiver: the receiver, which reads relaxed messages: one-hot rows of symbols, or bits.
        loss: the loss, as in :class:`egg_sparse.SymbolGameMarg`.
        sender_entropy_coeff: the coefficient of the sender's exact entropy in nats, which is subtracted.
        evaluation: the discrete message that is played in evaluation mode: "greedy", the most probable one, or
            "sampled".
        train_logging_strategy: EGG's LoggingStrategy in training; None to keep everything.
        test_logging_strategy: EGG's LoggingStrategy in evaluation; None to keep everything.

    The Interaction is that of SymbolGameMarg without ``support``.

    Raises:
        TypeError: the sender is not wrapped.

    Example:
        >>> from egg_sparse.estimators import SymbolSampler
        >>> class Agent(nn.Linear):
        ...     def forward(self, sender_input, aux_input=None):
        ...         return super().forward(sender_input)
        >>> receiver = nn.Linear(100, 5)
        >>> def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        ...     return (receiver_output - sender_input).pow(2).sum(1), {}
        >>> game = SymbolGameRelaxed(
        ...     RelaxedWrapper(SymbolSampler(Agent(5, 100))), lambda message, *_: receiver(message), loss)
        >>> game(torch.randn(8, 5), None)[1].message.shape
        torch.Size([8, 100])
    """

    evaluation = Option[Evaluation](one_of(*get_args(Evaluation)))

    def __init__(
        self,
        sender: RelaxedWrapper,
        receiver: nn.Module,
        loss: Callable,
        sender_entropy_coeff: float = 0.0,
        evaluation: Evaluation = "greedy",
        train_logging_strategy: host.core.LoggingStrategy | None = None,
        test_logging_strategy: host.core.LoggingStrategy | None = None,
    ) -> None:
        super().__init__(
            train_logging_strategy,
            test_logging_strategy,
            sender_entropy_coeff=sender_entropy_coeff,
            receiver_entropy_coeff=0.0,
            strategy="auto",
            chunk_size=None,
            receiver_acts=None,
            evaluation=evaluation,
        )
        if not isinstance(sender, RelaxedWrapper):
            raise TypeError(f"the sender must be a RelaxedWrapper, got {type(sender).__name__}")
        self.sender = sender
        self.receiver = receiver
        self.loss = loss

    def forward(
        self, sender_input: Any, labels: Any, receiver_input: Any = None, aux_input: Any = None
    ) -> tuple[torch.Tensor, host.core.Interaction]:
        message, relaxed = self.sender.with_distribution(sender_input, aux_input, self.evaluation == "sampled")
        probs = torch.ones_like(message[None, :, 0])
        sent = SparseDistribution(message[None], probs, relaxed.vocab_size, validate_args=False)
        batch = Batch(sender_input, labels, receiver_input, aux_input)
        call = self._receiver_call(sent, self.receiver, self.loss, batch)
        outcome = self._play(sent, call, greedy=True)
        expect = of_first_row(sent)
        losses, entropy = expect(outcome.loss), relaxed.entropy()
        metrics = {"sender_entropy": entropy, "receiver_calls": outcome.receiver_calls.to(losses.dtype)}
        return losses.mean() - self.sender_entropy_coeff * entropy.mean(), self._interaction(
            message, call, outcome, losses, expected_metrics(outcome, expect), metrics
        )
