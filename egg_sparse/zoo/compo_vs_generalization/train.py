"""Trains and evaluates agents that describe objects, on combinations of values that they have not seen as well."""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import nn

from egg_sparse import host
from egg_sparse.language import Language, bosdis, posdis, topographic_similarity
from egg_sparse.zoo import methods, plots, resume, sequences, training
from egg_sparse.zoo.cli import ZooParser, number
from egg_sparse.zoo.compo_vs_generalization import data
from egg_sparse.zoo.compo_vs_generalization.data import ObjectLoader, Split
from egg_sparse.zoo.compo_vs_generalization.games import BASELINES, METHODS, build_game
from egg_sparse.zoo.sequences import CELLS

core = host.core

PROG = "egg_sparse.zoo.compo_vs_generalization"
EVALUATION_BATCH = 500
LANGUAGE_SEED = 20200506
LANGUAGE_OBJECTS = 500
"""The most objects whose messages are compared in pairs."""

METHOD_OPTIONS: dict[str, dict[str, Any]] = {
    "normalizer": {
        "type": methods.normalizer,
        "help": "entmax15 (default), sparsemax, softmax, or an alpha above 1",
    },
    "max_support": {"default": 16, "help": "messages per object; larger supports are resampled without bias"},
    "temperature": {
        "type": number(float, above=0),
        "default": 1.0,
        "help": "divisor of the sender's scores in marg, temperature of the relaxation in gs",
    },
    "sender_entropy_coeff": {
        "type": number(float, at_least=0),
        "default": 0.1,
        "help": "coefficient of the sender's entropy in nats, of a message in marg, of a symbol on average in rf",
    },
    "baseline": {"choices": tuple(BASELINES), "default": "mean", "help": "running mean, mean of the others, or none"},
}


def build_parser() -> ZooParser:
    parser = ZooParser(
        prog=PROG,
        description="Two agents learn to describe objects, by exact sparse marginalization or by sampling.",
        quick={"n_epochs": 2, "n_values": 5, "vocab_size": 6, "data_scaler": 4, "batch_size": 16},
        defaults={
            "batch_size": 64, "n_epochs": 20, "lr": 0.003, "vocab_size": 60, "max_len": 2, "checkpoint_freq": 1,
        },
    )  # fmt: skip
    count = number(int, at_least=1)
    option = parser.group["data"].add_argument
    option("--n_attributes", type=number(int, at_least=2), default=2, help="attributes of an object")
    option("--n_values", type=number(int, at_least=2), default=20, help="values of an attribute")
    splits = "combinations of values that all occur in training, or first the value 0 of each attribute, as in EGG"
    option("--split", choices=data.SPLITS, default="combinations", help=f"what is held out: {splits}")
    option("--hold_out", type=number(float, above=0), default=0.1, help="share of combinations held out")
    option("--data_scaler", type=count, default=20, help="times that an epoch shows each object")
    option = parser.group["agents"].add_argument
    for agent in ("sender", "receiver"):
        option(f"--{agent}_cell", choices=CELLS, default="gru", help=f"network of the {agent}")
        option(f"--{agent}_hidden", type=count, default=100, help=f"hidden units of the {agent}")
        option(f"--{agent}_emb", type=count, default=100, help=f"size of the {agent}'s embedded symbols")
        option(f"--{agent}_num_layers", type=count, default=1, help=f"marg, rf: layers of the {agent}")
        heads = f"marg, rf: attention heads of the {agent}, if a transformer"
        option(f"--{agent}_num_heads", type=count, default=4, help=heads)
    option("--length_cost", type=number(float, at_least=0), default=0.0, help="cost of a symbol of a message")
    methods.add_options(parser, METHODS, METHOD_OPTIONS)
    training.add_run_options(parser, "compo_vs_generalization")
    return parser


def parse_options(params: list[str]) -> argparse.Namespace:
    parser = build_parser()
    opts = resume.parse(parser, params)
    methods.warn_unused(parser, opts, METHODS, {})
    methods.complete(opts, METHODS[opts.mode], temperature=1.0)
    for agent in ("sender", "receiver"):
        cell, embedding, heads = (getattr(opts, f"{agent}_{name}") for name in ("cell", "emb", "num_heads"))
        if opts.mode == "gs":
            parser.warn_unused([f"{agent}_num_layers"], "in mode gs")
        if cell != "transformer":
            parser.warn_unused([f"{agent}_num_heads"], f"with --{agent}_cell {cell}")
        elif opts.mode == "gs":
            parser.error(f"--{agent}_cell must be rnn, gru or lstm in mode gs, got transformer")
        elif embedding % heads:
            parser.error(f"--{agent}_emb must be a multiple of --{agent}_num_heads {heads}, got {embedding}")
    return opts


def build_loaders(opts: argparse.Namespace, split: Split) -> dict[str, ObjectLoader]:
    """The batches of training, and those of each part of the split in evaluation."""

    def fixed(objects: torch.Tensor, ignore_zeros: bool = False) -> ObjectLoader:
        return ObjectLoader(objects, opts.n_values, EVALUATION_BATCH, fixed=True, ignore_zeros=ignore_zeros)

    return {
        "batches": ObjectLoader(
            split.train,
            opts.n_values,
            opts.batch_size,
            opts.random_seed,
            part=training.part_of_batch(opts),
            times=opts.data_scaler,
        ),
        "train": fixed(split.train),
        "unseen": fixed(split.unseen),
        **({"new_values": fixed(split.new_values, ignore_zeros=True)} if len(split.new_values) else {}),
    }


def describe_language(objects: torch.Tensor, messages: torch.Tensor) -> dict[str, Any]:
    """The statistics of objects' messages ``(n, L)``."""
    language = Language.of_messages(messages, "sequences")
    chosen = torch.randperm(len(objects), generator=torch.Generator().manual_seed(LANGUAGE_SEED))
    compared = chosen[:LANGUAGE_OBJECTS]
    some = Language.of_messages(messages[compared], "sequences")
    return {
        "length": language.expected_length(),
        "messages_used": language.messages_used(),
        "topsim": topographic_similarity(some, objects[compared], message_distance="levenshtein"),
        "posdis": posdis(language, objects),
        "bosdis": bosdis(language, objects),
    }


def evaluate(
    opts: argparse.Namespace, game: nn.Module, loaders: dict[str, ObjectLoader], split: Split
) -> dict[str, Any]:
    """Tests agents on each part of the split, and describes the language of the training objects."""
    method = METHODS[opts.mode]
    results: dict[str, Any] = {}
    greedy = {part: sequences.play(game, loader, opts.device) for part, loader in loaders.items() if part != "batches"}
    for part, figures in greedy.items():
        for name in ("acc", "acc_or"):
            results[f"{name}_{part}"] = float(figures[name].float().mean())
    results |= describe_language(split.train, greedy["train"]["message"])
    calls = method.receiver_calls(opts, 0)
    if method.sums:
        expected = {part: sequences.play(game, loaders[part], opts.device, "expected") for part in ("train", "unseen")}
        results |= {f"acc_expected_{part}": float(figures["acc"].mean()) for part, figures in expected.items()}
        for name in ("support", "exact", "receiver_calls"):
            results[name] = float(expected["train"][name].float().mean())
    return {**results, **({} if calls is None else {"receiver_calls": calls})}


def main(params: list[str]) -> dict[str, Any] | None:
    """Runs the experiment; ``params`` are command-line arguments.

    Returns:
        What the last line of standard output says; None in processes other than the leading one.
    """
    started = time.perf_counter()
    opts = parse_options(params)
    leader = opts.distributed_context.is_leader
    if leader:
        print(f"# {PROG} on {host.describe()}, {opts.device}", flush=True)
    split = data.split(opts.n_attributes, opts.n_values, opts.split, opts.hold_out)
    loaders = build_loaders(opts, split)
    game = build_game(opts)
    resume.load_for_evaluation(opts, game)
    run = None if opts.evaluate else train(opts, game, loaders)
    results = evaluate(opts, game, loaders, split) if leader else None
    if run and results:
        run.draw_curves(_panels(opts), results)
    return training.finish(opts, results, started, run)


def train(opts: argparse.Namespace, game: nn.Module, loaders: dict[str, ObjectLoader]) -> training.Run | None:
    """Trains the game, and fills the run folder. The validation is on combinations that are not seen."""
    method = METHODS[opts.mode]

    def expected_success(device: torch.device) -> dict[str, torch.Tensor]:
        return {"acc_expected": sequences.play(game, loaders["unseen"], device, "expected")["acc"]}

    callbacks = [training.ValidationAsTrained(expected_success)] if method.sums else []
    callbacks += method.callbacks(opts, game.sender, len(loaders["batches"]))
    batches, validation = loaders["batches"], loaders["unseen"]
    return training.train(opts, game, game.sender, batches, validation, "compo_vs_generalization", callbacks)


def _panels(opts: argparse.Namespace) -> list[plots.Panel]:
    messages = METHODS[opts.mode].trained_messages(opts)
    whole = (
        plots.Curve("train", "acc", messages),
        plots.Curve("validation", "acc", "unseen", "acc_unseen"),
    )
    attributes = (
        plots.Curve("train", "acc_or", messages),
        plots.Curve("validation", "acc_or", "unseen", "acc_or_unseen"),
    )
    return [
        plots.Panel("objects with all attributes right (share)", whole, opts.n_values**-opts.n_attributes),
        plots.Panel("attributes that are right (share)", attributes, 1 / opts.n_values),
        plots.compared("support (messages)", "support", "support"),
        plots.compared("length (symbols before the end)", "length"),
    ]
