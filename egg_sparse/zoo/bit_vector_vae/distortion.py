r"""The distortion of an image of grey levels, without its logits ever being in memory all at once.

Every pixel is a categorical variable of L levels with logits W x + b, from a few features x per pixel. For N decoded
messages of P pixels the logits are N P L numbers (128 million for 640 images of 28 x 28 pixels and 256 levels), while
features and gradients are a hundredth of that. So a few messages at a time are scored, and what their gradient needs is
kept: that of the features, and that of W and b for every message, to be weighted when the messages' weights are known.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

_LOGITS_AT_A_TIME = {"cpu": 2**20, "cuda": 2**26}


def categorical_distortion(
    features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, levels: torch.Tensor
) -> torch.Tensor:
    r"""The negative log-likelihood of grey levels, summed over pixels,

    .. math:: \ell_n = -\sum_p \log \mathrm{softmax}(W x_{np} + b)_{z_{np}} .

    Args:
        features: x, ``(N, P, R)``.
        weight: W, ``(L, R)``.
        bias: b, ``(L,)``.
        levels: z, ``(N, P)`` of any integer type, below L.

    Returns:
        ``(N,)`` in nats. Memory for logits is bounded, forward and backward: besides what is given and returned, the
        backward pass keeps ``N (P R + L R + L)`` numbers.

    Example:
        >>> features = torch.zeros(2, 3, 5)
        >>> categorical_distortion(features, torch.zeros(4, 5), torch.zeros(4), torch.zeros(2, 3, dtype=torch.long))
        tensor([4.1589, 4.1589])
    """
    with torch.autocast(features.device.type, enabled=False):
        wide = torch.promote_types(features.dtype, torch.float32)
        result: torch.Tensor = _Distortion.apply(features.to(wide), weight.to(wide), bias.to(wide), levels)
        return result


class _Distortion(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, levels: torch.Tensor
    ) -> torch.Tensor:
        n, n_pixels, rank = features.shape
        n_levels = len(weight)
        with_gradient = any(ctx.needs_input_grad)
        distortion = features.new_empty(n)
        if with_gradient:
            of_features = torch.empty_like(features)
            of_weight, of_bias = features.new_empty(n, n_levels, rank), features.new_empty(n, n_levels)
        at_a_time = max(1, _LOGITS_AT_A_TIME.get(features.device.type, 2**20) // (n_pixels * n_levels))
        for start in range(0, n, at_a_time):
            part = slice(start, start + at_a_time)
            some = features[part]
            targets = levels[part].reshape(-1, 1).long()
            scores = torch.addmm(bias, some.reshape(-1, rank), weight.t())
            largest = scores.amax(1, keepdim=True)
            of_targets = scores.gather(1, targets)
            total = scores.sub_(largest).exp_().sum(1, keepdim=True)
            distortion[part] = (total.log() + largest - of_targets).view(len(some), n_pixels).sum(1)
            if with_gradient:
                scores.div_(total).scatter_add_(1, targets, total.new_full((), -1.0).expand_as(targets))
                torch.matmul(scores.view(len(some), n_pixels, n_levels), weight, out=of_features[part])
                errors = scores.view(len(some), n_pixels, n_levels)
                torch.bmm(errors.transpose(1, 2), some, out=of_weight[part])
                torch.sum(errors, 1, out=of_bias[part])
        if with_gradient:
            ctx.save_for_backward(of_features, of_weight, of_bias)
        return distortion

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        of_features, of_weight, of_bias = ctx.saved_tensors
        return (
            grad[:, None, None] * of_features,
            torch.tensordot(grad, of_weight, 1),
            grad @ of_bias,
            None,
        )
