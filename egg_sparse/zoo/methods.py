"""The methods of the zoo, a row each: what ``--mode`` can be, its options, its game, and what that game computes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from egg_sparse import SparseMAPBitVectorWrapper, SparsemaxWrapper, SymbolGameMarg, TopKSparsemaxWrapper
from egg_sparse.callbacks import Schedule, StepTemperature, SupportSchedule
from egg_sparse.estimators import NeuralBaseline, RelaxedWrapper, SymbolGameRelaxed, SymbolGameScoreFunction
from egg_sparse.estimators.score_function import Baseline
from egg_sparse.mappings.sparsemap import DECOMPOSITIONS
from egg_sparse.zoo.cli import ZooParser, number

Options = argparse.Namespace


@dataclass(frozen=True)
class GameParts:
    """The parts from which a method builds the game of an experiment.

    Attributes:
        sender: the agent that returns scores.
        receiver: the agent that reads a message.
        loss: the loss, as EGG's games take it.
        sampler: the wrapper that makes an agent's scores a distribution to sample from.
        neural_baseline: makes the network that predicts the loss, for NVIL.
        options: the options of every game.
        summing_options: further options of a game that sums over messages.
        sampling_options: further options of a game that samples messages.
    """

    sender: nn.Module
    receiver: nn.Module
    loss: Callable
    sampler: Callable[..., nn.Module]
    neural_baseline: Callable[[], NeuralBaseline]
    options: Mapping[str, Any]
    summing_options: Mapping[str, Any] = field(default_factory=dict)
    sampling_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A way to train a sender of discrete messages.

    Attributes:
        summary: the method's name in words, for ``--help``.
        build: makes the game, from all options and the experiment's parts.
        options: the names of the options that it reads and other methods may not read.
        normalizer: the normalizer of the sender's scores unless ``--normalizer`` names one.
        sums: whether the game sums over the sender's support.
        controls_support: whether support control chooses the sender's temperature unless an option fixes it.
        one_hot: whether messages of symbols are one-hot rows.
        trained_messages: the messages that the game is trained with: "expected", "sampled", "sampled in part" or
            "relaxed".
        receiver_calls: receiver calls per example and training step, from all options and the number of messages; None
            where they are the size of the support.
        callbacks: makes the callbacks, from all options, the game's sender and the batches per epoch.
    """

    summary: str
    build: Callable[[Options, Any], nn.Module]
    options: tuple[str, ...] = ()
    normalizer: str = "softmax"
    sums: bool = False
    controls_support: bool = False
    one_hot: bool = False
    trained_messages: Callable[[Options], str] = lambda opts: "sampled"
    receiver_calls: Callable[[Options, int], float | None] = lambda opts, n_messages: 1.0
    callbacks: Callable[[Options, Any, int], list[Any]] = lambda opts, sender, batches_per_epoch: []


def controls_support(opts: Options, method: Method) -> bool:
    """Whether the sender's temperature follows from a floor under its support, which falls over the training."""
    fixed = opts.temperature is not None or getattr(opts, "temperature_end", None) is not None
    return method.controls_support and getattr(opts, "normalizer", "") != "softmax" and not fixed


def wrapper_options(opts: Options) -> dict[str, Any]:
    """The temperature of a sender that sums over messages, or support control where the temperature is None."""
    return {} if opts.temperature is None else {"temperature": opts.temperature, "support": None}


def _support_callbacks(opts: Options, sender: Any, batches_per_epoch: int, **end: float) -> list[Any]:
    callbacks: list[Any] = [SupportSchedule(sender, **end)] if sender.control else []
    if getattr(opts, "temperature_end", None) is not None:
        fn = linear(opts.temperature, opts.temperature_end, opts.n_epochs)
        callbacks.append(Schedule(sender, "temperature", fn))
    return callbacks


def linear(start: float, end: float, n_epochs: int) -> Callable[[int], float]:
    """The function of the epoch that goes from ``start`` at 1 to ``end`` at ``n_epochs`` linearly, and stays there."""
    return lambda epoch: end if n_epochs < 2 else start + (end - start) * min(1.0, (epoch - 1) / (n_epochs - 1))


def max_support(opts: Options, method: Method) -> int | None:
    """The largest support that the method sums exactly in training; None for any."""
    return opts.max_support if "max_support" in method.options else None


def _summing_game(sender: nn.Module, opts: Options, parts: GameParts, max_support: int | None) -> nn.Module:
    return SymbolGameMarg(
        sender,
        parts.receiver,
        parts.loss,
        sender_entropy_coeff=opts.entropy_coeff,
        max_support=max_support,
        bound="sum_and_sample",
        **parts.options,
        **parts.summing_options,
    )


def alpha_of(normalizer: str) -> Any:
    """The value of ``--normalizer`` as :class:`egg_sparse.SparsemaxWrapper` takes it: a name, or alpha."""
    return normalizer if normalizer in NORMALIZERS else float(normalizer)


def _sparsemax_game(opts: Options, parts: GameParts, max_support: int | None = None) -> nn.Module:
    sender = SparsemaxWrapper(parts.sender, alpha_of(opts.normalizer), **wrapper_options(opts))
    return _summing_game(sender, opts, parts, max_support)


def _sparsemap_game(opts: Options, parts: GameParts) -> nn.Module:
    sender = SparseMAPBitVectorWrapper(parts.sender, opts.budget, opts.decomposition, **wrapper_options(opts))
    return _summing_game(sender, opts, parts, opts.max_support)


def _topk_sparsemax_game(opts: Options, parts: GameParts) -> nn.Module:
    sender = TopKSparsemaxWrapper(parts.sender, opts.topksparse, **wrapper_options(opts))
    return _summing_game(sender, opts, parts, opts.max_support)


def score_function_game(opts: Options, parts: GameParts, baseline: Baseline | nn.Module) -> nn.Module:
    """The game that learns by the score function estimator with a baseline."""
    return SymbolGameScoreFunction(
        parts.sampler(parts.sender, opts.temperature),
        parts.receiver,
        parts.loss,
        baseline,
        sender_entropy_coeff=opts.entropy_coeff,
        **parts.options,
        **parts.sampling_options,
    )


def _relaxed_game(opts: Options, parts: GameParts) -> nn.Module:
    sampler = parts.sampler(parts.sender, opts.temperature)
    return SymbolGameRelaxed(
        RelaxedWrapper(sampler, opts.gs_tau, straight_through=opts.straight_through),
        parts.receiver,
        parts.loss,
        sender_entropy_coeff=opts.entropy_coeff,
        **parts.options,
        **parts.sampling_options,
    )


def _step_temperature(opts: Options, sender: Any, batches_per_epoch: int) -> list[Any]:
    decay, steps = opts.temperature_decay, opts.temperature_update_freq
    return [StepTemperature(sender, batches_per_epoch, decay, update_frequency=steps)]


NORMALIZERS = ("sparsemax", "softmax", "entmax15")


def normalizer(text: str) -> str:
    """An argparse type: the name of a normalizer, or alpha."""
    if text not in NORMALIZERS:
        try:
            above_1 = 1 < float(text) < float("inf")
        except ValueError:
            above_1 = False
        if not above_1:
            raise argparse.ArgumentTypeError(
                f"expected {', '.join(NORMALIZERS)} or a number above 1 (alpha), got {text!r}"
            )
    return text


normalizer.__name__ = "NAME"

BASELINES: dict[str, Baseline] = {"runavg": "running_mean", "sample": "sample", "none": "none"}
"""The values of ``--baseline_type`` that every experiment has -> the name in ``SymbolGameScoreFunction``."""

MARG = Method(
    "exact marginalization",
    _sparsemax_game,
    normalizer="sparsemax",
    sums=True,
    controls_support=True,
    trained_messages=lambda opts: "expected",
    receiver_calls=lambda opts, n_messages: None,
    callbacks=_support_callbacks,
)
SUMSAMPLE = Method(
    "sum-and-sample",
    lambda opts, parts: _sparsemax_game(opts, parts, opts.max_support),
    options=("max_support",),
    sums=True,
    trained_messages=lambda opts: "sampled in part",
    receiver_calls=lambda opts, n_messages: float(min(opts.max_support + 1, n_messages)),
)
SPARSEMAP = Method(
    "SparseMAP",
    _sparsemap_game,
    options=("budget", "decomposition", "max_support", "temperature_end"),
    sums=True,
    controls_support=True,
    trained_messages=lambda opts: "expected" if opts.max_support is None else "sampled in part",
    receiver_calls=lambda opts, n_messages: None,
    # the support falls less than in a game: the entropy is part of a VAE's loss
    callbacks=partial(_support_callbacks, end=3.0),
)
TOPKSPARSE = Method(
    "top-k sparsemax",
    _topk_sparsemax_game,
    options=("topksparse", "max_support", "temperature_end"),
    sums=True,
    controls_support=True,
    trained_messages=SPARSEMAP.trained_messages,
    receiver_calls=lambda opts, n_messages: None,
    callbacks=SPARSEMAP.callbacks,
)
SFE = Method(
    "score function",
    lambda opts, parts: score_function_game(opts, parts, BASELINES[opts.baseline_type]),
    options=("baseline_type",),
    receiver_calls=lambda opts, n_messages: 2.0 if opts.baseline_type == "sample" else 1.0,
)
NVIL = Method("NVIL", lambda opts, parts: score_function_game(opts, parts, parts.neural_baseline()))
GS = Method(
    "Gumbel-Softmax",
    _relaxed_game,
    options=("gs_tau", "straight_through", "temperature_decay", "temperature_update_freq"),
    one_hot=True,
    trained_messages=lambda opts: "sampled" if opts.straight_through else "relaxed",
    callbacks=_step_temperature,
)

SYMBOL_METHODS = {"marg": MARG, "sfe": SFE, "nvil": NVIL, "sumsample": SUMSAMPLE, "gs": GS}
"""The methods for a sender of one symbol, by ``--mode``."""

BIT_VECTOR_METHODS = {"sparsemap": SPARSEMAP, "topksparse": TOPKSPARSE, "sfe": SFE, "nvil": NVIL, "gs": GS}
"""The methods for a sender of a bit-vector, by ``--mode``."""

_COUNT, _POSITIVE = number(int, at_least=1), number(float, above=0)

OPTIONS: dict[str, dict[str, Any]] = {
    "max_support": {"type": _COUNT, "help": "messages that are summed exactly, beside a sampled one of the others"},
    "budget": {"type": number(int, at_least=0), "help": "bits that may be on in a message; any number if not given"},
    "decomposition": {
        "choices": DECOMPOSITIONS,
        "default": "systematic",
        "help": "decomposition of the marginals into bit-vectors",
    },
    "topksparse": {"type": _COUNT, "default": 10, "help": "k, the number of bit-vectors"},
    "temperature_end": {
        "type": _POSITIVE,
        "help": "temperature at the last epoch, reached linearly from --temperature or 1; the same if not given",
    },
    "baseline_type": {
        "choices": tuple(BASELINES),
        "default": "runavg",
        "help": "running mean, the loss of a second sample, or none",
    },
    "gs_tau": {"type": _POSITIVE, "default": 1.0, "help": "first temperature of the relaxation"},
    "straight_through": {"action": "store_true", "help": "discrete messages in the forward pass"},
    "temperature_decay": {
        "type": number(float, at_least=0),
        "default": 1e-5,
        "help": "r in the temperature max(0.5, gs_tau exp(-r t)) at step t",
    },
    "temperature_update_freq": {
        "type": _COUNT,
        "default": 1000,
        "help": "steps between changes of that temperature",
    },
}
"""The options of the rows above, as ``argparse`` takes them."""


def add_options(
    parser: ZooParser,
    methods: Mapping[str, Method],
    own: Mapping[str, dict[str, Any]] | None = None,
    aliases: Mapping[str, str] | None = None,
) -> None:
    """Adds ``--mode`` and the options of the methods of an experiment.

    Args:
        parser: the parser.
        methods: the methods, by ``--mode``; the first one is the default.
        own: the options of the experiment, by name, and what it has differently from :data:`OPTIONS`.
        aliases: second names of options, by name.
    """
    group = parser.group["method"]
    summaries = ", ".join(f"{method.summary} ({name})" for name, method in methods.items())
    group.add_argument("--mode", choices=tuple(methods), default=next(iter(methods)), help=summaries)
    for name in dict.fromkeys(name for method in methods.values() for name in method.options):
        arguments = {**OPTIONS.get(name, {}), **(own or {}).get(name, {})}
        readers = ", ".join(mode for mode, method in methods.items() if name in method.options)
        names = [f"--{each}" for each in (name, (aliases or {}).get(name)) if each]
        group.add_argument(*names, **{**arguments, "help": f"{readers}: {arguments['help']}"})


def add_temperature_option(
    parser: ZooParser, methods: Mapping[str, Method], *aliases: str, otherwise: str = "1"
) -> None:
    """Adds ``--temperature``.

    Args:
        parser: the parser.
        methods: the methods, by ``--mode``.
        aliases: second names of the option.
        otherwise: the temperature where neither this option nor support control sets it.
    """
    by_name = {"marg": "marg with a sparse normalizer"}
    controlled = [by_name.get(name, name) for name, method in methods.items() if method.controls_support]
    unless = f"chosen by support control in {' and '.join(controlled)}, else " if controlled else ""
    parser.group["method"].add_argument(
        "--temperature",
        *aliases,
        type=_POSITIVE,
        help=f"divisor of the sender's scores (default: {unless}{otherwise})",
    )


def complete(opts: Options, method: Method, temperature: float) -> None:
    """Sets ``--normalizer`` and ``--temperature`` where they were not given.

    Args:
        opts: all options. ``temperature`` stays None where support control chooses it.
        method: the method.
        temperature: the temperature of the experiment without support control.
    """
    if getattr(opts, "normalizer", "") is None:
        opts.normalizer = method.normalizer
    if opts.temperature is None and not controls_support(opts, method):
        opts.temperature = temperature


TRAINING_OPTIONS = (
    "batch_size",
    "checkpoint_dir",
    "checkpoint_freq",
    "fp16",
    "gradient_variance",
    "keep",
    "keep_best",
    "lr",
    "lr_schedule",
    "n_epochs",
    "on_nan",
    "optimizer",
    "random_seed",
    "tensorboard",
    "tensorboard_dir",
    "update_freq",
    "validation_freq",
    "wandb",
    "wandb_dir",
    "wandb_project",
    "weight_decay",
)
"""Options that have no effect with ``--evaluate``."""


def warn_unused(
    parser: ZooParser,
    opts: Options,
    methods: Mapping[str, Method],
    data_options: Mapping[str, tuple[str, ...]],
) -> None:
    """Writes a warning for every given option that has no effect: in this mode, with this data, or in a mere test.

    Args:
        parser: the parser, which knows what was given.
        opts: all options.
        methods: the methods of the experiment, by ``--mode``.
        data_options: the values of ``--data`` with which an option has an effect, by the option's name.
    """
    if opts.evaluate:
        parser.warn_unused(TRAINING_OPTIONS, "with --evaluate")
    else:
        for logger, of_logger in (("tensorboard", ["tensorboard_dir"]), ("wandb", ["wandb_dir", "wandb_project"])):
            if not getattr(opts, logger, False):
                parser.warn_unused(of_logger, f"without --{logger}")
    of_methods = dict.fromkeys(name for method in methods.values() for name in method.options)
    parser.warn_unused([name for name in of_methods if name not in methods[opts.mode].options], f"in mode {opts.mode}")
    unused = [name for name, sources in data_options.items() if opts.data not in sources]
    if unused:
        parser.warn_unused(unused, f"with --data {opts.data}")
    for name, why in parser.unused.items():
        parser.warn_unused([name], why)
