"""The score function estimator (REINFORCE) and its baselines, for symbols and bit-vectors alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import nn

from egg_sparse import host
from egg_sparse.distribution import SparseDistribution
from egg_sparse.estimators.families import BitVectors, Symbols
from egg_sparse.games.base import OneMessageGame, Option, check_count, expected_metrics, one_of
from egg_sparse.games.calls import Batch, Outcome, Strategy

Baseline = Literal["none", "running_mean", "sample", "leave_one_out"]
Evaluation = Literal["greedy", "sampled"]


def _check_baseline(name: str, value: Any) -> None:
    if value not in get_args(Baseline):
        raise ValueError(f"{name} must be one of {', '.join(get_args(Baseline))}, or a module, got {value!r}")


class NeuralBaseline(nn.Module):
    """A network that predicts the loss from the sender's input, for NVIL: three hidden layers, as in the paper's code.

    Args:
        input_size: the number of features of an example, after flattening.
        hidden_size: the number of units of each hidden layer.
        select: the function from the sender's input to the features ``(B, ...)``; None for the whole input.

    Source: Mnih and Gregor, "Neural Variational Inference and Learning in Belief Networks" (ICML 2014).
    """

    def __init__(self, input_size: int, hidden_size: int = 512, select: Callable[[Any], torch.Tensor] | None = None):
        super().__init__()
        self.select = select
        self.layers = nn.Sequential(
            nn.Linear(input_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, 1),
        )

    def forward(self, sender_input: Any) -> torch.Tensor:
        features = sender_input if self.select is None else self.select(sender_input)
        return self.layers(features.flatten(1))[:, 0]


class SymbolGameScoreFunction(OneMessageGame):
    r"""A one-message game that learns from samples, by the score function estimator,

    .. math:: \nabla \mathbb{E}[\ell(m)] = \mathbb{E}[\nabla \ell(m) + (\ell(m) - b)\, \nabla \log p(m)],

    unbiased for any baseline b that does not depend on the message m.

    Args:
        sender: the sender, which returns a distribution over messages: an agent wrapped by
            :class:`egg_sparse.estimators.SymbolSampler` or :class:`egg_sparse.estimators.BitVectorSampler`.
        receiver: the receiver, as in :class:`egg_sparse.SymbolGameMarg`.
        loss: the loss, as in :class:`egg_sparse.SymbolGameMarg`.
        baseline: the baseline b: "none"; "running_mean", the mean of all losses so far; "sample", the loss of a second
            message of the same example (self-critic, "SFE+" in the paper), at one more receiver call; "leave_one_out",
            the mean loss of the example's other samples (RLOO), for ``n_samples`` of at least 2; or a module from the
            sender's input to ``(B,)`` (NVIL), whose squared error is added to the loss.
        n_samples: the number of messages per example and step.
        sender_entropy_coeff: the coefficient of the sender's exact entropy in nats, which is subtracted.
        receiver_entropy_coeff: the coefficient of the entropy of a receiver that acts; 0 for any other.
        strategy, chunk_size, receiver_acts, train_logging_strategy, test_logging_strategy: options, as in
            SymbolGameMarg.
        evaluation: the message that is played in evaluation mode: "greedy", the most probable one, or "sampled".

    The Interaction is that of SymbolGameMarg, with a sampled message in training, without ``support``, and with
    ``baseline`` in aux; ``receiver_calls`` counts the messages that the receiver was given in training.

    Raises:
        TypeError, ValueError: an option is none of the above, or the sender is not wrapped.

    Example:
        >>> from egg_sparse.estimators import SymbolSampler
        >>> class Agent(nn.Linear):
        ...     def forward(self, sender_input, aux_input=None):
        ...         return super().forward(sender_input)
        >>> receiver = nn.Embedding(100, 5)
        >>> def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        ...     return (receiver_output - sender_input).pow(2).sum(1), {}
        >>> game = SymbolGameScoreFunction(
        ...     SymbolSampler(Agent(5, 100)), lambda message, *_: receiver(message), loss, baseline="sample")
        >>> loss, interaction = game(torch.randn(8, 5), None)
        >>> interaction.aux["receiver_calls"].tolist()
        [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]

    Source: Williams (Machine Learning, 1992); for "sample" Correia et al. (NeurIPS 2020), section 5; for
    "leave_one_out" Kool, van Hoof and Welling, "Buy 4 REINFORCE Samples, Get a Baseline for Free!" (ICLR 2019).
    """

    evaluation = Option[Evaluation](one_of(*get_args(Evaluation)))
    baseline = Option["Baseline | nn.Module"](_check_baseline)
    n_samples = Option[int](lambda name, value: check_count(name, value, optional=False))

    mean_loss: torch.Tensor
    n_losses: torch.Tensor

    def __init__(
        self,
        sender: nn.Module,
        receiver: nn.Module,
        loss: Callable,
        baseline: Baseline | nn.Module = "running_mean",
        n_samples: int = 1,
        sender_entropy_coeff: float = 0.0,
        receiver_entropy_coeff: float = 0.0,
        strategy: Strategy = "auto",
        chunk_size: int | None = None,
        evaluation: Evaluation = "greedy",
        train_logging_strategy: host.core.LoggingStrategy | None = None,
        test_logging_strategy: host.core.LoggingStrategy | None = None,
        receiver_acts: bool | None = None,
    ) -> None:
        super().__init__(
            train_logging_strategy,
            test_logging_strategy,
            sender_entropy_coeff=sender_entropy_coeff,
            receiver_entropy_coeff=receiver_entropy_coeff,
            strategy=strategy,
            chunk_size=chunk_size,
            receiver_acts=receiver_acts,
            evaluation=evaluation,
            n_samples=n_samples,
        )
        self.sender = sender
        self.receiver = receiver
        self.loss = loss
        self.baseline = baseline
        self._check_samples()
        self.register_buffer("mean_loss", torch.zeros(()))
        self.register_buffer("n_losses", torch.zeros((), dtype=torch.long))

    def extra_repr(self) -> str:
        name = "network" if isinstance(self.baseline, nn.Module) else self.baseline
        return f"baseline={name}, n_samples={self.n_samples}, sender_entropy_coeff={self.sender_entropy_coeff}"

    def forward(
        self, sender_input: Any, labels: Any, receiver_input: Any = None, aux_input: Any = None
    ) -> tuple[torch.Tensor, host.core.Interaction]:
        self._check_samples()
        distribution = sampling_distribution(self.sender, sender_input, aux_input)
        batch = Batch(sender_input, labels, receiver_input, aux_input)
        call = self._receiver_call(distribution, self.receiver, self.loss, batch)

        def play(messages: torch.Tensor) -> tuple[SparseDistribution, Outcome]:
            """The samples, as a uniform distribution, and their outcome."""
            rows, size = messages.shape[:2]
            probs = torch.full((rows, size), 1 / rows, device=messages.device)
            samples = SparseDistribution(messages, probs, distribution.vocab_size, validate_args=False)
            return samples, self._play(samples, call)

        with torch.no_grad():
            n_samples = self.n_samples if self.training else int(self.evaluation == "sampled")
            messages = distribution.sample((n_samples,)) if n_samples else distribution.mode[None]
        samples, outcome = play(messages)
        losses, entropy = outcome.loss, distribution.entropy()
        optimized_loss = losses.mean() - self.sender_entropy_coeff * entropy.mean()
        metrics = {}
        log_prob = distribution.log_prob(messages)
        if outcome.acts:
            log_prob = log_prob + outcome.values["receiver_log_prob"]
            metrics["receiver_entropy"] = samples.expectation(outcome.values["receiver_entropy"])
            optimized_loss = optimized_loss - self.receiver_entropy_coeff * metrics["receiver_entropy"].mean()
        receiver_calls = outcome.receiver_calls
        if self.training:
            baseline, baseline_loss, more_calls = self._baseline(losses.detach(), sender_input, distribution, play)
            receiver_calls = receiver_calls + more_calls
            policy_loss = (losses.detach() - baseline) * log_prob
            optimized_loss = optimized_loss + policy_loss.mean() + baseline_loss
            metrics["baseline"] = baseline.mean(0).expand(losses.shape[1])
        metrics["sender_entropy"] = entropy
        metrics["receiver_calls"] = receiver_calls.to(losses.dtype)
        return optimized_loss, self._interaction(
            messages[0],
            call,
            outcome,
            samples.expectation(losses),
            expected_metrics(outcome, samples.expectation),
            metrics,
        )

    def _check_samples(self) -> None:
        if self.baseline == "leave_one_out" and self.n_samples < 2:
            raise ValueError(f'baseline "leave_one_out" needs n_samples of at least 2, got {self.n_samples}')

    def _baseline(
        self, losses: torch.Tensor, sender_input: Any, distribution: Symbols | BitVectors, play: Callable
    ) -> tuple[torch.Tensor, torch.Tensor | float, int]:
        """The baseline, which broadcasts with losses ``(K, B)``; its own loss; and the receiver calls that it took."""
        if isinstance(self.baseline, nn.Module):
            predicted = self.baseline(sender_input)
            if predicted.shape != losses.shape[1:]:
                raise ValueError(
                    f"the baseline must return one value per example, of shape {tuple(losses.shape[1:])}, "
                    f"got {tuple(predicted.shape)}"
                )
            return predicted.detach()[None], (losses - predicted).square().mean(), 0
        if self.baseline == "sample":
            with torch.no_grad():
                _, outcome = play(distribution.sample((1,)))
            return outcome.loss, 0.0, 1
        if self.baseline == "leave_one_out":
            return (losses.sum(0) - losses) / (len(losses) - 1), 0.0, 0
        if self.baseline == "none":
            return torch.zeros_like(losses[:1]), 0.0, 0
        baseline = self.mean_loss.clone().expand(1, losses.shape[1])
        self.n_losses += 1
        self.mean_loss += (losses.mean() - self.mean_loss) / self.n_losses
        return baseline, 0.0, 0


def sampling_distribution(sender: Callable, sender_input: Any, aux_input: Any) -> Symbols | BitVectors:
    """The sender's distribution.

    Raises:
        TypeError: the sender returns no distribution to sample from.
    """
    distribution = sender(sender_input, aux_input)
    if not isinstance(distribution, (Symbols, BitVectors)):
        raise TypeError(
            "the sender must return a distribution to sample from: wrap the agent with SymbolSampler or "
            f"BitVectorSampler; it returned {type(distribution).__name__}"
        )
    return distribution
