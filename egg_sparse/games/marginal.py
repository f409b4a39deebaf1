"""Games in which the loss is the exact expectation over all messages of non-zero probability."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from egg_sparse import host
from egg_sparse.distribution import SparseDistribution
from egg_sparse.games import checks
from egg_sparse.games.base import (
    ByIdentity,
    OneMessageGame,
    Option,
    check_count,
    expected_metrics,
    of_first_row,
    one_of,
)
from egg_sparse.games.calls import Batch, Outcome, ReceiverCall, Strategy
from egg_sparse.mappings.resampling import resample, score_of_sample, sum_and_sample
from egg_sparse.wrappers import requesting_distributions

Evaluation = Literal["greedy", "expected"]
Coupled = Literal["refuse", "approximate"]
Bound = Literal["resample", "sum_and_sample"]

#: The largest support that is summed exactly in training, by default: the vocabulary of the paper's signal game.
MAX_SUPPORT = 256

_MAX_COUPLING_CHECKS = 3
_MAX_AVERAGE_CHECKS = 10
_MONITORED_STEPS = 200
_COLLAPSED_SUPPORT, _LEAST_CHANGE = 1.01, 0.01


@dataclass
class SupportMonitor:
    """Sums over the last training steps of a sender, and the loss of the first of them.

    Attributes:
        steps: the number of these steps.
        support: the sum of the mean supports.
        least: the least value that this sum can have, from the largest supports.
        loss: the loss of the first step.
        warned: whether a warning has been given.
    """

    steps: int = 0
    support: Any = 0.0
    least: float = 0.0
    loss: Any = 0.0
    warned: bool = False


class MarginalGame(OneMessageGame):
    """The base of the games: their options, and the computation of loss and Interaction."""

    evaluation = Option[Evaluation](one_of(*get_args(Evaluation)))
    max_support = Option["int | None"](check_count)
    coupled = Option[Coupled](one_of(*get_args(Coupled)))
    bound = Option[Bound](one_of(*get_args(Bound)))
    length_cost: float = 0.0
    _mechanics = "CommunicationMarg"
    _wrapper = "SparsemaxWrapper"

    def __init__(
        self,
        sender_entropy_coeff: float = 0.0,
        receiver_entropy_coeff: float = 0.0,
        strategy: Strategy = "auto",
        chunk_size: int | None = None,
        evaluation: Evaluation = "greedy",
        max_support: int | None = MAX_SUPPORT,
        train_logging_strategy: host.core.LoggingStrategy | None = None,
        test_logging_strategy: host.core.LoggingStrategy | None = None,
        receiver_acts: bool | None = None,
        coupled: Coupled = "refuse",
        bound: Bound = "resample",
    ) -> None:
        super().__init__(
            train_logging_strategy,
            test_logging_strategy,
            sender_entropy_coeff=sender_entropy_coeff,
            receiver_entropy_coeff=receiver_entropy_coeff,
            strategy=strategy,
            chunk_size=chunk_size,
            receiver_acts=receiver_acts,
            evaluation=evaluation,
            max_support=max_support,
            coupled=coupled,
            bound=bound,
        )
        self._support_monitors = ByIdentity(SupportMonitor)

    def extra_repr(self) -> str:
        return (
            f"sender_entropy_coeff={self.sender_entropy_coeff}, strategy={self.strategy}, "
            f"chunk_size={self.chunk_size}, evaluation={self.evaluation}, max_support={self.max_support}"
        )

    def _communicate(
        self, sender: Callable, receiver: Callable, loss: Callable, batch: Batch
    ) -> tuple[torch.Tensor, host.core.Interaction]:
        """The loss and the Interaction of a batch."""
        distribution = self._sent_distribution(sender, batch)
        call = self._receiver_call(distribution, receiver, loss, batch)
        greedy = not self.training and self.evaluation == "greedy"
        bounded, log_prob = self._bounded(distribution)
        if greedy:
            bounded = self._greedy(bounded, sender, batch)
        outcome = self._play(bounded, call, greedy)
        rows, size = bounded.probs.shape
        if not greedy and size > 1 and (rows > 1 or bounded.ratios is not None):
            self._check_coupling(bounded, call)
            self._check_averages(call, outcome)
        expect = of_first_row(bounded) if greedy else bounded.expectation

        losses = expect(outcome.loss) if greedy else unbiased(bounded, outcome.loss)
        sender_entropy, support = _entropy(distribution), distribution.support_size.to(losses.dtype)
        is_exact = self._is_exact(distribution)
        optimized_loss = losses.mean()
        if self.sender_entropy_coeff:
            optimized_loss = optimized_loss - self.sender_entropy_coeff * sender_entropy.mean()
        if log_prob is not None:
            optimized_loss = optimized_loss + score_of_sample(bounded, log_prob, outcome.loss).mean()
        if self.training:
            # a message that was drawn from several is no collapse
            self._monitor_support(sender, support + ~is_exact, len(distribution.probs), losses)
        if distribution.control is not None:
            distribution.control.follow(losses)
            coefficient = distribution.control.entropy_coefficient(_spread(bounded, outcome.loss), outcome.acts)
            if bounded.lengths is not None:  # the coefficient of the game counts towards that of support control
                coefficient = (coefficient - self.sender_entropy_coeff) * (coefficient > self.sender_entropy_coeff)
            optimized_loss = optimized_loss - coefficient * (sender_entropy - sender_entropy.detach()).mean()
        metrics = {}
        if outcome.acts:
            receiver_entropy = expect(outcome.values["receiver_entropy"])
            optimized_loss = optimized_loss - self.receiver_entropy_coeff * receiver_entropy.mean()
            if self.training:
                advantage = outcome.loss.detach() - _mean_of_others(losses.detach())
                policy_loss = (advantage * outcome.values["receiver_log_prob"]).mul(bounded.weights.detach())
                optimized_loss = optimized_loss + torch.where(bounded.mask, policy_loss, 0).sum(0).mean()
            metrics["receiver_entropy"] = receiver_entropy
        metrics["sender_entropy"] = sender_entropy
        metrics["support"] = support
        if not greedy:
            metrics["receiver_calls"] = outcome.receiver_calls.to(losses.dtype)
        metrics["exact"] = is_exact.to(losses.dtype)
        lengths = bounded.lengths
        if lengths is not None:
            length = unbiased(bounded, lengths.to(losses.dtype))
            optimized_loss = optimized_loss + self.length_cost * length.mean()
            metrics["length"] = length - 1
        return optimized_loss, self._interaction(
            bounded.mode,
            call,
            outcome,
            losses,
            expected_metrics(outcome, expect),
            metrics,
            None if lengths is None else lengths[0],
        )

    @property
    def _examples_are_independent(self) -> bool:
        return self.coupled == "refuse"

    def _receiver_call(self, distribution: Any, receiver: Callable, loss: Callable, batch: Batch) -> ReceiverCall:
        host.refuse_several_symbols(receiver)
        if self.receiver_acts is None and not self.receiver_entropy_coeff:
            receiver = host.without_deterministic_wrapper(receiver)
        return super()._receiver_call(distribution, receiver, loss, batch)

    def _greedy(self, distribution: SparseDistribution, sender: Callable, batch: Batch) -> SparseDistribution:
        """A distribution whose first row is the greedy message of every example."""
        return distribution

    def _is_exact(self, distribution: SparseDistribution) -> torch.Tensor:
        """Whether an example's loss is summed over its whole support, ``(B,)`` bool."""
        return distribution.support_size <= (self.max_support or math.inf)

    def _sent_distribution(self, sender: Callable, batch: Batch) -> SparseDistribution:
        self._refuse(sender)
        host.refuse_sampling_wrappers(sender)
        with requesting_distributions():
            distribution = sender(batch.sender_input, batch.aux_input)
        if not isinstance(distribution, SparseDistribution):
            raise TypeError(
                f"the sender must return a SparseDistribution: wrap the agent with {self._wrapper}; "
                f"it returned {type(distribution).__name__}"
            )
        self._check_distribution(distribution)
        return distribution

    def _refuse(self, sender: Callable) -> None:
        """Raises TypeError for a sender of EGG's that samples messages of the game's kind, or sends another kind."""
        host.refuse_several_symbols(sender)

    def _check_distribution(self, distribution: SparseDistribution) -> None:
        """Raises TypeError for a distribution over another kind of messages."""
        if distribution.lengths is not None:
            raise TypeError(
                "the sender sends messages of several symbols: give it to SenderReceiverRnnMarg, or in a population to "
                "CommunicationRnnMarg"
            )

    def _bounded(self, distribution: SparseDistribution) -> tuple[SparseDistribution, torch.Tensor | None]:
        """The distribution within ``max_support``, and the log-probability of its sample if it is sum-and-sample's."""
        if not self.training or self.max_support is None or len(distribution.probs) <= self.max_support:
            return distribution, None
        if self.bound == "resample":
            return resample(distribution, self.max_support), None
        return sum_and_sample(distribution, self.max_support)

    def _monitor_support(self, sender: Callable, support: torch.Tensor, largest: int, losses: torch.Tensor) -> None:
        """Warns once if a sender's mean support stays at a single message while the loss still changes.

        Args:
            sender: the sender.
            support: the support of every example.
            largest: the largest one. It shows without a computation that the mean support is above a single message.
            losses: the loss of every example.
        """
        monitor = self._support_monitors[sender]
        if monitor.warned:
            return
        if monitor.steps == 0:
            monitor.support, monitor.least, monitor.loss = torch.zeros_like(support[0]), 0.0, losses.detach().mean()
        monitor.steps += 1
        monitor.least += 1 + (largest - 1) / len(support)
        is_last = monitor.steps == _MONITORED_STEPS
        may_have_collapsed = monitor.least < _COLLAPSED_SUPPORT * _MONITORED_STEPS - (_MONITORED_STEPS - monitor.steps)
        if may_have_collapsed:
            monitor.support = monitor.support + support.mean()
        if not is_last:
            return
        monitor.steps = 0
        if not may_have_collapsed:
            return
        now = losses.detach().mean()
        mean_support, before, now = torch.stack((monitor.support / _MONITORED_STEPS, monitor.loss, now)).tolist()
        if mean_support < _COLLAPSED_SUPPORT and abs(now - before) > _LEAST_CHANGE * abs(before):
            monitor.warned = True
            warnings.warn(
                f"the mean support of {_MONITORED_STEPS} steps was {mean_support:.3f} messages, so that the sender "
                "hardly learns, while the loss still changes: leave the wrapper its support control (support), or "
                "give it a higher temperature",
                RuntimeWarning,
                stacklevel=3,
            )

    def _check_coupling(self, distribution: SparseDistribution, call: ReceiverCall) -> None:
        """Refuses a receiver and a loss that make an example's loss depend on the messages of others."""
        if self.coupled == "approximate":
            if self.strategy in ("gather", "distinct"):
                raise ValueError(
                    'coupled="approximate" needs strategy vmap or loop, which play each row of messages as a batch; '
                    f"{self.strategy} would play an example against itself"
                )
            return
        known = self._known_receivers[call.receiver].losses[call.loss]
        if self.training in known.uncoupled_modes or known.coupling_checks >= _MAX_COUPLING_CHECKS:
            return
        own, other = distribution.messages[0], distribution.messages[0].roll(1, 0)
        if len(distribution.probs) > 1:
            has_one_message = (distribution.probs[1] == 0).view(-1, *(1,) * (own.dim() - 1))
            other = torch.where(has_one_message, other, distribution.messages[1])
        messages = torch.stack((own, other))
        layers = [] if known.coupling_checks else checks.batch_norms(call.receiver)
        if layers:
            checks.warn_of_batch_norms(checks.message_dependent(layers, call, messages, call.agents))
        change = checks.coupling(lambda message: call(message)["loss"], messages, call.agents)
        if change:
            raise ValueError(
                f"the loss of an example changes by up to {change:.3g} with the messages of the other examples in the "
                "batch, so that the sum over its own messages is not its expected loss: take negatives from the "
                'inputs, not from messages, or give the game coupled="approximate", which plays each row of messages '
                "as a batch"
            )
        if change is None:
            known.coupling_checks += 1
        else:
            known.uncoupled_modes.add(self.training)

    def _check_averages(self, call: ReceiverCall, outcome: Outcome) -> None:
        """Warns once of metrics with one value per batch that depend on the messages."""
        known = self._known_receivers[call.receiver].losses[call.loss]
        if not call.batch_averages or known.average_checks >= _MAX_AVERAGE_CHECKS:
            return
        known.average_checks += 1
        values = {name: outcome.values[f"aux/{name}"] for name in call.batch_averages}
        names = [name for name, value in values.items() if not torch.equal(value, value[:1].expand_as(value))]
        if names:
            known.average_checks = _MAX_AVERAGE_CHECKS
            checks.warn_of_averages(sorted(names))


def unbiased(distribution: SparseDistribution, values: torch.Tensor) -> torch.Tensor:
    """The expectation ``(B,)`` of values ``(K, B)``, with the mean of the other examples as baseline if it is sampled.

    The weights of a resampled support sum to 1, so that the baseline changes the gradient alone.
    """
    expected = distribution.expectation(values)
    if distribution.ratios is None:
        return expected
    return expected + _mean_of_others(expected.detach()) * (1 - distribution.weights.sum(0))


def _entropy(distribution: SparseDistribution) -> torch.Tensor:
    """The entropy ``(B,)`` in nats, with a baseline if it is sampled."""
    return distribution.entropy() if distribution.ratios is None else -unbiased(distribution, distribution.log_probs)


def _spread(distribution: SparseDistribution, losses: torch.Tensor) -> torch.Tensor:
    """The standard deviation ``(B,)`` of an example's losses ``(K, B)`` over its messages, without gradient."""
    with torch.no_grad():
        weights = distribution.weights / distribution.weights.sum(0)
        losses = torch.where(distribution.mask, losses, 0)
        variance = (weights * (losses - (weights * losses).sum(0)).square()).sum(0)
        return variance.sqrt()


def _mean_of_others(losses: torch.Tensor) -> torch.Tensor:
    """The mean loss of the other examples ``(B,)``, a baseline that is independent of the example's own action."""
    if losses.numel() == 1:
        return torch.zeros_like(losses)
    return (losses.sum() - losses) / (losses.numel() - 1)


class GameOfAgents(MarginalGame):
    """The base of the games that have agents and a loss of their own."""

    sender: nn.Module
    receiver: nn.Module
    loss: Callable

    def forward(
        self, sender_input: Any, labels: Any, receiver_input: Any = None, aux_input: Any = None, *others: Any
    ) -> tuple[torch.Tensor, host.core.Interaction]:
        if others or isinstance(sender_input, nn.Module):
            raise TypeError(
                f"{type(self).__name__} has agents of its own, but was given others, as a PopulationGame gives them to "
                f"its mechanics: give the PopulationGame a {self._mechanics}"
            )
        batch = Batch(sender_input, labels, receiver_input, aux_input)
        return self._communicate(self.sender, self.receiver, self.loss, batch)


class Mechanics(MarginalGame):
    """The base of the games that are given agents and a loss with every batch, as EGG's PopulationGame gives them."""

    def forward(
        self,
        sender: Callable,
        receiver: Callable,
        loss: Callable,
        sender_input: Any,
        labels: Any,
        receiver_input: Any = None,
        aux_input: Any = None,
    ) -> tuple[torch.Tensor, host.core.Interaction]:
        return self._communicate(sender, receiver, loss, Batch(sender_input, labels, receiver_input, aux_input))


class SymbolGameMarg(GameOfAgents):
    r"""A one-message Sender/Receiver game whose loss is the exact expectation over messages,

    .. math:: \frac{1}{B} \sum_b \Big( \sum_{m:\, p_b(m) > 0} p_b(m)\, \ell_b(m) - c\, H(p_b) \Big),

    with the entropy H in nats. It takes the place of EGG's ``SymbolGameReinforce`` or ``SymbolGameGS``; receiver and
    loss stay as they are.

    Args:
        sender: the sender, which returns a SparseDistribution: an agent wrapped by
            :class:`egg_sparse.SparsemaxWrapper` or another wrapper of this package.
        receiver: any EGG receiver of one-symbol messages, ``receiver(message, receiver_input, aux_input)``. Its output
            goes to the loss as it is, unless the receiver acts.
        loss: the loss, ``loss(sender_input, message, receiver_input, receiver_output, labels, aux_input)``, which
            returns the loss per example, ``(B,)``, and a dict of tensors, the metrics. Metrics with one value per
            example are averaged exactly. A scalar, such as an accuracy that is a mean over the batch already, is
            weighted by the batch's mean probability of each row, which is an approximation. An example's loss must not
            depend on the messages of other examples, as it does with in-batch negatives that are read from messages;
            the first batch finds out (see ``coupled``).
        sender_entropy_coeff: the coefficient c of the sender's entropy. A larger one keeps supports larger.
        receiver_entropy_coeff: the coefficient of the entropy of a receiver that acts; 0 for any other.
        strategy: the method of playing all messages. "vmap" sees plain EGG shapes, whatever axis a game keeps its
            examples on, and computes once what does not depend on the message; "loop" calls the receiver once per row,
            for receivers that vmap cannot trace (packed sequences, BatchNorm in training, ``.item()``). "distinct"
            calls the receiver once per message that occurs in the batch, for receivers that read the message alone; a
            random receiver, such as one with Dropout, then draws once per message and not once per example. "gather"
            plays only the (message, example) pairs of non-zero probability, and needs inputs with examples on axis 0
            and metrics with one value per example. "auto" is vmap, or loop with a warning that names the cause. It
            plays batches 1, 2, 4, 8 and so on in another way, too, distinct or groups of examples with supports of
            similar size, and uses that way until the next comparison if the losses are the same. All give the same
            loss, if no example's loss depends on the messages of others. Where it does, vmap, loop and auto play each
            row of messages as a batch, which is not the expectation over independent messages, and gather and distinct
            cannot play it. BatchNorm in training is such a case, of which a warning tells.
        chunk_size: the largest number of messages (rows) that are played at a time, to be recomputed in the backward
            pass, so that memory does not grow with the support; None for all at once.
        evaluation: the messages that are played in evaluation mode: "greedy", the most probable one, as in EGG's
            wrappers; or "expected", all, for the loss above.
        max_support: the largest support that is summed exactly in training; None for any. Of a larger one, as dense
            distributions have at first, this number of messages is sampled and weighted, so that loss and gradient
            stay unbiased and the cost bounded (see :mod:`egg_sparse.mappings.resampling`).
        train_logging_strategy: EGG's LoggingStrategy in training; None to keep everything.
        test_logging_strategy: EGG's LoggingStrategy in evaluation; None to keep everything.
        receiver_acts: whether the receiver returns (action, log-probability, entropy) and learns by the score
            function, with the mean loss of the other examples as baseline; None for yes if it is one of EGG's
            receivers that do so (such as ReinforceWrapper), else no.
        coupled: the reaction to a loss of an example that depends on the messages of other examples. The first batch
            with a new receiver or loss finds that out, by playing it a few times with messages exchanged. "refuse"
            raises an error; "approximate" plays each row of messages as a batch, and does not find out.
        bound: the method that keeps ``max_support``: "resample"; or "sum_and_sample", the paper's, which sums
            ``max_support`` messages exactly and samples one of all others, with their total probability and a score
            function. With ``normalizer="softmax"`` in the sender's wrapper this is the estimator of Liu et al.
            (AISTATS 2019).

    The Interaction carries the most probable message and the receiver's output for it, a message_length of 1 (of D for
    bit-vectors), and in ``aux``, per example: the expectations of the loss's metrics; ``task_loss``, the expectation of
    the loss itself, without the entropies that the game's own loss includes; ``sender_entropy`` in nats; ``support``,
    the number of messages of non-zero probability; ``receiver_calls``, the number of messages that the receiver was
    given for the example (with vmap and loop the largest support in the batch or in its group of examples, with
    distinct the example's own support, though examples share calls), unless only the most probable one was played;
    ``exact``, 1 where the support is within ``max_support``, else 0.

    Raises:
        TypeError, ValueError: an option is none of the above; the sender is not wrapped; the batch is empty; the loss
            is not one value per example, depends on other examples' messages, or reports a metric under a name of the
            game's own; or the receiver does not cover the sender's vocabulary.

    Example:
        >>> from egg_sparse import SparsemaxWrapper
        >>> class Receiver(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embedding = nn.Embedding(100, 5)
        ...     def forward(self, message, receiver_input=None, aux_input=None):
        ...         return self.embedding(message)
        >>> def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        ...     return (receiver_output - sender_input).pow(2).sum(1), {}
        >>> class Sender(nn.Linear):
        ...     def forward(self, sender_input, aux_input=None):
        ...         return super().forward(sender_input)
        >>> game = SymbolGameMarg(SparsemaxWrapper(Sender(5, 100)), Receiver(), loss)
        >>> loss, interaction = game(torch.randn(8, 5), None)
        >>> interaction.message.shape, sorted(interaction.aux)
        (torch.Size([8]), ['exact', 'receiver_calls', 'sender_entropy', 'support', 'task_loss'])

    Source: Correia et al. (NeurIPS 2020), section 3.
    """

    def __init__(
        self,
        sender: nn.Module,
        receiver: nn.Module,
        loss: Callable,
        sender_entropy_coeff: float = 0.0,
        receiver_entropy_coeff: float = 0.0,
        strategy: Strategy = "auto",
        chunk_size: int | None = None,
        evaluation: Evaluation = "greedy",
        max_support: int | None = MAX_SUPPORT,
        train_logging_strategy: host.core.LoggingStrategy | None = None,
        test_logging_strategy: host.core.LoggingStrategy | None = None,
        receiver_acts: bool | None = None,
        coupled: Coupled = "refuse",
        bound: Bound = "resample",
    ) -> None:
        super().__init__(
            sender_entropy_coeff=sender_entropy_coeff,
            receiver_entropy_coeff=receiver_entropy_coeff,
            strategy=strategy,
            chunk_size=chunk_size,
            evaluation=evaluation,
            max_support=max_support,
            train_logging_strategy=train_logging_strategy,
            test_logging_strategy=test_logging_strategy,
            receiver_acts=receiver_acts,
            coupled=coupled,
            bound=bound,
        )
        self.sender = sender
        self.receiver = receiver
        self.loss = loss


class CommunicationMarg(Mechanics):
    """The mechanics of :class:`SymbolGameMarg` without agents of its own, for EGG's ``PopulationGame``.

    Called as ``mechanics(sender, receiver, loss, sender_input, labels, receiver_input, aux_input)``. The
    options, the Interaction and the errors are those of :class:`SymbolGameMarg`.

    Example:
        >>> from egg_sparse import SparsemaxWrapper, host
        >>> class Sender(nn.Linear):
        ...     def forward(self, sender_input, aux_input=None):
        ...         return super().forward(sender_input)
        >>> senders = [SparsemaxWrapper(Sender(5, 100)) for _ in range(2)]
        >>> receivers = [host.core.SymbolReceiverWrapper(lambda message, *_: message, 100, 5)]
        >>> def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        ...     return (receiver_output - sender_input).pow(2).sum(1), {}
        >>> sampler = host.core.UniformAgentSampler(senders, receivers, [loss])
        >>> game = host.core.PopulationGame(CommunicationMarg(), sampler)
        >>> loss, interaction = game(torch.randn(8, 5), None)
        >>> interaction.message.shape
        torch.Size([8])
    """
