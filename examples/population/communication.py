"""The mechanics that EGG's PopulationGame needs for one symbol, which EGG's core has for sequences only."""

from typing import Any

from torch import nn

from egg_sparse.host import core


class CommunicationGS(nn.Module):
    """EGG's SymbolGameGS, for agents that are handed to it."""

    def __init__(self, train_logging_strategy: Any = None, test_logging_strategy: Any = None) -> None:
        super().__init__()
        self.train_logging_strategy = train_logging_strategy
        self.test_logging_strategy = test_logging_strategy

    def forward(self, sender: nn.Module, receiver: nn.Module, loss: Any, *batch: Any) -> Any:
        game = core.SymbolGameGS(sender, receiver, loss, self.train_logging_strategy, self.test_logging_strategy)
        return game.train(self.training)(*batch)
