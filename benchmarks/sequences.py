"""Messages of several symbols: the time of a training step, its memory, and the variance of its gradient.

The game reconstructs objects of two attributes with 20 values each from three symbols out of 20, with GRU agents of 100
units and 64 objects per step. Times are in steps of EGG's REINFORCE game of the same agents. A temperature sets the
mean support of the unbounded trees; with the ``full`` rows every tree has more messages than ``max_support``.

The variance is that of the gradient for the scores of a decoder of three symbols out of four, with 40 messages, whose
losses are random. All estimators are given eight receiver calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.measure import Settings, Step, Table, fitted_exponent, milliseconds, peak_gigabytes, ratio
from benchmarks.measure import seconds_in_turns as in_turns
from egg_sparse import RnnSenderSparsemax, SenderReceiverRnnMarg, host
from egg_sparse.callbacks.gradients import moments
from egg_sparse.distribution import SparseDistribution
from egg_sparse.games.marginal import unbiased
from egg_sparse.mappings.resampling import score_of_sample, sum_and_sample
from egg_sparse.mappings.sequences import sequence_distribution

ATTRIBUTES, VALUES = 2, 20
#: The bound, and the temperature, of each row: 1 for undecided senders, smaller ones for smaller trees.
BOUNDS = {"8, full": (8, 1.0), "16, full": (16, 1.0), "32, full": (32, 1.0), "32, mean 4": (32, None)}


class Agent(nn.Linear):
    def forward(self, inputs: torch.Tensor, *_: Any) -> torch.Tensor:
        return super().forward(inputs)


def loss(
    _sender_input: Any, _message: Any, _receiver_input: Any, output: torch.Tensor, labels: torch.Tensor, _aux: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return F.cross_entropy(output.unflatten(1, (ATTRIBUTES, -1)).transpose(1, 2), labels, reduction="none").mean(1), {}


def game_of(kind: str, vocab_size: int, max_len: int, hidden: int, bound: int = 16, temperature: float = 1.0) -> Any:
    """A game: "reinforce" and "gumbel" are EGG's, "exact" is this package's."""
    core, features = host.core, ATTRIBUTES * VALUES
    sizes = (vocab_size, 30, hidden)
    receiver: Any = core.RnnReceiverGS if kind == "gumbel" else core.RnnReceiverDeterministic
    receiver = receiver(Agent(hidden, features), *sizes, cell="gru")
    agent = Agent(features, hidden)
    if kind == "gumbel":
        return core.SenderReceiverRnnGS(core.RnnSenderGS(agent, *sizes, max_len, 1.0, cell="gru"), receiver, loss)
    if kind == "reinforce":
        return core.SenderReceiverRnnReinforce(
            core.RnnSenderReinforce(agent, *sizes, max_len, cell="gru"), receiver, loss, 0.1, 0.0
        )
    sender = RnnSenderSparsemax(
        agent, *sizes, max_len, cell="gru", temperature=temperature, support=None, max_support=bound
    )
    return SenderReceiverRnnMarg(sender, receiver, loss, 0.1)


def batch_of(size: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(VALUES, (size, ATTRIBUTES), device=device)
    return F.one_hot(labels, VALUES).float().flatten(1), labels


def step_of(game: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A training step without the optimizer's, which returns the mean support."""

    def step() -> torch.Tensor:
        game.zero_grad()
        value, interaction = game(inputs, labels)
        value.backward()
        support: torch.Tensor = interaction.aux.get("support", torch.ones(1)).mean()
        return support

    return step


def temperature_of_support(support: float, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature at which the unbounded trees of the exact game have a mean support."""
    low, high = 1e-3, 1.0
    for _ in range(12):
        middle = math.sqrt(low * high)
        torch.manual_seed(0)
        game = game_of("exact", 20, 3, 100, 10_000, middle).to(inputs.device)
        with torch.no_grad():
            found = game(inputs, labels)[1].aux["support"].mean().item()
        low, high = (low, middle) if found > support else (middle, high)
    return low


def one_step(kind: str, vocab_size: int, max_len: int, bound: int, batch: int, device: str) -> None:
    """One training step, for the memory of a process."""
    torch.manual_seed(0)
    game = game_of(kind, vocab_size, max_len, 100, bound).to(device)
    step_of(game, *batch_of(batch, device))()


def tables(settings: Settings) -> list[Table]:
    return [_steps(settings), _sizes(settings), _variances(settings)]


def _steps(settings: Settings) -> Table:
    torch.manual_seed(0)
    device = str(settings.device)
    inputs, labels = batch_of(64, device)
    steps: dict[str, Step] = {}
    for kind in ("reinforce", "gumbel"):
        torch.manual_seed(0)
        steps[kind] = step_of(game_of(kind, 20, 3, 100).to(device), inputs, labels)
    for name, (bound, temperature) in BOUNDS.items():
        temperature = temperature or temperature_of_support(4, inputs, labels)
        torch.manual_seed(0)
        steps[name] = step_of(game_of("exact", 20, 3, 100, bound, temperature).to(device), inputs, labels)
    supports = {name: float(step()) for name, step in steps.items()}  # type: ignore[arg-type]
    seconds = in_turns(steps, settings.repeated(21), settings.device)
    table = Table("sequence_step", "A training step of messages of several symbols")
    for name, times in seconds.items():
        table.rows.append(
            {
                "game": {"reinforce": "EGG, REINFORCE", "gumbel": "EGG, Gumbel-Softmax"}.get(name, "exact"),
                "max_support": name if name in BOUNDS else None,
                "mean support": supports[name] if name in BOUNDS else None,
                "ms": milliseconds(times),
                "REINFORCE steps": ratio(times, seconds["reinforce"]),
            }
        )
    return table


def _sizes(settings: Settings) -> Table:
    device = str(settings.device)
    table = Table("sequence_sizes", "A training step over vocabularies, lengths and bounds, at temperature 1")
    sizes = [(20, 3, 8), (20, 3, 32), (20, 3, 128), (1000, 20, 32)]
    for vocab_size, max_len, bound in sizes[:2] if settings.quick else sizes:
        torch.manual_seed(0)
        game = game_of("exact", vocab_size, max_len, 100, bound).to(device)
        step = step_of(game, *batch_of(64, device))
        times = in_turns({"step": step}, settings.repeated(5), settings.device)["step"]
        arguments = (vocab_size, max_len, bound, 64, device)
        table.rows.append(
            {
                "vocabulary": vocab_size,
                "max_len": max_len,
                "max_support": bound,
                "ms": milliseconds(times),
                "peak GB": peak_gigabytes("benchmarks.sequences", "one_step", "exact", *arguments),
            }
        )
    bounds = [row for row in table.rows if row["vocabulary"] == 20]
    exponent = fitted_exponent([row["max_support"] for row in bounds], [row["ms"] for row in bounds])
    table.notes.append(f"The time grows as max_support to the power of {exponent:.2f}, at 20 symbols and max_len 3.")
    return table


class Toy:
    """A decoder whose scores are one vector for each position and last symbol, and a loss for every message."""

    vocab_size, max_len, calls = 4, 3, 8

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.scores = 0.5 * torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
        self.losses = torch.randn(4**4, generator=generator, dtype=torch.float64) + 3

    def begin(self, scores: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"scores": scores, "step": torch.zeros(len(scores), dtype=torch.long)}

    def step(self, state: dict[str, torch.Tensor], symbols: torch.Tensor | None) -> tuple[torch.Tensor, Any]:
        last = torch.full_like(state["step"], 4) if symbols is None else symbols
        scores = state["scores"][torch.arange(len(last)), state["step"], last]
        return scores, {"scores": state["scores"], "step": state["step"] + 1}

    def distribution(self, scores: torch.Tensor, max_support: int | None) -> SparseDistribution:
        return sequence_distribution(self, scores, max_len=self.max_len, normalizer="entmax15", max_support=max_support)

    def loss(self, messages: torch.Tensor) -> torch.Tensor:
        return self.losses[(messages * torch.tensor([64, 16, 4, 1])).sum(-1)]


def _bounded(toy: Toy, scores: torch.Tensor) -> torch.Tensor:
    distribution = toy.distribution(scores, toy.calls)
    return unbiased(distribution, toy.loss(distribution.messages))


def _without_baseline(toy: Toy, scores: torch.Tensor) -> torch.Tensor:
    distribution = toy.distribution(scores, toy.calls)
    return distribution.expectation(toy.loss(distribution.messages))


def _most_probable(toy: Toy, scores: torch.Tensor) -> torch.Tensor:
    distribution = toy.distribution(scores, None)
    probs = distribution.probs[: toy.calls]
    return (probs / probs.sum(0) * toy.loss(distribution.messages[: toy.calls])).sum(0)


def _sum_and_sample(toy: Toy, scores: torch.Tensor) -> torch.Tensor:
    terms, log_prob = sum_and_sample(toy.distribution(scores, None), toy.calls - 1)
    losses = toy.loss(terms.messages)
    return terms.expectation(losses) + score_of_sample(terms, log_prob, losses)


def _leave_one_out(toy: Toy, scores: torch.Tensor) -> torch.Tensor:
    distribution = toy.distribution(scores, None)
    messages = distribution.sample((toy.calls,))
    losses = toy.loss(messages)
    baseline = (losses.sum(0) - losses) / (toy.calls - 1)
    log_probs = distribution.log_prob(messages)
    return ((losses - baseline) * (log_probs - log_probs.detach()) + losses).mean(0)


ESTIMATORS: dict[str, Callable[[Toy, torch.Tensor], torch.Tensor]] = {
    "resampled, with baseline": _bounded,
    "resampled, without baseline": _without_baseline,
    "sum-and-sample": _sum_and_sample,
    "REINFORCE, leave one out": _leave_one_out,
    "the most probable ones": _most_probable,
}


def _variances(settings: Settings) -> Table:
    """The variance of estimators of one gradient: draws are the examples of a batch."""
    toy, draws = Toy(), 500 if settings.quick else 20_000
    one = toy.scores[None].clone().requires_grad_()
    exact = toy.distribution(one, None)
    (true,) = torch.autograd.grad(exact.expectation(toy.loss(exact.messages)).sum(), one)
    table = Table("sequence_variance", "The gradient for the scores, with eight receiver calls")
    for name, estimator in ESTIMATORS.items():
        torch.manual_seed(0)
        scores = toy.scores.repeat(draws, 1, 1, 1).requires_grad_()
        (gradients,) = torch.autograd.grad(estimator(toy, scores).sum(), scores)
        mean, variance = moments(gradients)
        error = (variance.sum() / draws).sqrt()
        table.rows.append(
            {
                "estimator": name,
                "variance": float(variance.sum()),
                "error of the mean": float((mean - true[0]).norm()),
                "standard error": float(error),
            }
        )
    table.notes.append(
        f"The gradient has the norm {float(true.norm()):.3g}, the distribution a support of "
        f"{int(exact.support_size)}; {draws:,} draws. An unbiased estimator's mean is off by about its standard error."
    )
    return table
