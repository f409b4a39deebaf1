"""Recurrent networks that read messages and write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from egg_sparse.standin.util import find_lengths

_Kind = TypeVar("_Kind")

_LAYERS: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
_CELLS: dict[str, Callable[..., nn.RNNCellBase]] = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}


class RnnEncoder(nn.Module):
    """The last layer's hidden state after the end symbol of a message, ``(B, n_hidden)``.

    Args:
        vocab_size: the number of symbols, with the end symbol 0.
        embed_dim: the size of a symbol's embedding.
        n_hidden: the size of the hidden state.
        cell: the kind of network: rnn, gru or lstm.
        num_layers: the number of layers.

    >>> encoder = RnnEncoder(vocab_size=10, embed_dim=4, n_hidden=6, cell="gru")
    >>> encoded = encoder(torch.tensor([[1, 2, 0, 0], [1, 2, 0, 7]]))
    >>> encoded.shape, torch.allclose(encoded[0], encoded[1])
    (torch.Size([2, 6]), True)
    """

    def __init__(self, vocab_size: int, embed_dim: int, n_hidden: int, cell: str = "rnn", num_layers: int = 1) -> None:
        super().__init__()
        self.cell = _of_kind(cell, _LAYERS)(embed_dim, n_hidden, num_layers=num_layers, batch_first=True)
        self.embedding = nn.Embedding(vocab_size, embed_dim)

    def forward(self, message: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        lengths = find_lengths(message) if lengths is None else lengths
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embedding(message), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        _, state = self.cell(packed)
        hidden = state[0] if isinstance(self.cell, nn.LSTM) else state
        return hidden[-1]


def cell_of_kind(cell: str, input_size: int, hidden_size: int) -> nn.RNNCellBase:
    """One layer that reads one symbol at a time: rnn, gru or lstm, in upper or lower case."""
    return _of_kind(cell, _CELLS)(input_size, hidden_size)


def advance(
    cell: nn.Module, symbol: torch.Tensor, hidden: torch.Tensor, memory: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden state and the memory after one more embedded symbol; only an LSTM uses the memory."""
    return cell(symbol, (hidden, memory)) if isinstance(cell, nn.LSTMCell) else (cell(symbol, hidden), memory)


def check_max_len(max_len: int) -> None:
    """Raises AssertionError, as EGG does, if a message could have no symbol."""
    if max_len < 1:
        raise AssertionError(f"max_len must be at least 1, got {max_len}")


def _of_kind(cell: str, kinds: dict[str, _Kind]) -> _Kind:
    if cell.lower() not in kinds:
        raise ValueError(f"cell must be one of {', '.join(kinds)}, got {cell!r}")
    return kinds[cell.lower()]
