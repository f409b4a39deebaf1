"""The score function estimator (REINFORCE) and its baselines, for symbols and bit-vectors alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from egg_sparse.distribution import SparseDistribution
from egg_sparse.estimators.families import BitVectors, Symbols
from egg_sparse.games.base import OneMessageGame, Option, check_count, one_of, reported

BASELINES = ("none", "running_mean", "sample", "leave_one_out")


class NeuralBaseline(nn.Module):
    """A network that predicts the loss from the sender's input, for NVIL: three hidden layers, as in the paper's code.

    Args:
        input_size: features of an example, after flattening.
        hidden_size: units of each hidden layer.
        select: what it sees of the sender's input, ``(B, ...)``; all of it if None.

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
        seen = sender_input if self.select is None else self.select(sender_input)
        return self.layers(seen.flatten(1))[:, 0]


class SymbolGameScoreFunction(OneMessageGame):
    r"""A one-message game that learns from samples, by the score function estimator,

    .. math:: \nabla \mathbb{E}[\ell(m)] = \mathbb{E}[\nabla \ell(m) + (\ell(m) - b)\, \nabla \log p(m)],

    unbiased for any baseline b that does not depend on the message m.

    Args:
        sender: returns a distribution over messages: an agent wrapped by
            :class:`egg_sparse.estimators.SymbolSampler` or :class:`egg_sparse.estimators.BitVectorSampler`.
        receiver, loss: as in :class:`egg_sparse.SymbolGameMarg`.
        baseline: b above. "none"; "running_mean" of the losses so far; "sample", the loss of a second message of the
            same example (self-critic, "SFE+" in the paper: one more receiver call); "leave_one_out", the mean loss
            of the example's other samples (RLOO), for ``n_samples`` of at least 2; or a module that is given the
            sender's input and returns ``(B,)`` (NVIL): its squared error is added to the loss.
        n_samples: messages per example and step.
        sender_entropy_coeff: the coefficient of the sender's exact entropy in nats, which is subtracted.
        receiver_entropy_coeff: the same for a receiver that acts, wrapped by EGG's ReinforceWrapper.
        strategy, chunk_size, receiver_acts, train_logging_strategy, test_logging_strategy: as in SymbolGameMarg.
        evaluation: what is played in evaluation mode: "greedy", the most probable message, or "sampled", one that is
            drawn.

    The Interaction is that of SymbolGameMarg, with a sampled
    message in training, without ``support``, and with ``baseline`` in aux; ``receiver_calls`` counts messages that
    the receiver was given in training.

    Raises:
        TypeError, ValueError: an option is none of the above; a sender that is not wrapped.

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

    evaluation = Option[str](one_of("greedy", "sampled"))
    n_samples = Option[int](lambda name, value: check_count(name, value, optional=False))

    mean_loss: torch.Tensor
    n_losses: torch.Tensor

    def __init__(
        self,
        sender: nn.Module,
        receiver: nn.Module,
        loss: Callable,
        baseline: str | nn.Module = "running_mean",
        n_samples: int = 1,
        sender_entropy_coeff: float = 0.0,
        receiver_entropy_coeff: float = 0.0,
        strategy: str = "auto",
        chunk_size: int | None = None,
        evaluation: str = "greedy",
        train_logging_strategy: Any = None,
        test_logging_strategy: Any = None,
        receiver_acts: bool | None = None,
    ) -> None:
        super().__init__(
            sender_entropy_coeff,
            receiver_entropy_coeff,
            strategy,
            chunk_size,
            train_logging_strategy,
            test_logging_strategy,
            receiver_acts,
        )
        if not isinstance(baseline, nn.Module) and baseline not in BASELINES:
            raise ValueError(f"baseline must be one of {', '.join(BASELINES)}, or a module, got {baseline!r}")
        self.evaluation = evaluation
        self.sender = sender
        self.receiver = receiver
        self.loss = loss
        self.baseline = baseline
        self.n_samples = n_samples
        self._check_samples()
        self.register_buffer("mean_loss", torch.zeros(()))
        self.register_buffer("n_losses", torch.zeros((), dtype=torch.long))

    def _check_samples(self) -> None:
        if self.baseline == "leave_one_out" and self.n_samples < 2:
            raise ValueError(f'baseline "leave_one_out" needs n_samples of at least 2, got {self.n_samples}')

    def extra_repr(self) -> str:
        name = "network" if isinstance(self.baseline, nn.Module) else self.baseline
        return f"baseline={name}, n_samples={self.n_samples}, sender_entropy_coeff={self.sender_entropy_coeff}"

    def forward(
        self, sender_input: Any, labels: Any, receiver_input: Any = None, aux_input: Any = None
    ) -> tuple[torch.Tensor, Any]:
        self._check_samples()
        distribution = sampled_from(self.sender, sender_input, aux_input)
        game_round = self._round(
            distribution, self.receiver, self.loss, sender_input, labels, receiver_input, aux_input
        )

        def play(messages: torch.Tensor) -> tuple[SparseDistribution, Any]:
            rows, batch = messages.shape[:2]
            probs = torch.full((rows, batch), 1 / rows, device=messages.device)
            terms = SparseDistribution(messages, probs, distribution.vocab_size, validate_args=False)
            return terms, self._played(terms, game_round)

        with torch.no_grad():
            n_samples = self.n_samples if self.training else int(self.evaluation == "sampled")
            messages = distribution.sample((n_samples,)) if n_samples else distribution.mode[None]
        terms, played = play(messages)
        losses = played.values["loss"]
        entropy = distribution.entropy()
        optimized_loss = losses.mean() - self.sender_entropy_coeff * entropy.mean()
        aux = {}
        log_prob = distribution.log_prob(messages)
        if "receiver_log_prob" in played.values:
            log_prob = log_prob + played.values["receiver_log_prob"]
            aux["receiver_entropy"] = terms.expectation(played.values["receiver_entropy"])
            optimized_loss = optimized_loss - self.receiver_entropy_coeff * aux["receiver_entropy"].mean()
        calls = played.receiver_calls
        if self.training:
            baseline, error, more_calls = self._baseline(losses.detach(), sender_input, distribution, play)
            calls = calls + more_calls
            policy_loss = (losses.detach() - baseline) * log_prob
            optimized_loss = optimized_loss + policy_loss.mean() + error
            aux["baseline"] = baseline.mean(0).expand(losses.shape[1])
        aux["sender_entropy"] = entropy
        aux["receiver_calls"] = calls.to(losses.dtype)
        return optimized_loss, self._interaction(
            messages[0],
            game_round,
            played,
            terms.expectation(losses),
            reported(played, terms.expectation),
            aux,
        )

    def _baseline(
        self, losses: torch.Tensor, sender_input: Any, distribution: Symbols | BitVectors, play: Callable
    ) -> tuple[torch.Tensor, torch.Tensor | float, int]:
        """The baseline, that broadcasts with losses (K, B), its own loss, and how many calls it took."""
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
                _, played = play(distribution.sample((1,)))
            return played.values["loss"], 0.0, 1
        if self.baseline == "leave_one_out":
            return (losses.sum(0) - losses) / (len(losses) - 1), 0.0, 0
        if self.baseline == "none":
            return torch.zeros_like(losses[:1]), 0.0, 0
        if self.baseline != "running_mean":
            raise ValueError(f"baseline must be one of {', '.join(BASELINES)}, or a module, got {self.baseline!r}")
        baseline = self.mean_loss.clone().expand(1, losses.shape[1])
        self.n_losses += 1
        self.mean_loss += (losses.mean() - self.mean_loss) / self.n_losses
        return baseline, 0.0, 0


def sampled_from(sender: Callable, sender_input: Any, aux_input: Any) -> Symbols | BitVectors:
    """The sender's distribution, checked."""
    distribution = sender(sender_input, aux_input)
    if not isinstance(distribution, (Symbols, BitVectors)):
        raise TypeError(
            "the sender must return a distribution to sample from: wrap the agent with SymbolSampler or "
            f"BitVectorSampler; it returned {type(distribution).__name__}"
        )
    return distribution
