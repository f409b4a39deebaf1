"""SparseDistribution: a batch of distributions over messages, stored as their supports."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch.distributions import Distribution, constraints
from torch.distributions.kl import register_kl

_REMEDY = (
    "a sender in a wrapper of egg_sparse needs SymbolGameMarg, or in a population CommunicationMarg, in place of EGG's "
    "game (for messages of several symbols SenderReceiverRnnMarg and CommunicationRnnMarg); in evaluation mode it "
    "returns what EGG's wrappers return"
)


_PER_MESSAGE = ("ratios", "_weights", "_log_probs")


class SparseDistribution(Distribution):
    r"""A batch of distributions over messages, stored as their supports.

    For every example b it contains the messages :math:`m_{kb}` of non-zero probability :math:`p_{kb}`, padded to the
    largest support K in the batch, so that

    .. math:: \mathbb{E}_{m \sim p_b}[f(m)] = \sum_{k=1}^{K} p_{kb}\, f(m_{kb})

    is exact. The leading K follows :meth:`torch.distributions.Distribution.enumerate_support`.

    Args:
        messages: the supports: ``(K, B)`` long symbol ids; ``(K, B, D)`` floating-point vectors (bit-vectors or
            one-hot symbols); or, with ``lengths``, ``(K, B, L)`` long sequences of symbols. Row 0 is the most probable
            message, and no message occurs twice in a support. Padding repeats the message of row 0, so that no message
            of probability 0 is ever played.
        probs: the probabilities, ``(K, B)`` floating point, differentiable: non-negative, every column in descending
            order and summing to 1. Padding has probability exactly 0. Half precision becomes float32, since
            probabilities that are rounded to it do not sum to 1.
        vocab_size: the number of symbols that the sender can choose from; None if unknown.
        validate_args: whether the values are checked, which synchronizes with the device, and other messages in the
            padding are replaced by those of row 0. Without validation the caller is responsible for both.
        lengths: the lengths of sequences ``(K, B)`` long, which count the end symbol; None for other messages. Symbol 0
            ends a sequence, and is all that follows.

    Raises:
        TypeError: ``messages`` or ``probs`` are not tensors of the types above.
        ValueError: the shapes disagree, K is 0, ``probs`` are not as described, a message is repeated, a symbol is
            not in 0, ..., vocab_size - 1, or ``lengths`` are not those of the sequences.

    Example:
        >>> d = SparseDistribution(torch.tensor([[4, 0], [1, 2]]), torch.tensor([[0.75, 1.0], [0.25, 0.0]]))
        >>> d.support_size
        tensor([2, 1])
        >>> d.expectation(torch.tensor([[10.0, 20.0], [30.0, float("nan")]]))
        tensor([15., 20.])

    Source: the sparse expectation is equation 5 of Correia et al. (NeurIPS 2020).
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_enumerate_support = True

    def __init__(
        self,
        messages: torch.Tensor,
        probs: torch.Tensor,
        vocab_size: int | None = None,
        validate_args: bool | None = None,
        lengths: torch.Tensor | None = None,
    ) -> None:
        for name, value in (("messages", messages), ("probs", probs)):
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if probs.dim() != 2 or not probs.is_floating_point():
            raise ValueError(
                f"probs must be floating point of shape (K, B), got {probs.dtype} of shape {tuple(probs.shape)}"
            )
        if messages.shape[:2] != probs.shape or messages.dim() not in (2, 3):
            raise ValueError(
                f"messages must be (K, B) or (K, B, D) with (K, B) = {tuple(probs.shape)} as in probs, "
                f"got {tuple(messages.shape)}"
            )
        is_vectors = messages.dim() == 3 and lengths is None
        if messages.is_floating_point() != is_vectors or messages.dtype == torch.bool:
            raise TypeError(
                "messages must be integer symbol ids of shape (K, B), floating-point vectors of shape (K, B, D) or, "
                f"with lengths, integer sequences (K, B, L), got {messages.dtype} of shape {tuple(messages.shape)}"
            )
        if lengths is not None and (messages.dim() != 3 or lengths.shape != probs.shape or lengths.is_floating_point()):
            raise ValueError(
                f"lengths must be integers of shape {tuple(probs.shape)}, of messages of shape (K, B, L), got "
                f"{lengths.dtype} of shape {tuple(lengths.shape)} for messages of shape {tuple(messages.shape)}"
            )
        if probs.shape[0] == 0:
            raise ValueError("messages and probs must hold at least one row, got K = 0")
        self.messages = messages
        self.probs = probs.to(torch.promote_types(probs.dtype, torch.float32))
        self.vocab_size = vocab_size
        #: ``(K, B)`` long, for sequences: their lengths with the end symbol. None for other messages.
        self.lengths: torch.Tensor | None = lengths
        #: ``(K, B)`` without gradient, for supports that were bounded by resampling: the reciprocal of the probability
        #: that the message was sampled. None for other supports.
        self.ratios: torch.Tensor | None = None
        # what ratios and probs give, where these may be outside the range of their type
        self._weights: torch.Tensor | None = None
        self._log_probs: torch.Tensor | None = None
        #: ``(B,)`` bool, for mappings that may drop messages: whether they dropped none. None for other mappings.
        self.is_exact: torch.Tensor | None = None
        #: ``(B,)``, for mappings that iterate: a bound on the distance of the objective from its optimum. Else None.
        self.duality_gap: torch.Tensor | None = None
        #: The sender's :class:`egg_sparse.support.SupportControl`, in training; None without one.
        self.control: Any = None
        super().__init__(probs.shape[1:], messages.shape[2:], validate_args=validate_args)
        if self._validate_args:
            self._check_probs(max(1e-6, 4 * torch.finfo(probs.dtype).eps))
            padding = ~self.mask.view(*probs.shape, *(1,) * (messages.dim() - 2))
            self.messages = torch.where(padding, messages[:1], messages)
            if lengths is not None:
                self.lengths = torch.where(self.mask, lengths, lengths[:1])
                self._check_lengths(self.lengths)
            self._check_messages()

    def _check_probs(self, rounding: float) -> None:
        probs = self.probs.detach()
        tolerance = rounding + 4 * len(probs) * torch.finfo(probs.dtype).eps
        if not bool((probs >= 0).all()):
            raise ValueError("probs must be non-negative and not NaN")
        if not bool(((probs.sum(0) - 1).abs() <= tolerance).all()):
            raise ValueError("every column of probs must sum to 1")
        if not bool((probs[1:] <= probs[:-1]).all()):
            raise ValueError("every column of probs must be in descending order: row 0 is the most probable message")

    def _check_messages(self) -> None:
        if not self.messages.is_floating_point() and self.messages.numel():
            lowest, highest = int(self.messages.min()), int(self.messages.max())
            if lowest < 0 or (self.vocab_size is not None and highest >= self.vocab_size):
                limit = "" if self.vocab_size is None else f" and below vocab_size, {self.vocab_size}"
                raise ValueError(f"messages must be symbol ids of at least 0{limit}, got {lowest} to {highest}")
        rows, examples = self.mask.nonzero(as_tuple=True)
        if not len(rows):
            return
        support = self.messages[rows, examples].detach().reshape(len(rows), -1).double()
        support = torch.cat((examples[:, None].double(), support), 1)
        if len(torch.unique(support, dim=0)) < len(support):
            raise ValueError("messages must differ within a column: the probabilities of equal ones belong in one row")

    def _check_lengths(self, lengths: torch.Tensor) -> None:
        positions = torch.arange(self.messages.shape[2], device=self.messages.device)
        is_symbol = positions < lengths[:, :, None] - 1
        in_range = (lengths >= 1) & (lengths <= self.messages.shape[2])
        if not bool(in_range.all()) or not torch.equal(is_symbol, self.messages != 0):
            raise ValueError(
                "every sequence must end with symbol 0 at position lengths - 1, with no 0 before it and only 0 after it"
            )

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        raise TypeError(f"torch's {name} takes tensors, but was given a SparseDistribution: {_REMEDY}")

    def __getattr__(self, name: str) -> Any:
        remedy = f": {_REMEDY}" if hasattr(torch.Tensor, name) else ""
        raise AttributeError(f"SparseDistribution has no attribute {name!r}{remedy}")

    def __iter__(self) -> Any:
        raise TypeError(f"a SparseDistribution is not a tuple of message, log-probability and entropy: {_REMEDY}")

    def __getitem__(self, index: Any) -> Any:
        raise TypeError(f"a SparseDistribution cannot be indexed, as a tensor or a tuple can: {_REMEDY}")

    def __repr__(self) -> str:
        rows, batch = self.probs.shape
        return f"SparseDistribution(K={rows}, B={batch}, messages={tuple(self.messages.shape)} {self.messages.dtype})"

    @property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        """The set of possible messages, as a constraint of torch.distributions."""
        if self.messages.is_floating_point():
            return constraints.independent(constraints.real, 1)
        symbols: constraints.Constraint = constraints.nonnegative_integer
        if self.vocab_size is not None:
            symbols = constraints.integer_interval(0, self.vocab_size - 1)
        return symbols if self.lengths is None else constraints.independent(symbols, 1)

    @functools.cached_property
    def mask(self) -> torch.Tensor:
        """``(K, B)`` bool: True in the support, False in the padding."""
        return (self.probs if self._weights is None else self._weights) > 0

    @property
    def weights(self) -> torch.Tensor:
        """``(K, B)``: the weights of expectations: ``probs``, multiplied by ``ratios`` if the support was resampled."""
        if self._weights is not None:
            return self._weights
        return self.probs if self.ratios is None else self.ratios * self.probs

    @property
    def log_probs(self) -> torch.Tensor:
        """``(K, B)``, in nats, without gradient: the log-probabilities of the messages, 0 in the padding."""
        if self._log_probs is not None:
            return self._log_probs
        return torch.where(self.mask, self.probs, 1.0).detach().log()

    @property
    def _log_probs_with_gradient(self) -> torch.Tensor:
        if self._log_probs is None:
            return torch.where(self.mask, self.probs, 1.0).log()
        logs = torch.where(self.mask, self.weights, 1.0).log()
        return self._log_probs + (logs - logs.detach())

    @property
    def support_size(self) -> torch.Tensor:
        """``(B,)`` long: the number of messages of non-zero probability."""
        return self.mask.sum(0)

    @property
    def mode(self) -> torch.Tensor:
        """``(B,)``, ``(B, D)`` or ``(B, L)``: the most probable message."""
        return self.messages[0]

    @property
    def mean(self) -> torch.Tensor:
        """``(B, D)``: the mean of vector messages (for bit-vectors their marginals, for one-hot
        symbols their probabilities). NaN for symbol ids and sequences, which have no mean.
        """
        if not self.messages.is_floating_point():
            return torch.full_like(self.probs[0], float("nan"))
        return self.expectation(self.messages)

    @property
    def variance(self) -> torch.Tensor:
        """``(B, D)``: the variance of every entry of vector messages. NaN for symbol ids."""
        if not self.messages.is_floating_point():
            return torch.full_like(self.probs[0], float("nan"))
        return self.expectation((self.messages - self.mean).square())

    def expand(
        self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: None = None
    ) -> SparseDistribution:
        """The distribution of one example, repeated for a batch of ``batch_shape`` (B,).

        Raises:
            ValueError: there are several examples and B is not their number, or ``batch_shape`` does not have exactly
                one axis.
        """
        shape = torch.Size(batch_shape)
        if len(shape) != 1 or self.probs.shape[1] not in (1, shape[0]):
            raise ValueError(
                f"batch_shape must be (B,), with any B for a distribution of one example, got {tuple(shape)} for "
                f"{self.probs.shape[1]} examples"
            )
        return self._map(
            self.messages.expand(-1, *shape, *self.event_shape),
            self.probs.expand(-1, *shape),
            lambda values: values.expand(shape),
            lambda values: values.expand(-1, *shape),
        )

    def to(self, target: torch.device | torch.dtype | str | int) -> SparseDistribution:
        """The distribution on another device, or of another floating-point type.

        A type applies to ``probs``, which stay at least float32, and to vector messages; symbol ids stay integers.
        """
        if not isinstance(target, torch.dtype):

            def moved(values: torch.Tensor) -> torch.Tensor:
                return values.to(target)

            return self._map(self.messages.to(target), self.probs.to(target), moved, moved)
        if not target.is_floating_point:
            raise TypeError(f"target must be a device or a floating-point type, got {target}")
        messages = self.messages.to(target) if self.messages.is_floating_point() else self.messages
        wide = torch.promote_types(target, torch.float32)
        return self._map(
            messages,
            self.probs.to(wide),
            lambda values: values,
            lambda values: values.to(wide) if values.is_floating_point() else values,
        )

    def _map(
        self,
        messages: torch.Tensor,
        probs: torch.Tensor,
        per_example: Callable[[torch.Tensor], torch.Tensor],
        per_message: Callable[[torch.Tensor], torch.Tensor],
    ) -> SparseDistribution:
        """The distribution with other messages and probs; the functions map what is ``(B,)`` and what is ``(K, B)``."""
        lengths = None if self.lengths is None else per_message(self.lengths)
        mapped = SparseDistribution(messages, probs, self.vocab_size, validate_args=False, lengths=lengths)
        for names, function in ((("is_exact", "duality_gap"), per_example), (_PER_MESSAGE, per_message)):
            for name in names:
                value = getattr(self, name)
                setattr(mapped, name, None if value is None else function(value))
        return mapped

    def enumerate_support(self, expand: bool = True) -> torch.Tensor:
        """``(K, B)`` or ``(K, B, D)``: the supports, padding included.

        Raises:
            ValueError: ``expand`` is False: every example has its own support.
        """
        if not expand:
            raise ValueError("expand must be True: every example has its own support")
        return self.messages

    def expectation(self, values: torch.Tensor) -> torch.Tensor:
        r"""The expectation :math:`\sum_k w_{kb}\, v_{kb}` of a value of every message.

        The weights w are the probabilities; for a resampled support they make this an unbiased estimate. Values at the
        padding, NaN and infinities included, change neither the result nor any gradient.

        Args:
            values: the values, ``(K, B, ...)``.

        Returns:
            ``(B, ...)``, of the type that ``probs`` and ``values`` promote to.
        """
        if values.shape[:2] != self.probs.shape:
            raise ValueError(
                f"values must start with (K, B) = {tuple(self.probs.shape)}, got shape {tuple(values.shape)}"
            )
        trailing = (1,) * (values.dim() - 2)
        mask, weights = (part.reshape(*self.probs.shape, *trailing) for part in (self.mask, self.weights))
        return (weights * torch.where(mask, values, torch.zeros_like(values))).sum(0)

    def entropy(self) -> torch.Tensor:
        r"""``(B,)``, in nats: :math:`-\sum_k w_{kb} \log p_{kb}`, with the weights w as in :meth:`expectation`.

        Its gradient is finite at padding. For a resampled support, value and gradient are unbiased estimates.
        """
        if self.ratios is None:
            return 0.0 - (self.probs * torch.where(self.mask, self.probs, 1.0).log()).sum(0)
        return 0.0 - (self.weights * self.log_probs).sum(0)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """The log-probability in nats; ``-inf`` for a message outside the support.

        Args:
            value: the messages, ``(*sample_shape, B)`` symbol ids or ``(*sample_shape, B, D)`` vectors, or a tensor
                that broadcasts to these, such as a single symbol for all examples.

        Returns:
            ``(*sample_shape, B)``.
        """
        one_message = self.batch_shape + self.event_shape
        fits = value.dim() >= len(self.event_shape) and value.shape[value.dim() - len(self.event_shape) :] == (
            self.event_shape
        )
        if fits:
            try:
                shape = torch.broadcast_shapes(value.shape, one_message)
            except RuntimeError:
                fits = False
        if not fits:
            raise ValueError(
                f"value must have a shape that broadcasts to {tuple(one_message)}, got {tuple(value.shape)}"
            )
        sample_dims = len(shape) - len(one_message)
        same = self.messages.reshape(-1, *(1,) * sample_dims, *one_message) == value
        if self.event_shape:
            same = same.all(-1)
        shape_of_rows = (-1, *(1,) * sample_dims, *self.batch_shape)
        same = same & self.mask.reshape(shape_of_rows)  # padding repeats the message of row 0
        log_prob = torch.where(same, self._log_probs_with_gradient.reshape(shape_of_rows), 0.0).sum(0)
        return torch.where(same.any(0), log_prob, -torch.inf)

    def cross_entropy(self, other: Distribution) -> torch.Tensor:
        r"""``(B,)``, in nats: :math:`-\sum_k p_{kb} \log q_b(m_{kb})`, infinite where q lacks a message of p.

        Args:
            other: the distribution q: another SparseDistribution, whose supports may differ, or any distribution over
                messages of this kind, such as a ``Categorical`` over symbols or ``Independent(Bernoulli(...), 1)`` over
                bit-vectors.

        Raises:
            ValueError: ``other`` is over messages of another kind, or of another batch size.

        Example:
            >>> p = SparseDistribution(torch.tensor([[4], [1]]), torch.tensor([[0.5], [0.5]]))
            >>> q = SparseDistribution(torch.tensor([[1], [4]]), torch.tensor([[0.75], [0.25]]))
            >>> p.cross_entropy(q), torch.distributions.kl_divergence(q, p)
            (tensor([0.8370]), tensor([0.1308]))
        """
        return self.expectation(-self._log_prob_under(other))

    def _log_prob_under(self, other: Distribution) -> torch.Tensor:
        """``(K, B)``: another distribution's log-probability of every message in this support."""
        if other.event_shape != self.event_shape:
            raise ValueError(
                f"other must be over messages of shape {tuple(self.event_shape)}, got {tuple(other.event_shape)}"
            )
        if other.batch_shape not in ((), self.batch_shape):
            raise ValueError(
                f"other must have batch shape {tuple(self.batch_shape)} or (), got {tuple(other.batch_shape)}"
            )
        return other.log_prob(self.messages)

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> torch.Tensor:
        raise NotImplementedError(
            "a sample of discrete messages has no gradient; expectation() is differentiable and exact"
        )

    def cdf(self, value: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("messages have no order, so there is no cumulative distribution function")

    def icdf(self, value: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("messages have no order, so there are no quantiles")

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> torch.Tensor:
        """``(*sample_shape, B)`` or ``(*sample_shape, B, D)``: sampled messages."""
        shape = torch.Size(sample_shape)
        batch = self.probs.shape[1]
        if batch == 0 or shape.numel() == 0:
            return self.messages.new_empty(shape + self.batch_shape + self.event_shape)
        weights = self.weights.t()
        rows = torch.multinomial(weights, shape.numel(), replacement=True).t()
        sampled = self.messages[rows, torch.arange(batch, device=rows.device)]
        return sampled.view(shape + self.batch_shape + self.event_shape)


@register_kl(SparseDistribution, Distribution)
def _kl_divergence(p: SparseDistribution, q: Distribution) -> torch.Tensor:
    return p.expectation(p._log_probs_with_gradient - p._log_prob_under(q))
