"""The sender, a classifier, and the receiver, a Gaussian VAE of images given their class."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Classifier(nn.Module):
    """Three hidden layers of 256 units from pixels ``(B, n_pixels)`` to scores of classes ``(B, n_classes)``."""

    def __init__(self, n_pixels: int, n_classes: int = 10, hidden_size: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(n_pixels, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, n_classes),
        )

    def forward(self, images: torch.Tensor, aux_input: Any = None) -> torch.Tensor:
        return self.layers(images)


class LinearOfClass(nn.Linear):
    """A linear map of features beside a one-hot class, which is given as an id, or as a one-hot or relaxed row."""

    def __init__(self, n_features: int, n_classes: int, out_features: int) -> None:
        super().__init__(n_features + n_classes, out_features)
        self.n_classes = n_classes

    def forward(self, features: torch.Tensor, message: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        if not message.is_floating_point():
            message = F.one_hot(message, self.n_classes).to(features.dtype)
        return super().forward(torch.cat((features, message), -1))


class GaussianVAE(nn.Module):
    """Encodes an image, given its class, as a Gaussian latent, and decodes a sample of it, given the class.

    Returns ``(B, n_pixels + 2 * latent_dim)``: the log-odds of the pixels, means and log-deviations of the latent.

    Source: the model of deep-spin/sparse-marginalization-lvm.
    """

    def __init__(self, n_pixels: int, n_classes: int = 10, latent_dim: int = 8, hidden_size: int = 128) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.read_image = LinearOfClass(n_pixels, n_classes, hidden_size)
        self.encode = nn.Sequential(
            nn.ReLU(), nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 2 * latent_dim)
        )
        self.read_latent = LinearOfClass(latent_dim, n_classes, hidden_size)
        self.decode = nn.Sequential(
            nn.ReLU(), nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, n_pixels)
        )

    def forward(self, message: torch.Tensor, images: torch.Tensor, aux_input: Any = None) -> torch.Tensor:
        encoded = self.encode(self.read_image(images, message))
        mean, log_deviation = encoded.chunk(2, dim=-1)
        latent = mean + log_deviation.exp() * torch.randn_like(mean)
        return torch.cat((self.decode(self.read_latent(latent, message)), encoded), -1)

    def generate(self, classes: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """The probabilities of the pixels, for classes ``(N,)`` and latents ``(N, latent_dim)``."""
        return self.decode(self.read_latent(latent, classes)).sigmoid()


def negative_elbo(receiver_output: torch.Tensor, images: torch.Tensor, latent_dim: int) -> torch.Tensor:
    """Bernoulli distortion plus the Gaussian latent's divergence from its prior, in nats, per example."""
    n_pixels = images.shape[-1]
    log_odds, mean, log_deviation = receiver_output.split((n_pixels, latent_dim, latent_dim), dim=-1)
    distortion = (F.softplus(log_odds) - images * log_odds).sum(-1)
    rate = (mean.square() + (2 * log_deviation).exp() - 1).sum(-1) / 2 - log_deviation.sum(-1)
    return distortion + rate
