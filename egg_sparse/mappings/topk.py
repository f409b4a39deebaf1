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

import numpy as np
import torch
import torch.nn.functional as F

from egg_sparse.distribution import SparseDistribution
from egg_sparse.mappings.arrays import widen
from egg_sparse.mappings.order import ascending
from egg_sparse.mappings.scores import check_scores, message_type, probability_type, synchronize_finite

#: The largest k.
MAX_K = 2**14


@functools.lru_cache(maxsize=64)
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
    n_ranks = min(k - 1, n_bits)
    width = math.isqrt(2 * k) + 2  # a set with a rank above width - 2 cannot take a larger one
    # Each pass adds one larger rank to all sets of one size. For a set S with the largest rank s, not_more[:, r] counts
    # the sets that are certain to cost no more than S with rank r added. Of these, let u be the largest rank: the rest
    # is certain to cost no more than S and has ranks below u, and there are not_more of (S without s) at min(u - 1, s)
    # of such rests. From u = s + 1 on this number is the same, `alone`.
    sets = np.zeros((1, max(1, k.bit_length() - 1)), dtype=np.int64)
    found = [sets]
    not_more = np.arange(1, width + 1)[None]
    alone = np.ones(1, dtype=np.int64)
    while len(sets):
        parent, largest = np.arange(len(sets)), sets[:, 0]
        n_larger = np.minimum((k - not_more[parent, largest]) // alone, n_ranks - largest)
        parent = np.repeat(parent, n_larger)
        rank = largest[parent] + 1 + np.arange(len(parent)) - (n_larger.cumsum() - n_larger)[parent]
        sets = np.concatenate((rank[:, None], sets[parent, :-1]), 1)
        found.append(sets)

        with_another = np.concatenate((np.ones_like(not_more[:, :1]), not_more[:, :-1]), 1).cumsum(1)
        grows = rank + 1 < width
        grows[grows] = with_another[parent[grows], rank[grows] + 1] <= k
        sets, rank, parent = sets[grows], rank[grows], parent[grows]
        alone = not_more[parent, rank]
        beyond = np.arange(width) - rank[:, None] - 1
        linear = with_another[parent, rank + 1, None] + beyond * alone[:, None]
        not_more = np.where(beyond <= 0, with_another[parent], linear)
    candidates = np.concatenate(found)
    return torch.from_numpy(candidates[np.lexsort((*candidates.T[::-1], candidates.sum(1)))]).to(device)


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
    x, scale, k = _prepare(scores, k)
    synchronize_finite(x.detach())
    flips, costs = _cheapest_flips(x, k)
    values = (x.relu().sum(1) - costs.t()) / scale
    return _flipped(x.detach(), flips).to(message_type(scores)), values


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
    x, scale, k = _prepare(scores, k)
    flips, costs = _cheapest_flips(x, k)
    # sparsemax does not change if the score of the best bit-vector is taken off all scores
    probs = _sparsemax_of_sorted(costs / -scale)
    positive = probs.detach() > 0
    rows = synchronize_finite(x.detach(), positive.sum(1).max()) if len(probs) else 1
    flips = flips[:, :rows] * positive[:, :rows, None]  # padded rows flip nothing: they repeat the best bit-vector
    messages = _flipped(x.detach(), flips).to(message_type(scores))
    distribution = SparseDistribution(messages, probs[:, :rows].t(), validate_args=False)
    all_bit_vectors = probs.shape[1] == 2 ** scores.shape[1]
    distribution.is_exact = torch.ones_like(positive[:, -1]) if all_bit_vectors else ~positive[:, -1]
    return distribution


def _sparsemax_of_sorted(scores: torch.Tensor) -> torch.Tensor:
    """Sparsemax of scores (B, K) in descending order: its threshold is the largest of all prefixes'."""
    counts = torch.arange(1, scores.shape[1] + 1, device=scores.device, dtype=scores.dtype)
    threshold = ((scores.cumsum(1) - 1) / counts).amax(1, keepdim=True)
    return (scores - threshold).clamp(min=0)


def _prepare(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Checks the arguments; returns scores in at least float32, times a factor, the factor, and at most 2^D for k.

    The factor is 1, or a power of two below 1 if sums of numbers as large as the scores would overflow.
    """
    check_scores(scores, "D bits")
    check_k(k)
    n_bits = scores.shape[1]
    k = min(k, 2**n_bits)
    if k > MAX_K:
        raise ValueError(f"k must be at most {MAX_K} for scores of {n_bits} bits, got {k}")
    x = scores.to(probability_type(scores))
    small = 2.0 ** -(n_bits.bit_length() + 1)
    overflows = (x.detach().abs() > small * torch.finfo(x.dtype).max).any()
    scale = torch.where(overflows, small, 1.0).to(x.dtype)
    return x * scale, scale, k


def check_k(k: int) -> None:
    """Raises TypeError or ValueError unless k is a positive integer."""
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be an integer, got {type(k).__name__}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


def _cheapest_flips(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The up to k cheapest sets of bits to flip in 1[x > 0], and their costs ``(B, K)``, ascending, differentiable.

    The sets are ``(B, K, L)`` numbers of bits, counted from 1 and padded with 0.
    """
    x = F.pad(x, (1, 0))  # bit 0 costs nothing and has rank 0: it is the padding
    magnitudes = torch.where(x > 0, x, -x)  # the gradient at 0 is that of a bit that is off
    bits_by_rank = ascending(magnitudes.detach(), min(k, x.shape[1]))
    costs_by_rank = widen(magnitudes.gather(1, bits_by_rank))
    candidates = flip_candidates(k, x.shape[1] - 1, x.device)
    rows = costs_by_rank.detach().t().contiguous()
    costs = rows.new_zeros(len(candidates), len(x))
    for ranks in candidates.unbind(1):
        costs += rows.index_select(0, ranks)
    chosen = ascending(costs.t().to(x.dtype, memory_format=torch.contiguous_format), k)
    ranks = candidates.index_select(0, chosen.flatten()).view(*chosen.shape, candidates.shape[1])
    flips = bits_by_rank.gather(1, ranks.flatten(1)).view(ranks.shape)
    # the sums of the chosen sets again, for autograd to differentiate
    costs = functools.reduce(torch.add, (costs_by_rank.gather(1, column) for column in ranks.unbind(2)))
    return flips, costs.to(x.dtype)


def _flipped(x: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
    """The bit-vectors ``(K, B, D)`` that differ from 1[x > 0] in the sets ``(B, K, L)`` of bits."""
    flips = flips.transpose(0, 1)
    is_flipped = x.new_zeros(*flips.shape[:2], 1 + x.shape[1]).scatter_(2, flips, 1)[:, :, 1:]
    return ((x > 0).to(x.dtype) - is_flipped).abs_()
