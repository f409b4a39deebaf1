r"""The distortion of an image of grey levels, without its logits ever being in memory all at once.

Every pixel is a categorical variable of L levels with logits W x + b, from a few features x per pixel. For N decoded
messages of P pixels the logits are N P L numbers (128 million for 640 images of 28 x 28 pixels and 256 levels), while
features and gradients are a hundredth of that. So a few messages at a time are scored, and what their gradient needs is
kept: that of the features, and that of W and b for every message, to be weighted when the messages' weights are known.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.autograd.function import once_differentiable

_SAFE_EXPONENT = 80.0  # exp of it, and of its negative, is a normal float32
LOGITS_AT_A_TIME = {"cpu": 2**20, "cuda": 2**26}


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
    """Scores are kept as levels x pixels: products with few rows are up to 14 times as fast as with few columns.

    The bias is one more column of the weight, for a feature that is always 1.
    """

    @staticmethod
    def forward(
        ctx: Any, features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, levels: torch.Tensor
    ) -> torch.Tensor:
        n, n_pixels, rank = features.shape
        n_levels = len(weight)
        parameters = torch.cat((weight, bias[:, None]), 1)
        # one product gives what the gradient needs and, with a row of ones, the sum over levels
        summands = torch.cat((weight.t(), weight.new_ones(1, n_levels)))
        # scores are shifted where they may overflow; to find that out would make a GPU wait
        largest_score = math.inf if features.is_cuda else 0.0
        if n and not features.is_cuda:
            norms = features.square().sum(-1).amax() * weight.square().sum(-1).amax()
            largest_score = (norms.sqrt() + bias.abs().amax()).item()
        at_a_time = max(1, LOGITS_AT_A_TIME.get(features.device.type, 2**20) // (n_pixels * n_levels))
        buffer = features.new_empty(min(n, at_a_time), n_levels, n_pixels)
        distortion = features.new_empty(n)
        of_features = torch.empty_like(features)
        of_parameters = features.new_empty(n, rank + 1, n_levels)
        for start in range(0, n, at_a_time):
            part = slice(start, start + at_a_time)
            some, targets = features[part], levels[part].long()
            with_one = torch.cat((some.transpose(1, 2), some.new_ones(len(some), 1, n_pixels)), 1)
            scores = torch.bmm(parameters.expand(len(some), -1, -1), with_one, out=buffer[: len(some)])
            of_targets = (some * weight[targets]).sum(-1) + bias[targets]
            if not largest_score < _SAFE_EXPONENT:
                shift = scores.amax(1, keepdim=True)
                scores.sub_(shift)
                of_targets = of_targets - shift[:, 0]
            products = torch.matmul(summands, scores.exp_())
            total = products[:, -1:]
            distortion[part] = (total[:, 0].log() - of_targets).sum(1)
            if any(ctx.needs_input_grad):
                of_features[part] = (products[:, :-1] / total).transpose(1, 2) - weight[targets]
                some_parameters = torch.matmul(with_one / total, scores.transpose(1, 2))
                index = targets[:, None].expand(-1, rank + 1, -1)
                of_parameters[part] = some_parameters.scatter_add_(2, index, with_one.neg_())
        ctx.save_for_backward(of_features, of_parameters)
        return distortion

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        of_features, of_parameters = ctx.saved_tensors
        weighted = torch.tensordot(grad, of_parameters, 1)
        return grad[:, None, None] * of_features, weighted[:-1].t(), weighted[-1], None
