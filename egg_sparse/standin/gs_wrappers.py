"""Gumbel-Softmax: one relaxed symbol per message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import RelaxedOneHotCategorical

from egg_sparse.standin.interaction import Interaction, LoggingStrategy


def gumbel_softmax_sample(
    logits: torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    training: bool = True,
    straight_through: bool = False,
) -> torch.Tensor:
    """In training a relaxed sample, one-hot in the forward pass if straight_through; else the best symbol, one-hot."""
    if not training:
        return F.one_hot(logits.argmax(dim=-1), logits.size(-1)).to(logits.dtype)
    sample = RelaxedOneHotCategorical(logits=logits, temperature=temperature).rsample()  # type: ignore[arg-type]
    if straight_through:
        hard = F.one_hot(sample.argmax(dim=-1), sample.size(-1)).to(sample.dtype)
        sample = sample + (hard - sample).detach()
    return sample


class GumbelSoftmaxWrapper(nn.Module):
    """Makes an agent that returns log-probabilities of symbols send a Gumbel-Softmax sample of them.

    >>> message = GumbelSoftmaxWrapper(nn.Linear(10, 2))(torch.zeros(4, 10))
    >>> message.sum(dim=-1).round(decimals=4)
    tensor([1., 1., 1., 1.], grad_fn=<RoundBackward1>)
    """

    def __init__(
        self,
        agent: nn.Module,
        temperature: float = 1.0,
        trainable_temperature: bool = False,
        straight_through: bool = False,
    ) -> None:
        super().__init__()
        self.agent = agent
        self.straight_through = straight_through
        self.temperature: float | nn.Parameter = (
            nn.Parameter(torch.tensor([temperature])) if trainable_temperature else temperature
        )

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        logits = self.agent(*args, **kwargs)
        return gumbel_softmax_sample(logits, self.temperature, self.training, self.straight_through)


class SymbolGameGS(nn.Module):
    """A game of one-symbol messages whose loss is differentiable with respect to the message."""

    def __init__(
        self,
        sender: nn.Module,
        receiver: nn.Module,
        loss: Callable,
        train_logging_strategy: LoggingStrategy | None = None,
        test_logging_strategy: LoggingStrategy | None = None,
    ) -> None:
        super().__init__()
        self.sender = sender
        self.receiver = receiver
        self.loss = loss
        self.train_logging_strategy = train_logging_strategy or LoggingStrategy()
        self.test_logging_strategy = test_logging_strategy or LoggingStrategy()

    def forward(
        self, sender_input: Any, labels: Any, receiver_input: Any = None, aux_input: Any = None
    ) -> tuple[torch.Tensor, Interaction]:
        message = self.sender(sender_input, aux_input)
        receiver_output = self.receiver(message, receiver_input, aux_input)
        loss, aux = self.loss(sender_input, message, receiver_input, receiver_output, labels, aux_input)
        strategy = self.train_logging_strategy if self.training else self.test_logging_strategy
        interaction = strategy.filtered_interaction(
            sender_input=sender_input,
            receiver_input=receiver_input,
            labels=labels,
            aux_input=aux_input,
            message=message.detach(),
            receiver_output=receiver_output.detach(),
            message_length=torch.ones(message.size(0)),
            aux=aux,
        )
        return loss.mean(), interaction


class RelaxedEmbedding(nn.Embedding):
    """An embedding of symbol ids, or of one-hot and relaxed symbols.

    >>> embedding = RelaxedEmbedding(15, 10)
    >>> ids = torch.tensor([[1], [2], [3]])
    >>> torch.equal(embedding(ids), embedding(F.one_hot(ids, 15).float()))
    True
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.matmul(x, self.weight) if x.is_floating_point() else super().forward(x)


class SymbolReceiverWrapper(nn.Module):
    """Embeds a one-symbol message, an id or one-hot, for the receiver that it wraps."""

    def __init__(self, agent: nn.Module, vocab_size: int, agent_input_size: int) -> None:
        super().__init__()
        self.agent = agent
        self.embedding = RelaxedEmbedding(vocab_size, agent_input_size)

    def forward(self, message: torch.Tensor, input: Any = None, aux_input: Any = None) -> Any:
        return self.agent(self.embedding(message), input, aux_input)
