"""Schedules of temperatures, supports and other attributes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from egg_sparse import host
from egg_sparse.support import Geometric


class StepTemperature(host.core.Callback):
    r"""Anneals an agent's ``temperature`` within epochs: every ``update_frequency`` steps it becomes

    .. math:: \tau(t) = \max(\tau_{\min}, \tau_0 \exp(-r\,t)) .

    It depends on the step alone, so that a resumed run continues with the same temperatures. An initial temperature
    below the minimum is kept.

    Args:
        agent: the agent that has the attribute, for instance EGG's GumbelSoftmaxWrapper.
        batches_per_epoch: the number of steps per epoch.
        decay: the decay r per step.
        minimum: the lowest temperature.
        update_frequency: the number of steps between updates.

    Source: Jang, Gu and Poole, "Categorical Reparameterization with Gumbel-Softmax" (ICLR 2017), appendix.
    """

    def __init__(
        self, agent: Any, batches_per_epoch: int, decay: float, minimum: float = 0.5, update_frequency: int = 1000
    ) -> None:
        if update_frequency < 1:
            raise ValueError(f"update_frequency must be at least 1, got {update_frequency}")
        self.agent = agent
        self.batches_per_epoch = batches_per_epoch
        self.decay = decay
        self.initial = float(agent.temperature)
        self.minimum = min(minimum, self.initial)
        self.update_frequency = update_frequency
        self.epoch = 1

    def _set(self, step: int) -> None:
        last_update = step - step % self.update_frequency
        self.agent.temperature = max(self.minimum, self.initial * math.exp(-self.decay * last_update))

    def on_epoch_begin(self, epoch: int) -> None:
        self.epoch = epoch
        self._set((epoch - 1) * self.batches_per_epoch)

    def on_batch_end(self, logs: host.core.Interaction, loss: float, batch_id: int, is_training: bool = True) -> None:
        if is_training:
            self._set((self.epoch - 1) * self.batches_per_epoch + batch_id + 1)


class Schedule(host.core.Callback):
    """Sets an attribute of an object before every epoch to a function of the epoch.

    An entropy coefficient that starts high and falls keeps supports from collapsing to one message early on. A falling
    temperature, of a wrapper without support control (``support=None``), makes supports smaller.

    Args:
        obj: the object, for instance a game or a wrapper.
        attribute: the attribute's name, for instance "sender_entropy_coeff" or "temperature".
        fn: the function from the epoch, counted from 1, to the attribute's value.

    Raises:
        TypeError: the object has no such attribute.

    Example:
        >>> from egg_sparse import CommunicationMarg
        >>> game = CommunicationMarg()
        >>> Schedule(game, "sender_entropy_coeff", lambda epoch: 0.3 * 0.9 ** (epoch - 1)).on_epoch_begin(1)
        >>> game.sender_entropy_coeff
        0.3
    """

    def __init__(self, obj: Any, attribute: str, fn: Callable[[int], Any]) -> None:
        if not hasattr(obj, attribute):
            raise TypeError(f"obj must have the attribute {attribute}, but {type(obj).__name__} lacks it")
        self.obj = obj
        self.attribute = attribute
        self.fn = fn

    def on_epoch_begin(self, epoch: int) -> None:
        setattr(self.obj, self.attribute, self.fn(epoch))


class SupportSchedule(host.core.Callback):
    """Lets a sender's support fall over a part of the training, by default its first 40 %.

    The floor under the mean support falls geometrically (:class:`egg_sparse.support.Geometric`). The Trainer knows the
    length of the training, which the sender does not.

    Args:
        sender: the sender: a SparsemaxWrapper, TopKSparsemaxWrapper, SparseMAPBitVectorWrapper, RnnSenderSparsemax or
            TransformerSenderSparsemax.
        start: the first floor.
        end: the last floor.
        over: the number of the sender's training steps in which the floor falls; None for 40 % of them, as computed
            from EGG's option ``--n_epochs``, the length of the training data and, in a population, the number of
            senders.

    Raises:
        TypeError: the sender has no support control.
        ValueError: ``over`` is None and the training data has no length.

    Example:
        >>> from egg_sparse import SparsemaxWrapper
        >>> import torch
        >>> wrapper = SparsemaxWrapper(torch.nn.Linear(2, 3))
        >>> SupportSchedule(wrapper, over=700).on_train_begin(None)
        >>> wrapper.support
        Geometric(over=700, start=16.0, end=1.2)
    """

    def __init__(self, sender: Any, start: float = 16.0, end: float = 1.2, over: float | None = None) -> None:
        if not hasattr(sender, "support") or not hasattr(sender, "control"):
            raise TypeError(f"sender must be a wrapper with support control, got {type(sender).__name__}")
        self.sender = sender
        self.start = start
        self.end = end
        self.over = over
        Geometric(over or 1, start, end)  # checks the arguments

    def on_train_begin(self, trainer_instance: host.core.Trainer) -> None:
        super().on_train_begin(trainer_instance)
        over = self.over
        if over is None:
            try:
                batches = len(trainer_instance.train_data)  # type: ignore[arg-type]
            except TypeError:
                raise ValueError("over must be a number of steps, since the training data has no length") from None
            game = getattr(trainer_instance.game, "module", trainer_instance.game)
            sampler = getattr(game, "agents_loss_sampler", None)
            n_senders = len(getattr(sampler, "senders", [self.sender]))
            over = max(1.0, 0.4 * batches * host.core.get_opts().n_epochs / n_senders)
        self.sender.support = Geometric(over, self.start, self.end)
