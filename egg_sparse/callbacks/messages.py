"""Statistics of the messages of an epoch."""

from __future__ import annotations

import abc
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from egg_sparse import host
from egg_sparse.language.language import entropy_of, symbols_of


def _logged(logs: host.core.Interaction, name: str) -> torch.Tensor:
    """A part of an Interaction, flattened to one row per example."""
    part = getattr(logs, name)
    if part is None:
        raise ValueError(f"the Interaction has no {name}: the game's LoggingStrategy must have store_{name}=True")
    return part.reshape(len(part), -1)


def _is_relaxed(message: torch.Tensor) -> bool:
    """Whether messages are rows of numbers other than zeros and ones."""
    return message.is_floating_point() and not bool(((message == 0) | (message == 1)).all())


def _frequencies(messages: torch.Tensor) -> torch.Tensor:
    """The frequencies of the distinct rows, float64."""
    counts = torch.unique(messages, dim=0, return_counts=True)[1].double()
    return counts / counts.sum()


def _messages(logs: host.core.Interaction) -> torch.Tensor:
    """The discrete messages of an Interaction, one row per example."""
    message = _logged(logs, "message")
    if _is_relaxed(message):
        raise ValueError(
            "message must be symbol ids or rows of zeros and ones, got other numbers: Gumbel-Softmax games train with "
            "relaxed messages, so use those of the validation alone (print_train=False)"
        )
    sent: Any = logs.message
    is_sequence = sent.dim() == 3 or (sent.dim() == 2 and not sent.is_floating_point())
    return symbols_of(sent) if is_sequence else message


class _MessageStatistic(host.core.Callback, abc.ABC):
    """The base of callbacks that print a statistic of an epoch's messages, in the format of EGG's.

    Args:
        print_train: whether the statistic of the training messages is printed, too.
    """

    name: str

    def __init__(self, print_train: bool) -> None:
        self.print_train = print_train

    @abc.abstractmethod
    def _statistic(self, logs: host.core.Interaction) -> float | None:
        """The statistic; None where it is undefined."""

    def _print(self, logs: host.core.Interaction, mode: str, epoch: int) -> None:
        print(json.dumps({self.name: self._statistic(logs), "mode": mode, "epoch": epoch}), flush=True)

    def on_epoch_end(self, loss: float, logs: host.core.Interaction, epoch: int) -> None:
        if self.print_train:
            self._print(logs, "train", epoch)

    def on_validation_end(self, loss: float, logs: host.core.Interaction, epoch: int) -> None:
        self._print(logs, "test", epoch)


class MessageEntropy(_MessageStatistic):
    r"""Prints the entropy, in bits, of the messages :math:`m` of an epoch,

    .. math:: H = -\sum_m f_m \log_2 f_m,

    where :math:`f_m` is the frequency of the message among the examples. The printed line is that of EGG's callback of
    this name. The messages are symbol ids ``(B,)``, one-hot rows ``(B, V)``, bit-vectors ``(B, D)``, or sequences of
    symbol ids ``(B, L)`` or of one-hot rows ``(B, L, V)``, of which what follows the end symbol 0 does not count.

    Args:
        print_train: whether the entropy of the training messages is printed, too.

    Raises:
        ValueError: at the end of an epoch, if the game logs no messages, or relaxed ones.

    Example:
        >>> logs = host.core.Interaction.empty()
        >>> logs.message = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
        >>> MessageEntropy().on_validation_end(0.0, logs, 1)
        {"entropy": 1.5, "mode": "test", "epoch": 1}
    """

    name = "entropy"

    def __init__(self, print_train: bool = True) -> None:
        super().__init__(print_train)

    def _statistic(self, logs: host.core.Interaction) -> float:
        return float(entropy_of(_frequencies(_messages(logs))))


class MessageUsage(host.core.Callback):
    r"""Adds statistics of an epoch's messages to the metrics, for the callbacks behind it in the list.

    Of the frequencies :math:`f_m` of the distinct messages these are their number (``messages_used``), their entropy
    :math:`H = -\sum_m f_m \log_2 f_m` in bits (``message_entropy``), the perplexity :math:`2^H`
    (``message_perplexity``), and the largest of them (``largest_message_share``). The messages are those of
    :class:`MessageEntropy`, as the game logs them: the exact games log the sender's most probable message. Relaxed
    messages, which Gumbel-Softmax games train with, have no such statistics, and the epoch gets none.

    Raises:
        ValueError: at the end of an epoch, if the game logs no messages.

    Example:
        >>> logs = host.core.Interaction.empty()
        >>> logs.message = torch.tensor([4, 4, 7, 1])
        >>> MessageUsage().on_validation_end(0.0, logs, 1)
        >>> {name: round(float(value), 3) for name, value in logs.aux.items()}
        {'messages_used': 3.0, 'message_entropy': 1.5, 'message_perplexity': 2.828, 'largest_message_share': 0.5}
    """

    def _add(self, logs: host.core.Interaction) -> None:
        if _is_relaxed(_logged(logs, "message")):
            return
        frequencies = _frequencies(_messages(logs))
        entropy = float(entropy_of(frequencies))
        usage = {
            "messages_used": len(frequencies),
            "message_entropy": entropy,
            "message_perplexity": 2**entropy,
            "largest_message_share": float(frequencies.max()),
        }
        logs.aux.update({name: torch.tensor([float(value)]) for name, value in usage.items()})

    def on_epoch_end(self, loss: float, logs: host.core.Interaction, epoch: int) -> None:
        self._add(logs)

    def on_validation_end(self, loss: float, logs: host.core.Interaction, epoch: int) -> None:
        self._add(logs)


class TopographicSimilarity(_MessageStatistic):
    """Prints the topographic similarity of inputs and messages, in the format of EGG's callback of this name.

    This is the Spearman correlation, over all pairs of examples, of the distance between the inputs and the Hamming
    distance between the messages, which for symbols is 0 or 1. The messages are those of :class:`MessageEntropy`. Of
    sequences the Hamming distance compares position by position, and EGG's callback counts edits by default: its
    similarity is another number. The correlation is undefined, and printed as ``null``, if all messages or all
    inputs are equally far apart, or if the distance of an input is undefined (as that of a zero vector under
    "cosine"). Time and memory grow with the square of the number of examples.

    Args:
        sender_input_distance: the distance between inputs, a name ("cosine", "euclidean", "hamming", ...) or a
            function of two vectors, as ``scipy.spatial.distance.pdist`` takes it.
        print_train: whether the similarity of the training epoch is printed, too.

    Raises:
        ImportError: SciPy is not installed.
        ValueError: ``sender_input_distance`` is a name that SciPy does not know; at the end of an epoch, if the game
            logs no inputs, inputs without the examples on axis 0, no messages, or relaxed ones.

    Example:
        >>> logs = host.core.Interaction.empty()
        >>> logs.sender_input = torch.tensor([[0.0], [0.1], [5.0], [5.3]])
        >>> logs.message = torch.tensor([7, 7, 2, 2])
        >>> TopographicSimilarity("euclidean").on_validation_end(0.0, logs, 1)  # doctest: +ELLIPSIS
        {"topsim": 0.828..., "mode": "test", "epoch": 1}

    Source: Brighton and Kirby, "Understanding Linguistic Evolution by Visualizing the Emergence of Topographic
    Mappings" (Artificial Life, 2006).
    """

    name = "topsim"

    def __init__(self, sender_input_distance: str | Callable = "cosine", print_train: bool = False) -> None:
        try:
            from scipy.spatial.distance import pdist
        except ImportError as error:
            raise ImportError('TopographicSimilarity needs SciPy: pip install "egg_sparse[zoo]"') from error
        if isinstance(sender_input_distance, str):
            try:
                pdist(np.arange(3.0)[:, None], sender_input_distance)
            except ValueError:
                raise ValueError(
                    "sender_input_distance must be a distance of scipy.spatial.distance.pdist, "
                    f"got {sender_input_distance!r}"
                ) from None
        super().__init__(print_train)
        self.sender_input_distance = sender_input_distance

    def _statistic(self, logs: host.core.Interaction) -> float | None:
        from scipy.spatial.distance import pdist
        from scipy.stats import spearmanr

        inputs, messages = _logged(logs, "sender_input"), _messages(logs)
        if len(inputs) != len(messages):
            raise ValueError(
                f"sender_input must have its examples on axis 0: it has length {len(inputs)} there, for "
                f"{len(messages)} messages"
            )
        between_inputs = pdist(inputs.double().cpu(), self.sender_input_distance)
        between_messages = pdist(messages.double().cpu(), "hamming")
        if len(between_inputs) < 2 or np.ptp(between_inputs) == 0 or np.ptp(between_messages) == 0:
            return None
        topsim = float(spearmanr(between_inputs, between_messages).statistic)
        return None if math.isnan(topsim) else topsim
