"""EGG callbacks: metrics, statistics of the messages, seeds and schedules."""

from __future__ import annotations

import abc
import json
import math
import pathlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from egg_sparse import host
from egg_sparse.support import Geometric


def mean_metrics(loss: float, logs: host.core.Interaction) -> dict[str, float]:
    """The loss, and the mean of every metric in an Interaction's ``aux``."""
    return {"loss": loss, **{name: float(value.float().mean()) for name, value in logs.aux.items()}}


class MetricsWriter(host.core.Callback):
    """Keeps the mean metrics of each epoch and phase ("train", "validation") in ``history``, and writes them to a file.

    Only the leading process writes.

    Args:
        path: the file, to which a line with a JSON object is appended per epoch and phase; None to write none.
    """

    def __init__(self, path: str | pathlib.Path | None = None) -> None:
        self.path = None if path is None else pathlib.Path(path)
        self.history: list[dict[str, Any]] = []

    def _write(self, mode: str, loss: float, logs: host.core.Interaction, epoch: int) -> None:
        metrics = {**mean_metrics(loss, logs), "mode": mode, "epoch": epoch}
        self.history.append(metrics)
        if self.path is not None and self.trainer.distributed_context.is_leader:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")

    def on_epoch_end(self, loss: float, logs: host.core.Interaction, epoch: int) -> None:
        self._write("train", loss, logs, epoch)

    def on_validation_end(self, loss: float, logs: host.core.Interaction, epoch: int) -> None:
        self._write("validation", loss, logs, epoch)


def _logged(logs: host.core.Interaction, name: str) -> torch.Tensor:
    """A part of an Interaction, flattened to one row per example."""
    part = getattr(logs, name)
    if part is None:
        raise ValueError(f"the Interaction has no {name}: the game's LoggingStrategy must have store_{name}=True")
    return part.reshape(len(part), -1)


def symbols_of(message: torch.Tensor) -> torch.Tensor:
    """The symbols ``(B, L)`` of sequences, ids or one-hot rows ``(B, L, V)``, zeros from the end symbol on."""
    symbols = message.argmax(-1) if message.dim() == 3 else message
    return symbols * (symbols != 0).long().cumprod(1)


def _messages(logs: host.core.Interaction) -> torch.Tensor:
    """The discrete messages of an Interaction, one row per example."""
    message = _logged(logs, "message")
    if message.is_floating_point() and not ((message == 0) | (message == 1)).all():
        raise ValueError(
            "message must be symbol ids or rows of zeros and ones, got other numbers: Gumbel-Softmax games train with "
            "relaxed messages, so use those of the validation alone (print_train=False)"
        )
    sent: Any = logs.message
    is_sequence = sent.dim() == 3 or (sent.dim() == 2 and not sent.is_floating_point())
    return symbols_of(sent) if is_sequence else message


class _MessageStatistic(host.core.Callback, abc.ABC):
    """The base of callbacks that print a statistic of an epoch's messages, in the format of EGG's.

    Args:
        print_train: whether the statistic of the training messages is printed, too.
    """

    name: str

    def __init__(self, print_train: bool) -> None:
        self.print_train = print_train

    @abc.abstractmethod
    def _statistic(self, logs: host.core.Interaction) -> float | None:
        """The statistic; None where it is undefined."""

    def _print(self, logs: host.core.Interaction, mode: str, epoch: int) -> None:
        print(json.dumps({self.name: self._statistic(logs), "mode": mode, "epoch": epoch}), flush=True)

    def on_epoch_end(self, loss: float, logs: host.core.Interaction, epoch: int) -> None:
        if self.print_train:
            self._print(logs, "train", epoch)

    def on_validation_end(self, loss: float, logs: host.core.Interaction, epoch: int) -> None:
        self._print(logs, "test", epoch)


class MessageEntropy(_MessageStatistic):
    r"""Prints the entropy, in bits, of the messages :math:`m` of an epoch,

    .. math:: H = -\sum_m f_m \log_2 f_m,

    where :math:`f_m` is the frequency of the message among the examples. The printed line is that of EGG's callback of
    this name. The messages are symbol ids ``(B,)``, one-hot rows ``(B, V)``, bit-vectors ``(B, D)``, or sequences of
    symbol ids ``(B, L)`` or of one-hot rows ``(B, L, V)``, of which what follows the end symbol 0 does not count.

    Args:
        print_train: whether the entropy of the training messages is printed, too.

    Raises:
        ValueError: at the end of an epoch, if the game logs no messages, or relaxed ones.

    Example:
        >>> logs = host.core.Interaction.empty()
        >>> logs.message = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
        >>> MessageEntropy().on_validation_end(0.0, logs, 1)
        {"entropy": 1.5, "mode": "test", "epoch": 1}
    """

    name = "entropy"

    def __init__(self, print_train: bool = True) -> None:
        super().__init__(print_train)

    def _statistic(self, logs: host.core.Interaction) -> float:
        counts = torch.unique(_messages(logs), dim=0, return_counts=True)[1].double()
        frequencies = counts / counts.sum()
        return float((frequencies * frequencies.log2()).sum().abs())


class TopographicSimilarity(_MessageStatistic):
    """Prints the topographic similarity of inputs and messages, in the format of EGG's callback of this name.

    This is the Spearman correlation, over all pairs of examples, of the distance between the inputs and the Hamming
    distance between the messages, which for symbols is 0 or 1. The messages are those of :class:`MessageEntropy`. Of
    sequences the Hamming distance compares position by position, and EGG's callback counts edits by default: its
    similarity is another number. The correlation is undefined, and printed as ``null``, if all messages or all
    inputs are equally far apart, or if the distance of an input is undefined (as that of a zero vector under
    "cosine"). Time and memory grow with the square of the number of examples.

    Args:
        sender_input_distance: the distance between inputs, a name ("cosine", "euclidean", "hamming", ...) or a
            function of two vectors, as ``scipy.spatial.distance.pdist`` takes it.
        print_train: whether the similarity of the training epoch is printed, too.

    Raises:
        ImportError: SciPy is not installed.
        ValueError: ``sender_input_distance`` is a name that SciPy does not know; at the end of an epoch, if the game
            logs no inputs, inputs without the examples on axis 0, no messages, or relaxed ones.

    Example:
        >>> logs = host.core.Interaction.empty()
        >>> logs.sender_input = torch.tensor([[0.0], [0.1], [5.0], [5.3]])
        >>> logs.message = torch.tensor([7, 7, 2, 2])
        >>> TopographicSimilarity("euclidean").on_validation_end(0.0, logs, 1)  # doctest: +ELLIPSIS
        {"topsim": 0.828..., "mode": "test", "epoch": 1}

    Source: Brighton and Kirby, "Understanding Linguistic Evolution by Visualizing the Emergence of Topographic
    Mappings" (Artificial Life, 2006).
    """

    name = "topsim"

    def __init__(self, sender_input_distance: str | Callable = "cosine", print_train: bool = False) -> None:
        try:
            from scipy.spatial.distance import pdist
        except ImportError as error:
            raise ImportError('TopographicSimilarity needs SciPy: pip install "egg_sparse[zoo]"') from error
        if isinstance(sender_input_distance, str):
            try:
                pdist(np.arange(3.0)[:, None], sender_input_distance)
            except ValueError:
                raise ValueError(
                    "sender_input_distance must be a distance of scipy.spatial.distance.pdist, "
                    f"got {sender_input_distance!r}"
                ) from None
        super().__init__(print_train)
        self.sender_input_distance = sender_input_distance

    def _statistic(self, logs: host.core.Interaction) -> float | None:
        from scipy.spatial.distance import pdist
        from scipy.stats import spearmanr

        inputs, messages = _logged(logs, "sender_input"), _messages(logs)
        if len(inputs) != len(messages):
            raise ValueError(
                f"sender_input must have its examples on axis 0: it has length {len(inputs)} there, for "
                f"{len(messages)} messages"
            )
        between_inputs = pdist(inputs.double().cpu(), self.sender_input_distance)
        between_messages = pdist(messages.double().cpu(), "hamming")
        if len(between_inputs) < 2 or np.ptp(between_inputs) == 0 or np.ptp(between_messages) == 0:
            return None
        topsim = float(spearmanr(between_inputs, between_messages).statistic)
        return None if math.isnan(topsim) else topsim


class TrainingProgress(host.core.Callback):
    """A progress bar of the whole training, with the last metrics of the validation, or of the training without one.

    Args:
        n_epochs: the last epoch of the training.
        batches_per_epoch: the number of training batches per epoch.
        metrics: the names of the metrics to show, of which those that are not reported are left out.
    """

    def __init__(
        self,
        n_epochs: int,
        batches_per_epoch: int,
        metrics: tuple[str, ...] = ("acc", "loss", "support", "sender_entropy"),
    ) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.metrics = metrics
        self.batches_per_epoch = batches_per_epoch
        self.progress = Progress(
            TextColumn("epoch"),
            TextColumn("[bold]{task.fields[epoch]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[shown]}"),
        )
        self.task = self.progress.add_task("", total=n_epochs * batches_per_epoch, epoch="0", shown="")

    def _show(self, phase: str, loss: float, logs: host.core.Interaction) -> None:
        means = mean_metrics(loss, logs)
        shown = "  ".join(f"{name} {means[name]:.3f}" for name in self.metrics if name in means)
        self.progress.update(self.task, shown=f"[dim]{phase}[/dim] {shown}")

    def on_train_begin(self, trainer_instance: host.core.Trainer) -> None:
        super().on_train_begin(trainer_instance)
        self.progress.update(self.task, completed=trainer_instance.start_epoch * self.batches_per_epoch)
        self.progress.start()

    def on_epoch_begin(self, epoch: int) -> None:
        self.progress.update(self.task, epoch=str(epoch))

    def on_batch_end(self, logs: host.core.Interaction, loss: float, batch_id: int, is_training: bool = True) -> None:
        if is_training:
            self.progress.advance(self.task)

    def on_epoch_end(self, loss: float, logs: host.core.Interaction, epoch: int) -> None:
        if self.trainer.validation_data is None or self.trainer.validation_freq <= 0:
            self._show("train", loss, logs)

    def on_validation_end(self, loss: float, logs: host.core.Interaction, epoch: int) -> None:
        self._show("validation", loss, logs)

    def on_train_end(self) -> None:
        self.stop()

    def stop(self) -> None:
        """Releases the terminal, at the end of the training or after an exception."""
        self.progress.stop()


class EpochSetter(host.core.Callback):
    """Calls a data loader's ``set_epoch`` before every epoch, so that a resumed run sees the same batches.

    Args:
        loader: the data loader.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def on_epoch_begin(self, epoch: int) -> None:
        self.loader.set_epoch(epoch)


class EpochSeeds(host.core.Callback):
    """Seeds all random number generators before every epoch, from the run's seed and the epoch's number.

    A run that is resumed from an epoch's checkpoint then uses the same random numbers as an uninterrupted one.

    Args:
        seed: the run's random seed.
        rank: the number of this process, which gives every process other random numbers.
    """

    def __init__(self, seed: int, rank: int = 0) -> None:
        self.seed = seed
        self.rank = rank

    def on_epoch_begin(self, epoch: int) -> None:
        torch_seed, numpy_seed, python_seed = np.random.SeedSequence([self.seed, epoch, self.rank]).generate_state(3)
        torch.manual_seed(int(torch_seed))
        np.random.seed(int(numpy_seed))
        random.seed(int(python_seed))


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
