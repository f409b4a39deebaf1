"""Command lines of the zoo: groups of options, and errors of one sentence."""

from __future__ import annotations

import argparse
import importlib
import logging
import math
import pathlib
import shlex
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import torch

from egg_sparse import host
from egg_sparse.version import __version__
from egg_sparse.zoo import config_file, run_folder


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

    parse.__name__ = "N" if kind is int else "X"
    return parse


def path(text: str) -> str:
    """An argparse type: a path that is not empty."""
    if not text:
        raise argparse.ArgumentTypeError(f"expected a path, got {text!r}")
    return text


path.__name__ = "PATH"


GROUPS = ("data", "agents", "method", "training", "run")
"""The groups of options in ``--help``, in their order."""

EGG_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "vocab_size": ("agents", {"type": number(int, at_least=1), "help": "symbols in the vocabulary"}),
    "max_len": ("agents", {"type": number(int, at_least=1), "help": "symbols in the longest message"}),
    "n_epochs": ("training", {"type": number(int, at_least=0), "help": "epochs"}),
    "batch_size": ("training", {"type": number(int, at_least=1), "help": "examples in a batch"}),
    "optimizer": ("training", {"choices": ("adam", "sgd", "adagrad"), "help": "optimizer"}),
    "lr": ("training", {"type": number(float, above=0), "help": "learning rate"}),
    "update_freq": ("training", {"type": number(int, at_least=1), "help": "batches per optimizer step"}),
    "validation_freq": (
        "training",
        {"type": number(int, at_least=0), "help": "epochs between validations, 0 for no validation"},
    ),
    "fp16": ("training", {"help": "mixed precision"}),
    "random_seed": (
        "run",
        {"type": number(int, at_least=0, at_most=2**32 - 1), "help": "seed of all random numbers; drawn if not given"},
    ),
    "no_cuda": ("run", {"help": "run on the CPU, also where there is a GPU"}),
    "checkpoint_dir": ("run", {"type": path, "help": "folder of the checkpoints, instead of one in the run folder"}),
    "checkpoint_freq": (
        "run",
        {"type": number(int, at_least=0), "help": "epochs between checkpoints, 0 for the last epoch alone"},
    ),
    "load_from_checkpoint": ("run", {"type": path, "help": "checkpoint to go on from, or to test"}),
    "preemptable": ("run", {"help": "go on from the newest checkpoint in --out or --checkpoint_dir, if there is one"}),
    "tensorboard": ("run", {"help": "write the metrics for TensorBoard"}),
    "tensorboard_dir": (
        "run",
        {"type": path, "default": None, "help": "folder of these files (default: tensorboard in the run folder)"},
    ),
    "distributed_port": ("run", {"help": "port that processes started by SLURM share"}),
}
"""The options that ``core.init`` adds: their group, and what this project says of them."""

EXCLUSIVE = {
    "evaluate": (("resume", "out", "preemptable"), "it tests one checkpoint, and writes nothing"),
    "resume": (
        ("out", "load_from_checkpoint", "preemptable"),
        "it goes on in its folder, from the newest checkpoint there",
    ),
    "quick": (("evaluate", "resume"), "it is for a run of its own"),
}
"""Options that contradict others, and why."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """The formatter that names values by their type, and writes defaults other than None, False and an empty list."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return getattr(action.type, "__name__", action.dest.upper())

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == []:
            return action.help
        return super()._get_help_string(action)


class _Version(argparse.Action):
    """Prints the versions, and ends."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=kwargs["help"])

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(f"egg_sparse {__version__}, on {host.describe()}, torch {torch.__version__}", flush=True)
        parser.exit()


class ZooParser(argparse.ArgumentParser):
    """A parser with groups of options, which has its own words and defaults for EGG's and knows what was given.

    Options can be abbreviated, as those of EGG's games can. Each of these overrides those before it: the defaults, the
    values of ``--quick``, the options of the run that ``--evaluate`` or ``--resume`` means, the file of ``--config``,
    the command line.

    Args:
        prog: the command's name, for messages.
        description: the experiment in one sentence.
        defaults: the defaults of options that ``core.init`` adds, by name.
        unused: the options of EGG's that have no effect in this experiment, by name, and why. ``--help`` leaves them
            out.
        quick: the options that ``--quick`` sets, by name, and their values.

    Attributes:
        group: the groups of options, by name; each has ``add_argument``.
        given: the options of the command line and of ``--config``, by their whole names, and their values. Those of a
            run's own ``opts.json`` are left out: it has all options, whether the run reads them or not.
        tensorboard: the value of ``--tensorboard``. The parsed options say False, so that ``core.init`` makes no
            writer: it would make one in every process.
    """

    def __init__(
        self,
        prog: str,
        description: str,
        defaults: Mapping[str, Any],
        unused: Mapping[str, str] | None = None,
        quick: Mapping[str, Any] | None = None,
    ) -> None:
        self.defaults = defaults
        self.quick = quick or {}
        self.unused = unused or {}
        self.group: dict[str, Any] = {}
        self.given: dict[str, Any] = {}
        self.tensorboard = False
        self._source = ""  # of the options that are parsed, for errors
        super().__init__(prog=prog, description=description, formatter_class=HelpFormatter, usage="%(prog)s [options]")
        self.group.update({name: self.add_argument_group(name) for name in GROUPS})
        option = self.group["run"].add_argument
        option("--config", type=path, help="YAML or JSON file of options by name, which those given override")
        sets = ", ".join(f"{name} {value}" for name, value in self.quick.items())
        option("--quick", action="store_true", help=f"run of seconds, to see that everything works; sets {sets}")
        option("--version", action=_Version, help="print the versions of egg_sparse, of its host and of PyTorch")

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:  # type: ignore[override]
        name = args[-1].removeprefix("--")
        if name not in EGG_OPTIONS:
            return super().add_argument(*args, **kwargs)
        group, own = EGG_OPTIONS[name]
        own = {**own, "default": self.defaults.get(name, own.get("default", kwargs.get("default")))}
        if name in self.unused:
            own["help"] = argparse.SUPPRESS
        return self.group[group].add_argument(*args, **{**kwargs, **own})

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        args = sys.argv[1:] if args is None else args
        self.given = self._named_in(args)
        config = config_file.read(self, self.given["config"]) if "config" in self.given else {}
        of_config = as_arguments(config)
        if config:
            self._source = f"{self.given['config']}: "
            named = self._named_in(of_config)
            if not self._is_of_run(config, pathlib.Path(self.given["config"])):
                self.given = named | self.given
            self._source = ""
        of_run = {name: value for name, value in self._options_of_run().items() if name not in config}
        quick = self.quick if "quick" in self.given else {}
        opts = super().parse_args([*as_arguments(quick), *as_arguments(of_run), *of_config, *args], namespace)
        self.tensorboard, opts.tensorboard = getattr(opts, "tensorboard", False), False
        return opts

    def _is_of_run(self, config: Mapping[str, Any], file: pathlib.Path) -> bool:
        """Whether a file of options is the ``opts.json`` of a run, or a copy of one."""
        saved = {action.dest for action in self._actions if action.default is not argparse.SUPPRESS}
        return file.name == run_folder.OPTIONS_FILE or saved - run_folder.NOT_SAVED <= config.keys()

    def _named_in(self, args: Sequence[str]) -> dict[str, Any]:
        """The options that are in a command line, by their whole names, and their values."""
        absent = object()
        found = argparse.Namespace(**{action.dest: absent for action in self._actions})
        self.parse_known_args(args, found)
        return {name: value for name, value in vars(found).items() if value is not absent}

    def _options_of_run(self) -> dict[str, Any]:
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
            return {}
        # opts.json has whole names: a shorter one is no abbreviation but an option of another version
        unknown = [each for each in as_arguments(saved) if each.partition("=")[0] not in self._option_string_actions]
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return saved

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {self._source}{message} (--help lists all options)\n")

    def warn_unused(self, names: Iterable[str], why: str) -> None:
        """Writes a warning for every one of these options that was given."""
        for name in names:
            if name in self.given:
                print(f"{self.prog}: warning: --{name} has no effect {why}", file=sys.stderr, flush=True)


def as_arguments(opts: Mapping[str, Any]) -> list[str]:
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
            goes_on = f"{after}; python -m {prog} --resume {shlex.quote(str(run_folder.current))} {does}"
        print(f"{prog}: {'terminated' if terminated else 'interrupted'}{goes_on}", file=sys.stderr, flush=True)
        return 143 if terminated else 130
    except Exception as error:
        if _debugs(params):
            traceback.print_exc()
        text = str(error)
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            text = f"cannot read or write {error.filename}: {error.strerror}"
        sentence = " ".join(text.split()) or "no reason given"
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


class _SilentParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _debugs(params: Sequence[str]) -> bool:
    """Whether ``--debug`` is given, in a command line that another parser may have refused.

    The second option is that of the zoo's with the longest common beginning, so that abbreviations are the same.
    """
    parser = _SilentParser(add_help=False)
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("--deterministic", action="store_true")
    try:
        return bool(parser.parse_known_args(params)[0].debug)
    except ValueError:
        return False


class Terminated(BaseException):
    """SIGTERM, as SLURM sends it before a job ends."""


def _terminate(*_: Any) -> NoReturn:
    raise Terminated


class _NoteHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(f"# {record.getMessage()}", file=sys.stderr, flush=True)
