"""Checks of scores, the dtypes of results, and the one synchronization with the device that a mapping needs."""

from __future__ import annotations

import math

import numpy as np
import torch

from egg_sparse.mappings.arrays import as_array


class NotFiniteError(ValueError):
    """Scores that are NaN or infinite."""


def check_scores(scores: torch.Tensor, columns: str, name: str = "scores") -> None:
    """Raises TypeError or ValueError unless scores are floating point of shape (B, n), n >= 1.

    Args:
        scores: the tensor to check.
        columns: the letter for n and the meaning of the columns, such as "V symbols".
        name: the argument's name in the error.
    """
    if not isinstance(scores, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(scores).__name__}")
    if not scores.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {scores.dtype}")
    if scores.dim() != 2 or scores.shape[1] == 0:
        letter, what = columns.split(" ", 1)
        raise ValueError(f"{name} must have shape (B, {letter}) with {letter} >= 1 {what}, got {tuple(scores.shape)}")


def check_temperature(temperature: float) -> None:
    """Raises ValueError unless the temperature is a finite number above 0."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a finite number above 0, got {temperature}")


def working_copy(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores in at least float32, with 0 in place of NaN and infinity, and a mask of the finite ones.

    :func:`synchronize` refuses scores that are not finite; until then they must not make a computation fail.
    """
    finite = torch.isfinite(scores.detach())
    return torch.where(finite, scores, 0).to(probability_type(scores)), finite


def probability_type(scores: torch.Tensor) -> torch.dtype:
    """The dtype of probabilities and of computations: the scores' dtype, but at least float32."""
    return torch.promote_types(scores.dtype, torch.float32)


def message_type(scores: torch.Tensor) -> torch.dtype:
    """The dtype of messages, which receivers read: the scores' dtype, but at least float32 under autocast."""
    return probability_type(scores) if torch.is_autocast_enabled(scores.device.type) else scores.dtype


def synchronize_finite(x: torch.Tensor, number: torch.Tensor | None = None) -> int:
    """Checks that scores are finite, in the transfer of a number to the host; cheaper than :func:`synchronize`.

    Args:
        x: the scores.
        number: a zero-dimensional tensor, or None for 0.

    Returns:
        The number.

    Raises:
        ValueError: scores that are NaN or infinite.
    """
    if number is None:
        values = as_array(x)
        if isinstance(values, np.ndarray):
            if not np.isfinite(values).all():
                synchronize(torch.isfinite(x))
            return 0
        number = x.new_zeros(())
    found = (number + 0 * x.sum()).item()  # NaN if a score is not finite, or if the sum of finite ones overflows
    if math.isfinite(found):
        return int(found)
    return synchronize(torch.isfinite(x), number)[0]


def synchronize(
    finite: torch.Tensor, *numbers: torch.Tensor, name: str = "scores", scores: torch.Tensor | None = None
) -> list[int]:
    """Checks that scores are finite, in the transfer of numbers to the host.

    Args:
        finite: a mask, True where scores are finite.
        numbers: zero-dimensional tensors.
        name: the argument's name in the error.
        scores: the scores, if ``finite`` is not the mask of each of them; the error counts them.

    Returns:
        The numbers.

    Raises:
        ValueError: scores that are NaN or infinite.
    """
    all_finite, *values = torch.stack([finite.all().long(), *(number.long() for number in numbers)]).tolist()
    if not all_finite:
        finite = finite if scores is None else torch.isfinite(scores)
        raise NotFiniteError(f"{name} must be finite: {int((~finite).sum())} of {finite.numel()} are NaN or infinite")
    return values


def synchronize_sums(x: torch.Tensor, name: str = "scores") -> None:
    """Checks that scores are finite, and that sums over their last axis do not overflow in the dtype of x.

    Args:
        x: the scores, in the dtype to compute with.
        name: the argument's name in the error.

    Raises:
        ValueError: scores that are NaN or infinite, or sums that overflow.
    """
    with np.errstate(over="ignore"):
        in_range = (4 * abs(as_array(x)).sum(-1) < math.inf).all()
    if not bool(in_range):
        synchronize(torch.isfinite(x), name=name)
        raise ValueError(
            f"{name} must have sums within the range of {x.dtype}, got numbers up to {x.abs().max().item():g}"
        )
