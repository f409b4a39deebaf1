r"""The k best bit-vectors of D scored bits, and sparsemax over them.

A bit-vector z in {0, 1}^D has the score <x, z>. The best one is 1[x > 0]; any other flips some of its bits and costs
the sum of their |x|. Sort |x| in ascending order: a set of ranks S costs at least as much as another set T, whatever
the scores, if T has no more elements and its largest, second largest, ... ranks are not above those of S. S can only
be among the k cheapest if fewer than k other sets are certain to be at least as cheap. Those sets of ranks are a fixed
list (17 for k = 10, 474 for k = 100), so that one sort, one matrix product and one selection give the exact answer.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

from egg_sparse.distribution import SparseDistribution
from egg_sparse.mappings.arrays import Array, as_tensor, cast, native, take
from egg_sparse.mappings.order import order
from egg_sparse.mappings.scores import check_scores, result_type, synchronise_finite


@functools.lru_cache(maxsize=64)
def flip_candidates(k: int, n_bits: int) -> np.ndarray:
    """The sets of ranks that can be among the k cheapest, as ``(C, R)`` booleans, R = min(k - 1, n_bits).

    Column r stands for the rank with the (r + 1)-th smallest |x|. The first row is the empty set; the order, that of
    ties, is by the sum of the ranks, then lexicographically by the ranks in descending order.

    Example:
        >>> [len(flip_candidates(k, k)) for k in (1, 10, 32, 100)]
        [1, 17, 95, 474]
    """
    n_ranks = min(k - 1, n_bits)
    longest = max(1, k.bit_length())
    # a set is a tuple of ranks, counted from 1, in descending order, padded with zeros
    found = np.zeros((1, longest), dtype=np.int64)
    level = [(0,) * longest]
    while level:
        successors = set()
        for ranks in level:
            size = sum(rank > 0 for rank in ranks)
            if size < longest and (size == 0 or ranks[size - 1] > 1) and n_ranks:
                successors.add((*ranks[:size], 1, *ranks[size + 1 :]))
            for i in range(size):
                if ranks[i] < n_ranks and (i == 0 or ranks[i] + 1 < ranks[i - 1]):
                    successors.add((*ranks[:i], ranks[i] + 1, *ranks[i + 1 :]))
        level = [ranks for ranks in sorted(successors) if (found <= np.array(ranks)).all(1).sum() < k]
        if level:
            found = np.concatenate([found, np.array(level)])
    candidates = np.zeros((len(found), n_ranks + 1), dtype=bool)
    np.put_along_axis(candidates, found, True, axis=1)
    return candidates[:, 1:]


@functools.lru_cache(maxsize=64)
def _candidates_on(device: torch.device, with_numpy: bool, k: int, n_bits: int) -> tuple[Array, Array]:
    """The candidates (C, R) as float32, and their transpose as the factor of a matrix product.

    The product is of float64, which no setting of float32_matmul_precision makes less exact.
    """
    candidates = torch.from_numpy(flip_candidates(k, n_bits)).to(device)
    factor = candidates.t().to(torch.float32 if device.type == "mps" else torch.float64)
    if with_numpy:
        return candidates.float().numpy(), factor.numpy()
    return candidates.float(), factor


def topk_bit_vectors(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    r"""The k bit-vectors with the highest scores :math:`\langle x, z \rangle`, exactly.

    Args:
        scores: ``(B, D)``, floating point, finite.
        k: how many; fewer are returned where there are fewer, :math:`2^D < k`.

    Returns:
        Bit-vectors ``(K, B, D)`` of the scores' type, best first, and their scores ``(K, B)``,
        differentiable. Among vectors that are equally good, those that flip fewer and less costly bits of
        1[x > 0] come first (the order of :func:`flip_candidates`; of bits with equal :math:`|x|` the
        first one counts as the less costly).

    Raises:
        TypeError, ValueError: scores of another type or shape, NaN or infinite; k below 1.

    Example:
        >>> vectors, values = topk_bit_vectors(torch.tensor([[2.0, -0.5, 1.0]]), k=3)
        >>> vectors[:, 0].tolist()
        [[1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]
        >>> values[:, 0].tolist()
        [3.0, 2.5, 2.0]
    """
    x = _prepare(scores, k)
    synchronise_finite(x.detach())
    flips = _CheapestFlips(x, k)
    values = x.clamp(min=0).sum(1) - flips.costs.t()
    dtype = result_type(scores)
    return flips.vectors(flips.costs.shape[1], dtype), values.to(dtype)


def topk_sparsemax(scores: torch.Tensor, k: int) -> SparseDistribution:
    r"""Sparsemax over the k best bit-vectors: at most k terms, whatever D.

    With the scores :math:`s_i = \langle x, z_i \rangle` of the k best bit-vectors,

    .. math:: p = \arg\min_{p \in \triangle^k} \|p - s\|^2 .

    Args:
        scores: ``(B, D)``, floating point, finite.
        k: how many bit-vectors may have a probability.

    Returns:
        SparseDistribution with messages ``(K, B, D)`` of bit-vectors, most probable first. Its ``is_exact``
        ``(B,)`` is True where one of the k best has probability 0 (or all :math:`2^D` are among them): there
        it is sparsemax over all :math:`2^D` bit-vectors.

    Raises:
        TypeError, ValueError: scores of another type or shape, NaN or infinite; k below 1.

    Example:
        >>> d = topk_sparsemax(torch.tensor([[2.0, -0.5, 1.0], [0.1, 0.1, 0.1]]), k=4)
        >>> d.support_size, d.is_exact
        (tensor([2, 4]), tensor([ True, False]))

    Source: Correia et al. (NeurIPS 2020), section 4.1.
    """
    x = _prepare(scores, k)
    if x.device.type == "cpu":
        synchronise_finite(x.detach())
    flips = _CheapestFlips(x, k)
    probs = _sparsemax_of_sorted(-flips.costs)  # the score of the best bit-vector, common to all, changes nothing
    probs = probs.to(result_type(scores))
    positive = probs.detach() > 0
    rows = 1
    if len(probs):
        rows = synchronise_finite(x.detach(), positive.sum(1).max())
    distribution = SparseDistribution(flips.vectors(rows, probs.dtype), probs[:, :rows].t(), validate_args=False)
    all_bit_vectors = probs.shape[1] == 2 ** scores.shape[1]
    distribution.is_exact = torch.ones_like(positive[:, -1]) if all_bit_vectors else ~positive[:, -1]
    return distribution


def _sparsemax_of_sorted(scores: torch.Tensor) -> torch.Tensor:
    """Sparsemax of scores (B, K) in descending order: the threshold is the largest of those of the first 1, ..., K."""
    counts = torch.arange(1, scores.shape[1] + 1, device=scores.device, dtype=scores.dtype)
    threshold = ((scores.cumsum(1) - 1) / counts).amax(1, keepdim=True)
    return (scores - threshold).clamp(min=0)


def _prepare(scores: torch.Tensor, k: int) -> torch.Tensor:
    check_scores(scores, "D bits")
    check_k(k)
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


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
        positions = order(magnitudes, candidates.shape[1])
        costs = cast(cast(take(magnitudes, positions), factor) @ factor, scores)
        chosen = order(costs, k)
        self._candidates, self._chosen = candidates, chosen
        self._bits, self._positions = as_tensor(cast(scores > 0, scores)), as_tensor(positions)
        #: ``(B, K)``, ascending; differentiable
        self.costs = as_tensor(take(costs, chosen))
        if x.requires_grad:
            self.costs = _Costs.apply(x, self.costs, self._bits, self._positions, as_tensor(chosen), as_tensor(factor))

    def vectors(self, rows: int, dtype: torch.dtype) -> torch.Tensor:
        """The bit-vectors ``(rows, B, D)`` after the ``rows`` cheapest flips."""
        flips = as_tensor(self._candidates[self._chosen[:, :rows]]).to(self._bits.dtype).transpose(0, 1)
        values = (flips - self._bits.gather(1, self._positions)).abs_()
        vectors = self._bits.expand(rows, -1, -1).clone(memory_format=torch.contiguous_format)
        return vectors.scatter_(2, self._positions.expand(rows, -1, -1), values).to(dtype)


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
        bits, positions, chosen, factor = ctx.saved_tensors
        of_candidates = factor.new_zeros(len(chosen), factor.shape[1]).scatter(1, chosen, grad_costs.to(factor.dtype))
        of_magnitudes = torch.zeros_like(bits).scatter(1, positions, (of_candidates @ factor.t()).to(bits.dtype))
        return of_magnitudes * (2 * bits - 1), None, None, None, None, None
