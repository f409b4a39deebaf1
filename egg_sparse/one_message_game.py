"""What the games of one message per example share, whether they sum over messages or sample them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from egg_sparse import host, strategies
from egg_sparse.distribution import SparseDistribution


class OneMessageGame(nn.Module):
    """What games of one message per example share: how messages are played, and what is logged.

    A subclass finds out which messages to play, and makes a loss of theirs.
    """

    def __init__(
        self,
        sender_entropy_coeff: float = 0.0,
        receiver_entropy_coeff: float = 0.0,
        strategy: str = "auto",
        chunk_size: int | None = None,
        train_logging_strategy: Any = None,
        test_logging_strategy: Any = None,
    ) -> None:
        super().__init__()
        if strategy not in strategies.STRATEGIES:
            raise ValueError(f"strategy must be one of {', '.join(strategies.STRATEGIES)}, got {strategy!r}")
        check_count("chunk_size", chunk_size)
        self.sender_entropy_coeff = sender_entropy_coeff
        self.receiver_entropy_coeff = receiver_entropy_coeff
        self.strategy = strategy
        self.chunk_size = chunk_size
        self.train_logging_strategy = train_logging_strategy or host.core.LoggingStrategy()
        self.test_logging_strategy = test_logging_strategy or host.core.LoggingStrategy()
        self._strategy_of_receiver: dict[int, str] = {}
        self._checked_receivers: set[tuple[int, int | None]] = set()

    @property
    def _logging_strategy(self) -> Any:
        return self.train_logging_strategy if self.training else self.test_logging_strategy

    def _played(
        self,
        terms: SparseDistribution,
        receiver: Callable,
        loss: Callable,
        sender_input: Any,
        labels: Any,
        receiver_input: Any,
        aux_input: Any,
        greedy: bool = False,
    ) -> strategies.Played:
        """Receiver and loss of all rows of the terms, or of the first one if ``greedy``."""
        if terms.probs.shape[1] == 0:
            raise ValueError("the batch is empty: a game needs at least one example")
        checked = id(receiver), terms.vocab_size
        game_round = strategies.Round(
            receiver,
            loss,
            sender_input,
            labels,
            receiver_input,
            aux_input,
            keep_output=self._logging_strategy.store_receiver_output,
            vocab_size=terms.vocab_size,
            check_vocabulary=checked not in self._checked_receivers,
        )
        greedy = greedy or len(terms.probs) == 1
        if self.strategy != "auto" or greedy:
            played = strategies.play(terms, game_round, self.strategy, self.chunk_size, greedy)
        else:
            played, self._strategy_of_receiver[id(receiver)] = strategies.play_automatically(
                terms, game_round, self._strategy_of_receiver.get(id(receiver)), self.chunk_size
            )
        self._checked_receivers.add(checked)
        if "receiver_log_prob" not in played.values and self.receiver_entropy_coeff:
            raise ValueError(
                "receiver_entropy_coeff must be 0 for a deterministic receiver; one that returns (output, log_prob, "
                f"entropy), as EGG's ReinforceWrapper does, has an entropy; got {self.receiver_entropy_coeff}"
            )
        return played

    def _interaction(
        self,
        message: torch.Tensor,
        played: strategies.Played,
        aux: dict[str, torch.Tensor],
        sender_input: Any,
        labels: Any,
        receiver_input: Any,
        aux_input: Any,
    ) -> Any:
        return self._logging_strategy.filtered_interaction(
            sender_input=sender_input,
            receiver_input=receiver_input,
            labels=labels,
            aux_input=aux_input,
            message=message.detach(),
            receiver_output=None if played.receiver_output is None else played.receiver_output.detach(),
            message_length=torch.ones(len(message), device=message.device),
            aux={name: value.detach() for name, value in aux.items()},
        )


def check_count(name: str, value: int | None) -> None:
    """Raises TypeError or ValueError unless the option is None or a positive whole number."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise TypeError(f"{name} must be None or a number of messages, got {type(value).__name__}")
    if value is not None and value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def reported(played: strategies.Played, expect: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the loss reported under any name, as an expectation over rows."""
    with torch.no_grad():
        return {
            name.removeprefix("aux/"): expect(value) for name, value in played.values.items() if name.startswith("aux/")
        }
