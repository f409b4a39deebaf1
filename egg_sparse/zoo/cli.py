"""Command lines of the zoo: options with this project's defaults, and errors of one sentence."""

from __future__ import annotations

import argparse
import importlib
import logging
import math
import pathlib
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from egg_sparse.zoo import run_folder

OPTIMIZERS = ("adam", "sgd", "adagrad")


def number(
    kind: type[int] | type[float],
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> Callable[[str], Any]:
    """An argparse type: a finite number within bounds."""

    def parse(text: str) -> Any:
        try:
            value: Any = kind(text)
        except ValueError:
            value = math.nan
        within = math.isfinite(value) and (at_least is None or value >= at_least) and (above is None or value > above)
        if not within or (at_most is not None and value > at_most):
            what = "a whole number" if kind is int else "a number"
            bounds = [
                f" {name} {bound}" for name, bound in (("of at least", at_least), ("above", above)) if bound is not None
            ]
            bounds += [f" and at most {at_most}"] if at_most is not None else []
            raise argparse.ArgumentTypeError(f"expected {what}{''.join(bounds)}, got {text!r}")
        return value

    return parse


BOUNDS = {
    "batch_size": number(int, at_least=1),
    "checkpoint_freq": number(int, at_least=0),
    "lr": number(float, above=0),
    "max_len": number(int, at_least=1),
    "n_epochs": number(int, at_least=0),
    "random_seed": number(int, at_least=0, at_most=2**32 - 1),
    "update_freq": number(int, at_least=1),
    "validation_freq": number(int, at_least=0),
    "vocab_size": number(int, at_least=1),
}
"""Of the options that EGG adds: what they can be."""

PATHS = (
    "checkpoint_dir",
    "data_root",
    "load_from_checkpoint",
    "out",
    "resume",
    "root",
    "tensorboard_dir",
    "warm_start_path",
)
"""Options that name a file or a folder."""


EXCLUSIVE = {
    "evaluate": (("resume", "out", "preemptable"), "it tests one checkpoint, and writes nothing"),
    "resume": (
        ("out", "load_from_checkpoint", "preemptable"),
        "it goes on in its folder, from the newest checkpoint there",
    ),
}
"""Options that contradict others, and why."""

DEBUG = ("--deb", "--debu", "--debug")
"""``--debug`` and its abbreviations, which are found without a parser: an error may come before there is one."""


def _path(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError(f"expected a path, got {text!r}")
    return text


class ZooParser(argparse.ArgumentParser):
    """A parser that bounds the options that EGG adds, may give them other defaults, and knows what was given.

    Options can be abbreviated, as those of EGG's games can. With ``--evaluate`` or ``--resume`` the options of the run
    that is meant come first, and those of the command line override them.

    Args:
        prog: the command, for messages.
        defaults: option -> default, for options that ``core.init`` will add.
    """

    def __init__(self, prog: str, description: str, defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        super().__init__(prog=prog, description=description)
        self.given: dict[str, Any] = {}
        """The options of the command line, by their whole names, and their values."""

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:  # type: ignore[override]
        action = super().add_argument(*args, **kwargs)
        if action.dest == "optimizer":
            action.choices = OPTIMIZERS
        action.type = _path if action.dest in PATHS else BOUNDS.get(action.dest, action.type)
        if action.dest in self.defaults:
            action.default = self.defaults[action.dest]
            action.help = re.sub(r"\s*\(default: .*?\)", "", action.help or "") + f" (default: {action.default})"
        return action

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        args = sys.argv[1:] if args is None else args
        absent = object()
        found = argparse.Namespace(**{action.dest: absent for action in self._actions})
        self.parse_known_args(args, found)
        self.given = {name: value for name, value in vars(found).items() if value is not absent}
        return super().parse_args([*self._of_run(), *args], namespace)

    def _of_run(self) -> list[str]:
        """The options of the run that is tested or resumed, none without ``--evaluate`` and ``--resume``."""
        for option, (others, why) in EXCLUSIVE.items():
            for other in others:
                if option in self.given and other in self.given:
                    self.error(f"--{option} excludes --{other}: {why}")
        if "evaluate" in self.given:
            if "load_from_checkpoint" not in self.given:
                self.error("--evaluate needs --load_from_checkpoint, the checkpoint to test")
            saved = run_folder.load_options(self.given["load_from_checkpoint"])
        elif "resume" in self.given:
            saved = run_folder.load_options_of(pathlib.Path(self.given["resume"]))
        else:
            return []
        arguments = as_arguments(saved)
        # opts.json has whole names: a shorter one is no abbreviation but an option of another version
        unknown = [each for each in arguments if each.partition("=")[0] not in self._option_string_actions]
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return arguments

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists all options)\n")

    def warn_unused(self, names: Iterable[str], why: str) -> None:
        """One warning for every given option that has no effect."""
        for name in names:
            if name in self.given:
                print(f"{self.prog}: warning: --{name} has no effect {why}", file=sys.stderr, flush=True)


def as_arguments(opts: dict[str, Any]) -> list[str]:
    """Options as a command line: what ``opts.json`` holds, to be followed by what overrides it."""
    arguments: list[str] = []
    for name, value in opts.items():
        if value is True:
            arguments.append(f"--{name}")
        elif value is not None and value is not False:
            arguments.append(f"--{name}={value}")
    return arguments


def require(module: str, package: str) -> Any:
    """Imports a module of the extra ``zoo``, or raises ImportError saying how to get its package."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"this needs {package}: pip install 'egg_sparse[zoo]' ({error})") from error


def run(prog: str, main: Callable[[list[str]], Any], params: list[str] | None = None) -> int:
    """Runs ``main`` as a command: an error is one sentence on standard error, and a status that is not zero.

    ``--debug`` shows the traceback as well.
    """
    params = sys.argv[1:] if params is None else params
    notes = _NoteHandler(logging.INFO)
    logger = logging.getLogger("egg_sparse")
    logger.setLevel(logging.INFO)
    logger.addHandler(notes)
    run_folder.current, run_folder.trained = None, False
    main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, _terminate) if main_thread else None
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_args, **_kwargs: print(
                f"{prog}: warning: {' '.join(str(message).split())}", file=sys.stderr, flush=True
            )
            main(params)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except (KeyboardInterrupt, Terminated) as error:
        terminated = isinstance(error, Terminated)
        goes_on = ""
        if run_folder.current:
            does = "only tests" if run_folder.trained else "goes on"
            after = " in the test, after the training had ended" if run_folder.trained else ""
            goes_on = f"{after}; python -m {prog} --resume {run_folder.current} {does}"
        print(f"{prog}: {'terminated' if terminated else 'interrupted'}{goes_on}", file=sys.stderr, flush=True)
        return 143 if terminated else 130
    except Exception as error:
        if any(param in DEBUG for param in params):
            traceback.print_exc()
        sentence = " ".join(str(error).split()) or "no reason given"
        if not isinstance(
            error, (ValueError, TypeError, OSError, ImportError, NotImplementedError, FloatingPointError)
        ):
            sentence = f"{type(error).__name__}: {sentence} (--debug shows where)"
        print(f"{prog}: error: {sentence}", file=sys.stderr, flush=True)
        return 1
    finally:
        logger.removeHandler(notes)
        if main_thread:
            signal.signal(signal.SIGTERM, previous)
    return 0


class Terminated(BaseException):
    """SIGTERM, as SLURM sends it before a job ends."""


def _terminate(*_: Any) -> NoReturn:
    raise Terminated


class _NoteHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(f"# {record.getMessage()}", file=sys.stderr, flush=True)
