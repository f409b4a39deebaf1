"""Games in which the loss is the exact expectation over all messages that have a probability."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from egg_sparse.distribution import SparseDistribution
from egg_sparse.estimators.sum_and_sample import score_of_sample, sum_and_sample
from egg_sparse.one_message_game import OneMessageGame, check_count, reported


class _Marginalization(OneMessageGame):
    """What the two games share: options, and the computation of loss and Interaction."""

    def __init__(
        self,
        sender_entropy_coeff: float = 0.0,
        receiver_entropy_coeff: float = 0.0,
        strategy: str = "auto",
        chunk_size: int | None = None,
        evaluation: str = "greedy",
        max_support: int | None = None,
        train_logging_strategy: Any = None,
        test_logging_strategy: Any = None,
    ) -> None:
        super().__init__(
            sender_entropy_coeff,
            receiver_entropy_coeff,
            strategy,
            chunk_size,
            train_logging_strategy,
            test_logging_strategy,
        )
        check_count("max_support", max_support)
        self.evaluation = evaluation
        self.max_support = max_support

    @property
    def evaluation(self) -> str:
        """What is played in evaluation mode: the "greedy" message, or the "expected" loss over all."""
        return self._evaluation

    @evaluation.setter
    def evaluation(self, value: str) -> None:
        if value not in ("greedy", "expected"):
            raise ValueError(f'evaluation must be "greedy" or "expected", got {value!r}')
        self._evaluation = value

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
        distribution = sender(sender_input, aux_input)
        if not isinstance(distribution, SparseDistribution):
            raise TypeError(
                "the sender must return a SparseDistribution: wrap the agent with SparsemaxWrapper; "
                f"it returned {type(distribution).__name__}"
            )
        greedy = not self.training and self.evaluation == "greedy"
        sampled_rest = self.training and self.max_support is not None and len(distribution.probs) > self.max_support
        terms = distribution
        if sampled_rest:
            terms, log_prob = sum_and_sample(distribution, self.max_support or 1)
        context = (sender_input, labels, receiver_input, aux_input)
        played = self._played(terms, receiver, loss, *context, greedy=greedy)
        expect = (lambda values: values[0]) if greedy else terms.expectation

        losses = expect(played.values["loss"])
        sender_entropy = distribution.entropy()
        optimized_loss = losses.mean() - self.sender_entropy_coeff * sender_entropy.mean()
        if sampled_rest:
            optimized_loss = optimized_loss + score_of_sample(terms, log_prob, played.values["loss"]).mean()
        aux = reported(played, expect)
        if "receiver_log_prob" in played.values:
            receiver_entropy = expect(played.values["receiver_entropy"])
            optimized_loss = optimized_loss - self.receiver_entropy_coeff * receiver_entropy.mean()
            if self.training:
                advantage = played.values["loss"].detach() - _mean_of_others(losses.detach())
                policy_loss = (advantage * played.values["receiver_log_prob"]).mul(terms.probs.detach())
                optimized_loss = optimized_loss + torch.where(terms.mask, policy_loss, 0).sum(0).mean()
            aux["receiver_entropy"] = receiver_entropy
        aux["sender_entropy"] = sender_entropy
        aux["support"] = distribution.support_size.to(losses.dtype)
        aux["decoder_calls"] = played.decoder_calls.to(losses.dtype)
        return optimized_loss, self._interaction(distribution.mode, played, aux, *context)


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
            aux_input)``. It returns a tensor, or (output, log_prob, entropy) as those wrapped by EGG's
            Reinforce wrappers do; a receiver that samples an action learns by the score function,
            with the mean loss of the other examples as baseline.
        loss: ``loss(sender_input, message, receiver_input, receiver_output, labels, aux_input)``; returns
            the loss per example, ``(B,)``, and a dict of tensors. Those with one value per example are
            averaged exactly. A scalar, such as an accuracy that is a mean over the batch already,
            is weighed by the batch's mean probability of each row, which is an approximation.
        sender_entropy_coeff: c above. More of it keeps supports large.
        receiver_entropy_coeff: the same for a receiver that acts; must be 0 for one that does not.
        strategy: how all messages are played. "vmap" sees plain EGG shapes, whatever axis a game keeps its
            examples on, and computes once what does not depend on the message; "loop" calls the receiver
            once per row, for what vmap cannot trace (nn.GRU and nn.LSTM, packed sequences,
            BatchNorm in training, ``.item()``); "auto" is vmap, or loop with a warning that names the
            cause. "gather" plays only the (message, example) pairs that have a probability: cheapest
            where supports are uneven and the receiver's input is small, for inputs with examples on axis
            0 and losses in which no example depends on another. BatchNorm in training sees each row of
            messages as a batch.
        chunk_size: play at most so many messages (rows) at a time and recompute them in the backward
            pass, so that memory does not grow with the support.
        evaluation: what is played in evaluation mode: "greedy", the most probable message, as EGG's
            wrappers do; or "expected", the loss above.
        max_support: in training, sum over at most so many messages exactly, and give the probability of all
            others to one sampled from among them ("sum-and-sample"). Cost is then bounded also while the sender
            is undecided, and loss and gradient stay right on average. With ``normalizer="softmax"`` in the
            sender's wrapper this is the estimator of Liu et al. (AISTATS 2019). None for the exact sum.
        train_logging_strategy, test_logging_strategy: EGG's LoggingStrategy; everything is kept if None.

    The Interaction carries the most probable message and the receiver's output for it, a message_length
    of 1, and in ``aux``, per example: the expectation of what the loss reported; ``sender_entropy`` in nats;
    ``support``, the number of messages with a probability; ``decoder_calls``, how many messages the
    receiver was given for the example (with vmap and loop the largest support in the batch).

    Raises:
        TypeError, ValueError: an option is none of the above; a sender that is not wrapped; an empty
            batch; a loss that is not one value per example; a receiver that does not cover the
            sender's vocabulary.

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
        (torch.Size([8]), ['decoder_calls', 'sender_entropy', 'support'])

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
        max_support: int | None = None,
        train_logging_strategy: Any = None,
        test_logging_strategy: Any = None,
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
        )
        self.sender = sender
        self.receiver = receiver
        self.loss = loss

    def forward(
        self, sender_input: Any, labels: Any, receiver_input: Any = None, aux_input: Any = None
    ) -> tuple[torch.Tensor, Any]:
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
