"""The experiments that a sweep runs, and the check of their options before anything starts."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import importlib.util
import io
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from egg_sparse.sweep.grids import Combination, as_arguments, as_options
from egg_sparse.zoo import run_folder
from egg_sparse.zoo.experiments import EXPERIMENTS

OF_THE_SWEEP = ("checkpoint_dir", "preemptable")
OF_THE_SWEEP_IN_ZOO = (*OF_THE_SWEEP, "evaluate", "out", "resume")
"""Options that a sweep sets itself, or that make a run something else than one to train."""


@dataclass(frozen=True)
class Experiment:
    """A module with ``main(params)``.

    Args:
        name: the name in messages and folders.
        module: the module's whole name.
        in_zoo: whether it is an entry of the zoo, which has ``--out``, ``--preemptable`` and ``results.json``.
    """

    name: str
    module: str
    in_zoo: bool

    @property
    def command(self) -> str:
        """The module that ``python -m`` runs."""
        return self.module.removesuffix(".train") if self.in_zoo else self.module

    def main(self, params: list[str]) -> Any:
        """Runs the experiment in this process."""
        return importlib.import_module(self.module).main(params)


def find(game: str) -> Experiment:
    """The experiment of this name.

    Args:
        game: an entry of the zoo, such as "signal_game" or "egg_sparse.zoo.signal_game.train", or any module that has
            ``main(params)``, such as "egg.zoo.mnist_autoenc.train".

    Raises:
        ValueError: there is no such module, or it has no ``main``.

    Example:
        >>> find("signal_game").command
        'egg_sparse.zoo.signal_game'
    """
    entry = game.removeprefix("egg_sparse.zoo.").removesuffix(".train")
    if entry in EXPERIMENTS:
        return Experiment(entry, f"egg_sparse.zoo.{entry}.train", in_zoo=True)
    try:
        module = importlib.import_module(game)
    except (ImportError, ValueError, TypeError) as error:  # also of a name that cannot be one of a module
        raise ValueError(
            f"--game must be one of {', '.join(EXPERIMENTS)} or a module with main(params), got {game!r} ({error})"
        ) from error
    if not callable(getattr(module, "main", None)):
        raise ValueError(f"--game must be a module with main(params), and {game} has none")
    return Experiment(game.removesuffix(".train").rpartition(".")[2], game, in_zoo=False)


class _Parsed(BaseException):
    """Leaves ``main`` of a module once its options are parsed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options


@contextlib.contextmanager
def _only_parsing() -> Iterator[None]:
    """Ends a call where it has parsed its options with argparse, by :class:`_Parsed`."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        raise _Parsed(original(self, args, namespace))

    argparse.ArgumentParser.parse_args = parse_args  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        argparse.ArgumentParser.parse_args = original  # type: ignore[method-assign]


def parse(experiment: Experiment, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses a command line as the experiment does, without running it.

    Args:
        experiment: the experiment. One that is not of the zoo must parse ``params`` with argparse, or ``core.init``,
            before it does anything else.
        arguments: the command line.

    Returns:
        All options, and the warnings of the parser.

    Raises:
        ValueError: the experiment refuses the command line.
    """
    _refuse_options_of_the_sweep(experiment, as_options(arguments))
    output = io.StringIO()
    module = importlib.import_module(experiment.module)
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            if experiment.in_zoo:
                opts = module.parse_options(list(arguments))
            else:
                with _only_parsing():
                    module.main(list(arguments))
                raise ValueError(f"main(params) of {experiment.module} does not parse its options with argparse")
    except _Parsed as parsed:
        opts = parsed.options
    except SystemExit as error:
        said = [line for line in output.getvalue().splitlines() if line.strip()]
        reason = said[-1].partition("error: ")[2] or said[-1] if said else f"it ends with {error.code}"
        raise ValueError(reason.removesuffix(" (--help lists all options)")) from error
    _refuse_options_of_the_sweep(experiment, vars(opts))
    warnings = [line for line in output.getvalue().splitlines() if "warning: " in line]
    return opts, [line.partition("warning: ")[2] for line in warnings]


def _refuse_options_of_the_sweep(experiment: Experiment, options: Mapping[str, Any]) -> None:
    for name in OF_THE_SWEEP_IN_ZOO if experiment.in_zoo else OF_THE_SWEEP:
        if options.get(name):
            raise ValueError(f"--{name} cannot be an option of a sweep, which gives every run a folder of its own")


@dataclass(frozen=True)
class Run:
    """A run of a sweep.

    Args:
        experiment: the experiment.
        given: the options that the grid and the command line give.
        arguments: the same as a command line.
        options: all options that determine what is computed, as the experiment parses them and JSON holds them.
        names: the names of all options that the experiment has.
        source: the name of the grid, for messages.
    """

    experiment: Experiment
    given: dict[str, Any]
    arguments: list[str]
    options: dict[str, Any]
    names: frozenset[str]
    source: str

    @property
    def key(self) -> str:
        """What is the same for two runs exactly if they compute the same."""
        content = json.dumps([self.experiment.module, self.options], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def describe(self) -> str:
        """The options that are given, as a command line."""
        return shlex.join(as_arguments(self.given))


def check(combinations: Sequence[Combination], game: str | None, extra: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Parses every combination as its experiment does.

    Args:
        combinations: the combinations of all grids.
        game: the experiment of the grids that name none.
        extra: further options of every run, which override those of the grids.

    Returns:
        The runs, and the parsers' warnings, each once.

    Raises:
        ValueError: there is no combination, a grid has no experiment or another one than ``game``, an experiment
            refuses a combination, or two runs compute the same.
    """
    if not combinations:
        raise ValueError("there is nothing to run: give a grid, a file that ends in .json or one of --list")
    runs: dict[str, Run] = {}
    warnings: dict[str, None] = {}
    experiments: dict[str, Experiment] = {}
    for combination in combinations:
        name = combination.game or game
        if name is None:
            raise ValueError(f'{combination.source} names no experiment: give --game, or "game" in the file')
        if name not in experiments:
            experiments[name] = find(name)
        experiment = experiments[name]
        if game and combination.game and experiment != find(game):
            raise ValueError(f"--game is {game}, but the grid {combination.source} is of {combination.game}")
        arguments = [*combination.arguments(), *extra]
        try:
            opts, said = parse(experiment, arguments)
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            raise ValueError(f"{combination.source}: {experiment.name} {shlex.join(arguments)}: {error}") from error
        warnings.update(dict.fromkeys(said))
        options = json.loads(json.dumps(run_folder.saved_options(opts), default=repr))
        given = {**combination.options, **as_options(extra)}
        run = Run(experiment, given, arguments, options, frozenset(vars(opts)), combination.source)
        if run.key in runs:
            other = runs[run.key]
            raise ValueError(
                f"the same run is there twice: {other.describe()} in {other.source}, and {run.describe()} in "
                f"{run.source}"
            )
        runs[run.key] = run
    return list(runs.values()), list(warnings)
