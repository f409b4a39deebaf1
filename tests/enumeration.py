"""Games small enough to enumerate: exact gradients, and whether the mean over many draws equals them."""

import itertools

import torch
from torch import nn

from egg_sparse.estimators import (
    BitVectors,
    Symbols,
)

DRAWS = 20_000


SCORES = {
    "symbols": torch.tensor([0.3, -0.2, 0.8, 0.1, -1.0], dtype=torch.float64),
    "bits": torch.tensor([0.47, -0.7, 0.13], dtype=torch.float64),
}


class Scores(nn.Module):
    """The same scores for every one of many examples, so that a batch is a batch of draws."""

    def __init__(self, kind, draws=DRAWS):
        super().__init__()
        self.scores = nn.Parameter(SCORES[kind].repeat(draws, 1))

    def forward(self, sender_input, aux_input=None):
        return self.scores


class Receiver(nn.Module):
    """One number per message, not linear in it."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        n = 5 if kind == "symbols" else 8
        self.values = nn.Parameter(torch.linspace(-1, 2, n, dtype=torch.float64) ** 2)

    def forward(self, message, receiver_input=None, aux_input=None):
        if self.kind == "bits":
            message = (message * torch.tensor([4.0, 2.0, 1.0], dtype=message.dtype)).sum(-1).long()
        return self.values[message]


def loss(_sender_input, _message, _receiver_input, receiver_output, _labels, _aux_input):
    return receiver_output + receiver_output**2 / 4, {"value": receiver_output}


def family(kind, scores):
    return Symbols(scores) if kind == "symbols" else BitVectors(scores)


def messages_of(kind):
    if kind == "symbols":
        return torch.arange(5)
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64)


def exact_gradients(kind, entropy_coeff, probabilities=None):
    """Of the expected loss less the weighted entropy, for scores and receiver, summing over all messages."""
    scores, receiver = SCORES[kind].clone().requires_grad_(), Receiver(kind)
    messages = messages_of(kind)
    if probabilities is None:
        log_probs = family(kind, scores.expand(len(messages), -1)).log_prob(messages)
        probs, entropy = log_probs.exp(), -(log_probs.exp() * log_probs).sum()
    else:
        probs = probabilities(scores[None])
        entropy = -(probs * torch.where(probs > 0, probs, 1.0).log()).sum()
    losses, _ = loss(None, messages, None, receiver(messages), None, None)
    objective = (probs * losses).sum() - entropy_coeff * entropy
    return objective.detach(), *torch.autograd.grad(objective, (scores, receiver.values))


def assert_unbiased(agent, game, receiver, expected):
    value, of_scores, of_receiver = expected
    optimized, interaction = game(torch.zeros(DRAWS, 1), None)
    optimized.backward()
    draws = agent.scores.grad * DRAWS
    error = draws.std(0) / DRAWS**0.5
    assert ((draws.mean(0) - of_scores).abs() <= 5 * error + 1e-9).all(), (draws.mean(0), of_scores, error)
    torch.testing.assert_close(receiver.values.grad, of_receiver, atol=0.03, rtol=0)
    return value, interaction
