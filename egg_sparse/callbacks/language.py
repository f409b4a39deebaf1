"""The language during training, and a language as EGG's Interaction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from egg_sparse import host
from egg_sparse.language import Language, language_of, sent_messages, statistics
from egg_sparse.language.summary import Statistics

_SEED = 20200713
_OPTIONS = frozenset({"input_distance", "message_distance", "mass"})


class LanguageStatistics(host.core.Callback):
    """Adds the statistics of a sender's language to the metrics of the validation.

    They are those of :func:`egg_sparse.language.statistics`, each as ``language_NAME`` in the Interaction's ``aux``, so
    that every callback after this one in the list sees them: EGG's ConsoleLogger and TensorboardLogger, and
    :class:`MetricsWriter`. With ``greedy``, those of the most probable messages are there as ``greedy_NAME``. The
    training draws the same random numbers with it.

    Args:
        sender: the sender, of any game (:func:`egg_sparse.language.language_of`).
        inputs: the inputs ``(N, ...)``, or EGG's batches.
        attributes: the inputs' attributes ``(N, A)``; None to leave out what needs them.
        every: the number of epochs between two computations.
        greedy: whether the statistics of the most probable messages are computed, too.
        aux_input: as for :func:`egg_sparse.language.language_of`.
        weights: as for :func:`egg_sparse.language.language_of`.
        compared: the tensor ``(N, ...)`` whose distances the topographic similarity compares with those of messages,
            such as images; None for the attributes.
        options: further arguments of :func:`egg_sparse.language.statistics`: ``input_distance``, ``message_distance``
            and ``mass``.

    Attributes:
        history: a dict per computation, with ``epoch``, ``exact`` and, with ``greedy``, ``greedy``: the statistics.

    Raises:
        TypeError: ``every`` is no whole number, or there is no such option.
        ValueError: ``every`` is less than 1.

    Example:
        >>> from egg_sparse import SparsemaxWrapper
        >>> class Agent(nn.Linear):
        ...     def forward(self, sender_input, aux_input=None):
        ...         return super().forward(sender_input)
        >>> _ = torch.manual_seed(0)
        >>> callback = LanguageStatistics(SparsemaxWrapper(Agent(4, 8)), torch.eye(4), torch.arange(4))
        >>> logs = host.core.Interaction.empty()
        >>> callback.on_validation_end(0.0, logs, epoch=1)
        >>> sorted(logs.aux)[-2:], float(logs.aux["language_synonyms"]) > 1
        (['language_topsim', 'language_topsim_pearson'], True)
    """

    def __init__(
        self,
        sender: nn.Module,
        inputs: torch.Tensor | Iterable[Any],
        attributes: torch.Tensor | None = None,
        every: int = 1,
        greedy: bool = False,
        aux_input: Any = None,
        weights: torch.Tensor | None = None,
        compared: torch.Tensor | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(every, int):
            raise TypeError(f"every must be a whole number of epochs, got {every!r}")
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        if unknown := sorted(options.keys() - _OPTIONS):
            raise TypeError(f"options must be among {', '.join(sorted(_OPTIONS))}, got {unknown[0]}")
        self.sender, self.inputs, self.attributes = sender, inputs, attributes
        self.every, self.greedy, self.aux_input, self.weights = every, greedy, aux_input, weights
        self.options = {"inputs": compared, **options}
        self.history: list[dict[str, Any]] = []

    def on_validation_end(self, loss: float, logs: host.core.Interaction, epoch: int) -> None:
        if epoch % self.every:
            return
        device = next((parameter.device for parameter in self.sender.parameters()), torch.device("cpu"))
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(_SEED)  # supports that are bounded are drawn
            language = language_of(self.sender, self.inputs, self.aux_input, self.weights)
        found: dict[str, Statistics] = {"exact": statistics(language, self.attributes, **self.options)}
        if self.greedy:
            found["greedy"] = statistics(language.greedy(), self.attributes, **self.options)
        self.history.append({"epoch": epoch, **found})
        for prefix, numbers in zip(("language", "greedy"), found.values(), strict=False):
            logs.aux.update({f"{prefix}_{name}": torch.tensor([float(value)]) for name, value in numbers.items()})


def interaction_of(
    language: Language,
    sender_input: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    samples: int = 0,
    seed: int = 0,
) -> host.core.Interaction:
    """A language as EGG's Interaction, which EGG's functions and callbacks read.

    Args:
        language: the language.
        sender_input: the inputs ``(N, ...)``, to be part of it.
        labels: the labels ``(N, ...)``, to be part of it.
        samples: the number of messages drawn per input; 0 for the most probable message alone.
        seed: the seed of the draws.

    Returns:
        The Interaction, on the CPU: ``message`` is ``(n,)`` for symbols, ``(n, L)`` for sequences, with the end symbol,
        and for bits ``(n, D)`` floating point; ``message_length`` counts the end symbol.

    Example:
        >>> logs = interaction_of(Language.of_messages(torch.tensor([[5, 3], [5, 0]])))
        >>> logs.message.tolist(), logs.message_length.tolist()
        ([[5, 3, 0], [5, 0, 0]], [3, 2])
    """
    messages, inputs = sent_messages(language, samples, seed)
    message = messages.float() if language.kind == "bits" else messages
    lengths = torch.ones(len(message), dtype=torch.long)
    if language.kind == "symbols":
        message = message[:, 0]
    elif language.kind == "sequences":
        lengths = (message != 0).sum(1) + 1
    return host.core.Interaction(
        sender_input=None if sender_input is None else sender_input.cpu()[inputs],
        receiver_input=None,
        labels=None if labels is None else labels.cpu()[inputs],
        aux_input=None,
        message=message,
        receiver_output=None,
        message_length=lengths,
        aux={},
    )
