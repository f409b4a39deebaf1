"""Agents whose messages are marginalized: each wrapper joins an agent that scores messages with a mapping."""

from __future__ import annotations

import abc
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse.distribution import SparseDistribution
from egg_sparse.mappings import active_set, categorical, lpsmap, sparsemap, topk
from egg_sparse.mappings.scores import message_type
from egg_sparse.support import Floor, FollowLoss, SupportControl, floor_of

_NORMALIZERS = {
    "softmax": categorical.softmax,
    "sparsemax": categorical.sparsemax,
    "entmax15": categorical.entmax15,
}
_SMALLEST_LEARNED_ALPHA = 1.01

_distributions_are_asked_for = ContextVar("distributions_are_asked_for", default=False)


@contextmanager
def asking_for_distributions() -> Iterator[None]:
    """Within it, wrapped agents return their distribution in evaluation mode too, also inside other modules."""
    token = _distributions_are_asked_for.set(True)
    try:
        yield
    finally:
        _distributions_are_asked_for.reset(token)


class ScoringWrapper(nn.Module):
    """What all wrappers share: an agent that returns scores, which are divided by a temperature."""

    def __init__(self, agent: nn.Module, temperature: float) -> None:
        super().__init__()
        self.agent = agent
        self.temperature = temperature
        self._check_temperature()

    def _check_temperature(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be a finite number above 0, got {self.temperature}")

    def _scores(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._check_temperature()
        scores = self.agent(*args, **kwargs)
        if not isinstance(scores, torch.Tensor):
            raise TypeError(f"the wrapped agent must return a tensor of scores, got {type(scores).__name__}")
        return scores if self.temperature == 1 else scores / self.temperature


class SparseWrapper(ScoringWrapper, abc.ABC):
    """What the wrappers that send a SparseDistribution share: a temperature that is fixed, or that keeps a support.

    In training mode a call returns the distribution. In evaluation mode it returns what EGG's wrapper of the same
    message format returns then, for callbacks and scripts that call ``game.sender``: of symbol ids the triple
    (most probable symbol, its log-probability, entropy in nats), as ReinforceWrapper does; of one-hot symbols and
    bit-vectors the most probable message alone, as GumbelSoftmaxWrapper does. :meth:`distribution` returns the
    distribution in both modes.

    A subclass implements :meth:`_mapped` and :meth:`_largest_support`.

    Args:
        agent: called with whatever the wrapper is called with; returns scores.
        temperature: the scores' divisor; with support control the first one. None for 1, or for support control to
            find it.
        support: the least mean support, see :attr:`support`; "auto" for
            :class:`egg_sparse.support.FollowLoss` if no temperature is given, and for a fixed temperature if one is.
    """

    def __init__(
        self,
        agent: nn.Module,
        temperature: float | None = None,
        support: str | float | FollowLoss | Floor | None = "auto",
    ) -> None:
        nn.Module.__init__(self)
        self.agent = agent
        self.control: SupportControl | None = None
        self._temperature = 1.0
        self._warned_of_temperature = False
        self.temperature = 1.0 if temperature is None else temperature
        floor = support
        if support == "auto":
            floor = FollowLoss() if temperature is None else None
        floor = floor_of(floor)
        if floor is not None:
            self.control = SupportControl(floor, temperature)

    @property
    def temperature(self) -> float:  # type: ignore[override]
        """What the scores are divided by now.

        With support control it changes with every training step, and setting it says where the controller goes on.
        """
        return self._temperature if self.control is None else float(self.control.temperature)

    @temperature.setter
    def temperature(self, value: float) -> None:
        if not 0 < value < math.inf:
            raise ValueError(f"temperature must be a finite number above 0, got {value}")
        if self.control is None:
            self._temperature = value
            return
        if not self._warned_of_temperature:
            self._warned_of_temperature = True
            warnings.warn(
                "the temperature of this sender is set by its support control, and what sets it as well, such as EGG's "
                "TemperatureUpdater, works against it: leave that out, or give the wrapper support=None",
                RuntimeWarning,
                stacklevel=3,
            )
        self.control.temperature.fill_(value)

    @property
    def support(self) -> FollowLoss | Floor | None:
        """The floor under the mean support in training: a schedule, or None for a fixed temperature.

        It is set to a number of messages, a schedule of :mod:`egg_sparse.support`, a function of the number of
        training steps so far, or None.
        """
        return None if self.control is None else self.control.floor

    @support.setter
    def support(self, value: float | FollowLoss | Floor | None) -> None:
        floor = floor_of(value)
        if floor is None:
            self._temperature = self.temperature
            self.control = None
        elif self.control is None:
            self.control = SupportControl(floor, self._temperature)
        else:
            self.control.floor = floor

    def _described(self) -> str:
        return f"temperature={float(self.temperature):.4}" if self.control is None else "temperature=controlled"

    @abc.abstractmethod
    def _mapped(self, scores: torch.Tensor) -> SparseDistribution:
        """The distribution of scores that are divided by the temperature already."""

    @abc.abstractmethod
    def _largest_support(self, scores: torch.Tensor) -> int:
        """The largest support that a distribution of such scores can have."""

    def distribution(self, *args: Any, **kwargs: Any) -> SparseDistribution:
        """The distribution over messages, in training and in evaluation mode; called as the agent is.

        Example:
            >>> sender = SparsemaxWrapper(nn.Linear(10, 100)).eval()
            >>> type(sender(torch.randn(4, 10))).__name__, sender.distribution(torch.randn(4, 10)).mode.shape
            ('tuple', torch.Size([4]))
        """
        with asking_for_distributions():
            return self(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        distribution = self._distribution(*args, **kwargs)
        if self.training or _distributions_are_asked_for.get():
            return distribution
        return self._greedy(distribution)

    def _greedy(self, distribution: SparseDistribution) -> Any:
        """The most probable messages, as EGG's wrapper of the same message format returns them."""
        if distribution.event_shape:
            return distribution.mode
        return distribution.mode, distribution.probs[0].log(), distribution.entropy()

    def _distribution(self, *args: Any, **kwargs: Any) -> SparseDistribution:
        scores = self.agent(*args, **kwargs)
        if not isinstance(scores, torch.Tensor):
            raise TypeError(f"the wrapped agent must return a tensor of scores, got {type(scores).__name__}")
        control = self.control
        learns = control is not None and self.training and torch.is_grad_enabled() and scores.dim() == 2 and len(scores)
        if not scores.is_floating_point():  # of which the mapping says what is wrong
            return self._mapped(scores)
        if control is None:
            return self._mapped(scores if self._temperature == 1 else scores / self._temperature)
        if learns and not control.is_calibrated:
            plain = scores.detach()
            control.calibrate(lambda t: self._mapped(plain / t).support_size, self._largest_support(plain))
        distribution = self._mapped(scores / control.temperature.clone())  # which changes before the backward pass
        if learns:
            control.observe(distribution, self._largest_support(scores))
            distribution.control = control
        return distribution


class SparsemaxWrapper(SparseWrapper):
    r"""Makes an agent that scores the symbols of a vocabulary send all symbols of non-zero probability.

    The wrapped agent is the sender of :class:`egg_sparse.SymbolGameMarg`. It takes the place of EGG's
    ``ReinforceWrapper`` or ``GumbelSoftmaxWrapper`` around the same agent: nothing is sampled, the
    message is the distribution ``normalizer(scores / temperature)`` itself. In evaluation mode a call
    returns what those wrappers return then, and :meth:`distribution` the distribution.

    The agent may return log-probabilities, as EGG's agents do, or plain scores. Every normalizer is
    invariant to adding a constant to all scores of an example, so a log_softmax at the agent's end
    changes nothing. Only softmax recovers those log-probabilities' own distribution, though, and the
    sparse ones are not invariant to scale: agents whose scores differ more have smaller supports, and
    under sparsemax a symbol more than 1 below the best has probability 0. At a fixed temperature this is
    how the support collapses to one message, which stops the sender's gradient; support control
    (:mod:`egg_sparse.support`) keeps it above a floor that falls as training goes on.

    Args:
        agent: called with whatever the wrapper is called with; returns scores ``(B, V)``.
        normalizer: "sparsemax", "entmax15" or "softmax"; a number alpha > 1 for alpha-entmax (1.5 is
            entmax15, 2 is sparsemax); or a learnable alpha, as an ``nn.Parameter`` of one element,
            which becomes a parameter of the wrapper. A learned alpha that an optimizer takes below
            1.01 acts as 1.01, and still has a gradient that can bring it back.
        message_format: "index" for symbol ids ``(K, B)``, as receivers of EGG's score-function games
            read them; "one_hot" for ``(K, B, V)``, as those of its Gumbel-Softmax games do.
        temperature: the scores' divisor. Given alone it stays as it is, or as EGG's ``TemperatureUpdater``
            anneals it; None for support control to find it.
        support: the least mean support in training. "auto" for a floor that follows the loss
            (:class:`egg_sparse.support.FollowLoss`) if no temperature is given; a number of messages; a
            schedule, such as :class:`egg_sparse.support.Geometric`, or a function of the number of
            training steps; None for a fixed temperature, as in the paper.

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
        temperature: float | None = None,
        support: str | float | FollowLoss | Floor | None = "auto",
    ) -> None:
        if normalizer == "softmax":
            if support not in ("auto", None):
                raise ValueError(f"support must be None for softmax, whose support is every symbol, got {support!r}")
            support = None
        super().__init__(agent, temperature, support)
        if message_format not in ("index", "one_hot"):
            raise ValueError(f'message_format must be "index" or "one_hot", got {message_format!r}')
        self.message_format = message_format
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

    def extra_repr(self) -> str:
        alpha = self.alpha.item() if isinstance(self.alpha, nn.Parameter) else self.alpha
        normalizer = self.normalizer if alpha is None else f"entmax, alpha={alpha:.4g}"
        return f"normalizer={normalizer}, message_format={self.message_format}, {self._described()}"

    def _largest_support(self, scores: torch.Tensor) -> int:
        return scores.shape[1]

    def _mapped(self, scores: torch.Tensor) -> SparseDistribution:
        if isinstance(self.alpha, nn.Parameter):
            kept_above_1 = self.alpha + (self.alpha.clamp(min=_SMALLEST_LEARNED_ALPHA) - self.alpha).detach()
            distribution = categorical.entmax(scores, kept_above_1)
        elif self.alpha is not None:
            distribution = categorical.entmax(scores, self.alpha)
        else:
            distribution = _NORMALIZERS[self.normalizer](scores)
        if self.message_format == "index":
            return distribution
        one_hot = F.one_hot(distribution.messages, scores.shape[1]).to(message_type(scores))
        return SparseDistribution(one_hot, distribution.probs, distribution.vocab_size, validate_args=False)


class TopKSparsemaxWrapper(SparseWrapper):
    r"""Makes an agent that scores D bits send the bit-vectors that top-k sparsemax gives a probability.

    The sparsemax over the k bit-vectors with the highest scores :math:`\langle x, z \rangle`: exactly the k
    best, and exactly sparsemax over all :math:`2^D` where one of them ends up with probability 0. At most k
    receiver calls per example, whatever D. Choose it where a bound on the receiver calls matters, or where
    :class:`SparseMAPBitVectorWrapper` loses its support early; larger k is closer to sparsemax over all
    bit-vectors, and costs more receiver calls while the agent is undecided.

    Args:
        agent: called with whatever the wrapper is called with; returns scores ``(B, D)``. A positive score speaks
            for the bit.
        k: the largest number of bit-vectors with non-zero probability.
        temperature, support: as in :class:`SparsemaxWrapper`.

    Raises:
        TypeError, ValueError: an argument is none of the above, or the agent's scores are not finite
            floating-point numbers of shape ``(B, D)``.

    Example:
        >>> distribution = TopKSparsemaxWrapper(nn.Linear(10, 32), k=5)(torch.randn(4, 10))
        >>> distribution.mode.shape, bool((distribution.support_size <= 5).all())
        (torch.Size([4, 32]), True)

    Source: Correia et al. (NeurIPS 2020), section 4.1.
    """

    def __init__(
        self,
        agent: nn.Module,
        k: int = 10,
        temperature: float | None = None,
        support: str | float | FollowLoss | Floor | None = "auto",
    ) -> None:
        super().__init__(agent, temperature, support)
        topk.check_k(k)
        self.k = k

    def extra_repr(self) -> str:
        return f"k={self.k}, {self._described()}"

    def _largest_support(self, scores: torch.Tensor) -> int:
        return min(self.k, 2 ** min(scores.shape[1], 30))

    def _mapped(self, scores: torch.Tensor) -> SparseDistribution:
        return topk.topk_sparsemax(scores, self.k)


class SparseMAPBitVectorWrapper(SparseWrapper):
    r"""Makes an agent that scores D bits send bit-vectors whose mean are the SparseMAP marginals of its scores.

    Without a budget a bit's marginal is clip((x + 1) / 2, 0, 1): scores in (-1, 1) leave it open, others
    decide it. The support has at most D + 1 bit-vectors, one more than bits are open. Choose it for its
    smooth start and its budget; once scores leave (-1, 1) the support is a single bit-vector and the sender's
    gradient is zero, which support control prevents.

    Args:
        agent: called with whatever the wrapper is called with; returns scores ``(B, D)``.
        budget: every bit-vector has at most so many bits on; None for any number.
        decomposition: how the marginals become bit-vectors. "systematic" has about as many terms as there are open
            bits, each with about the mean number of bits on, so it shows the receiver more different messages, at
            more calls: the one to begin with. "threshold" has nested sets of bits, not for budgets; fewer terms
            where marginals coincide. "active_set" is the paper's own method, for comparisons with it: the fewest
            terms that reach ``tol``, and so the fewest calls while many bits are open, but slower to compute.
        temperature: as in :class:`SparsemaxWrapper`.
        solver: "native"; or "lpsmap", the lp-sparsemap package where it is installed, to check results with.
        max_iter: for "active_set": at most so many bit-vectors enter or leave the support, per call.
        tol: for "active_set": the duality gap at which to stop; larger means fewer bit-vectors, and marginals that
            may be off by its square root.
        support: as in :class:`SparsemaxWrapper`.

    Raises:
        TypeError, ValueError: an argument is none of the above, "threshold" with a budget, or the agent's scores
            are not finite floating-point numbers of shape ``(B, D)``.
        ImportError: solver "lpsmap" without lp-sparsemap.

    Example:
        >>> distribution = SparseMAPBitVectorWrapper(nn.Linear(10, 32), budget=3)(torch.randn(4, 10))
        >>> bool((distribution.messages[distribution.mask].sum(-1) <= 3).all())
        True

    Source: Correia et al. (NeurIPS 2020), section 4.2.
    """

    def __init__(
        self,
        agent: nn.Module,
        budget: int | None = None,
        decomposition: str = "systematic",
        temperature: float | None = None,
        solver: str = "native",
        max_iter: int = active_set.MAX_ITER,
        tol: float = active_set.TOL,
        support: str | float | FollowLoss | Floor | None = "auto",
    ) -> None:
        super().__init__(agent, temperature, support)
        sparsemap.check_options(budget, decomposition, solver, max_iter, tol)
        if solver == "lpsmap":
            lpsmap.import_factors()
        self.budget = budget
        self.decomposition = decomposition
        self.solver = solver
        self.max_iter = max_iter
        self.tol = tol

    def extra_repr(self) -> str:
        parts = f"budget={self.budget}, decomposition={self.decomposition}, {self._described()}"
        return parts if self.solver == "native" else f"{parts}, solver={self.solver}"

    def _largest_support(self, scores: torch.Tensor) -> int:
        return 1 if self.budget == 0 else scores.shape[1] + 1

    def _mapped(self, scores: torch.Tensor) -> SparseDistribution:
        return sparsemap.sparsemap_bit_vectors(
            scores, self.budget, self.decomposition, self.solver, self.max_iter, self.tol
        )
