r"""Sum-and-sample: the most probable messages summed exactly, the probability of all others given to one sample.

For a distribution p with most probable messages C and rest r = 1 - sum_{m in C} p(m),

    sum_{m in C} p(m) loss(m) + r loss(m'),    m' ~ p / r outside C,

is an unbiased estimate of the expected loss: Rao-Blackwell's theorem, with less variance than a sample from p.

Source: Liu et al., "Rao-Blackwellized Stochastic Gradients for Discrete Distributions" (AISTATS 2019).
"""

from __future__ import annotations

import torch

from egg_sparse.distribution import SparseDistribution


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
