"""Agents, losses and batches of small games, in float64 where not said otherwise."""

import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse import SparsemaxWrapper, SymbolGameMarg


def fixed_sender(agent, *args, **options):
    """A sender whose temperature stays, so that two calls play the same distribution."""
    return SparsemaxWrapper(agent, *args, support=None, **options)


class Sender(nn.Module):
    """Scores symbols by the target, the first of the images, wherever the examples are."""

    def __init__(self, n_features, vocab_size, examples_axis):
        super().__init__()
        self.linear = nn.Linear(n_features, vocab_size)
        self.examples_axis = examples_axis

    def forward(self, images, aux_input=None):
        target = images[0] if self.examples_axis == 1 else images[:, 0]
        return 3 * self.linear(target).log_softmax(1)


class Receiver(nn.Module):
    """Picks a candidate, as the receiver of EGG's signal game does."""

    def __init__(self, n_features, vocab_size, examples_axis, one_hot, hidden=7):
        super().__init__()
        self.embed = nn.Linear(n_features, hidden, bias=False)
        self.read = nn.Linear(vocab_size, hidden, bias=False) if one_hot else nn.Embedding(vocab_size, hidden)
        self.examples_axis = examples_axis

    def forward(self, message, images, aux_input=None):
        candidates = self.embed(images.transpose(0, 1) if self.examples_axis == 1 else images)
        return torch.bmm(candidates, self.read(message).unsqueeze(-1)).squeeze(-1).log_softmax(1)


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.read = nn.Embedding(17, 6)
        self.drop = nn.Dropout(0.5)

    def forward(self, message, receiver_input=None, aux_input=None):
        return self.drop(self.read(message))


class Normalizing(nn.Module):
    def __init__(self):
        super().__init__()
        self.read = nn.Embedding(17, 6)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, message, receiver_input=None, aux_input=None):
        return self.norm(self.read(message))


class Passing(nn.Module):
    """Returns three tensors that are no action: a number, and two more per example."""

    def __init__(self, widths=(1, 1, 1)):
        super().__init__()
        self.read = nn.Embedding(17, 6)
        self.widths = widths

    def forward(self, message, receiver_input=None, aux_input=None):
        parts = self.read(message).split([*self.widths, 6 - sum(self.widths)], 1)[:3]
        return tuple(part[:, 0] if width == 1 else part for part, width in zip(parts, self.widths, strict=True))


class Peeking(nn.Module):
    """Looks at a value, which vmap cannot."""

    def __init__(self):
        super().__init__()
        self.read = nn.Embedding(17, 6)

    def forward(self, message, receiver_input=None, aux_input=None):
        return self.read(message) * (1 + message.sum().item() * 0)


def nll(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    loss = F.nll_loss(receiver_output, labels, reduction="none")
    return loss, {"acc": (receiver_output.argmax(1) == labels).to(loss), "rank": receiver_output.argsort(1).to(loss)}


def squared_distance(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    return (receiver_output.sum(1) - sender_input.flatten(1).sum(1)).pow(2), {}


def loss_of_three(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    value, mean, log_variance = (part if part.dim() == 1 else part.sum(1) for part in receiver_output)
    return (value - mean).pow(2) * log_variance.exp(), {}


def batch_of(size, axis, n_features=4, game_size=3, dtype=torch.float64):
    images = torch.randn(game_size, size, n_features, dtype=dtype)
    labels = torch.arange(size) % game_size
    if axis == 0:
        images = images.transpose(0, 1).contiguous()
    return images, labels, images.flip(2)


def game_of(normalizer, strategy, message_format, vocab_size, axis, coefficient=0.2, **options):
    sender = fixed_sender(Sender(4, vocab_size, axis), normalizer, message_format)
    receiver = Receiver(4, vocab_size, axis, message_format == "one_hot")
    return SymbolGameMarg(sender, receiver, nll, coefficient, strategy=strategy, max_support=None, **options).double()


def gradients(loss, game):
    return torch.autograd.grad(loss, list(game.parameters()))
