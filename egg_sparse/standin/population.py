"""Games in which every batch is played by another sender and receiver of a population."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from torch import nn


class UniformAgentSampler(nn.Module):
    """Draws a sender, a receiver and a loss, uniformly and independently."""

    def __init__(
        self, senders: Iterable[nn.Module], receivers: Iterable[nn.Module], losses: Iterable[Callable], seed: int = 1234
    ) -> None:
        super().__init__()
        np.random.seed(seed)
        self.senders = nn.ModuleList(senders)
        self.receivers = nn.ModuleList(receivers)
        self.losses = list(losses)

    def forward(self) -> tuple[nn.Module, nn.Module, Callable]:
        sender = np.random.choice(len(self.senders))
        receiver = np.random.choice(len(self.receivers))
        loss = np.random.choice(len(self.losses))
        return self.senders[sender], self.receivers[receiver], self.losses[loss]


class FullSweepAgentSampler(nn.Module):
    """Goes through all combinations, in an order that is shuffled for every sweep."""

    def __init__(
        self, senders: Iterable[nn.Module], receivers: Iterable[nn.Module], losses: Iterable[Callable]
    ) -> None:
        super().__init__()
        self.senders = nn.ModuleList(senders)
        self.receivers = nn.ModuleList(receivers)
        self.losses = list(losses)
        self.senders_order = list(range(len(self.senders)))
        self.receivers_order = list(range(len(self.receivers)))
        self.losses_order = list(range(len(self.losses)))
        self.iterator: Iterator[tuple[int, int, int]]
        self.reset_order()

    def reset_order(self) -> None:
        orders = (self.senders_order, self.receivers_order, self.losses_order)
        for order in orders:
            np.random.shuffle(order)
        self.iterator = itertools.product(*orders)

    def forward(self) -> tuple[nn.Module, nn.Module, Callable]:
        combination = next(self.iterator, None)
        if combination is None:
            self.reset_order()
            combination = next(self.iterator)
        sender, receiver, loss = combination
        return self.senders[sender], self.receivers[receiver], self.losses[loss]


class PopulationGame(nn.Module):
    """Hands the agents that the sampler picks to the game's mechanics."""

    def __init__(self, game: nn.Module, agents_loss_sampler: nn.Module) -> None:
        super().__init__()
        self.game = game
        self.agents_loss_sampler = agents_loss_sampler

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.game(*self.agents_loss_sampler(), *args, **kwargs)
