"""SparseDistribution: the non-zero terms of a batch of distributions over messages."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.distributions import Distribution, constraints


class SparseDistribution(Distribution):
    r"""A batch of distributions over messages, stored as their supports.

    For every example b it holds the messages :math:`m_{kb}` that have a probability
    :math:`p_{kb} > 0`, padded to the largest support K in the batch, so that

    .. math:: \mathbb{E}_{m \sim p_b}[f(m)] = \sum_{k=1}^{K} p_{kb}\, f(m_{kb})

    is exact, with as few terms as the distribution has. The leading K follows
    :meth:`torch.distributions.Distribution.enumerate_support`.

    Args:
        messages: the support. ``(K, B)`` long symbol ids, or ``(K, B, D)`` floating-point
            vectors (bit-vectors or one-hot symbols). Row 0 is the most probable message.
        probs: ``(K, B)`` floating point, non-negative, every column in descending order and
            summing to 1. Padding has probability exactly 0. Differentiable.
        vocab_size: for symbols, how many of them the sender could have sent; None if unknown.
        validate_args: check the values of ``probs`` (this synchronises with the device).

    Raises:
        TypeError: ``messages`` or ``probs`` are not tensors of the types above.
        ValueError: their shapes disagree, K is 0, or ``probs`` are not as described.

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
        if messages.is_floating_point() != (messages.dim() == 3) or messages.dtype == torch.bool:
            raise TypeError(
                "messages must be integer symbol ids of shape (K, B) or floating-point vectors of shape (K, B, D), "
                f"got {messages.dtype} of shape {tuple(messages.shape)}"
            )
        if probs.shape[0] == 0:
            raise ValueError("messages and probs must hold at least one row, got K = 0")
        self.messages = messages
        self.probs = probs
        self.vocab_size = vocab_size
        #: ``(B,)`` bool, of mappings that may leave terms out: where they left out none. None of other mappings.
        self.is_exact: torch.Tensor | None = None
        #: ``(B,)``, of mappings that iterate: by how much, at most, their objective is below its optimum. Else None.
        self.duality_gap: torch.Tensor | None = None
        super().__init__(probs.shape[1:], messages.shape[2:], validate_args=validate_args)
        if self._validate_args:
            self._check_probs()

    def _check_probs(self) -> None:
        probs = self.probs.detach()
        probs = probs.to(torch.promote_types(probs.dtype, torch.float32))
        tolerance = 4 * probs.shape[0] * torch.finfo(self.probs.dtype).eps
        if not bool((probs >= 0).all()):
            raise ValueError("probs must be non-negative and not NaN")
        if not bool(((probs.sum(0) - 1).abs() <= tolerance).all()):
            raise ValueError("every column of probs must sum to 1")
        if not bool((probs[1:] <= probs[:-1]).all()):
            raise ValueError("every column of probs must be in descending order: row 0 is the most probable message")

    def __repr__(self) -> str:
        rows, batch = self.probs.shape
        return f"SparseDistribution(K={rows}, B={batch}, messages={tuple(self.messages.shape)} {self.messages.dtype})"

    @property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        """The set that messages come from, as torch.distributions names it."""
        if self.messages.is_floating_point():
            return constraints.independent(constraints.real, 1)
        return constraints.nonnegative_integer

    @property
    def mask(self) -> torch.Tensor:
        """``(K, B)`` bool: True at the terms, False at the padding."""
        return self.probs > 0

    @property
    def support_size(self) -> torch.Tensor:
        """``(B,)`` long: how many messages have a non-zero probability."""
        return self.mask.sum(0)

    @property
    def mode(self) -> torch.Tensor:
        """``(B,)`` or ``(B, D)``: the most probable message."""
        return self.messages[0]

    @property
    def mean(self) -> torch.Tensor:
        """``(B, D)``: the mean of vector messages (for bit-vectors their marginals, for one-hot
        symbols their probabilities). NaN for symbol ids, which have no mean.
        """
        if not self.messages.is_floating_point():
            return torch.full_like(self.probs[0], float("nan"))
        return self.expectation(self.messages)

    def enumerate_support(self, expand: bool = True) -> torch.Tensor:
        """``(K, B)`` or ``(K, B, D)``: all terms, padding included.

        The support depends on the example, so it cannot be had unexpanded.
        """
        if not expand:
            raise ValueError("expand must be True: every example has a support of its own")
        return self.messages

    def expectation(self, values: torch.Tensor) -> torch.Tensor:
        r""":math:`\sum_k p_{kb}\, v_{kb}`, for values of every term.

        What stands in a padded row, NaN and infinities included, changes neither the result nor
        any gradient.

        Args:
            values: ``(K, B, ...)``.

        Returns:
            ``(B, ...)``, of the type that ``probs`` and ``values`` promote to.
        """
        if values.shape[:2] != self.probs.shape:
            raise ValueError(
                f"values must start with (K, B) = {tuple(self.probs.shape)}, got shape {tuple(values.shape)}"
            )
        trailing = (1,) * (values.dim() - 2)
        mask, probs = self.mask.view(*self.probs.shape, *trailing), self.probs.reshape(*self.probs.shape, *trailing)
        return (probs * torch.where(mask, values, torch.zeros_like(values))).sum(0)

    def entropy(self) -> torch.Tensor:
        r"""``(B,)``, in nats: :math:`-\sum_k p_{kb} \log p_{kb}`. Its gradient is finite at padding."""
        return 0.0 - (self.probs * torch.where(self.mask, self.probs, 1.0).log()).sum(0)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log-probability in nats; ``-inf`` for a message outside the support.

        Args:
            value: ``(*sample_shape, B)`` symbol ids or ``(*sample_shape, B, D)`` vectors.

        Returns:
            ``(*sample_shape, B)``.
        """
        expected = self.batch_shape + self.event_shape
        if value.shape[value.dim() - len(expected) :] != expected:
            raise ValueError(f"value must end with shape {tuple(expected)}, got {tuple(value.shape)}")
        sample_dims = value.dim() - len(expected)
        same = self.messages.view(-1, *(1,) * sample_dims, *expected) == value
        if self.event_shape:
            same = same.all(-1)
        probs = self.probs.reshape(-1, *(1,) * sample_dims, *self.batch_shape)
        prob = torch.where(same, probs, torch.zeros_like(probs)).sum(0)
        return torch.where(prob > 0, torch.where(prob > 0, prob, 1.0).log(), -torch.inf)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> torch.Tensor:
        """``(*sample_shape, B)`` or ``(*sample_shape, B, D)``: messages drawn from the support."""
        shape = torch.Size(sample_shape)
        batch = self.probs.shape[1]
        if batch == 0 or shape.numel() == 0:
            return self.messages.new_empty(shape + self.batch_shape + self.event_shape)
        weights = self.probs.t().to(torch.promote_types(self.probs.dtype, torch.float32))
        rows = torch.multinomial(weights, shape.numel(), replacement=True).t()
        drawn = self.messages[rows, torch.arange(batch, device=rows.device)]
        return drawn.view(shape + self.batch_shape + self.event_shape)
