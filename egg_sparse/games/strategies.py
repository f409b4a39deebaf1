"""Strategies: how a receiver and a loss written for one message per example are evaluated on a whole support.

``vmap`` maps the plain call over the rows of the support, ``gather`` plays only the (message, example) pairs of
non-zero probability, ``distinct`` calls the receiver once per message that occurs in the batch, and ``loop`` calls it
once per row. All give the same result, that of ``loop`` over the whole vocabulary, as long as no example's loss depends
on the messages of other examples, which ``egg_sparse.games.checks.coupling`` measures.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch

from egg_sparse.distribution import SparseDistribution
from egg_sparse.games import checks
from egg_sparse.games.batching_rules import BatchingRules
from egg_sparse.games.calls import Outcome, ReceiverCall, Strategy, check_chunks, in_chunks
from egg_sparse.games.distinct import play_distinct


def play(
    distribution: SparseDistribution, call: ReceiverCall, strategy: Strategy, chunk_size: int | None, greedy: bool
) -> Outcome:
    """Plays the support of the distribution, or only its most probable messages if ``greedy``."""
    if greedy:
        return play_messages(distribution.messages[:1], call, "loop", None)
    if strategy == "gather":
        return _play_gather(distribution, call, chunk_size)
    if strategy == "distinct":
        return play_distinct(distribution, call, chunk_size)
    return play_messages(distribution.messages, call, strategy, chunk_size)


def play_messages(messages: torch.Tensor, call: ReceiverCall, strategy: Strategy, chunk_size: int | None) -> Outcome:
    """Plays messages ``(K, B)`` or ``(K, B, D)`` with vmap or loop."""
    rows, batch_size = messages.shape[:2]
    values = (_play_vmap if strategy == "vmap" else _play_loop)(messages, call, chunk_size)
    output = values.pop("receiver_output", None)
    receiver_calls = torch.full((batch_size,), rows, device=messages.device)
    return Outcome(values, None if output is None else output[0], receiver_calls)


def _play_vmap(messages: torch.Tensor, call: ReceiverCall, chunk_size: int | None) -> dict[str, torch.Tensor]:
    check_chunks("vmap", chunk_size)

    def play_row(message: torch.Tensor) -> dict[str, torch.Tensor]:
        with BatchingRules():
            return call(message)

    return in_chunks(torch.func.vmap(play_row, randomness="different"), messages, chunk_size)


def _play_loop(messages: torch.Tensor, call: ReceiverCall, chunk_size: int | None) -> dict[str, torch.Tensor]:
    def play_rows(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        with checks.explained_format_error(messages) if call.is_first else nullcontext():
            values = [call(message) for message in rows]
        return {name: torch.stack([row[name] for row in values]) for name in values[0]}

    return in_chunks(play_rows, messages, chunk_size)


def _play_gather(distribution: SparseDistribution, call: ReceiverCall, chunk_size: int | None) -> Outcome:
    if checks.batch_norms(call.receiver):
        raise ValueError(
            "strategy gather cannot play a receiver with BatchNorm in training, which would normalize over an example "
            "once for each of its messages; use vmap or loop"
        )
    batch_size = distribution.probs.shape[1]
    rows, examples = distribution.mask.nonzero(as_tuple=True)

    def play_pairs(pairs: torch.Tensor) -> dict[str, torch.Tensor]:
        row, example = pairs.unbind(1)
        batch = call.batch.of_examples(example, batch_size)
        return replace(call, batch=batch, is_gathered=True)(distribution.messages[row, example])

    pairs = torch.stack((rows, examples), 1)
    values = in_chunks(play_pairs, pairs, None if chunk_size is None else chunk_size * batch_size)
    output = values.pop("receiver_output", None)
    placed = {
        name: value.new_zeros(*distribution.probs.shape, *value.shape[1:]).index_put((rows, examples), value)
        for name, value in values.items()
    }
    # row 0 comes first and is never padding
    return Outcome(placed, None if output is None else output[:batch_size], distribution.support_size)
