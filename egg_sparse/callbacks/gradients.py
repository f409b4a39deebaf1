"""The variance of the estimate of a gradient."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from egg_sparse import host
from egg_sparse.games.snapshot import Snapshot


class Moments(NamedTuple):
    """The mean of draws, and the variance of each of its entries, float64."""

    mean: torch.Tensor
    variance: torch.Tensor


def moments(draws: Iterable[torch.Tensor]) -> Moments:
    r"""The mean and the unbiased variance of draws :math:`x_1, \dots, x_R` of one shape, entry by entry.

    Only one draw is kept at a time. The sum of the variances is the trace of the covariance.

    Args:
        draws: at least two draws.

    Raises:
        ValueError: there are fewer than two draws.

    Example:
        >>> moments(torch.tensor([[0.0, 1.0], [2.0, 1.0]])).variance
        tensor([2., 0.], dtype=torch.float64)

    Source: Welford, "Note on a Method for Calculating Corrected Sums of Squares and Products" (Technometrics, 1962).
    """
    mean = squares = torch.tensor(0.0, dtype=torch.float64)
    count = 0
    for count, draw in enumerate(draws, 1):
        value = draw.detach().double()
        if count == 1:
            mean, squares = torch.zeros_like(value), torch.zeros_like(value)
        change = value - mean
        mean = mean + change / count
        squares = squares + change * (value - mean)
    if count < 2:
        raise ValueError(f"draws must be at least two, got {count}")
    return Moments(mean, squares / (count - 1))


class GradientVariance(host.core.Callback):
    r"""Adds the variance of the estimate of the sender's gradient to the metrics of the training.

    At the end of every ``every``-th epoch the epoch's first batch is played R times with the same weights, which gives
    gradients :math:`g_1, \dots, g_R` for the sender's parameters. ``gradient_variance`` is the trace of their
    covariance,

    .. math:: \frac{1}{R - 1} \sum_{r=1}^{R} \lVert g_r - \bar g \rVert^2,

    and ``relative_gradient_variance`` that divided by the squared norm of the mean :math:`\bar g`, which itself has the
    expectation :math:`\lVert \mathbb{E} g \rVert^2` plus an R-th of the variance: a relative variance near R says that
    the mean is noise. It is left out where the mean is zero. ``by_parameter`` has the last variances by the names of
    the sender's parameters, each summed over the parameter.

    The exact games have no variance, but for bounded supports and for a receiver or a loss that draws random numbers.
    Copies of the game are played, in full precision, and random number generators are set back, so that the training is
    the same as without this callback. With several processes the gradients are their means, as in training. The time is
    that of R steps.

    Args:
        sender: the sender, a part of the game.
        every: the number of epochs between measurements.
        repetitions: R, at least 2.
        batch: the batch to play, as the Trainer's data yields it; None for the first one of each measured epoch.

    Raises:
        TypeError: ``every`` or ``repetitions`` is no whole number.
        ValueError: one of them is too small; at the beginning of the training, if the sender is not a
            part of the game or has no parameters to learn.

    Example:
        >>> from egg_sparse import SparsemaxWrapper
        >>> GradientVariance(SparsemaxWrapper(nn.Linear(2, 3)), every=5).repetitions
        20
    """

    def __init__(self, sender: nn.Module, every: int = 1, repetitions: int = 20, batch: Any = None) -> None:
        for name, value, least in (("every", every, 1), ("repetitions", repetitions, 2)):
            if not isinstance(value, int):
                raise TypeError(f"{name} must be a whole number, got {value!r}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.sender = sender
        self.every = every
        self.repetitions = repetitions
        self.by_parameter: dict[str, float] = {}
        self._given = batch
        self._batch: tuple[Any, ...] | None = None
        self._hook: Any = None

    @property
    def _game(self) -> nn.Module:
        game: Any = self.trainer.game
        return game.module if isinstance(game, nn.parallel.DistributedDataParallel) else game

    def on_train_begin(self, trainer_instance: host.core.Trainer) -> None:
        super().on_train_begin(trainer_instance)
        own = {id(parameter) for parameter in self._game.parameters()}
        learnt = [parameter for parameter in self.sender.parameters() if parameter.requires_grad]
        if not learnt or any(id(parameter) not in own for parameter in learnt):
            raise ValueError("sender must be a part of the game that is trained, with parameters to learn")
        if self._given is None:
            self._hook = self._game.register_forward_pre_hook(self._keep_first)

    def on_epoch_begin(self, epoch: int) -> None:
        self._batch = None

    def _keep_first(self, game: nn.Module, batch: tuple[Any, ...]) -> None:
        if game.training and self._batch is None:
            self._batch = _copied(batch)

    def on_epoch_end(self, loss: float, logs: host.core.Interaction, epoch: int) -> None:
        if self._given is not None:
            given = self._given
            batch = given if isinstance(given, host.core.batch.Batch) else host.core.batch.Batch(*given)
            self._batch = tuple(batch.to(self.trainer.device))
        if epoch % self.every or self._batch is None:
            return
        gradients = self._measure(self._batch)
        total = sum(float(each.variance.sum()) for each in gradients.values())
        norm = sum(float(each.mean.square().sum()) for each in gradients.values())
        self.by_parameter = {name: float(each.variance.sum()) for name, each in gradients.items()}
        logs.aux["gradient_variance"] = torch.tensor([total])
        if norm > 0:
            logs.aux["relative_gradient_variance"] = torch.tensor([total / norm])

    def on_train_end(self) -> None:
        if self._hook is not None:
            self._hook.remove()

    def _measure(self, batch: tuple[Any, ...]) -> dict[str, Moments]:
        """The moments of the gradient for each of the sender's parameters, by name."""
        named = {name: parameter for name, parameter in self.sender.named_parameters() if parameter.requires_grad}
        random_state = Snapshot([], torch.device(self.trainer.device))
        try:
            found = moments(self._gradient(list(named), batch) for _ in range(self.repetitions))
        finally:
            random_state.restore()
        sizes = [parameter.numel() for parameter in named.values()]
        parts = zip(named, found.mean.split(sizes), found.variance.split(sizes), strict=True)
        return {name: Moments(mean, variance) for name, mean, variance in parts}

    def _gradient(self, names: list[str], batch: tuple[Any, ...]) -> torch.Tensor:
        """An estimate of the gradient, all parameters in one row, by a copy: a call changes baselines and buffers."""
        with _without_hooks(self._game):
            game, sender = copy.deepcopy((self._game, self.sender))
        game.train()
        learnt = dict(sender.named_parameters())
        parameters = [learnt[name] for name in names]
        loss, _ = game(*_copied(batch))
        parts = torch.autograd.grad(loss, parameters, allow_unused=True)
        filled = [
            torch.zeros_like(parameter) if part is None else part
            for parameter, part in zip(parameters, parts, strict=True)
        ]
        gradient = torch.cat([part.flatten() for part in filled])
        context = self.trainer.distributed_context
        if context.is_distributed:
            torch.distributed.all_reduce(gradient)
            gradient /= context.world_size
        return gradient


def _copied(batch: tuple[Any, ...]) -> tuple[Any, ...]:
    """The batch with dictionaries of its own, to which agents may write."""
    return tuple(dict(part) if isinstance(part, dict) else part for part in batch)


@contextlib.contextmanager
def _without_hooks(game: nn.Module) -> Iterator[None]:
    """Takes the hooks of a game away, which may refer to what no copy should have, such as the optimizer."""
    kept = {name: value for name, value in vars(game).items() if name.endswith("_hooks")}
    for name, hooks in kept.items():
        vars(game)[name] = type(hooks)()
    try:
        yield
    finally:
        vars(game).update(kept)
