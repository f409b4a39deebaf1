"""Agents whose messages are marginalized: each wrapper joins an agent that scores messages with a mapping."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse.distribution import SparseDistribution
from egg_sparse.mappings import categorical

_NORMALIZERS = {
    "softmax": categorical.softmax,
    "sparsemax": categorical.sparsemax,
    "entmax15": categorical.entmax15,
}
_SMALLEST_LEARNED_ALPHA = 1.01


class SparsemaxWrapper(nn.Module):
    r"""Makes an agent that scores the symbols of a vocabulary send all of them that have a probability.

    The wrapped agent is the sender of :class:`egg_sparse.SymbolGameMarg`. It takes the place of EGG's
    ``ReinforceWrapper`` or ``GumbelSoftmaxWrapper`` around the same agent: nothing is sampled, the
    message is the distribution ``normalizer(scores / temperature)`` itself.

    The agent may return log-probabilities, as EGG's agents do, or plain scores. Every normalizer is
    invariant to adding a constant to all scores of an example, so a log_softmax at the agent's end
    changes nothing. Only softmax recovers those log-probabilities' own distribution, though, and the
    sparse ones are not invariant to scale: agents whose scores differ more have smaller supports, and
    under sparsemax a symbol more than 1 below the best has probability 0. That is how the support
    collapses to one message, which stops the sender's gradient: counter it with a higher
    ``temperature``, a smaller learning rate, or a higher ``sender_entropy_coeff`` in the game.

    Args:
        agent: called with whatever the wrapper is called with; returns scores ``(B, V)``.
        normalizer: "sparsemax", "entmax15" or "softmax"; a number alpha > 1 for alpha-entmax (1.5 is
            entmax15, 2 is sparsemax); or a learnable alpha, as an ``nn.Parameter`` of one element,
            which becomes a parameter of the wrapper. A learned alpha that an optimizer takes below
            1.01 acts as 1.01, and still has a gradient that can bring it back.
        message_format: "index" for symbol ids ``(K, B)``, as receivers of EGG's score-function games
            read them; "one_hot" for ``(K, B, V)``, as those of its Gumbel-Softmax games do.
        temperature: scores are divided by it. A plain attribute: EGG's ``TemperatureUpdater``
            anneals it.

    Raises:
        TypeError, ValueError: an argument is none of the above, or the agent's scores are not finite
            floating-point numbers of shape ``(B, V)``.

    Example:
        >>> agent = nn.Sequential(nn.Linear(10, 100), nn.LogSoftmax(dim=1))
        >>> distribution = SparsemaxWrapper(agent)(torch.randn(4, 10))
        >>> distribution.mode.shape, distribution.probs.sum(0).round(decimals=4).tolist()
        (torch.Size([4]), [1.0, 1.0, 1.0, 1.0])

    Source: Correia et al., "Efficient Marginalization of Discrete and Structured Latent Variables via
    Sparsity" (NeurIPS 2020), section 3.
    """

    def __init__(
        self,
        agent: nn.Module,
        normalizer: str | float | nn.Parameter = "sparsemax",
        message_format: str = "index",
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if message_format not in ("index", "one_hot"):
            raise ValueError(f'message_format must be "index" or "one_hot", got {message_format!r}')
        self.agent = agent
        self.message_format = message_format
        self.temperature = temperature
        self.alpha: nn.Parameter | float | None = None
        if isinstance(normalizer, str):
            if normalizer not in _NORMALIZERS:
                raise ValueError(
                    f"normalizer must be one of {', '.join(_NORMALIZERS)}, a number above 1 or an nn.Parameter, "
                    f"got {normalizer!r}"
                )
            self.normalizer = normalizer
        elif isinstance(normalizer, nn.Parameter):
            if normalizer.numel() != 1 or not normalizer.is_floating_point() or not normalizer.item() > 1:
                raise ValueError(f"a learnable normalizer must hold one number above 1, got {normalizer.data}")
            self.normalizer, self.alpha = "entmax", normalizer
        elif isinstance(normalizer, (int, float)) and not isinstance(normalizer, bool):
            if not 1 < normalizer < math.inf:
                raise ValueError(f"normalizer, given as alpha, must be a finite number above 1, got {normalizer}")
            self.normalizer, self.alpha = "entmax", float(normalizer)
        else:
            raise TypeError(
                f"normalizer must be a string, a number or an nn.Parameter, got {type(normalizer).__name__}"
            )
        self._check_temperature()

    def _check_temperature(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be a finite number above 0, got {self.temperature}")

    def extra_repr(self) -> str:
        alpha = self.alpha.item() if isinstance(self.alpha, nn.Parameter) else self.alpha
        normalizer = self.normalizer if alpha is None else f"entmax, alpha={alpha:.4g}"
        return f"normalizer={normalizer}, message_format={self.message_format}, temperature={self.temperature}"

    def forward(self, *args: Any, **kwargs: Any) -> SparseDistribution:
        self._check_temperature()
        scores = self.agent(*args, **kwargs)
        if not isinstance(scores, torch.Tensor):
            raise TypeError(f"the wrapped agent must return a tensor of scores (B, V), got {type(scores).__name__}")
        if self.temperature != 1:
            scores = scores / self.temperature
        if isinstance(self.alpha, nn.Parameter):
            kept_above_1 = self.alpha + (self.alpha.clamp(min=_SMALLEST_LEARNED_ALPHA) - self.alpha).detach()
            distribution = categorical.entmax(scores, kept_above_1)
        elif self.alpha is not None:
            distribution = categorical.entmax(scores, self.alpha)
        else:
            distribution = _NORMALIZERS[self.normalizer](scores)
        if self.message_format == "index":
            return distribution
        one_hot = F.one_hot(distribution.messages, scores.shape[1]).to(distribution.probs.dtype)
        return SparseDistribution(one_hot, distribution.probs, distribution.vocab_size, validate_args=False)
