"""Reads grids of options, in the format of EGG's nest, and crosses them into combinations."""

from __future__ import annotations

import difflib
import importlib
import itertools
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

SHIPPED = pathlib.Path(__file__).parent / "shipped"
"""The grids of the package: a folder per experiment, in it a folder per set of grids."""

GAME, SEED = "game", "random_seed"
"""The key of a file that names the experiment, and the option of the seed."""


@dataclass(frozen=True)
class Combination:
    """The options of one run.

    Args:
        options: the values by option; True is a flag that is given.
        source: the file or module of the grid, for messages.
        game: the experiment that the grid names, or None.
    """

    options: dict[str, Any]
    source: str
    game: str | None = None

    def arguments(self) -> list[str]:
        """The options as a command line, as EGG's nest writes them."""
        return as_arguments(self.options)


def as_arguments(options: Mapping[str, Any]) -> list[str]:
    """Options as a command line: ``--name=value``, ``--name`` where the value is True, and nothing where it is False.

    Example:
        >>> as_arguments({"lr": 0.01, "no_cuda": True, "fp16": False, "root": "my data"})
        ['--lr=0.01', '--no_cuda', '--root=my data']
    """
    return [
        f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items() if value is not False
    ]


def as_options(arguments: Sequence[str]) -> dict[str, Any]:
    """A command line as options: ``--name=value``, ``--name value``, or ``--name``, a flag.

    Example:
        >>> as_options(["--lr=0.01", "--n_epochs", "1", "--no_cuda"])
        {'lr': '0.01', 'n_epochs': '1', 'no_cuda': True}
    """
    options: dict[str, Any] = {}
    name = ""
    for argument in arguments:
        if argument.startswith("--"):
            name, given, value = argument.removeprefix("--").partition("=")
            options[name] = value if given else True
        elif name:
            options[name] = argument
            name = ""
        else:
            raise ValueError(f"expected an option that begins with --, got {argument!r}")
    return options


def cross(grid: Mapping[str, Any], source: str) -> list[Combination]:
    """Every combination of a grid's values, the last option varying fastest, as in EGG's nest.

    Args:
        grid: a list of values, or one value, by option, and the experiment's name under "game".
        source: the name of the grid, for messages.

    Raises:
        ValueError: a value is no number, string or truth value, or a list is empty.

    Example:
        >>> [each.arguments() for each in cross({"mode": ["marg", "sfe"], "lr": 0.1}, "example")]
        [['--mode=marg', '--lr=0.1'], ['--mode=sfe', '--lr=0.1']]
    """
    game = grid.get(GAME)
    if game is not None and not isinstance(game, str):
        raise ValueError(f"{source}: {GAME} must be the name of one experiment, got {json.dumps(game)}")
    lists = {name: values if isinstance(values, list) else [values] for name, values in grid.items() if name != GAME}
    for name, values in lists.items():
        if not name or name.startswith("-") or "=" in name or name.split() != [name]:
            raise ValueError(f"{source}: expected the name of an option without its dashes, got {name!r}")
        if not values:
            raise ValueError(f"{source}: {name} must be a list of values, got an empty one")
        for value in values:
            if not isinstance(value, (bool, int, float, str)):
                raise ValueError(
                    f"{source}: {name} must be a list of numbers, strings, true or false, got {json.dumps(value)} in it"
                )
    return [
        Combination(dict(zip(lists, values, strict=True)), source, game)
        for values in itertools.product(*lists.values())
    ]


def read(path: pathlib.Path) -> list[Combination]:
    """The combinations of a file with a grid: one JSON object of lists by option.

    Raises:
        OSError, ValueError: the file cannot be read, or is no grid.
    """

    def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f"{name} occurs twice")
            found[name] = value
        return found

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not a number")

    try:
        grid = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except OSError as error:
        raise OSError(f"cannot read the grid {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(grid, dict):
        raise ValueError(f"{path} must hold one object with a list of values per option, got a {type(grid).__name__}")
    return cross(grid, str(path))


def read_module(name: str) -> list[Combination]:
    """The combinations that the function ``grid()`` of a module yields, as for the ``--py_sweep`` of EGG's nest.

    Raises:
        ImportError, ValueError: there is no such module, or its ``grid()`` yields something else than lists of options.
    """
    module = importlib.import_module(name)
    if not callable(getattr(module, "grid", None)):
        raise ValueError(f"--py_sweep: {name} must have a function grid()")
    combinations = []
    for arguments in module.grid():
        if not isinstance(arguments, (list, tuple)) or not all(isinstance(each, str) for each in arguments):
            raise ValueError(f"--py_sweep: grid() of {name} must yield lists of options, got {arguments!r}")
        combinations.append(Combination(as_options(arguments), name))
    return combinations


def shipped() -> dict[str, list[pathlib.Path]]:
    """The grids of the package, sorted: ``experiment/set``, with all files of a set, and ``experiment/set/grid``."""
    found: dict[str, list[pathlib.Path]] = {}
    for path in sorted(SHIPPED.glob("*/*/*.json")):
        name = path.relative_to(SHIPPED).with_suffix("").as_posix()
        found.setdefault(name.rpartition("/")[0], []).append(path)
        found[name] = [path]
    return found


def load(name: str) -> list[Combination]:
    """The combinations of a file, or of grids of the package by their name.

    Args:
        name: a path that ends in .json, or a name of :func:`shipped`.

    Raises:
        OSError, ValueError: there is no such grid, or it cannot be read.

    Example:
        >>> combinations = load("signal_game/digits/gs")
        >>> combinations[0].game, len(combinations)
        ('signal_game', 10)
    """
    path = pathlib.Path(name)
    if path.suffix == ".json" or path.is_file():
        return read(path)
    known = shipped()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        meant = f"; {near[0]} is one" if near else ""
        raise ValueError(f"expected a file that ends in .json or a grid of the package (--list), got {name!r}{meant}")
    game = name.partition("/")[0]
    return [Combination(each.options, each.source, game) for path in known[name] for each in read(path)]


def with_seeds(combinations: Sequence[Combination], seeds: int | None) -> list[Combination]:
    """Every combination with the seeds 1 to ``seeds``, instead of those of its grid.

    Args:
        combinations: the combinations of the grids.
        seeds: the number of seeds; None for those of the grid, and for seed 1 where it has none.
    """
    if seeds is None:
        return [replace(each, options={**each.options, SEED: each.options.get(SEED, 1)}) for each in combinations]
    unseeded: list[Combination] = []
    for each in combinations:
        other = replace(each, options={name: value for name, value in each.options.items() if name != SEED})
        if other not in unseeded:
            unseeded.append(other)
    return [replace(each, options={**each.options, SEED: seed}) for each in unseeded for seed in range(1, seeds + 1)]
