"""Distributions over the symbols of a vocabulary: softmax, sparsemax, 1.5-entmax and alpha-entmax.

All four solve, for the scores x of each example,

    p = argmax_{p in the simplex}  <p, x> + H_alpha(p),

with the Tsallis entropy H_alpha: alpha = 1 is softmax, 1.5 is 1.5-entmax, 2 is sparsemax. For alpha > 1 most
probabilities are exactly 0. The entmax package computes the projections; this module turns its results into supports
and defines gradients that can be differentiated again.

A projection sorts, and does more, so that over a large vocabulary it would cost more than the layer that computes the
scores. Symbols without a probability can be left out of it. They are found by their scores: a symbol is in the support
if its score is above a threshold, which increases with every further symbol, so that the threshold of a part of the
vocabulary is a lower bound. The part is the best symbol of each of a few hundred blocks of symbols, since it contains
most of the best symbols, and hardly any others remain above its threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import entmax as entmax_library
import numpy as np
import torch

from egg_sparse.distribution import SparseDistribution
from egg_sparse.mappings.arrays import as_array
from egg_sparse.mappings.order import descending
from egg_sparse.mappings.scores import check_scores, check_temperature, probability_type, synchronize

_COLUMNS = "V symbols"
_FEW_SYMBOLS = 256  # the vocabulary up to which all scores are projected, and the number of blocks of a larger one
_LEAST_WIDTH = 32  # the number of symbols in the smallest blocks
_MARGIN = 1e-3  # the share by which the threshold is lowered, since it is rounded


def softmax(scores: torch.Tensor, temperature: float | torch.Tensor = 1.0) -> SparseDistribution:
    r"""Softmax: :math:`p_i \propto \exp(x_i)`.

    It is not sparse: all symbols whose probability does not underflow are in the support, and a game plays them all.
    It is the dense baseline of the paper.

    Args:
        scores: ``(B, V)``, floating point, finite; V symbols.
        temperature: the divisor of the scores: a number above 0, or a tensor of one element, which is not checked.

    Returns:
        SparseDistribution with messages ``(K, B)`` long, most probable first, and probabilities in at
        least float32.

    Raises:
        TypeError: scores that are not a floating-point tensor.
        ValueError: scores of another shape, NaN or infinite.

    Example:
        >>> softmax(torch.tensor([[0.0, 1.0]])).probs.squeeze().tolist()  # doctest: +ELLIPSIS
        [0.731..., 0.268...]
    """
    return _distribution(scores, temperature, None)


def sparsemax(scores: torch.Tensor, temperature: float | torch.Tensor = 1.0) -> SparseDistribution:
    r"""The Euclidean projection of the scores on the simplex,

    .. math:: p = \arg\min_{p \in \triangle} \|p - x\|^2 .

    Args:
        scores: ``(B, V)``, floating point, finite. The larger their differences, the smaller the support.
        temperature: as in :func:`softmax`.

    Returns:
        SparseDistribution with messages ``(K, B)`` long, most probable first, ties by lower id, and
        probabilities in at least float32.

    Raises:
        TypeError: scores that are not a floating-point tensor.
        ValueError: scores of another shape, NaN or infinite.

    Example:
        >>> d = sparsemax(torch.tensor([[0.1, 1.0, 0.6, -2.0]]))
        >>> d.messages.squeeze().tolist(), [round(p, 2) for p in d.probs.squeeze().tolist()]
        ([1, 2], [0.7, 0.3])

    Source: Martins and Astudillo, "From Softmax to Sparsemax" (ICML 2016).
    """
    return _distribution(scores, temperature, _Entmax(2.0, entmax_library.sparsemax))


def entmax15(scores: torch.Tensor, temperature: float | torch.Tensor = 1.0) -> SparseDistribution:
    r"""1.5-entmax: :math:`p_i = [x_i / 2 - \tau]_+^2`, between softmax and sparsemax.

    Args:
        scores: ``(B, V)``, floating point, finite.
        temperature: as in :func:`softmax`.

    Returns:
        SparseDistribution with messages ``(K, B)`` long, most probable first, ties by lower id, and
        probabilities in at least float32.

    Raises:
        TypeError: scores that are not a floating-point tensor.
        ValueError: scores of another shape, NaN or infinite.

    Example:
        >>> entmax15(torch.tensor([[0.0, 1.0, -4.0]])).support_size
        tensor([2])

    Source: Peters, Niculae and Martins, "Sparse Sequence-to-Sequence Models" (ACL 2019).
    """
    return _distribution(scores, temperature, _Entmax(1.5, entmax_library.entmax15))


def entmax(
    scores: torch.Tensor, alpha: float | torch.Tensor, temperature: float | torch.Tensor = 1.0
) -> SparseDistribution:
    r"""Alpha-entmax for any alpha > 1: :math:`p_i = [(\alpha - 1) x_i - \tau]_+^{1/(\alpha - 1)}`.

    The numbers 1.5 and 2 have closed forms; other values, and tensors, need a bisection to the precision of the dtype.
    The result is differentiable with respect to a tensor alpha as well.

    Args:
        scores: ``(B, V)``, floating point, finite.
        alpha: a number, or a floating-point tensor that broadcasts with ``(B, 1)``.
        temperature: as in :func:`softmax`.

    Returns:
        SparseDistribution with messages ``(K, B)`` long, most probable first, ties by lower id, and
        probabilities in at least float32.

    Raises:
        TypeError: scores or a tensor alpha that are not floating point.
        ValueError: scores of another shape, NaN or infinite; alpha of another shape, or not above 1.

    Example:
        >>> entmax(torch.tensor([[0.0, 1.0, -3.0]]), alpha=1.2).support_size
        tensor([3])

    Source: Correia, Niculae and Martins, "Adaptively Sparse Transformers" (EMNLP 2019).
    """
    if not isinstance(alpha, torch.Tensor):
        if not 1 < alpha < float("inf"):
            raise ValueError(f"alpha must be a finite number above 1, got {alpha}")
        if alpha == 1.5:
            return entmax15(scores, temperature)
        if alpha == 2:
            return sparsemax(scores, temperature)
        return _distribution(scores, temperature, _Entmax(alpha, entmax_library.entmax_bisect))
    check_scores(scores, _COLUMNS)
    if not alpha.is_floating_point():
        raise TypeError(f"alpha must be floating point, got {alpha.dtype}")
    per_example = alpha.reshape(1, 1) if alpha.numel() == 1 else alpha
    if per_example.dim() != 2 or per_example.shape[1] != 1 or per_example.shape[0] not in (1, *scores.shape[:1]):
        raise ValueError(f"alpha must hold one value or be of shape (B, 1), got {tuple(alpha.shape)}")

    return _distribution(scores, temperature, _Entmax(per_example, entmax_library.entmax_bisect))


class _Entmax:
    """Alpha-entmax, computed by a projection of the entmax package.

    Args:
        alpha: a number, or a tensor (1, 1) or (B, 1).
        projection: the function of the entmax package.
    """

    def __init__(self, alpha: float | torch.Tensor, projection: Callable[..., torch.Tensor]) -> None:
        self.alpha = alpha
        self.constant_alpha = alpha.detach() if isinstance(alpha, torch.Tensor) else alpha
        self.projection = projection

    def probs(self, x: torch.Tensor) -> torch.Tensor:
        """The probabilities (B, C) of scores (B, C), the largest of which is 0.

        A score of -1 / (alpha - 1) or less has probability 0, so that a lower limit changes nothing but keeps
        projections from cancellation and overflow, whatever the scores' scale.
        """
        floor = -2 / (self.constant_alpha - 1)
        x = torch.maximum(x, floor.to(x)) if isinstance(floor, torch.Tensor) else x.clamp(min=floor)
        alpha = self.alpha
        if self.projection is entmax_library.entmax_bisect:
            alpha = (alpha.to(x) if isinstance(alpha, torch.Tensor) else x.new_full((1, 1), alpha)).expand(len(x), 1)
        probs: torch.Tensor = _Projection.apply(x, alpha, self.projection)
        return probs

    @torch.no_grad()
    def threshold(self, x: torch.Tensor) -> torch.Tensor:
        """The score (B, 1) above which the probability is not 0; of scores (B, C), the largest of which is 0.

        The best one gives the score: with the largest x and its p, p = ((alpha - 1) (x - threshold))^(1 / (alpha - 1)).
        """
        best, alpha = self.probs(x).amax(1, keepdim=True), self.constant_alpha
        return x.amax(1, keepdim=True) - best ** (alpha - 1) / (alpha - 1)


class _Projection(torch.autograd.Function):
    """The entmax package's probabilities, with a gradient that can be differentiated again, unlike the package's."""

    @staticmethod
    def forward(
        ctx: Any, scores: torch.Tensor, alpha: float | torch.Tensor, projection: Callable[..., torch.Tensor]
    ) -> torch.Tensor:
        if isinstance(alpha, torch.Tensor):
            probs = projection(scores, alpha, dim=-1)
            ctx.save_for_backward(probs, alpha)
        else:
            probs = projection(scores, dim=-1)
            ctx.save_for_backward(probs)
            ctx.alpha = alpha
        return probs

    @staticmethod
    def backward(ctx: Any, grad_probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        probs, *alphas = ctx.saved_tensors
        alpha = alphas[0] if alphas else ctx.alpha
        positive = probs > 0
        safe = torch.where(positive, probs, 1)
        # dp_i / dx_j = weight_i [i = j] - weight_i share_j with the weights p^(2 - alpha) and their shares of the sum
        if not alphas and alpha == 2:
            weights = positive.to(probs.dtype)
        elif not alphas and alpha == 1.5:
            weights = safe.sqrt() * positive
        else:
            weights = safe ** (2 - alpha) * positive
        total = weights.sum(-1, keepdim=True)
        weighted = grad_probs * weights
        grad_scores = weighted - weights * (weighted.sum(-1, keepdim=True) / total)
        if not ctx.needs_input_grad[1]:
            return grad_scores, None, None
        share, entropy_terms = weights / total, probs * safe.log()
        by_scale = probs - share
        by_power = entropy_terms - share * entropy_terms.sum(-1, keepdim=True)
        by_alpha = by_scale / (alpha - 1) ** 2 - by_power / (alpha - 1)  # dp / dalpha, through factor and exponent
        return grad_scores, (grad_probs * by_alpha).sum(-1, keepdim=True), None


def _distribution(
    scores: torch.Tensor, temperature: float | torch.Tensor, mapping: _Entmax | None
) -> SparseDistribution:
    """The support of softmax, if ``mapping`` is None, or alpha-entmax, sorted.

    There are two device synchronizations for alpha-entmax of a large vocabulary, and one otherwise.
    """
    check_scores(scores, _COLUMNS)
    if not isinstance(temperature, torch.Tensor):
        check_temperature(temperature)
    batch, vocab_size = scores.shape
    wide = probability_type(scores)
    if batch == 0:
        nothing = torch.zeros(1, 0, dtype=torch.long, device=scores.device)
        return SparseDistribution(nothing, scores[:, :1].t().to(wide), vocab_size, validate_args=False)

    constant = scores.detach()
    is_selected = mapping is not None and vocab_size > _FEW_SYMBOLS
    some = _block_maxima(constant) if is_selected else constant
    largest, smallest = some.amax(1, keepdim=True), constant.amin(1, keepdim=True)
    finite = (largest < math.inf) & (smallest > -math.inf)  # False for NaN, which both are if a score is NaN
    largest = largest.to(wide)
    alpha = None if mapping is None else mapping.constant_alpha
    above_1 = (alpha > 1).all() if isinstance(alpha, torch.Tensor) else finite.new_ones(())

    def synchronized(number: torch.Tensor) -> int:
        alpha_is_valid, value = synchronize(finite, above_1, number, scores=constant)
        if not alpha_is_valid:
            raise ValueError("alpha must be above 1 everywhere")
        return value

    def scaled(x: torch.Tensor) -> torch.Tensor:
        x = x.to(wide) - largest
        return x if not isinstance(temperature, torch.Tensor) and temperature == 1 else x / temperature

    with torch.autocast(scores.device.type, enabled=False):
        symbols = None
        if mapping is None:
            probs = torch.softmax(scaled(scores), dim=1)
        else:
            if is_selected:
                lowest = (1 + _MARGIN) * temperature * mapping.threshold(torch.where(finite, scaled(some), 0))
                symbols = _candidates(constant, (largest + lowest).to(scores.dtype), synchronized)
            if symbols is None:
                # scores that are not finite are refused below, and must not make the projection fail
                x = torch.where(finite, scaled(scores), 0)
            else:
                is_repeated = symbols.diff(dim=1, prepend=symbols.new_full((batch, 1), -1)) == 0
                x = torch.where(is_repeated, -math.inf, scaled(scores.gather(1, symbols)))
            probs = mapping.probs(x)

    rows = synchronized((probs.detach() > 0).sum(1).max())
    order = descending(probs.detach(), rows)
    probs = probs.gather(1, order)
    symbols = order if symbols is None else symbols.gather(1, order)
    messages = torch.where(probs.detach() > 0, symbols, symbols[:, :1])  # padded rows repeat the first
    return SparseDistribution(messages.t(), probs.t(), vocab_size, validate_args=False)


def _block_maxima(x: torch.Tensor) -> torch.Tensor:
    """The largest values of blocks of neighboring columns: (B, V) -> (B, M)."""
    width = max(_LEAST_WIDTH, x.shape[1] // _FEW_SYMBOLS)
    blocks, rest = x.split((x.shape[1] // width * width, x.shape[1] % width), dim=1)
    maxima = blocks.unflatten(1, (-1, width)).amax(2)
    return torch.cat((maxima, rest.amax(1, keepdim=True)), 1) if rest.shape[1] else maxima


def _candidates(
    scores: torch.Tensor, lowest: torch.Tensor, synchronized: Callable[[torch.Tensor], int]
) -> torch.Tensor | None:
    """The symbols (B, C) with scores of at least ``lowest`` (B, 1), ascending.

    C is the largest number of them; in rows of fewer, other symbols are among them, or the last one is repeated.
    None if C is more than half of the vocabulary, where selecting them does not pay.
    """
    is_candidate = scores >= lowest
    mask = as_array(is_candidate)
    vocab_size = scores.shape[1]
    if not isinstance(mask, np.ndarray):
        count = synchronized(is_candidate.sum(1).max())
        if 2 * count > vocab_size:
            return None
        return scores.topk(count, dim=1, sorted=False).indices.sort(dim=1).values
    synchronized(lowest.new_zeros(()))
    if 2 * np.count_nonzero(mask) > mask.size:
        return None
    places = np.flatnonzero(mask)
    ends = np.searchsorted(places, vocab_size * np.arange(1, len(mask) + 1))
    starts = np.concatenate(([0], ends[:-1]))
    count = int((ends - starts).max())
    if 2 * count > vocab_size:
        return None
    slots = np.minimum(starts[:, None] + np.arange(count), ends[:, None] - 1)
    return torch.from_numpy(places[slots] % vocab_size)
