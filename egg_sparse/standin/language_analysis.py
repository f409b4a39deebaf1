"""Callbacks that look at the messages: their entropy, and how they mirror the inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch

from egg_sparse.standin.callbacks import Callback
from egg_sparse.standin.interaction import Interaction


def calc_entropy(messages: torch.Tensor) -> float:
    """Entropy, in bits, of how often each distinct message occurs.

    >>> calc_entropy(torch.tensor([[1, 2], [3, 4]]))
    1.0
    """
    counts = torch.unique(messages, dim=0, return_counts=True)[1].double()
    frequencies = counts / counts.sum()
    return 0.0 - float((frequencies * frequencies.log2()).sum())


def edit_distance(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Levenshtein distance of two sequences.

    >>> edit_distance("kitten", "sitting")
    3
    """
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


class MessageEntropy(Callback):
    """Prints the entropy of the messages of an epoch, in bits."""

    def __init__(self, print_train: bool = True, is_gumbel: bool = False) -> None:
        super().__init__()
        self.print_train = print_train
        self.is_gumbel = is_gumbel

    def print_message_entropy(self, logs: Interaction, tag: str, epoch: int) -> None:
        message: Any = logs.message
        entropy = calc_entropy(message.argmax(dim=-1) if self.is_gumbel else message)
        print(json.dumps({"entropy": entropy, "mode": tag, "epoch": epoch}), flush=True)

    def on_epoch_end(self, loss: float, logs: Interaction, epoch: int) -> None:
        if self.print_train:
            self.print_message_entropy(logs, "train", epoch)

    def on_validation_end(self, loss: float, logs: Interaction, epoch: int) -> None:
        self.print_message_entropy(logs, "test", epoch)


class TopographicSimilarity(Callback):
    """Prints the rank correlation of the distances between inputs and those between messages.

    Source: Brighton and Kirby, "Understanding Linguistic Evolution by Visualizing the Emergence of Topographic
    Mappings" (Artificial Life, 2006).
    """

    def __init__(
        self,
        sender_input_distance_fn: str | Callable = "hamming",
        message_distance_fn: str | Callable = "edit",
        compute_topsim_train_set: bool = False,
        compute_topsim_test_set: bool = True,
        is_gumbel: bool = False,
    ) -> None:
        if not (compute_topsim_train_set or compute_topsim_test_set):
            raise AssertionError("compute_topsim_train_set or compute_topsim_test_set must be True")
        self.sender_input_distance_fn = sender_input_distance_fn
        self.message_distance_fn = message_distance_fn
        self.compute_topsim_train_set = compute_topsim_train_set
        self.compute_topsim_test_set = compute_topsim_test_set
        self.is_gumbel = is_gumbel

    def on_epoch_end(self, loss: float, logs: Interaction, epoch: int) -> None:
        if self.compute_topsim_train_set:
            self.print_message(logs, "train", epoch)

    def on_validation_end(self, loss: float, logs: Interaction, epoch: int) -> None:
        if self.compute_topsim_test_set:
            self.print_message(logs, "test", epoch)

    @staticmethod
    def compute_topsim(
        meanings: torch.Tensor,
        messages: torch.Tensor,
        meaning_distance_fn: str | Callable = "hamming",
        message_distance_fn: str | Callable = "edit",
    ) -> float:
        """The Spearman correlation; distances are functions, or "edit", "cosine", "hamming", "jaccard", "euclidean"."""
        from scipy.spatial.distance import pdist
        from scipy.stats import spearmanr

        def relative_edit_distance(x: Sequence, y: Sequence) -> float:
            return edit_distance(x, y) / ((len(x) + len(y)) / 2)

        def distances(items: Any, distance: str | Callable) -> Any:
            if isinstance(distance, str) and distance not in ("edit", "cosine", "hamming", "jaccard", "euclidean"):
                raise AssertionError(f"Cannot recognize {distance} distance")
            return pdist(items, relative_edit_distance if distance == "edit" else distance)

        correlation = spearmanr(
            distances(meanings, meaning_distance_fn), distances(messages, message_distance_fn), nan_policy="raise"
        )
        return correlation.statistic

    def print_message(self, logs: Interaction, mode: str, epoch: int) -> None:
        message: Any = logs.message
        messages = (message.argmax(dim=-1) if self.is_gumbel else message).tolist()
        sender_input: Any = logs.sender_input
        topsim = self.compute_topsim(
            torch.flatten(sender_input, start_dim=1), messages, self.sender_input_distance_fn, self.message_distance_fn
        )
        print(json.dumps({"topsim": topsim, "mode": mode, "epoch": epoch}), flush=True)
