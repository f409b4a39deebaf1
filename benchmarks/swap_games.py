"""Success of EGG's estimators and of the exact sum, at equal steps and equal settings.

python benchmarks/swap_games.py [--games guess,classes] [--seeds 1,2,3] [--quick] [--out FILE.json]

The games are those of examples/, at their default settings, and five smaller ones. Each is built once as EGG's users
build it, with Gumbel-Softmax or the score function; the exact columns are ``marginalize(game)`` of it. No setting is
chosen per game or per method, but what a column says. The data is embedded: scikit-learn's digits, bits, and objects.
"""

import argparse
import importlib
import json
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from egg_sparse import host, marginalize
from egg_sparse.callbacks import SupportSchedule
from egg_sparse.zoo.signal_game.archs import MLPSender
from egg_sparse.zoo.signal_game.archs import Receiver as SignalReceiver

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # where examples/ lies

core = host.core
_digits = load_digits()
_order = torch.randperm(len(_digits.data), generator=torch.Generator().manual_seed(0))
IMAGES, CLASSES = torch.tensor(_digits.data / 16).float()[_order], torch.tensor(_digits.target)[_order]
N_TRAINING = 1400


class MLP(nn.Sequential):
    """Two layers. A sender ignores all but its first argument."""

    def __init__(self, n_inputs: int, hidden: int, n_outputs: int) -> None:
        super().__init__(nn.Linear(n_inputs, hidden), nn.LeakyReLU(), nn.Linear(hidden, n_outputs))

    def forward(self, x: torch.Tensor, *_: object) -> torch.Tensor:
        return super().forward(x)


class Reader(nn.Module):
    """Reads one-hot messages or symbol ids, and what the receiver sees beside them."""

    def __init__(self, vocab_size: int, n_seen: int, hidden: int, n_outputs: int, one_hot: bool) -> None:
        super().__init__()
        self.read = nn.Linear(vocab_size, hidden) if one_hot else nn.Embedding(vocab_size, hidden)
        self.output = MLP(hidden + n_seen, hidden, n_outputs)

    def forward(self, message: torch.Tensor, seen: torch.Tensor | None = None, aux: object = None) -> torch.Tensor:
        read = self.read(message)
        return self.output(read if seen is None else torch.cat((read, seen), -1))


class Guess:
    """The sender sees four of eight bits, the receiver the others; the receiver guesses all. Success: all are right."""

    vocab_size, lr, steps, batch_size = 64, 0.01, 2000, 32
    bits = (torch.arange(256)[:, None] >> torch.arange(8) & 1).float()

    def agents(self, one_hot: bool) -> tuple[nn.Module, nn.Module]:
        return MLP(8, 20, self.vocab_size), Reader(self.vocab_size, 8, 20, 8, one_hot)

    def batch(self, test: bool) -> tuple[torch.Tensor, ...]:
        bits = self.bits if test else self.bits[torch.randint(256, (self.batch_size,))]
        first = torch.arange(8) < 4
        return bits * first, bits, bits * ~first

    @staticmethod
    def loss(_input, _message, _seen, output, bits, _aux):  # type: ignore[no-untyped-def]
        right = ((output > 0) == (bits > 0)).all(1).float()
        return F.binary_cross_entropy_with_logits(output, bits, reduction="none").mean(1), {"success": right}


class Classes:
    """The sender sees a digit, the receiver names its class."""

    vocab_size, lr, steps, batch_size = 32, 0.001, 1500, 32

    def agents(self, one_hot: bool) -> tuple[nn.Module, nn.Module]:
        return MLP(64, 100, self.vocab_size), Reader(self.vocab_size, 0, 50, 10, one_hot)

    def batch(self, test: bool) -> tuple[torch.Tensor, ...]:
        rows = torch.arange(N_TRAINING, len(IMAGES)) if test else torch.randint(N_TRAINING, (self.batch_size,))
        return IMAGES[rows], CLASSES[rows]

    @staticmethod
    def loss(_input, _message, _seen, output, classes, _aux):  # type: ignore[no-untyped-def]
        right = (output.argmax(1) == classes).float()
        return F.cross_entropy(output, classes, reduction="none"), {"success": right}


class Autoencoder(Classes):
    """The receiver draws the digit. Success: the negative cross-entropy per pixel, in nats."""

    lr = 0.01

    def agents(self, one_hot: bool) -> tuple[nn.Module, nn.Module]:
        return MLP(64, 100, self.vocab_size), Reader(self.vocab_size, 0, 100, 64, one_hot)

    @staticmethod
    def loss(images, _message, _seen, output, _classes, _aux):  # type: ignore[no-untyped-def]
        loss = F.binary_cross_entropy_with_logits(output, images, reduction="none").mean(1)
        return loss, {"success": -loss.detach()}


class Objects(Classes):
    """One hundred objects, as many symbols."""

    vocab_size, lr, steps = 100, 0.01, 3000

    def agents(self, one_hot: bool) -> tuple[nn.Module, nn.Module]:
        return MLP(100, 50, self.vocab_size), Reader(self.vocab_size, 0, 50, 100, one_hot)

    def batch(self, test: bool) -> tuple[torch.Tensor, ...]:
        objects = torch.arange(100) if test else torch.randint(100, (self.batch_size,))
        return F.one_hot(objects, 100).float(), objects


class Signal:
    """The zoo's signal game on digits: the receiver finds the target among 16 candidates."""

    vocab_size, lr, steps, batch_size, n_candidates = 256, 0.005, 2000, 64, 16
    images = (IMAGES - IMAGES[:N_TRAINING].mean()) / IMAGES[:N_TRAINING].std()

    def agents(self, one_hot: bool) -> tuple[nn.Module, nn.Module]:
        sender = MLPSender(n_features=64, vocab_size=self.vocab_size, hidden_size=128, temperature=1.0)
        return sender, SignalReceiver(64, 64, self.vocab_size, one_hot, symbol_std=(3 * self.vocab_size) ** -0.5)

    def batch(self, test: bool) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(0) if test else None
        size, images = (1024, self.images[N_TRAINING:]) if test else (self.batch_size, self.images[:N_TRAINING])
        chosen = torch.rand(size, len(images), generator=generator).topk(self.n_candidates, 1).indices.t()
        order = torch.rand(self.n_candidates, size, generator=generator).argsort(0)
        return images[chosen], (order == 0).long().argmax(0), images[chosen.gather(0, order)]

    @staticmethod
    def loss(_input, _message, _seen, output, labels, _aux):  # type: ignore[no-untyped-def]
        right = (output.argmax(1) == labels).float()
        return F.nll_loss(output, labels, reduction="none"), {"success": right}


SMALL: dict[str, Any] = {
    "guess": Guess,
    "classes": Classes,
    "autoencoder": Autoencoder,
    "objects": Objects,
    "signal": Signal,
}


@dataclass
class Setup:
    """A game as one run plays it.

    Args:
        agents: a function from whether messages are one-hot to sender and receiver; of a population, to lists of them.
        loss: the game's loss.
        train: the training batches of an epoch.
        validation: the batches that are tested with.
        lr: Adam's learning rate.
        epochs: how many epochs are trained for.
        entropy_coeffs: those of sender and receiver in the score-function game.
        temperature: Gumbel-Softmax's, at first.
        annealing: the factor per epoch and the minimum of EGG's TemperatureUpdater; None without it.
        acts: whether the receiver acts, so that its loss has no gradient.
    """

    agents: Callable[[bool], tuple[Any, Any]]
    loss: Callable
    train: Iterable
    validation: Iterable
    lr: float
    epochs: int
    entropy_coeffs: tuple[float, float] = (0.1, 0.0)
    temperature: float = 1.0
    annealing: tuple[float, float] | None = None
    acts: bool = False


class Batches:
    """Batches of a small game, drawn anew in every epoch."""

    def __init__(self, game: Any, n_batches: int) -> None:
        self.game, self.n_batches = game, n_batches

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self):  # type: ignore[no-untyped-def]
        return (self.game.batch(test=False) for _ in range(self.n_batches))


def small(name: str) -> Callable[[int, float], Setup]:
    def build(seed: int, part: float) -> Setup:
        core.init(params=[f"--random_seed={seed}", "--n_epochs=1", f"--lr={SMALL[name].lr}", "--no_cuda"])
        game: Any = SMALL[name]()
        batches = Batches(game, max(10, round(game.steps * part)))
        return Setup(game.agents, game.loss, batches, [game.batch(test=True)], game.lr, 1)

    return build


def example(name: str, mode: str = "", loss: str = "loss", **settings: Any) -> Callable[[int, float], Setup]:
    """A game of examples/, in one of its modes."""

    def build(seed: int, part: float) -> Setup:
        agents = importlib.import_module(f"examples.{name}.agents")
        parser = argparse.ArgumentParser()
        agents.add_options(parser)
        params = [f"--mode={mode}"] if mode else []
        params = agents.settings(params) if hasattr(agents, "settings") else [*agents.SETTINGS, *params]
        opts = core.init(parser, [*params, f"--random_seed={seed}", "--no_cuda"])
        opts.n_epochs = max(1, round(opts.n_epochs * part))
        train, validation = agents.build_data(opts)
        return Setup(
            lambda one_hot: agents.build_agents(opts),
            getattr(agents, loss),
            train,
            validation,
            opts.lr,
            opts.n_epochs,
            **settings,
        )

    return build


GAMES: dict[str, Callable[[int, float], Setup]] = {
    "guess_number gs": example("guess_number", "gs", "differentiable_loss", entropy_coeffs=(0.01, 0)),
    "guess_number rf": example("guess_number", "rf", "differentiable_loss", entropy_coeffs=(0.01, 0)),
    "guess_number non_diff": example(
        "guess_number", "non_diff", "success_loss", entropy_coeffs=(0.01, 0.01), acts=True
    ),
    "mnist_autoenc": example("mnist_autoenc", annealing=(0.75, 0.01)),
    "mnist_classification": example("mnist_classification"),
    "mnist_overfit": example("mnist_overfit"),
    "signal_game gs": example(
        "signal_game", "gs", "differentiable_loss", entropy_coeffs=(0.01, 0), annealing=(0.9, 0.1)
    ),
    "signal_game rf": example("signal_game", "rf", "success_loss", entropy_coeffs=(0.01, 0.01), acts=True),
    "simple_autoenc": example("simple_autoenc", annealing=(0.9, 0.1)),
    "population": example("population", temperature=5.0),
    **{name: small(name) for name in SMALL},
}


class WithSuccess:
    """A loss that reports ``success`` as well: the accuracy, or minus the loss where there is none."""

    def __init__(self, loss: Callable) -> None:
        self.loss = loss

    def __call__(self, *arguments: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, reported = self.loss(*arguments)
        return loss, {"success": reported.get("acc", -loss.detach()), **reported}


class WithLogProbabilities(nn.Module):
    def __init__(self, sender: nn.Module) -> None:
        super().__init__()
        self.sender = sender

    def forward(self, *arguments: Any) -> torch.Tensor:
        return self.sender(*arguments).log_softmax(1)


def relaxed(setup: Setup, straight_through: bool = False) -> nn.Module | None:
    """EGG's Gumbel-Softmax game; None for losses without a gradient."""
    if setup.acts:
        return None
    options: dict[str, Any] = {"temperature": setup.temperature, "straight_through": straight_through}
    sender, receiver = setup.agents(True)
    if isinstance(sender, list):
        communication = importlib.import_module("examples.population.communication").CommunicationGS()
        senders = [core.GumbelSoftmaxWrapper(agent, **options) for agent in sender]
        return core.PopulationGame(
            communication, core.UniformAgentSampler(senders, receiver, [WithSuccess(setup.loss)])
        )
    return core.SymbolGameGS(core.GumbelSoftmaxWrapper(sender, **options), receiver, WithSuccess(setup.loss))


def reinforced(setup: Setup) -> nn.Module | None:
    """EGG's score-function game; None for populations, for which EGG has one of several symbols alone."""
    sender, receiver = setup.agents(False)
    if isinstance(sender, list):
        return None
    if not setup.acts:
        receiver = core.ReinforceDeterministicWrapper(receiver)
    elif type(receiver.agent).__name__ != "ActingReceiver":
        receiver = core.ReinforceWrapper(receiver)
    sender = core.ReinforceWrapper(WithLogProbabilities(sender))
    return core.SymbolGameReinforce(sender, receiver, WithSuccess(setup.loss), *setup.entropy_coeffs)


def exact(setup: Setup, **options: Any) -> nn.Module:
    return marginalize(relaxed(setup) or reinforced(setup), **options)


COLUMNS: dict[str, Callable[[Setup], nn.Module | None]] = {
    "Gumbel-Softmax": relaxed,
    "straight-through": lambda setup: relaxed(setup, straight_through=True),
    "REINFORCE": reinforced,
    "exact, T = 1": lambda setup: exact(setup, temperature=1.0),
    "exact, T = 10": lambda setup: exact(setup, temperature=10.0),
    "exact": exact,
    "exact, schedule": exact,
    "exact, entmax15": lambda setup: exact(setup, normalizer="entmax15"),
}


class MeanOf(core.Callback):  # type: ignore[name-defined]
    """The mean of a metric over the training, 1 where it is not reported."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.values: list[float] = []

    def on_batch_end(self, logs, loss, batch_id, is_training=True):  # type: ignore[no-untyped-def]
        if is_training and self.metric in logs.aux:
            self.values.append(float(logs.aux[self.metric].mean()))


def senders_of(game: Any) -> list[Any]:
    return list(game.agents_loss_sampler.senders) if hasattr(game, "agents_loss_sampler") else [game.sender]


def play(name: str, column: str, seed: int, part: float) -> dict[str, float] | None:
    """Trains one game, and tests it with the most probable messages. None where EGG has no such game."""
    setup = GAMES[name](seed, part)
    game: Any = COLUMNS[column](setup)
    if game is None:
        return None
    support, calls = MeanOf("support"), MeanOf("receiver_calls")
    callbacks: list[Any] = [support, calls]
    steps = len(setup.train) * setup.epochs  # type: ignore[arg-type]
    senders = senders_of(game)
    if column == "exact, schedule":
        callbacks += [SupportSchedule(sender, over=0.4 * steps / len(senders)) for sender in senders]
    if setup.annealing and column in ("Gumbel-Softmax", "straight-through"):
        decay, minimum = setup.annealing
        callbacks.append(core.TemperatureUpdater(game.sender, decay=decay, minimum=minimum))
    core.get_opts().n_epochs = setup.epochs
    optimizer = torch.optim.Adam(game.parameters(), lr=setup.lr)
    began = time.perf_counter()
    core.Trainer(game, optimizer, setup.train, callbacks=callbacks).train(setup.epochs)
    seconds = time.perf_counter() - began
    game.eval()
    with torch.no_grad():
        successes = torch.cat([game(*batch)[1].aux["success"] for batch in setup.validation])
    return {
        "success": float(successes.mean()),
        "support": statistics.mean(support.values) if support.values else float("nan"),
        "receiver_calls": statistics.mean(calls.values) if calls.values else 1.0,
        "seconds": seconds,
        "steps": steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", default=",".join(GAMES))
    parser.add_argument("--columns", default=";".join(COLUMNS), help="separated by semicolons")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--part", type=float, default=1.0, help="share of the steps, to see short trainings")
    parser.add_argument("--quick", action="store_true", help="as few steps as possible, to see that all run")
    parser.add_argument("--out", help="a JSON file of all runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.distributions.Distribution.set_default_validate_args(False)  # see examples/guess_number/before.py
    runs: list[dict[str, Any]] = []
    for name in options.games.split(","):
        for column in options.columns.split(";"):
            found = [
                play(name, column, int(seed), 0.0 if options.quick else options.part)
                for seed in options.seeds.split(",")
            ]
            played = [run for run in found if run is not None]
            if not played:
                continue
            seeds = map(int, options.seeds.split(","))
            runs += [
                {"game": name, "column": column, "seed": seed, **run} for seed, run in zip(seeds, played, strict=True)
            ]
            successes = [run["success"] for run in played]
            spread = statistics.stdev(successes) if len(successes) > 1 else 0.0
            means = {key: statistics.mean(run[key] for run in played) for key in played[0]}
            print(
                f"| {name} | {means['steps']:.0f} | {column} | {means['success']:.3f} ± {spread:.3f} "
                f"| {means['support']:.1f} | {means['receiver_calls']:.1f} | {means['seconds']:.0f} |",
                flush=True,
            )
            if options.out:
                about = {"host": host.describe(), "torch": torch.__version__, "machine": platform.processor()}
                # the support of EGG's games is NaN, which JSON does not have
                valid: list[dict[str, Any]] = [{k: None if v != v else v for k, v in run.items()} for run in runs]
                with open(options.out, "w", encoding="utf-8") as file:
                    json.dump({"about": about, "runs": valid}, file, indent=1)


if __name__ == "__main__":
    main()
