"""Losses of a receiver's output that all examples share, computed without a copy of the output per example.

A receiver that reads the message alone has one output per message. The loss of message m for example b, such as

.. math:: \\ell_{mb} = -\\sum_j \\big( t_{bj} \\log o_{mj} + (1 - t_{bj}) \\log(1 - o_{mj}) \\big),

is then a sum of matrix products, in place of a number per message, example and pixel. A loss that is written for one
output per example gets a :class:`SharedOutput` ``(B, ...)``, which stands for B copies. Losses of
``torch.nn.functional`` of it become :class:`ElementwiseLoss`, which becomes a product when it is summed or averaged.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

from egg_sparse.games.batching_rules import BatchingRules, contracted, is_mapped, requires_grad, unmapped


class NeedsCopiesError(RuntimeError):
    """An operation needs the shared output once per example."""


class SharedOutputs(BatchingRules):
    """A context, within a function that torch.func.vmap maps over messages, for losses of a SharedOutput.

    The batching rules hold for all other tensors.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(kind, _Deferred) for kind in types):
            return func(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


class _Deferred(torch.Tensor):
    """A tensor whose entries are not computed, unless it has one per example alone.

    An operation that needs them, or writes to them, raises NeedsCopiesError.
    """

    @staticmethod
    def _rules() -> dict[Any, Callable]:
        """The operations that do not need all entries; a rule may return NotImplemented."""
        raise NotImplementedError

    def _computed(self) -> torch.Tensor:
        raise NotImplementedError

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if _writes_to_deferred(func, args, kwargs):
            raise NeedsCopiesError(f"{func} writes to an output")
        for value in args[:2]:
            rule = value._rules().get(func) if isinstance(value, _Deferred) else None
            result = rule(*args, **kwargs) if rule else NotImplemented
            if result is not NotImplemented:
                return result
        args, kwargs = pytree.tree_map_only(_Deferred, lambda value: value.computed(func), (list(args), kwargs))
        with BatchingRules():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore
        raise NeedsCopiesError(f"{func} needs an output per example")

    def computed(self, func: Any) -> torch.Tensor:
        """The tensor with all its entries, for an operation."""
        if self.dim() > 1:
            raise NeedsCopiesError(f"{getattr(func, '__name__', func)} needs an output per example")
        return self._computed()


def computed(value: torch.Tensor) -> torch.Tensor:
    """A tensor with all its entries."""
    return value.computed("a result") if isinstance(value, _Deferred) else value


def _writes_to_deferred(func: Any, args: Sequence[Any], options: dict[str, Any]) -> bool:
    """Whether a function, such as ``clamp_`` or ``__iadd__``, writes to a deferred tensor."""
    name = getattr(func, "__name__", "")
    in_place = name in _ASSIGNMENTS or (name.endswith("_") and not name.endswith("__")) or options.get("inplace")
    return isinstance(args[0] if in_place and args else options.get("out"), _Deferred)


class SharedOutput(_Deferred):
    """A tensor ``(B, ...)`` that is the same for all examples.

    Attributes:
        entries: the tensor ``(...)`` of one example, which torch.func.vmap maps over.
    """

    entries: torch.Tensor

    @staticmethod
    def of(entries: torch.Tensor, batch_size: int) -> SharedOutput:
        shape = (batch_size, *entries.shape)
        output = torch.Tensor._make_wrapper_subclass(SharedOutput, shape, dtype=entries.dtype, device=entries.device)
        output.entries = entries
        return output

    @staticmethod
    def _rules() -> dict[Any, Callable]:
        return _OF_OUTPUTS

    def _computed(self) -> torch.Tensor:
        return self.entries.expand(self.shape).clone()  # since the loss may write to it

    def with_entries(self, entries: torch.Tensor) -> SharedOutput:
        """Another output of the same examples."""
        return SharedOutput.of(entries, self.shape[0])


Term = tuple["torch.Tensor | None", "torch.Tensor | None"]


class ElementwiseLoss(_Deferred):
    r"""A loss :math:`\sum_i f_i(o_j)\, g_i(t_{bj})` per entry, ``(B, ...)``.

    Its sums have the loss's own type, whatever the type of the terms.

    Attributes:
        terms: f ``(...)`` and g ``(B, ...)`` of every i; None for 1.
        may_cancel: whether terms of a loss that is never negative may have a sum that rounding makes negative.
    """

    terms: list[Term]
    may_cancel: bool

    @staticmethod
    def of(terms: list[Term], shape: Sequence[int], dtype: torch.dtype, may_cancel: bool = False) -> ElementwiseLoss:
        device = next(part.device for term in terms for part in term if part is not None)
        loss = torch.Tensor._make_wrapper_subclass(ElementwiseLoss, shape, dtype=dtype, device=device)
        loss.terms, loss.may_cancel = terms, may_cancel
        return loss

    @staticmethod
    def _rules() -> dict[Any, Callable]:
        return _OF_LOSSES

    def _computed(self) -> torch.Tensor:
        total: Any = 0
        for f, g in self.terms:
            total = total + (g if f is None else f if g is None else f * g)
        return self._rounded(total, self.shape)

    def summed(self, axes: set[int]) -> Any:
        """The sum over axes; NotImplemented if the examples' axis is among them."""
        if 0 in axes or self.dim() > len(string.ascii_letters) - 1:
            return NotImplemented
        letters = string.ascii_letters[: self.dim()]
        kept = [axis for axis in range(self.dim()) if axis not in axes]
        equation = f"{letters[1:]},{letters}->{''.join(letters[axis] for axis in kept)}"
        total: Any = 0
        for f, g in self.terms:
            if f is None or g is None:
                of_entries = f is not None
                part: Any = f if of_entries else g
                if axes:
                    part = part.sum([axis - of_entries for axis in axes])
            else:
                part = contracted(equation, f, g)
                part = torch.einsum(equation, f, g) if part is NotImplemented else part
            total = total + part
        return self._rounded(total, [self.shape[axis] for axis in kept])

    def _rounded(self, total: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        if self.may_cancel:  # the gradient of a sum of 0 is 0, whatever a square root makes of it
            total = torch.where(total <= 0, 0, total)
        return total.to(self.dtype).expand(shape)


# --- rules of views, of outputs and of losses


def _new_shape(value: torch.Tensor, shape: Sequence[Any]) -> torch.Size | None:
    """The shape that ``view`` is given; None if its axis 0 is not that of the examples, or if it is given a type."""
    sizes = list(shape[0] if len(shape) == 1 and isinstance(shape[0], (list, tuple)) else shape)
    if not all(isinstance(size, int) for size in sizes):
        return None
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and known:
        sizes[sizes.index(-1)] = value.shape.numel() // known
    fits = bool(sizes) and sizes[0] == value.shape[0] and math.prod(sizes) == value.shape.numel()
    return torch.Size(sizes) if fits else None


def _view(value: Any, *shape: Any, **by_keyword: Any) -> Any:
    sizes = None if by_keyword else _new_shape(value, shape)
    if sizes is None:
        return NotImplemented
    if isinstance(value, SharedOutput):
        return value.with_entries(value.entries.reshape(sizes[1:]))
    terms = [
        (None if f is None else f.reshape(sizes[1:]), None if g is None else g.reshape(sizes)) for f, g in value.terms
    ]
    return ElementwiseLoss.of(terms, sizes, value.dtype, value.may_cancel)


def _flatten(value: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    start, end = start_dim % value.dim(), end_dim % value.dim()
    if start == 0:
        return NotImplemented
    return _view(value, *value.shape[:start], math.prod(value.shape[start : end + 1]), *value.shape[end + 1 :])


def _getitem(value: SharedOutput, index: Any) -> Any:
    first, *others = index if isinstance(index, tuple) and index else (index,)
    if isinstance(first, slice) and first == slice(None) and all(map(_is_basic, others)):
        return value.with_entries(value.entries[tuple(others)]) if others else value
    return NotImplemented


def _is_basic(index: Any) -> bool:
    """Whether an index is none of those that NumPy calls advanced, which may put their axes before the examples'."""
    return index is None or index is Ellipsis or (isinstance(index, (int, slice)) and not isinstance(index, bool))


def _entrywise(function: Callable) -> Callable:
    """The rule of a function of one tensor, entry by entry."""

    def rule(value: Any, *args: Any, **options: Any) -> Any:
        if any(isinstance(other, torch.Tensor) for other in (*args, *options.values())):
            return NotImplemented
        return value.with_entries(function(value.entries, *args, **options))

    return rule


def _within_examples(function: Callable) -> Callable:
    """The rule of a function of one tensor that combines entries along axes ``dim``, not that of the examples."""

    def rule(value: Any, dim: Any = None, *args: Any, **options: Any) -> Any:
        if isinstance(dim, int):
            dims, dim = {dim % value.dim()}, dim if dim < 0 else dim - 1
        elif isinstance(dim, (list, tuple)) and dim:
            dims, dim = {axis % value.dim() for axis in dim}, [axis if axis < 0 else axis - 1 for axis in dim]
        else:
            return NotImplemented
        if 0 in dims:
            return NotImplemented
        return value.with_entries(function(value.entries, dim, *args, **options))

    return rule


def _reduced(loss: Any, dim: Any = None, *others: Any, **options: Any) -> Any:
    if dim in (None, (), []) or any(others) or any(options.values()):
        return NotImplemented, 0
    axes = {axis % loss.dim() for axis in ((dim,) if isinstance(dim, int) else dim)}
    return loss.summed(axes), math.prod(loss.shape[axis] for axis in axes)


def _sum(loss: Any, *args: Any, **options: Any) -> Any:
    return _reduced(loss, *args, **options)[0]


def _mean(loss: Any, *args: Any, **options: Any) -> Any:
    total, count = _reduced(loss, *args, **options)
    return total if total is NotImplemented else total / count


# --- rules of the losses of torch.nn.functional


class _NegativeLogs(torch.autograd.Function):
    """-log p and -log(1 - p), at most 100, with the gradient that torch's binary cross-entropy has near 0 and 1."""

    @staticmethod
    def forward(ctx: Any, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(p)
        return p.log().neg_().clamp_(max=100), (1 - p).log_().neg_().clamp_(max=100)

    @staticmethod
    def backward(ctx: Any, of_log: torch.Tensor, of_complement: torch.Tensor) -> Any:
        (p,) = ctx.saved_tensors
        return (p * (of_log + of_complement) - of_log) / (p * (1 - p)).clamp(min=1e-12)


class _LogisticLosses(torch.autograd.Function):
    """log(1 + exp(-s)) and log(1 + exp(s)), for one logarithm."""

    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(scores)
        rest = scores.abs().neg_().exp_().log1p_()
        return scores.neg().clamp_(min=0).add_(rest), rest.add_(scores.clamp(min=0))

    @staticmethod
    def backward(ctx: Any, of_negative: torch.Tensor, of_positive: torch.Tensor) -> Any:
        (scores,) = ctx.saved_tensors
        return scores.sigmoid() * of_positive - scores.neg().sigmoid() * of_negative


def _is_target(target: Any, output: SharedOutput, options: dict[str, Any]) -> bool:
    """Whether entries are to be compared one by one with a target that does not depend on the message."""
    return (
        options.pop("reduction", "mean") == "none"
        and all(value is None for value in options.values())
        and isinstance(target, torch.Tensor)
        and not isinstance(target, _Deferred)
        and not is_mapped(target)
        and target.shape == output.shape
        and target.is_floating_point()
    )


def _binary_cross_entropy(input: Any, target: Any, weight: Any = None, *args: Any, **options: Any) -> Any:
    if args or not isinstance(input, SharedOutput) or not _is_target(target, input, {**options, "weight": weight}):
        return NotImplemented
    log_p, log_complement = unmapped(lambda _, p: _NegativeLogs.apply(p), input.entries)
    dtype = torch.promote_types(input.dtype, target.dtype)
    return ElementwiseLoss.of([(log_p, target), (log_complement, 1 - target)], input.shape, dtype)


def _with_logits(input: Any, target: Any, weight: Any = None, *args: Any, **options: Any) -> Any:
    if args or not isinstance(input, SharedOutput) or not _is_target(target, input, {**options, "weight": weight}):
        return NotImplemented
    of_1, of_0 = unmapped(lambda _, scores: _LogisticLosses.apply(scores), input.entries)
    dtype = torch.promote_types(input.dtype, target.dtype)
    return ElementwiseLoss.of([(of_1, target), (of_0, 1 - target)], input.shape, dtype)


def _squared_error(input: Any, target: Any, *args: Any, **options: Any) -> Any:
    output, other = (input, target) if isinstance(input, SharedOutput) else (target, input)
    if args or not isinstance(output, SharedOutput) or not _is_target(other, output, options):
        return NotImplemented
    # the squares nearly cancel: subtracting the mean target keeps them small, and double precision what is left of them
    wide = torch.promote_types(output.dtype, other.dtype)
    double = torch.float32 if other.device.type == "mps" else torch.float64  # which Apple's GPUs do not have
    o, t = output.entries.to(double), other.to(double)
    center = t.mean(0).detach().nan_to_num(0, 0, 0)
    o, t = o - center, t - center
    terms: list[Term] = [(o.square(), None), (-2 * o, t), (None, t.square())]
    return ElementwiseLoss.of(terms, output.shape, wide, may_cancel=True)


def _cross_entropy(input: Any, target: Any, *args: Any, **options: Any) -> Any:
    return NotImplemented if args else _of_classes(input, target, options, are_scores=True)


def _nll(input: Any, target: Any, *args: Any, **options: Any) -> Any:
    return NotImplemented if args else _of_classes(input, target, options, are_scores=False)


def _of_classes(input: Any, target: Any, options: dict[str, Any], are_scores: bool) -> Any:
    options = {name: value for name, value in options.items() if value is not None}
    ignored = options.pop("ignore_index", -100)
    if options.pop("reduction", "mean") != "none" or options.pop("label_smoothing", 0.0) or options:
        return NotImplemented
    if not isinstance(input, SharedOutput) or input.dim() != 2 or is_mapped(target) or isinstance(target, _Deferred):
        return NotImplemented
    if not isinstance(target, torch.Tensor) or target.shape != input.shape[:1] or target.dtype != torch.long:
        return NotImplemented
    log_probs = input.entries.log_softmax(0) if are_scores else input.entries
    is_ignored = target == ignored
    with BatchingRules():
        return torch.where(is_ignored, 0, -log_probs.index_select(0, torch.where(is_ignored, 0, target)))


_T = torch.Tensor

_METADATA: set[Any] = {
    *(_T.dim, _T.size, _T.numel, _T.is_floating_point, _T.__len__),
    *(getattr(_T, name).__get__ for name in ("shape", "ndim", "dtype", "device", "is_cuda", "layout")),
}

_ASSIGNMENTS = {
    *("__setitem__", "__set__", "__iadd__", "__isub__", "__imul__", "__idiv__", "__itruediv__", "__ifloordiv__"),
    *("__imod__", "__ipow__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__"),
}

_VIEWS: dict[Any, Callable] = {
    **dict.fromkeys((_T.view, _T.reshape, torch.reshape), _view),
    **dict.fromkeys((_T.flatten, torch.flatten), _flatten),
}

_ENTRYWISE: list[Any] = [
    *(torch.sigmoid, _T.sigmoid, torch.tanh, _T.tanh, torch.exp, _T.exp, torch.log, _T.log, torch.relu, _T.relu),
    *(F.relu, F.logsigmoid, F.softplus, torch.neg, _T.neg, torch.abs, _T.abs, torch.square, _T.square),
    *(torch.clamp, _T.clamp, torch.round, _T.round, _T.float, _T.double, _T.to, _T.detach, _T.contiguous),
    *(_T.__gt__, _T.__lt__, _T.__ge__, _T.__le__),
]
_WITHIN_EXAMPLES: list[Any] = [
    *(torch.softmax, _T.softmax, F.softmax, torch.log_softmax, _T.log_softmax, F.log_softmax),
    *(torch.argmax, _T.argmax, torch.sum, _T.sum, torch.mean, _T.mean, torch.logsumexp, _T.logsumexp),
]

_OF_OUTPUTS: dict[Any, Callable] = {
    **_VIEWS,
    _T.requires_grad.__get__: lambda value: requires_grad(value.entries),  # type: ignore[attr-defined]
    _T.__getitem__: _getitem,
    F.binary_cross_entropy: _binary_cross_entropy,
    F.binary_cross_entropy_with_logits: _with_logits,
    F.mse_loss: _squared_error,
    F.cross_entropy: _cross_entropy,
    F.nll_loss: _nll,
    **{function: _entrywise(function) for function in _ENTRYWISE},
    **{function: _within_examples(function) for function in _WITHIN_EXAMPLES},
}
_OF_LOSSES: dict[Any, Callable] = {
    **_VIEWS,
    **dict.fromkeys((torch.sum, _T.sum), _sum),
    **dict.fromkeys((torch.mean, _T.mean), _mean),
}
