"""What the games of one message per example share, whether they sum over messages or sample them."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, overload

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from egg_sparse import host
from egg_sparse.distribution import SparseDistribution
from egg_sparse.games import strategies

T = TypeVar("T")


class Option(Generic[T]):
    """An attribute that is checked whenever it is set, also after construction.

    Args:
        check: called with the attribute's name and value; raises TypeError or ValueError.
    """

    def __init__(self, check: Callable[[str, Any], None]) -> None:
        self.check = check

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, game: None, owner: type) -> Option[T]: ...
    @overload
    def __get__(self, game: object, owner: type) -> T: ...
    def __get__(self, game: object | None, owner: type) -> Option[T] | T:
        if game is None:
            return self
        if self.name not in game.__dict__:
            raise AttributeError(self.name)
        return game.__dict__[self.name]

    def __set__(self, game: object, value: T) -> None:
        self.check(self.name, value)
        game.__dict__[self.name] = value


def check_number(name: str, value: Any) -> None:
    """Raises TypeError or ValueError unless the option is a finite number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")


def check_count(name: str, value: Any, optional: bool = True) -> None:
    """Raises TypeError or ValueError unless the option is a positive whole number, or None if it is optional."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be {'None or ' * optional}a number of messages, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def one_of(*allowed: Any) -> Callable[[str, Any], None]:
    """A check that raises ValueError unless the option is one of these."""

    def check(name: str, value: Any) -> None:
        if not any(value is choice or (isinstance(value, str) and value == choice) for choice in allowed):
            choices = " or ".join(f'"{choice}"' if isinstance(choice, str) else str(choice) for choice in allowed)
            raise ValueError(f"{name} must be {choices}, got {value!r}")

    return check


class ByIdentity(Generic[T]):
    """Values of objects, found by identity, not equality, and forgotten when the object is.

    A copy is empty, since a copied game has agents of its own.

    Args:
        default: makes the value of an object that is new.
    """

    def __init__(self, default: Callable[[], T]) -> None:
        self._default = default
        self._values = WeakIdKeyDictionary()
        self._kept: dict[int, tuple[Any, T]] = {}  # of objects that cannot be referred to weakly

    def __getitem__(self, key: Any) -> T:
        try:
            return self._values.setdefault(key, self._default())
        except TypeError:
            return self._kept.setdefault(id(key), (key, self._default()))[1]

    def __reduce__(self) -> tuple[Any, ...]:
        return ByIdentity, (self._default,)


@dataclass
class KnownLoss:
    """What a game has found out about a loss, with one receiver.

    Attributes:
        uncoupled: the modes of the game, training or not, in which no example's loss depends on others' messages.
        attempts: the number of times that this could not be told.
        looks: the number of steps in which it was looked at what it reports as one number per batch.
    """

    uncoupled: set[bool] = field(default_factory=set)
    attempts: int = 0
    looks: int = 0


@dataclass
class KnownReceiver:
    """What a game has found out about a receiver.

    Attributes:
        strategies: the strategy that "auto" plays it with, in training and in evaluation mode.
        vocab_sizes: the vocabularies that it is known to read.
        losses: the losses that it has been played with.
    """

    strategies: dict[bool | None, str | None] = field(default_factory=dict)
    vocab_sizes: set[int | None] = field(default_factory=set)
    losses: ByIdentity[KnownLoss] = field(default_factory=lambda: ByIdentity(KnownLoss))


class OneMessageGame(nn.Module):
    """What games of one message per example share: how messages are played, and what is logged.

    A subclass finds out which messages to play, and makes a loss of theirs.
    """

    sender_entropy_coeff = Option[float](check_number)
    receiver_entropy_coeff = Option[float](check_number)
    strategy = Option[str](one_of(*strategies.STRATEGIES))
    chunk_size = Option["int | None"](check_count)
    receiver_acts = Option["bool | None"](one_of(None, True, False))

    def __init__(
        self,
        sender_entropy_coeff: float = 0.0,
        receiver_entropy_coeff: float = 0.0,
        strategy: str = "auto",
        chunk_size: int | None = None,
        train_logging_strategy: Any = None,
        test_logging_strategy: Any = None,
        receiver_acts: bool | None = None,
    ) -> None:
        super().__init__()
        self.sender_entropy_coeff = sender_entropy_coeff
        self.receiver_entropy_coeff = receiver_entropy_coeff
        self.strategy = strategy
        self.chunk_size = chunk_size
        self.receiver_acts = receiver_acts
        self.train_logging_strategy = train_logging_strategy or host.core.LoggingStrategy()
        self.test_logging_strategy = test_logging_strategy or host.core.LoggingStrategy()
        self._known_receivers = ByIdentity(KnownReceiver)

    @property
    def _logging_strategy(self) -> Any:
        return self.train_logging_strategy if self.training else self.test_logging_strategy

    def _round(
        self,
        distribution: Any,
        receiver: Callable,
        loss: Callable,
        sender_input: Any,
        labels: Any,
        receiver_input: Any,
        aux_input: Any,
    ) -> strategies.Round:
        """A batch, to be played with messages of the distribution."""
        if not distribution.batch_shape.numel():
            raise ValueError("the batch is empty: a game needs at least one example")
        return strategies.Round(
            receiver,
            loss,
            sender_input,
            labels,
            receiver_input,
            aux_input,
            acts=True if host.is_acting(receiver) and self.receiver_acts is None else self.receiver_acts,
            keep_output=self._logging_strategy.store_receiver_output,
            vocab_size=getattr(distribution, "vocab_size", None),
        )

    def _played(
        self, terms: SparseDistribution, game_round: strategies.Round, greedy: bool = False
    ) -> strategies.Played:
        """Receiver and loss of all rows of the terms, or of the first one if ``greedy``."""
        known = self._known_receivers[game_round.receiver]
        game_round.first = game_round.vocab_size not in known.vocab_sizes
        greedy = greedy or len(terms.probs) == 1
        if self.strategy != "auto" or greedy:
            played = strategies.play(terms, game_round, self.strategy, self.chunk_size, greedy)
        else:
            mode = getattr(game_round.receiver, "training", None)
            played, known.strategies[mode] = strategies.play_automatically(
                terms, game_round, known.strategies.get(mode), self.chunk_size
            )
        known.vocab_sizes.add(game_round.vocab_size)
        game_round.first = False
        if "receiver_log_prob" not in played.values and self.receiver_entropy_coeff:
            raise ValueError(
                "receiver_entropy_coeff must be 0 for a deterministic receiver; one that returns (action, log_prob, "
                "entropy), wrapped by EGG's ReinforceWrapper or in a game with receiver_acts=True, has an entropy; "
                f"got {self.receiver_entropy_coeff}"
            )
        return played

    def _interaction(
        self,
        message: torch.Tensor,
        game_round: strategies.Round,
        played: strategies.Played,
        losses: torch.Tensor,
        of_loss: dict[str, torch.Tensor],
        of_game: dict[str, torch.Tensor],
    ) -> Any:
        """What is logged of a batch.

        Args:
            message: the most probable, or the sampled, message of every example.
            game_round: the batch.
            played: what came of it.
            losses: the loss of every example, without entropies.
            of_loss: the metrics that the loss reported.
            of_game: the metrics that the game adds.
        """
        of_game = {"task_loss": losses, **of_game}
        is_vector = message.dim() > 1 and game_round.vocab_size is None
        for name in of_loss:
            if name in of_game:
                raise ValueError(f"the loss must not report {name!r}, which the game reports itself: rename it")
        return self._logging_strategy.filtered_interaction(
            sender_input=game_round.sender_input,
            receiver_input=game_round.receiver_input,
            labels=game_round.labels,
            aux_input=game_round.aux_input,
            message=message.detach(),
            receiver_output=None if played.receiver_output is None else played.receiver_output.detach(),
            message_length=torch.full((len(message),), message.shape[1] if is_vector else 1.0, device=message.device),
            aux={name: value.detach() for name, value in {**of_loss, **of_game}.items()},
        )


def reported(played: strategies.Played, expect: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the loss reported under any name, as an expectation over rows."""
    with torch.no_grad():
        return {
            name.removeprefix("aux/"): expect(value) for name, value in played.values.items() if name.startswith("aux/")
        }


def of_first_row(terms: SparseDistribution) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function of values ``(K, B, ...)`` that returns those of the first row, in the type of their expectation."""
    return lambda values: values[0].to(torch.promote_types(values.dtype, terms.probs.dtype))
