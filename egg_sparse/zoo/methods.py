"""What the methods of the zoo have in common: their options, and the game, temperature and messages of each mode."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from torch import nn

from egg_sparse.estimators import NeuralBaseline, RelaxedWrapper, SymbolGameRelaxed, SymbolGameScoreFunction
from egg_sparse.zoo.cli import ZooParser, number


def add_gumbel_options(parser: ZooParser, decay: float = 1e-5) -> None:
    option, not_negative, positive = parser.add_argument, number(float, at_least=0), number(float, above=0)
    option("--gs_tau", type=positive, default=1.0, help="gs: first temperature (default: 1.0)")
    option("--straight_through", action="store_true", help="gs: discrete messages in the forward pass")
    rule = "gs: r in the temperature max(0.5, gs_tau exp(-r t)) at step t"
    option("--temperature_decay", type=not_negative, default=decay, help=f"{rule} (default: {decay})")
    steps = "gs: steps between changes of the temperature"
    option("--temperature_update_freq", type=number(int, at_least=1), default=1000, help=f"{steps} (default: 1000)")


BASELINES = {"runavg": "running_mean", "sample": "sample", "none": "none"}
"""The VAEs' ``--baseline_type`` -> the baseline's name in ``SymbolGameScoreFunction``."""


def add_baseline_option(parser: ZooParser) -> None:
    baselines = "running mean, the loss of a second sample, or none"
    parser.add_argument(
        "--baseline_type", choices=tuple(BASELINES), default="runavg", help=f"sfe: {baselines} (default: runavg)"
    )


SUMMING_MODES = ("marg", "sparsemap", "topksparse")
"""The modes that sum over all messages of non-zero probability."""


def add_temperature_option(parser: ZooParser, modes: tuple[str, ...], *aliases: str, otherwise: float = 1.0) -> None:
    """The option ``--temperature`` of an experiment with these modes, and what holds without it."""
    names = {"marg": "marg with a sparse normalizer"}
    controlled = " and ".join(names.get(mode, mode) for mode in modes if mode in SUMMING_MODES)
    parser.add_argument(
        "--temperature",
        *aliases,
        type=number(float, above=0),
        default=None,
        help=f"what the sender's scores are divided by (default: chosen by support control in {controlled}, "
        f"else {otherwise:g})",
    )


def controls_support(opts: argparse.Namespace) -> bool:
    """Whether the sender's temperature follows from a floor under its support, which falls over the training."""
    fixed = opts.temperature is not None or getattr(opts, "temperature_end", None) is not None
    return opts.mode in SUMMING_MODES and getattr(opts, "normalizer", "") != "softmax" and not fixed


def support_options(opts: argparse.Namespace) -> dict[str, Any]:
    """The options ``temperature`` and ``support`` of the wrapper of a sender that sums over messages."""
    if controls_support(opts):
        return {}
    return {"temperature": opts.temperature or 1.0, "support": None}


def max_support(opts: argparse.Namespace) -> int | None:
    """The largest support that a mode that sums over messages sums exactly in training; None for any."""
    return opts.max_support if opts.mode in ("sumsample", "sparsemap", "topksparse") else None


def trained_messages(opts: argparse.Namespace) -> str:
    """Which messages a mode is trained with, in the words of a curve's label."""
    if opts.mode == "gs":
        return "sampled" if opts.straight_through else "relaxed"
    if opts.mode in ("sfe", "nvil"):
        return "sampled"
    return "expected" if max_support(opts) is None else "sampled in part"


def sampling_game(
    opts: argparse.Namespace, sampler: Any, receiver: nn.Module, loss: Any, n_inputs: int, **options: Any
) -> nn.Module:
    """The game of mode sfe, nvil or gs.

    Args:
        opts: all options.
        sampler: the sender's agent in a wrapper that samples messages.
        receiver: the receiver.
        loss: the game's loss.
        n_inputs: the number of features of the sender's input, which NVIL's baseline reads.
        options: the game's other options.
    """
    if opts.mode == "gs":
        relaxed = RelaxedWrapper(sampler, opts.gs_tau, straight_through=opts.straight_through)
        return SymbolGameRelaxed(relaxed, receiver, loss, **options)
    baseline = NeuralBaseline(n_inputs) if opts.mode == "nvil" else BASELINES[opts.baseline_type]
    return SymbolGameScoreFunction(sampler, receiver, loss, baseline, **options)


TRAINING_OPTIONS = (
    "batch_size",
    "checkpoint_dir",
    "checkpoint_freq",
    "fp16",
    "keep",
    "lr",
    "lr_schedule",
    "n_epochs",
    "on_nan",
    "optimizer",
    "random_seed",
    "tensorboard",
    "update_freq",
    "validation_freq",
    "weight_decay",
)
"""Options that have no effect with ``--evaluate``."""


def warn_unused(
    parser: ZooParser,
    opts: argparse.Namespace,
    data_options: Mapping[str, tuple[str, ...]],
    mode_options: Mapping[str, tuple[str, ...]],
) -> None:
    """One warning for every given option that has no effect in this mode, with this data or in a mere test."""
    if opts.evaluate:
        parser.warn_unused(TRAINING_OPTIONS, "with --evaluate")
    parser.warn_unused([name for name, modes in mode_options.items() if opts.mode not in modes], f"in mode {opts.mode}")
    parser.warn_unused(
        [name for name, sources in data_options.items() if opts.data not in sources], f"with --data {opts.data}"
    )
