"""The strategy "auto": the fastest strategy that is known to give the result of plain calls."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from egg_sparse.distribution import SparseDistribution
from egg_sparse.games.calls import Outcome, ReceiverCall, Strategy, vmap_can_be_recomputed
from egg_sparse.games.distinct import distinct_messages, why_not_distinct
from egg_sparse.games.groups import play_in_groups, uneven_groups
from egg_sparse.games.snapshot import Snapshot, holds_vmapped_tensor, is_lazy
from egg_sparse.games.strategies import play, play_messages

logger = logging.getLogger("egg_sparse")

_MOST_DISTINCT = 0.75  # the share of vector messages that are distinct, above which nothing is gained
_ROUNDING, _LARGEST_TOLERANCE = 64, 0.03  # in units of the type's precision, and for half precision


@dataclass
class Choice:
    """What "auto" has found out about a receiver and a loss, in one mode.

    Attributes:
        is_distinct: whether ``distinct`` gives the result of plain calls; None if that was not tried.
        divides: whether groups of examples can be played by themselves; None if that was not tried.
        batches: the number of batches that have been played.
    """

    is_distinct: bool | None = None
    divides: bool | None = None
    batches: int = 0


def play_automatically(
    distribution: SparseDistribution,
    call: ReceiverCall,
    known: Strategy | None,
    choice: Choice,
    chunk_size: int | None,
) -> tuple[Outcome, Strategy | None]:
    """Plays with ``distinct``, ``vmap`` or ``loop``, and returns that of the latter two that works for the receiver.

    Plain calls are vmap, or loop if vmap cannot trace the receiver. Batches 1, 2, 4, 8 and so on are played plainly and
    then with ``distinct``, if that is possible, or, if the supports are uneven, in groups of examples. What gives the
    same losses is used, until the next of these batches. ``choice`` is updated. A strategy that is ``known`` to work is
    used again. A lazy receiver is first called with ``loop``, which finds out its shapes; no strategy is known then.
    """
    if known is None and is_lazy(call.agents):
        return play(distribution, call, "loop", chunk_size, greedy=False), None
    choice.batches += 1
    is_compared = choice.batches & (choice.batches - 1) == 0

    def play_distinct() -> Outcome:
        return play(distribution, call, "distinct", chunk_size, greedy=False)

    if choice.is_distinct and not is_compared:
        found = _tried(play_distinct)
        if found is not None:
            return found, known
        choice.is_distinct = False
    groups = None if choice.divides is False else uneven_groups(distribution)
    if groups and choice.divides and known and not is_compared:
        found = _tried(partial(_play_groups, distribution, call, groups, known, chunk_size))
        if found is not None:
            return found, known
        choice.divides = False
    outcome, known, cause = _play_plainly(distribution, call, known, chunk_size)

    # What agrees plays every batch, so that a resumed run equals an uninterrupted one.
    found = None
    if choice.is_distinct is not False:
        agrees = _may_be_distinct(distribution, call, chunk_size) and _agrees(
            outcome, play_distinct, distribution, call
        )
        found = _tried(play_distinct) if agrees else None
        choice.is_distinct = found is not None
    if choice.batches == 1:
        if choice.is_distinct:
            logger.info("strategy auto calls this receiver once per distinct message (distinct)")
        elif cause is None:
            logger.info("strategy auto plays this receiver with %s", known)
    if cause is not None and not choice.is_distinct:
        reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        warnings.warn(
            f"strategy auto calls the receiver once per message (loop), since vmap cannot trace it: {reason}",
            RuntimeWarning,
            stacklevel=2,
        )
    if groups and choice.divides is not False and found is None:
        play_by_groups = partial(_play_groups, distribution, call, groups, known, chunk_size)
        agrees = not call.batch_averages and _agrees(outcome, play_by_groups, distribution, call)
        found = _tried(play_by_groups) if agrees else None
        choice.divides = found is not None
    return found or outcome, known


def _tried(play: Callable[[], Outcome]) -> Outcome | None:
    """The outcome; None if it cannot be had, or if the agents are at fault, which plain calls will raise."""
    try:
        return play()
    except (MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception:
        return None


def _play_plainly(
    distribution: SparseDistribution, call: ReceiverCall, known: Strategy | None, chunk_size: int | None
) -> tuple[Outcome, Strategy, Exception | None]:
    """Plays with vmap, or loop; the error is the reason for which vmap cannot trace the receiver.

    Whatever a failed attempt with vmap has changed is restored.
    """
    cause: Exception | None = None
    if known != "loop":
        before = None if known else Snapshot(call.agents, distribution.messages.device)
        try:
            outcome = play(distribution, call, "vmap", chunk_size, greedy=False)
            if known is None and holds_vmapped_tensor(call.agents, call.batch.aux_input):
                raise RuntimeError("it keeps a tensor that exists within torch.func.vmap alone")
        except (MemoryError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:  # whatever vmap cannot trace, or the receiver's own fault, which loop will raise
            if before:
                before.restore()
            cause = error
        else:
            return outcome, "vmap", None
    return play(distribution, call, "loop", chunk_size, greedy=False), "loop", cause


def _play_groups(
    distribution: SparseDistribution,
    call: ReceiverCall,
    groups: list[tuple[int, list[int]]],
    strategy: Strategy,
    chunk_size: int | None,
) -> Outcome:
    def play_group(messages: torch.Tensor, part: ReceiverCall) -> Outcome:
        return play_messages(messages, part, "loop" if len(messages) == 1 else strategy, chunk_size)

    return play_in_groups(play_group, distribution.messages, call, groups)


def _may_be_distinct(distribution: SparseDistribution, call: ReceiverCall, chunk_size: int | None) -> bool:
    if chunk_size is not None and not vmap_can_be_recomputed():
        return False
    if why_not_distinct(call) is not None:
        return False
    if not distribution.messages.is_floating_point() or call.vocab_size is not None:
        return True
    distinct, index = distinct_messages(distribution.messages, None)
    return len(distinct) <= _MOST_DISTINCT * index.numel()


@torch.no_grad()
def _agrees(
    outcome: Outcome, again: Callable[[], Outcome], distribution: SparseDistribution, call: ReceiverCall
) -> bool:
    """Whether playing the batch again in another way gives the same losses and metrics, to rounding.

    It does not if it changes an agent or an input. The second time leaves no trace in them, nor in the random number
    generators.
    """
    inputs = [value for value in vars(call.batch).values() if isinstance(value, dict)]
    before = [dict(value) for value in inputs]
    snapshot = Snapshot(call.agents, outcome.loss.device)
    try:
        snapshot.start_trial()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = again()
        leaves_no_trace = snapshot.is_unchanged() and all(
            now.keys() == kept.keys() and all(now[key] is kept[key] for key in kept)
            for now, kept in zip(inputs, before, strict=True)
        )
    except Exception:  # whatever the other way cannot play
        return False
    finally:
        snapshot.end_trials()
        for now, kept in zip(inputs, before, strict=True):
            now.clear()
            now.update(kept)
    return (
        leaves_no_trace
        and outcome.values.keys() == other.values.keys()
        and all(_are_close(value, other.values[name], distribution.mask) for name, value in outcome.values.items())
    )


def _are_close(values: torch.Tensor, others: torch.Tensor, mask: torch.Tensor) -> bool:
    """Whether values ``(K, B, ...)`` are the same in the support, to rounding."""
    if values.shape != others.shape:
        return False
    values, others = values[mask], others[mask]
    if not values.is_floating_point():
        return torch.equal(values, others)
    tolerance = min(_ROUNDING * torch.finfo(values.dtype).eps, _LARGEST_TOLERANCE)
    largest = torch.where(values.isfinite(), values, 0).abs().amax()
    return torch.allclose(values, others.to(values), tolerance, tolerance * float(largest), equal_nan=True)
