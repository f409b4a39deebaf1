"""Wrappers that make an agent a sender: each joins an agent that returns scores with a mapping."""

from __future__ import annotations

import abc
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, get_args

import torch
from torch import nn

from egg_sparse.distribution import SparseDistribution
from egg_sparse.mappings import active_set, categorical, lpsmap, sparsemap, topk
from egg_sparse.mappings.scores import check_temperature, message_type
from egg_sparse.support import Floor, FollowLoss, SupportControl, floor_of

Normalizer = Literal["softmax", "sparsemax", "entmax15"]
MessageFormat = Literal["index", "one_hot"]
Decomposition = Literal["systematic", "threshold", "active_set"]
Solver = Literal["native", "lpsmap"]

_LEAST_LEARNED_ALPHA = 1.01

_distributions_are_requested = ContextVar("distributions_are_requested", default=False)


@contextmanager
def requesting_distributions() -> Iterator[None]:
    """A context in which senders return their distribution in evaluation mode too, also inside other modules."""
    token = _distributions_are_requested.set(True)
    try:
        yield
    finally:
        _distributions_are_requested.reset(token)


def named_normalizer(normalizer: Normalizer | float | nn.Parameter) -> tuple[str, nn.Parameter | float | None]:
    """The name of a normalizer, and its alpha if that was given.

    Raises:
        TypeError, ValueError: the normalizer is no name, no number above 1, and no parameter with such a number.
    """
    if isinstance(normalizer, str):
        if normalizer not in get_args(Normalizer):
            raise ValueError(
                f"normalizer must be one of {', '.join(get_args(Normalizer))}, a number above 1 or an "
                f"nn.Parameter, got {normalizer!r}"
            )
        return normalizer, None
    if isinstance(normalizer, nn.Parameter):
        if normalizer.numel() != 1 or not normalizer.is_floating_point() or not normalizer.item() > 1:
            raise ValueError(f"a learnable normalizer must hold one number above 1, got {normalizer.data}")
        return "entmax", normalizer
    if isinstance(normalizer, (int, float)) and not isinstance(normalizer, bool):
        if not 1 < normalizer < math.inf:
            raise ValueError(f"normalizer, given as alpha, must be a finite number above 1, got {normalizer}")
        return "entmax", float(normalizer)
    raise TypeError(f"normalizer must be a string, a number or an nn.Parameter, got {type(normalizer).__name__}")


def normalizer_repr(name: str, alpha: nn.Parameter | float | None) -> str:
    """A normalizer in the representation of a wrapper."""
    if alpha is None:
        return name
    return f"entmax, alpha={alpha.item() if isinstance(alpha, torch.Tensor) else alpha:.4g}"


def usable_alpha(alpha: nn.Parameter | float) -> torch.Tensor | float:
    """The alpha to compute with: a learned one below 1.01 becomes 1.01, and keeps a gradient that can raise it."""
    if not isinstance(alpha, nn.Parameter):
        return alpha
    return alpha + (alpha.clamp(min=_LEAST_LEARNED_ALPHA) - alpha).detach()


class ScoringWrapper(nn.Module):
    """The base of all wrappers: an agent that returns scores, and the temperature that divides them.

    Args:
        agent: the agent, which is called as the wrapper is and returns scores.
        temperature: the divisor of the scores.
    """

    def __init__(self, agent: nn.Module, temperature: float) -> None:
        super().__init__()
        check_temperature(temperature)
        self.agent = agent
        self._temperature = temperature

    @property
    def temperature(self) -> float:
        """The divisor of the scores."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        check_temperature(value)
        self._temperature = value

    def _scores(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The agent's scores, not yet divided by the temperature."""
        scores = self.agent(*args, **kwargs)
        if not isinstance(scores, torch.Tensor):
            raise TypeError(f"the wrapped agent must return a tensor of scores, got {type(scores).__name__}")
        return scores

    def _divided(self, scores: torch.Tensor, temperature: float | torch.Tensor) -> torch.Tensor:
        return scores if not isinstance(temperature, torch.Tensor) and temperature == 1 else scores / temperature


class SparseWrapper(ScoringWrapper, abc.ABC):
    """The base of the wrappers that send a SparseDistribution.

    In training mode a call returns the distribution. In evaluation mode it returns what EGG's wrapper of the same
    message format returns, for callbacks and scripts that call ``game.sender``: for symbol ids the triple (most
    probable symbol, its log-probability, entropy in nats), as ReinforceWrapper does; for one-hot symbols and
    bit-vectors the most probable message alone, as GumbelSoftmaxWrapper does. :meth:`distribution` returns the
    distribution in both modes.

    A subclass implements :meth:`_distribution` and :meth:`_greedy`.

    Args:
        agent: the agent, which is called as the wrapper is.
        temperature: the divisor of the scores, with support control the first one; None for 1, or for the one that
            support control finds.
        support: the least mean support in training, see :attr:`support`; "auto" for
            :class:`egg_sparse.support.FollowLoss` if no temperature is given, else for a fixed temperature.
    """

    def __init__(
        self,
        agent: nn.Module,
        temperature: float | None = None,
        support: Literal["auto"] | float | FollowLoss | Floor | None = "auto",
    ) -> None:
        super().__init__(agent, 1.0 if temperature is None else temperature)
        if support == "auto":
            support = FollowLoss() if temperature is None else None
        floor = floor_of(support)
        self.control: SupportControl | None = None if floor is None else SupportControl(floor, temperature)
        self._has_warned_of_temperature = False

    @property
    def temperature(self) -> float:
        """The divisor of the scores.

        With support control it changes with every training step, and setting it says where the controller goes on.
        """
        return self._temperature if self.control is None else float(self.control.temperature)

    @temperature.setter
    def temperature(self, value: float) -> None:
        check_temperature(value)
        if self.control is None:
            self._temperature = value
            return
        if not self._has_warned_of_temperature:
            self._has_warned_of_temperature = True
            warnings.warn(
                "support control sets the temperature of this sender, and whatever else sets it, such as EGG's "
                "TemperatureUpdater, works against it: leave that out, or give the wrapper support=None",
                RuntimeWarning,
                stacklevel=3,
            )
        self.control.temperature.fill_(value)

    @property
    def support(self) -> FollowLoss | Floor | None:
        """The floor under the mean support in training: a schedule, or None for a fixed temperature.

        It can be set to a number of messages, a schedule of :mod:`egg_sparse.support`, a function of the number of
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

    def _temperature_repr(self) -> str:
        return f"temperature={float(self.temperature):.4}" if self.control is None else "temperature=controlled"

    @abc.abstractmethod
    def _distribution(self, *args: Any, **kwargs: Any) -> SparseDistribution:
        """The distribution over messages; a training step also updates support control."""

    @abc.abstractmethod
    def _greedy(self, *args: Any, **kwargs: Any) -> Any:
        """The messages of an evaluation, as EGG's wrapper of the same message format returns them."""

    def distribution(self, *args: Any, **kwargs: Any) -> SparseDistribution:
        """The distribution over messages, in training and in evaluation mode; called as the agent is.

        Example:
            >>> sender = SparsemaxWrapper(nn.Linear(10, 100)).eval()
            >>> type(sender(torch.randn(4, 10))).__name__, sender.distribution(torch.randn(4, 10)).mode.shape
            ('tuple', torch.Size([4]))
        """
        with requesting_distributions():
            return self(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.training or _distributions_are_requested.get():
            return self._distribution(*args, **kwargs)
        return self._greedy(*args, **kwargs)


class MappingWrapper(SparseWrapper):
    """The base of the wrappers that map the scores of their agent to a distribution.

    A subclass implements :meth:`_mapped` and :meth:`_largest_support`. The arguments are those of
    :class:`SparseWrapper`.
    """

    @abc.abstractmethod
    def _mapped(self, scores: torch.Tensor, temperature: float | torch.Tensor) -> SparseDistribution:
        """The distribution of the scores divided by the temperature."""

    @abc.abstractmethod
    def _largest_support(self, scores: torch.Tensor) -> int:
        """The largest support that a distribution of scores of this shape can have."""

    def _greedy(self, *args: Any, **kwargs: Any) -> Any:
        distribution = self._distribution(*args, **kwargs)
        if distribution.event_shape:
            return distribution.mode
        return distribution.mode, distribution.probs[0].log(), distribution.entropy()

    def _distribution(self, *args: Any, **kwargs: Any) -> SparseDistribution:
        scores = self._scores(*args, **kwargs)
        if not scores.is_floating_point():
            return self._mapped(scores, 1.0)  # which raises the error
        control = self.control
        if control is None:
            return self._mapped(scores, self._temperature)
        learns = self.training and torch.is_grad_enabled() and scores.dim() == 2 and len(scores) > 0
        if learns and not control.is_calibrated:
            detached = scores.detach()
            control.calibrate(lambda t: self._mapped(detached, t).support_size, self._largest_support(detached))
        # a clone, since observe() changes the temperature before the backward pass
        distribution = self._mapped(scores, control.temperature.clone())
        if learns:
            control.observe(distribution, self._largest_support(scores))
            distribution.control = control
        return distribution


class SparsemaxWrapper(MappingWrapper):
    r"""Makes an agent that scores the symbols of a vocabulary send all symbols of non-zero probability.

    The wrapped agent is the sender of :class:`egg_sparse.SymbolGameMarg`. It takes the place of EGG's
    ``ReinforceWrapper`` or ``GumbelSoftmaxWrapper`` around the same agent: nothing is sampled, and the message is the
    distribution ``normalizer(scores / temperature)`` itself. In evaluation mode a call returns what those wrappers
    return, and :meth:`distribution` returns the distribution.

    The agent may return log-probabilities, as EGG's agents do, or plain scores. Every normalizer is invariant to adding
    a constant to all scores of an example, so that a log_softmax at the agent's end changes nothing. Only softmax gives
    these log-probabilities back, though, and the sparse normalizers depend on the scale of the scores: the more the
    scores differ, the smaller the support, and under sparsemax a symbol whose score is more than 1 below the best has
    probability 0. At a fixed temperature the support can collapse to one message, which stops the sender's gradient;
    support control (:mod:`egg_sparse.support`) keeps the support above a floor that falls as training goes on.

    Args:
        agent: the agent, which is called as the wrapper is and returns scores ``(B, V)``.
        normalizer: the mapping from scores to probabilities: "sparsemax", "entmax15" or "softmax"; a number alpha > 1
            for alpha-entmax (1.5 is entmax15, 2 is sparsemax); or a learnable alpha, an ``nn.Parameter`` of one
            element, which becomes a parameter of the wrapper. A learned alpha below 1.01 acts as 1.01, and keeps a
            gradient that can raise it.
        message_format: the format of the messages: "index" for symbol ids ``(K, B)``, which the receivers of EGG's
            score-function games read; "one_hot" for ``(K, B, V)``, which those of its Gumbel-Softmax games read.
        temperature: the divisor of the scores. Given alone it is fixed, unless something such as EGG's
            ``TemperatureUpdater`` anneals it; None if support control is to find it.
        support: the least mean support in training: "auto" for a floor that follows the loss
            (:class:`egg_sparse.support.FollowLoss`) if no temperature is given; a number of messages; a schedule, such
            as :class:`egg_sparse.support.Geometric`, or a function of the number of training steps; None for a fixed
            temperature, as in the paper.

    Raises:
        TypeError, ValueError: an argument is none of the above, or the agent's scores are not finite floating-point
            numbers of shape ``(B, V)``.

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
        normalizer: Normalizer | float | nn.Parameter = "sparsemax",
        message_format: MessageFormat = "index",
        temperature: float | None = None,
        support: Literal["auto"] | float | FollowLoss | Floor | None = "auto",
    ) -> None:
        if normalizer == "softmax":
            if support not in ("auto", None):
                raise ValueError(f"support must be None for softmax, whose support is every symbol, got {support!r}")
            support = None
        super().__init__(agent, temperature, support)
        if message_format not in get_args(MessageFormat):
            raise ValueError(f'message_format must be "index" or "one_hot", got {message_format!r}')
        self.message_format = message_format
        self.normalizer, self.alpha = named_normalizer(normalizer)

    def extra_repr(self) -> str:
        normalizer = normalizer_repr(self.normalizer, self.alpha)
        return f"normalizer={normalizer}, message_format={self.message_format}, {self._temperature_repr()}"

    def _largest_support(self, scores: torch.Tensor) -> int:
        return scores.shape[1]

    def _mapped(self, scores: torch.Tensor, temperature: float | torch.Tensor) -> SparseDistribution:
        if self.alpha is not None:
            distribution = categorical.entmax(scores, usable_alpha(self.alpha), temperature)
        else:
            distribution = getattr(categorical, self.normalizer)(scores, temperature)
        if self.message_format == "index":
            return distribution
        symbols = distribution.messages[:, :, None]
        one_hot = scores.new_zeros(*symbols.shape[:2], scores.shape[1], dtype=message_type(scores))
        one_hot.scatter_(2, symbols, 1)  # without the integers of F.one_hot, which are twice as large
        return SparseDistribution(one_hot, distribution.probs, distribution.vocab_size, validate_args=False)


class TopKSparsemaxWrapper(MappingWrapper):
    r"""Makes an agent that scores D bits send the support of top-k sparsemax.

    This is sparsemax over the k bit-vectors z with the highest scores :math:`\langle x, z \rangle`. It equals sparsemax
    over all :math:`2^D` where one of the k has probability 0. It takes at most k receiver calls per example, whatever
    D. Choose it where the receiver calls must be bounded, or where :class:`SparseMAPBitVectorWrapper` loses its support
    early; a larger k is closer to sparsemax over all bit-vectors, and costs more receiver calls while the agent is
    undecided.

    Args:
        agent: the agent, which is called as the wrapper is and returns scores ``(B, D)``, positive for bits that
            should be on.
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
        support: Literal["auto"] | float | FollowLoss | Floor | None = "auto",
    ) -> None:
        super().__init__(agent, temperature, support)
        topk.check_k(k)
        self.k = k

    def extra_repr(self) -> str:
        return f"k={self.k}, {self._temperature_repr()}"

    def _largest_support(self, scores: torch.Tensor) -> int:
        return min(self.k, 2 ** min(scores.shape[1], 30))

    def _mapped(self, scores: torch.Tensor, temperature: float | torch.Tensor) -> SparseDistribution:
        return topk.topk_sparsemax(self._divided(scores, temperature), self.k)


class SparseMAPBitVectorWrapper(MappingWrapper):
    r"""Makes an agent that scores D bits send bit-vectors whose mean is the vector of SparseMAP marginals.

    Without a budget the marginal of a bit with score x is clip((x + 1) / 2, 0, 1): a score in (-1, 1) leaves the bit
    undecided, any other decides it. The support has at most one bit-vector more than there are undecided bits, and so
    at most D + 1. Choose it for its smooth start and its budget. Once all scores leave (-1, 1), the support is a single
    bit-vector and the sender's gradient is zero, which support control prevents.

    Args:
        agent: the agent, which is called as the wrapper is and returns scores ``(B, D)``.
        budget: the largest number of bits that are on in a bit-vector; None for any number.
        decomposition: the method that turns marginals into bit-vectors. "systematic", the one to begin with, has about
            as many bit-vectors as there are undecided bits, each with about the mean number of bits on, so that it
            shows the receiver more different messages, at more calls. "threshold" has nested sets of bits, which a
            budget does not allow, and fewer of them where marginals coincide. "active_set" is the paper's method, for
            comparison: it has the fewest bit-vectors that reach ``tol``, and so the fewest calls while many bits are
            undecided, but is slower to compute.
        temperature: as in :class:`SparsemaxWrapper`.
        solver: the implementation: "native"; or "lpsmap", the lp-sparsemap package, to compare results with.
        max_iter: the largest number of bit-vectors that enter or leave the support in a call of "active_set".
        tol: the duality gap at which "active_set" stops; a larger one means fewer bit-vectors, and marginals that may
            be off by its square root.
        support: as in :class:`SparsemaxWrapper`.

    Raises:
        TypeError, ValueError: an argument is none of the above, "threshold" with a budget, or the agent's scores
            are not finite floating-point numbers of shape ``(B, D)``.
        ImportError: the solver is "lpsmap" and lp-sparsemap is not installed.

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
        decomposition: Decomposition = "systematic",
        temperature: float | None = None,
        solver: Solver = "native",
        max_iter: int = active_set.MAX_ITER,
        tol: float = active_set.TOL,
        support: Literal["auto"] | float | FollowLoss | Floor | None = "auto",
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
        shown = f"budget={self.budget}, decomposition={self.decomposition}, {self._temperature_repr()}"
        return shown if self.solver == "native" else f"{shown}, solver={self.solver}"

    def _largest_support(self, scores: torch.Tensor) -> int:
        return 1 if self.budget == 0 else scores.shape[1] + 1

    def _mapped(self, scores: torch.Tensor, temperature: float | torch.Tensor) -> SparseDistribution:
        return sparsemap.sparsemap_bit_vectors(
            self._divided(scores, temperature), self.budget, self.decomposition, self.solver, self.max_iter, self.tol
        )
