r"""How probable an image is under the model: log p(x) = log sum_z p(x | z) 2^-D, which no one can sum for large D.

Both estimates here are of sums, so that their logarithms are, by Jensen's inequality, lower bounds of log p(x) in
expectation, if the estimate of the sum is unbiased.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from egg_sparse.distribution import SparseDistribution
from egg_sparse.estimators import BitVectors

ESTIMATES = ("disjoint", "paper")


def log_likelihood(
    log_prob_given: Callable[[torch.Tensor], torch.Tensor],
    distribution: SparseDistribution | BitVectors,
    n_samples: int,
    estimate: str = "disjoint",
    samples_at_a_time: int = 16,
) -> torch.Tensor:
    r"""An estimate of log p(x) in nats, by importance sampling with the sender's distribution.

    "disjoint" is exact on the support S of a sparse distribution, and samples all other bit-vectors,

    .. math:: p(x) \approx \sum_{z \in S} p(x, z)
        + \tfrac1n \sum_{s} [z_s \notin S]\, \frac{p(x, z_s)}{r(z_s)}, \qquad z_s \sim r,

    from independent bits r with the distribution's marginals, kept 1 / D away from 0 and 1. It is unbiased. A
    distribution that is itself of independent bits is r, and S is empty.

    "paper" is the estimate of the paper's code: for sparse distributions r is uniform, and a sample may lie in S and is
    then counted twice, so the estimate can be above log p(x).

    Args:
        log_prob_given: the function from bit-vectors ``(K, B, D)`` to :math:`\log p(x \mid z)`, ``(K, B)`` in nats.
        distribution: the sender's distribution over bit-vectors.
        n_samples: n, the samples per example.
        estimate: the estimate, "disjoint" or "paper".
        samples_at_a_time: the samples per example in one call of ``log_prob_given``.

    Returns:
        ``(B,)``.

    Source: for "paper", Correia et al. (NeurIPS 2020), section 5.3, and deep-spin/sparse-marginalization-lvm.
    """
    if estimate not in ESTIMATES:
        raise ValueError(f"estimate must be one of {', '.join(ESTIMATES)}, got {estimate!r}")
    sparse = isinstance(distribution, SparseDistribution)
    proposal, n_bits = _proposal(distribution, estimate)
    log_prior = -n_bits * math.log(2)
    batch = proposal.batch_shape[0]
    total = torch.full((batch,), -math.inf, device=proposal.scores.device, dtype=proposal.scores.dtype)
    if isinstance(distribution, SparseDistribution):
        of_support = log_prob_given(distribution.messages) + log_prior
        total = torch.where(distribution.mask, of_support, -math.inf).logsumexp(0)
    sampled = torch.full_like(total, -math.inf)
    remaining = n_samples
    while remaining:
        messages = proposal.sample((min(samples_at_a_time, remaining),))
        remaining -= len(messages)
        weights = log_prob_given(messages) + log_prior - proposal.log_prob(messages)
        if sparse and estimate == "disjoint":
            weights = weights.masked_fill(distribution.log_prob(messages) > -math.inf, -math.inf)
        sampled = torch.logaddexp(sampled, weights.logsumexp(0))
    return torch.logaddexp(total, sampled - math.log(n_samples))


def _proposal(distribution: SparseDistribution | BitVectors, estimate: str) -> tuple[BitVectors, int]:
    if isinstance(distribution, BitVectors):
        return distribution, distribution.event_shape[0]
    marginals = distribution.mean.detach()
    n_bits = marginals.shape[1]
    if estimate == "paper":
        return BitVectors(torch.zeros_like(marginals)), n_bits
    edge = min(1 / n_bits, 0.25)
    return BitVectors(marginals.clamp(edge, 1 - edge).logit()), n_bits
