r"""The k best bit-vectors of D scored bits, and sparsemax over them.

A bit-vector z in {0, 1}^D has the score <x, z>. The best one is 1[x > 0]; every other one flips some of its bits and
costs the sum of their |x|. Sort |x| in ascending order, and describe each set of bits by its ranks. A set S costs at
least as much as a set T, whatever the scores, if T has no more elements than S and if its largest, second largest, ...
rank is at most that of S. So S can be among the k cheapest sets only if fewer than k other sets are certain to cost no
more. These sets of ranks are a fixed list (17 for k = 10, 474 for k = 100), so that one sort, one sum for each set and
one selection give the exact answer.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch

from egg_sparse.distribution import SparseDistribution
from egg_sparse.mappings.arrays import A, as_array, as_array_like, as_tensor, gather, namespace, widen
from egg_sparse.mappings.order import order
from egg_sparse.mappings.scores import check_scores, message_type, probability_type, synchronize_finite

#: The largest k.
MAX_K = 2**14


def flip_candidates(k: int, n_bits: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """The sets of ranks that can be among the k cheapest sets of bits to flip.

    Args:
        k: the number of bit-vectors.
        n_bits: the number of bits, D.
        device: the device of the result.

    Returns:
        ``(C, L)`` long, one set per row in descending order, padded with zeros; rank r, from 1 on, is that of the r-th
        smallest |x|. The first row is the empty set. Rows are sorted by the sum of their ranks, then
        lexicographically; equally cheap sets rank in this order. The tensor is cached: do not change it in place.

    Example:
        >>> flip_candidates(4, 8).tolist()
        [[0, 0], [1, 0], [2, 0], [2, 1], [3, 0]]
        >>> [len(flip_candidates(k, k)) for k in (1, 10, 32, 100, 10_000)]
        [1, 17, 95, 474, 278140]
    """
    return candidates_and_steps(k, n_bits, device)[0]


@functools.lru_cache(maxsize=64)
def candidates_and_steps(
    k: int, n_bits: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, ...]]]:
    """The :func:`flip_candidates`, and how to add up their costs.

    Returns:
        The candidates, and for each number of ranks, from 1 on, the rows of the candidates that have as many ranks, the
        rows of those that lack the largest rank, and the largest rank less 1, each ``(N,)`` long.
    """
    n_ranks = min(k - 1, n_bits)
    width = math.isqrt(2 * k) + 2  # a set with a rank above width - 2 cannot take a larger one
    # Each pass adds one larger rank to all sets of one size. For a set S with the largest rank s, not_more[:, r] counts
    # the sets that are certain to cost no more than S with rank r added. Of these, let u be the largest rank: the rest
    # is certain to cost no more than S and has ranks below u, and there are not_more of (S without s) at min(u - 1, s)
    # of such rests. From u = s + 1 on this number is the same, `alone`.
    sets = np.zeros((1, max(1, k.bit_length() - 1)), dtype=np.int64)
    found, of_parents, n_found, numbers = [sets], [], 1, np.zeros(1, dtype=np.int64)
    not_more = np.arange(1, width + 1)[None]
    alone = np.ones(1, dtype=np.int64)
    while len(sets):
        parent, largest = np.arange(len(sets)), sets[:, 0]
        n_larger = np.minimum((k - not_more[parent, largest]) // alone, n_ranks - largest)
        parent = np.repeat(parent, n_larger)
        rank = largest[parent] + 1 + np.arange(len(parent)) - (n_larger.cumsum() - n_larger)[parent]
        sets = np.concatenate((rank[:, None], sets[parent, :-1]), 1)
        found.append(sets)
        of_parents.append(numbers[parent])
        numbers = np.arange(n_found, n_found + len(sets))
        n_found += len(sets)

        with_another = np.concatenate((np.ones_like(not_more[:, :1]), not_more[:, :-1]), 1).cumsum(1)
        grows = rank + 1 < width
        grows[grows] = with_another[parent[grows], rank[grows] + 1] <= k
        sets, numbers, rank, parent = sets[grows], numbers[grows], rank[grows], parent[grows]
        alone = not_more[parent, rank]
        beyond = np.arange(width) - rank[:, None] - 1
        linear = with_another[parent, rank + 1, None] + beyond * alone[:, None]
        not_more = np.where(beyond <= 0, with_another[parent], linear)
    candidates = np.concatenate(found)
    by_row = np.lexsort((*candidates.T[::-1], candidates.sum(1)))
    row_of = np.empty_like(by_row)
    row_of[by_row] = np.arange(len(by_row))
    steps: list[tuple[torch.Tensor, ...]] = []
    first = 1
    for sets, parents in zip(found[1:], of_parents, strict=True):
        rows = row_of[first : first + len(sets)]
        parts = rows, row_of[parents], sets[:, 0] - 1
        steps.append(tuple(torch.from_numpy(part).to(device) for part in parts))
        first += len(sets)
    return torch.from_numpy(candidates[by_row]).to(device), steps


def topk_bit_vectors(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    r"""The k bit-vectors with the highest scores :math:`\langle x, z \rangle`, exactly.

    Args:
        scores: ``(B, D)``, floating point, finite.
        k: the number of bit-vectors, at most 16,384; all :math:`2^D` are returned if there are fewer. Each example
            needs memory for the costs of all :func:`flip_candidates`, 278,140 for k = 10,000.

    Returns:
        Bit-vectors ``(K, B, D)`` of the scores' dtype, best first, and their scores ``(K, B)``, in at least float32,
        differentiable, infinite where they overflow. Equally good vectors are in the order of
        :func:`flip_candidates`, in which vectors that flip fewer and cheaper bits of 1[x > 0] come first; of bits
        with equal :math:`|x|` the first one counts as the cheaper.

    Raises:
        TypeError: scores that are not a floating-point tensor; k that is not an integer.
        ValueError: scores of another shape, NaN or infinite; k below 1, or above 16,384 if there are more
            bit-vectors than that.

    Example:
        >>> vectors, values = topk_bit_vectors(torch.tensor([[2.0, -0.5, 1.0]]), k=3)
        >>> vectors[:, 0].tolist()
        [[1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]
        >>> values[:, 0].tolist()
        [3.0, 2.5, 2.0]
    """
    x, k = _prepare(scores, k)
    values, vectors = _TopK.apply(x, k, message_type(scores))
    return vectors, values


def topk_sparsemax(scores: torch.Tensor, k: int) -> SparseDistribution:
    r"""Sparsemax over the k best bit-vectors: at most k terms, whatever D.

    With the scores :math:`s_i = \langle x, z_i \rangle` of the k best bit-vectors,

    .. math:: p = \arg\min_{p \in \triangle^k} \|p - s\|^2 .

    Args:
        scores: ``(B, D)``, floating point, finite.
        k: the largest number of bit-vectors with non-zero probability, at most 16,384; it needs as much memory as
            in :func:`topk_bit_vectors`.

    Returns:
        SparseDistribution with messages ``(K, B, D)``, bit-vectors of the scores' dtype, most probable first, and
        probabilities in at least float32. Its ``is_exact`` ``(B,)`` is True where one of the k best has
        probability 0 or all :math:`2^D` are among them: there it is sparsemax over all :math:`2^D` bit-vectors.

    Raises:
        TypeError: scores that are not a floating-point tensor; k that is not an integer.
        ValueError: scores of another shape, NaN or infinite; k below 1, or above 16,384 if there are more
            bit-vectors than that.

    Example:
        >>> d = topk_sparsemax(torch.tensor([[2.0, -0.5, 1.0], [0.1, 0.1, 0.1]]), k=4)
        >>> d.support_size, d.is_exact
        (tensor([2, 4]), tensor([ True, False]))

    Source: Correia et al. (NeurIPS 2020), section 4.1.
    """
    x, k = _prepare(scores, k)
    probs, messages, is_exact = _TopKSparsemax.apply(x, k, message_type(scores))
    distribution = SparseDistribution(messages, probs, validate_args=False)
    distribution.is_exact = is_exact
    return distribution


class _TopK(torch.autograd.Function):
    """The values (K, B) of the best bit-vectors, and the bit-vectors (K, B, D), which are the values' gradients."""

    @staticmethod
    def forward(x: torch.Tensor, k: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        array = as_array(x)
        flips, costs, scale = _cheapest_flips(array, k)
        if not isinstance(costs, np.ndarray):
            synchronize_finite(x)
        with np.errstate(over="ignore"):
            values = as_tensor(((array.clip(0) * scale).sum(1)[:, None] - costs) / scale).t()
        return values, _flipped(x, as_tensor(flips), dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        _, vectors = output
        ctx.save_for_backward(vectors)
        ctx.mark_non_differentiable(vectors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_values: torch.Tensor | None, _: None) -> tuple[torch.Tensor | None, None, None]:
        (vectors,) = ctx.saved_tensors
        return None if grad_values is None else _weighted_sum(grad_values, vectors), None, None


class _TopKSparsemax(torch.autograd.Function):
    """Sparsemax (K, B) over the k best bit-vectors, those of non-zero probability (K, B, D), and where it is exact."""

    @staticmethod
    def forward(x: torch.Tensor, k: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        flips, costs, scale = _cheapest_flips(as_array(x), k)
        # sparsemax does not change if the score of the best bit-vector is taken off all scores
        with np.errstate(over="ignore"):
            probs = _sparsemax_of_sorted(costs / -scale)
        positive = probs > 0
        rows = 1
        if len(x):
            largest_support = positive.sum(1).max()
            on_host = isinstance(probs, np.ndarray)
            rows = int(largest_support) if on_host else synchronize_finite(x, largest_support)
        # padded rows flip nothing: they repeat the best bit-vector
        messages = _flipped(x, as_tensor(flips[:, :rows] * positive[:, :rows, None]), dtype)
        is_exact = as_tensor(~positive[:, -1] | (positive.shape[1] == 2 ** x.shape[1]))
        return as_tensor(probs[:, :rows]).t(), messages, is_exact

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        probs, messages, is_exact = output
        ctx.save_for_backward(probs, messages)
        ctx.mark_non_differentiable(messages, is_exact)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_probs: torch.Tensor | None, *_: None) -> tuple[torch.Tensor | None, None, None]:
        if grad_probs is None:
            return None, None, None
        probs, messages = ctx.saved_tensors
        positive = probs > 0
        grad_scores = grad_probs * positive
        grad_scores = grad_scores - positive * (grad_scores.sum(0) / positive.sum(0))
        return _weighted_sum(grad_scores, messages), None, None


def _weighted_sum(weights: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """The sums (B, D) of vectors (K, B, D) with weights (K, B)."""
    return torch.einsum("kb,kbd->bd", weights, vectors.to(weights.dtype))


def _sparsemax_of_sorted(scores: A) -> A:
    """Sparsemax of scores (B, K) in descending order, of which the first is 0."""
    xp = namespace(scores)
    scores = scores.clip(-2)  # less than -1 has probability 0
    counts = xp.arange(scores.shape[1], scores) + 1
    excess = scores.cumsum(1) - 1
    n_positive = (scores * counts > excess).sum(1)[:, None]
    threshold = gather(excess, n_positive - 1) / n_positive
    return (scores - xp.astype(threshold, scores)).clip(0)


def _prepare(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, int]:
    """Checks the arguments; returns the scores in at least float32, and at most 2^D for k."""
    check_scores(scores, "D bits")
    check_k(k)
    n_bits = scores.shape[1]
    k = min(k, 2**n_bits)
    if k > MAX_K:
        raise ValueError(f"k must be at most {MAX_K} for scores of {n_bits} bits, got {k}")
    return scores.to(probability_type(scores)), k


def check_k(k: int) -> None:
    """Raises TypeError or ValueError unless k is a positive integer."""
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be an integer, got {type(k).__name__}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


def _cheapest_flips(x: A, k: int) -> tuple[A, A, Any]:
    """The up to k cheapest sets of bits to flip in 1[x > 0], and their costs.

    Returns:
        The sets ``(B, K, L)`` as numbers of bits, counted from 1 and padded with 0; their costs ``(B, K)``, ascending,
        times a factor; the factor, 1 or, if sums of numbers as large as the scores would overflow, less.
    """
    xp, (batch, n_bits) = namespace(x), x.shape
    magnitudes = abs(x)
    scale = _scale(magnitudes)
    magnitudes = magnitudes * scale
    bits_by_rank = order(magnitudes, min(k - 1, n_bits))
    costs_by_rank = as_array_like(widen(as_tensor(gather(magnitudes, bits_by_rank))), x)
    candidates, steps = candidates_and_steps(k, n_bits, as_tensor(x).device)
    # a set costs as much as without its largest rank, and that rank
    costs = xp.zeros((batch, len(candidates)), costs_by_rank)
    for step in steps:
        of_sets, of_parents, ranks = (as_array_like(part, x) for part in step)
        costs[:, of_sets] = costs[:, of_parents] + costs_by_rank[:, ranks]
    costs = xp.astype(costs, x)
    chosen = order(costs, k)
    ranks = as_array_like(candidates, x)[chosen]
    bits = xp.concat((xp.zeros((batch, 1), bits_by_rank), bits_by_rank + 1), 1)
    flips = gather(bits, ranks.reshape(batch, chosen.shape[1] * candidates.shape[1])).reshape(ranks.shape)
    return flips, gather(costs, chosen), scale


def _scale(magnitudes: A) -> Any:
    """A factor for magnitudes (B, D) with which their sums do not overflow: 1, or a power of two below 1."""
    n_bits, dtype = magnitudes.shape[1], as_tensor(magnitudes).dtype
    small = 2.0 ** -(n_bits.bit_length() + 1)
    limit = small * torch.finfo(dtype).max
    if not isinstance(magnitudes, np.ndarray):
        return torch.where((magnitudes > limit).any(), small, 1.0).to(dtype)
    largest = magnitudes.max(initial=0)
    if not np.isfinite(largest):
        synchronize_finite(as_tensor(magnitudes))
    return small if largest > limit else 1.0


def _flipped(x: torch.Tensor, flips: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The bit-vectors ``(K, B, D)`` that differ from 1[x > 0] in the sets ``(B, K, L)`` of bits."""
    batch, n_bits = x.shape
    is_flipped = torch.zeros(batch, flips.shape[1], 1 + n_bits, dtype=torch.int8, device=x.device).scatter_(2, flips, 1)
    vectors = is_flipped[:, :, 1:] ^ (x > 0).to(torch.int8)[:, None]
    return vectors.transpose(0, 1).to(dtype, memory_format=torch.contiguous_format)
