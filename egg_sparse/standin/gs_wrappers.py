"""Gumbel-Softmax: messages of one relaxed symbol and of several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import RelaxedOneHotCategorical

from egg_sparse.standin.interaction import Interaction, LoggingStrategy
from egg_sparse.standin.rnn import advance, cell_of_kind, check_max_len


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


def _temperature(value: float, trainable: bool) -> float | nn.Parameter:
    return nn.Parameter(torch.tensor([value])) if trainable else value


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
        self.temperature = _temperature(temperature, trainable_temperature)

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


class RnnSenderGS(nn.Module):
    """Makes an agent that returns a first hidden state ``(B, hidden_size)`` send max_len relaxed symbols and an end.

    Returns ``(B, max_len + 1, vocab_size)``: Gumbel-Softmax samples in training, else the best symbols, one-hot.
    The game, not the sender, looks for the end symbol 0.

    Args:
        agent: the module that reads the sender's input.
        vocab_size: the number of symbols, with the end symbol 0.
        embed_dim: the size of a symbol's embedding.
        hidden_size: the size of the hidden state.
        max_len: the number of symbols before the end symbol that is appended.
        temperature: the temperature of the samples.
        cell: the kind of network: rnn, gru or lstm.
        trainable_temperature: whether the temperature is a parameter.
        straight_through: whether samples are one-hot in the forward pass.

    >>> class Agent(nn.Linear):
    ...     def forward(self, sender_input, aux_input=None):
    ...         return super().forward(sender_input)
    >>> sender = RnnSenderGS(Agent(10, 3), vocab_size=2, embed_dim=4, hidden_size=3, max_len=5, temperature=1.0)
    >>> message = sender(torch.zeros(6, 10))
    >>> message.shape, message[0, -1]
    (torch.Size([6, 6, 2]), tensor([1., 0.], grad_fn=<SelectBackward0>))
    """

    def __init__(
        self,
        agent: nn.Module,
        vocab_size: int,
        embed_dim: int,
        hidden_size: int,
        max_len: int,
        temperature: float,
        cell: str = "rnn",
        trainable_temperature: bool = False,
        straight_through: bool = False,
    ) -> None:
        super().__init__()
        check_max_len(max_len)
        self.agent = agent
        self.max_len = max_len
        self.hidden_to_output = nn.Linear(hidden_size, vocab_size)
        self.embedding = nn.Linear(vocab_size, embed_dim)
        self.sos_embedding = nn.Parameter(torch.zeros(embed_dim))
        self.embed_dim = embed_dim
        self.vocab_size = vocab_size
        self.temperature = _temperature(temperature, trainable_temperature)
        self.straight_through = straight_through
        self.cell = cell_of_kind(cell, embed_dim, hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.sos_embedding, 0.0, 0.01)

    def forward(self, x: Any, aux_input: Any = None) -> torch.Tensor:
        hidden = self.agent(x, aux_input)
        memory = torch.zeros_like(hidden)
        embedded = self.sos_embedding.expand(hidden.size(0), -1)
        symbols = []
        for _ in range(self.max_len):
            hidden, memory = advance(self.cell, embedded, hidden, memory)
            scores = self.hidden_to_output(hidden)
            symbols.append(gumbel_softmax_sample(scores, self.temperature, self.training, self.straight_through))
            embedded = self.embedding(symbols[-1])
        end = torch.zeros_like(symbols[0])
        end[:, 0] = 1
        return torch.stack([*symbols, end], dim=1)


class RnnReceiverGS(nn.Module):
    """Reads a relaxed message ``(B, L, vocab_size)``; returns the agent's output after every symbol, ``(B, L, ...)``.

    Args:
        agent: the module that is called as ``agent(hidden, input, aux_input)``.
        vocab_size: the number of symbols, with the end symbol 0.
        embed_dim: the size of a symbol's embedding.
        hidden_size: the size of the hidden state.
        cell: the kind of network: rnn, gru or lstm.
    """

    def __init__(self, agent: nn.Module, vocab_size: int, embed_dim: int, hidden_size: int, cell: str = "rnn") -> None:
        super().__init__()
        self.agent = agent
        self.cell = cell_of_kind(cell, embed_dim, hidden_size)
        self.embedding = nn.Linear(vocab_size, embed_dim)

    def forward(self, message: torch.Tensor, input: Any = None, aux_input: Any = None) -> torch.Tensor:
        embedded = self.embedding(message)
        hidden = memory = embedded.new_zeros(embedded.size(0), self.cell.hidden_size)
        outputs = []
        for symbol in embedded.unbind(dim=1):
            hidden, memory = advance(self.cell, symbol, hidden, memory)
            outputs.append(self.agent(hidden, input, aux_input))
        return torch.stack(outputs, dim=1)


class SenderReceiverRnnGS(nn.Module):
    """A game of relaxed messages of several symbols whose loss is differentiable with respect to the message.

    The loss is the sum over positions of the loss there, weighted with how much of the message ends there. What has
    not ended after the last position ends there.

    Args:
        sender: the sender, which returns relaxed symbols ``(B, L, vocab_size)``.
        receiver: the receiver, which returns an output for every position, ``(B, L, ...)``.
        loss: the loss at one position, which returns one value per example and a dict of such metrics.
        length_cost: the cost of every symbol, the end symbol included.
        train_logging_strategy: what Interactions of training keep.
        test_logging_strategy: what Interactions of evaluation keep.
    """

    def __init__(
        self,
        sender: nn.Module,
        receiver: nn.Module,
        loss: Callable,
        length_cost: float = 0.0,
        train_logging_strategy: LoggingStrategy | None = None,
        test_logging_strategy: LoggingStrategy | None = None,
    ) -> None:
        super().__init__()
        self.sender = sender
        self.receiver = receiver
        self.loss = loss
        self.length_cost = length_cost
        self.train_logging_strategy = train_logging_strategy or LoggingStrategy()
        self.test_logging_strategy = test_logging_strategy or LoggingStrategy()

    def forward(
        self, sender_input: Any, labels: Any, receiver_input: Any = None, aux_input: Any = None
    ) -> tuple[torch.Tensor, Interaction]:
        message = self.sender(sender_input, aux_input)
        receiver_output = self.receiver(message, receiver_input, aux_input)
        unended = torch.ones(message.size(0), device=message.device)
        endings: list[tuple[torch.Tensor, int, torch.Tensor, dict[str, torch.Tensor]]] = []
        for symbol, output in zip(message.unbind(dim=1), receiver_output.unbind(dim=1), strict=True):
            losses, metrics = self.loss(sender_input, symbol, receiver_input, output, labels, aux_input)
            endings.append((symbol[:, 0] * unended, len(endings) + 1, losses, metrics))
            unended = unended * (1 - symbol[:, 0])
        endings.append((unended, len(endings), losses, metrics))

        loss = length = mass = torch.zeros_like(unended)
        aux: dict[str, torch.Tensor] = {}
        for ended, position, losses, metrics in endings:
            mass = mass + ended
            loss = loss + (losses + self.length_cost * position) * ended
            length = length + position * ended.detach()
            for name, value in metrics.items():
                aux[name] = aux.get(name, 0.0) + value * ended
        if not mass.allclose(torch.ones_like(mass)):
            raise AssertionError(f"the message ends with a probability of {mass.min()} to {mass.max()}, not 1")

        aux["length"] = length
        strategy = self.train_logging_strategy if self.training else self.test_logging_strategy
        interaction = strategy.filtered_interaction(
            sender_input=sender_input,
            receiver_input=receiver_input,
            labels=labels,
            aux_input=aux_input,
            message=message.detach(),
            receiver_output=receiver_output.detach(),
            message_length=length,
            aux=aux,
        )
        return loss.mean(), interaction
