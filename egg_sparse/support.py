r"""Support control: a floor under the number of messages that keep a non-zero probability while a sender learns.

A sparse mapping gives a sender a gradient only through the messages in its support. Where the support falls to one
message, learning stops. Its size depends on the agent, the learning rate and the loss, so that no fixed temperature
suits every game. A controller chooses the temperature T that the scores are divided by:

- The first training batch fixes where it begins: at the T with 64 messages (at most 0.9 of all) in the mean support, so
  that learning begins with many messages, whatever the scale of the agent's scores.
- From then on the support falls, but not below a floor f, which falls as training goes on. After every step, with the
  mean support s of the batch,

      T <- max(min(1, T_first), T exp(clip(0.3 log(f / s), -0.04, 0.1))),
      v <- clip(v + 0.05 log(f / s), 0, 5),    u = max(v, w (1 - 1 / f) min(1, 4 f / s)).

  The temperature acts at once. The pressure u, an entropy coefficient in units of the loss (the spread of an example's
  losses over its messages), acts on what the sender learns: it balances the loss's own gradient, which otherwise makes
  the scores grow, and the temperature with them, until the sender hardly moves. v grows where the support is below the
  floor. The second term, the least pressure, shrinks with the floor, and further where the support is more than four
  times the floor.
- Before the messages say anything, a small support would be the same for all inputs. So w = min(1, q / 0.3), where q is
  the share of examples whose most probable message differs from that of the first example in the batch, averaged over
  about 20 steps. As long as it is 0, there is no least pressure, and a floor that follows the loss hardly falls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from egg_sparse.distribution import SparseDistribution

#: Training steps of the sender so far -> the least mean support.
Floor = Callable[[int], float]

_FIRST_SUPPORT = 64.0
_LARGEST_SHARE = 0.9  # of all messages, that a first support or a floor asks for
_LARGEST_TEMPERATURE = 2.0**30
_TEMPERATURE_GAIN, _FASTEST_FALL, _FASTEST_RISE = 0.3, -0.04, 0.1
_PRESSURE_GAIN, _LARGEST_PRESSURE = 0.05, 5.0
_FAST, _SLOW = 20, 100  # steps over which losses are averaged
_STILL_FALLING = 0.5  # by how much the fast average is below the slow one, in mean deviations of a batch's loss
_LEAST_PACE = 0.3  # of a floor whose loss still falls
_ENOUGH_VARIETY, _SLOWEST_PACE = 0.3, 0.05  # of messages; of a floor as long as there is none
_PRESSED_ABOVE = 4.0  # times the floor, up to which the least pressure is whole


@dataclass(frozen=True)
class FollowLoss:
    r"""A floor that falls while the loss does not: fast where learning has stalled, slowly where it goes on.

    With the game's mean losses averaged over about 20 steps (fast) and 100 steps (slow), and the mean deviation d of a
    batch's loss, the floor is multiplied after every step by

    .. math::
        \exp\big(-(0.05 + 0.95 w) (0.3 + 0.7 \sigma(2 - 4 (\mathrm{slow} - \mathrm{fast}) / d)) / \mathrm{pace}\big),

    with w as above: 0 as long as all examples have the same most probable message. It needs no length of training.
    Where no game reports a loss, it falls as if learning had stalled.

    Args:
        start: the floor at first; None for the square root of the number of all messages, at most 16.
        end: the floor in the end.
        pace: the number of steps in which the floor falls by a factor of e, once learning has stalled.
    """

    start: float | None = None
    end: float = 1.2
    pace: float = 100.0

    def __post_init__(self) -> None:
        _check_sizes(self.end if self.start is None else self.start, self.end)
        _check_steps("pace", self.pace)


@dataclass(frozen=True)
class OpenEnded:
    r"""A floor for trainings of unknown length: :math:`\max(\mathrm{end}, \mathrm{start} / (1 + t / \mathrm{pace}))`.

    Args:
        start: the floor at first.
        end: the floor in the end.
        pace: the number of steps after which the floor is half of what it was.

    Example:
        >>> [OpenEnded()(step) for step in (0, 50, 10_000)]
        [16.0, 8.0, 1.2]
    """

    start: float = 16.0
    end: float = 1.2
    pace: float = 50.0

    def __post_init__(self) -> None:
        _check_sizes(self.start, self.end)
        _check_steps("pace", self.pace)

    def __call__(self, step: int) -> float:
        return max(self.end, self.start / (1 + step / self.pace))


@dataclass(frozen=True)
class Geometric:
    r"""A floor that falls geometrically, :math:`\mathrm{start}\,(\mathrm{end} / \mathrm{start})^{t / \mathrm{over}}`.

    Args:
        over: the number of steps in which it falls; 40 % of the training is a good choice.
        start: the floor at first.
        end: the floor in the end, and from then on.

    Example:
        >>> [round(Geometric(over=100, start=16, end=1)(step), 3) for step in (0, 50, 100, 200)]
        [16.0, 4.0, 1.0, 1.0]
    """

    over: float
    start: float = 16.0
    end: float = 1.2

    def __post_init__(self) -> None:
        _check_sizes(self.start, self.end)
        _check_steps("over", self.over)

    def __call__(self, step: int) -> float:
        return self.start * (self.end / self.start) ** min(1.0, step / self.over)


@dataclass(frozen=True)
class Constant:
    """A floor that stays.

    Args:
        size: the least mean support.
    """

    size: float

    def __post_init__(self) -> None:
        _check_sizes(self.size, self.size)

    def __call__(self, step: int) -> float:
        return self.size


def _check_sizes(*sizes: float) -> None:
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, (int, float)) or not 1 <= size < math.inf:
            raise ValueError(f"support must be a number of messages of at least 1, got {size!r}")


def _check_steps(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a number of steps above 0, got {value}")


def floor_of(support: Any) -> FollowLoss | Floor | None:
    """The floor that a wrapper's option ``support`` stands for; None for None.

    Raises:
        TypeError, ValueError: it is no number of at least 1, no schedule, and not None.
    """
    if support is None or isinstance(support, FollowLoss) or callable(support):
        return support
    if isinstance(support, bool) or not isinstance(support, (int, float)):
        raise TypeError(
            "support must be a number of messages, a schedule (step -> number), None for a fixed temperature, or "
            f'"auto", got {support!r}'
        )
    return Constant(float(support))


class SupportControl(nn.Module):
    """The controller of one sender. Its state is in buffers, and so in the sender's state_dict and every checkpoint.

    Args:
        floor: the least mean support.
        first: the temperature at which it begins; None to find it by :meth:`calibrate`.

    Example:
        >>> control = SupportControl(Constant(2), first=1.0)
        >>> lonely = SparseDistribution(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4))
        >>> control.observe(lonely, largest=10)
        >>> round(float(control.temperature), 3), round(float(control.pressure), 3), int(control.step)
        (1.105, 0.035, 1)
    """

    first: torch.Tensor
    temperature: torch.Tensor
    pressure: torch.Tensor
    fall: torch.Tensor
    averages: torch.Tensor
    variety: torch.Tensor
    step: torch.Tensor

    def __init__(self, floor: FollowLoss | Floor, first: float | None = None) -> None:
        super().__init__()
        self.floor = floor
        self.register_buffer("first", torch.tensor(math.nan if first is None else float(first)))
        self.register_buffer("temperature", torch.tensor(1.0 if first is None else float(first)))
        self.register_buffer("pressure", torch.zeros(()))
        #: log of what a floor that follows the loss has been multiplied by
        self.register_buffer("fall", torch.zeros(()))
        #: of the loss: fast, slow, mean deviation; NaN before the first loss
        self.register_buffer("averages", torch.full((3,), math.nan))
        #: share of examples whose most probable message is not that of the first one; NaN before the first step
        self.register_buffer("variety", torch.tensor(math.nan))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self._least_pressure: torch.Tensor | float = 0.0  # of the last step
        self._steps: int | None = 0  # the step on the host; None where it is to be read
        self._calibrated: bool | None = first is not None  # likewise

    def extra_repr(self) -> str:
        return f"floor={self.floor}"

    def _apply(self, fn: Callable, recurse: bool = True) -> SupportControl:
        super()._apply(fn, recurse)
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                self._buffers[name] = buffer.float()  # in half precision the small changes would be lost
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Takes the controller's state. A state without one, such as that of EGG's sender, leaves it as it is."""
        if any(name.startswith(prefix) for name in state_dict):
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
            self._steps = self._calibrated = None

    @property
    def is_calibrated(self) -> bool:
        """Whether the first temperature is known."""
        if self._calibrated is None:
            self._calibrated = not bool(self.first.isnan())
        return self._calibrated

    @torch.no_grad()
    def calibrate(self, support_at: Callable[[float], torch.Tensor], largest: int) -> None:
        """Finds the temperature at which the mean support of a batch is 64, or 0.9 of the largest one.

        Where none has that support, as for an agent whose scores are all the same, it is 1.

        Args:
            support_at: a function from a temperature to the supports ``(B,)`` at it.
            largest: the largest number of messages that the sender can send.
        """
        target = max(1.0, min(_FIRST_SUPPORT, _LARGEST_SHARE * largest))

        def is_enough(temperature: float) -> bool:
            return float(_mean(support_at(temperature).to(self.fall))) >= target

        low = high = 1.0
        if is_enough(1.0):
            while is_enough(low) and low > 1 / _LARGEST_TEMPERATURE:
                high, low = low, low / 2
        else:
            while not is_enough(high) and high < _LARGEST_TEMPERATURE:
                low, high = high, 2 * high
        if low > 1 / _LARGEST_TEMPERATURE and high < _LARGEST_TEMPERATURE:
            for _ in range(5):
                middle = math.sqrt(low * high)
                low, high = (low, middle) if is_enough(middle) else (middle, high)
        else:
            high = 1.0
        self.first.fill_(high)
        self.temperature.fill_(high)
        self._calibrated = True

    def _log_floor(self, largest: int) -> torch.Tensor:
        """The logarithm of the least mean support of this step."""
        if self._steps is None:
            self._steps = int(self.step)
        most = math.log(max(1.0, _LARGEST_SHARE * largest))
        if isinstance(self.floor, FollowLoss):
            start = min(16.0, math.sqrt(largest)) if self.floor.start is None else self.floor.start
            begin, end = (min(math.log(size), most) for size in (start, self.floor.end))
            return (begin + self.fall).clamp(min=end)
        size = self.floor(self._steps)
        if not 1 <= size < math.inf:
            raise ValueError(f"the floor of the support must be a number of at least 1, got {size} at {self._steps}")
        return torch.full_like(self.fall, min(math.log(size), most))

    @torch.no_grad()
    def observe(self, distribution: SparseDistribution, largest: int) -> None:
        """Takes account of the support of a training step, of all processes together.

        Args:
            distribution: the distribution that the sender sent.
            largest: the largest number of messages that it could have sent.
        """
        log_floor = self._log_floor(largest)
        variety = _mean(_differs_from_first(distribution.mode).to(self.fall))
        variety = torch.where(self.variety.isnan(), variety, self.variety + (variety - self.variety) / _FAST)
        self.variety.copy_(variety)
        says_something = (variety / _ENOUGH_VARIETY).clamp(max=1)
        shortfall = log_floor - _mean(distribution.support_size.to(self.fall)).log()
        self._least_pressure = says_something * (1 - (-log_floor).exp())
        self._least_pressure *= (_PRESSED_ABOVE * shortfall.exp()).clamp(max=1)
        change = (_TEMPERATURE_GAIN * shortfall).clamp(_FASTEST_FALL, _FASTEST_RISE).exp()
        changed = (self.temperature * change).clamp(max=_LARGEST_TEMPERATURE)
        self.temperature.copy_(torch.maximum(changed, self.first.clamp(max=1)))
        self.pressure.copy_((self.pressure + _PRESSURE_GAIN * shortfall).clamp(0, _LARGEST_PRESSURE))
        if isinstance(self.floor, FollowLoss):
            fast, slow, deviation = self.averages
            falling = torch.nan_to_num((slow - fast) / deviation.clamp(min=1e-12))
            stalled = torch.sigmoid(4 * (_STILL_FALLING - falling))
            stalled = torch.where(fast.isnan(), 1.0, stalled)
            pace = (_LEAST_PACE + (1 - _LEAST_PACE) * stalled) * (_SLOWEST_PACE + (1 - _SLOWEST_PACE) * says_something)
            self.fall -= pace / self.floor.pace
        self.step += 1
        self._steps = 1 + (self._steps or 0)

    @torch.no_grad()
    def follow(self, losses: torch.Tensor) -> None:
        """Takes account of the losses ``(B,)`` of a training step, of all processes together."""
        loss = _mean(losses.to(self.fall))
        fast, slow, deviation = self.averages
        first = fast.isnan()
        fast = torch.where(first, loss, fast + (loss - fast) / _FAST)
        slow = torch.where(first, loss, slow + (loss - slow) / _SLOW)
        deviation = torch.where(first, loss.abs() / 10, deviation + ((loss - fast).abs() - deviation) / _SLOW)
        self.averages.copy_(torch.where(loss.isfinite(), torch.stack((fast, slow, deviation)), self.averages))

    def entropy_coefficient(self, spread: torch.Tensor, of_actions: bool = False) -> torch.Tensor:
        """The pressure u in units of the loss: times the mean, over all processes, of the spread ``(B,)`` of losses.

        Args:
            spread: the standard deviation of each example's losses over its messages.
            of_actions: whether the losses are those of the receiver's random actions, which make up most of their
                spread. The pressure is then v, which acts where the support is below the floor.
        """
        pressure = self.pressure if of_actions else self.pressure.clamp(min=self._least_pressure)
        return pressure * _mean(spread.to(self.pressure))


def _differs_from_first(messages: torch.Tensor) -> torch.Tensor:
    """``(B,)`` bool: whether an example's message is not that of the first example, of all processes.

    True for a single example, of which nothing can be said.
    """
    if len(messages) == 1 and not _has_several_processes():
        return torch.ones(1, dtype=torch.bool, device=messages.device)
    first = messages[:1].clone()
    if _has_several_processes():
        torch.distributed.broadcast(first, 0)
    return (messages != first).reshape(len(messages), -1).any(1)


def _has_several_processes() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _mean(values: torch.Tensor) -> torch.Tensor:
    """The mean of the values ``(B,)`` of all processes."""
    if not _has_several_processes():
        return values.mean()
    total = torch.stack((values.sum(), torch.full_like(values.sum(), len(values))))
    torch.distributed.all_reduce(total)
    return total[0] / total[1]
