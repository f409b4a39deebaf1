r"""Bounding a support without bias, in one of two ways.

Resampling: some messages are drawn, and weighed so that expectations stay right on average. Of a distribution p with
more than K messages the K that are played are drawn with inclusion probabilities

    q_m = min(1, c p_m),    c such that they sum to K,

by systematic sampling, and weighed by p_m / q_m: those with c p_m >= 1 are kept as they are, the others share what is
left in equal weights of 1 / c. Since E[1 / q_m] over draws is 1, sum_m p_m f_m / q_m over those drawn is an unbiased
estimate of E[f]. Of all such choices of K messages this one has the least expected squared error of the weights.

Source: Fearnhead and Clifford, "On-line inference for hidden Markov models via particle filters" (JRSS B, 2003).

Sum-and-sample: the most probable messages are summed exactly, and the probability of all others is given to one
sample. For a distribution p with most probable messages C and rest r = 1 - sum_{m in C} p(m),

    sum_{m in C} p(m) loss(m) + r loss(m'),    m' ~ p / r outside C,

is an unbiased estimate of the expected loss: Rao-Blackwell's theorem, with less variance than a sample from p.

Source: Liu et al., "Rao-Blackwellized Stochastic Gradients for Discrete Distributions" (AISTATS 2019).
"""

from __future__ import annotations

import torch

from egg_sparse.distribution import SparseDistribution


@torch.no_grad()
def inclusion_probabilities(probs: torch.Tensor, max_support: int) -> torch.Tensor:
    r""":math:`q_m = \min(1, c\, p_m)` with :math:`\sum_m q_m` = ``max_support``, for every example.

    Args:
        probs: ``(K, B)``, non-negative, every column in descending order.
        max_support: the number of messages to draw.

    Returns:
        ``(K, B)`` float64 (float32 on a device without it). Where no more than ``max_support`` messages have a
        non-zero probability, 1 for these, and 0 for the others.

    Example:
        >>> inclusion_probabilities(torch.tensor([[0.5], [0.25], [0.125], [0.125]]), 3).flatten().tolist()
        [1.0, 1.0, 0.5, 0.5]
    """
    p = probs.to(torch.float32 if probs.device.type == "mps" else torch.float64)
    rows = torch.arange(len(p), device=p.device, dtype=p.dtype)[:, None]
    rest = p.flip(0).cumsum(0).flip(0)
    # with the first k messages kept, c is (K - k) / rest_k; the smallest k whose own message then has c p_k < 1
    scale = (max_support - rows).clamp(min=0) / torch.where(rest > 0, rest, 1)
    drawn = (scale * p < 1) & (rows < max_support)
    kept = torch.where(drawn.any(0), drawn.long().argmax(0), max_support)
    scale = scale.gather(0, kept.clamp(max=len(p) - 1)[None])
    q = torch.where(rows < kept, 1.0, (scale * p).clamp(max=1))
    return torch.where((p > 0).sum(0) <= max_support, (p > 0).to(p.dtype), q)


@torch.no_grad()
def drawn_rows(inclusion: torch.Tensor, max_support: int) -> torch.Tensor:
    """Rows that are drawn by systematic sampling with given inclusion probabilities.

    Args:
        inclusion: ``(K, B)``, every column with a sum of ``max_support``, or of fewer whole ones in its first rows.
        max_support: the number of rows to draw.

    Returns:
        ``(max_support, B)`` long, ascending. Where the sum is lower, the rows after the last one are 0.
    """
    ends = inclusion.cumsum(0)
    total = ends[-1:].round()
    points = torch.arange(max_support, device=ends.device, dtype=ends.dtype)[:, None]
    uniform = torch.rand(ends.shape[1], device=ends.device, dtype=ends.dtype)
    found = torch.searchsorted(ends.t().contiguous(), (points + uniform).t().contiguous(), right=True).t()
    return torch.where(points < total, found.clamp(max=len(inclusion) - 1), 0)


def resample(distribution: SparseDistribution, max_support: int) -> SparseDistribution:
    """A distribution of at most ``max_support`` rows whose expectations are unbiased estimates of the given one's.

    Args:
        distribution: the distribution to bound.
        max_support: the largest support afterwards.

    Returns:
        The distribution itself if it is within the bound. Else one of ``max_support`` rows: ``probs`` are the
        messages' own, so that they do not sum to 1; ``ratios``, without gradient, make ``weights``, which
        expectations use; ``is_exact`` ``(B,)`` is True for the examples that have lost no message. Row 0 is the most
        probable of the messages that were drawn.

    Example:
        >>> d = SparseDistribution(torch.arange(4)[:, None], torch.tensor([[0.5], [0.25], [0.125], [0.125]]))
        >>> bounded = resample(d, 3)
        >>> bounded.weights.flatten().tolist(), bounded.is_exact
        ([0.5, 0.25, 0.25], tensor([False]))
    """
    probs = distribution.probs
    if len(probs) <= max_support:
        return distribution
    inclusion = inclusion_probabilities(probs, max_support)
    rows = drawn_rows(inclusion, max_support)
    support_size = distribution.support_size
    inside = torch.arange(max_support, device=probs.device)[:, None] < support_size
    messages = distribution.messages
    index = rows.view(*rows.shape, *(1,) * (messages.dim() - 2)).expand(-1, -1, *messages.shape[2:])
    bounded = SparseDistribution(
        messages.gather(0, index),
        torch.where(inside, probs.gather(0, rows), 0),
        distribution.vocab_size,
        validate_args=False,
    )
    bounded.ratios = torch.where(inside, 1 / inclusion.gather(0, rows), 1).to(probs.dtype)
    exact = support_size <= max_support
    bounded.is_exact = exact if distribution.is_exact is None else exact & distribution.is_exact
    bounded.duality_gap = distribution.duality_gap
    return bounded


def sum_and_sample(distribution: SparseDistribution, max_support: int) -> tuple[SparseDistribution, torch.Tensor]:
    """The terms to play: ``max_support`` rows of the distribution, and one with a sample of the others.

    Args:
        distribution: the distribution, of more than ``max_support`` rows, not resampled.
        max_support: rows that are kept as they are.

    Returns:
        A SparseDistribution of ``max_support + 1`` rows whose expectations are unbiased estimates of those of the
        distribution; the last row has all remaining probability, without a gradient, and none where nothing
        remains: there, as in all padded rows, the message is that of row 0. And the log-probability ``(B,)`` of the
        sample, with a gradient; 0 where nothing remains.

    Example:
        >>> d = SparseDistribution(torch.tensor([[3], [1], [0]]), torch.tensor([[0.5], [0.25], [0.25]]))
        >>> terms, log_prob = sum_and_sample(d, 1)
        >>> terms.probs.tolist(), terms.messages[1].item() in (0, 1)
        ([[0.5], [0.5]], True)
    """
    if distribution.ratios is not None:
        raise ValueError("distribution must be one that has not been resampled: its probabilities do not sum to 1")
    kept, rest = distribution.probs[:max_support], distribution.probs[max_support:]
    weights = rest.detach().to(torch.promote_types(rest.dtype, torch.float32))
    remaining = weights.sum(0)
    drawn = torch.multinomial(torch.where(remaining > 0, weights, 1.0).t(), 1).t()
    of_sample = rest.t().gather(1, drawn.t()).t()  # on torch 2.4 the gradient along axis 0 is wrong
    probs = torch.cat((kept, remaining[None].to(kept.dtype)))
    rows = torch.arange(max_support, device=drawn.device)[:, None].expand(-1, drawn.shape[1])
    index = torch.cat((rows, drawn + max_support)) * (probs > 0)  # padded rows repeat the first
    messages = distribution.messages
    if messages.dim() == 3:
        index = index[:, :, None].expand(-1, -1, messages.shape[2])
    terms = SparseDistribution(messages.gather(0, index), probs, distribution.vocab_size, validate_args=False)
    return terms, torch.where(of_sample > 0, of_sample, 1.0).log()[0]


def score_of_sample(terms: SparseDistribution, log_prob: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    r"""What the expectation of the losses lacks for its gradient to be unbiased, ``(B,)``, of value 0.

    The score function of the sample, with the mean loss b of the exact terms as baseline: b is no function of the
    sample, and is taken off all terms, so that it changes the gradient by :math:`b \nabla \sum_m p(m) = 0`.

    Args:
        terms: the terms that :func:`sum_and_sample` returned.
        log_prob: the log-probability of the sample, returned with them.
        losses: the losses of the terms, ``(max_support + 1, B)``.
    """
    exact, remaining = terms.probs[:-1], terms.probs[-1]
    known = torch.where(exact > 0, losses[:-1], 0).detach()
    total = exact.detach().sum(0)
    baseline = (exact.detach() * known).sum(0) / total
    advantage = torch.where(remaining > 0, losses[-1].detach() - baseline, 0)
    score = remaining * advantage * (log_prob - log_prob.detach())
    return score - baseline * (exact.sum(0) - total)
