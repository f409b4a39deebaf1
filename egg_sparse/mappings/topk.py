r"""The k best bit-vectors of D scored bits, and sparsemax over them.

A bit-vector z in {0, 1}^D has the score <x, z>. The best one is 1[x > 0]; any other flips some of its bits and costs
the sum of their |x|. Sort |x| in ascending order: a set of ranks S costs at least as much as another set T, whatever
the scores, if T has no more elements and its largest, second largest, ... ranks are not above those of S. S can only
be among the k cheapest if fewer than k other sets are certain to be at least as cheap. Those sets of ranks are a fixed
list (17 for k = 10, 474 for k = 100), so that one sort, one matrix product and one selection give the exact answer.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch

from egg_sparse.distribution import SparseDistribution
from egg_sparse.mappings.arrays import Array, as_tensor, cast, native, take, wide, zeros
from egg_sparse.mappings.order import order
from egg_sparse.mappings.scores import check_scores, message_type, probability_type, synchronise, synchronise_finite

#: The largest k.
MAX_K = 2**14
_LARGEST_TABLE = 2**22


@functools.lru_cache(maxsize=64)
def flip_candidates(k: int, n_bits: int) -> np.ndarray:
    """The sets of ranks that can be among the k cheapest: ``(C, L)`` ranks, each row descending, padded with zeros.

    Rank r, counted from 1, is that of the r-th smallest |x|. The first row is the empty set; the order, that of ties,
    is by the sum of the ranks, then lexicographically by the ranks in descending order.

    Example:
        >>> flip_candidates(4, 8).tolist()
        [[0, 0], [1, 0], [2, 0], [2, 1], [3, 0]]
        >>> [len(flip_candidates(k, k)) for k in (1, 10, 32, 100, 10_000)]
        [1, 17, 95, 474, 278140]
    """
    n_ranks = min(k - 1, n_bits)
    width = math.isqrt(2 * k) + 2  # sets with ranks above width - 2 cannot get a larger one
    # Larger ranks are added to all sets of a size at once. Of every set S with largest rank s, not_more[:, r] counts
    # the sets that cost no more than S and r together, for sure; beyond s it grows by not_more of S alone per rank.
    # Without r they are sets that cost no more than S, with ranks below their largest one, u: not_more of S without s
    # and u - 1, or s if that is less.
    sets = np.zeros((1, max(1, k.bit_length() - 1)), dtype=np.int64)
    found = [sets]
    not_more = np.arange(1, width + 1)[None]
    alone = np.ones(1, dtype=np.int64)
    while len(sets):
        of_set, largest = np.arange(len(sets)), sets[:, 0]
        n_larger = np.minimum((k - not_more[of_set, largest]) // alone, n_ranks - largest)
        of_set = np.repeat(of_set, n_larger)
        rank = largest[of_set] + 1 + np.arange(len(of_set)) - (n_larger.cumsum() - n_larger)[of_set]
        sets = np.concatenate((rank[:, None], sets[of_set, :-1]), 1)
        found.append(sets)

        with_another = np.concatenate((np.ones_like(not_more[:, :1]), not_more[:, :-1]), 1).cumsum(1)
        grows = rank + 1 < width
        grows[grows] = with_another[of_set[grows], rank[grows] + 1] <= k
        sets, rank, of_set = sets[grows], rank[grows], of_set[grows]
        alone = not_more[of_set, rank]
        beyond = np.arange(width) - rank[:, None] - 1
        linear = with_another[of_set, rank + 1, None] + beyond * alone[:, None]
        not_more = np.where(beyond <= 0, with_another[of_set], linear)
    candidates = np.concatenate(found)
    return candidates[np.lexsort((*candidates.T[::-1], candidates.sum(1)))]


@functools.lru_cache(maxsize=64)
def _candidates_on(device: torch.device, with_numpy: bool, k: int, n_bits: int) -> tuple[Array, Array]:
    """The candidates as a table (C, R) of float32, and its transpose as the factor of a matrix product.

    The product is of float64, which no setting of float32_matmul_precision makes less exact. Where the table would be
    large, the candidates as they are, since they have few ranks each, and None.
    """
    ranks = flip_candidates(k, n_bits)
    n_ranks = max(1, min(k - 1, n_bits))
    if len(ranks) * n_ranks > _LARGEST_TABLE:
        return (ranks if with_numpy else torch.from_numpy(ranks).to(device)), None
    table = np.zeros((len(ranks), 1 + n_ranks), dtype=np.float32)
    np.put_along_axis(table, ranks, 1, axis=1)
    candidates = torch.from_numpy(table[:, 1:].copy()).to(device)
    factor = as_tensor(wide(candidates.t()))
    return (candidates.numpy(), factor.numpy()) if with_numpy else (candidates, factor)


def topk_bit_vectors(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    r"""The k bit-vectors with the highest scores :math:`\langle x, z \rangle`, exactly.

    Args:
        scores: ``(B, D)``, floating point, finite.
        k: how many, at most 16,384; fewer are returned where there are fewer, :math:`2^D < k`. Every example needs
            memory for the costs of all of :func:`flip_candidates`, 278,140 of them for k = 10,000.

    Returns:
        Bit-vectors ``(K, B, D)`` of the scores' type, best first, and their scores ``(K, B)``, in at least
        float32, differentiable; infinite where they overflow. Among vectors that are equally good, those that
        flip fewer and less costly bits of 1[x > 0] come first (the order of :func:`flip_candidates`; of bits
        with equal :math:`|x|` the first one counts as the less costly).

    Raises:
        TypeError, ValueError: scores of another type or shape, NaN or infinite; k below 1, or above 16,384 where
            there are more bit-vectors than that.

    Example:
        >>> vectors, values = topk_bit_vectors(torch.tensor([[2.0, -0.5, 1.0]]), k=3)
        >>> vectors[:, 0].tolist()
        [[1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]
        >>> values[:, 0].tolist()
        [3.0, 2.5, 2.0]
    """
    x, scale, k = _prepare(scores, k)
    if isinstance(scale, torch.Tensor):
        synchronise_finite(x.detach())
    flips = _CheapestFlips(x, k)
    values = (x * flips.bits).sum(1) - flips.costs.t()
    return flips.vectors(flips.costs.shape[1], message_type(scores)), values if scale is None else values / scale


def topk_sparsemax(scores: torch.Tensor, k: int) -> SparseDistribution:
    r"""Sparsemax over the k best bit-vectors: at most k terms, whatever D.

    With the scores :math:`s_i = \langle x, z_i \rangle` of the k best bit-vectors,

    .. math:: p = \arg\min_{p \in \triangle^k} \|p - s\|^2 .

    Args:
        scores: ``(B, D)``, floating point, finite.
        k: the largest number of bit-vectors with non-zero probability, at most 16,384; memory as in
            :func:`topk_bit_vectors`.

    Returns:
        SparseDistribution with messages ``(K, B, D)`` of bit-vectors of the scores' type, most probable first, and
        probabilities in at least float32. Its ``is_exact`` ``(B,)`` is True where one of the k best has
        probability 0 (or all :math:`2^D` are among them): there it is sparsemax over all :math:`2^D` bit-vectors.

    Raises:
        TypeError, ValueError: scores of another type or shape, NaN or infinite; k below 1, or above 16,384 where
            there are more bit-vectors than that.

    Example:
        >>> d = topk_sparsemax(torch.tensor([[2.0, -0.5, 1.0], [0.1, 0.1, 0.1]]), k=4)
        >>> d.support_size, d.is_exact
        (tensor([2, 4]), tensor([ True, False]))

    Source: Correia et al. (NeurIPS 2020), section 4.1.
    """
    x, scale, k = _prepare(scores, k)
    flips = _CheapestFlips(x, k)
    # the score of the best bit-vector, common to all, changes nothing
    probs = _sparsemax_of_sorted(-flips.costs if scale is None else flips.costs / -scale)
    positive = probs.detach() > 0
    rows = 1
    if len(probs):
        rows = synchronise_finite(x.detach(), positive.sum(1).max())
    messages = flips.vectors(rows, message_type(scores), positive)
    distribution = SparseDistribution(messages, probs[:, :rows].t(), validate_args=False)
    all_bit_vectors = probs.shape[1] == 2 ** scores.shape[1]
    distribution.is_exact = torch.ones_like(positive[:, -1]) if all_bit_vectors else ~positive[:, -1]
    return distribution


def _sparsemax_of_sorted(scores: torch.Tensor) -> torch.Tensor:
    """Sparsemax of scores (B, K) in descending order: the threshold is the largest of those of the first 1, ..., K."""
    counts = torch.arange(1, scores.shape[1] + 1, device=scores.device, dtype=scores.dtype)
    threshold = ((scores.cumsum(1) - 1) / counts).amax(1, keepdim=True)
    return (scores - threshold).clamp(min=0)


def _prepare(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, float | torch.Tensor | None, int]:
    """Scores in the type to compute with, what they were multiplied by, and k or the number of bit-vectors.

    They are multiplied by a power of two if sums of numbers as large would overflow. On the CPU that is a number, or
    None if there is no need, and scores are checked to be finite; elsewhere it is a tensor, and they are not.
    """
    check_scores(scores, "D bits")
    check_k(k)
    n_bits = scores.shape[1]
    k = min(k, 2**n_bits)
    if k > MAX_K:
        raise ValueError(f"k must be at most {MAX_K} for scores of {n_bits} bits, got {k}")
    x = scores.to(probability_type(scores))
    if not len(x):
        return x, None, k
    small, limit = 2.0 ** -(n_bits.bit_length() + 1), torch.finfo(x.dtype).max
    values = native(x)
    if isinstance(values, np.ndarray):
        largest = abs(values).max()
        if largest <= limit * small:
            return x, None, k
        if not largest <= limit:
            synchronise(torch.isfinite(x))
        return x * small, small, k
    scale = torch.where(values.abs().amax() > limit * small, small, 1.0).to(x.dtype)
    return x * scale, scale, k


def check_k(k: int) -> None:
    """Raises TypeError or ValueError unless k is a positive integer."""
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be an integer, got {type(k).__name__}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


class _CheapestFlips:
    """The up to k cheapest sets of bits to flip in 1[x > 0], for every example."""

    def __init__(self, x: torch.Tensor, k: int) -> None:
        scores = native(x)
        candidates, factor = _candidates_on(x.device, isinstance(scores, np.ndarray), k, x.shape[1])
        magnitudes = abs(scores)
        positions = order(magnitudes, max(1, min(k - 1, x.shape[1])))
        costs = cast(_sums(wide(take(magnitudes, positions)), candidates, factor), scores)
        chosen = order(costs, k)
        self._candidates, self._chosen = candidates, chosen
        self._positions = as_tensor(positions)
        #: ``(B, D)``, the best bit-vector
        self.bits = as_tensor(cast(scores > 0, scores))
        #: ``(B, K)``, ascending; differentiable
        self.costs = as_tensor(take(costs, chosen))
        if x.requires_grad:
            table = as_tensor(candidates if factor is None else factor)
            self.costs = _Costs.apply(x, self.costs, self.bits, self._positions, as_tensor(chosen), table)

    def vectors(self, rows: int, dtype: torch.dtype, positive: torch.Tensor | None = None) -> torch.Tensor:
        """The bit-vectors ``(rows, B, D)`` after the ``rows`` cheapest flips; the best one where not positive."""
        chosen = self._chosen[:, :rows]
        if positive is not None:
            chosen = chosen * native(positive[:, :rows])  # the first candidate, the cheapest, flips nothing
        flips = as_tensor(self._candidates[chosen]).transpose(0, 1)
        if flips.is_floating_point():
            positions = self._positions.expand(rows, -1, -1)
            values = flips.to(self.bits.dtype) - self.bits.gather(1, self._positions)
        else:
            # padding repeats the first rank, which is flipped unless the set is empty
            ranks, first = flips, flips[:, :, :1]
            ranks = torch.where(ranks > 0, ranks, first).clamp(min=1) - 1
            positions = self._positions.expand(rows, -1, -1).gather(2, ranks)
            values = (first > 0).to(self.bits.dtype) - self.bits.expand(rows, -1, -1).gather(2, positions)
        vectors = self.bits.expand(rows, -1, -1).clone(memory_format=torch.contiguous_format)
        return vectors.scatter_(2, positions, values.abs_()).to(dtype)


def _sums(of_ranks: Array, candidates: Array, factor: Array | None) -> Array:
    """The sums (B, C) over every candidate of numbers (B, R) for ranks."""
    if factor is not None:
        return of_ranks @ factor
    by_rank = zeros((1 + of_ranks.shape[1], len(of_ranks)), of_ranks)
    by_rank[1:] = of_ranks.T
    sums = by_rank[candidates[:, 0]]
    for column in range(1, candidates.shape[1]):
        sums += by_rank[candidates[:, column]]
    sums_of_examples = zeros((len(of_ranks), len(sums)), of_ranks)
    sums_of_examples[:] = sums.T
    return sums_of_examples


class _Costs(torch.autograd.Function):
    """Sums of the |x| that are flipped, with the gradient of |x| at 0 that of a bit that is off, -1."""

    @staticmethod
    def forward(x: torch.Tensor, costs: torch.Tensor, *of_backward: torch.Tensor) -> torch.Tensor:
        return costs.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, grad_costs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        bits, positions, chosen, table = ctx.saved_tensors
        grad_costs = wide(grad_costs)
        if table.is_floating_point():
            of_candidates = grad_costs.new_zeros(len(chosen), table.shape[1]).scatter(1, chosen, grad_costs)
            of_ranks = of_candidates @ table.t()
        else:
            ranks = table[chosen]
            of_elements = grad_costs[:, :, None].expand_as(ranks).flatten(1)
            of_ranks = grad_costs.new_zeros(len(chosen), 1 + positions.shape[1])
            of_ranks = of_ranks.scatter_add(1, ranks.flatten(1), of_elements)[:, 1:]
        of_magnitudes = torch.zeros_like(bits).scatter(1, positions, of_ranks.to(bits.dtype))
        return of_magnitudes * (2 * bits - 1), None, None, None, None, None
