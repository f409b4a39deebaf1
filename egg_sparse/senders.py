"""Senders of messages of several symbols: an RNN or a Transformer that scores one symbol after the other."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse.distribution import SparseDistribution
from egg_sparse.mappings.sequences import GreedySequence, greedy_sequence, sequence_distribution
from egg_sparse.support import Floor, FollowLoss
from egg_sparse.wrappers import Normalizer, SparseWrapper, named_normalizer, normalizer_repr, usable_alpha

Cell = Literal["rnn", "gru", "lstm"]
GenerateStyle = Literal["standard", "in-place"]

#: The largest number of messages per example, by default.
MAX_SUPPORT = 16

_CELLS: dict[str, Any] = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}


def _check_sizes(**sizes: Any) -> None:
    """Raises TypeError or ValueError unless all arguments are positive integers."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


class SequenceSender(SparseWrapper):
    """The base of the senders of messages of several symbols.

    In training mode a call returns the distribution over messages; in evaluation mode what EGG's senders of several
    symbols return: the greedy message, whose every symbol is the most probable one, ``(B, max_len + 1)``, with the
    log-probabilities and entropies of its symbols in nats, ``(B, max_len + 1)``. After the end symbol all three are 0.
    :meth:`distribution` returns the distribution in both modes.

    A subclass is a :class:`egg_sparse.mappings.sequences.Decoder`: it implements ``begin`` and ``step``.

    Args:
        agent: the agent, which is called as the sender is and returns the input of the decoder.
        vocab_size: the number of symbols, with the end symbol 0.
        max_len: the largest number of symbols before the end symbol.
        normalizer, temperature, support: as in :class:`RnnSenderSparsemax`.
        max_support: the largest number of messages of an example.

    Example:
        >>> class Bigrams(SequenceSender):
        ...     '''Scores that depend on the last symbol, the first ones on the input.'''
        ...     def __init__(self, agent, vocab_size, max_len):
        ...         super().__init__(agent, vocab_size, max_len)
        ...         self.table = nn.Embedding(vocab_size, vocab_size)
        ...     def begin(self, *inputs):
        ...         return self.agent(inputs[0])
        ...     def step(self, state, symbols):
        ...         return (state if symbols is None else self.table(symbols)), state
        >>> Bigrams(nn.Linear(10, 8), vocab_size=8, max_len=3)(torch.randn(2, 10)).messages.shape[1:]
        torch.Size([2, 4])
    """

    def __init__(
        self,
        agent: nn.Module,
        vocab_size: int,
        max_len: int,
        normalizer: Normalizer | float | nn.Parameter = "sparsemax",
        temperature: float | None = None,
        support: Literal["auto"] | float | FollowLoss | Floor | None = "auto",
        max_support: int | None = MAX_SUPPORT,
    ) -> None:
        if normalizer == "softmax" and support not in ("auto", None):
            raise ValueError(f"support must be None for softmax, whose support is every message, got {support!r}")
        if support == "auto":
            support = FollowLoss() if temperature is None and normalizer != "softmax" else None
        super().__init__(agent, 1.0 if temperature is None else temperature, support)
        _check_sizes(vocab_size=vocab_size, max_len=max_len)
        if max_support is not None:
            _check_sizes(max_support=max_support)
        self.vocab_size = vocab_size
        self.max_len = max_len
        self.max_support = max_support
        self.normalizer, self.alpha = named_normalizer(normalizer)

    def extra_repr(self) -> str:
        return (
            f"normalizer={normalizer_repr(self.normalizer, self.alpha)}, max_len={self.max_len}, "
            f"max_support={self.max_support}, {self._temperature_repr()}"
        )

    @abc.abstractmethod
    def begin(self, *inputs: Any, **named: Any) -> Any:
        """The state of the empty prefix of every example; called as the agent is."""

    @abc.abstractmethod
    def step(self, state: Any, symbols: torch.Tensor | None) -> tuple[torch.Tensor, Any]:
        """The scores ``(N, V)`` of the next symbol, and the next state."""

    @property
    def _largest_support(self) -> int:
        """The largest support that a distribution can have."""
        length_of_many = 30 if self.vocab_size > 2 else self.max_len
        n_messages = sum((self.vocab_size - 1) ** length for length in range(min(self.max_len, length_of_many) + 1))
        return n_messages if self.max_support is None else min(n_messages, self.max_support)

    def _options(self, temperature: float | torch.Tensor) -> dict[str, Any]:
        normalizer = self.normalizer if self.alpha is None else usable_alpha(self.alpha)
        return {"max_len": self.max_len, "normalizer": normalizer, "temperature": temperature}

    def _encoded(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> torch.Tensor:
        """The agent's output ``(B, H)``."""
        encoded = self.agent(*inputs, **named)
        if not isinstance(encoded, torch.Tensor):
            raise TypeError(f"the sender's agent must return a tensor, got {type(encoded).__name__}")
        if encoded.dim() != 2 or not encoded.is_floating_point():
            raise ValueError(
                f"the sender's agent must return floating-point numbers of shape (B, H), got {encoded.dtype} of shape "
                f"{tuple(encoded.shape)}"
            )
        return encoded

    def _distribution(self, *args: Any, **kwargs: Any) -> SparseDistribution:
        control = self.control
        temperature = self._temperature if control is None else control.temperature.clone()
        decoder = _CalledSender(partial(self.begin, *args, **kwargs), self.step)
        distribution = sequence_distribution(decoder, max_support=self.max_support, **self._options(temperature))
        if control is not None and self.training and torch.is_grad_enabled() and distribution.batch_shape.numel():
            control.observe(distribution, self._largest_support)
            distribution.control = control
        return distribution

    @torch.no_grad()
    def _greedy(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        decoder = _CalledSender(partial(self.begin, *args, **kwargs), self.step)
        found: GreedySequence = greedy_sequence(decoder, **self._options(self.temperature))
        return found.message, found.log_prob, found.entropy


@dataclass(frozen=True)
class _CalledSender:
    """A sender as a decoder, with the inputs of a call, some of which may be named."""

    begin: Callable[[], Any]
    step: Callable[[Any, torch.Tensor | None], tuple[torch.Tensor, Any]]


class RnnSenderSparsemax(SequenceSender):
    r"""Makes an agent that returns the first hidden state of an RNN send all messages of non-zero probability.

    It takes the place of EGG's ``RnnSenderReinforce`` around the same agent, with the same arguments, parameters and
    initialization, so that a ``state_dict`` of either can be loaded into the other. It is the sender of
    :class:`egg_sparse.SenderReceiverRnnMarg`. At every step a sparse normalizer gives some symbols non-zero
    probability, and the messages of non-zero probability are the leaves of the tree that results; where the tree is
    larger than ``max_support``, its messages are resampled without bias.

    Args:
        agent: the agent, which is called as the sender is and returns a hidden state ``(B, hidden_size)``.
        vocab_size: the number of symbols, with the end symbol 0.
        embed_dim: the size of the embeddings of symbols.
        hidden_size: the size of the hidden states.
        max_len: the largest number of symbols before the end symbol.
        num_layers: the number of layers of cells.
        cell: the type of the cells: "rnn", "gru" or "lstm".
        normalizer: the mapping from scores to probabilities: "sparsemax", "entmax15", "softmax", alpha > 1 for
            alpha-entmax, or a learnable alpha, an ``nn.Parameter`` of one element.
        temperature: the divisor of the scores. Given alone it is fixed; None for support control, which begins at 1.
        support: the least mean number of messages in training: "auto" for a floor that follows the loss
            (:class:`egg_sparse.support.FollowLoss`) if no temperature is given; a number; a schedule of
            :mod:`egg_sparse.support`, or a function of the number of training steps; None for a fixed temperature. The
            state_dict of a sender with support control has its state as well, ``control.*``, which EGG's does not.
        max_support: the largest number of messages of an example, which bounds the receiver calls; None for no bound,
            with which an undecided sender has as many messages as there are.

    Raises:
        TypeError, ValueError: an argument is none of the above, or the agent's output is not of that shape.

    Example:
        >>> sender = RnnSenderSparsemax(nn.Linear(10, 8), vocab_size=5, embed_dim=4, hidden_size=8, max_len=3)
        >>> distribution = sender(torch.randn(2, 10))
        >>> distribution.messages.shape[1:], bool((distribution.support_size <= 16).all())
        (torch.Size([2, 4]), True)
        >>> message, log_prob, entropy = sender.eval()(torch.randn(2, 10))
        >>> message.shape
        torch.Size([2, 4])
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
        normalizer: Normalizer | float | nn.Parameter = "sparsemax",
        temperature: float | None = None,
        support: Literal["auto"] | float | FollowLoss | Floor | None = "auto",
        max_support: int | None = MAX_SUPPORT,
    ) -> None:
        super().__init__(agent, vocab_size, max_len, normalizer, temperature, support, max_support)
        if not isinstance(cell, str) or cell.lower() not in _CELLS:
            raise ValueError(f"cell must be one of {', '.join(_CELLS)}, got {cell!r}")
        _check_sizes(embed_dim=embed_dim, hidden_size=hidden_size, num_layers=num_layers)
        # in the order of EGG's sender, so that the same seed gives the same weights
        self.hidden_to_output = nn.Linear(hidden_size, vocab_size)
        self.embedding: nn.Module = nn.Embedding(vocab_size, embed_dim)
        self.sos_embedding = nn.Parameter(torch.zeros(embed_dim))
        self.cells = nn.ModuleList(
            _CELLS[cell.lower()](hidden_size if layer else embed_dim, hidden_size) for layer in range(num_layers)
        )
        nn.init.normal_(self.sos_embedding, 0.0, 0.01)

    def begin(self, *inputs: Any, **named: Any) -> list[tuple[torch.Tensor, ...]]:
        """The first state of every layer: the agent's output for the first one, zeros for others and for memories."""
        hidden = self._encoded(inputs, named)
        width = self.hidden_to_output.in_features
        if hidden.shape[1] != width:
            raise ValueError(f"the sender's agent must return shape (B, {width}), got {tuple(hidden.shape)}")
        zeros = torch.zeros_like(hidden)
        states: list[tuple[torch.Tensor, ...]] = []
        for layer, cell in enumerate(self.cells):
            first = zeros if layer else hidden
            states.append((first, zeros) if isinstance(cell, nn.LSTMCell) else (first,))
        return states

    def step(
        self, state: list[tuple[torch.Tensor, ...]], symbols: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, ...]]]:
        """The scores of the next symbol, and the states of the layers."""
        if symbols is None:
            value = self.sos_embedding.expand(len(state[0][0]), -1)
        else:
            value = self.embedding(symbols)
        states: list[tuple[torch.Tensor, ...]] = []
        for cell, before in zip(self.cells, state, strict=True):
            after = cell(value, before) if isinstance(cell, nn.LSTMCell) else (cell(value, before[0]),)
            value = after[0]
            states.append(after)
        return self.hidden_to_output(value), states


class TransformerSenderSparsemax(SequenceSender):
    r"""Makes an agent that returns an encoding send all messages of non-zero probability of a Transformer decoder.

    It takes the place of EGG's ``TransformerSenderReinforce`` around the same agent, with the same arguments,
    parameters and initialization; everything else is as in :class:`RnnSenderSparsemax`.

    Args:
        agent: the agent, which is called as the sender is and returns an encoding ``(B, embed_dim)``.
        vocab_size: the number of symbols, with the end symbol 0.
        embed_dim: the size of the embeddings of symbols.
        max_len: the largest number of symbols before the end symbol.
        num_layers: the number of layers of the decoder.
        num_heads: the number of attention heads.
        hidden_size: the size of the hidden layers of the decoder's feed-forward networks.
        generate_style: the position whose output scores the next symbol: "standard" for that of the last symbol,
            "in-place" for that of a special symbol after it.
        causal: whether a symbol attends to the symbols before it alone.
        normalizer, temperature, support, max_support: as in :class:`RnnSenderSparsemax`.

    Raises:
        TypeError, ValueError: an argument is none of the above, or the agent's output is not of that shape.

    Example:
        >>> sender = TransformerSenderSparsemax(
        ...     nn.Linear(10, 8), vocab_size=5, embed_dim=8, max_len=3, num_layers=1, num_heads=2, hidden_size=16
        ... )
        >>> sender(torch.randn(2, 10)).messages.shape[1:]
        torch.Size([2, 4])

    Source: Vaswani et al., "Attention Is All You Need" (NeurIPS 2017), with normalization before each block.
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
        generate_style: GenerateStyle = "standard",
        causal: bool = True,
        normalizer: Normalizer | float | nn.Parameter = "sparsemax",
        temperature: float | None = None,
        support: Literal["auto"] | float | FollowLoss | Floor | None = "auto",
        max_support: int | None = MAX_SUPPORT,
    ) -> None:
        super().__init__(agent, vocab_size, max_len, normalizer, temperature, support, max_support)
        if generate_style not in get_args(GenerateStyle):
            raise ValueError(f'generate_style must be "standard" or "in-place", got {generate_style!r}')
        _check_sizes(embed_dim=embed_dim, num_layers=num_layers, num_heads=num_heads, hidden_size=hidden_size)
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim must be divisible by num_heads, got {embed_dim} and {num_heads}")
        self.generate_style = generate_style
        self.causal = causal
        self.transformer: nn.Module = _Decoder(embed_dim, max_len, num_layers, num_heads, hidden_size)
        self.embedding_to_vocab = nn.Linear(embed_dim, vocab_size)
        self.special_symbol_embedding = nn.Parameter(torch.zeros(embed_dim))
        self.embed_tokens = nn.Embedding(vocab_size, embed_dim)
        nn.init.normal_(self.embed_tokens.weight, 0.0, embed_dim**-0.5)

    def begin(self, *inputs: Any, **named: Any) -> dict[str, torch.Tensor]:
        """The encoding of every example, and its symbols so far ``(B, 0)``."""
        encoded = self._encoded(inputs, named)
        width = self.embedding_to_vocab.in_features
        if encoded.shape[1] != width:
            raise ValueError(f"the sender's agent must return shape (B, {width}), got {tuple(encoded.shape)}")
        return {"encoded": encoded, "symbols": torch.zeros(len(encoded), 0, dtype=torch.long, device=encoded.device)}

    def step(
        self, state: dict[str, torch.Tensor], symbols: torch.Tensor | None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The scores of the next symbol, and the encoding with the symbols so far."""
        encoded, so_far = state["encoded"], state["symbols"]
        if symbols is not None:
            so_far = torch.cat((so_far, symbols[:, None]), 1)
        special = self.special_symbol_embedding.expand(len(encoded), 1, -1)
        embedded = self.embed_tokens(so_far) * math.sqrt(self.embed_tokens.embedding_dim)
        parts = (special, embedded) if self.generate_style == "standard" else (embedded, special)
        output = _decoded(self.transformer, torch.cat(parts, 1), encoded, self.causal)
        return self.embedding_to_vocab(output[:, -1]), {"encoded": encoded, "symbols": so_far}


class _Decoder(nn.Module):
    """The parameters of EGG's TransformerDecoder, under its names; :func:`_decoded` computes with them."""

    def __init__(self, embed_dim: int, max_len: int, num_layers: int, num_heads: int, hidden_size: int) -> None:
        super().__init__()
        self.embed_positions = _Positions(max_len, embed_dim)
        self.layers = nn.ModuleList(_DecoderLayer(embed_dim, num_heads, hidden_size) for _ in range(num_layers))
        self.layer_norm = nn.LayerNorm(embed_dim)


class _DecoderLayer(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int, hidden_size: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(embed_dim, num_heads)
        self.self_attn_layer_norm = nn.LayerNorm(embed_dim)
        self.encoder_attn = nn.MultiheadAttention(embed_dim, num_heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(embed_dim)
        self.fc1 = nn.Linear(embed_dim, hidden_size)
        self.fc2 = nn.Linear(hidden_size, embed_dim)
        self.layer_norm = nn.LayerNorm(embed_dim)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


class _Positions(nn.Module):
    """Sines and cosines of the positions."""

    pe: torch.Tensor

    def __init__(self, max_len: int, embed_dim: int) -> None:
        super().__init__()
        column = torch.arange(embed_dim)
        rates = torch.exp(-math.log(10000.0) * (2 * (column // 2) / embed_dim))
        angles = torch.arange(float(max_len))[:, None] * rates
        self.register_buffer("pe", torch.where(column % 2 == 0, angles.sin(), angles.cos())[None])


def _decoded(decoder: Any, embedded: torch.Tensor, encoded: torch.Tensor, causal: bool) -> torch.Tensor:
    """The outputs ``(N, T, E)`` of a decoder for embedded symbols ``(N, T, E)`` and encodings ``(N, E)``.

    Args:
        decoder: a :class:`_Decoder`, or EGG's TransformerDecoder, whose own forward method needs a PyTorch of 2019.
        embedded: the embedded symbols.
        encoded: the encodings, each the only position that the decoder's second attention sees.
        causal: whether a position attends to the positions before it alone.
    """
    length = embedded.shape[1]
    x = (embedded + decoder.embed_positions.pe[:, :length]).transpose(0, 1)
    mask = None
    if causal:
        mask = torch.full((length, length), -math.inf, dtype=x.dtype, device=x.device).triu(1)
    for layer in decoder.layers:
        normed = layer.self_attn_layer_norm(x)
        x = x + layer.self_attn(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        normed = layer.encoder_attn_layer_norm(x)
        # not the module's own forward, which has other shapes where EGG's sender was made to run on this PyTorch
        attend = nn.MultiheadAttention.forward
        x = x + attend(layer.encoder_attn, normed, encoded[None], encoded[None], need_weights=False)[0]
        x = x + layer.fc2(F.relu(layer.fc1(layer.layer_norm(x))))
    return decoder.layer_norm(x).transpose(0, 1)
