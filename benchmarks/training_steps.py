"""Time of a training step of every entry of the zoo, as a ratio to plain PyTorch loops, and where that time goes.

Each entry is trained by ``egg_sparse.zoo.training.train``: with EGG's Trainer or the stand-in's, all callbacks, the
check of every loss and gradient, and the Interactions. After every epoch the plain loops train the same agents, from
the weights and at the temperature that they had before it, on the same batches from the same loader, with the same
mathematics: entmax's sparsemax, one call of the receiver for all (example, message) pairs of non-zero probability,
PyTorch's default Adam. "tuned" is the same loop with the fused Adam, and in the semi-supervised VAE with one call of
each agent for both batches. Times are CPU time of one thread, and with a GPU those of a clock. The ratio is the median
of the epochs' ratios.

The entries: the signal game on scikit-learn's digits with default options, and at the paper's size (4,096 features, the
paper's sender); the semi-supervised VAE at the paper's size (784 pixels), sure of most classes; the bit-vector VAE on
the digits in both modes that sum. The second table shares one epoch's time out among the parts of a step.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import entmax
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.measure import Settings, Table, synchronize
from egg_sparse import host, mappings
from egg_sparse.zoo import faults, training
from egg_sparse.zoo.bit_vector_vae import data as bit_vector_data
from egg_sparse.zoo.bit_vector_vae import train as bit_vector_vae
from egg_sparse.zoo.images import GreyImages
from egg_sparse.zoo.semi_supervised_vae import data as semi_supervised_data
from egg_sparse.zoo.semi_supervised_vae import train as semi_supervised_vae
from egg_sparse.zoo.semi_supervised_vae.archs import negative_elbo
from egg_sparse.zoo.signal_game import data as signal_data
from egg_sparse.zoo.signal_game import train as signal_game

FEATURES, PIXELS, CLASSES = 4096, 784, 10


Loop = Callable[[Any, float], Callable[..., torch.Tensor]]
"""From a game, whose agents play, and the temperature to the function from a batch to its loss."""


@dataclass
class Entry:
    """An experiment, ready to be trained.

    Attributes:
        opts: all options.
        game: the game that the Trainer is given.
        core_game: the game within, which plays messages.
        loader: the training batches.
        callbacks: the callbacks of the experiment.
        plain: the plain loop.
        tuned: the tuned loop.
    """

    opts: argparse.Namespace
    game: Any
    core_game: Any
    loader: Any
    callbacks: list[Any]
    plain: Loop
    tuned: Loop


def now(device: torch.device) -> float:
    """The time in seconds: CPU time, which other processes change little, or with a GPU that of a clock."""
    synchronize(device)
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def entropy(probs: torch.Tensor) -> torch.Tensor:
    """The entropy of all distributions together, from their probabilities above 0."""
    return -(probs * probs.log()).sum()


def plain_signal_game(opts: argparse.Namespace) -> Loop:
    def of_agents(game: Any, temperature: float) -> Callable[..., torch.Tensor]:
        sender, receiver = game.sender.agent, game.receiver

        def loss(images: torch.Tensor, labels: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
            probs = entmax.sparsemax(sender(images) / temperature, dim=-1)
            examples, messages = probs.nonzero(as_tuple=True)
            of_pairs = probs[examples, messages]
            embedded = receiver.embed(candidates).transpose(0, 1)[examples]
            scores = torch.bmm(embedded, receiver.read(messages).unsqueeze(-1)).squeeze(-1)
            losses = F.cross_entropy(scores, labels[examples], reduction="none")
            return ((of_pairs * losses).sum() - opts.entropy_coeff * entropy(of_pairs)) / len(labels)

        return loss

    return of_agents


def signal_entry(images: Any, device: torch.device, *params: str) -> Entry:
    opts = signal_game.parse_options(params_on(device, *params))
    loader = signal_game.build_loaders(opts, images)["train"]
    game: Any = signal_game.build_game(opts, *signal_game.build_agents(opts, images.n_features))
    callbacks = signal_game.METHODS[opts.mode].callbacks(opts, game.sender, len(loader))
    plain = plain_signal_game(opts)
    return Entry(opts, game, game, loader, callbacks, plain, plain)


def digits_signal_game(device: torch.device, epochs: int, steps: int) -> Entry:
    images = signal_data.load("digits", None, "data", False)
    return signal_entry(images, device, f"--n_epochs={epochs}", f"--batches_per_epoch={steps}")


def papers_signal_game(device: torch.device, epochs: int, steps: int) -> Entry:
    random = np.random.default_rng(0)
    features = random.standard_normal((2048, FEATURES), dtype=np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    parts = [signal_data.Images.from_labels(part, np.arange(len(part))) for part in np.split(features, [1024, 1536])]
    sizes = ("--sender=paper", "--embedding_size=256", "--hidden_size=512")
    length = (f"--n_epochs={epochs}", f"--batches_per_epoch={steps}")
    return signal_entry(signal_data.SignalData(*parts), device, *sizes, *length)


def grey_images(n: int) -> GreyImages:
    """Grey images as bright as MNIST's."""
    random = np.random.default_rng(n)
    pixels = (random.random((n, PIXELS)) < 0.19) * random.integers(60, 256, (n, PIXELS))
    return GreyImages(pixels.astype(np.uint8), random.integers(0, CLASSES, n), 256)


def semi_supervised_entry(device: torch.device, epochs: int, steps: int) -> Entry:
    # a learning rate that keeps the sender sure
    opts = semi_supervised_vae.parse_options(params_on(device, f"--n_epochs={epochs}", "--lr=1e-9"))
    n = steps * opts.batch_size
    split = semi_supervised_data.Split(*(grey_images(size) for size in (n // 9, n, 64, 64)))
    loader = semi_supervised_vae.build_loaders(opts, split)["train"]
    game: Any = semi_supervised_vae.build_game(opts, split)
    with torch.no_grad():
        game.classifier.layers[-1].weight.mul_(1000)  # sure of a class
    classification_loss = entmax.SparsemaxLoss(reduction="none")

    def total(
        probs: torch.Tensor, elbos: torch.Tensor, of_labeled: torch.Tensor, of_classes: torch.Tensor
    ) -> torch.Tensor:
        unlabeled = ((probs * elbos).sum() - opts.entropy_coeff * entropy(probs)) / len(of_labeled)
        return of_labeled.mean() + of_classes.mean() + game.unlabeled_weight * unlabeled

    def plain(copied: Any, temperature: float) -> Callable[..., torch.Tensor]:
        classifier, vae = copied.classifier, copied.vae

        def loss(images: torch.Tensor, _classes: Any, _images: Any, labeled: dict[str, torch.Tensor]) -> torch.Tensor:
            probs = entmax.sparsemax(classifier(images) / temperature, dim=-1)
            examples, messages = probs.nonzero(as_tuple=True)
            played = images[examples]
            elbos = negative_elbo(vae(messages, played), played, vae.latent_dim)
            own, classes = labeled["images"], labeled["classes"]
            of_labeled = negative_elbo(vae(classes, own), own, vae.latent_dim)
            return total(probs[examples, messages], elbos, of_labeled, classification_loss(classifier(own), classes))

        return loss

    def tuned(copied: Any, temperature: float) -> Callable[..., torch.Tensor]:
        classifier, vae = copied.classifier, copied.vae

        def loss(images: torch.Tensor, _classes: Any, _images: Any, labeled: dict[str, torch.Tensor]) -> torch.Tensor:
            own, classes = labeled["images"], labeled["classes"]
            scores, of_labeled = classifier(torch.cat((images, own))).split(len(images))
            probs = entmax.sparsemax(scores / temperature, dim=-1)
            examples, messages = probs.nonzero(as_tuple=True)
            played = torch.cat((images[examples], own))
            elbos = negative_elbo(vae(torch.cat((messages, classes)), played), played, vae.latent_dim)
            of_pairs, of_own = elbos.split((len(examples), len(own)))
            return total(probs[examples, messages], of_pairs, of_own, classification_loss(of_labeled, classes))

        return loss

    callbacks = semi_supervised_vae.METHODS[opts.mode].callbacks(opts, game.game.sender, len(loader))
    return Entry(opts, game, game.game, loader, callbacks, plain, tuned)


def bit_vector_entry(mode: str, device: torch.device, epochs: int, steps: int) -> Entry:
    opts = bit_vector_vae.parse_options(params_on(device, f"--mode={mode}", f"--n_epochs={epochs}"))
    images = bit_vector_data.load("digits", "").train.take(np.arange(steps * opts.batch_size) % 1000)
    loader = bit_vector_data.ImageLoader(images, opts.batch_size, opts.random_seed)
    vae = bit_vector_vae.build_vae(opts, images.pixels.shape[1], images.levels)

    def plain(copied: Any, temperature: float) -> Callable[..., torch.Tensor]:
        inference, generator, distortion = copied.inference, copied.generator, copied.game.loss

        def loss(pixels: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
            scores = inference(pixels) / temperature
            if mode == "topksparse":
                sent = mappings.topk_sparsemax(scores, opts.topksparse)
            else:
                sent = mappings.sparsemap_bit_vectors(scores)
            rows, examples = sent.mask.nonzero(as_tuple=True)
            probs, features = sent.probs[rows, examples], generator(sent.messages[rows, examples])
            losses, _ = distortion(None, None, None, features, levels[examples], None)
            return ((probs * losses).sum() - opts.entropy_coeff * entropy(probs)) / len(pixels)

        return loss

    callbacks = bit_vector_vae.build_callbacks(opts, vae, len(loader))
    return Entry(opts, vae, vae.game, loader, callbacks, plain, plain)


def params_on(device: torch.device, *params: str) -> list[str]:
    common = ["--random_seed=1", "--validation_freq=0", "--checkpoint_freq=0"]
    return [*common, *([] if device.type == "cuda" else ["--no_cuda"]), *params]


ENTRIES: dict[str, tuple[Callable[[torch.device, int, int], Entry], int]] = {
    "signal_game, digits": (digits_signal_game, 25),
    "signal_game, the paper's size": (papers_signal_game, 4),
    "semi_supervised_vae": (semi_supervised_entry, 25),
    "bit_vector_vae, sparsemap": (partial(bit_vector_entry, "sparsemap"), 25),
    "bit_vector_vae, topksparse": (partial(bit_vector_entry, "topksparse"), 25),
}
"""How an entry is built, from the device and the numbers of epochs and of steps per epoch; and that last number."""


class Turns(host.core.Callback):
    """Times every epoch of the Trainer, and after it that of the plain loops, from the same weights."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.device = entry.opts.device
        self.games = {name: copy.deepcopy(entry.game).to(self.device) for name in ("plain", "tuned")}
        self.optimizers = {
            name: torch.optim.Adam(game.parameters(), lr=entry.opts.lr, fused=name == "tuned" or None)
            for name, game in self.games.items()
        }
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.supports: list[float] = []

    def on_epoch_begin(self, epoch: int) -> None:
        self.epoch = epoch
        self.state = copy.deepcopy(self.entry.game.state_dict())
        self.temperature = self.entry.core_game.sender.temperature
        self.started = now(self.device)

    def on_epoch_end(self, loss: float, logs: Any, epoch: int) -> None:
        self.seconds["zoo"].append(now(self.device) - self.started)
        self.supports.append(float(logs.aux["support"].mean()))
        for name, game in self.games.items():
            game.load_state_dict(self.state)
            step = getattr(self.entry, name)(game, self.temperature)
            self.seconds[name].append(self.plain_epoch(step, self.optimizers[name]))

    def plain_epoch(self, loss_of: Callable[..., torch.Tensor], optimizer: torch.optim.Optimizer) -> float:
        self.entry.loader.set_epoch(self.epoch)
        started = now(self.device)
        for batch in self.entry.loader:
            on_device = host.core.batch.Batch(*batch).to(self.device)
            optimizer.zero_grad()
            loss = loss_of(*(part for part in on_device if part is not None))
            loss.backward()
            optimizer.step()
        return now(self.device) - started


class Clock:
    """Shares time out among parts; a part that runs within another interrupts it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.running: list[str] = []
        self.since = 0.0
        self.on = False

    def switch(self) -> None:
        time_now = now(self.device)
        if self.running:
            self.seconds[self.running[-1]] += time_now - self.since
        self.since = time_now

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        if not self.on:
            yield
            return
        self.switch()
        self.running.append(name)
        try:
            yield
        finally:
            self.switch()
            self.running.pop()

    def time(self, owner: Any, method: str, name: str) -> None:
        """Counts the calls of an object's or a class's method as a part."""
        function = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        setattr(owner, method, timed)


class TimedLoader:
    """A loader whose batches are counted as a part."""

    def __init__(self, loader: Any, clock: Clock) -> None:
        self.loader = loader
        self.clock = clock

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        self.loader.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        while True:
            with self.clock.part("data"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


class Parts(host.core.Callback):
    """Shares the time of all epochs but the first out among the parts of a step."""

    PARTS = (
        *("data", "sender", "mapping", "support control", "receiver and loss", "expected loss", "backward"),
        *("checks of gradients", "optimizer", "rest"),
    )

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.clock = Clock(entry.opts.device)
        game, control = entry.core_game, entry.core_game.sender.control
        self.clock.time(game.sender.agent, "forward", "sender")
        self.clock.time(game.sender, "forward", "mapping")
        if control is not None:
            for method in ("observe", "follow", "entropy_coefficient"):
                self.clock.time(control, method, "support control")
        self.clock.time(game, "_play", "receiver and loss")
        self.clock.time(entry.game, "forward", "expected loss")

    def on_train_begin(self, trainer_instance: Any) -> None:
        super().on_train_begin(trainer_instance)
        for callback in trainer_instance.callbacks:
            if callback is not self:
                self.clock.time(callback, "on_batch_end", "rest")
        optimizer = trainer_instance.optimizer
        self.clock.time(optimizer, "step", "optimizer")
        self.clock.time(optimizer, "zero_grad", "optimizer")

    def on_epoch_begin(self, epoch: int) -> None:
        self.clock.on = epoch > 1
        self.epoch_rest = self.clock.part("rest")
        self.epoch_rest.__enter__()

    def on_epoch_end(self, loss: float, logs: Any, epoch: int) -> None:
        self.epoch_rest.__exit__(None, None, None)


@contextlib.contextmanager
def timed_classes(clock: Clock) -> Iterator[None]:
    """Counts the backward pass, the moving of batches and FaultGuard's check as parts."""
    places = [(torch.Tensor, "backward"), (host.core.batch.Batch, "to"), (faults.FaultGuard, "_check")]
    kept = [getattr(owner, name) for owner, name in places]
    for (owner, name), part in zip(places, ("backward", "data", "checks of gradients"), strict=True):
        clock.time(owner, name, part)
    try:
        yield
    finally:
        for (owner, name), function in zip(places, kept, strict=True):
            setattr(owner, name, function)


def train(entry: Entry, callback: Any, loader: Any) -> None:
    """Trains an entry in a folder of its own, silently."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        entry.opts.out = f"{folder}/run"
        callbacks = [*entry.callbacks, callback]
        training.train(entry.opts, entry.game, entry.core_game.sender, loader, [], "benchmark", callbacks)


def tables(settings: Settings) -> list[Table]:
    steps = Table("training_steps", "A training step of the zoo, beside plain loops over the same agents and batches")
    parts = Table("training_step_parts", "The parts of a training step of the zoo, in milliseconds")
    epochs = settings.repeated(20) + 1
    for name, (build, batches) in ENTRIES.items():
        batches = 2 if settings.quick else batches
        entry = build(settings.device, epochs, batches)
        turns = Turns(entry)
        train(entry, turns, entry.loader)
        rows = {loop: seconds[1:] for loop, seconds in turns.seconds.items()}

        def ratio(baseline: str, rows: dict[str, list[float]] = rows) -> float:
            return statistics.median(zoo / other for zoo, other in zip(rows["zoo"], rows[baseline], strict=True))

        ms = {loop: 1e3 * statistics.median(seconds) / len(entry.loader) for loop, seconds in rows.items()}
        steps.rows.append(
            {
                "entry": name,
                "support": statistics.mean(turns.supports[1:]),
                "plain loop, ms": ms["plain"],
                "tuned loop, ms": ms["tuned"],
                "zoo, ms": ms["zoo"],
                "zoo / plain": ratio("plain"),
                "zoo / tuned": ratio("tuned"),
            }
        )
        entry = build(settings.device, epochs, batches)
        breakdown = Parts(entry)
        with timed_classes(breakdown.clock):
            train(entry, breakdown, TimedLoader(entry.loader, breakdown.clock))
        n_steps = (epochs - 1) * len(entry.loader)
        parts.rows.append(
            {"entry": name, **{part: 1e3 * breakdown.clock.seconds[part] / n_steps for part in Parts.PARTS}}
        )
    return [steps, parts]
