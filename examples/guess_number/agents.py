"""Agents, losses and data of the number that two agents know some bits of each."""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Bernoulli

from egg_sparse.host import core
from examples import data

_SCORE_FUNCTION = ["--vocab_size=256", "--batch_size=512", "--n_examples_per_epoch=51200", "--n_epochs=15"]
SETTINGS = {
    "gs": ["--vocab_size=1024", "--batch_size=8", "--n_epochs=10"],
    "rf": [*_SCORE_FUNCTION, "--sender_hidden=30", "--receiver_hidden=30"],
    "non_diff": [*_SCORE_FUNCTION, "--sender_hidden=30", "--receiver_hidden=30"],
}

_Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def settings(params: list[str]) -> list[str]:
    """The settings of the mode that ``params`` choose, followed by ``params``."""
    parser = argparse.ArgumentParser(add_help=False)
    _add_mode(parser)
    mode = parser.parse_known_args(params)[0].mode
    return ["--lr=0.001", *SETTINGS[mode], *params]


class Sender(nn.Module):
    """Returns log-probabilities of the symbols."""

    def __init__(self, n_bits: int, n_hidden: int, vocab_size: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(n_bits, n_hidden), nn.LeakyReLU(), nn.Linear(n_hidden, vocab_size))

    def forward(self, bits: torch.Tensor, aux_input: Any = None) -> torch.Tensor:
        return self.score(bits).log_softmax(dim=1)


class Receiver(nn.Module):
    """Returns the probability that a bit is 1, of every bit."""

    def __init__(self, n_bits: int, n_hidden: int) -> None:
        super().__init__()
        self.look = nn.Linear(n_bits, n_hidden)
        self.guess = nn.Sequential(
            nn.Linear(2 * n_hidden, 2 * n_hidden), nn.LeakyReLU(), nn.Linear(2 * n_hidden, n_bits), nn.Sigmoid()
        )

    def forward(self, symbol: torch.Tensor, bits: torch.Tensor, aux_input: Any = None) -> Any:
        return self.guess(torch.cat((self.look(bits), symbol), dim=1))


class ActingReceiver(Receiver):
    """Guesses bits: returns them, their log-probability and their entropy. In evaluation it takes the likelier bit."""

    def forward(self, symbol: torch.Tensor, bits: torch.Tensor, aux_input: Any = None) -> Any:
        bit = Bernoulli(super().forward(symbol, bits, aux_input))
        guess = bit.sample() if self.training else (bit.probs > 0.5).float()
        return guess, bit.log_prob(guess).sum(dim=1), bit.entropy()


def differentiable_loss(
    sender_input: torch.Tensor,
    message: torch.Tensor,
    receiver_input: torch.Tensor,
    receiver_output: torch.Tensor,
    labels: torch.Tensor,
    aux_input: Any,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The cross-entropy per bit."""
    loss = F.binary_cross_entropy(receiver_output, labels, reduction="none").mean(dim=1)
    return loss, {"acc": _all_right(receiver_output, labels)}


def success_loss(
    sender_input: torch.Tensor,
    message: torch.Tensor,
    receiver_input: torch.Tensor,
    receiver_output: torch.Tensor,
    labels: torch.Tensor,
    aux_input: Any,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Minus one if all bits are right, else 0."""
    success = _all_right(receiver_output, labels)
    return -success, {"acc": success}


def _all_right(guesses: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    return ((guesses > 0.5) == (bits > 0.5)).all(dim=1).float()


def _add_mode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mode",
        choices=SETTINGS,
        default="gs",
        help="gs: Gumbel-Softmax; rf: score function; non_diff: score function for both agents (default: gs)",
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    _add_mode(parser)
    option = parser.add_argument
    option("--n_bits", type=int, default=8, help="bits of a number (default: 8)")
    option("--bits_s", type=int, default=8, help="first bits, which the sender knows (default: 8)")
    option("--bits_r", type=int, default=4, help="last bits, which the receiver knows (default: 4)")
    option("--n_examples_per_epoch", type=int, default=8000, help="training examples per epoch (default: 8000)")
    option("--sender_hidden", type=int, default=10, help="units of the sender's hidden layer (default: 10)")
    option("--receiver_hidden", type=int, default=10, help="size of the receiver's embeddings (default: 10)")
    option("--temperature", type=float, default=1.0, help="Gumbel-Softmax temperature (default: 1)")
    option("--sender_entropy_coeff", type=float, default=0.01, help="coefficient of the entropy (default: 0.01)")
    option("--receiver_entropy_coeff", type=float, default=0.01, help="coefficient in mode non_diff (default: 0.01)")
    option("--early_stopping_thr", type=float, default=0.99, help="accuracy that is enough (default: 0.99)")


def build_agents(opts: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    receiver = (ActingReceiver if opts.mode == "non_diff" else Receiver)(opts.n_bits, opts.receiver_hidden)
    sender = Sender(opts.n_bits, opts.sender_hidden, opts.vocab_size)
    return sender, core.SymbolReceiverWrapper(receiver, opts.vocab_size, opts.receiver_hidden)


def build_data(opts: argparse.Namespace) -> tuple[data.DrawnBatches, list[_Batch]]:
    """Random numbers for training; all of them for validation."""
    position = torch.arange(opts.n_bits)

    def split(bits: torch.Tensor) -> _Batch:
        bits = bits.float()
        return bits * (position < opts.bits_s), bits, bits * (position >= opts.n_bits - opts.bits_r)

    def draw() -> _Batch:
        return split(torch.randint(2, (opts.batch_size, opts.n_bits)))

    all_numbers = torch.arange(2**opts.n_bits)[:, None] >> position & 1
    return data.DrawnBatches(draw, opts.n_examples_per_epoch // opts.batch_size), [split(all_numbers)]
