"""The distributions over messages that the sampling games need: one over symbols, one over bit-vectors.

Both have ``sample``, ``log_prob``, ``entropy``, ``mode``, ``relaxed`` and ``as_relaxed``, so that an estimator is
written once for both.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Bernoulli, Categorical, Independent

from egg_sparse.mappings.scores import check_scores, synchronize_finite
from egg_sparse.wrappers import ScoringWrapper


class Symbols(Categorical):
    """The distribution softmax(scores) over V symbols; messages are symbol ids ``(B,)``.

    Args:
        scores: the scores of the symbols, ``(B, V)``.

    Example:
        >>> Symbols(torch.tensor([[0.0, 3.0]])).mode
        tensor([1])
    """

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__(logits=scores, validate_args=False)

    @property
    def mode(self) -> torch.Tensor:
        """``(B,)``: the most probable symbol."""
        return self.logits.argmax(-1)

    @property
    def vocab_size(self) -> int:
        return self.logits.shape[-1]

    def relaxed(self, temperature: float, straight_through: bool) -> torch.Tensor:
        """``(B, V)``: a Gumbel-Softmax sample, one-hot in the forward pass if ``straight_through``.

        Source: Jang, Gu and Poole (ICLR 2017); Maddison, Mnih and Teh (ICLR 2017).
        """
        return F.gumbel_softmax(self.logits, tau=temperature, hard=straight_through, dim=-1)

    def as_relaxed(self, messages: torch.Tensor) -> torch.Tensor:
        """Messages in the format of :meth:`relaxed`."""
        return F.one_hot(messages, self.vocab_size).to(self.logits.dtype)


class BitVectors(Independent):
    """The distribution of D independent bits, each on with probability sigmoid(score).

    Messages are ``(B, D)`` of zeros and ones.

    Args:
        scores: the scores of the bits, ``(B, D)``.

    Example:
        >>> BitVectors(torch.tensor([[-1.0, 0.0, 2.0]])).mode
        tensor([[0., 0., 1.]])
    """

    vocab_size = None

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__(Bernoulli(logits=scores, validate_args=False), 1, validate_args=False)
        self.scores = scores

    @property
    def mode(self) -> torch.Tensor:
        """``(B, D)``: the most probable bit-vector; a bit of probability 1/2 is off."""
        return (self.scores > 0).to(self.scores.dtype)

    def relaxed(self, temperature: float, straight_through: bool) -> torch.Tensor:
        """``(B, D)``: a binary concrete sample, zeros and ones in the forward pass if ``straight_through``.

        Source: Maddison, Mnih and Teh, "The Concrete Distribution" (ICLR 2017), appendix B.
        """
        uniform = torch.rand_like(self.scores).clamp(torch.finfo(self.scores.dtype).tiny, 1 - 1e-7)
        soft = torch.sigmoid((self.scores + uniform.log() - (-uniform).log1p()) / temperature)
        if not straight_through:
            return soft
        return (soft > 0.5).to(soft.dtype) + (soft - soft.detach())

    def as_relaxed(self, messages: torch.Tensor) -> torch.Tensor:
        """Messages in the format of :meth:`relaxed`."""
        return messages


class _SamplerWrapper(ScoringWrapper):
    """The base of the samplers, which turn an agent's scores into a distribution over messages."""

    _family: type[Symbols] | type[BitVectors]
    _columns: str

    def __init__(self, agent: nn.Module, temperature: float = 1.0) -> None:
        super().__init__(agent, temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"

    def forward(self, *args: Any, **kwargs: Any) -> Symbols | BitVectors:
        scores = self._divided(self._scores(*args, **kwargs), self.temperature)
        check_scores(scores, self._columns)
        synchronize_finite(scores.detach())
        return self._family(scores)


class SymbolSampler(_SamplerWrapper):
    """Makes an agent that scores V symbols a sender of the sampling games, which returns :class:`Symbols`.

    Args:
        agent: the agent, which is called as the wrapper is and returns scores, or log-probabilities, ``(B, V)``.
        temperature: the divisor of the scores.

    Raises:
        TypeError, ValueError: the temperature is not above 0, or the agent's scores are not finite floating-point
            numbers of shape ``(B, V)``.

    Example:
        >>> SymbolSampler(nn.Linear(10, 100))(torch.randn(4, 10)).sample().shape
        torch.Size([4])
    """

    _family = Symbols
    _columns = "V symbols"


class BitVectorSampler(_SamplerWrapper):
    """Makes an agent that scores D bits a sender of the sampling games, which returns :class:`BitVectors`.

    Args:
        agent: the agent, which is called as the wrapper is and returns scores ``(B, D)``, the log-odds of the bits.
        temperature: the divisor of the scores.

    Raises:
        TypeError, ValueError: the temperature is not above 0, or the agent's scores are not finite floating-point
            numbers of shape ``(B, D)``.

    Example:
        >>> BitVectorSampler(nn.Linear(10, 32))(torch.randn(4, 10)).sample().shape
        torch.Size([4, 32])
    """

    _family = BitVectors
    _columns = "D bits"
