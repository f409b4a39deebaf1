"""The score-function estimator (REINFORCE) for messages of one symbol and of several."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical

from egg_sparse.standin.baselines import Baseline, MeanBaseline
from egg_sparse.standin.interaction import Interaction, LoggingStrategy
from egg_sparse.standin.rnn import RnnEncoder, advance, cell_of_kind, check_max_len
from egg_sparse.standin.transformer import TransformerDecoder, TransformerEncoder, causal_mask
from egg_sparse.standin.util import find_lengths

_Acts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # actions, their log-probabilities, entropies in nats


def _act(logits: torch.Tensor, training: bool) -> _Acts:
    """A sample in training, else the most probable action; its log-probability; the entropy in nats."""
    distribution = Categorical(logits=logits)
    action = distribution.sample() if training else logits.argmax(dim=1)
    return action, distribution.log_prob(action), distribution.entropy()


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

    def forward(self, *args: Any, **kwargs: Any) -> _Acts:
        return _act(self.agent(*args, **kwargs), self.training)


class ReinforceDeterministicWrapper(nn.Module):
    """Gives a deterministic agent the signature of :class:`ReinforceWrapper`: log-probability and entropy are 0."""

    def __init__(self, agent: nn.Module) -> None:
        super().__init__()
        self.agent = agent

    def forward(self, *args: Any, **kwargs: Any) -> _Acts:
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


class RnnSenderReinforce(nn.Module):
    """Makes an agent that returns a first hidden state ``(B, hidden_size)`` send a message of up to max_len symbols.

    Returns symbols, their log-probabilities and the entropies of their distributions in nats, all ``(B, max_len + 1)``:
    the last symbol is always the end symbol 0. In training the symbols are samples, else the most probable ones.

    Args:
        agent: the module that reads the sender's input.
        vocab_size: the number of symbols, with the end symbol 0.
        embed_dim: the size of a symbol's embedding.
        hidden_size: the size of the hidden state.
        max_len: the most symbols before the end symbol that is appended.
        num_layers: the number of layers.
        cell: the kind of network: rnn, gru or lstm.

    >>> class Agent(nn.Linear):
    ...     def forward(self, sender_input, aux_input=None):
    ...         return super().forward(sender_input)
    >>> sender = RnnSenderReinforce(Agent(10, 3), vocab_size=5, embed_dim=4, hidden_size=3, max_len=6, cell="lstm")
    >>> message, log_prob, entropy = sender(torch.zeros(2, 10))
    >>> message.shape, message[:, -1], entropy[:, -1]
    (torch.Size([2, 7]), tensor([0, 0]), tensor([0., 0.], grad_fn=<SelectBackward0>))
    """

    def __init__(
        self,
        agent: nn.Module,
        vocab_size: int,
        embed_dim: int,
        hidden_size: int,
        max_len: int,
        num_layers: int = 1,
        cell: str = "rnn",
    ) -> None:
        super().__init__()
        check_max_len(max_len)
        self.agent = agent
        self.max_len = max_len
        self.hidden_to_output = nn.Linear(hidden_size, vocab_size)
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        self.sos_embedding = nn.Parameter(torch.zeros(embed_dim))
        self.embed_dim = embed_dim
        self.vocab_size = vocab_size
        self.num_layers = num_layers
        sizes = [embed_dim, *[hidden_size] * (num_layers - 1)]
        self.cells = nn.ModuleList(cell_of_kind(cell, size, hidden_size) for size in sizes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.sos_embedding, 0.0, 0.01)

    def forward(self, x: Any, aux_input: Any = None) -> _Acts:
        hidden = [self.agent(x, aux_input)]
        hidden += [torch.zeros_like(hidden[0])] * (self.num_layers - 1)
        memory = [torch.zeros_like(hidden[0])] * self.num_layers
        state = self.sos_embedding.expand(hidden[0].size(0), -1)
        acts = []
        for _ in range(self.max_len):
            for layer, cell in enumerate(self.cells):
                hidden[layer], memory[layer] = advance(cell, state, hidden[layer], memory[layer])
                state = hidden[layer]
            acts.append(_act(self.hidden_to_output(state).log_softmax(dim=1), self.training))
            state = self.embedding(acts[-1][0])
        return _with_end(acts)


def _with_end(acts: list[_Acts]) -> _Acts:
    """Symbols ``(B,)``, log-probabilities and entropies of every step as ``(B, steps + 1)``, ended by a certain 0."""
    symbols, log_probs, entropies = (F.pad(torch.stack(parts, dim=1), (0, 1)) for parts in zip(*acts, strict=True))
    return symbols, log_probs, entropies


class _RnnReceiver(nn.Module):
    """The base of the receivers that read a message with an RNN."""

    def __init__(
        self,
        agent: nn.Module,
        vocab_size: int,
        embed_dim: int,
        hidden_size: int,
        cell: str = "rnn",
        num_layers: int = 1,
    ) -> None:
        super().__init__()
        self.agent = agent
        self.encoder = RnnEncoder(vocab_size, embed_dim, hidden_size, cell, num_layers)


class RnnReceiverReinforce(_RnnReceiver):
    """Reads a message ``(B, L)`` of symbol ids for an agent that acts: returns (action, log-probability, entropy).

    Args:
        agent: the module that is called as ``agent(encoded, input, aux_input)``, for example a ReinforceWrapper.
        vocab_size: the number of symbols, with the end symbol 0.
        embed_dim: the size of a symbol's embedding.
        hidden_size: the size of the hidden state.
        cell: the kind of network: rnn, gru or lstm.
        num_layers: the number of layers.
    """

    def forward(
        self, message: torch.Tensor, input: Any = None, aux_input: Any = None, lengths: torch.Tensor | None = None
    ) -> _Acts:
        return self.agent(self.encoder(message, lengths), input, aux_input)


class RnnReceiverDeterministic(_RnnReceiver):
    """Reads a message ``(B, L)`` of symbol ids for an agent whose output is differentiable.

    Returns (output, log-probability, entropy), of which the latter two, ``(B,)``, are 0.

    Args:
        agent: the module that is called as ``agent(encoded, input, aux_input)``.
        vocab_size: the number of symbols, with the end symbol 0.
        embed_dim: the size of a symbol's embedding.
        hidden_size: the size of the hidden state.
        cell: the kind of network: rnn, gru or lstm.
        num_layers: the number of layers.

    >>> class Agent(nn.Linear):
    ...     def forward(self, encoded, receiver_input=None, aux_input=None):
    ...         return super().forward(encoded)
    >>> receiver = RnnReceiverDeterministic(Agent(6, 3), vocab_size=10, embed_dim=4, hidden_size=6)
    >>> output, log_prob, entropy = receiver(torch.tensor([[1, 2, 0], [3, 4, 5]]))
    >>> output.shape, log_prob, entropy
    (torch.Size([2, 3]), tensor([0., 0.]), tensor([0., 0.]))
    """

    def forward(
        self, message: torch.Tensor, input: Any = None, aux_input: Any = None, lengths: torch.Tensor | None = None
    ) -> _Acts:
        return _certain(self.agent(self.encoder(message, lengths), input, aux_input))


def _certain(output: torch.Tensor) -> _Acts:
    """An output with log-probabilities and entropies of 0, one per example."""
    zeros = torch.zeros(output.size(0), device=output.device)
    return output, zeros, zeros


class SenderReceiverRnnReinforce(nn.Module):
    """A game of messages of several symbols, trained with the score-function estimator and baselines.

    What the sender does after the end symbol counts for nothing.

    Args:
        sender: the sender, which returns (message, log-probabilities, entropies), all ``(B, L)``.
        receiver: the receiver, called as ``receiver(message, receiver_input, aux_input, lengths)``, which returns
            (output, log-probability, entropy).
        loss: the loss, which returns one value per example and a dict of metrics.
        sender_entropy_coeff: the weight of the sender's entropy per symbol, which is maximized.
        receiver_entropy_coeff: the weight of the receiver's entropy, which is maximized.
        length_cost: the cost of every symbol, the end symbol included.
        baseline_type: the baseline's class; one instance is for the loss, one for the length's cost.
        train_logging_strategy: what Interactions of training keep.
        test_logging_strategy: what Interactions of evaluation keep.
    """

    def __init__(
        self,
        sender: nn.Module,
        receiver: nn.Module,
        loss: Callable,
        sender_entropy_coeff: float = 0.0,
        receiver_entropy_coeff: float = 0.0,
        length_cost: float = 0.0,
        baseline_type: Callable[[], Baseline] = MeanBaseline,
        train_logging_strategy: LoggingStrategy | None = None,
        test_logging_strategy: LoggingStrategy | None = None,
    ) -> None:
        super().__init__()
        self.sender = sender
        self.receiver = receiver
        self.loss = loss
        self.mechanics = CommunicationRnnReinforce(
            sender_entropy_coeff,
            receiver_entropy_coeff,
            length_cost,
            baseline_type,
            train_logging_strategy,
            test_logging_strategy,
        )

    def forward(
        self, sender_input: Any, labels: Any, receiver_input: Any = None, aux_input: Any = None
    ) -> tuple[torch.Tensor, Interaction]:
        agents = (self.sender, self.receiver, self.loss)
        return self.mechanics(*agents, sender_input, labels, receiver_input, aux_input)


class CommunicationRnnReinforce(nn.Module):
    """The mechanics of :class:`SenderReceiverRnnReinforce` without agents, for a :class:`PopulationGame`."""

    def __init__(
        self,
        sender_entropy_coeff: float,
        receiver_entropy_coeff: float,
        length_cost: float = 0.0,
        baseline_type: Callable[[], Baseline] = MeanBaseline,
        train_logging_strategy: LoggingStrategy | None = None,
        test_logging_strategy: LoggingStrategy | None = None,
    ) -> None:
        super().__init__()
        self.sender_entropy_coeff = sender_entropy_coeff
        self.receiver_entropy_coeff = receiver_entropy_coeff
        self.length_cost = length_cost
        self.baselines: defaultdict[str, Baseline] = defaultdict(baseline_type)
        self.train_logging_strategy = train_logging_strategy or LoggingStrategy()
        self.test_logging_strategy = test_logging_strategy or LoggingStrategy()

    def forward(
        self,
        sender: nn.Module,
        receiver: nn.Module,
        loss: Callable,
        sender_input: Any,
        labels: Any,
        receiver_input: Any = None,
        aux_input: Any = None,
    ) -> tuple[torch.Tensor, Interaction]:
        message, log_probs, entropies = sender(sender_input, aux_input)
        message_length = find_lengths(message)
        receiver_output, receiver_log_prob, receiver_entropy = receiver(
            message, receiver_input, aux_input, message_length
        )
        losses, aux = loss(sender_input, message, receiver_input, receiver_output, labels, aux_input)

        said = torch.arange(message.size(1), device=message.device) < message_length.unsqueeze(1)
        sender_log_prob = (log_probs * said).sum(dim=1)
        entropy_per_symbol = (entropies * said).sum(dim=1) / message_length
        costs = message_length.float() * self.length_cost
        entropy_bonus = (
            entropy_per_symbol.mean() * self.sender_entropy_coeff
            + receiver_entropy.mean() * self.receiver_entropy_coeff
        )
        for_length = ((costs - self.baselines["length"].predict(costs)) * sender_log_prob).mean()
        advantage = losses.detach() - self.baselines["loss"].predict(losses.detach())
        for_loss = (advantage * (sender_log_prob + receiver_log_prob)).mean()
        optimized_loss = for_length + for_loss - entropy_bonus + losses.mean()
        if self.training:
            self.baselines["loss"].update(losses)
            self.baselines["length"].update(costs)

        aux["sender_entropy"] = entropies.detach()
        aux["receiver_entropy"] = receiver_entropy.detach()
        aux["length"] = message_length.float()
        strategy = self.train_logging_strategy if self.training else self.test_logging_strategy
        interaction = strategy.filtered_interaction(
            sender_input=sender_input,
            labels=labels,
            receiver_input=receiver_input,
            aux_input=aux_input,
            message=message.detach(),
            receiver_output=receiver_output.detach(),
            message_length=message_length,
            aux=aux,
        )
        return optimized_loss, interaction


class TransformerReceiverDeterministic(nn.Module):
    """Reads a message ``(B, L)`` of symbol ids with a Transformer, for an agent whose output is differentiable.

    Returns (output, log-probability, entropy), of which the latter two, ``(B,)``, are 0.

    Args:
        agent: the module that is called as ``agent(encoded, input, aux_input)``.
        vocab_size: the number of symbols, with the end symbol 0.
        max_len: the most symbols of a message before the end symbol that senders append.
        embed_dim: the size of the embeddings.
        num_heads: the number of attention heads.
        hidden_size: the size of the hidden layers.
        num_layers: the number of layers.
        positional_emb: whether positions are told apart.
        causal: whether a symbol sees only those before it; then the output depends on the symbol after the end.
    """

    def __init__(
        self,
        agent: nn.Module,
        vocab_size: int,
        max_len: int,
        embed_dim: int,
        num_heads: int,
        hidden_size: int,
        num_layers: int,
        positional_emb: bool = True,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.agent = agent
        self.encoder = TransformerEncoder(
            vocab_size, max_len, embed_dim, num_heads, hidden_size, num_layers, positional_emb, causal
        )

    def forward(
        self, message: torch.Tensor, input: Any = None, aux_input: Any = None, lengths: torch.Tensor | None = None
    ) -> _Acts:
        return _certain(self.agent(self.encoder(message, lengths), input, aux_input))


class TransformerSenderReinforce(nn.Module):
    """Makes an agent that returns a vector ``(B, embed_dim)`` send a message of up to max_len symbols.

    Returns what :class:`RnnSenderReinforce` returns.

    Args:
        agent: the module that reads the sender's input.
        vocab_size: the number of symbols, with the end symbol 0.
        embed_dim: the size of the embeddings.
        max_len: the most symbols before the end symbol that is appended.
        num_layers: the number of layers.
        num_heads: the number of attention heads.
        hidden_size: the size of the hidden layers.
        generate_style: "standard", which reads the next symbol off the last one, or "in-place", which reads it off a
            special symbol in its place.
        causal: whether a symbol sees only those before it.

    >>> class Agent(nn.Linear):
    ...     def forward(self, sender_input, aux_input=None):
    ...         return super().forward(sender_input)
    >>> sizes = {"vocab_size": 5, "embed_dim": 8, "max_len": 6, "num_layers": 2, "num_heads": 2, "hidden_size": 16}
    >>> message, log_prob, entropy = TransformerSenderReinforce(Agent(10, 8), **sizes)(torch.zeros(2, 10))
    >>> message.shape, message[:, -1]
    (torch.Size([2, 7]), tensor([0, 0]))
    """

    def __init__(
        self,
        agent: nn.Module,
        vocab_size: int,
        embed_dim: int,
        max_len: int,
        num_layers: int,
        num_heads: int,
        hidden_size: int,
        generate_style: str = "standard",
        causal: bool = True,
    ) -> None:
        super().__init__()
        if generate_style not in ("standard", "in-place"):
            raise AssertionError(f'generate_style must be "standard" or "in-place", got {generate_style!r}')
        check_max_len(max_len)
        self.agent = agent
        self.generate_style = generate_style
        self.causal = causal
        self.max_len = max_len
        self.transformer = TransformerDecoder(embed_dim, max_len, num_layers, num_heads, hidden_size)
        self.embedding_to_vocab = nn.Linear(embed_dim, vocab_size)
        self.special_symbol_embedding = nn.Parameter(torch.zeros(embed_dim))
        self.embed_dim = embed_dim
        self.vocab_size = vocab_size
        self.embed_tokens = nn.Embedding(vocab_size, embed_dim)
        nn.init.normal_(self.embed_tokens.weight, std=embed_dim**-0.5)
        self.embed_scale = math.sqrt(embed_dim)

    def forward(self, x: Any, aux_input: Any = None) -> _Acts:
        encoder_state = self.agent(x, aux_input)
        special = self.special_symbol_embedding.expand(encoder_state.size(0), 1, -1)
        embedded: list[torch.Tensor] = []
        acts = []
        for _ in range(self.max_len):
            read = [special, *embedded] if self.generate_style == "standard" else [*embedded, special]
            mask = causal_mask(torch.arange(len(read), device=encoder_state.device)) if self.causal else None
            output = self.transformer(torch.cat(read, dim=1), encoder_state, attn_mask=mask)
            acts.append(_act(self.embedding_to_vocab(output[:, -1]).log_softmax(dim=1), self.training))
            embedded.append(self.embed_tokens(acts[-1][0]).unsqueeze(1) * self.embed_scale)
        return _with_end(acts)
