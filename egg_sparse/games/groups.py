"""Playing a batch of uneven supports in groups of examples, each padded to its own largest support."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

from egg_sparse.distribution import SparseDistribution
from egg_sparse.games.calls import Outcome, ReceiverCall

_LEAST_PAIRS = 2**11  # of messages and examples, below which a single call is as fast
_LEAST_PAIRS_ON_GPU = 2**15  # reading the supports' sizes waits for the device, which plays many pairs at once
_PAIRS_PER_GROUP = 512  # that take as long as what a call of its own costs a group
_LEAST_ROWS = 4


def groups_of(sizes: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Examples in groups, so that the padded supports are within twice the sum of the supports, or one group.

    Sizes are rounded up to powers of two. Neighboring groups are merged where padding costs less than another call.

    Args:
        sizes: the support size of every example.

    Returns:
        The groups, each its largest support and the positions of its examples.

    Example:
        >>> groups_of([500, *[1] * 1023])[0]
        (500, [0])
    """
    classes: dict[int, list[int]] = {}
    for position, size in enumerate(sizes):
        classes.setdefault((size - 1).bit_length(), []).append(position)
    ordered = [classes[key] for key in sorted(classes, reverse=True)]
    largest = [max(sizes[position] for position in members) for members in ordered]
    # best[i]: the least cost of the first i classes, and where its last group begins
    best: list[tuple[float, int]] = [(0, 0)]
    for end in range(1, len(ordered) + 1):
        best.append(
            min(
                (best[begin][0] + largest[begin] * sum(map(len, ordered[begin:end])) + _PAIRS_PER_GROUP, begin)
                for begin in range(end)
            )
        )
    groups = []
    end = len(ordered)
    while end:
        begin = best[end][1]
        groups.append((largest[begin], [position for members in ordered[begin:end] for position in members]))
        end = begin
    return groups[::-1]


def uneven_groups(distribution: SparseDistribution) -> list[tuple[int, list[int]]] | None:
    """The groups of a batch whose supports are so uneven that groups pay; None for others."""
    rows, batch_size = distribution.probs.shape
    least_pairs = _LEAST_PAIRS if distribution.probs.device.type == "cpu" else _LEAST_PAIRS_ON_GPU
    if rows < _LEAST_ROWS or batch_size < 2 or rows * batch_size < least_pairs:
        return None
    groups = groups_of(distribution.support_size.tolist())
    return groups if 2 * sum(size * len(examples) for size, examples in groups) <= rows * batch_size else None


def _may_differ_by_example(value: Any, batch_size: int) -> bool:
    """Whether an input holds something that is no tensor and has as many entries as there are examples."""
    if isinstance(value, (torch.Tensor, str)):
        return False
    if isinstance(value, dict):
        value = list(value.values())
    elif not isinstance(value, (list, tuple)) or not _holds_tensors(value):
        return hasattr(value, "__len__") and len(value) == batch_size
    return any(_may_differ_by_example(item, batch_size) for item in value)


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value))


def play_in_groups(
    play: Callable[[torch.Tensor, ReceiverCall], Outcome],
    messages: torch.Tensor,
    call: ReceiverCall,
    groups: list[tuple[int, list[int]]],
) -> Outcome:
    """Plays each group of examples by itself.

    Args:
        play: the function that plays messages ``(K, B)`` or ``(K, B, D)`` with a call.
        messages: the messages.
        call: the call of receiver and loss on the whole batch.
        groups: the groups, see :func:`groups_of`.

    Raises:
        ValueError: an input has no axis 0 of examples, or may have entries per example that are no tensors.
    """
    rows, batch_size = messages.shape[:2]
    for name, value in vars(call.batch).items():
        if _may_differ_by_example(value, batch_size):
            raise ValueError(f"{name} cannot be divided: it has {batch_size} entries, as many as examples")
    outcomes, order = [], []
    for size, members in groups:
        examples = torch.tensor(members, device=messages.device)
        part = replace(call, batch=call.batch.of_examples(examples, batch_size))
        outcomes.append(play(messages[:size, examples], part))
        order += members
    back = torch.empty(batch_size, dtype=torch.long)
    back[order] = torch.arange(batch_size)
    back = back.to(messages.device)

    def joined(values: Sequence[torch.Tensor]) -> torch.Tensor:
        padded = [F.pad(value, (*(0, 0) * (value.dim() - 1), 0, rows - len(value))) for value in values]
        return torch.cat(padded, 1).index_select(1, back)

    outputs = [outcome.receiver_output for outcome in outcomes if outcome.receiver_output is not None]
    return Outcome(
        {name: joined([outcome.values[name] for outcome in outcomes]) for name in outcomes[0].values},
        torch.cat(outputs).index_select(0, back) if len(outputs) == len(outcomes) else None,
        torch.cat([outcome.receiver_calls for outcome in outcomes]).index_select(0, back),
    )
