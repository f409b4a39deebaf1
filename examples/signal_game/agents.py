"""Agents, losses and data of the signal game."""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse.host import core
from egg_sparse.zoo.cli import number
from examples import data

SETTINGS = ["--vocab_size=100", "--batch_size=32", "--n_epochs=10"]
N_FEATURES, N_CLASSES = 784, 10

_Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class InformedSender(nn.Module):
    """Sees all candidates ``(B, game_size, n_features)``, the target first; returns log-probabilities of symbols."""

    def __init__(
        self, game_size: int, n_features: int, embedding_size: int, hidden_size: int, vocab_size: int, tau: float
    ) -> None:
        super().__init__()
        self.tau = tau
        self.embed = nn.Linear(n_features, embedding_size, bias=False)
        self.compare = nn.Sequential(
            *(nn.Linear(game_size, hidden_size, bias=False), nn.Sigmoid()),
            *(nn.Linear(hidden_size, 1, bias=False), nn.Sigmoid()),
        )
        self.score = nn.Linear(embedding_size, vocab_size, bias=False)

    def forward(self, candidates: torch.Tensor, aux_input: Any = None) -> torch.Tensor:
        compared = self.compare(self.embed(candidates).transpose(1, 2)).squeeze(2)
        return (self.score(compared) / self.tau).log_softmax(dim=1)


class Receiver(nn.Module):
    """Returns log-probabilities of the candidates, which it sees in an order of its own."""

    def __init__(self, n_features: int, embedding_size: int) -> None:
        super().__init__()
        self.embed = nn.Linear(n_features, embedding_size, bias=False)

    def forward(self, symbol: torch.Tensor, candidates: torch.Tensor, aux_input: Any = None) -> torch.Tensor:
        return torch.bmm(self.embed(candidates), symbol.unsqueeze(2)).squeeze(2).log_softmax(dim=1)


def differentiable_loss(
    sender_input: torch.Tensor,
    message: torch.Tensor,
    receiver_input: torch.Tensor,
    receiver_output: torch.Tensor,
    labels: torch.Tensor,
    aux_input: Any,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    correct = (receiver_output.argmax(dim=1) == labels).float()
    return F.nll_loss(receiver_output, labels, reduction="none"), {"acc": correct}


def success_loss(
    sender_input: torch.Tensor,
    message: torch.Tensor,
    receiver_input: torch.Tensor,
    receiver_output: torch.Tensor,
    labels: torch.Tensor,
    aux_input: Any,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Minus one if the receiver points at the target, else 0."""
    success = (receiver_output == labels).float()
    return -success, {"acc": success}


def add_options(parser: argparse.ArgumentParser) -> None:
    data.add_options(parser)
    option = parser.add_argument
    option("--mode", choices=("rf", "gs"), default="rf", help="score function or Gumbel-Softmax (default: rf)")
    option("--tau_s", type=float, default=10.0, help="what the sender's scores are divided by (default: 10)")
    option("--game_size", type=number(int, 1, at_most=N_CLASSES), default=2, help="candidates, each of another class")
    option("--embedding_size", type=int, default=50, help="features of embedded images and symbols (default: 50)")
    option("--hidden_size", type=int, default=20, help="filters of the sender (default: 20)")
    option("--batches_per_epoch", type=int, default=100, help="batches of training and of validation (default: 100)")
    option("--gs_tau", type=float, default=1.0, help="first Gumbel-Softmax temperature (default: 1)")


def build_agents(opts: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    sender = InformedSender(
        opts.game_size, N_FEATURES, opts.embedding_size, opts.hidden_size, opts.vocab_size, opts.tau_s
    )
    receiver = Receiver(N_FEATURES, opts.embedding_size)
    return sender, core.SymbolReceiverWrapper(receiver, opts.vocab_size, opts.embedding_size)


def build_data(opts: argparse.Namespace) -> tuple[data.DrawnBatches, list[_Batch]]:
    """Games of images, each of length 1: the same ones whenever the validation is played."""
    train, validation = data.load(opts)
    drawn_once = torch.Generator().manual_seed(7)
    batches = [draw(*validation, opts, drawn_once) for _ in range(opts.batches_per_epoch)]
    return data.DrawnBatches(lambda: draw(*train, opts), opts.batches_per_epoch), batches


def draw(
    images: torch.Tensor, classes: torch.Tensor, opts: argparse.Namespace, generator: torch.Generator | None = None
) -> _Batch:
    """A batch of games: what the sender sees, where the target is in what the receiver sees, and that."""
    shape = (opts.batch_size, opts.game_size)
    by_class, n_of_class = classes.argsort(), classes.bincount(minlength=N_CLASSES)
    chosen = torch.rand(opts.batch_size, N_CLASSES, generator=generator).argsort(dim=1)[:, : opts.game_size]
    rank = (torch.rand(shape, generator=generator) * n_of_class[chosen]).long()
    rows = by_class[(n_of_class.cumsum(0) - n_of_class)[chosen] + rank]
    candidates = F.normalize(images.flatten(1)[rows], dim=2)
    order = torch.rand(shape, generator=generator).argsort(dim=1)
    shuffled = candidates.gather(1, order[:, :, None].expand_as(candidates))
    return candidates, (order == 0).long().argmax(dim=1), shuffled
