"""The sender, which scores bits of an image, and the receiver, which decodes bits to features of pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from egg_sparse.zoo.bit_vector_vae.distortion import categorical_distortion


class Inference(nn.Module):
    """One hidden layer from grey levels in [0, 1], ``(B, n_pixels)``, to scores of bits ``(B, n_bits)``."""

    def __init__(self, n_pixels: int, n_bits: int, hidden_size: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(n_pixels, hidden_size), nn.ReLU(), nn.Linear(hidden_size, n_bits))

    def forward(self, images: torch.Tensor, aux_input: Any = None) -> torch.Tensor:
        return self.layers(images)


class Generator(nn.Module):
    """One hidden layer from bits ``(B, n_bits)`` to ``rank`` features per pixel, ``(B, n_pixels, rank)``.

    ``levels`` maps the features of a pixel to the logits of its grey levels; all pixels share it.

    Source: the model of deep-spin/sparse-marginalization-lvm.
    """

    def __init__(self, n_bits: int, n_pixels: int, n_levels: int, hidden_size: int = 128, rank: int = 5) -> None:
        super().__init__()
        self.rank = rank
        self.layers = nn.Sequential(nn.Linear(n_bits, hidden_size), nn.ReLU(), nn.Linear(hidden_size, n_pixels * rank))
        self.levels = nn.Linear(rank, n_levels)

    def forward(self, message: torch.Tensor, receiver_input: Any = None, aux_input: Any = None) -> torch.Tensor:
        return self.layers(message).unflatten(-1, (-1, self.rank))

    def mean_levels(self, message: torch.Tensor) -> torch.Tensor:
        """The expected grey level of every pixel, in [0, 1]."""
        probabilities = self.levels(self(message)).softmax(-1)
        steps = torch.linspace(0, 1, probabilities.shape[-1], device=probabilities.device)
        return probabilities @ steps


class Distortion(nn.Module):
    """The game's loss: nats that the grey levels cost given the message, ``labels`` being the levels ``(B, n_pixels)``.

    It reports the same as ``distortion``, which in a game's Interaction is the expectation over messages.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(
        self,
        _sender_input: Any,
        _message: Any,
        _receiver_input: Any,
        receiver_output: torch.Tensor,
        labels: torch.Tensor,
        _aux_input: Any,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        levels = self.generator.levels
        distortion = categorical_distortion(receiver_output, levels.weight, levels.bias, labels)
        return distortion, {"distortion": distortion.detach()}
