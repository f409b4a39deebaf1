"""The score-function estimator (REINFORCE) for messages of one symbol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributions import Categorical

from egg_sparse.standin.baselines import Baseline, MeanBaseline
from egg_sparse.standin.interaction import Interaction, LoggingStrategy


class ReinforceWrapper(nn.Module):
    """Makes an agent that returns log-probabilities act: returns (action, its log-probability, entropy in nats).

    In training the action is a sample, else the most probable one.

    >>> agent = ReinforceWrapper(nn.Sequential(nn.Linear(10, 3), nn.LogSoftmax(dim=1)))
    >>> sample, log_prob, entropy = agent(torch.ones(4, 10))
    >>> sample.shape, bool((log_prob < 0).all()), bool((entropy > 0).all())
    (torch.Size([4]), True, True)
    """

    def __init__(self, agent: nn.Module) -> None:
        super().__init__()
        self.agent = agent

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = self.agent(*args, **kwargs)
        distribution = Categorical(logits=logits)
        action = distribution.sample() if self.training else logits.argmax(dim=1)
        return action, distribution.log_prob(action), distribution.entropy()


class ReinforceDeterministicWrapper(nn.Module):
    """Gives a deterministic agent the signature of :class:`ReinforceWrapper`: log-probability and entropy are 0."""

    def __init__(self, agent: nn.Module) -> None:
        super().__init__()
        self.agent = agent

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        output = self.agent(*args, **kwargs)
        return output, torch.zeros(1, device=output.device), torch.zeros(1, device=output.device)


def _verify_batch_sizes(loss: torch.Tensor, sender: torch.Tensor, receiver: torch.Tensor) -> None:
    if loss.numel() == sender.numel() == receiver.numel() == 1:
        return
    if not (loss.dim() and sender.dim() and loss.size(0) == sender.size(0)):
        raise RuntimeError(
            "the loss must return one value per example, as many as Sender has log-probabilities; "
            f"their shapes are {loss.size()} and {sender.size()}. Does your loss average over the batch?"
        )
    deterministic = receiver.numel() == 1 and receiver.item() == 0.0
    if not (deterministic or (receiver.numel() > 1 and receiver.size(0) == loss.size(0))):
        raise RuntimeError(
            "Receiver's log-probabilities must be one per example, or a single 0.0 if it is deterministic; "
            f"their shape is {receiver.size()}, the loss has {loss.size()}."
        )


class SymbolGameReinforce(nn.Module):
    """A game of one-symbol messages, trained with the score-function estimator and a baseline."""

    def __init__(
        self,
        sender: nn.Module,
        receiver: nn.Module,
        loss: Callable,
        sender_entropy_coeff: float = 0.0,
        receiver_entropy_coeff: float = 0.0,
        baseline_type: Callable[[], Baseline] = MeanBaseline,
        train_logging_strategy: LoggingStrategy | None = None,
        test_logging_strategy: LoggingStrategy | None = None,
    ) -> None:
        super().__init__()
        self.sender = sender
        self.receiver = receiver
        self.loss = loss
        self.receiver_entropy_coeff = receiver_entropy_coeff
        self.sender_entropy_coeff = sender_entropy_coeff
        self.baseline = baseline_type()
        self.train_logging_strategy = train_logging_strategy or LoggingStrategy()
        self.test_logging_strategy = test_logging_strategy or LoggingStrategy()

    def forward(
        self, sender_input: Any, labels: Any, receiver_input: Any = None, aux_input: Any = None
    ) -> tuple[torch.Tensor, Interaction]:
        message, sender_log_prob, sender_entropy = self.sender(sender_input, aux_input)
        receiver_output, receiver_log_prob, receiver_entropy = self.receiver(message, receiver_input, aux_input)
        loss, aux = self.loss(sender_input, message, receiver_input, receiver_output, labels, aux_input)
        if self.training:
            _verify_batch_sizes(loss, sender_log_prob, receiver_log_prob)

        advantage = loss.detach() - self.baseline.predict(loss.detach())
        policy_loss = (advantage * (sender_log_prob + receiver_log_prob)).mean()
        entropy_bonus = (
            sender_entropy.mean() * self.sender_entropy_coeff + receiver_entropy.mean() * self.receiver_entropy_coeff
        )
        optimized_loss = policy_loss - entropy_bonus + loss.mean()
        if self.training:
            self.baseline.update(loss.detach())

        aux["baseline"] = self.baseline.predict(loss.detach())
        aux["sender_entropy"] = sender_entropy.detach()
        aux["receiver_entropy"] = receiver_entropy.detach()
        strategy = self.train_logging_strategy if self.training else self.test_logging_strategy
        interaction = strategy.filtered_interaction(
            sender_input=sender_input,
            labels=labels,
            receiver_input=receiver_input,
            aux_input=aux_input,
            message=message.detach(),
            receiver_output=receiver_output.detach(),
            message_length=torch.ones(message.size(0)),
            aux=aux,
        )
        return optimized_loss, interaction
