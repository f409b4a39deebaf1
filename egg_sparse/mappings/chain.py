r"""SparseMAP over binary sequences with scores for neighboring bits that are both on.

A sequence z in {0, 1}^D has the score <x, z> + sum_i t_i z_i z_{i+1}. For marginals mu the best probability that bits i
and i + 1 are both on is min(mu_i, mu_{i+1}) for t_i > 0, and max(0, mu_i + mu_{i+1} - 1) for t_i < 0. Let m be mu with
m_i = 1 - mu_i for the bits that an odd number of negative t precedes. But for a constant, SparseMAP then is

    min_{m in [0, 1]^D}  sum_i (m_i - y_i)^2 + 1/2 sum_i |t_i| |m_i - m_{i+1}|,

where y_i is c_i = (x_i + 1 + t_{i-1} / 2 + t_i / 2) / 2, or 1 - c_i for those bits: total variation denoising. The
nested sets {i : m_i > u}, for u uniform in [0, 1], have these marginals and these probabilities of pairs. So they
are a solution: a closed form of at most D + 1 terms.

The denoised m is constant on segments. Start from one segment with the mean of y. A segment is optimal unless some
part of it gains by a larger value than the rest, which a MAP oracle tells: the Viterbi algorithm, on a GPU in about
2 log2(D) batched steps instead of D. There the segment is cut, and neighbors exert their pull on both sides.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from egg_sparse.distribution import SparseDistribution
from egg_sparse.mappings import lpsmap
from egg_sparse.mappings.active_set import MAX_ITER, TOL, check_stopping, sparsemap_active_set, tie_tolerance
from egg_sparse.mappings.arrays import A, as_array, as_array_like, as_tensor, namespace, widen
from egg_sparse.mappings.decompositions import cut, grad_cuts
from egg_sparse.mappings.scores import check_scores, message_type, probability_type, synchronize, synchronize_sums

DECOMPOSITIONS = ("threshold", "active_set")


def sparsemap_chain(
    scores: torch.Tensor,
    transitions: torch.Tensor,
    decomposition: str = "threshold",
    solver: str = "native",
    max_iter: int = MAX_ITER,
    tol: float = TOL,
) -> SparseDistribution:
    r"""SparseMAP over binary sequences with a score per bit and one per pair of neighboring bits,

    .. math:: \max_{p} \sum_{z \in \{0, 1\}^D} p_z \Big(\sum_i x_i z_i + \sum_i t_i z_i z_{i+1}\Big)
        - \tfrac12 \|\mu\|^2 - \tfrac12 \|1 - \mu\|^2, \qquad \mu = \sum_z p_z z .

    The marginals of the transitions are not regularized. The marginals of the bits, and without transitions of 0 those
    of pairs of neighbors, are the same for all solutions.

    Args:
        scores: ``(B, D)``, floating point, finite.
        transitions: ``(B, D - 1)``, or ``(D - 1,)`` for all examples: ``transitions[:, i]`` is the score if bits i
            and i + 1 are both on.
        decomposition: the name of the distribution. "threshold" is exact, with at most D + 1 sequences: where no
            transition is negative they are nested, and where one is, the bits after it are on instead of off and off
            instead of on. "active_set" is what :func:`egg_sparse.mappings.sparsemap_active_set` finds, as in the paper;
            it is much slower.
        solver: "native", or "lpsmap" for the lp-sparsemap package, which solves one example after the other on the
            CPU, for comparison; the distribution is that of its own active set.
        max_iter: the largest number of iterations of "active_set", in each of which a sequence enters or leaves the
            support; if it is reached, there is a warning.
        tol: the duality gap at which "active_set" stops; "lpsmap" has a tolerance of its own.

    Returns:
        SparseDistribution with messages ``(K, B, D)`` of the scores' dtype, most probable first, and probabilities in
        at least float32, differentiable with respect to scores and transitions. For "active_set" of the native solver
        its ``duality_gap`` ``(B,)`` certifies the solution.

    Raises:
        TypeError: scores or transitions that are not floating-point tensors; max_iter that is not an integer.
        ValueError: scores or transitions of another shape, NaN or infinite, or with sums that overflow; max_iter
            below 1; tol negative; decomposition or solver unknown.
        ImportError: solver "lpsmap" without lp-sparsemap.

    Example:
        >>> d = sparsemap_chain(torch.tensor([[0.5, -0.5, 0.5]]), torch.tensor([1.0, 1.0]))
        >>> d.mode.tolist(), d.support_size.tolist()
        ([[1.0, 1.0, 1.0]], [2])

    Source: Correia et al. (NeurIPS 2020), section 4.2; Niculae et al., "SparseMAP" (ICML 2018); for the cuts at
    a segment's mean, Hochbaum, "An efficient algorithm for image segmentation, Markov random fields and related
    problems" (Journal of the ACM, 2001).
    """
    check_scores(scores, "D bits")
    if decomposition not in DECOMPOSITIONS:
        raise ValueError(f"decomposition must be one of {', '.join(DECOMPOSITIONS)}, got {decomposition!r}")
    lpsmap.check_solver(solver)
    check_stopping(max_iter, tol)
    batch, n_bits = scores.shape
    if not isinstance(transitions, torch.Tensor):
        raise TypeError(f"transitions must be a tensor, got {type(transitions).__name__}")
    if not transitions.is_floating_point():
        raise TypeError(f"transitions must be floating point, got {transitions.dtype}")
    if transitions.shape not in ((batch, n_bits - 1), (n_bits - 1,)):
        raise ValueError(
            f"transitions must have shape (B, D - 1) = {(batch, n_bits - 1)} or ({n_bits - 1},), "
            f"got {tuple(transitions.shape)}"
        )
    wide_transitions = widen(transitions)
    synchronize_sums(wide_transitions, name="transitions")
    if solver == "lpsmap":
        synchronize(torch.isfinite(scores.detach()))
        return lpsmap.chain(scores, transitions, max_iter)
    wide_transitions = wide_transitions.expand(batch, -1)
    if decomposition == "active_set":
        return sparsemap_active_set(scores, _Sequences(wide_transitions), max_iter, tol)
    x = widen(scores)
    synchronize_sums(x)
    probs, sequences = _Threshold.apply(x, wide_transitions, message_type(scores))
    return SparseDistribution(sequences, probs.to(probability_type(scores)), validate_args=False)


class _Threshold(torch.autograd.Function):
    """Probabilities (K, B) and sequences (K, B, D) of a dtype, for scores (B, D) and transitions (B, D - 1)."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, transitions: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        t = as_array(transitions)
        m, segments, rises, flipped = _denoised(as_array(x), t)
        by_place, by_width, probs, _ = cut(m, m, tie_tolerance(x))
        # the n-th gap has the bits from the n-th place on; places are compared in less time than numbers in float64
        gaps = namespace(m).where(probs > 0, by_width, by_width[:, :1])  # padded rows repeat the first
        places = torch.arange(x.shape[1], dtype=torch.float32, device=x.device).expand(x.shape)
        places = torch.empty_like(places, memory_format=torch.contiguous_format).scatter_(
            1, as_tensor(by_place), places
        )
        sequences = x.new_empty(gaps.shape[1], *x.shape, dtype=dtype)
        torch.ge(places, as_tensor(gaps).t().unsqueeze(-1).float(), out=sequences)
        sequences.sub_(as_tensor(flipped).to(dtype)).abs_()
        ctx.save_for_backward(*map(as_tensor, (t, m, segments, rises, flipped, by_place, by_width)))
        ctx.mark_non_differentiable(sequences)
        ctx.set_materialize_grads(False)
        return as_tensor(probs).t(), sequences

    @staticmethod
    def backward(
        ctx: Any, grad_probs: torch.Tensor | None, _: None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        if grad_probs is None:
            return None, None, None
        # in PyTorch if a graph is created: the gradient can be differentiated again
        convert = as_tensor if torch.is_grad_enabled() else as_array
        t, m, segments, rises, flipped, by_place, by_width = map(convert, ctx.saved_tensors)
        grad_m = grad_cuts(convert(grad_probs.t()), by_place, by_width)
        grad_x, grad_t = _grad_scores(grad_m, t, m, segments, rises, flipped)
        return as_tensor(grad_x), as_tensor(grad_t), None


def _denoised(x: A, t: A) -> tuple[A, A, A, A]:
    """The m (B, D), the number of the segment of each bit (B, D), where m rises or falls from one segment to the next,
    1 or -1 (B, D - 1), and 1 for each bit that an odd number of negative t precedes (B, D).
    """
    xp = namespace(x)
    # A pair of bits is never on together where t is below minus all that both could gain. Beyond that t changes nothing
    # but the sums' rounding.
    t = -xp.minimum(-t, 2 * (1 + abs(x).sum(1) + t.clip(0).sum(1))[:, None])
    flipped, y = xp.zeros(tuple(x.shape), x), x + 1
    flipped[:, 1:] = xp.astype((t < 0).cumsum(1) % 2, x)
    y[:, 1:] += t / 2
    y[:, :-1] += t / 2
    y = flipped + (0.5 - flipped) * y
    pull = abs(t) / 4  # half the weight of |m_i - m_{i+1}|, as y is half of the slope
    rises = xp.zeros(tuple(t.shape), x)
    begins = flipped >= 0  # of a segment; at first only where nothing pulls
    begins[:, 1:] = pull == 0
    while True:
        segments = (begins.reshape(-1).cumsum(0) - 1).reshape(x.shape)
        m = _means(y, segments).clip(0, 1)
        gains = y - m
        gains[:, 1:] -= pull
        gains[:, :-1] -= pull
        larger = as_array_like(viterbi(as_tensor(gains), as_tensor(2 * pull)), x)
        cuts = (larger[:, 1:] - larger[:, :-1]) * ~begins[:, 1:]
        if not bool(cuts.any()):
            return m, segments, rises, flipped
        rises += cuts
        y[:, 1:] -= cuts * pull
        y[:, :-1] += cuts * pull
        pull = pull * (cuts == 0)
        begins[:, 1:] |= cuts != 0


def _means(values: A, segments: A) -> A:
    """The mean of each value's segment, of values (B, D) and the numbers of their segments (B, D)."""
    xp, of_all = namespace(values), segments.reshape(-1)
    sums = xp.sums(values.reshape(-1), of_all)
    return (sums / xp.sums(values.reshape(-1) * 0 + 1, of_all).clip(1))[segments]


def _grad_scores(grad_m: A, t: A, m: A, segments: A, rises: A, flipped: A) -> tuple[A, A]:
    """The gradients of the scores (B, D) and of the transitions (B, D - 1), given that of m and the rest."""
    grad_y = _means(grad_m * ((m > 0) & (m < 1)), segments)
    grad_x = (0.5 - flipped) * grad_y
    grad_pull = rises * (grad_y[:, :-1] - grad_y[:, 1:])
    signs = namespace(t).astype(t > 0, t) - namespace(t).astype(t < 0, t)
    return grad_x, (grad_x[:, 1:] + grad_x[:, :-1]) / 2 + signs * grad_pull / 4


class _Sequences:
    """The oracle for all binary sequences, given scores (B, D - 1) for neighboring bits that are both on."""

    def __init__(self, transitions: torch.Tensor) -> None:
        self.transitions = transitions

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        return viterbi(scores, self.transitions.detach())

    def extra_scores(self, sequences: torch.Tensor) -> torch.Tensor:
        return (sequences[..., :-1] * sequences[..., 1:] * self.transitions).sum(-1)

    def for_examples(self, rows: torch.Tensor) -> _Sequences:
        return _Sequences(self.transitions[rows])


def viterbi(scores: torch.Tensor, transitions: torch.Tensor) -> torch.Tensor:
    r"""The binary sequence with the highest :math:`\sum_i x_i z_i + \sum_i t_i z_i z_{i+1}`.

    Args:
        scores: ``(B, D)``, floating point.
        transitions: ``(B, D - 1)``.

    Returns:
        ``(B, D)`` of zeros and ones, of the scores' dtype. If sequences tie but for rounding, it is one whose last
        bits are off.

    Example:
        >>> viterbi(torch.tensor([[0.5, -0.5, 0.5]]), torch.tensor([[1.0, 1.0]]))
        tensor([[1., 1., 1.]])
    """
    values = as_array(scores)
    if isinstance(values, np.ndarray):
        return as_tensor(_bit_by_bit(values, as_array(transitions), tie_tolerance(scores)))
    return _doubling(scores, transitions)


def _bit_by_bit(scores: np.ndarray, transitions: np.ndarray, tolerance: float) -> np.ndarray:
    """The best sequence in D steps, which in NumPy take less time for small arrays than :func:`_doubling`."""
    x, t = np.ascontiguousarray(scores.T), np.ascontiguousarray(transitions.T)
    # gain[i]: the best score of bits up to i with bit i on, less that with bit i off. It is x[i] +
    # max(gain[i - 1] + t, 0) - max(gain[i - 1], 0), written without a difference of large numbers.
    sign, lowest, highest = np.where(t < 0, -1.0, 1.0), np.minimum(t, 0), np.maximum(t, 0)
    gain, kept = x.copy(), np.empty_like(x[0])
    for before, gain_of_bit, s, low, high in zip(gain[:-1], gain[1:], sign, lowest, highest, strict=True):
        np.multiply(s, before, out=kept)
        kept += high
        np.maximum(kept, low, out=kept)
        gain_of_bit += np.minimum(kept, high, out=kept)
    bits = gain > tolerance  # if the next bit is off, or there is none
    differs = bits[:-1] ^ (gain[:-1] + t > tolerance)  # if it is on
    for bit, next_bit, depends in zip(bits[-2::-1], bits[:0:-1], differs[::-1], strict=True):
        bit ^= next_bit & depends
    return bits.T.astype(scores.dtype)


def _doubling(scores: torch.Tensor, transitions: torch.Tensor) -> torch.Tensor:
    """The best sequence in 2 log2(D) steps."""
    batch, n_bits = scores.shape
    # best[s, e, b, i]: the best score of a window of bits that ends with bit i, where the bit before the window is s
    # and bit i is e. Windows double until all begin at bit 0; the bit before bit 0 counts as off.
    best = scores.new_zeros(2, 2, batch, n_bits)
    best[:, 1] += scores
    best[1, 1, :, 1:] += transitions
    width = 1
    while width < n_bits:
        left, right = best[..., :-width], best[..., width:]
        joined = torch.maximum(left[:, 0, None] + right[0], left[:, 1, None] + right[1])
        best = torch.cat((best[..., :width], joined), 3)
        width *= 2
    off, on = best[0]

    # before[e, b, i]: bit i of the best sequence in which bit i + 1 is e; composed until all depend on the last bit
    off = off + tie_tolerance(scores)
    off, on, last = off[:, :-1], on[:, :-1], (on[:, -1:] > off[:, -1:]).expand(2, -1, -1)
    before = torch.cat((torch.stack((on > off, on + transitions > off)), last), 2)
    width = 1
    while width < n_bits:
        composed = torch.where(before[..., width:], before[1, :, :-width], before[0, :, :-width])
        before = torch.cat((composed, before[..., -width:]), 2)
        width *= 2
    return before[0].to(scores.dtype)
