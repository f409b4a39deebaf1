"""Time and memory of the bit-vector VAE's likelihood, forward and backward, beside plain cross-entropy.

640 decoded messages of 28 x 28 pixels with 256 grey levels, from 5 features per pixel: 64 images with 10 messages each.
Memory is the peak of a process of its own, less that of one that only makes the inputs (on a CPU: Linux only).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Settings, Step, Table, milliseconds, peak_gigabytes, ratio, seconds_in_turns
from egg_sparse.zoo.bit_vector_vae.distortion import categorical_distortion

MESSAGES, PIXELS, RANK, LEVELS = 640, 784, 5, 256


def plain(features: Tensor, weight: Tensor, bias: Tensor, levels: Tensor) -> Tensor:
    logits = F.linear(features.flatten(0, 1), weight, bias)
    return F.cross_entropy(logits, levels.flatten().long(), reduction="none").view(levels.shape).sum(1)


METHODS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "plain: F.linear, F.cross_entropy": plain,
    "categorical_distortion": categorical_distortion,
}
if hasattr(F, "linear_cross_entropy"):

    def linear_cross_entropy(features: Tensor, weight: Tensor, bias: Tensor, levels: Tensor) -> Tensor:
        options = torch.nn.LinearCrossEntropyOptions()
        flat, targets = features.flatten(0, 1), levels.flatten().long()
        losses = F.linear_cross_entropy(flat, weight, targets, linear_bias=bias, reduction="none", options=options)
        return losses.view(levels.shape).sum(1)

    METHODS["torch's F.linear_cross_entropy"] = linear_cross_entropy


def step_of(name: str, messages: int, device: str) -> Step:
    """One forward and backward pass; no computation for the name "inputs"."""
    torch.manual_seed(0)
    inputs = [
        (0.3 * torch.randn(*shape, device=device)).requires_grad_()
        for shape in ((messages, PIXELS, RANK), (LEVELS, RANK), (LEVELS,))
    ]
    levels = torch.randint(0, LEVELS, (messages, PIXELS), dtype=torch.uint8, device=device)
    weights = torch.rand(messages, device=device)
    if name == "inputs":
        return lambda: None
    features, weight, bias = inputs
    return lambda: torch.autograd.grad((METHODS[name](features, weight, bias, levels) * weights).sum(), inputs)


def two_steps(name: str, messages: int, device: str) -> None:
    """Runs the step whose memory is measured."""
    step = step_of(name, messages, device)
    for _ in range(2):
        step()


def tables(settings: Settings) -> list[Table]:
    messages, device = 10 if settings.quick else MESSAGES, str(settings.device)
    steps = {name: step_of(name, messages, device) for name in METHODS}
    seconds = seconds_in_turns(steps, settings.repeated(5), settings.device)
    baseline = next(iter(METHODS))
    peaks = {
        name: peak_gigabytes("benchmarks.distortion", "two_steps", name, messages, device)
        for name in ("inputs", *([baseline] if settings.quick else METHODS))
    }
    rows = [
        {
            "method": name,
            "ms": milliseconds(seconds[name]),
            "times faster": ratio(seconds[baseline], seconds[name]),
            "GB above the inputs": peaks[name] - peaks["inputs"] if name in peaks else None,
        }
        for name in METHODS
    ]
    return [Table("distortion", f"The bit-vector VAE's likelihood of {messages} messages, forward and backward", rows)]
