"""The strategy ``distinct``: a receiver that reads the message alone is called once per message of the batch.

Its output depends on the message, and not on the pair of message and example, so that M distinct messages take M
receiver calls, however many examples share them. The loss alone is evaluated per pair: either for every message and
example, where :class:`~egg_sparse.games.shared_outputs.SharedOutputs` makes that cheap, or for the rows of the support.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from egg_sparse.distribution import SparseDistribution
from egg_sparse.games import checks
from egg_sparse.games.batching_rules import BatchingRules, is_mapped
from egg_sparse.games.calls import Outcome, ReceiverCall, check_chunks, in_chunks
from egg_sparse.games.shared_outputs import NeedsCopiesError, SharedOutput, SharedOutputs, computed

_MOST_MESSAGES_PER_ROW = 32  # a product over all examples is cheaper than so many rows of losses entry by entry
_LARGEST_INTEGER = 62  # bits


def distinct_messages(messages: torch.Tensor, vocab_size: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The distinct messages of a batch.

    On a GPU all symbols of a vocabulary that is not larger than the supports count as distinct messages, since finding
    those that occur would wait for the device.

    Args:
        messages: symbol ids ``(K, B)``, sequences of them ``(K, B, L)``, or one-hot symbols or other vectors
            ``(K, B, D)``.
        vocab_size: the number of symbols; None for vectors that are no symbols.

    Returns:
        The messages, ``(M,)``, ``(M, L)`` or ``(M, D)``, and the position among them of every message, ``(K, B)``.

    Example:
        >>> distinct_messages(torch.tensor([[7, 3, 7], [3, 5, 7]]), 10)
        (tensor([3, 5, 7]), tensor([[2, 0, 2],
                [0, 1, 2]]))
    """
    if messages.dim() == 3 and (vocab_size is None or not messages.is_floating_point()):
        return _distinct_vectors(messages)
    symbols = messages if messages.dim() == 2 else messages.argmax(-1)
    if vocab_size is None or vocab_size > symbols.numel():
        distinct, index = torch.unique(symbols, return_inverse=True)
    elif symbols.device.type != "cpu":
        distinct, index = torch.arange(vocab_size, device=symbols.device).to(symbols), symbols
    else:
        is_used = torch.zeros(vocab_size, dtype=torch.bool).index_fill_(0, symbols.flatten(), True)
        distinct, index = is_used.nonzero()[:, 0].to(symbols), (is_used.cumsum(0) - 1)[symbols]
    if messages.dim() == 3:
        distinct = F.one_hot(distinct, messages.shape[-1]).to(messages)
    return distinct, index


def _distinct_vectors(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    flat = vectors.flatten(0, 1)
    if flat.is_floating_point() and flat.shape[1] <= _LARGEST_INTEGER:
        powers = 2 ** torch.arange(flat.shape[1], device=flat.device)
        numbers, index = torch.unique(((flat != 0) * powers).sum(1), return_inverse=True)
        positions = torch.arange(len(flat), device=flat.device)
        distinct = flat[torch.empty_like(numbers).scatter_(0, index, positions)]
        if torch.equal(distinct[index], flat):
            return distinct, index.view(vectors.shape[:2])
    distinct, index = torch.unique(flat, dim=0, return_inverse=True)
    return distinct, index.view(vectors.shape[:2])


_HOOKS = "a receiver with backward hooks, which would get one gradient for several examples"


class _InputGuard(TorchFunctionMode):
    """A context in which no operation may read certain tensors, or hook into the backward pass.

    Args:
        inputs: the tensors, and dictionaries, lists and tuples of them.
    """

    def __init__(self, *inputs: Any) -> None:
        super().__init__()
        self.watched = {id(value) for value in _leaves(inputs) if isinstance(value, torch.Tensor)}

    def __torch_function__(
        self, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.register_hook:
            raise ValueError(f"strategy distinct cannot play {_HOOKS}; use vmap or loop")
        if self.watched and any(id(value) in self.watched for value in _leaves((args, kwargs))):
            raise ValueError("strategy distinct needs a receiver that reads the message alone; use vmap or loop")
        return func(*args, **kwargs)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = tuple(value.values())
    if not isinstance(value, (list, tuple)):
        yield value
        return
    for item in value:
        yield from _leaves(item)


def why_not_distinct(call: ReceiverCall) -> str | None:
    """The reason why a receiver cannot be called once per distinct message, as far as it is known without a call."""
    if call.acts:
        return "a receiver that acts, whose random action would be the same for several examples"
    if checks.batch_norms(call.receiver):
        return "a receiver with BatchNorm in training, which would normalize over other messages"
    modules = list(call.receiver.modules()) if isinstance(call.receiver, nn.Module) else []
    if any(module._backward_hooks or module._backward_pre_hooks for module in modules):
        return _HOOKS
    inputs = (call.batch.receiver_input, call.batch.aux_input)
    if not all(_can_be_watched(value) for value in inputs):
        return "inputs that are tensors, numbers, or dictionaries of these, so that the receiver's use of them is seen"
    has_inputs = any(isinstance(value, torch.Tensor) for value in _leaves(inputs))
    compiled: tuple[type, ...] = (torch.jit.ScriptModule,)
    if "torch._dynamo" in sys.modules:  # which takes a second to import, and without which nothing is compiled
        compiled += (torch._dynamo.OptimizedModule,)
    if has_inputs and any(isinstance(module, compiled) for module in modules):
        return "a compiled receiver, whose use of its inputs is not seen"
    return None


def _can_be_watched(value: Any, in_list: bool = False) -> bool:
    """Whether every entry of an input is a tensor, or, outside of lists, a number or text that all examples share."""
    if isinstance(value, dict):
        return all(_can_be_watched(item, in_list) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(_can_be_watched(item, True) for item in value)
    return isinstance(value, torch.Tensor) or value is None or (not in_list and isinstance(value, (int, float, str)))


def play_distinct(distribution: SparseDistribution, call: ReceiverCall, chunk_size: int | None) -> Outcome:
    """Plays the support of the distribution, with one receiver call per distinct message.

    Raises:
        ValueError: the receiver acts, normalizes over the batch, or reads more than the message, or its output has no
            messages on axis 0.
        RuntimeError: chunks cannot be recomputed by this version of torch.
    """
    reason = why_not_distinct(call)
    if reason is not None:
        needs = "needs" if reason.startswith("inputs") else "cannot play"
        raise ValueError(f"strategy distinct {needs} {reason}; use vmap or loop")
    check_chunks("distinct", chunk_size)
    messages = distribution.messages
    rows, batch_size = messages.shape[:2]
    distinct, index = distinct_messages(messages, call.vocab_size)
    outputs, structure = _outputs(distinct, call, None if chunk_size is None else chunk_size * batch_size)
    values = None
    if call.knows_products is not False and len(distinct) <= rows * _MOST_MESSAGES_PER_ROW:
        try:
            values = _judged_for_all(distinct, outputs, structure, call, chunk_size, batch_size)
        except NeedsCopiesError:
            call.knows_products = False
        else:
            # 0 times the infinite slope of a pair outside of the supports would be NaN
            if torch.is_grad_enabled() and not torch.isfinite(values["loss"]).all():
                call.knows_products, values = False, None
        if values is not None:
            examples = torch.arange(batch_size, device=index.device)
            values = {name: value[index, examples] for name, value in values.items()}
    if values is None:
        values = _judged_per_row(messages, index, outputs, structure, call, chunk_size)
    first = None
    if call.keep_output and len(outputs) == 1 and structure.is_leaf():
        first = outputs[0].index_select(0, index[0])
    values.pop("receiver_output", None)
    return Outcome(values, first, distribution.support_size)


def _outputs(
    distinct: torch.Tensor, call: ReceiverCall, at_a_time: int | None
) -> tuple[list[torch.Tensor], pytree.TreeSpec]:
    """The tensors ``(M, ...)`` of the receiver's output for the distinct messages, and their structure."""
    structures: list[pytree.TreeSpec] = []

    def receive(messages: torch.Tensor) -> dict[str, torch.Tensor]:
        with _InputGuard(call.batch.receiver_input, call.batch.aux_input):
            leaves, structure = pytree.tree_flatten(call.received(messages))
        structures.append(structure)
        for leaf in leaves:
            if not (isinstance(leaf, torch.Tensor) and leaf.dim() and len(leaf) == len(messages)):
                got = tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else type(leaf).__name__
                raise ValueError(
                    "strategy distinct needs a receiver whose output is tensors with one entry per message, "
                    f"got {got} for {len(messages)} messages; use vmap or loop"
                )
        return {str(i): leaf for i, leaf in enumerate(leaves)}

    outputs = in_chunks(receive, distinct, at_a_time)
    return list(outputs.values()), structures[0]


def _judged_for_all(
    distinct: torch.Tensor,
    outputs: list[torch.Tensor],
    structure: pytree.TreeSpec,
    call: ReceiverCall,
    chunk_size: int | None,
    batch_size: int,
) -> dict[str, torch.Tensor]:
    """What the loss says of every distinct message for every example, ``(M, B, ...)``."""

    def judge(position: torch.Tensor) -> dict[str, torch.Tensor]:
        def judge_one(message: torch.Tensor, *leaves: torch.Tensor) -> dict[str, torch.Tensor]:
            shared = [SharedOutput.of(leaf, batch_size) for leaf in leaves]
            with SharedOutputs():
                values = call.judged(
                    message.expand(batch_size, *message.shape), pytree.tree_unflatten(shared, structure)
                )
            values.pop("receiver_output", None)
            if any(is_mapped(values[f"aux/{name}"]) for name in call.batch_averages):
                raise NeedsCopiesError("an average over the batch is one over a row of the support")
            return {name: computed(value) for name, value in values.items()}

        parts = [distinct, *outputs]
        if len(position) < len(distinct):
            parts = [part[position] for part in parts]
        return torch.func.vmap(judge_one, randomness="different")(*parts)

    return in_chunks(judge, torch.arange(len(distinct), device=distinct.device), chunk_size)


def _judged_per_row(
    messages: torch.Tensor,
    index: torch.Tensor,
    outputs: list[torch.Tensor],
    structure: pytree.TreeSpec,
    call: ReceiverCall,
    chunk_size: int | None,
) -> dict[str, torch.Tensor]:
    """What the loss says of the rows of the support, ``(K, B, ...)``."""

    def judge(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        def judge_row(message: torch.Tensor, *leaves: torch.Tensor) -> dict[str, torch.Tensor]:
            with BatchingRules():
                values = call.judged(message, pytree.tree_unflatten(list(leaves), structure))
            values.pop("receiver_output", None)
            return values

        positions = index[rows]
        leaves = [
            output.index_select(0, positions.flatten()).unflatten(0, tuple(positions.shape)) for output in outputs
        ]
        return torch.func.vmap(judge_row, randomness="different")(messages[rows], *leaves)

    return in_chunks(judge, torch.arange(len(messages), device=messages.device), chunk_size)
