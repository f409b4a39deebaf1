r"""Bounding a support without bias, in one of two ways.

Resampling draws some of the messages and weighs them so that expectations stay unbiased. From a distribution p with
more than K messages it draws K by systematic sampling, with the inclusion probabilities

    q_m = min(1, c p_m),    c such that they sum to K,

and weighs them by p_m / q_m: messages with c p_m >= 1 are kept as they are, all others have the weight 1 / c. A message
is drawn with probability q_m, so that the sum of p_m f_m / q_m over the drawn messages is an unbiased estimate of E[f].
Among all ways to choose K messages this one has the least expected squared error of the weights.

Source: Fearnhead and Clifford, "On-line inference for hidden Markov models via particle filters" (JRSS B, 2003).

Sum-and-sample sums the most probable messages exactly and gives the probability of all others to one sample. With the
most probable messages C of a distribution p and the rest r = 1 - sum_{m in C} p(m),

    sum_{m in C} p(m) loss(m) + r loss(m'),    m' ~ p / r outside C,

is an unbiased estimate of the expected loss, by the Rao-Blackwell theorem with less variance than a sample from p.

Source: Liu et al., "Rao-Blackwellized Stochastic Gradients for Discrete Distributions" (AISTATS 2019).
"""

from __future__ import annotations

import torch

from egg_sparse.distribution import SparseDistribution
from egg_sparse.mappings.arrays import widen


@torch.no_grad()
def inclusion_probabilities(probs: torch.Tensor, max_support: int) -> torch.Tensor:
    r"""The inclusion probabilities :math:`q_m = \min(1, c\, p_m)` with the sum ``max_support``, for each example.

    Args:
        probs: ``(K, B)``, non-negative, each column in descending order.
        max_support: the number of messages to draw.

    Returns:
        ``(K, B)``, in float64, or float32 on a device without float64. If the support of an example has at most
        ``max_support`` messages, they have the inclusion probability 1 and all others 0.

    Example:
        >>> inclusion_probabilities(torch.tensor([[0.5], [0.25], [0.125], [0.125]]), 3).flatten().tolist()
        [1.0, 1.0, 0.5, 0.5]
    """
    top = widen(probs[:max_support])  # no others are kept with certainty
    kept, scale = _kept_and_scale(top, probs[max_support:].sum(0, dtype=top.dtype), max_support)
    rows = torch.arange(len(top), device=top.device)[:, None]
    q = (scale * probs).clamp_(max=1)
    within_bound = (probs[max_support : max_support + 1] == 0).all(0)
    q[:max_support] = torch.where(within_bound, (top > 0).to(top), torch.where(rows < kept, 1.0, q[:max_support]))
    return q


def _kept_and_scale(top: torch.Tensor, others: torch.Tensor, max_support: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The number of messages with the inclusion probability 1, and the factor c of the others, both ``(B,)``.

    Args:
        top: the ``max_support`` largest weights ``(K, B)``, each column in descending order.
        others: the sum of all other weights ``(B,)``.
        max_support: the number of messages to draw.
    """
    rows = torch.arange(len(top), device=top.device, dtype=top.dtype)[:, None]
    rest = top.flip(0).cumsum(0).flip(0) + others
    # If the first k messages are kept, c is (K - k) / rest_k. As many are kept as the smallest k with c p_k < 1.
    scales = (max_support - rows) / torch.where(rest > 0, rest, 1)
    drawn = scales * top < 1
    kept = torch.where(drawn.any(0), drawn.long().argmax(0), max_support)
    return kept, torch.where(kept < max_support, scales.gather(0, kept.clamp(max=len(top) - 1)[None])[0], 0)


@torch.no_grad()
def drawn_rows(inclusion: torch.Tensor, max_support: int) -> torch.Tensor:
    """The rows drawn by systematic sampling with given inclusion probabilities.

    Args:
        inclusion: ``(K, B)``; the sum of each column is ``max_support``, or the column starts with fewer ones and is 0
            below them.
        max_support: the number of rows to draw.

    Returns:
        ``(max_support, B)`` long, ascending in each column; 0 after the last row drawn, if there are fewer.
    """
    ends = inclusion.cumsum(0)
    total = ends[-1:].round()
    points = torch.arange(max_support, device=ends.device, dtype=ends.dtype)[:, None]
    uniform = torch.rand(ends.shape[1], device=ends.device, dtype=ends.dtype)
    found = torch.searchsorted(ends.t().contiguous(), (points + uniform).t().contiguous(), right=True).t()
    return torch.where(points < total, found.clamp(max=len(inclusion) - 1), 0)


@torch.no_grad()
def draw_by_group(
    weights: torch.Tensor, groups: torch.Tensor, n_groups: int, max_support: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""Draws at most ``max_support`` elements of each group by systematic sampling, without a loop or a host copy.

    The inclusion probabilities are :math:`q_i = \min(1, c\, w_i)` with the sum ``max_support`` in each group. All
    elements of a group are kept if no more than ``max_support`` of its weights are above 0.

    Args:
        weights: the elements' weights ``(N,)``, non-negative.
        groups: the elements' groups ``(N,)`` long, in any order.
        n_groups: the number of groups.
        max_support: the largest number of elements that remain in a group.

    Returns:
        Whether an element is drawn, ``(N,)`` bool, False for weights of 0; the inclusion probabilities ``(N,)``, as in
        :func:`inclusion_probabilities`; and whether a group kept all its elements, ``(n_groups,)`` bool.

    Example:
        >>> weights = torch.tensor([0.125, 0.5, 0.25, 0.125, 0.0, 1.0])
        >>> drawn, q, is_exact = draw_by_group(weights, torch.tensor([0, 0, 0, 0, 1, 1]), 2, max_support=3)
        >>> q.tolist(), is_exact.tolist()
        ([0.5, 1.0, 1.0, 0.5, 0.0, 1.0], [False, True])
        >>> drawn[[1, 2, 4, 5]].tolist(), int(drawn[:4].sum())
        ([True, True, False, True], 3)
    """
    device = weights.device
    w = widen(weights)
    order = w.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    w, group = w[order], groups[order]

    def sums(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(n_groups).index_add(0, group, values)

    sizes = sums(torch.ones_like(group))
    starts = sizes.cumsum(0) - sizes
    positions = torch.arange(len(w), device=device)
    rank = positions - starts[group]
    # The largest weights of each group side by side, since a running sum over all groups would round away small ones
    n_top = min(max_support, len(w))
    top = w.new_zeros(n_top + 1, n_groups)
    top[rank.clamp(max=n_top), group] = torch.where(rank < n_top, w, 0)
    kept, scale = _kept_and_scale(top[:-1], sums(torch.where(rank < n_top, 0, w)), max_support)
    scale = scale[group]
    n_positive = sums((w > 0).long())
    is_exact = n_positive <= max_support
    is_kept = torch.where(is_exact[group], w > 0, rank < kept[group])
    q = torch.where(is_kept, 1.0, torch.where(is_exact[group], 0.0, (scale * w).clamp(0, 1)))

    # The sampled elements of a group lie side by side on a line, each as long as its q, up to the number to be drawn.
    # An element is drawn if it holds one of the points u, u + 1, u + 2, ...
    to_draw = torch.where(is_exact, 0, max_support - kept).to(w)[group]
    line = torch.cat((w.new_zeros(1), torch.where(is_kept, 0, q).cumsum(0)))
    stop = (line[1:] - line[starts][group]).clamp(min=0)
    stop = torch.where(rank >= n_positive[group] - 1, to_draw, torch.minimum(stop, to_draw))
    start = torch.where(rank == 0, 0, torch.cat((stop.new_zeros(1), stop[:-1])))
    u = torch.rand(n_groups, device=device, dtype=w.dtype)[group]
    holds_point = torch.ceil(stop - u) > torch.ceil(start - u)
    drawn = torch.zeros(len(w), dtype=torch.bool, device=device)
    drawn[order] = is_kept | (holds_point & (w > 0))
    inclusion = torch.empty_like(q)
    inclusion[order] = q
    return drawn, inclusion, is_exact


def resample(distribution: SparseDistribution, max_support: int) -> SparseDistribution:
    """A distribution of at most ``max_support`` rows with unbiased estimates of a distribution's expectations.

    Args:
        distribution: the distribution to bound.
        max_support: the largest support of the result.

    Returns:
        The distribution itself if it is within the bound, else one of ``max_support`` rows. Its ``probs`` are the
        drawn messages' probabilities, which do not sum to 1; its ``weights``, which expectations use, are ``probs``
        times ``ratios``, which have no gradient; its ``is_exact`` ``(B,)`` is True where no message was lost. Row 0
        is the most probable of the drawn messages.

    Raises:
        ValueError: a distribution that was resampled.

    Example:
        >>> d = SparseDistribution(torch.arange(4)[:, None], torch.tensor([[0.5], [0.25], [0.125], [0.125]]))
        >>> bounded = resample(d, 3)
        >>> bounded.weights.flatten().tolist(), bounded.is_exact
        ([0.5, 0.25, 0.25], tensor([False]))
    """
    if distribution.ratios is not None:
        raise ValueError("distribution must be one that has not been resampled: its probabilities do not sum to 1")
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
        lengths=None if distribution.lengths is None else distribution.lengths.gather(0, rows),
    )
    bounded.ratios = torch.where(inside, 1 / inclusion.gather(0, rows), 1).to(probs.dtype)
    exact = support_size <= max_support
    bounded.is_exact = exact if distribution.is_exact is None else exact & distribution.is_exact
    bounded.duality_gap = distribution.duality_gap
    return bounded


def sum_and_sample(distribution: SparseDistribution, max_support: int) -> tuple[SparseDistribution, torch.Tensor]:
    """The first ``max_support`` rows of a distribution, and a row with a sample of all others.

    Args:
        distribution: the distribution, of more than ``max_support`` rows, not resampled.
        max_support: the number of rows that are kept.

    Returns:
        A SparseDistribution of ``max_support + 1`` rows with unbiased estimates of the distribution's expectations,
        and the log-probability ``(B,)`` of the sample. The last row has all remaining probability, without a
        gradient. Where nothing remains, its probability is 0, its message that of row 0, as in all padded rows, and
        the log-probability is 0.

    Raises:
        ValueError: a distribution that was resampled.

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
    sample_probs = rest.t().gather(1, drawn.t()).t()  # on torch 2.4 the gradient along axis 0 is wrong
    probs = torch.cat((kept, remaining[None].to(kept.dtype)))
    rows = torch.arange(max_support, device=drawn.device)[:, None].expand(-1, drawn.shape[1])
    index = torch.cat((rows, drawn + max_support)) * (probs > 0)  # padded rows repeat the first
    messages = distribution.messages
    lengths = None if distribution.lengths is None else distribution.lengths.gather(0, index)
    if messages.dim() == 3:
        index = index[:, :, None].expand(-1, -1, messages.shape[2])
    terms = SparseDistribution(
        messages.gather(0, index), probs, distribution.vocab_size, validate_args=False, lengths=lengths
    )
    return terms, torch.where(sample_probs > 0, sample_probs, 1.0).log()[0]


def score_of_sample(terms: SparseDistribution, log_prob: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    r"""The score-function term ``(B,)`` that makes the gradient of the expected loss unbiased; its value is 0.

    The baseline is the mean loss b of the exact terms. It does not depend on the sample and is subtracted from all
    terms, so that it changes the gradient by :math:`b \nabla \sum_m p(m) = 0`.

    Args:
        terms: the terms, as returned by :func:`sum_and_sample`.
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
