"""Statistics of the messages for objects of several attributes: topographic similarity, posdis, bosdis."""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F

from egg_sparse import host

_NO_ENTROPY = 1e-9


def _entropy(probs: torch.Tensor) -> torch.Tensor:
    """The entropy over the last axis, in nats."""
    return torch.special.entr(probs).sum(-1)


def _information_gap(attributes: torch.Tensor, symbols: torch.Tensor) -> float | None:
    r"""The mean over the columns :math:`j` of ``symbols`` of

    .. math:: (I(s_j; a_j^1) - I(s_j; a_j^2)) / H(s_j),

    where :math:`a_j^1` and :math:`a_j^2` are the two attributes that share the most information with the column.
    Columns without entropy are left out.

    Args:
        attributes: whole numbers from 0 on ``(n, n_attributes)``, at least two attributes.
        symbols: whole numbers from 0 on ``(n, n_columns)``.

    Returns:
        The mean; None if no column has entropy.
    """
    values, written = F.one_hot(attributes).double(), F.one_hot(symbols).double()
    joint = torch.einsum("nav,njs->ajvs", values, written) / len(attributes)
    of_symbols = _entropy(written.mean(0))
    information = _entropy(values.mean(0))[:, None] + of_symbols - _entropy(joint.flatten(2))
    best, second = information.topk(2, dim=0).values
    varies = of_symbols > _NO_ENTROPY
    return float(((best - second) / of_symbols)[varies].mean()) if varies.any() else None


def posdis(attributes: torch.Tensor, messages: torch.Tensor) -> float | None:
    """Positional disentanglement: how much the symbol at a position says of one attribute alone.

    Args:
        attributes: the objects' values ``(n, n_attributes)``.
        messages: their messages ``(n, L)``, zeros from the end symbol on.

    Returns:
        A number from 0 to 1; None if all messages are equal.

    Example:
        >>> attributes = torch.cartesian_prod(torch.arange(3), torch.arange(3))
        >>> round(posdis(attributes, attributes + 1), 6)
        1.0

    Source: Chaabouni et al., "Compositionality and Generalization in Emergent Languages" (ACL 2020), section 3.
    """
    return _information_gap(attributes, messages)


def bosdis(attributes: torch.Tensor, messages: torch.Tensor, vocab_size: int) -> float | None:
    """Bag-of-symbols disentanglement: how much the count of a symbol says of one attribute alone, in any position.

    The end symbol, 0, does not count.

    Args:
        attributes: the objects' values ``(n, n_attributes)``.
        messages: their messages ``(n, L)``, zeros from the end symbol on.
        vocab_size: the number of symbols.

    Returns:
        A number from 0 to 1; None if all messages have the same symbols.

    Example:
        >>> attributes = torch.cartesian_prod(torch.arange(3), torch.arange(3))
        >>> round(bosdis(attributes, attributes + torch.tensor([1, 4]), vocab_size=7), 6)
        1.0

    Source: see :func:`posdis`.
    """
    counts = F.one_hot(messages, vocab_size).sum(1)[:, 1:]
    return _information_gap(attributes, counts) if vocab_size > 1 else None


def topographic_similarity(attributes: torch.Tensor, messages: torch.Tensor) -> float | None:
    """The Spearman correlation of the objects' Hamming distances and the messages' edit distances, as EGG computes it.

    Args:
        attributes: the objects' values ``(n, n_attributes)``.
        messages: their messages ``(n, L)``.

    Returns:
        A number from -1 to 1; None where all distances between objects, or between messages, are the same.
    """
    from scipy.stats import ConstantInputWarning

    if len(messages) < 3:
        return None
    compute = host.core.TopographicSimilarity.compute_topsim
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)  # the correlation is NaN then
        topsim = compute(attributes, messages, "hamming", "edit")
    return None if math.isnan(topsim) else float(topsim)
