r"""Distributions over sequences of symbols: the tree of prefixes that a decoder gives non-zero probability.

A decoder scores the next symbol of a message, given the symbols before it. With a sparse mapping at every step most
continuations have probability 0, so that the messages of non-zero probability are the leaves of a small tree, and

.. math:: p(m) = \prod_{t} p(m_t \mid m_1, \ldots, m_{t - 1}),

up to and including the end symbol, 0. A message that has not ended after ``max_len`` symbols ends there. The tree is a
flat list of live prefixes, which all examples share: the decoder's states are gathered by parent, so that a step costs
what its live prefixes cost.

If a tree has more than ``max_support`` prefixes and messages, those are resampled after every step
(:mod:`egg_sparse.mappings.resampling`). The weight of a message is then its probability times a ratio whose mean over
draws is 1, for every message of the tree, so that expectations and their gradients stay unbiased.

Source: Fearnhead and Clifford, "On-line inference for hidden Markov models via particle filters" (JRSS B, 2003), for
the resampling.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch.utils import _pytree as pytree

from egg_sparse.distribution import SparseDistribution
from egg_sparse.mappings import categorical
from egg_sparse.mappings.resampling import draw_by_group
from egg_sparse.mappings.scores import NotFiniteError, check_scores, check_temperature, working_copy


class Decoder(Protocol):
    """What scores the symbols of a message, one after the other.

    A state is a tensor, or a tuple, list or dict of tensors, whose axis 0 has one entry per prefix.

    Example:
        >>> class Bigrams:
        ...     '''Scores that depend on the last symbol alone.'''
        ...     def begin(self, scores):
        ...         return scores[:, 0]
        ...     def step(self, state, symbols):
        ...         return (state if symbols is None else state.roll(1, 1)), state
    """

    def begin(self, *inputs: Any) -> Any:
        """The state of the empty prefix of every example."""

    def step(self, state: Any, symbols: torch.Tensor | None) -> tuple[torch.Tensor, Any]:
        """The scores ``(N, V)`` of the next symbol of N prefixes, and their next state.

        Args:
            state: the state of the prefixes without their last symbol.
            symbols: the last symbol ``(N,)`` of every prefix; None for empty prefixes.
        """


@dataclass
class _Prefixes:
    """A flat list of N prefixes or messages of all examples.

    Attributes:
        examples: their examples ``(N,)``.
        symbols: their symbols ``(N, max_len + 1)``, 0 where there is none yet.
        weights: their probabilities times their ratios ``(N,)``, differentiable.
        log_probs: the logarithms of their probabilities ``(N,)``, without gradient.
        log_ratios: the logarithms of their ratios ``(N,)``.
    """

    examples: torch.Tensor
    symbols: torch.Tensor
    weights: torch.Tensor
    log_probs: torch.Tensor
    log_ratios: torch.Tensor

    def at(self, index: torch.Tensor) -> _Prefixes:
        return _Prefixes(*(value[index] for value in vars(self).values()))

    def divided(self, inclusion: torch.Tensor | None) -> _Prefixes:
        """The same, drawn with probabilities ``(N,)``; None for 1."""
        if inclusion is None:
            return self
        inclusion = inclusion.to(self.weights.dtype)
        log_ratios = self.log_ratios - inclusion.log()
        return replace(self, weights=self.weights / inclusion, log_ratios=log_ratios)

    @staticmethod
    def joined(parts: list[_Prefixes]) -> _Prefixes:
        return _Prefixes(*(torch.cat(values) for values in zip(*(vars(part).values() for part in parts), strict=True)))


def sequence_distribution(
    decoder: Decoder,
    *inputs: Any,
    max_len: int,
    normalizer: str | float | torch.Tensor = "sparsemax",
    temperature: float | torch.Tensor = 1.0,
    max_support: int | None = None,
) -> SparseDistribution:
    r"""The distribution over the messages of a decoder,

    .. math:: p(m) = \prod_t \mathrm{normalizer}(x_t(m_{<t}) / T)_{m_t} .

    It is exact for every example whose tree of prefixes never has more than ``max_support`` live prefixes and messages,
    and an unbiased estimate for the others. There is one synchronization with the device per step, and one at the end.

    Args:
        decoder: the decoder, see :class:`Decoder`.
        inputs: the inputs of ``decoder.begin``.
        max_len: the largest number of symbols before the end symbol.
        normalizer: the mapping from scores to probabilities: "sparsemax", "entmax15", "softmax", or alpha > 1 for
            alpha-entmax, a number or a tensor of one element.
        temperature: the divisor T of the scores: a number above 0, or a tensor of one element, which is not checked.
        max_support: the largest number of messages per example; None for any number, which an undecided decoder makes
            as large as the vocabulary to the power of ``max_len``.

    Returns:
        SparseDistribution with messages ``(K, B, max_len + 1)`` long, 0 from the end symbol on, most probable first;
        ``lengths`` ``(K, B)``, which count the end symbol; and ``is_exact`` ``(B,)``, True where no message of non-zero
        probability was dropped. ``ratios`` are None if that is so in the whole batch (on a GPU: if ``max_support`` is
        None). The probabilities of bounded examples do not sum to 1, their weights do.

    Raises:
        TypeError: an argument of another type, or scores that are no floating-point tensor.
        ValueError: an argument that is not as described, scores of another shape than ``(N, V)``, NaN or infinite, or a
            state whose tensors do not have one entry per prefix.

    Example:
        >>> class Constant:
        ...     def begin(self, scores):
        ...         return scores
        ...     def step(self, state, symbols):
        ...         return state, state
        >>> d = sequence_distribution(Constant(), torch.tensor([[0.25, 0.75, -1.0]]), max_len=2)
        >>> d.messages[:, 0].tolist(), d.lengths[:, 0].tolist(), d.probs[:, 0].tolist()
        ([[1, 1, 0], [0, 0, 0], [1, 0, 0]], [3, 1, 2], [0.5625, 0.25, 0.1875])
    """
    alpha = _checked_options(max_len, normalizer, temperature, max_support)
    state = decoder.begin(*inputs)
    batch, device = _size_and_device(state)
    if batch == 0:
        return _empty(decoder, state, max_len)
    live: _Prefixes | None = None
    ended: list[_Prefixes] = []
    is_exact = torch.ones(batch, dtype=torch.bool, device=device)
    is_bounded = False
    not_finite = torch.zeros((), dtype=torch.long, device=device)
    vocab_size = 0
    for step in range(max_len):
        n = batch if live is None else len(live.examples)
        scores, state = decoder.step(state, None if live is None else live.symbols[:, step - 1])
        vocab_size = _checked_vocabulary(scores, n, vocab_size)
        scores, finite = working_copy(scores)
        not_finite = not_finite + (~finite).sum()
        probs = categorical.probabilities(scores, alpha, temperature)
        live = live or _empty_prefixes(batch, max_len, probs)
        parents, chosen = _pairs(probs)
        with torch.no_grad():
            weights = torch.cat((*(part.weights for part in ended), live.weights[parents] * probs[parents, chosen]))
            examples = torch.cat((*(part.examples for part in ended), live.examples[parents]))
            n_ended = len(weights) - len(parents)
            is_drawn, inclusion = weights > 0, None
            if max_support is not None and _may_exceed(examples, is_drawn, batch, max_support):
                is_drawn, inclusion, fits = draw_by_group(weights, examples, batch, max_support)
                is_exact, is_bounded = is_exact & fits, True
            ends = (chosen == 0) | (step + 1 == max_len)
            is_grown = is_drawn[n_ended:]
            before, ending, going_on = _positions(is_drawn[:n_ended], is_grown & ends, is_grown & ~ends)
        grown = partial(_grown, live, probs, parents, chosen, None if inclusion is None else inclusion[n_ended:], step)
        still = [part.at(before).divided(inclusion if inclusion is None else inclusion[before]) for part in ended]
        ended = [_Prefixes.joined([*still, grown(ending)])]
        if not len(going_on):
            break
        live = grown(going_on)
        state = pytree.tree_map(partial(_of_prefixes, n=n, index=parents[going_on]), state)
    return _padded(ended[0], batch, vocab_size, is_exact, is_bounded, not_finite, _is_bad(alpha, is_exact))


@dataclass(frozen=True)
class GreedySequence:
    """The most probable symbol at every step, as EGG's senders of several symbols return it in evaluation.

    Attributes:
        message: the symbols ``(B, max_len + 1)``, 0 from the end symbol on.
        log_prob: their log-probabilities in nats ``(B, max_len + 1)``, 0 after the end symbol.
        entropy: the entropies of their steps in nats ``(B, max_len + 1)``, 0 after the end symbol.
    """

    message: torch.Tensor
    log_prob: torch.Tensor
    entropy: torch.Tensor


def greedy_sequence(
    decoder: Decoder,
    *inputs: Any,
    max_len: int,
    normalizer: str | float | torch.Tensor = "sparsemax",
    temperature: float | torch.Tensor = 1.0,
) -> GreedySequence:
    """The message whose every symbol is the most probable one, which need not be the most probable message.

    The arguments and errors are those of :func:`sequence_distribution`.

    Example:
        >>> class Constant:
        ...     def begin(self, scores):
        ...         return scores
        ...     def step(self, state, symbols):
        ...         return state, state
        >>> greedy_sequence(Constant(), torch.tensor([[0.25, 0.75, -1.0], [2.0, 0.0, 0.0]]), max_len=2).message.tolist()
        [[1, 1, 0], [0, 0, 0]]
    """
    alpha = _checked_options(max_len, normalizer, temperature, None)
    state = decoder.begin(*inputs)
    batch, device = _size_and_device(state)
    symbols: list[torch.Tensor] = []
    log_probs, entropies = [], []
    is_live = torch.ones(batch, dtype=torch.bool, device=device)
    not_finite = torch.zeros((), dtype=torch.long, device=device)
    vocab_size = 0
    for step in range(max_len):
        scores, state = decoder.step(state, symbols[-1] if step else None)
        vocab_size = _checked_vocabulary(scores, batch, vocab_size)
        scores, finite = working_copy(scores)
        not_finite = not_finite + (is_live[:, None] & ~finite).sum()
        probs = categorical.probabilities(scores, alpha, temperature)
        best = torch.where(is_live, scores.detach().argmax(1), 0)
        logs = torch.where(probs > 0, probs, 1).log()
        symbols.append(best)
        log_probs.append(torch.where(is_live, logs.gather(1, best[:, None])[:, 0], 0))
        entropies.append(torch.where(is_live, -(probs * logs).sum(1), 0))
        is_live = is_live & (best != 0)
    _check(*torch.stack((not_finite, _is_bad(alpha, is_live).long())).tolist())
    end = torch.zeros_like(symbols[0]), torch.zeros_like(log_probs[0])
    return GreedySequence(
        torch.stack((*symbols, end[0]), 1), torch.stack((*log_probs, end[1]), 1), torch.stack((*entropies, end[1]), 1)
    )


def _checked_options(max_len: Any, normalizer: Any, temperature: Any, max_support: Any) -> float | torch.Tensor:
    """The alpha of the normalizer."""
    for name, value in (("max_len", max_len), ("max_support", max_support)):
        if value is None and name == "max_support":
            continue
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not isinstance(temperature, torch.Tensor):
        check_temperature(temperature)
    return categorical.checked_alpha(normalizer)


def _size_and_device(state: Any) -> tuple[int, torch.device]:
    """The number of prefixes that a state is of, and its device."""
    tensors = [leaf for leaf in pytree.tree_leaves(state) if isinstance(leaf, torch.Tensor)]
    if not tensors or tensors[0].dim() == 0:
        raise ValueError("the decoder's state must hold a tensor with the examples on axis 0")
    return len(tensors[0]), tensors[0].device


def _of_prefixes(value: Any, n: int, index: torch.Tensor) -> torch.Tensor:
    """The entries of a part of the decoder's state, of n prefixes, at an index."""
    if not isinstance(value, torch.Tensor) or value.dim() == 0 or len(value) != n:
        got = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(f"the decoder's state must be of tensors with the {n} prefixes on axis 0, got {got}")
    return value[index]


def _checked_vocabulary(scores: torch.Tensor, n: int, vocab_size: int) -> int:
    check_scores(scores, "V symbols", "the decoder's scores")
    if len(scores) != n or (vocab_size and scores.shape[1] != vocab_size):
        raise ValueError(
            f"the decoder's scores must have shape {(n, vocab_size or scores.shape[1])}, got {tuple(scores.shape)}"
        )
    return scores.shape[1]


def _is_bad(alpha: float | torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Whether an alpha that is a tensor is not above 1, on the device of another tensor."""
    if not isinstance(alpha, torch.Tensor):
        return torch.zeros((), dtype=torch.bool, device=like.device)
    return ~(alpha.detach() > 1).all().to(like.device)


def _check(not_finite: int, is_bad_alpha: int) -> None:
    if is_bad_alpha:
        raise ValueError("normalizer, given as alpha, must be above 1")
    if not_finite:
        raise NotFiniteError(f"the decoder's scores must be finite: {not_finite} are NaN or infinite")


def _empty(decoder: Decoder, state: Any, max_len: int) -> SparseDistribution:
    """The distribution of a batch without examples."""
    scores, _ = decoder.step(state, None)
    messages = torch.zeros(1, 0, max_len + 1, dtype=torch.long, device=scores.device)
    distribution = SparseDistribution(
        messages, scores.sum(1)[None], scores.shape[1], validate_args=False, lengths=messages.sum(2)
    )
    distribution.is_exact = torch.ones(0, dtype=torch.bool, device=scores.device)
    return distribution


def _empty_prefixes(batch: int, max_len: int, like: torch.Tensor) -> _Prefixes:
    """The empty prefix of every example."""
    symbols = torch.zeros(batch, max_len + 1, dtype=torch.long, device=like.device)
    zeros = like.new_zeros(batch)
    return _Prefixes(torch.arange(batch, device=like.device), symbols, zeros + 1, zeros, zeros)


def _pairs(probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of a prefix and its next symbol: on the CPU those of non-zero probability, elsewhere all."""
    if probs.device.type == "cpu":
        return probs.detach().nonzero(as_tuple=True)  # type: ignore[return-value]
    pairs = torch.arange(probs.numel(), device=probs.device)
    return pairs // probs.shape[1], pairs % probs.shape[1]


def _grown(
    live: _Prefixes,
    probs: torch.Tensor,
    parents: torch.Tensor,
    chosen: torch.Tensor,
    inclusion: torch.Tensor | None,
    step: int,
    index: torch.Tensor,
) -> _Prefixes:
    """The prefixes that some pairs of a parent and a symbol make."""
    parents, chosen = parents[index], chosen[index]
    grown = live.at(parents)
    p = probs[parents, chosen]
    grown.symbols[:, step] = chosen
    grown.weights = grown.weights * p
    grown.log_probs = grown.log_probs + p.detach().log()
    return grown.divided(None if inclusion is None else inclusion[index])


def _may_exceed(examples: torch.Tensor, is_possible: torch.Tensor, batch: int, max_support: int) -> bool:
    """Whether an example may have more than ``max_support`` prefixes; on a GPU this is not read from the device."""
    if len(examples) <= max_support:
        return False
    if examples.device.type != "cpu":
        return True
    return int(torch.bincount(examples[is_possible], minlength=batch).max()) > max_support


def _positions(*masks: torch.Tensor) -> list[torch.Tensor]:
    """The positions at which each mask ``(N,)`` is True, with one synchronization for all of them."""
    if masks[0].device.type == "cpu":
        return [mask.nonzero()[:, 0] for mask in masks]
    running = [mask.long().cumsum(0) for mask in masks]
    counts = torch.stack([mask.sum() for mask in masks]).tolist()
    return [
        torch.searchsorted(counted, torch.arange(1, count + 1, device=counted.device))
        for counted, count in zip(running, counts, strict=True)
    ]


def _padded(
    messages: _Prefixes,
    batch: int,
    vocab_size: int,
    is_exact: torch.Tensor,
    is_bounded: bool,
    not_finite: torch.Tensor,
    bad_alpha: torch.Tensor,
) -> SparseDistribution:
    """The distribution of a flat list of messages."""
    order = messages.log_probs.argsort(descending=True, stable=True)
    order = order[messages.examples[order].argsort(stable=True)]
    sizes = torch.zeros_like(is_exact, dtype=torch.long).index_add(
        0, messages.examples, torch.ones_like(messages.examples)
    )
    bad, is_bad_alpha, rows = torch.stack((not_finite, bad_alpha.long(), sizes.max())).tolist()
    _check(bad, is_bad_alpha)
    row = torch.arange(rows, device=sizes.device)[:, None]
    inside = row < sizes
    index = order[torch.where(inside, row, 0) + sizes.cumsum(0) - sizes]
    symbols = messages.symbols[index]
    log_probs = torch.where(inside, messages.log_probs[index], 0)
    weights = torch.where(inside, messages.weights[index], 0)
    ratios = None
    probs = weights
    if is_bounded:
        ratios = torch.where(inside, messages.log_ratios[index], 0).exp()
        probs = weights / ratios
    distribution = SparseDistribution(
        symbols, probs, vocab_size, validate_args=False, lengths=(symbols != 0).sum(2) + 1
    )
    distribution.is_exact = is_exact
    if is_bounded:
        distribution.ratios, distribution._weights, distribution._log_probs = ratios, weights, log_probs
    return distribution
