"""Prints the tables of docs/results.md, docs/support.md and README.md whose runs lie beside them as JSON.

python docs/tables.py

``swap_games.json`` and ``sequence_methods.json`` are what the benchmarks of these names write, ``signal_game.json``
what docs/curves.py collects.
"""

import json
import pathlib
import statistics
from collections.abc import Iterable, Iterator
from typing import Any

FOLDER = pathlib.Path(__file__).parent
Runs = list[dict[str, Any]]

SMALL = ("guess", "classes", "autoencoder", "objects", "signal")
EXAMPLES = (
    "guess_number gs",
    "guess_number rf",
    "guess_number non_diff",
    "mnist_autoenc",
    "mnist_classification",
    "mnist_overfit",
    "signal_game gs",
    "signal_game rf",
    "simple_autoenc",
    "population",
)
COLUMNS = ("Gumbel-Softmax", "REINFORCE", "exact, T = 1", "exact, T = 10", "exact", "exact, schedule")
SMALL_COLUMNS = (COLUMNS[0], "straight-through", *COLUMNS[1:], "exact, entmax15")
EPOCH_OF_OBJECTS = 100  # steps, of 320 objects that an epoch shows 20 times in batches of 64
MODES = {
    "marg": "`marg` (sparsemax)",
    "gs": "`gs` (Gumbel-Softmax, EGG's game)",
    "sfe": "`sfe` (score function, EGG's game)",
}


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and standard deviation; a dash for no values."""
    if not values:
        return "\N{EN DASH}"
    mean = f"{statistics.mean(values):.{digits}f}".replace("-", "\N{MINUS SIGN}")
    return f"{mean} ± {statistics.stdev(values):.{digits}f}"


def chosen(runs: Runs, game: str, column: str, key: str = "success") -> list[float]:
    return [run[key] for run in runs if (run["game"], run["column"]) == (game, column)]


def examples(data: dict[str, Runs]) -> Iterator[str]:
    """Success of every estimator in the games of examples/."""
    runs = data["runs"]
    for game in EXAMPLES:
        steps = next(run["steps"] for run in runs if run["game"] == game)
        yield row([f"{game} ({steps:,})", *(spread(chosen(runs, game, column)) for column in COLUMNS)])
    means = []
    for column in COLUMNS:
        found = [chosen(runs, game, column) for game in EXAMPLES if game != "mnist_autoenc"]
        means.append(f"{statistics.mean(map(statistics.mean, found)):.3f}" if all(found) else "")
    yield row(["mean without mnist_autoenc", *means]).replace("|  |", "| |").replace("|  |", "| |")


def costs(data: dict[str, Runs]) -> Iterator[str]:
    """What the exact sum costs in the games of examples/, and EGG's estimator with more steps."""
    runs, alone, longer = data["runs"], data["seconds alone"], data["with more steps"]
    for game in EXAMPLES:
        means = [statistics.mean(chosen(runs, game, "exact", key)) for key in ("support", "receiver_calls")]
        column = next(run["column"] for run in longer if run["game"] == game)
        seconds = [chosen(alone, game, name, "seconds")[0] for name in (column, "exact")]
        times = chosen(longer, game, column, "steps")[0] / chosen(runs, game, column, "steps")[0]
        yield row(
            [
                game,
                *(f"{mean:.1f}" for mean in means),
                column,
                *(f"{one:.0f}" if round(one, 1) >= 10 else f"{one:.1f}" for one in seconds),
                f"{seconds[1] / seconds[0]:.1f}",
                spread(chosen(runs, game, "exact")),
                spread(chosen(longer, game, column)),
                f"{times:.1f}",
            ]
        )


def small_games(runs: Runs) -> Iterator[str]:
    """Success of every estimator in the five small games."""
    for column in SMALL_COLUMNS:
        yield row([column, *(spread(chosen(runs, game, column)) for game in SMALL)])


def receiver_calls(runs: Runs) -> Iterator[str]:
    """Receiver calls per example of the exact sum in the five small games."""
    for column in SMALL_COLUMNS[3:]:
        calls = [statistics.mean(chosen(runs, game, column, "receiver_calls")) for game in SMALL]
        yield row([column, *(f"{mean:.1f}" for mean in calls)])


def swaps(runs: Runs) -> Iterator[str]:
    """Five games before and after, for the README."""
    games = {
        "guess_number gs": "Gumbel-Softmax",
        "mnist_classification": "Gumbel-Softmax",
        "mnist_overfit": "Gumbel-Softmax",
        "signal_game rf": "REINFORCE",
        "population": "Gumbel-Softmax",
    }
    for label, column in (("EGG's estimator, before", None), ("exact, after", "exact")):
        yield row([label, *(f"{statistics.mean(chosen(runs, game, column or games[game])):.3f}" for game in games)])


def signal_game(runs: Runs) -> Iterator[str]:
    """The test results of the signal game's three methods, for the README."""
    for mode, label in MODES.items():
        results = [run["results"] for run in runs if run["mode"] == mode]
        acc, expected, support, calls = (
            [result[key] for result in results] for key in ("acc", "acc_expected", "support", "receiver_calls")
        )
        cost = [spread(support, 1), spread(calls, 1)] if mode == "marg" else [f"{support[0]:.0f}", f"{calls[0]:.0f}"]
        yield row([label, spread(acc), spread(expected), *cost])


def sequence_methods(results: list[dict[str, Any]]) -> Iterator[str]:
    """The methods of messages of several symbols, each at the best setting of its grid."""
    for result in results:
        runs, options = result["runs"], result["runs"][0]["options"]
        varied = "temperature" if options["mode"] == "gs" else "entropy coefficient"
        setting = f"{options['lr']}, {varied} {options.get('sender_entropy_coeff', options.get('temperature'))}"
        figures = [
            spread([run[key] for run in runs if run[key] is not None], digits)
            for key, digits in (("acc_train", 3), ("acc_unseen", 3), ("topsim", 2), ("posdis", 2), ("bosdis", 2))
        ]
        label = f"`{options['mode']}`" + (f" {options['normalizer']}" if "normalizer" in options else "")
        steps = f"{options['n_epochs'] * EPOCH_OF_OBJECTS:,}"
        yield row([label, steps, setting, *figures])


def main() -> dict[str, list[str]]:
    """The rows of all tables, by the file that shows them and a name."""
    games = json.loads((FOLDER / "swap_games.json").read_text(encoding="utf-8"))
    signal = json.loads((FOLDER / "signal_game.json").read_text(encoding="utf-8"))
    sequences = json.loads((FOLDER / "sequence_methods.json").read_text(encoding="utf-8"))
    return {
        "docs/results.md: EGG's games, success": list(examples(games)),
        "docs/results.md: EGG's games, cost": list(costs(games)),
        "docs/support.md: small games, success": list(small_games(games["runs"])),
        "docs/support.md: small games, receiver calls": list(receiver_calls(games["runs"])),
        "docs/support.md: small games, three tenths of the steps": list(
            small_games(games["with three tenths of the steps"])
        ),
        "docs/results.md: messages of several symbols": list(sequence_methods(sequences["results"])),
        "README.md: swapped games": list(swaps(games["runs"])),
        "README.md: signal game": list(signal_game(signal["runs"])),
    }


if __name__ == "__main__":
    for title, rows in main().items():
        print(title, *rows, "", sep="\n")
