"""Success of EGG's estimators and of the exact sum in five small games, at equal steps and equal settings.

python benchmarks/swap_games.py [--games guess,classes] [--seeds 1,2,3] [--quick] [--out FILE.json]

Each game is built once as EGG's users build it, with Gumbel-Softmax or the score function; the exact columns are
``marginalize(game)`` of the former. No setting is chosen per game or per method, but what a column says. The data
is embedded: scikit-learn's digits, bits, and objects.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from egg_sparse import host, marginalize
from egg_sparse.callbacks import SupportSchedule
from egg_sparse.zoo.signal_game.archs import MLPSender
from egg_sparse.zoo.signal_game.archs import Receiver as SignalReceiver

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
        sender = MLPSender(n_features=64, vocab_size=self.vocab_size, hidden_size=128, tau_s=1.0)
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


GAMES = {"guess": Guess, "classes": Classes, "autoencoder": Autoencoder, "objects": Objects, "signal": Signal}


def relaxed(game: object, straight_through: bool = False) -> nn.Module:
    sender, receiver = game.agents(one_hot=True)  # type: ignore[attr-defined]
    wrapped = core.GumbelSoftmaxWrapper(sender, straight_through=straight_through)
    return core.SymbolGameGS(wrapped, receiver, game.loss)  # type: ignore[attr-defined]


def reinforced(game: object) -> nn.Module:
    sender, receiver = game.agents(one_hot=False)  # type: ignore[attr-defined]

    class WithLogProbabilities(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.agent = sender

        def forward(self, *args: object) -> torch.Tensor:
            return self.agent(*args).log_softmax(1)

    receiver = core.ReinforceDeterministicWrapper(receiver)
    wrapped = core.ReinforceWrapper(WithLogProbabilities())
    return core.SymbolGameReinforce(wrapped, receiver, game.loss, sender_entropy_coeff=0.1)  # type: ignore[attr-defined]


COLUMNS: dict[str, Callable[[object], nn.Module]] = {
    "Gumbel-Softmax": relaxed,
    "straight-through": lambda game: relaxed(game, straight_through=True),
    "REINFORCE": reinforced,
    "exact, T = 1": lambda game: marginalize(relaxed(game), temperature=1.0),
    "exact, T = 10": lambda game: marginalize(relaxed(game), temperature=10.0),
    "exact": lambda game: marginalize(relaxed(game)),
    "exact, schedule": lambda game: marginalize(relaxed(game)),
    "exact, entmax15": lambda game: marginalize(relaxed(game), normalizer="entmax15"),
}


class Batches:
    """Batches of a game, drawn anew in every epoch."""

    def __init__(self, game: object, n_batches: int) -> None:
        self.game, self.n_batches = game, n_batches

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self):  # type: ignore[no-untyped-def]
        return (self.game.batch(test=False) for _ in range(self.n_batches))  # type: ignore[attr-defined]


class MeanOf(core.Callback):  # type: ignore[name-defined]
    """The mean of a metric over the training, 1 where it is not reported."""

    def __init__(self, metric: str) -> None:
        self.metric, self.values = metric, []

    def on_batch_end(self, logs, loss, batch_id, is_training=True):  # type: ignore[no-untyped-def]
        if is_training and self.metric in logs.aux:
            self.values.append(float(logs.aux[self.metric].mean()))


def play(name: str, column: str, seed: int, steps: int) -> dict[str, float]:
    """Trains one game, and tests it with the most probable messages."""
    core.init(params=[f"--random_seed={seed}", "--n_epochs=1", f"--lr={GAMES[name].lr}", "--no_cuda"])
    game = GAMES[name]()
    played = COLUMNS[column](game)
    support, calls = MeanOf("support"), MeanOf("decoder_calls")
    callbacks = [support, calls]
    if column == "exact, schedule":
        callbacks.append(SupportSchedule(played.sender))
    optimizer = torch.optim.Adam(played.parameters(), lr=game.lr)
    began = time.perf_counter()
    core.Trainer(played, optimizer, Batches(game, steps), callbacks=callbacks).train(1)
    seconds = time.perf_counter() - began
    played.eval()
    with torch.no_grad():
        success = float(played(*game.batch(test=True))[1].aux["success"].mean())
    return {
        "success": success,
        "support": statistics.mean(support.values) if support.values else game.vocab_size,
        "receiver_calls": statistics.mean(calls.values) if calls.values else 1.0,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", default=",".join(GAMES))
    parser.add_argument("--columns", default=";".join(COLUMNS), help="separated by semicolons")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--part", type=float, default=1.0, help="share of the steps, to see short trainings")
    parser.add_argument("--quick", action="store_true", help="ten steps of each game, to see that all run")
    parser.add_argument("--out", help="a JSON file of all runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for name in options.games.split(","):
        for column in options.columns.split(";"):
            steps = 10 if options.quick else round(GAMES[name].steps * options.part)
            found = [play(name, column, int(seed), steps) for seed in options.seeds.split(",")]
            runs += [
                {"game": name, "column": column, "seed": int(seed), "steps": steps, **run}
                for seed, run in zip(options.seeds.split(","), found, strict=True)
            ]
            successes = [run["success"] for run in found]
            spread = statistics.stdev(successes) if len(successes) > 1 else 0.0
            means = {key: statistics.mean(run[key] for run in found) for key in found[0]}
            print(
                f"| {name} | {steps} | {column} | {means['success']:.3f} ± {spread:.3f} | {means['support']:.1f} "
                f"| {means['receiver_calls']:.1f} | {means['seconds']:.0f} |",
                flush=True,
            )
    if options.out:
        about = {"host": host.describe(), "torch": torch.__version__, "machine": platform.processor()}
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump({"about": about, "runs": runs}, file, indent=1)


if __name__ == "__main__":
    main()
