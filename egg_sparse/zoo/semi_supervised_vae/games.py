"""The semi-supervised VAE: its losses, and the agents in the game of each method."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import entmax
import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse.estimators import NeuralBaseline, SymbolSampler
from egg_sparse.zoo import training
from egg_sparse.zoo.methods import SYMBOL_METHODS, GameParts
from egg_sparse.zoo.semi_supervised_vae import data
from egg_sparse.zoo.semi_supervised_vae.archs import Classifier, GaussianVAE, negative_elbo

# Labels and warm start make the classifier sure, and the ELBO has its entropy: a support that begins with most of the
# classes undoes both, so the temperature is fixed.
METHODS = {**SYMBOL_METHODS, "marg": replace(SYMBOL_METHODS["marg"], controls_support=False)}
"""The methods, by ``--mode``."""


def elbo_loss(
    sender_input: torch.Tensor,
    message: torch.Tensor,
    _receiver_input: Any,
    receiver_output: torch.Tensor,
    labels: torch.Tensor,
    _aux_input: Any,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The negative ELBO of an image given its class, in nats; ``acc`` is 1 where the class is the true one.

    It lacks the sender's entropy, which the game subtracts, and the uniform prior's logarithm of the number of classes.
    It also reports itself as ``conditional_elbo_loss``, which means the same in training and validation.
    """
    latent_dim = (receiver_output.shape[-1] - sender_input.shape[-1]) // 2
    classes = message.argmax(-1) if message.is_floating_point() else message
    loss = negative_elbo(receiver_output, sender_input, latent_dim)
    return loss, {"acc": (classes == labels).float(), "conditional_elbo_loss": loss.detach()}


def unconditional(aux: dict[str, torch.Tensor], n_classes: int) -> torch.Tensor:
    """The negative ELBO ``(B,)`` in nats, with the divergence of the sender's distribution from a uniform one."""
    return aux["conditional_elbo_loss"] - aux["sender_entropy"] + math.log(n_classes)


def classification_loss(normalizer: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The loss whose gradient is normalizer(scores) less the true class, per example."""
    if normalizer == "softmax":
        return lambda scores, classes: F.cross_entropy(scores, classes, reduction="none")
    loss = {"sparsemax": entmax.SparsemaxLoss, "entmax15": entmax.Entmax15Loss}[normalizer]
    return loss(reduction="none")


@contextmanager
def in_next_call(agent: nn.Module, *labeled: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Makes the next call of an agent take a labeled batch as well: one call for both is cheaper than two.

    Args:
        agent: called with tensors that have examples on axis 0, and other arguments behind them.
        labeled: its arguments for the labeled batch. Classes become rows where the call's own messages are.

    Yields:
        A list, empty until that call, then with the agent's output for the labeled batch.
    """
    outputs: list[torch.Tensor] = []

    def join(_agent: nn.Module, own: tuple[Any, ...]) -> tuple[Any, ...]:
        joining.remove()
        return *map(joined, own, labeled), *own[len(labeled) :]

    def joined(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        if own.dim() > other.dim():
            other = F.one_hot(other, own.shape[-1]).to(own.dtype)
        return torch.cat((own, other))

    def split(_agent: nn.Module, _inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        splitting.remove()
        own, of_labeled = output.tensor_split([len(output) - len(labeled[0])])
        outputs.append(of_labeled)
        return own

    joining, splitting = agent.register_forward_pre_hook(join), agent.register_forward_hook(split)
    try:
        yield outputs
    finally:
        joining.remove()
        splitting.remove()


class SemiSupervisedGame(nn.Module):
    """A game on unlabeled images, plus the losses of a labeled batch that comes in ``aux_input``.

    The loss in training is

        labeled ELBO loss + classification loss + unlabeled_weight * the game's loss,

    each a mean over its batch. In evaluation it is the game.

    Args:
        game: on images ``sender_input``, which are also ``receiver_input``.
        classifier, vae: the agents that play it.
        classification_loss: scores ``(B, n_classes)`` and classes ``(B,)`` to losses ``(B,)``.
        unlabeled_weight: unlabeled images per labeled one.
        labeled_only: train on labeled images alone, which then are ``sender_input``, their classes ``labels``.
        n_classes: the number of classes.
    """

    def __init__(
        self,
        game: Any,
        classifier: Classifier,
        vae: GaussianVAE,
        classification_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        unlabeled_weight: float,
        labeled_only: bool = False,
        n_classes: int = data.N_CLASSES,
    ) -> None:
        super().__init__()
        self.game = game
        self.classifier = classifier
        self.vae = vae
        self.classification_loss = classification_loss
        self.unlabeled_weight = unlabeled_weight
        self.labeled_only = labeled_only
        self.n_classes = n_classes

    def labeled_losses(
        self, images: torch.Tensor, classes: torch.Tensor, scores: torch.Tensor, vae_output: torch.Tensor
    ) -> torch.Tensor:
        """Losses ``(B,)`` of labeled images, from the agents' outputs for them."""
        elbo, _ = elbo_loss(images, classes, images, vae_output, classes, None)
        return elbo + self.classification_loss(scores, classes)

    def forward(
        self, sender_input: torch.Tensor, labels: torch.Tensor, receiver_input: Any = None, aux_input: Any = None
    ) -> tuple[torch.Tensor, Any]:
        if not self.training:
            return self.game(sender_input, labels, receiver_input)
        if self.labeled_only:
            scores, vae_output = self.classifier(sender_input), self.vae(labels, sender_input)
            losses = self.labeled_losses(sender_input, labels, scores, vae_output)
            guesses = scores.detach().argmax(-1)
            return losses.mean(), self.game.train_logging_strategy.filtered_interaction(
                sender_input=sender_input,
                receiver_input=receiver_input,
                labels=labels,
                aux_input=None,
                message=guesses,
                receiver_output=None,
                message_length=torch.ones_like(losses.detach()),
                aux={"acc": (guesses == labels).float(), "labeled_loss": losses.detach()},
            )
        images, classes = aux_input["images"], aux_input["classes"]
        with in_next_call(self.classifier, images) as scores, in_next_call(self.vae, classes, images) as vae_output:
            loss, interaction = self.game(sender_input, labels, receiver_input)
        interaction.aux["negative_elbo"] = unconditional(interaction.aux, self.n_classes)
        losses = self.labeled_losses(images, classes, *scores, *vae_output)
        interaction.aux["labeled_loss"] = losses.detach()
        return losses.mean() + self.unlabeled_weight * loss, interaction


def build_game(opts: argparse.Namespace, split: data.Split) -> SemiSupervisedGame:
    """The agents in the game that trains them."""
    n_pixels = split.labeled.pixels.shape[1]
    classifier, vae = Classifier(n_pixels, split.n_classes), GaussianVAE(n_pixels, split.n_classes)
    parts = GameParts(
        classifier,
        vae,
        elbo_loss,
        sampler=SymbolSampler,
        neural_baseline=partial(NeuralBaseline, n_pixels),
        options=training.quiet_logging(),
        summing_options={"strategy": "gather"},
    )
    game = METHODS[opts.mode].build(opts, parts)
    loss = classification_loss(opts.normalizer)
    weight = len(split.unlabeled) / len(split.labeled)
    return SemiSupervisedGame(game, classifier, vae, loss, weight, opts.labeled_only, split.n_classes)
