"""The bit-vector VAE: the agents in the game of each method, and what its losses mean for an image."""

from __future__ import annotations

import argparse
import math
from functools import partial
from typing import Any

import torch
from torch import nn

from egg_sparse.estimators import BitVectorSampler, NeuralBaseline, RelaxedWrapper
from egg_sparse.wrappers import SparseWrapper
from egg_sparse.zoo import training
from egg_sparse.zoo.bit_vector_vae.archs import Distortion, Generator, Inference
from egg_sparse.zoo.bit_vector_vae.likelihood import log_likelihood
from egg_sparse.zoo.methods import BIT_VECTOR_METHODS, GameParts


class VAE(nn.Module):
    """A game, with what its losses mean for an image: rate, distortion and bits per dimension.

    To the Interaction's ``aux`` it adds ``rate``, the divergence of the sender's distribution from the uniform prior,
    and ``negative_elbo``, rate plus distortion, in nats; and in evaluation, with samples, ``bits_per_dimension``.
    """

    def __init__(
        self,
        game: Any,
        inference: Inference,
        generator: Generator,
        n_bits: int,
        nll_samples: int = 0,
        estimate: str = "",
    ) -> None:
        super().__init__()
        self.game = game
        self.inference = inference
        self.generator = generator
        self.n_bits = n_bits
        self.nll_samples = nll_samples
        self.estimate = estimate

    def forward(
        self, sender_input: torch.Tensor, labels: torch.Tensor, receiver_input: Any = None, aux_input: Any = None
    ) -> tuple[torch.Tensor, Any]:
        loss, interaction = self.game(sender_input, labels, receiver_input, aux_input)
        aux = interaction.aux
        aux["rate"] = self.n_bits * math.log(2) - aux["sender_entropy"]
        aux["negative_elbo"] = aux["rate"] + aux["distortion"]
        if not self.training and self.nll_samples:
            aux["bits_per_dimension"] = self.bits_per_dimension(sender_input, labels, self.nll_samples)
        return loss, interaction

    def distribution(self, images: torch.Tensor) -> Any:
        """The sender's distribution over bit-vectors."""
        sender = self.game.sender
        if isinstance(sender, SparseWrapper):
            return sender.distribution(images)
        return (sender.sender if isinstance(sender, RelaxedWrapper) else sender)(images)

    @torch.no_grad()
    def bits_per_dimension(self, images: torch.Tensor, levels: torch.Tensor, n_samples: int) -> torch.Tensor:
        """The negative log-likelihood of images, by importance sampling, in bits per pixel, ``(B,)``."""

        def log_prob_given(messages: torch.Tensor) -> torch.Tensor:
            rows, batch = messages.shape[:2]
            pairs = levels.expand(rows, *levels.shape).flatten(0, 1)
            features = self.generator(messages.flatten(0, 1))
            distortion, _ = self.game.loss(None, None, None, features, pairs, None)
            return -distortion.view(rows, batch)

        estimate = log_likelihood(log_prob_given, self.distribution(images), n_samples, self.estimate)
        return -estimate / math.log(2) / images.shape[1]


def build_vae(opts: argparse.Namespace, n_pixels: int, n_levels: int) -> VAE:
    """The agents in the game that trains them."""
    inference = Inference(n_pixels, opts.latent_size)
    generator = Generator(opts.latent_size, n_pixels, n_levels)
    parts = GameParts(
        inference,
        generator,
        Distortion(generator),
        sampler=BitVectorSampler,
        neural_baseline=partial(NeuralBaseline, n_pixels),
        options=training.quiet_logging(),
        summing_options={"strategy": "gather", "evaluation": "expected"},
        sampling_options={"evaluation": "sampled"},
    )
    game = BIT_VECTOR_METHODS[opts.mode].build(opts, parts)
    return VAE(game, inference, generator, opts.latent_size, opts.validation_nll_samples, opts.nll)
