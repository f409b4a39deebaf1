r"""SparseMAP over binary sequences with scores for neighboring bits that are both on.

A sequence z in {0, 1}^D has the score <x, z> + sum_i t_i z_i z_{i+1}. SparseMAP has no closed form here: the oracle of
the active-set method is the Viterbi algorithm, on a GPU in about 2 log2(D) batched steps instead of D.
"""

from __future__ import annotations

import numpy as np
import torch

from egg_sparse.distribution import SparseDistribution
from egg_sparse.mappings import lpsmap
from egg_sparse.mappings.active_set import MAX_ITER, TOL, check_stopping, sparsemap_active_set, tie_tolerance
from egg_sparse.mappings.arrays import as_array, as_tensor, widen
from egg_sparse.mappings.scores import check_scores, synchronize, synchronize_sums


def sparsemap_chain(
    scores: torch.Tensor,
    transitions: torch.Tensor,
    solver: str = "native",
    max_iter: int = MAX_ITER,
    tol: float = TOL,
) -> SparseDistribution:
    r"""SparseMAP over binary sequences with a score per bit and one per pair of neighboring bits,

    .. math:: \max_{p} \sum_{z \in \{0, 1\}^D} p_z \Big(\sum_i x_i z_i + \sum_i t_i z_i z_{i+1}\Big)
        - \tfrac12 \|\mu\|^2 - \tfrac12 \|1 - \mu\|^2, \qquad \mu = \sum_z p_z z .

    The marginals of the transitions are not regularized.

    Args:
        scores: ``(B, D)``, floating point, finite.
        transitions: ``(B, D - 1)``, or ``(D - 1,)`` for all examples: ``transitions[:, i]`` is the score if bits i
            and i + 1 are both on.
        solver: "native" for the batched active set, or "lpsmap" for the lp-sparsemap package, which solves one
            example after the other on the CPU.
        max_iter: the largest number of iterations, in each of which a sequence enters or leaves the support; if it is
            reached, there is a warning.
        tol: the duality gap at which to stop; "lpsmap" has a tolerance of its own.

    Returns:
        SparseDistribution with messages ``(K, B, D)`` of the scores' dtype, most probable first, and probabilities in
        at least float32, differentiable with respect to scores and transitions. Its ``duality_gap`` ``(B,)``
        certifies the solution of the native solver.

    Raises:
        TypeError: scores or transitions that are not floating-point tensors; max_iter that is not an integer.
        ValueError: scores or transitions of another shape, NaN or infinite, or with sums that overflow; max_iter
            below 1; tol negative; solver unknown.
        ImportError: solver "lpsmap" without lp-sparsemap.

    Example:
        >>> d = sparsemap_chain(torch.tensor([[0.5, -0.5, 0.5]]), torch.tensor([1.0, 1.0]))
        >>> d.mode.tolist(), d.support_size.tolist()
        ([[1.0, 1.0, 1.0]], [2])

    Source: Correia et al. (NeurIPS 2020), section 4.2; Niculae et al., "SparseMAP" (ICML 2018).
    """
    check_scores(scores, "D bits")
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
    synchronize_sums(wide_transitions.detach(), torch.isfinite(transitions.detach()), name="transitions")
    if solver == "lpsmap":
        synchronize(torch.isfinite(scores.detach()))
        return lpsmap.chain(scores, transitions, max_iter)
    return sparsemap_active_set(scores, _Sequences(wide_transitions.expand(batch, -1)), max_iter, tol)


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
    gain = x.copy()
    for i in range(1, len(x)):
        gain[i] += np.minimum(np.maximum(sign[i - 1] * gain[i - 1] + highest[i - 1], lowest[i - 1]), highest[i - 1])
    bits = gain > tolerance  # if the next bit is off, or there is none
    differs = bits[:-1] ^ (gain[:-1] + t > tolerance)  # if it is on
    for i in reversed(range(len(x) - 1)):
        bits[i] ^= bits[i + 1] & differs[i]
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
