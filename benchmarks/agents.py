"""Agents whose sparse distributions have supports of a given size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from egg_sparse import SparsemaxWrapper


class AgentOfSupport(nn.Module):
    """An agent of one batch, with scores such that sparsemax keeps the symbols of a mask ``(B, V)``."""

    offsets: Tensor

    def __init__(self, agent: nn.Module, kept: Tensor) -> None:
        super().__init__()
        self.agent = agent
        self.register_buffer("offsets", torch.where(kept, 0.0, -10.0))

    def forward(self, *args: Any) -> Tensor:
        return self.agent(*args) * 1e-3 + self.offsets


def sender_of_support(agent: nn.Module, support: str, batch: int, vocabulary: int) -> SparsemaxWrapper:
    """A sender with a support of random symbols.

    Args:
        agent: the agent, which returns scores ``(B, V)``.
        support: the size of every example's support; "all" for softmax over the vocabulary; "uneven" for the whole
            vocabulary in one example and a single symbol in every other one.
        batch: the number of examples, B.
        vocabulary: the number of symbols, V.
    """
    if support == "all":
        return SparsemaxWrapper(agent, "softmax", support=None)
    sizes = torch.ones(batch, 1) if support == "uneven" else torch.full((batch, 1), float(support))
    if support == "uneven":
        sizes[0] = vocabulary
    ranks = torch.rand(batch, vocabulary).argsort(1).argsort(1)
    return SparsemaxWrapper(AgentOfSupport(agent, ranks < sizes), support=None)
