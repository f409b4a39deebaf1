"""Agents of the signal game. Images come as ``(game_size, B, n_features)``, the target first for the sender."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class PaperSender(nn.Module):
    """The sender of the paper's code: a linear map, a 1x1 convolution to ``hidden_size`` filters and one back to a
    single one, each followed by a sigmoid, and a linear map to the vocabulary; no biases.

    It sees the target alone, and returns scores ``(B, vocab_size)`` divided by ``temperature``.

    Source: deep-spin/sparse-marginalization-lvm; EGG's InformedSender, of one image.
    """

    def __init__(
        self, n_features: int, embedding_size: int, hidden_size: int, vocab_size: int, temperature: float
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.embed = nn.Linear(n_features, embedding_size, bias=False)
        self.filter = nn.Conv2d(1, hidden_size, kernel_size=1, bias=False)
        self.combine = nn.Conv2d(hidden_size, 1, kernel_size=1, bias=False)
        self.score = nn.Linear(embedding_size, vocab_size, bias=False)

    def forward(self, images: torch.Tensor, aux_input: Any = None) -> torch.Tensor:
        hidden = self.embed(images[0])[:, None, None, :]
        hidden = torch.sigmoid(self.filter(hidden))
        hidden = torch.sigmoid(self.combine(hidden))
        return self.score(hidden[:, 0, 0, :]) / self.temperature


class MLPSender(nn.Module):
    """One hidden layer from the target to scores ``(B, vocab_size)``, divided by ``temperature``."""

    def __init__(self, n_features: int, hidden_size: int, vocab_size: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.hidden = nn.Linear(n_features, hidden_size)
        self.score = nn.Linear(hidden_size, vocab_size)

    def forward(self, images: torch.Tensor, aux_input: Any = None) -> torch.Tensor:
        return self.score(F.relu(self.hidden(images[0]))) / self.temperature


class BatchFirst(nn.Module):
    """An agent that is given images ``(B, game_size, n_features)``, as EGG's agents of several symbols need them.

    Args:
        agent: the agent that takes ``(game_size, B, n_features)``.
        position: the position of the images among its inputs.
    """

    def __init__(self, agent: nn.Module, position: int) -> None:
        super().__init__()
        self.agent = agent
        self.position = position

    def forward(self, *inputs: Any) -> torch.Tensor:
        before, images, after = inputs[: self.position], inputs[self.position], inputs[self.position + 1 :]
        return self.agent(*before, images.transpose(0, 1), *after)


class Receiver(nn.Module):
    """Log-probabilities ``(B, game_size)`` of the candidates: dot products of their embeddings with the message's.

    Messages are symbol ids, or one-hot (and relaxed) if ``one_hot``. Symbols' embeddings start with a standard
    deviation of ``symbol_std``, as in the paper's code if None: 1 for ids, about 1 / sqrt(3 vocab_size) for one-hot.
    Small ones make messages start out alike, so that the loss does not rush the sender into using a few of them.
    """

    def __init__(
        self, n_features: int, embedding_size: int, vocab_size: int, one_hot: bool, symbol_std: float | None = None
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(n_features, embedding_size, bias=False)
        self.read = (
            nn.Linear(vocab_size, embedding_size, bias=False) if one_hot else nn.Embedding(vocab_size, embedding_size)
        )
        if symbol_std is not None:
            nn.init.normal_(self.read.weight, std=symbol_std)

    def forward(self, message: torch.Tensor, images: torch.Tensor, aux_input: Any = None) -> torch.Tensor:
        candidates = self.embed(images).transpose(0, 1)
        return F.log_softmax(torch.bmm(candidates, self.read(message).unsqueeze(-1)).squeeze(-1), dim=-1)
