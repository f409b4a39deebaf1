r"""SparseMAP over bit-vectors, with or without a budget, in closed form.

With one on- and one off-indicator per bit, SparseMAP of scores x is

    mu = argmax_{mu in conv(Z)}  <x, mu> - ||mu||^2 + <1, mu>,    Z = {z in {0, 1}^D : <1, z> <= budget}

(each indicator contributes half a squared norm). It separates into bits: mu = clip((x + 1 - tau) / 2, 0, 1), where
tau >= 0 is the smallest with <1, mu> <= budget; tau = 0 without one. SparseMAP fixes mu alone: any distribution over
bit-vectors with that mean is a solution. The decompositions offer two in closed form.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from egg_sparse.distribution import SparseDistribution
from egg_sparse.mappings.scores import check_scores, result_type, synchronise, working_copy

DECOMPOSITIONS = ("systematic", "threshold")


def sparsemap_marginals(scores: torch.Tensor, budget: int | None = None) -> torch.Tensor:
    r"""The probability of every bit under SparseMAP,

    .. math:: \mu = \arg\max_{\mu \in [0, 1]^D,\ \sum_i \mu_i \le b}
        \langle x, \mu \rangle - \tfrac12 \|\mu\|^2 - \tfrac12 \|1 - \mu\|^2 .

    Args:
        scores: ``(B, D)``, floating point, finite.
        budget: at most so many bits are on; None for any number.

    Returns:
        ``(B, D)`` of the scores' type. Exact also with a budget: the breakpoints are sorted, nothing is
        iterated.

    Raises:
        TypeError, ValueError: scores of another type or shape, NaN or infinite; budget negative.

    Example:
        >>> sparsemap_marginals(torch.tensor([[3.0, 0.0, -0.5]]))
        tensor([[1.0000, 0.5000, 0.2500]])
        >>> sparsemap_marginals(torch.tensor([[0.5, 0.5, -3.0]]), budget=1)
        tensor([[0.5000, 0.5000, 0.0000]])

    Source: Niculae et al., "SparseMAP" (ICML 2018); the indicators are those of LP-SparseMAP (Niculae and
    Martins, ICML 2020).
    """
    check_scores(scores, "D bits")
    check_options(budget)
    x, finite = working_copy(scores)
    synchronise(finite)
    with torch.autocast(scores.device.type, enabled=False):
        mu, _ = _marginals(x, budget)
    return mu.to(result_type(scores))


def check_options(budget: int | None, decomposition: str = "systematic") -> None:
    """Raises TypeError or ValueError unless the two can be had together."""
    if budget is not None:
        if isinstance(budget, bool) or not isinstance(budget, int):
            raise TypeError(f"budget must be None or an integer, got {type(budget).__name__}")
        if budget < 0:
            raise ValueError(f"budget must be at least 0, got {budget}")
    if decomposition not in DECOMPOSITIONS:
        raise ValueError(f"decomposition must be one of {', '.join(DECOMPOSITIONS)}, got {decomposition!r}")
    if budget is not None and decomposition == "threshold":
        raise ValueError(
            'decomposition "threshold" cannot keep a budget: its largest set has all bits that have a probability; '
            'use "systematic"'
        )


def _marginals(x: torch.Tensor, budget: int | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The marginals, and for which examples the budget is what limits them (None if for none)."""
    free = ((x + 1) / 2).clamp(0, 1)
    n_bits = x.shape[1]
    if budget is None or budget >= n_bits:
        return free, None
    limited = free.detach().sum(1) > budget
    if budget == 0:
        return free * 0, limited
    # Relative to the budget-th largest score, tau lies in [-1, 1] and only scores in [-2, 2] matter, so that nothing
    # is lost to rounding, whatever the scores' scale.
    reference = x.detach().topk(budget, dim=1).values[:, -1:]
    y = (x - reference).clamp(-2, 2)
    linear, full = _solve_budget(y.detach(), budget)
    n_linear = linear.sum(1, keepdim=True)
    tau = ((y + 1) * linear).sum(1, keepdim=True) + 2 * (full.sum(1, keepdim=True) - budget)
    tau = tau / n_linear.clamp(min=1)
    # where no bit is in between, tau is anywhere on a plateau
    mu = torch.where(n_linear > 0, ((y + 1 - tau) / 2).clamp(0, 1), full.to(x.dtype))
    return torch.where(limited[:, None], mu, free), limited


def _solve_budget(y: torch.Tensor, budget: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which bits are strictly between 0 and 1 at the solution, and which are 1; (B, D) bool."""
    # f(tau) = sum_i clip((y_i + 1 - tau) / 2, 0, 1) has slope -1/2 per bit from y_i - 1 to y_i + 1
    breakpoints, order = torch.cat((y - 1, y + 1), 1).sort(dim=1)
    slope = torch.where(order < y.shape[1], -0.5, 0.5).to(y.dtype).cumsum(1)
    falls = (slope[:, :-1] * breakpoints.diff(dim=1)).cumsum(1)
    values = y.shape[1] + falls  # f at all breakpoints but the first
    segment = (values > budget).sum(1, keepdim=True).clamp(max=values.shape[1] - 1)
    low, high = breakpoints.gather(1, segment), breakpoints.gather(1, segment + 1)
    middle = (low + high) / 2
    return (y - 1 < middle) & (y + 1 > middle), y - 1 >= middle


def sparsemap_bit_vectors(
    scores: torch.Tensor, budget: int | None = None, decomposition: str = "systematic"
) -> SparseDistribution:
    r"""A distribution over bit-vectors whose mean is :func:`sparsemap_marginals`: at most D + 1 terms.

    Args:
        scores: ``(B, D)``, floating point, finite.
        budget: every bit-vector has at most so many bits on; None for any number.
        decomposition: how the marginals become a distribution. "threshold": the nested sets
            :math:`\{i : \mu_i \ge t\}` with the gaps between marginals as probabilities; bits are on together
            as much as they can be. "systematic": the marginals are laid end to end on a line, and the message
            for u in [0, 1) has the bits whose stretch holds u plus an integer; every message has
            :math:`\lfloor \sum_i \mu_i \rfloor` or :math:`\lceil \sum_i \mu_i \rceil` bits on.

    Returns:
        SparseDistribution with messages ``(K, B, D)``, most probable first. Expectations of linear functions
        are the same for all decompositions, those of others may differ.

    Raises:
        TypeError, ValueError: scores of another type or shape, NaN or infinite; budget negative, or given with
            "threshold", whose largest set may break it.

    Example:
        >>> d = sparsemap_bit_vectors(torch.tensor([[0.0, 0.5, -3.0]]), decomposition="threshold")
        >>> d.messages[:, 0].tolist(), d.probs[:, 0].tolist()
        ([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], [0.5, 0.25, 0.25])
        >>> d.mean
        tensor([[0.5000, 0.7500, 0.0000]])

    Source: for "systematic", Madow, "On the Theory of Systematic Sampling, II" (Annals of Mathematical
    Statistics, 1949).
    """
    check_scores(scores, "D bits")
    check_options(budget, decomposition)
    x, finite = working_copy(scores)
    with torch.autocast(scores.device.type, enabled=False):
        mu, limited = _marginals(x, budget)
        if decomposition == "threshold":
            probs, messages = _threshold(mu)
        else:
            probs, messages = _systematic(mu, limited, budget)
    dtype = result_type(scores)
    probs = probs.to(dtype)
    rows = 1
    if len(probs):
        (rows,) = synchronise(finite, (probs.detach() > 0).sum(1).max())
    terms = probs.detach().topk(rows, dim=1).indices
    return SparseDistribution(messages(terms, dtype), probs.gather(1, terms).t(), validate_args=False)


_Messages = Callable[[torch.Tensor, torch.dtype], torch.Tensor]
"""The bit-vectors (K, B, D) of given terms (B, K), in a given type."""


def _threshold(mu: torch.Tensor) -> tuple[torch.Tensor, _Messages]:
    """Probabilities (B, D + 1) of the nested sets of the 0, 1, ..., D bits with the highest marginals."""
    ordered, order = mu.sort(dim=1, descending=True)
    one = mu.new_ones(len(mu), 1)
    probs = torch.cat((one, ordered), 1) - torch.cat((ordered, one - 1), 1)

    def messages(terms: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        rank = order.argsort(dim=1)
        return (rank < terms.t()[:, :, None]).to(dtype)

    return probs, messages


def _systematic(mu: torch.Tensor, limited: torch.Tensor | None, budget: int | None) -> tuple[torch.Tensor, _Messages]:
    """Probabilities (B, D + 1) of the stretches of u in [0, 1) in which the message does not change.

    Bit i is on for u if its stretch [end_{i-1}, end_i) holds u plus an integer, that is, if one more integer n has
    u + n < end_i than has u + n < end_{i-1}: floor(end_i) + [u < fraction(end_i)] counts them.
    """
    on = mu.detach() >= 1  # kept out of the sums, whose rounding could switch them off
    ends = torch.where(on, 0, mu).cumsum(1, dtype=torch.float64)
    nearest = ends.detach().round()
    ends = torch.where((ends.detach() - nearest).abs() <= 8 * torch.finfo(mu.dtype).eps, nearest, ends)
    if limited is not None and budget is not None:
        total = (budget - on.sum(1, keepdim=True)).to(ends.dtype)
        ends = torch.where(limited[:, None] & (ends.detach() > total), total, ends)
    whole = ends.detach().floor()
    fraction = ends - whole
    one = fraction.new_ones(len(mu), 1)
    starts = torch.cat((one - 1, fraction.sort(dim=1).values), 1)
    probs = torch.cat((starts[:, 1:], one), 1) - starts

    def messages(terms: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        start = starts.detach().gather(1, terms).t()[:, :, None]
        passed = (start < fraction.detach()).to(dtype)
        bits = passed + (whole.diff(dim=1, prepend=whole[:, :1] * 0) + on).to(dtype)
        bits[:, :, 1:] -= passed[:, :, :-1]
        return bits.clamp_(0, 1)

    return probs, messages
