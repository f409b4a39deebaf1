"""A complete EGG game, with the exact expected loss: the sender names one of 32 objects with one of 50 symbols.

Without the line ``game = marginalize(game)``, and the SupportSchedule that belongs to it, this is EGG's own game, which
the score function trains.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse import marginalize
from egg_sparse.callbacks import SupportSchedule
from egg_sparse.host import core  # egg.core where EGG is installed, else a stand-in for it


class Sender(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(32, 50)  # 32 objects, 50 symbols

    def forward(self, x: torch.Tensor, aux_input: Any = None) -> torch.Tensor:
        return F.log_softmax(self.score(x), dim=1)


class Receiver(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Embedding(50, 32)

    def forward(self, message: torch.Tensor, receiver_input: Any = None, aux_input: Any = None) -> torch.Tensor:
        return F.log_softmax(self.read(message), dim=1)


def loss(
    sender_input: torch.Tensor,
    message: torch.Tensor,
    receiver_input: Any,
    receiver_output: torch.Tensor,
    labels: torch.Tensor,
    aux_input: Any,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    nll = F.nll_loss(receiver_output, labels, reduction="none")
    return nll, {"acc": (receiver_output.argmax(dim=1) == labels).float()}


def main() -> None:
    core.init(params=["--random_seed=1", "--lr=0.05", "--n_epochs=10"])
    sender, receiver = core.ReinforceWrapper(Sender()), core.ReinforceDeterministicWrapper(Receiver())
    game = core.SymbolGameReinforce(sender, receiver, loss, sender_entropy_coeff=0.3)
    game = marginalize(game)
    batches = [(torch.eye(32), torch.arange(32))] * 20
    trainer = core.Trainer(
        game,
        core.build_optimizer(game.parameters()),
        train_data=batches,
        validation_data=batches[:1],
        callbacks=[core.ConsoleLogger(as_json=True), SupportSchedule(game.sender)],
    )
    trainer.train(n_epochs=10)


if __name__ == "__main__":
    main()
