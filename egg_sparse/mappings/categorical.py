"""Distributions over the symbols of a vocabulary: softmax, sparsemax, 1.5-entmax and alpha-entmax.

All four solve, for the scores x of each example,

    p = argmax_{p in the simplex}  <p, x> + H_alpha(p),

with the Tsallis entropy H_alpha: alpha = 1 is softmax, 1.5 is 1.5-entmax, 2 is sparsemax. For alpha > 1 most
probabilities are exactly 0. The entmax package computes the projections; this module turns its dense results into
supports and defines gradients that can be differentiated again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import entmax as entmax_library
import torch

from egg_sparse.distribution import SparseDistribution
from egg_sparse.mappings.scores import check_scores, synchronize, working_copy

_COLUMNS = "V symbols"


def softmax(scores: torch.Tensor) -> SparseDistribution:
    r"""Softmax: :math:`p_i \propto \exp(x_i)`.

    It is not sparse: all symbols whose probability does not underflow are in the support, and a game plays them all.
    It is the dense baseline of the paper.

    Args:
        scores: ``(B, V)``, floating point, finite; V symbols.

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
    return _distribution(scores, lambda x: torch.softmax(x, dim=-1))


def sparsemax(scores: torch.Tensor) -> SparseDistribution:
    r"""The Euclidean projection of the scores on the simplex,

    .. math:: p = \arg\min_{p \in \triangle} \|p - x\|^2 .

    Args:
        scores: ``(B, V)``, floating point, finite. The larger their differences, the smaller the support.

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
    return _distribution(scores, lambda x: _project(entmax_library.sparsemax, x, 2.0))


def entmax15(scores: torch.Tensor) -> SparseDistribution:
    r"""1.5-entmax: :math:`p_i = [x_i / 2 - \tau]_+^2`, between softmax and sparsemax.

    Args:
        scores: ``(B, V)``, floating point, finite.

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
    return _distribution(scores, lambda x: _project(entmax_library.entmax15, x, 1.5))


def entmax(scores: torch.Tensor, alpha: float | torch.Tensor) -> SparseDistribution:
    r"""Alpha-entmax for any alpha > 1: :math:`p_i = [(\alpha - 1) x_i - \tau]_+^{1/(\alpha - 1)}`.

    The numbers 1.5 and 2 have closed forms; other values, and tensors, need a bisection to the precision of the dtype.
    The result is differentiable with respect to a tensor alpha as well.

    Args:
        scores: ``(B, V)``, floating point, finite.
        alpha: a number, or a floating-point tensor that broadcasts with ``(B, 1)``.

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
        closed_forms: dict[float, Callable[[torch.Tensor], SparseDistribution]] = {1.5: entmax15, 2.0: sparsemax}
        if alpha in closed_forms:
            return closed_forms[alpha](scores)
        return _distribution(
            scores, lambda x: _project(entmax_library.entmax_bisect, x, x.new_full((len(x), 1), alpha))
        )
    check_scores(scores, _COLUMNS)
    if not alpha.is_floating_point():
        raise TypeError(f"alpha must be floating point, got {alpha.dtype}")
    per_example = alpha.reshape(1, 1) if alpha.numel() == 1 else alpha
    if per_example.dim() != 2 or per_example.shape[1] != 1 or per_example.shape[0] not in (1, *scores.shape[:1]):
        raise ValueError(f"alpha must hold one value or be of shape (B, 1), got {tuple(alpha.shape)}")

    return _distribution(
        scores,
        lambda x: _project(entmax_library.entmax_bisect, x, per_example.to(x).expand(x.shape[0], 1)),
        alpha=per_example,
    )


def _project(
    projection: Callable[..., torch.Tensor], scores: torch.Tensor, alpha: float | torch.Tensor
) -> torch.Tensor:
    """The probabilities (B, V) of scores (B, V), by a function of the entmax package; alpha is a number or (B, 1)."""
    constant = alpha.detach() if isinstance(alpha, torch.Tensor) else alpha
    probs: torch.Tensor = _Projection.apply(_stable(scores, constant), alpha, projection)
    return probs


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


def _stable(scores: torch.Tensor, alpha: float | torch.Tensor) -> torch.Tensor:
    """Scores with the same probabilities and gradients, the largest 0 and all others at least -2 / (alpha - 1).

    A score of 1 / (alpha - 1) or more below the largest has probability 0, so that clipping changes nothing. The
    projections then neither cancel nor overflow, whatever the scores' scale.
    """
    shifted = scores - scores.detach().amax(-1, keepdim=True)
    floor = -2 / (alpha - 1)
    return torch.maximum(shifted, floor) if isinstance(floor, torch.Tensor) else shifted.clamp(min=floor)


def _distribution(
    scores: torch.Tensor, normalize: Callable[[torch.Tensor], torch.Tensor], alpha: torch.Tensor | None = None
) -> SparseDistribution:
    """The support of ``normalize(scores)``, sorted, with one device synchronization."""
    check_scores(scores, _COLUMNS)
    batch, vocab_size = scores.shape
    x, finite = working_copy(scores)
    with torch.autocast(scores.device.type, enabled=False):
        probs = normalize(x)
    if batch == 0:
        nothing = torch.zeros(1, 0, dtype=torch.long, device=scores.device)
        return SparseDistribution(nothing, probs[:, :1].t(), vocab_size, validate_args=False)

    largest_support = (probs.detach() > 0).sum(1).max()
    above_1 = torch.ones_like(largest_support) if alpha is None else (alpha.detach() > 1).all()
    rows, alpha_is_valid = synchronize(finite, largest_support, above_1)
    if not alpha_is_valid:
        raise ValueError("alpha must be above 1 everywhere")

    symbols = probs.detach().topk(rows, dim=1, sorted=False).indices.sort(dim=1).values
    order = probs.detach().gather(1, symbols).sort(dim=1, descending=True, stable=True).indices
    symbols = symbols.gather(1, order)
    probs = probs.gather(1, symbols)
    messages = torch.where(probs.detach() > 0, symbols, symbols[:, :1])  # padded rows repeat the first
    return SparseDistribution(messages.t(), probs.t(), vocab_size, validate_args=False)
