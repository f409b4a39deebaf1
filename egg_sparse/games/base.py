"""The base of the games of one message per example, which sum over messages or sample them."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar, get_args, overload

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from egg_sparse import host
from egg_sparse.distribution import SparseDistribution
from egg_sparse.games.automatic import Choice, play_automatically
from egg_sparse.games.calls import Batch, Outcome, ReceiverCall, Strategy
from egg_sparse.games.strategies import play

T = TypeVar("T")


class Option(Generic[T]):
    """An attribute that is checked whenever it is set, during construction and afterwards.

    Args:
        check: the function that is called with the attribute's name and value, and raises TypeError or ValueError.
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
    """Raises TypeError or ValueError unless the option is a positive integer, or None if ``optional``."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be {'None or ' * optional}a number of messages, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def one_of(*allowed: Any) -> Callable[[str, Any], None]:
    """A check that raises ValueError unless the option is one of the allowed values."""

    def check(name: str, value: Any) -> None:
        if not any(value is choice or (isinstance(value, str) and value == choice) for choice in allowed):
            choices = " or ".join(f'"{choice}"' if isinstance(choice, str) else str(choice) for choice in allowed)
            raise ValueError(f"{name} must be {choices}, got {value!r}")

    return check


class ByIdentity(Generic[T]):
    """A mapping from objects, compared by identity, to values, which lives no longer than the objects.

    A copy is empty, since a copied game has agents of its own.

    Args:
        default: the function that makes the value of a new object.
    """

    def __init__(self, default: Callable[[], T]) -> None:
        self._default = default
        self._values = WeakIdKeyDictionary()
        self._strong: dict[int, tuple[Any, T]] = {}  # for objects that cannot be referred to weakly

    def __getitem__(self, key: Any) -> T:
        try:
            return self._values.setdefault(key, self._default())
        except TypeError:
            return self._strong.setdefault(id(key), (key, self._default()))[1]

    def __reduce__(self) -> tuple[Any, ...]:
        return ByIdentity, (self._default,)


@dataclass
class KnownLoss:
    """What a game has found out about a loss, with one receiver.

    Attributes:
        uncoupled_modes: the modes of the game (``training``) in which examples are independent of others' messages.
        coupling_checks: the number of checks that could not tell whether they are.
        average_checks: the number of steps in which the metrics without a value per example were checked.
        choices: what "auto" has found out, per mode of the receiver (``training``).
        knows_products: see :class:`egg_sparse.games.calls.ReceiverCall`.
    """

    uncoupled_modes: set[bool] = field(default_factory=set)
    coupling_checks: int = 0
    average_checks: int = 0
    choices: dict[bool | None, Choice] = field(default_factory=dict)
    knows_products: bool | None = None


@dataclass
class KnownReceiver:
    """What a game has found out about a receiver.

    Attributes:
        strategies: vmap, or loop for a receiver that vmap cannot trace, per mode of the receiver (``training``).
        vocab_sizes: the sizes of the vocabularies that the receiver is known to read.
        losses: what is known of the losses that it has been played with.
    """

    strategies: dict[bool | None, Strategy | None] = field(default_factory=dict)
    vocab_sizes: set[int | None] = field(default_factory=set)
    losses: ByIdentity[KnownLoss] = field(default_factory=lambda: ByIdentity(KnownLoss))


class OneMessageGame(nn.Module):
    """The base of the games of one message per example: options, playing messages, and Interactions.

    A subclass chooses the messages to play, and makes one loss of their losses.

    Args:
        train_logging_strategy: EGG's LoggingStrategy in training; None to keep everything.
        test_logging_strategy: EGG's LoggingStrategy in evaluation; None to keep everything.
        options: the values of the class's :class:`Option` attributes.
    """

    sender_entropy_coeff = Option[float](check_number)
    receiver_entropy_coeff = Option[float](check_number)
    strategy = Option[Strategy](one_of(*get_args(Strategy)))
    chunk_size = Option["int | None"](check_count)
    receiver_acts = Option["bool | None"](one_of(None, True, False))

    def __init__(
        self,
        train_logging_strategy: host.core.LoggingStrategy | None,
        test_logging_strategy: host.core.LoggingStrategy | None,
        **options: Any,
    ) -> None:
        super().__init__()
        for name, value in options.items():
            setattr(self, name, value)
        self.train_logging_strategy = train_logging_strategy or host.core.LoggingStrategy()
        self.test_logging_strategy = test_logging_strategy or host.core.LoggingStrategy()
        self._known_receivers = ByIdentity(KnownReceiver)

    @property
    def _logging_strategy(self) -> host.core.LoggingStrategy:
        return self.train_logging_strategy if self.training else self.test_logging_strategy

    @property
    def _examples_are_independent(self) -> bool:
        """Whether an example's loss is independent of the messages of others."""
        return True

    def _receiver_call(self, distribution: Any, receiver: Callable, loss: Callable, batch: Batch) -> ReceiverCall:
        """The call of receiver and loss for messages of the distribution."""
        if not distribution.batch_shape.numel():
            raise ValueError("the batch is empty: a game needs at least one example")
        return ReceiverCall(
            receiver,
            loss,
            batch,
            acts=True if host.is_acting(receiver) and self.receiver_acts is None else self.receiver_acts,
            keep_output=self._logging_strategy.store_receiver_output,
            vocab_size=getattr(distribution, "vocab_size", None),
        )

    def _play(self, distribution: SparseDistribution, call: ReceiverCall, greedy: bool = False) -> Outcome:
        """Plays the support of the distribution, or only its most probable messages if ``greedy``."""
        known = self._known_receivers[call.receiver]
        known_loss = known.losses[call.loss]
        call.knows_products = known_loss.knows_products
        call.is_first = call.vocab_size not in known.vocab_sizes
        later, call = call, replace(call)  # what a backward pass recomputes must stay a first call
        greedy = greedy or len(distribution.probs) == 1
        if self.strategy != "auto" or greedy:
            outcome = play(distribution, call, self.strategy, self.chunk_size, greedy)
        else:
            mode = getattr(call.receiver, "training", None)
            choice = known_loss.choices.setdefault(mode, Choice())
            if not self._examples_are_independent:
                choice = Choice(is_distinct=False, divides=False)
            outcome, known.strategies[mode] = play_automatically(
                distribution, call, known.strategies.get(mode), choice, self.chunk_size
            )
        known_loss.knows_products = call.knows_products
        known.vocab_sizes.add(call.vocab_size)
        later.is_first = False
        if self.receiver_entropy_coeff and not outcome.acts:
            raise ValueError(
                "receiver_entropy_coeff must be 0 for a deterministic receiver; one that returns (action, log_prob, "
                "entropy), wrapped by EGG's ReinforceWrapper or in a game with receiver_acts=True, has an entropy; "
                f"got {self.receiver_entropy_coeff}"
            )
        return outcome

    def _interaction(
        self,
        message: torch.Tensor,
        call: ReceiverCall,
        outcome: Outcome,
        losses: torch.Tensor,
        loss_metrics: dict[str, torch.Tensor],
        game_metrics: dict[str, torch.Tensor],
        lengths: torch.Tensor | None = None,
    ) -> host.core.Interaction:
        """The Interaction of a batch.

        Args:
            message: the most probable, or the sampled, message of every example.
            call: the call of receiver and loss.
            outcome: its outcome.
            losses: the loss of every example, without entropies.
            loss_metrics: the metrics that the loss reports.
            game_metrics: the metrics that the game adds.
            lengths: the lengths of sequences.
        """
        game_metrics = {"task_loss": losses, **game_metrics}
        for name in loss_metrics:
            if name in game_metrics:
                raise ValueError(f"the loss must not report {name!r}, which the game reports itself: rename it")
        if lengths is None:
            length = message.shape[1] if message.dim() > 1 and call.vocab_size is None else 1.0
            lengths = torch.full((len(message),), length, device=message.device)
        return self._logging_strategy.filtered_interaction(
            sender_input=call.batch.sender_input,
            receiver_input=call.batch.receiver_input,
            labels=call.batch.labels,
            aux_input=call.batch.aux_input,
            message=message.detach(),
            receiver_output=None if outcome.receiver_output is None else outcome.receiver_output.detach(),
            message_length=lengths,
            aux={name: value.detach() for name, value in {**loss_metrics, **game_metrics}.items()},
        )


def expected_metrics(outcome: Outcome, expect: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    """The expectations ``(B, ...)`` of the metrics that the loss reports."""
    with torch.no_grad():
        return {
            name.removeprefix("aux/"): expect(value)
            for name, value in outcome.values.items()
            if name.startswith("aux/")
        }


def of_first_row(distribution: SparseDistribution) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from values ``(K, B, ...)`` to those of the first row, of the type that an expectation would have."""
    return lambda values: values[0].to(torch.promote_types(values.dtype, distribution.probs.dtype))
