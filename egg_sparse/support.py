r"""Support control: a floor under the number of messages of non-zero probability while a sender learns.

A sparse mapping gives a sender a gradient only through the messages in its support. If the support falls to one
message, learning stops. The size of the support depends on the agent, the learning rate and the loss, so that no fixed
temperature suits every game. A controller therefore chooses the temperature T that divides the scores:

- The first training batch determines the first temperature, T_first. It gives a mean support of 64 messages (at most
  0.9 of all), so that learning begins with many messages, whatever the scale of the agent's scores.
- From then on the support may fall, but not below a floor f, which falls during training. After every step, with the
  mean support s of the batch,

      T <- max(min(1, T_first), T exp(clip(0.3 log(f / s), -0.04, 0.1))),
      v <- clip(v + 0.05 log(f / s), 0, 5),    u = max(v, w (1 - 1 / f) min(1, 4 f / s)).

  The temperature acts at once. The pressure u acts on what the sender learns: it is an entropy coefficient in units of
  the loss, that is, of the spread of an example's losses over its messages. It balances the gradient of the loss, which
  would otherwise increase the scores, and with them the temperature, until the sender hardly changes. v grows while the
  support is below the floor. The second term, the least pressure, decreases with the floor, and further where the
  support is more than four times the floor.
- Before messages differ between inputs, a small support would be the same for all inputs. The weight
  w = min(1, q / 0.3) prevents this: q is the share of examples whose most probable message differs from that of the
  first example in the batch, averaged over about 20 steps. While q is 0, there is no least pressure, and a floor that
  follows the loss hardly falls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from egg_sparse.distribution import SparseDistribution

#: A function from the number of training steps so far to the least mean support.
Floor = Callable[[int], float]
#: A zero-dimensional tensor on a device, or a number on the CPU, where Python computes in a fraction of the time.
Number = Any

_FIRST_SUPPORT = 64.0
_LARGEST_SHARE = 0.9  # the part of all messages that bounds the first support and every floor
_LARGEST_TEMPERATURE = 2.0**30
_TEMPERATURE_GAIN, _FASTEST_FALL, _FASTEST_RISE = 0.3, -0.04, 0.1
_PRESSURE_GAIN, _LARGEST_PRESSURE = 0.05, 5.0
_FAST, _SLOW = 20, 100  # the numbers of steps over which losses are averaged
_STILL_FALLING = 0.5  # the distance of the two averages, in mean deviations, of a loss that may have stalled
_LEAST_PACE = 0.3  # the pace of a floor while the loss falls
_ENOUGH_VARIETY, _SLOWEST_PACE = 0.3, 0.05  # the variety of messages that suffices; the pace of a floor without any
_PRESSED_ABOVE = 4.0  # the ratio of support and floor above which the least pressure decreases


@dataclass(frozen=True)
class FollowLoss:
    r"""A floor that falls fast if the loss has stalled, and slowly while the loss falls.

    With the game's mean loss averaged over about 20 steps (fast) and 100 steps (slow), and the mean deviation d of a
    batch's loss, the floor is multiplied after every step by

    .. math::
        \exp\big(-(0.05 + 0.95 w) (0.3 + 0.7 \sigma(2 - 4 (\mathrm{slow} - \mathrm{fast}) / d)) / \mathrm{pace}\big),

    with w as in :mod:`egg_sparse.support`, which is 0 while all examples have the same most probable message. The
    length of the training need not be known. If no game reports a loss, the floor falls as if the loss had stalled.

    Args:
        start: the first floor; None for the square root of the number of all messages, at most 16.
        end: the last floor.
        pace: the number of steps in which the floor falls by a factor of e, once the loss has stalled.
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
        start: the first floor.
        end: the last floor.
        pace: the number of steps after which the floor is half of the first one.

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
        over: the number of steps in which the floor falls; 40 % of the training is a good choice.
        start: the first floor.
        end: the last floor, which stays from then on.

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
    """A floor that does not change.

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
    """The floor that a wrapper's option ``support`` means; None for None.

    Raises:
        TypeError, ValueError: the option is neither a number of at least 1, nor a schedule, nor None.
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
        first: the first temperature; None for :meth:`calibrate` to find it.

    Example:
        >>> control = SupportControl(Constant(2), first=1.0)
        >>> one_message = SparseDistribution(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4))
        >>> control.observe(one_message, largest=10)
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
        #: the logarithm of the factor by which a floor that follows the loss has fallen
        self.register_buffer("fall", torch.zeros(()))
        #: the loss's fast average, slow average and mean deviation; NaN before the first loss
        self.register_buffer("averages", torch.full((3,), math.nan))
        #: the share of examples whose most probable message is not that of the first one; NaN before the first step
        self.register_buffer("variety", torch.tensor(math.nan))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self._least_pressure: Number = 0.0  # in the last step
        # copies on the host; None if they must be read from the buffers
        self._steps: int | None = 0
        self._calibrated: bool | None = first is not None

    def extra_repr(self) -> str:
        return f"floor={self.floor}"

    def _apply(self, fn: Callable, recurse: bool = True) -> SupportControl:
        super()._apply(fn, recurse)
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                self._buffers[name] = buffer.float()  # in half precision the small changes would be lost
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Loads the controller's state; a state_dict without it, such as that of EGG's sender, changes nothing."""
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
        """Finds the temperature at which the mean support of a batch is 64, or 0.9 of the largest support if less.

        The temperature is 1 if none gives that support, as for an agent whose scores are all the same.

        Args:
            support_at: the function from a temperature to the support sizes ``(B,)``.
            largest: the largest number of messages that the sender can send.
        """
        target = max(1.0, min(_FIRST_SUPPORT, _LARGEST_SHARE * largest))

        def is_enough(temperature: float) -> bool:
            return float(_mean(support_at(temperature))) >= target

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

    def _log_floor(self, largest: int, fall: Number) -> Number:
        """The logarithm of the least mean support of this step."""
        if self._steps is None:
            self._steps = int(self.step)
        most = math.log(max(1.0, _LARGEST_SHARE * largest))
        if isinstance(self.floor, FollowLoss):
            start = min(16.0, math.sqrt(largest)) if self.floor.start is None else self.floor.start
            begin, end = (min(math.log(size), most) for size in (start, self.floor.end))
            return _library(fall).clip(begin + fall, end, None)
        size = self.floor(self._steps)
        if not 1 <= size < math.inf:
            raise ValueError(f"the floor of the support must be a number of at least 1, got {size} at {self._steps}")
        log_floor = min(math.log(size), most)
        return torch.full_like(self.fall, log_floor) if isinstance(fall, torch.Tensor) else log_floor

    @torch.no_grad()
    def observe(self, distribution: SparseDistribution, largest: int) -> None:
        """Updates the controller with the support of a training step in all processes.

        Args:
            distribution: the distribution that the sender sent.
            largest: the largest number of messages that it could have sent.
        """
        first, temperature, pressure, fall, before = map(
            _number, (self.first, self.temperature, self.pressure, self.fall, self.variety)
        )
        lib = _library(fall)
        log_floor = self._log_floor(largest, fall)
        variety = _mean(_differs_from_first(distribution.mode))
        variety = lib.where(lib.isnan(before), variety, before + (variety - before) / _FAST)
        weight = lib.clip(variety / _ENOUGH_VARIETY, None, 1)
        shortfall = log_floor - lib.log(_mean(distribution.support_size))
        least = weight * (1 - lib.exp(-log_floor))
        self._least_pressure = least * lib.clip(_PRESSED_ABOVE * lib.exp(shortfall), None, 1)
        change = lib.exp(lib.clip(_TEMPERATURE_GAIN * shortfall, _FASTEST_FALL, _FASTEST_RISE))
        changed = lib.clip(temperature * change, lib.clip(first, None, 1), None)
        self.variety.fill_(variety)
        self.temperature.fill_(lib.clip(changed, None, _LARGEST_TEMPERATURE))
        self.pressure.fill_(lib.clip(pressure + _PRESSURE_GAIN * shortfall, 0, _LARGEST_PRESSURE))
        if isinstance(self.floor, FollowLoss):
            fast, slow, deviation = _number(self.averages)
            falling = lib.nan_to_num((slow - fast) / lib.clip(deviation, 1e-12, None))
            stalled = (1 + lib.tanh(2 * (_STILL_FALLING - falling))) / 2
            stalled = lib.where(lib.isnan(fast), 1.0, stalled)
            pace = (_LEAST_PACE + (1 - _LEAST_PACE) * stalled) * (_SLOWEST_PACE + (1 - _SLOWEST_PACE) * weight)
            self.fall.fill_(fall - pace / self.floor.pace)
        self.step.add_(1)
        self._steps = 1 + (self._steps or 0)

    @torch.no_grad()
    def follow(self, losses: torch.Tensor) -> None:
        """Updates the averages of the loss with the losses ``(B,)`` of a training step in all processes.

        Only a floor that follows the loss needs them: with any other they stay as they are.
        """
        if not isinstance(self.floor, FollowLoss):
            return
        loss = _mean(losses)
        lib = _library(loss)
        fast, slow, deviation = before = _number(self.averages)
        is_first = lib.isnan(fast)
        fast = lib.where(is_first, loss, fast + (loss - fast) / _FAST)
        slow = lib.where(is_first, loss, slow + (loss - slow) / _SLOW)
        deviation = lib.where(is_first, abs(loss) / 10, deviation + (abs(loss - fast) - deviation) / _SLOW)
        is_finite = lib.isfinite(loss)
        for kept, old, new in zip(self.averages, before, (fast, slow, deviation), strict=True):
            kept.fill_(lib.where(is_finite, new, old))

    def entropy_coefficient(self, spread: torch.Tensor, of_actions: bool = False) -> torch.Tensor | float:
        """The pressure in units of the loss: the product of the pressure and the mean spread in all processes.

        Args:
            spread: the standard deviation ``(B,)`` of each example's losses over its messages.
            of_actions: whether the receiver acts, so that its random actions cause most of the spread. If so, the
                pressure is v, which acts only while the support is below the floor; if not, it is u.
        """
        pressure = _number(self.pressure)
        if not of_actions:
            pressure = _library(pressure).clip(pressure, self._least_pressure, None)
        return pressure * _mean(spread)


def _number(tensor: torch.Tensor) -> Number:
    """A tensor of the CPU as a number, or as a list of numbers; a tensor of another device as it is."""
    return tensor.tolist() if tensor.device.type == "cpu" else tensor


class _Python:
    """What is used of PyTorch's functions here, for numbers."""

    exp, log, tanh, isnan, isfinite = math.exp, math.log, math.tanh, math.isnan, math.isfinite

    @staticmethod
    def where(condition: bool, x: float, y: float) -> float:
        return x if condition else y

    @staticmethod
    def clip(x: float, least: float | None, largest: float | None) -> float:
        x = x if least is None else max(x, least)
        return x if largest is None else min(x, largest)

    @staticmethod
    def nan_to_num(x: float) -> float:
        return 0.0 if math.isnan(x) else x


def _library(number: Number) -> Any:
    """The functions for a number: PyTorch's for a tensor."""
    return torch if isinstance(number, torch.Tensor) else _Python


def _differs_from_first(messages: torch.Tensor) -> torch.Tensor:
    """Whether each example's message is not that of the first example of the first process, ``(B,)`` bool.

    True for a single example, which cannot be compared.
    """
    first = messages[:1]
    if _has_several_processes():
        first = first.clone()
        torch.distributed.broadcast(first, 0)
    elif len(messages) == 1:
        return torch.ones(1, dtype=torch.bool, device=messages.device)
    differs = messages != first
    return differs if differs.dim() == 1 else differs.any(1)


def _has_several_processes() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _mean(values: torch.Tensor) -> Number:
    """The mean of the values ``(B,)`` over all processes, in float32."""
    values = values.detach().float()
    if not _has_several_processes():
        return _number(values.mean())
    total = torch.stack((values.sum(), torch.full_like(values.sum(), len(values))))
    torch.distributed.all_reduce(total)
    return _number(total[0] / total[1])
