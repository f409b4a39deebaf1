"""Batching rules: torch.func.vmap over messages, without a copy per message of what does not depend on them.

vmap's own rule for a product repeats the operand that does not depend on the message once per message. In

.. math:: y_{kbi} = \\sum_j A_{bij}\\, m_{kbj}

the messages k are columns of one matrix product per example b instead, and A is read once. The same holds for
distances, cosine similarities and attention. Other operations, such as recurrent cells, read a message as one more
example. :class:`BatchingRules` puts these rules in place of vmap's own within a context, and changes nothing outside.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch._C import _functorch as functorch  # private, since torch has no public way to unwrap a mapped tensor
from torch._functorch.pyfunctorch import VmapInterpreter, retrieve_current_functorch_interpreter
from torch.overrides import TorchFunctionMode


class BatchingRules(TorchFunctionMode):
    """A context within a function that torch.func.vmap maps over messages, in which this module's rules hold.

    Results and gradients of every order are those of vmap's own rules, to rounding.

    Example:
        >>> candidates, messages = torch.randn(8, 16, 5), torch.randn(30, 8, 5)
        >>> def scores(message):
        ...     with BatchingRules():
        ...         return torch.bmm(candidates, message.unsqueeze(-1)).squeeze(-1)
        >>> torch.func.vmap(scores)(messages).shape
        torch.Size([30, 8, 16])
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = _RULES.get(func)
        if rule is not None:
            result = rule(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return func(*args, **kwargs)


def unmapped(function: Callable, *operands: torch.Tensor) -> Any:
    """``function(K, *operands)`` of vmapped operands as tensors ``(K, ...)``; its results are mapped again.

    Args:
        function: a function of the number of messages and the operands; one that is not mapped has no axis for it. All
            that it returns has the messages on axis 0.
        operands: the operands, at least one of which is mapped.
    """
    interpreter = retrieve_current_functorch_interpreter()
    assert isinstance(interpreter, VmapInterpreter)  # since a mapped tensor has its level
    level = interpreter.level()
    plain = []
    for operand in operands:
        value, axis = functorch._unwrap_batched(operand, level)
        plain.append(value if axis is None else value.movedim(axis, 0))
    with interpreter.lower():
        result = function(interpreter.batch_size(), *plain)
    if isinstance(result, tuple):
        return tuple(None if part is None else functorch._add_batch_dim(part, 0, level) for part in result)
    return functorch._add_batch_dim(result, 0, level)


def is_mapped(value: Any) -> bool:
    """Whether a value is a tensor that the innermost torch.func.vmap maps over."""
    return (
        isinstance(value, torch.Tensor)
        and functorch.is_batchedtensor(value)
        and functorch.maybe_get_level(value) == functorch.maybe_current_level()
    )


def _any_mapped(*values: Any) -> bool:
    return any(_any_mapped(*value) if isinstance(value, (list, tuple)) else is_mapped(value) for value in values)


def _into_axis(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """The tensor ``(K, ...)`` with its first axis merged into ``axis`` of the others, before that axis."""
    axis %= tensor.dim() - 1
    return tensor.movedim(0, axis).flatten(axis, axis + 1)


def _out_of_axis(tensor: torch.Tensor, axis: int, n_messages: int) -> torch.Tensor:
    """The inverse of :func:`_into_axis`."""
    axis %= tensor.dim()
    return tensor.unflatten(axis, (n_messages, tensor.shape[axis] // n_messages)).movedim(axis, 0)


def _folded(function: Callable, operands: Sequence[torch.Tensor], axes: Sequence[int], *out_axes: int) -> Any:
    """``function(*operands)`` of vmapped operands, called once with the messages merged into an axis.

    Args:
        function: a function that treats the entries of that axis independently.
        operands: the operands; one that does not depend on the message is repeated.
        axes: the axis of every operand.
        out_axes: the axis of every output; one alone for a function that returns a tensor.
    """
    mapped = [is_mapped(operand) for operand in operands]

    def of_all(n_messages: int, *values: torch.Tensor) -> Any:
        merged = [
            _into_axis(value if varies else value.expand(n_messages, *value.shape), axis)
            for value, varies, axis in zip(values, mapped, axes, strict=True)
        ]
        result = function(*merged)
        if isinstance(result, torch.Tensor):
            return _out_of_axis(result, out_axes[0], n_messages)
        return tuple(
            None if part is None else _out_of_axis(part, axis, n_messages)
            for part, axis in zip(result, out_axes, strict=True)
        )

    return unmapped(of_all, *operands)


def contracted(equation: str, *operands: torch.Tensor) -> Any:
    """An einsum of vmapped and other operands, in which the messages are one more index of the former."""
    inputs, output = equation.split("->")
    unused = next((letter for letter in string.ascii_letters if letter not in equation), None)
    mapped = [is_mapped(operand) for operand in operands]
    if unused is None or not any(mapped) or all(mapped):
        return NotImplemented
    terms = ",".join(unused * varies + term for term, varies in zip(inputs.split(","), mapped, strict=True))
    with_messages = f"{terms}->{unused}{output}"
    return unmapped(lambda _, *values: torch.einsum(with_messages, *values), *operands)


# --- rules, whose parameters are named as torch names them, since an operation may be called by keywords


def _matmul(input: Any, other: Any, *, out: Any = None) -> Any:
    a, b = input, other
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)) or out is not None:
        return NotImplemented
    if min(a.dim(), b.dim()) == 0 or max(a.dim(), b.dim()) < 3:  # torch's rule for vectors and matrices is good
        return NotImplemented
    if a.shape[-1] != b.shape[-min(2, b.dim())]:
        return NotImplemented
    rows, columns = "i" * (a.dim() > 1), "l" * (b.dim() > 1)
    left, right = "..." * (a.dim() > 2), "..." * (b.dim() > 2)
    return contracted(f"{left}{rows}j,{right}j{columns}->...{rows}{columns}", a, b)


def _bmm(input: Any, mat2: Any, *others: Any, out: Any = None, **options: Any) -> Any:
    fits = isinstance(mat2, torch.Tensor) and input.dim() == mat2.dim() == 3 and input.shape[0] == mat2.shape[0]
    return NotImplemented if others or options or not fits else _matmul(input, mat2, out=out)


def _baddbmm(
    input: Any,
    batch1: Any,
    batch2: Any,
    *others: Any,
    beta: float = 1,
    alpha: float = 1,
    out: Any = None,
    **options: Any,
) -> Any:
    product = NotImplemented
    if not others and not options and input.dtype == batch1.dtype:
        product = _bmm(batch1, batch2, out=out)
    if product is NotImplemented or not _broadcasts_to(input.shape, product.shape):
        return NotImplemented
    scaled = product if alpha == 1 else alpha * product
    return scaled if beta == 0 else scaled + beta * input.to(scaled.dtype)


def _broadcasts_to(shape: torch.Size, target: torch.Size) -> bool:
    return len(shape) <= len(target) and all(
        size in (1, wanted) for size, wanted in zip(reversed(shape), reversed(target), strict=False)
    )


def _einsum(*args: Any) -> Any:
    if not isinstance(args[0], str):  # einsum(operand, indices, ..., output indices)
        terms = ["".join("..." if i is Ellipsis else _LETTERS[i] for i in indices) for indices in args[1::2]]
        operands: Any = args[0 : 2 * len(terms) : 2]
        if len(args) % 2:
            output = "".join("..." if i is Ellipsis else _LETTERS[i] for i in args[-1])
            return contracted(f"{','.join(terms)}->{output}", *operands)
        equation = ",".join(terms)
    else:
        equation = args[0].replace(" ", "")
        operands = args[1] if len(args) == 2 and isinstance(args[1], (list, tuple)) else args[1:]
    if equation.count(",") + 1 != len(operands):
        return NotImplemented
    if "->" not in equation:
        letters = equation.replace("...", "").replace(",", "")
        once = "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
        equation += "->" + "..." * ("..." in equation) + once
    return contracted(equation, *operands)


_LETTERS = string.ascii_uppercase + string.ascii_lowercase  # torch.einsum's own order of indices


def _bilinear(
    input1: torch.Tensor, input2: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> Any:
    a, b = input1, input2
    if _any_mapped(weight, bias) or not _any_mapped(a, b) or not a.dim() == b.dim() > 1 or a.shape[:-1] != b.shape[:-1]:
        return NotImplemented
    if (a.shape[-1], b.shape[-1]) != weight.shape[1:]:
        return NotImplemented
    if is_mapped(a) and is_mapped(b):
        return _folded(lambda a, b: F.bilinear(a, b, weight, bias), (a, b), (0, 0), 0)
    with _at_full_precision(a):
        a, b, weight = _promoted(a, b, weight)
        if is_mapped(a):
            product = contracted("...i,...oi->...o", a, torch.einsum("...j,oij->...oi", b, weight))
        else:
            product = contracted("...oj,...j->...o", torch.einsum("...i,oij->...oj", a, weight), b)
        return product if bias is None else product + bias


def _cosine_similarity(x1: torch.Tensor, x2: torch.Tensor, dim: int = 1, eps: float = 1e-8) -> Any:
    if is_mapped(x1) == is_mapped(x2):
        return NotImplemented
    from_end = dim if dim < 0 else dim - max(x1.dim(), x2.dim())
    if -from_end > min(x1.dim(), x2.dim()) or x1.shape[from_end] != x2.shape[from_end]:
        return NotImplemented
    if not (x1.is_floating_point() and x2.is_floating_point()):
        return NotImplemented
    with _at_full_precision(x1):
        unit = [
            (x / torch.linalg.vector_norm(x, dim=from_end, keepdim=True).clamp(min=eps)).movedim(from_end, -1)
            for x in _promoted(x1, x2)
        ]
        return contracted("...j,...j->...", *unit)


def _at_full_precision(operand: torch.Tensor) -> torch.autocast:
    return torch.autocast(operand.device.type, enabled=False)


def _promoted(*operands: torch.Tensor) -> list[torch.Tensor]:
    """The operands, of the widest type among them."""
    dtype = operands[0].dtype
    for operand in operands[1:]:
        dtype = torch.promote_types(dtype, operand.dtype)
    return [operand.to(dtype) for operand in operands]


_MM_ABOVE = 25  # the number of points above which torch.cdist uses a matrix product, by default


def _cdist(
    x1: torch.Tensor,
    x2: torch.Tensor,
    p: float = 2.0,
    compute_mode: str = "use_mm_for_euclid_dist_if_necessary",
) -> Any:
    if is_mapped(x1) == is_mapped(x2) or min(x1.dim(), x2.dim()) < 2:
        return NotImplemented
    if compute_mode == "use_mm_for_euclid_dist_if_necessary":
        is_large = max(x1.shape[-2], x2.shape[-2]) > _MM_ABOVE
        compute_mode = "use_mm_for_euclid_dist" if is_large else "donot_use_mm_for_euclid_dist"
    if is_mapped(x1):
        return _folded(lambda x1: torch.cdist(x1, x2, p, compute_mode), [x1], [-2], -2)
    return _folded(lambda x2: torch.cdist(x1, x2, p, compute_mode), [x2], [-2], -1)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Any:
    if not _any_mapped(query, key, value) or is_mapped(attn_mask):
        return NotImplemented
    if not _any_mapped(key, value) and not is_causal:

        def attend(query: torch.Tensor) -> torch.Tensor:
            mask = _mask_of_queries(attn_mask, query.shape[-2])
            return F.scaled_dot_product_attention(query, key, value, mask, dropout_p, **options)

        return _folded(attend, [query], [-2], -2)
    if query.dim() < 3 or not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        return NotImplemented
    if attn_mask is not None and attn_mask.dim() > 2:
        return NotImplemented

    def attend_all(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **options)

    return _folded(attend_all, (query, key, value), [0, 0, 0], 0)


def _mask_of_queries(mask: torch.Tensor | None, n_queries: int) -> torch.Tensor | None:
    """A mask ``(..., L, S)`` for queries that are repeated, as ``(..., n_queries, S)``."""
    if mask is None or mask.dim() < 2 or mask.shape[-2] == n_queries:
        return mask
    return torch.cat([mask] * (n_queries // mask.shape[-2]), -2)


def _multi_head_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **options: Any
) -> Any:
    mask, padding = (options.pop(name, None) for name in ("attn_mask", "key_padding_mask"))
    if not _any_mapped(query, key, value) or _any_mapped(mask, padding, args, list(options.values())):
        return NotImplemented
    if len(args) > 11:  # masks that are given by position
        return NotImplemented

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, padding: Any, mask: Any) -> Any:
        masks = {"attn_mask": mask, "key_padding_mask": padding}
        return F.multi_head_attention_forward(query, key, value, *args, **{**options, **masks})

    if not _any_mapped(key, value) and not options.get("is_causal"):
        return _folded(
            lambda query: attend(query, key, value, padding, _mask_of_queries(mask, query.shape[0])),
            [query],
            [0],
            0,
            -2,
        )
    if query.dim() != 3 or (mask is not None and mask.dim() > 2):
        return NotImplemented
    if padding is not None:
        return _folded(
            lambda q, k, v, padding: attend(q, k, v, padding, mask), (query, key, value, padding), [1, 1, 1, 0], 1, 0
        )
    if query is key is value:  # which takes one projection in place of three
        return _folded(lambda x: attend(x, x, x, None, mask), [query], [1], 1, 0)
    return _folded(lambda q, k, v: attend(q, k, v, None, mask), (query, key, value), [1, 1, 1], 1, 0)


def _index_select(input: torch.Tensor, dim: int, index: torch.Tensor, *, out: Any = None) -> Any:
    if out is not None or is_mapped(input) or not is_mapped(index) or index.dim() != 1:
        return NotImplemented
    return _folded(lambda index: input.index_select(dim, index), [index], [0], dim)


def _gather(input: torch.Tensor, dim: int, index: torch.Tensor, *, out: Any = None, **options: Any) -> Any:
    if out is not None or is_mapped(input) or not is_mapped(index) or input.dim() != index.dim() or not index.dim():
        return NotImplemented
    return _folded(lambda index: input.gather(dim, index, **options), [index], [dim], dim)


def _group_norm(x: torch.Tensor, num_groups: int, *args: Any, **options: Any) -> Any:
    if not is_mapped(x) or _any_mapped(args, list(options.values())):
        return NotImplemented
    return _folded(lambda x: F.group_norm(x, num_groups, *args, **options), [x], [0], 0)


def _of_targets(loss: Callable) -> Callable:
    """The rule of a loss of class scores ``(B, C)`` and classes ``(B,)``, of which a message is one more example."""

    def rule(scores: torch.Tensor, target: torch.Tensor, weight: Any = None, *args: Any, **options: Any) -> Any:
        if args or options.get("reduction", "mean") != "none" or not is_mapped(scores) or is_mapped(weight):
            return NotImplemented
        if scores.dim() < 2 or not isinstance(target, torch.Tensor) or target.shape[:1] != scores.shape[:1]:
            return NotImplemented
        return _folded(lambda scores, target: loss(scores, target, weight, **options), (scores, target), [0, 0], 0)

    return rule


def _cell(cell: Callable) -> Callable:
    """The rule of a recurrent cell, of which a message is one more example."""

    def rule(input: torch.Tensor, hx: Any, *weights: Any, **by_name: Any) -> Any:
        states = hx if isinstance(hx, (tuple, list)) else (hx,)
        if by_name or not _any_mapped(input, states) or _any_mapped(weights) or input.dim() != 2:
            return NotImplemented

        def call(x: torch.Tensor, *states: torch.Tensor) -> Any:
            return cell(x, states if isinstance(hx, (tuple, list)) else states[0], *weights)

        operands = (input, *states)
        return _folded(call, operands, [0] * len(operands), *[0] * len(states))

    return rule


def _recurrent(network: Callable) -> Callable:
    """The rule of a recurrent network over sequences that are not packed, of which a message is one more example."""

    def rule(x: torch.Tensor, state: Any, weights: Any, *options: Any) -> Any:
        states = state if isinstance(state, (tuple, list)) else (state,)
        if isinstance(weights, torch.Tensor) or x.dim() != 3 or any(part.dim() != 3 for part in states):
            return NotImplemented
        if not _any_mapped(x, states) or _any_mapped(weights):
            return NotImplemented

        def call(x: torch.Tensor, *states: torch.Tensor) -> Any:
            parts = [part.contiguous() for part in states]
            return network(x.contiguous(), parts if isinstance(state, (tuple, list)) else parts[0], weights, *options)

        axis = 0 if options[-1] else 1
        return _folded(call, (x, *states), [axis, *[1] * len(states)], axis, *[1] * len(states))

    return rule


def requires_grad(tensor: torch.Tensor) -> Any:
    """The rule of ``tensor.requires_grad``, which torch.func.vmap makes False even where a gradient flows.

    A receiver that asks may hook into its backward pass, which vmap cannot trace, and which is then an error.
    """
    if not is_mapped(tensor):
        return NotImplemented
    while is_mapped(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor.requires_grad


_RULES: dict[Any, Callable] = {
    torch.Tensor.requires_grad.__get__: requires_grad,  # type: ignore[attr-defined]
    torch.matmul: _matmul,
    torch.linalg.matmul: _matmul,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.__matmul__: _matmul,
    torch.Tensor.__rmatmul__: lambda a, b: _matmul(b, a),
    torch.bmm: _bmm,
    torch.Tensor.bmm: _bmm,
    torch.baddbmm: _baddbmm,
    torch.Tensor.baddbmm: _baddbmm,
    torch.einsum: _einsum,
    F.bilinear: _bilinear,
    F.cosine_similarity: _cosine_similarity,
    torch.cdist: _cdist,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head_attention,
    torch.index_select: _index_select,
    torch.Tensor.index_select: _index_select,
    torch.gather: _gather,
    torch.Tensor.gather: _gather,
    F.group_norm: _group_norm,
    F.nll_loss: _of_targets(F.nll_loss),
    F.cross_entropy: _of_targets(F.cross_entropy),
    **{cell: _cell(cell) for cell in (torch.rnn_tanh_cell, torch.rnn_relu_cell, torch.gru_cell, torch.lstm_cell)},
    **{network: _recurrent(network) for network in (torch.rnn_tanh, torch.rnn_relu, torch.gru, torch.lstm)},
}
