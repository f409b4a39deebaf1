"""Distributions over the symbols of a vocabulary: softmax, sparsemax, 1.5-entmax and alpha-entmax.

All four solve, for the scores x of each example,

    p = argmax_{p in the simplex}  <p, x> + H_alpha(p),

with the Tsallis entropy H_alpha: alpha = 1 is softmax, 1.5 is 1.5-entmax, 2 is sparsemax. For alpha > 1 most
probabilities are exactly 0. For alpha = 1.5 and 2 they are found by sorting the scores, for others by the bisection of
the entmax package. Gradients are those of the symbols in the support alone, and can be differentiated again.

Over a large vocabulary this would cost more than the layer that computes the scores, so that symbols without a
probability are left out first. A symbol is in the support if its score is above a threshold. A further symbol never
lowers this threshold, so that the threshold of a part of the vocabulary is a lower bound. The part is the best
symbol of each of a few hundred blocks: it contains most of the best symbols, so that hardly any symbols but those in
the support remain above its threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import entmax as entmax_library
import numpy as np
import torch

from egg_sparse.distribution import SparseDistribution
from egg_sparse.mappings.arrays import as_array, as_tensor
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
    return _distribution(scores, temperature, _named(2.0))


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
    return _distribution(scores, temperature, _named(1.5))


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
        return _distribution(scores, temperature, _named(alpha))
    check_scores(scores, _COLUMNS)
    if not alpha.is_floating_point():
        raise TypeError(f"alpha must be floating point, got {alpha.dtype}")
    per_example = alpha.reshape(1, 1) if alpha.numel() == 1 else alpha
    if per_example.dim() != 2 or per_example.shape[1] != 1 or per_example.shape[0] not in (1, *scores.shape[:1]):
        raise ValueError(f"alpha must hold one value or be of shape (B, 1), got {tuple(alpha.shape)}")

    return _distribution(scores, temperature, _bisected(per_example))


#: The alpha of the mappings that have names.
ALPHAS = {"softmax": 1.0, "entmax15": 1.5, "sparsemax": 2.0}


def probabilities(
    scores: torch.Tensor, alpha: float | torch.Tensor, temperature: float | torch.Tensor = 1.0
) -> torch.Tensor:
    """Alpha-entmax as probabilities of all symbols, without a synchronization with the device.

    Args:
        scores: ``(B, V)``, floating point and finite, which is not checked.
        alpha: 1 for softmax; as in :func:`entmax` for others.
        temperature: as in :func:`softmax`.

    Returns:
        ``(B, V)``, in at least float32, differentiable.

    Example:
        >>> probabilities(torch.tensor([[0.1, 1.0, 0.6, -2.0]]), alpha=2.0).round(decimals=4).tolist()
        [[0.0, 0.699999988079071, 0.30000001192092896, 0.0]]
    """
    with torch.autocast(scores.device.type, enabled=False):
        x = scores.to(probability_type(scores))
        if not isinstance(temperature, torch.Tensor):
            temperature = max(temperature, torch.finfo(x.dtype).tiny)  # a smaller one is 0 in that dtype
        x = (x - x.detach().amax(1, keepdim=True)) / temperature
        if not isinstance(alpha, torch.Tensor) and alpha == 1:
            return torch.softmax(x, dim=1)
        mapping = _named(alpha)
        with torch.no_grad():
            found = mapping.probs(x)
        return mapping.differentiable(found, x)


def checked_alpha(normalizer: str | float | torch.Tensor) -> float | torch.Tensor:
    """The alpha of a normalizer: "softmax", "entmax15", "sparsemax", or an alpha above 1 itself.

    Raises:
        TypeError, ValueError: the normalizer is none of these.
    """
    if isinstance(normalizer, str):
        if normalizer not in ALPHAS:
            raise ValueError(f"normalizer must be one of {', '.join(ALPHAS)} or a number above 1, got {normalizer!r}")
        return ALPHAS[normalizer]
    if isinstance(normalizer, torch.Tensor):
        if normalizer.numel() != 1 or not normalizer.is_floating_point():
            raise ValueError(f"a tensor as normalizer must hold one floating-point alpha, got {normalizer}")
        return normalizer.reshape(1, 1)
    if isinstance(normalizer, bool) or not isinstance(normalizer, (int, float)):
        raise TypeError(f"normalizer must be a string, a number or a tensor, got {type(normalizer).__name__}")
    if not 1 < normalizer < math.inf:
        raise ValueError(f"normalizer, given as alpha, must be a finite number above 1, got {normalizer}")
    return float(normalizer)


def _named(alpha: float | torch.Tensor) -> _Entmax:
    """Alpha-entmax, in closed form where there is one."""
    if not isinstance(alpha, torch.Tensor):
        if alpha == 1.5:
            return _Entmax(1.5, _entmax15_probs)
        if alpha == 2:
            return _Entmax(2.0, _sparsemax_probs)
    return _bisected(alpha)


def _sparsemax_probs(x: torch.Tensor) -> torch.Tensor:
    """Sparsemax of scores (B, C): the threshold of the k best is (sum - 1) / k, k the largest with all above it."""
    best, counts = _sorted(x)
    sums = best.cumsum(1) - 1
    sizes = (counts * best > sums).sum(1, keepdim=True)
    return (x - sums.gather(1, sizes - 1) / sizes).clamp_(min=0)


def _entmax15_probs(x: torch.Tensor) -> torch.Tensor:
    """1.5-entmax of scores (B, C): the threshold of the k best solves a quadratic equation, with k as in sparsemax."""
    x = x / 2
    best, counts = _sorted(x)
    means, means_of_squares = best.cumsum(1) / counts, best.square().cumsum(1) / counts
    thresholds = means - (1 / counts - (means_of_squares - means.square())).clamp_(min=0).sqrt()
    sizes = (thresholds <= best).sum(1, keepdim=True)
    return (x - thresholds.gather(1, sizes - 1)).clamp_(min=0).square()


def _sorted(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The values of each row (B, C) in descending order, and the number of values up to each (C,)."""
    values = as_array(x)
    best = -np.sort(-values, axis=1) if isinstance(values, np.ndarray) else values.sort(dim=1, descending=True).values
    return as_tensor(best), torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)


class _Entmax:
    """Alpha-entmax.

    Args:
        alpha: a number, or a tensor (1, 1) or (B, 1).
        probs: the function from scores (B, C), the largest of which is 0, to probabilities, without a gradient.
    """

    def __init__(self, alpha: float | torch.Tensor, probs: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.alpha = alpha
        self.constant_alpha = alpha.detach() if isinstance(alpha, torch.Tensor) else alpha
        self._probs = probs

    def probs(self, x: torch.Tensor) -> torch.Tensor:
        """The probabilities (B, C) of scores (B, C), the largest of which is 0.

        A score of -1 / (alpha - 1) or less has probability 0, so that a lower limit changes nothing but keeps
        projections from cancellation and overflow, whatever the scores' scale.
        """
        floor = -2 / (self.constant_alpha - 1)
        x = torch.maximum(x, floor.to(x)) if isinstance(floor, torch.Tensor) else x.clamp(min=floor)
        return self._probs(x)

    def threshold(self, x: torch.Tensor) -> torch.Tensor:
        """The score (B, 1) above which the probability is not 0; of scores (B, C), the largest of which is 0.

        The best one gives the score: with the largest x and its p, p = ((alpha - 1) (x - threshold))^(1 / (alpha - 1)).
        """
        best, alpha = self.probs(x).amax(1, keepdim=True), self.constant_alpha
        return x.amax(1, keepdim=True) - best ** (alpha - 1) / (alpha - 1)

    def differentiable(self, probs: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The probabilities (B, K) of the support as a function of their scores (B, K) and alpha."""
        alpha = self.alpha.to(x).expand(len(x), 1) if isinstance(self.alpha, torch.Tensor) else self.alpha
        result: torch.Tensor = _Gradient.apply(x, alpha, probs)
        return result


def _bisected(alpha: float | torch.Tensor) -> _Entmax:
    """Alpha-entmax for any alpha, by the bisection of the entmax package."""

    def probs(x: torch.Tensor) -> torch.Tensor:
        constant = alpha.detach().to(x) if isinstance(alpha, torch.Tensor) else x.new_full((1, 1), alpha)
        found: torch.Tensor = entmax_library.entmax_bisect(x, constant.expand(len(x), 1), dim=1)
        return found

    return _Entmax(alpha, probs)


class _Gradient(torch.autograd.Function):
    """Given probabilities (B, K) as a function of their scores (B, K) and alpha, which can be differentiated twice."""

    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor, alpha: float | torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        probs = probs.clone()
        ctx.save_for_backward(probs, *((alpha,) if isinstance(alpha, torch.Tensor) else ()))
        ctx.alpha = None if isinstance(alpha, torch.Tensor) else alpha
        return probs

    @staticmethod
    def backward(ctx: Any, grad_probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        probs, *alphas = ctx.saved_tensors
        alpha = alphas[0] if alphas else ctx.alpha
        positive = probs > 0
        # dp_i / dx_j = weight_i [i = j] - weight_i share_j with the weights p^(2 - alpha) and their shares of the sum
        if ctx.alpha == 2:
            weights = positive.to(probs.dtype)
        else:
            safe = torch.where(positive, probs, 1)
            weights = (safe.sqrt() if ctx.alpha == 1.5 else safe ** (2 - alpha)) * positive
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
        temperature = max(temperature, torch.finfo(probability_type(scores)).tiny)  # a smaller one is 0 in that dtype
    batch, vocab_size = scores.shape
    wide = probability_type(scores)
    if batch == 0:
        nothing = torch.zeros(1, 0, dtype=torch.long, device=scores.device)
        return SparseDistribution(nothing, scores[:, :1].t().to(wide), vocab_size, validate_args=False)

    constant = scores.detach()
    alpha = None if mapping is None else mapping.constant_alpha
    is_selected = mapping is not None and vocab_size > _FEW_SYMBOLS
    some = _block_maxima(constant) if is_selected else constant
    largest, smallest = some.amax(1, keepdim=True), constant.amin(1, keepdim=True)
    finite = (largest < math.inf) & (smallest > -math.inf)  # False for NaN, which both are if a score is NaN
    largest = largest.to(wide)
    above_1 = (alpha > 1).all() if isinstance(alpha, torch.Tensor) else finite.new_ones(())

    def synchronized(number: torch.Tensor) -> int:
        alpha_is_valid, value = synchronize(finite, above_1, number, scores=constant)
        if not alpha_is_valid:
            raise ValueError("alpha must be above 1 everywhere")
        return value

    def scaled(x: torch.Tensor) -> torch.Tensor:
        x = x.to(wide) - largest
        return x if not isinstance(temperature, torch.Tensor) and temperature == 1 else x / temperature

    def candidates(mapping: _Entmax) -> tuple[torch.Tensor | None, torch.Tensor]:
        """The symbols (B, C) that may be in the support, None for all, and their scores, scaled."""
        symbols = None
        if is_selected:
            lowest = (1 + _MARGIN) * temperature * mapping.threshold(torch.where(finite, scaled(some), 0))
            symbols = _candidates(constant, (largest + lowest).to(scores.dtype), synchronized)
        if symbols is None:
            return None, torch.where(finite, scaled(constant), 0)  # until scores that are not finite are refused below
        is_repeated = symbols.diff(dim=1, prepend=symbols.new_full((batch, 1), -1)) == 0
        return symbols, torch.where(is_repeated, -math.inf, scaled(constant.gather(1, symbols)))

    with torch.autocast(scores.device.type, enabled=False):
        if mapping is None:
            all_probs = torch.softmax(scaled(scores), dim=1)
            symbols, found = None, all_probs.detach()
        else:
            with torch.no_grad():
                symbols, x = candidates(mapping)
                found = mapping.probs(x)
        rows = synchronized((found > 0).sum(1).max())
        order = descending(found, rows)
        symbols = order if symbols is None else symbols.gather(1, order)
        found = found.gather(1, order)
        messages = torch.where(found > 0, symbols, symbols[:, :1])  # padded rows repeat the first
        if mapping is None:
            probs = all_probs.gather(1, order)
        else:
            probs = mapping.differentiable(found, scaled(scores.gather(1, messages)))
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
