r"""Distributions over bit-vectors with given SparseMAP marginals, in closed form.

SparseMAP determines the marginals mu alone: every distribution over bit-vectors with the mean mu is a solution. Two of
them are offered here, with at most D + 1 terms.

- threshold: the message for t in [0, 1) has the bits with t < mu_i. The terms are nested sets.
- systematic: the mu_i are laid end to end on a line, and the message for u in [0, 1) has the bits whose stretch holds
  u plus an integer. Every message has floor or ceil of sum(mu) bits on.

In both, D numbers cut [0, 1] into gaps, the probabilities: the marginals, or the fractional parts of their running
sums. So one function and one gradient serve both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from egg_sparse.mappings.arrays import A, as_array, as_array_like, as_tensor, gather, namespace
from egg_sparse.mappings.marginals import marginals
from egg_sparse.mappings.order import order
from egg_sparse.mappings.scores import synchronize_finite

# The number of the messages' entries that are computed at once on the CPU.
_IN_CACHE = 2**20


def decompose(x: torch.Tensor, budget: int | None, systematic: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A distribution over bit-vectors with the SparseMAP marginals of scores.

    Args:
        x: scores, ``(B, D)``, in at least float32.
        budget: the largest number of bits that are on; None for any number, as it must be unless systematic.
        systematic: whether the decomposition is the systematic one; else it is by threshold.

    Returns:
        Probabilities ``(K, B)``, descending and differentiable, and bit-vectors ``(K, B, D)`` in the dtype of x.

    Raises:
        ValueError: scores that are not finite.
    """
    probs, messages = _Decomposition.apply(x, budget, systematic)
    return probs, messages


class _Decomposition(torch.autograd.Function):
    """One function for all its small steps, since autograd's records of them would take longer than they do."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, budget: int | None, systematic: bool) -> tuple[torch.Tensor, torch.Tensor]:
        mu, limited, sorted_bits, terms, probs, messages = _terms(as_array(x), budget, systematic)
        ctx.save_for_backward(*map(as_tensor, (mu, sorted_bits, terms)))
        ctx.limited, ctx.systematic = None if limited is None else as_tensor(limited), systematic
        ctx.mark_non_differentiable(messages)
        ctx.set_materialize_grads(False)  # a gradient of zeros for the messages would take longer than all the rest
        return as_tensor(probs).t(), messages

    @staticmethod
    def backward(ctx: Any, grad_probs: torch.Tensor | None, _: None) -> tuple[torch.Tensor | None, None, None]:
        if grad_probs is None:
            return None, None, None
        # in PyTorch if a graph is created: the gradient can be differentiated again
        convert = as_tensor if torch.is_grad_enabled() else as_array
        mu, sorted_bits, terms = map(convert, ctx.saved_tensors)
        limited = None if ctx.limited is None else convert(ctx.limited)
        grad_x = _grad_scores(convert(grad_probs.t()), mu, limited, sorted_bits, terms, ctx.systematic)
        return as_tensor(grad_x), None, None


def _terms(x: A, budget: int | None, systematic: bool) -> tuple[A, A | None, A, A, A, torch.Tensor]:
    """The marginals (B, D), for which examples the budget limits them (B,), the bits in the order of the numbers that
    cut [0, 1] (B, D), and of the K terms the gaps (B, K), the probabilities (B, K) and the messages (K, B, D).
    """
    if isinstance(x, np.ndarray):
        synchronize_finite(as_tensor(x))  # before NumPy warns
    mu, limited = marginals(x, budget)
    cuts, whole = _laid_end_to_end(mu, limited, budget) if systematic else (mu, None)
    sorted_bits, terms, probs, starts = cut(cuts, x)
    messages = _messages(
        as_tensor(starts).t().unsqueeze(-1), as_tensor(cuts), None if whole is None else as_tensor(whole)
    )
    return mu, limited, sorted_bits, terms, probs, messages


def cut(cuts: A, x: A, least: float = 0.0) -> tuple[A, A, A, A]:
    """Cuts [0, 1] into gaps, and sorts the gaps.

    Args:
        cuts: where to cut, ``(B, D)``, in [0, 1].
        x: the scores, which are checked to be finite when the number of gaps is transferred to the host.
        least: the width up to which a gap counts as empty.

    Returns:
        The positions of the cuts in ascending order, ``(B, D)``; of the K widest gaps, in descending order, the
        positions, the widths and the starts, ``(B, K)``, where empty ones have the width 0 and repeat the first start.
    """
    xp = namespace(cuts)
    batch, n_cuts = cuts.shape
    edges = xp.zeros((batch, n_cuts + 2), cuts)
    edges[:, -1] = 1
    by_place = order(cuts)
    edges[:, 1:-1] = gather(cuts, by_place)
    gaps = edges[:, 1:] - edges[:, :-1]
    if least:
        gaps *= gaps > least

    rows = 1
    if batch:
        largest_support = (gaps > 0).sum(1).max()
        on_host = isinstance(cuts, np.ndarray)
        rows = int(largest_support) if on_host else synchronize_finite(as_tensor(x), largest_support)
    by_width = order(gaps, rows, -1)
    widths, starts = gather(gaps, by_width), gather(edges, by_width)
    return by_place, by_width, widths, xp.where(widths > 0, starts, starts[:, :1])


def grad_cuts(grad_widths: A, by_place: A, by_width: A) -> A:
    """The gradient of the cuts (B, D), given that of the widths (B, K) and the positions that :func:`cut` returns."""
    xp = namespace(grad_widths)
    rows = xp.arange(len(by_place), by_place)[:, None]
    grad_gaps = xp.zeros((by_place.shape[0], by_place.shape[1] + 1), grad_widths)
    grad_gaps[rows, by_width] = grad_widths
    grad = xp.zeros(tuple(by_place.shape), grad_widths)
    grad[rows, by_place] = grad_gaps[:, :-1] - grad_gaps[:, 1:]
    return grad


def _grad_scores(grad_probs: A, mu: A, limited: A | None, sorted_bits: A, terms: A, systematic: bool) -> A:
    """The gradient of the scores (B, D), given that of the probabilities (B, K) and results of :func:`_terms`."""
    xp, grad = namespace(mu), grad_cuts(grad_probs, sorted_bits, terms)
    if systematic:
        grad = as_array_like(as_tensor(grad).flip(1).cumsum(1).flip(1), grad)
    between = (mu > 0) & (mu < 1)
    grad = grad * between
    if limited is not None:
        shared = grad.sum(1) / xp.astype(between.sum(1).clip(1), mu)
        grad = grad - between * (shared * limited)[:, None]
    return grad / 2


def _laid_end_to_end(mu: A, limited: A | None, budget: int | None) -> tuple[A, A]:
    """The fractional parts of the running sums of mu (B, D), and the whole number of each bit (B, D).

    Bit i is on for u if its stretch [end_{i-1}, end_i) holds u plus an integer: floor(end_i) + [u < fraction(end_i)]
    counts the integers n with u + n < end_i, and the bit is the difference of two such counts, 0 or 1.
    """
    xp = namespace(mu)
    on = xp.floor(mu)  # kept out of the sums, whose rounding could switch these bits off
    ends = as_array_like(as_tensor(mu - on).cumsum(1, dtype=torch.float64), mu)
    if limited is not None and budget is not None:
        # a sum that is whole but for rounding would make a term of probability 0, and a last one that breaks the budget
        nearest = ends.round()
        ends = xp.where(abs(ends - nearest) <= 8 * torch.finfo(as_tensor(mu).dtype).eps, nearest, ends)
        total = xp.astype(budget - on.sum(1)[:, None], ends)
        ends = xp.where(limited[:, None], xp.minimum(ends, total), ends)
    whole = xp.floor(ends)
    fractions = xp.astype(ends - whole, mu)
    on += whole
    on[:, 1:] -= whole[:, :-1]
    return fractions, on


def _messages(starts: torch.Tensor, cuts: torch.Tensor, whole: torch.Tensor | None) -> torch.Tensor:
    """The bit-vectors (K, B, D) for the starts (K, B, 1) of the terms, given the cut (B, D) of each bit.

    A bit is on where start < cut, and with whole numbers, by the difference of its count and the previous bit's.
    """
    batch, n_bits = cuts.shape
    # the comparison writes numbers: a conversion of bool would be slow
    if whole is None:
        return torch.lt(starts, cuts, out=cuts.new_empty(len(starts), batch, n_bits))
    rows = max(1, _IN_CACHE // max(1, cuts.numel()))
    if len(starts) > rows and cuts.device.type == "cpu":
        messages = cuts.new_empty(len(starts), batch, n_bits)
        for part, starts_of_part in zip(messages.split(rows), starts.split(rows), strict=True):
            part.copy_(_messages(starts_of_part, cuts, whole))
        return messages
    counts = torch.empty(len(starts), batch, n_bits + 1, dtype=torch.int8, device=cuts.device)
    torch.lt(starts, F.pad(cuts, (1, 0)), out=counts)
    return (counts[:, :, 1:] - counts[:, :, :-1]).add_(whole.to(torch.int8)).to(cuts.dtype)
