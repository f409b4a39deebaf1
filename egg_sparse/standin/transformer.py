"""Transformers that read messages and write them: layer norms come before what they normalize."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse.standin.util import find_lengths


class SinusoidalPositionEmbedding(nn.Module):
    """Adds sines (even features) and cosines (odd features) of the position to ``(B, L, model_dim)``."""

    pe: torch.Tensor

    def __init__(self, max_len: int, model_dim: int) -> None:
        super().__init__()
        feature = torch.arange(model_dim)
        rates = torch.exp(-math.log(10000) * (feature - feature % 2) / model_dim)
        angles = torch.arange(max_len).unsqueeze(1) * rates
        self.register_buffer("pe", torch.where(feature % 2 == 0, angles.sin(), angles.cos()).unsqueeze(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.pe[:, : x.size(1)]


class TransformerEncoder(nn.Module):
    """Reads a message ``(B, L)`` of symbol ids; returns ``(B, embed_dim)``.

    If causal, every symbol sees those before it, and the output is that at the position after the end symbol, at most
    max_len - 1: it depends on the symbol there. If not, all symbols up to the end symbol see each other, and the
    output is that of a start symbol.

    Args:
        vocab_size: the number of symbols, with the end symbol 0.
        max_len: the most symbols of a message before the end symbol that senders append.
        embed_dim: the size of the embeddings.
        num_heads: the number of attention heads.
        hidden_size: the size of the hidden layers.
        num_layers: the number of layers.
        positional_embedding: whether positions are told apart.
        causal: whether a symbol sees only those before it.
    """

    sos_id: torch.Tensor

    def __init__(
        self,
        vocab_size: int,
        max_len: int,
        embed_dim: int,
        num_heads: int,
        hidden_size: int,
        num_layers: int = 1,
        positional_embedding: bool = True,
        causal: bool = True,
    ) -> None:
        super().__init__()
        if not causal:  # the start symbol
            max_len += 1
            vocab_size += 1
        self.base_encoder = TransformerBaseEncoder(
            vocab_size, max_len, embed_dim, num_heads, num_layers, hidden_size, positional_embedding
        )
        self.max_len = max_len
        self.causal = causal
        self.register_buffer("sos_id", torch.tensor([vocab_size - 1]), persistent=False)

    def forward(self, message: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        lengths = find_lengths(message) if lengths is None else lengths
        if not self.causal:
            message = torch.cat([self.sos_id.expand(message.size(0), 1), message], dim=1)
            lengths = lengths + 1
        positions = torch.arange(message.size(1), device=message.device)
        padding = positions >= lengths.unsqueeze(1)
        encoded = self.base_encoder(message, padding, causal_mask(positions) if self.causal else None)
        read = lengths.clamp(max=self.max_len - 1) if self.causal else torch.zeros_like(lengths)
        return encoded[torch.arange(message.size(0), device=message.device), read]


def causal_mask(positions: torch.Tensor) -> torch.Tensor:
    """``(L, L)``, True where a position, the row, must not see another, the column."""
    return positions > positions.unsqueeze(1)


class TransformerBaseEncoder(nn.Module):
    """Layers of self-attention over embedded symbols, ``(B, L)`` to ``(B, L, embed_dim)``."""

    def __init__(
        self,
        vocab_size: int,
        max_len: int,
        embed_dim: int,
        num_heads: int,
        num_layers: int,
        hidden_size: int,
        positional_embedding: bool = True,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        self.embed_dim = embed_dim
        self.embed_scale = math.sqrt(embed_dim)
        # senders append an end symbol to max_len symbols
        self.embed_positions = SinusoidalPositionEmbedding(max_len + 1, embed_dim) if positional_embedding else None
        self.layers = nn.ModuleList(
            TransformerEncoderLayer(embed_dim, num_heads, hidden_size) for _ in range(num_layers)
        )
        self.layer_norm = nn.LayerNorm(embed_dim)
        nn.init.normal_(self.embedding.weight, std=embed_dim**-0.5)

    def forward(
        self,
        src_tokens: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        attn_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        x = self.embed_scale * self.embedding(src_tokens)
        if self.embed_positions is not None:
            x = self.embed_positions(x)
        x = x.transpose(0, 1)
        for layer in self.layers:
            x = layer(x, key_padding_mask, attn_mask)
        return self.layer_norm(x).transpose(0, 1)


class _Layer(nn.Module):
    """What the layers of encoders and decoders share; they are ``(L, B, embed_dim)``."""

    self_attn: nn.MultiheadAttention
    self_attn_layer_norm: nn.LayerNorm
    fc1: nn.Linear
    fc2: nn.Linear
    layer_norm: nn.LayerNorm

    def _attend_to_itself(
        self, x: torch.Tensor, key_padding_mask: torch.Tensor | None, attn_mask: torch.Tensor | None
    ) -> torch.Tensor:
        normal = self.self_attn_layer_norm(x)
        return x + self.self_attn(normal, normal, normal, key_padding_mask=key_padding_mask, attn_mask=attn_mask)[0]

    def _feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(F.relu(self.fc1(self.layer_norm(x))))

    def _make_feed_forward(self, embed_dim: int, hidden_size: int) -> None:
        self.fc1 = nn.Linear(embed_dim, hidden_size)
        self.fc2 = nn.Linear(hidden_size, embed_dim)
        self.layer_norm = nn.LayerNorm(embed_dim)
        for linear in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)


class TransformerEncoderLayer(_Layer):
    """Self-attention and a feed-forward network."""

    def __init__(self, embed_dim: int, num_heads: int, hidden_size: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(embed_dim, num_heads)
        self.self_attn_layer_norm = nn.LayerNorm(embed_dim)
        self._make_feed_forward(embed_dim, hidden_size)

    def forward(
        self, x: torch.Tensor, key_padding_mask: torch.Tensor | None = None, attn_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self._feed_forward(self._attend_to_itself(x, key_padding_mask, attn_mask))


class TransformerDecoder(nn.Module):
    """Layers of attention to embedded symbols ``(B, L, embed_dim)``, and to one vector ``(B, embed_dim)``.

    Args:
        embed_dim: the size of the embeddings.
        max_len: the most symbols.
        num_layers: the number of layers.
        num_heads: the number of attention heads.
        hidden_size: the size of the hidden layers.
        dropout: the probability that a feature of the embedded symbols is dropped in training.
    """

    def __init__(
        self, embed_dim: int, max_len: int, num_layers: int, num_heads: int, hidden_size: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.embed_positions = SinusoidalPositionEmbedding(max_len, embed_dim)
        self.layers = nn.ModuleList(
            TransformerDecoderLayer(num_heads, embed_dim, hidden_size) for _ in range(num_layers)
        )
        self.layer_norm = nn.LayerNorm(embed_dim)

    def forward(
        self,
        embedded_input: torch.Tensor,
        encoder_out: torch.Tensor,
        key_mask: torch.Tensor | None = None,
        attn_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        x = F.dropout(self.embed_positions(embedded_input), p=self.dropout, training=self.training).transpose(0, 1)
        for layer in self.layers:
            x, _ = layer(x, encoder_out, key_mask, attn_mask)
        return self.layer_norm(x).transpose(0, 1)


class TransformerDecoderLayer(_Layer):
    """Self-attention, attention to a vector, and a feed-forward network."""

    def __init__(self, num_heads: int, embed_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(embed_dim, num_heads)
        self.self_attn_layer_norm = nn.LayerNorm(embed_dim)
        self.encoder_attn = nn.MultiheadAttention(embed_dim, num_heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(embed_dim)
        self._make_feed_forward(embed_dim, hidden_size)

    def forward(
        self,
        x: torch.Tensor,
        encoder_out: torch.Tensor,
        key_mask: torch.Tensor | None = None,
        attn_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = self._attend_to_itself(x, key_mask, attn_mask)
        memory = encoder_out.unsqueeze(0)
        read, attention = self.encoder_attn(self.encoder_attn_layer_norm(x), memory, memory)
        return self._feed_forward(x + read), attention
