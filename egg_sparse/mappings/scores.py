"""What every mapping does with its scores: checks, precision, and the one synchronisation with the device."""

from __future__ import annotations

import math

import numpy as np
import torch

from egg_sparse.mappings.arrays import native


class NotFiniteError(ValueError):
    """Scores that are NaN or infinite."""


def check_scores(scores: torch.Tensor, columns: str, name: str = "scores") -> None:
    """Raises TypeError or ValueError unless scores are floating point of shape (B, n), n >= 1.

    Args:
        scores: what to check.
        columns: what there is one score for, with its letter: "V symbols".
        name: the name of the argument.
    """
    if not isinstance(scores, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(scores).__name__}")
    if not scores.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {scores.dtype}")
    if scores.dim() != 2 or scores.shape[1] == 0:
        letter, what = columns.split(" ", 1)
        raise ValueError(f"{name} must have shape (B, {letter}) with {letter} >= 1 {what}, got {tuple(scores.shape)}")


def working_copy(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores in at least float32, with 0 for what is not finite, and where they are finite.

    Not finite scores are refused by :func:`synchronise`; until then they must not make a computation fail.
    """
    finite = torch.isfinite(scores.detach())
    return torch.where(finite, scores, 0).to(probability_type(scores)), finite


def probability_type(scores: torch.Tensor) -> torch.dtype:
    """The type of probabilities, and of all that is computed with: that of the scores, but at least float32."""
    return torch.promote_types(scores.dtype, torch.float32)


def message_type(scores: torch.Tensor) -> torch.dtype:
    """The type of messages, which receivers read: that of the scores, but at least float32 under autocast."""
    return probability_type(scores) if torch.is_autocast_enabled(scores.device.type) else scores.dtype


def synchronise_finite(x: torch.Tensor, number: torch.Tensor | None = None) -> int:
    """The number, a zero-dimensional tensor, on the host; fewer steps than :func:`synchronise` where x is finite.

    With None it is 0, and on the CPU there is no step of PyTorch's at all.

    Raises:
        ValueError: scores x are not.
    """
    if number is None:
        values = native(x)
        if isinstance(values, np.ndarray):
            if not np.isfinite(values).all():
                synchronise(torch.isfinite(x))
            return 0
        number = x.new_zeros(())
    found = (number + 0 * x.sum()).item()  # NaN if a score is not finite, or if the sum of finite ones overflows
    if math.isfinite(found):
        return int(found)
    return synchronise(torch.isfinite(x), number)[0]


def synchronise(finite: torch.Tensor, *numbers: torch.Tensor, name: str = "scores") -> list[int]:
    """The numbers, zero-dimensional tensors, on the host, in one transfer with the check that all scores are finite."""
    all_finite, *values = torch.stack([finite.all().long(), *(number.long() for number in numbers)]).tolist()
    if not all_finite:
        raise NotFiniteError(f"{name} must be finite: {int((~finite).sum())} of {finite.numel()} are NaN or infinite")
    return values


def synchronise_sums(x: torch.Tensor, finite: torch.Tensor, name: str = "scores") -> None:
    """The check that all scores are finite, and that sums of theirs (the last axis) are in the type of x.

    Raises:
        ValueError: they are not.
    """
    (in_range,) = synchronise(finite, torch.isfinite(4 * x.abs().sum(-1)).all(), name=name)
    if not in_range:
        raise ValueError(
            f"{name} must have sums within the range of {x.dtype}, got numbers up to {x.abs().max().item():g}"
        )
