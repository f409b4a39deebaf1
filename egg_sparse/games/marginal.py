"""Games in which the loss is the exact expectation over all messages of non-zero probability."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from egg_sparse import host
from egg_sparse.distribution import SparseDistribution
from egg_sparse.games import checks
from egg_sparse.games.base import ByIdentity, OneMessageGame, Option, check_count, of_first_row, one_of, reported
from egg_sparse.games.strategies import Played, Round
from egg_sparse.mappings.resampling import resample, score_of_sample, sum_and_sample
from egg_sparse.wrappers import requesting_distributions

#: The largest support that is summed exactly in training, by default: the vocabulary of the paper's signal game.
MAX_SUPPORT = 256

_MOST_ATTEMPTS = 3  # to tell whether a loss couples examples

_MOST_LOOKS = 10  # for metrics of one number per batch that depend on the messages

_WATCHED_STEPS = 200
_COLLAPSED, _MOVED = 1.01, 0.01


@dataclass
class WatchedSupport:
    """Sums over the training steps of a sender since it was last looked at, and its first loss."""

    steps: int = 0
    support: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    warned: bool = False


class _Marginalization(OneMessageGame):
    """What the two games share: options, and the computation of loss and Interaction."""

    evaluation = Option[str](one_of("greedy", "expected"))
    max_support = Option["int | None"](check_count)
    bound = Option[str](one_of("resample", "sum_and_sample"))
    coupled = Option[str](one_of("refuse", "approximate"))

    def __init__(
        self,
        sender_entropy_coeff: float = 0.0,
        receiver_entropy_coeff: float = 0.0,
        strategy: str = "auto",
        chunk_size: int | None = None,
        evaluation: str = "greedy",
        max_support: int | None = MAX_SUPPORT,
        train_logging_strategy: Any = None,
        test_logging_strategy: Any = None,
        receiver_acts: bool | None = None,
        coupled: str = "refuse",
        bound: str = "resample",
    ) -> None:
        super().__init__(
            sender_entropy_coeff,
            receiver_entropy_coeff,
            strategy,
            chunk_size,
            train_logging_strategy,
            test_logging_strategy,
            receiver_acts,
        )
        self.evaluation = evaluation
        self.max_support = max_support
        self.coupled = coupled
        self.bound = bound
        self._watched_supports = ByIdentity(WatchedSupport)

    def extra_repr(self) -> str:
        return (
            f"sender_entropy_coeff={self.sender_entropy_coeff}, strategy={self.strategy}, "
            f"chunk_size={self.chunk_size}, evaluation={self.evaluation}, max_support={self.max_support}"
        )

    def _communicate(
        self,
        sender: Callable,
        receiver: Callable,
        loss: Callable,
        sender_input: Any,
        labels: Any,
        receiver_input: Any,
        aux_input: Any,
    ) -> tuple[torch.Tensor, Any]:
        host.refuse_several_symbols(sender)
        host.refuse_sampling_wrappers(sender)
        with requesting_distributions():
            distribution = sender(sender_input, aux_input)
        if not isinstance(distribution, SparseDistribution):
            raise TypeError(
                "the sender must return a SparseDistribution: wrap the agent with SparsemaxWrapper; "
                f"it returned {type(distribution).__name__}"
            )
        host.refuse_several_symbols(receiver)
        if self.receiver_acts is None and not self.receiver_entropy_coeff:
            receiver = host.without_deterministic_wrapper(receiver)
        game_round = self._round(distribution, receiver, loss, sender_input, labels, receiver_input, aux_input)
        greedy = not self.training and self.evaluation == "greedy"
        over = self.training and self.max_support is not None and len(distribution.probs) > self.max_support
        terms, log_prob = distribution, None
        if over and self.bound == "resample":
            terms = resample(distribution, self.max_support or 1)
        elif over:
            terms, log_prob = sum_and_sample(distribution, self.max_support or 1)
        played = self._played(terms, game_round, greedy)
        if not greedy and min(terms.probs.shape) > 1:
            self._check_coupling(terms, game_round)
            self._check_averages(game_round, played)
        expect = of_first_row(terms) if greedy else terms.expectation

        losses = expect(played.values["loss"])
        others = _mean_of_others(losses.detach())
        if terms.ratios is not None:
            losses = losses + others * (1 - terms.weights.sum(0))
        sender_entropy = distribution.entropy()
        optimized_loss = losses.mean() - self.sender_entropy_coeff * sender_entropy.mean()
        if log_prob is not None:
            optimized_loss = optimized_loss + score_of_sample(terms, log_prob, played.values["loss"]).mean()
        if self.training:
            self._watch_support(sender, distribution, losses)
        if distribution.control is not None:
            distribution.control.follow(losses)
            spread = _spread(terms, played.values["loss"])
            coefficient = distribution.control.entropy_coefficient(spread, "receiver_log_prob" in played.values)
            optimized_loss = optimized_loss - coefficient * (sender_entropy - sender_entropy.detach()).mean()
        aux = {}
        if "receiver_log_prob" in played.values:
            receiver_entropy = expect(played.values["receiver_entropy"])
            optimized_loss = optimized_loss - self.receiver_entropy_coeff * receiver_entropy.mean()
            if self.training:
                advantage = played.values["loss"].detach() - others
                policy_loss = (advantage * played.values["receiver_log_prob"]).mul(terms.weights.detach())
                optimized_loss = optimized_loss + torch.where(terms.mask, policy_loss, 0).sum(0).mean()
            aux["receiver_entropy"] = receiver_entropy
        aux["sender_entropy"] = sender_entropy
        aux["support"] = distribution.support_size.to(losses.dtype)
        if not greedy:
            aux["receiver_calls"] = played.receiver_calls.to(losses.dtype)
        aux["exact"] = (distribution.support_size <= (self.max_support or math.inf)).to(losses.dtype)
        return optimized_loss, self._interaction(terms.mode, game_round, played, losses, reported(played, expect), aux)

    def _watch_support(self, sender: Callable, distribution: SparseDistribution, losses: torch.Tensor) -> None:
        """Warns once if a sender's mean support stays at a single message while the loss still moves."""
        watched = self._watched_supports[sender]
        if watched.warned:
            return
        loss, support = losses.detach().mean(), distribution.support_size.to(losses.dtype).mean()
        if watched.support is None or watched.loss is None:
            watched.steps, watched.support, watched.loss = 0, torch.zeros_like(support), loss
        watched.steps += 1
        watched.support = watched.support + support
        if watched.steps < _WATCHED_STEPS:
            return
        mean_support, before, now = torch.stack((watched.support / watched.steps, watched.loss, loss)).tolist()
        watched.support = None
        if mean_support < _COLLAPSED and abs(now - before) > _MOVED * abs(before):
            watched.warned = True
            warnings.warn(
                f"the mean support of {_WATCHED_STEPS} steps was {mean_support:.3f} messages, so that the sender "
                "hardly learns, while the loss still moves: leave the wrapper its support control (support), or "
                "give it a higher temperature",
                RuntimeWarning,
                stacklevel=3,
            )

    def _check_coupling(self, terms: SparseDistribution, game_round: Round) -> None:
        """Refuses a receiver and a loss that make an example's loss depend on the messages of others."""
        if self.coupled == "approximate":
            if self.strategy == "gather":
                raise ValueError(
                    'coupled="approximate" needs strategy vmap or loop, which play each row of messages as a batch; '
                    "gather would play an example against itself"
                )
            return
        known = self._known_receivers[game_round.receiver].losses[game_round.loss]
        if self.training in known.uncoupled or known.attempts >= _MOST_ATTEMPTS:
            return
        own, second = terms.messages[:2]
        decided = (terms.probs[1] == 0).view(-1, *(1,) * (own.dim() - 1))
        another = torch.where(decided, own.roll(1, 0), second)
        messages = torch.stack((own, another))
        layers = [] if known.attempts else checks.batch_norms(game_round.receiver)
        if layers:
            layers = checks.that_see_messages(layers, game_round, messages, game_round.agents)
            checks.warn_of_batch_norms(layers)
        change = checks.change_by_others(lambda message: game_round(message)["loss"], messages, game_round.agents)
        if change:
            raise ValueError(
                f"the loss of an example changes by up to {change:.3g} with the messages of the other examples in the "
                "batch, so that the sum over its own messages is not its expected loss: take negatives from the "
                'inputs, not from messages, or give the game coupled="approximate", which plays each row of messages '
                "as a batch"
            )
        if change is None:
            known.attempts += 1
        else:
            known.uncoupled.add(self.training)

    def _check_averages(self, game_round: Round, played: Played) -> None:
        """Warns once of what a loss reports as one number per batch, if that depends on the messages."""
        known = self._known_receivers[game_round.receiver].losses[game_round.loss]
        if not game_round.per_batch or known.looks >= _MOST_LOOKS:
            return
        known.looks += 1
        values = {name: played.values[f"aux/{name}"] for name in game_round.per_batch}
        names = [name for name, value in values.items() if not torch.equal(value, value[:1].expand_as(value))]
        if names:
            known.looks = _MOST_LOOKS
            checks.warn_of_averages(sorted(names))


def _spread(terms: SparseDistribution, losses: torch.Tensor) -> torch.Tensor:
    """The standard deviation ``(B,)`` of an example's losses over its messages, without gradient."""
    with torch.no_grad():
        weights = terms.weights / terms.weights.sum(0)
        losses = torch.where(terms.mask, losses, 0)
        variance = (weights * (losses - (weights * losses).sum(0)).square()).sum(0)
        return variance.sqrt()


def _mean_of_others(losses: torch.Tensor) -> torch.Tensor:
    """For every example the mean of the others', a baseline that is independent of the example's own action."""
    if losses.numel() == 1:
        return torch.zeros_like(losses)
    return (losses.sum() - losses) / (losses.numel() - 1)


class SymbolGameMarg(_Marginalization):
    r"""A one-message Sender/Receiver game whose loss is the exact expectation over messages,

    .. math:: \frac{1}{B} \sum_b \Big( \sum_{m:\, p_b(m) > 0} p_b(m)\, \ell_b(m) - c\, H(p_b) \Big),

    with the entropy H in nats. It takes the place of EGG's ``SymbolGameReinforce`` or ``SymbolGameGS``;
    receiver and loss stay as they are.

    Args:
        sender: returns a SparseDistribution: an agent wrapped by :class:`egg_sparse.SparsemaxWrapper`.
        receiver: any EGG receiver of one-symbol messages, ``receiver(message, receiver_input,
            aux_input)``. What it returns goes to the loss as it is, unless the receiver acts.
        loss: ``loss(sender_input, message, receiver_input, receiver_output, labels, aux_input)``; returns
            the loss per example, ``(B,)``, and a dict of tensors. Those with one value per example are
            averaged exactly. A scalar, such as an accuracy that is a mean over the batch already,
            is weighed by the batch's mean probability of each row, which is an approximation. An
            example's loss must not depend on the messages of other examples, as it does with in-batch
            negatives that are read from messages; the first batch finds out (see ``coupled``).
        sender_entropy_coeff: c above. More of it keeps supports large.
        receiver_entropy_coeff: the same for a receiver that acts; must be 0 for one that does not.
        strategy: how all messages are played. "vmap" sees plain EGG shapes, whatever axis a game keeps its
            examples on, and computes once what does not depend on the message; "loop" calls the receiver
            once per row, for what vmap cannot trace (nn.GRU and nn.LSTM, packed sequences,
            BatchNorm in training, ``.item()``); "auto" is vmap, or loop with a warning that names the
            cause. "gather" plays only the (message, example) pairs of non-zero probability: cheapest
            where supports are uneven and the receiver's input is small, for inputs with examples on axis
            0 and metrics with one value per example. All give the same loss, if no example's loss
            depends on the messages of others. Where it does, vmap, loop and auto play each row of
            messages as a batch, which is not the expectation over independent messages, and gather
            cannot play it. BatchNorm in training is such a case: a warning says so.
        chunk_size: play at most so many messages (rows) at a time and recompute them in the backward
            pass, so that memory does not grow with the support.
        evaluation: what is played in evaluation mode: "greedy", the most probable message, as EGG's
            wrappers do; or "expected", the loss above.
        max_support: the largest support that is summed exactly in training. Of larger ones, as dense starts have,
            so many messages are drawn and weighed, so that loss and gradient stay right on average, and the cost
            bounded (see :mod:`egg_sparse.mappings.resampling`). None for the exact sum whatever it costs.
        train_logging_strategy, test_logging_strategy: EGG's LoggingStrategy; everything is kept if None.
        receiver_acts: whether the receiver returns (action, log-probability, entropy), and learns by the
            score function with the mean loss of the other examples as baseline. None for yes if it is one
            of EGG's receivers that do (ReinforceWrapper and its like), else no.
        coupled: what to do if an example's loss depends on the messages of other examples, which the first
            batch with a new receiver or loss finds out by playing it a few times with messages exchanged.
            "refuse" raises an error; "approximate" plays each row of messages as a batch, and does not look.
        bound: what keeps ``max_support``. "resample"; or "sum_and_sample", the paper's: so many messages are summed
            exactly, and one of all others is sampled, with their probability and a score function. With
            ``normalizer="softmax"`` in the sender's wrapper this is the estimator of Liu et al. (AISTATS 2019).

    The Interaction carries the most probable message and the receiver's output for it, a message_length
    of 1 (of D for bit-vectors), and in ``aux``, per example: the expectation of what the loss reported;
    ``task_loss``, the expectation of the loss itself, to which the game's own loss adds the entropies;
    ``sender_entropy`` in nats; ``support``, the number of messages of non-zero probability; ``receiver_calls``, how
    many messages the receiver was given for the example (with vmap and loop the largest support in the batch),
    unless only the most probable one was played; ``exact``, 1 where the support is within ``max_support``, else 0.

    Raises:
        TypeError, ValueError: an option is none of the above; a sender that is not wrapped; an empty
            batch; a loss that is not one value per example, depends on other examples' messages, or
            reports a metric under a name of the game's own; a receiver that does not cover the sender's
            vocabulary.

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
        strategy: str = "auto",
        chunk_size: int | None = None,
        evaluation: str = "greedy",
        max_support: int | None = MAX_SUPPORT,
        train_logging_strategy: Any = None,
        test_logging_strategy: Any = None,
        receiver_acts: bool | None = None,
        coupled: str = "refuse",
        bound: str = "resample",
    ) -> None:
        super().__init__(
            sender_entropy_coeff,
            receiver_entropy_coeff,
            strategy,
            chunk_size,
            evaluation,
            max_support,
            train_logging_strategy,
            test_logging_strategy,
            receiver_acts,
            coupled,
            bound,
        )
        self.sender = sender
        self.receiver = receiver
        self.loss = loss

    def forward(
        self, sender_input: Any, labels: Any, receiver_input: Any = None, aux_input: Any = None, *others: Any
    ) -> tuple[torch.Tensor, Any]:
        if others or isinstance(sender_input, nn.Module):
            raise TypeError(
                "SymbolGameMarg has agents of its own, but was given others, as a PopulationGame gives them to its "
                "mechanics: give the PopulationGame a CommunicationMarg"
            )
        return self._communicate(self.sender, self.receiver, self.loss, sender_input, labels, receiver_input, aux_input)


class CommunicationMarg(_Marginalization):
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

    def forward(
        self,
        sender: Callable,
        receiver: Callable,
        loss: Callable,
        sender_input: Any,
        labels: Any,
        receiver_input: Any = None,
        aux_input: Any = None,
    ) -> tuple[torch.Tensor, Any]:
        return self._communicate(sender, receiver, loss, sender_input, labels, receiver_input, aux_input)
