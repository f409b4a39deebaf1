"""Makes the tables of docs/results.md, docs/support.md and README.md from the JSON files in docs/.

python docs/tables.py           prints them
python docs/tables.py --write   writes them, between <!-- table: NAME --> and <!-- end of table -->

``swap_games.json`` and ``sequence_methods.json`` are what the benchmarks of these names write, ``signal_game.json`` is
what docs/curves.py collects. ``results/NAME.json`` has the numbers of a table whose runs were not kept: a pair is a
mean and a standard deviation, null is a dash.
"""

import argparse
import json
import pathlib
import re
import statistics
from collections.abc import Iterator
from typing import Any

from egg_sparse.report.tables import NONE, markdown_rows, number_text, spread

FOLDER = pathlib.Path(__file__).parent
REPOSITORY = FOLDER.parent
Runs = list[dict[str, Any]]
Row = list[str]

SMALL = ("guess", "classes", "autoencoder", "objects", "signal")
STEPS_OF_SMALL = (2000, 1500, 1500, 3000, 2000)
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
FILES = ("docs/results.md", "docs/support.md", "README.md")
EPOCH_OF_OBJECTS = 100  # steps, of 320 objects that an epoch shows 20 times in batches of 64
MODES = {
    "marg": "`marg` (sparsemax)",
    "gs": "`gs` (Gumbel-Softmax, EGG's game)",
    "sfe": "`sfe` (score function, EGG's game)",
}


def chosen(runs: Runs, game: str, column: str, key: str = "success") -> list[float]:
    return [run[key] for run in runs if (run["game"], run["column"]) == (game, column)]


def success(data: dict[str, Any], game: str, column: str) -> str:
    """Mean and standard deviation; of the whole runs, where those that were kept are rounded."""
    for known in data["means of the unrounded runs"]:
        if (known["game"], known["column"]) == (game, column):
            return " ± ".join(number_text(value, 3) for value in known["success"])
    return spread(chosen(data["runs"], game, column))


def swap_success(data: dict[str, Any]) -> Iterator[Row]:
    """Success of every estimator in the games of examples/."""
    yield ["game (steps)", *COLUMNS]
    runs = data["runs"]
    for game in EXAMPLES:
        steps = next(run["steps"] for run in runs if run["game"] == game)
        yield [f"{game} ({steps:,})", *(success(data, game, column) for column in COLUMNS)]
    means = []
    for column in COLUMNS:
        found = [chosen(runs, game, column) for game in EXAMPLES if game != "mnist_autoenc"]
        means.append(f"{statistics.mean(map(statistics.mean, found)):.3f}" if all(found) else "")
    yield ["mean without mnist_autoenc", *means]


def swap_cost(data: dict[str, Any]) -> Iterator[Row]:
    """What the exact sum costs in the games of examples/, and EGG's estimator with more steps."""
    yield [
        "game",
        "support in training",
        "receiver calls per example",
        "EGG's estimator",
        "its seconds",
        "exact's seconds",
        "ratio",
        "success of exact",
        "of EGG's with more steps",
        "times as many steps",
    ]
    runs, alone, longer = data["runs"], data["seconds alone"], data["with more steps"]
    for game in EXAMPLES:
        means = [statistics.mean(chosen(runs, game, "exact", key)) for key in ("support", "receiver_calls")]
        column = next(run["column"] for run in longer if run["game"] == game)
        seconds = [chosen(alone, game, name, "seconds")[0] for name in (column, "exact")]
        times = chosen(longer, game, column, "steps")[0] / chosen(runs, game, column, "steps")[0]
        yield [
            game,
            *(f"{mean:.1f}" for mean in means),
            column,
            *(f"{one:.0f}" if round(one, 1) >= 10 else f"{one:.1f}" for one in seconds),
            f"{seconds[1] / seconds[0]:.1f}",
            success(data, game, "exact"),
            spread(chosen(longer, game, column)),
            f"{times:.1f}",
        ]


def small_games(runs: Runs, share: float = 1.0) -> Iterator[Row]:
    """Success of every estimator in the five small games, in a share of their steps."""
    yield ["", *(f"{game}, {share * steps:,.0f} steps" for game, steps in zip(SMALL, STEPS_OF_SMALL, strict=True))]
    for column in SMALL_COLUMNS:
        yield [column, *(spread(chosen(runs, game, column)) for game in SMALL)]


def small_games_calls(runs: Runs) -> Iterator[Row]:
    """Receiver calls per example of the exact sum in the five small games."""
    yield ["", *SMALL]
    for column in SMALL_COLUMNS[3:]:
        calls = [statistics.mean(chosen(runs, game, column, "receiver_calls")) for game in SMALL]
        yield [column, *(f"{mean:.1f}" for mean in calls)]


def swaps(runs: Runs) -> Iterator[Row]:
    """Five games before and after, for the README."""
    games = {
        "guess_number gs": "Gumbel-Softmax",
        "mnist_classification": "Gumbel-Softmax",
        "mnist_overfit": "Gumbel-Softmax",
        "signal_game rf": "REINFORCE",
        "population": "Gumbel-Softmax",
    }
    yield ["mean of three seeds", *games]
    for label, column in (("EGG's estimator, before", None), ("exact, after", "exact")):
        yield [label, *(f"{statistics.mean(chosen(runs, game, column or games[game])):.3f}" for game in games)]


def signal_game(runs: Runs) -> Iterator[Row]:
    """The test results of the signal game's three methods, for the README."""
    yield ["`--mode`", "greedy success", "expected success", "support", "receiver calls per example"]
    for mode, label in MODES.items():
        results = [run["results"] for run in runs if run["mode"] == mode]
        acc, expected, support, calls = (
            [result[key] for result in results] for key in ("acc", "acc_expected", "support", "receiver_calls")
        )
        cost = [spread(support, 1), spread(calls, 1)] if mode == "marg" else [f"{support[0]:.0f}", f"{calls[0]:.0f}"]
        yield [label, spread(acc), spread(expected), *cost]


def sequence_methods(results: list[dict[str, Any]]) -> Iterator[Row]:
    """The methods of messages of several symbols, each at the best setting of its grid."""
    yield [
        "`--mode`",
        "steps",
        "learning rate and the other setting",
        "training",
        "held out",
        "topographic similarity",
        "posdis",
        "bosdis",
    ]
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
        yield [label, steps, setting, *figures]


def of_means(table: dict[str, Any]) -> Iterator[Row]:
    """The table of a file in results/."""
    columns = table["columns"]
    yield [column["title"] for column in columns]
    for values in table["rows"]:
        yield [cell(value, column) for value, column in zip(values, columns, strict=True)]


def cell(value: Any, column: dict[str, Any]) -> str:
    """A number, a pair of mean and standard deviation, a text, or None.

    Args:
        value: the content of the cell.
        column: what the file says of the column. Without ``digits`` a number has those of the file.
    """
    if isinstance(value, list):
        return " ± ".join(cell(each, column) for each in value)
    if isinstance(value, float):
        return number_text(value, column["digits"]) + column.get("unit", "") if "digits" in column else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return NONE if value is None else value


def read(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def tables() -> dict[str, str]:
    """All tables as Markdown, by name."""
    games, signal, sequences = read("swap_games"), read("signal_game")["runs"], read("sequence_methods")["results"]
    found = {
        "swap_success": swap_success(games),
        "swap_cost": swap_cost(games),
        "swaps": swaps(games["runs"]),
        "small_games": small_games(games["runs"]),
        "small_games_calls": small_games_calls(games["runs"]),
        "small_games_short": small_games(games["with three tenths of the steps"], 0.3),
        "signal_game": signal_game(signal),
        "sequence_methods": sequence_methods(sequences),
    }
    for path in sorted(FOLDER.glob("results/*.json")):
        found[path.stem] = of_means(read(f"results/{path.stem}"))
    return {name: markdown_rows(header, rows) for name, (header, *rows) in found.items()}


def with_tables(text: str, found: dict[str, str]) -> str:
    """A text with these tables between its marks."""
    return re.sub(
        r"(<!-- table: (\w+) -->\n).*?(?=<!-- end of table -->)",
        lambda mark: f"{mark[1]}{found[mark[2]]}\n",
        text,
        flags=re.DOTALL,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables into the files that show them")
    found = tables()
    if parser.parse_args().write:
        for name in FILES:
            path = REPOSITORY / name
            path.write_text(with_tables(path.read_text(encoding="utf-8"), found), encoding="utf-8")
    else:
        for name, table in found.items():
            print(name, table, "", sep="\n")


if __name__ == "__main__":
    main()
