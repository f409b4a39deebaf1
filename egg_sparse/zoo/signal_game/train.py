"""Trains and evaluates the agents of the signal game."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse import SparsemaxWrapper, SymbolGameMarg, host
from egg_sparse.callbacks import EpochSetter, MetricsWriter, StepTemperature, TrainingProgress
from egg_sparse.zoo import run_folder
from egg_sparse.zoo.options import ZooParser, as_arguments, number, require
from egg_sparse.zoo.signal_game import data
from egg_sparse.zoo.signal_game.archs import MLPSender, PaperSender, Receiver

core = host.core

PROG = "egg_sparse.zoo.signal_game"
MODES = ("marg", "sfe", "gs")
BASELINES = {
    "runavg": core.baselines.MeanBaseline,
    "builtin": core.baselines.BuiltInBaseline,
    "none": core.baselines.NoBaseline,
}
VALIDATION_GAMES, TEST_GAMES = 1024, 10_000
VALIDATION_SEED, TEST_SEED = 20200724, 20200725

# Options of one mode alone; given with another, they draw a warning.
MODE_OPTIONS = {
    "normalizer": ("marg",),
    "entropy_coeff": ("marg", "sfe"),
    "loss_type": ("sfe",),
    "baseline_type": ("sfe",),
    "gs_tau": ("gs",),
    "straight_through": ("gs",),
    "temperature_decay": ("gs",),
    "temperature_update_freq": ("gs",),
}


def _normalizer(text: str) -> str:
    if text not in ("sparsemax", "softmax", "entmax15"):
        try:
            above_1 = 1 < float(text) < float("inf")
        except ValueError:
            above_1 = False
        if not above_1:
            raise argparse.ArgumentTypeError(
                f"expected sparsemax, softmax, entmax15 or a number above 1 (alpha), got {text!r}"
            )
    return text


def build_parser() -> ZooParser:
    parser = ZooParser(
        prog=PROG,
        description="Two agents learn to name images, by exact sparse marginalization or by sampling.",
        defaults={"batch_size": 64, "n_epochs": 40, "lr": 0.005, "vocab_size": 256},
    )
    _add_method_options(parser)
    _add_game_options(parser)
    option = parser.add_argument
    option("--out", default=None, help="the run folder (default: runs/signal_game/<mode>-<seed>-<time>)")
    option("--evaluate", action="store_true", help="test --load_from_checkpoint with the options in its run folder")
    option("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_method_options(parser: ZooParser) -> None:
    option, not_negative, positive = parser.add_argument, number(float, at_least=0), number(float, above=0)
    modes = "exact marginalization, score function or Gumbel-Softmax"
    option("--mode", choices=MODES, default="marg", help=f"{modes} (default: marg)")
    normalizers = "sparsemax, softmax, entmax15 or an alpha above 1"
    option("--normalizer", type=_normalizer, default="sparsemax", help=f"marg: {normalizers} (default: sparsemax)")
    entropy = "marg, sfe: coefficient of the acting agents' entropy in nats"
    option("--entropy_coeff", type=not_negative, default=0.1, help=f"{entropy} (default: 0.1)")
    losses = "negative log-likelihood, or accuracy of a sampled guess"
    option("--loss_type", choices=("nll", "acc"), default="nll", help=f"sfe: {losses} (default: nll)")
    baselines = "running mean, mean of the batch's other examples, or none"
    option("--baseline_type", choices=tuple(BASELINES), default="runavg", help=f"sfe: {baselines} (default: runavg)")
    option("--gs_tau", type=positive, default=1.0, help="gs: first temperature (default: 1.0)")
    option("--straight_through", action="store_true", help="gs: one-hot messages in the forward pass")
    decay = "gs: r in the temperature max(0.5, gs_tau exp(-r t)) at step t"
    option("--temperature_decay", type=not_negative, default=1e-5, help=f"{decay} (default: 1e-5)")
    steps = "gs: steps between changes of the temperature"
    option("--temperature_update_freq", type=number(int, at_least=1), default=1000, help=f"{steps} (default: 1000)")


def _add_game_options(parser: ZooParser) -> None:
    option, count = parser.add_argument, number(int, at_least=1)
    option("--game_size", type=count, default=16, help="candidates, the target among them (default: 16)")
    option("--same", type=int, choices=(0, 1), default=0, help="1: candidates of the same concept (default: 0)")
    option("--latent_size", type=count, default=None, help="the same as --vocab_size")
    senders = "one hidden layer, or the agents of the paper"
    option("--sender", choices=("mlp", "paper"), default="mlp", help=f"{senders} (default: mlp)")
    option("--embedding_size", type=count, default=64, help="of embedded images and messages (default: 64)")
    option("--hidden_size", type=count, default=128, help="the sender's hidden units, or filters (default: 128)")
    divisor = "the sender's scores are divided by it"
    option("--tau_s", type=number(float, above=0), default=10.0, help=f"{divisor} (default: 10)")
    schedules = "linear: the learning rate falls to 0 at the last epoch"
    option("--lr_schedule", choices=("linear", "constant"), default="linear", help=f"{schedules} (default: linear)")
    option("--weight_decay", type=number(float, at_least=0), default=0.0, help="L2 regularization (default: 0)")
    sources = "scikit-learn's digits, concept features or an archive from --root, or torchvision's images"
    option("--data", choices=data.SOURCES, default="digits", help=f"{sources} (default: digits)")
    roots = "imagenet: folder with train/ and test/; npz: file with features (n, d) and labels (n,)"
    option("--root", default=None, help=roots)
    torchvision = "mnist, fashion-mnist: torchvision's folder, filled by download if empty"
    option("--data_root", default="data", help=f"{torchvision} (default: data)")
    option("--batches_per_epoch", type=count, default=100, help="training batches per epoch (default: 100)")


def parse_options(params: list[str]) -> argparse.Namespace:
    parser = build_parser()
    evaluate = "--evaluate" in params
    if evaluate:
        checkpoint = _value_of("--load_from_checkpoint", params)
        if checkpoint is None:
            parser.error("--evaluate needs --load_from_checkpoint, the checkpoint to test")
        params = [*as_arguments(run_folder.load_options(checkpoint)), *params]
    opts = core.init(parser, params)
    if opts.latent_size is not None:
        if "vocab_size" in parser.given and opts.vocab_size != opts.latent_size:
            parser.error(
                f"--latent_size and --vocab_size are the same option, got {opts.latent_size} and {opts.vocab_size}"
            )
        opts.vocab_size = opts.latent_size
    if not evaluate:
        unused = [name for name, modes in MODE_OPTIONS.items() if opts.mode not in modes]
        parser.warn_unused(unused, f"in mode {opts.mode}")
        parser.warn_unused(["max_len"], "in this game: messages have one symbol")
        parser.warn_unused(
            [
                name
                for name, sources in (("root", ("imagenet", "npz")), ("data_root", ("mnist", "fashion-mnist")))
                if opts.data not in sources
            ],
            f"with --data {opts.data}",
        )
    opts.latent_size = None
    return opts


def _value_of(name: str, params: list[str]) -> str | None:
    """The last value of an option, before there is a parser that knows all options."""
    value = ""
    for option, following in itertools.pairwise([*params, ""]):
        if option == name:
            value = following
        elif option.startswith(f"{name}="):
            value = option.partition("=")[2]
    return value or None


def loss_nll(
    _sender_input: Any, _message: Any, _receiver_input: Any, receiver_output: torch.Tensor, labels: Any, _aux_input: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The target's negative log-likelihood in nats; ``acc`` where it is the best candidate."""
    nll = F.nll_loss(receiver_output, labels, reduction="none")
    return nll, {"acc": (receiver_output.argmax(dim=1) == labels).float()}


def loss_acc(
    _sender_input: Any, _message: Any, _receiver_input: Any, receiver_output: torch.Tensor, labels: Any, _aux_input: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """-1 where the receiver's guess, a sampled index, is the target: not differentiable."""
    acc = (receiver_output == labels).float()
    return -acc, {"acc": acc}


def build_agents(opts: argparse.Namespace, n_features: int) -> tuple[nn.Module, nn.Module]:
    """The sender, which returns scores of symbols, and the receiver, which returns log-probabilities of candidates."""
    sizes: dict[str, Any] = {"n_features": n_features, "vocab_size": opts.vocab_size}
    hidden: dict[str, Any] = {**sizes, "hidden_size": opts.hidden_size, "tau_s": opts.tau_s}
    sizes["embedding_size"] = opts.embedding_size
    one_hot = opts.mode == "gs"
    if opts.sender == "paper":
        return PaperSender(**hidden, embedding_size=opts.embedding_size), Receiver(**sizes, one_hot=one_hot)
    return MLPSender(**hidden), Receiver(**sizes, one_hot=one_hot, symbol_std=(3 * opts.vocab_size) ** -0.5)


def _normalizer_of(opts: argparse.Namespace) -> str | float:
    named = opts.normalizer in ("sparsemax", "softmax", "entmax15")
    return opts.normalizer if named else float(opts.normalizer)


def build_game(opts: argparse.Namespace, sender: nn.Module, receiver: nn.Module) -> nn.Module:
    """The agents in the game that trains them. Interactions keep messages and scalars, no images."""
    kept: dict[str, Any] = {
        f"{phase}_logging_strategy": core.LoggingStrategy(
            store_sender_input=False,
            store_receiver_input=False,
            store_labels=False,
            store_aux_input=False,
            store_receiver_output=False,
        )
        for phase in ("train", "test")
    }
    if opts.mode == "marg":
        wrapped: nn.Module = SparsemaxWrapper(sender, normalizer=_normalizer_of(opts))
        return SymbolGameMarg(wrapped, receiver, loss_nll, sender_entropy_coeff=opts.entropy_coeff, **kept)
    if opts.mode == "gs":
        wrapped = core.GumbelSoftmaxWrapper(sender, temperature=opts.gs_tau, straight_through=opts.straight_through)
        return core.SymbolGameGS(wrapped, receiver, loss_nll, **kept)
    guesses = opts.loss_type == "acc"
    acting = core.ReinforceWrapper(receiver) if guesses else core.ReinforceDeterministicWrapper(receiver)
    return core.SymbolGameReinforce(
        core.ReinforceWrapper(sender),
        acting,
        loss_acc if guesses else loss_nll,
        sender_entropy_coeff=opts.entropy_coeff,
        receiver_entropy_coeff=opts.entropy_coeff if guesses else 0.0,
        baseline_type=BASELINES[opts.baseline_type],
        **kept,
    )


def build_loaders(opts: argparse.Namespace, images: data.SignalData) -> dict[str, data.GameLoader]:
    sizes: dict[str, Any] = {"game_size": opts.game_size, "batch_size": opts.batch_size, "same": bool(opts.same)}

    def fixed(part: data.Images, games: int, seed: int, name: str) -> data.GameLoader:
        n_batches = max(1, games // opts.batch_size)
        return data.GameLoader(part, n_batches=n_batches, seed=seed, fixed=True, name=name, **sizes)

    return {
        "validation": fixed(images.validation, VALIDATION_GAMES, VALIDATION_SEED, "validation"),
        "test": fixed(images.test, TEST_GAMES, TEST_SEED, "test"),
        "train": data.GameLoader(images.train, n_batches=opts.batches_per_epoch, seed=opts.random_seed, **sizes),
    }


def evaluate(
    opts: argparse.Namespace, sender: nn.Module, receiver: nn.Module, loader: Iterable, device: torch.device
) -> dict[str, float]:
    """Tests agents, however they were trained: with the most probable message, and exactly in expectation over the
    messages of the distribution that they were trained with.
    """
    one_hot = opts.mode == "gs"
    normalizer = _normalizer_of(opts) if opts.mode == "marg" else "softmax"
    wrapped = SparsemaxWrapper(sender, normalizer, message_format="one_hot" if one_hot else "index")
    keep_messages = core.LoggingStrategy(False, False, False, False, True, False, False)
    game = SymbolGameMarg(wrapped, receiver, loss_nll_and_report, strategy="vmap", test_logging_strategy=keep_messages)
    game.to(device).eval()

    def play(evaluation: str) -> Any:
        game.evaluation = evaluation
        with torch.no_grad():
            batches = (core.batch.Batch(*batch).to(device) for batch in loader)
            return core.Interaction.from_iterable([game(*batch)[1].to("cpu") for batch in batches])

    greedy, expected = play("greedy"), play("expected")
    messages = greedy.message.argmax(-1) if one_hot else greedy.message
    means = {name: float(value.mean()) for name, value in expected.aux.items()}
    return {
        "acc": float(greedy.aux["acc"].mean()),
        "acc_expected": means["acc"],
        "loss": means["nll"],
        "support": means["support"],
        "decoder_calls": means["decoder_calls"] if opts.mode == "marg" else 1.0,
        "messages_used": len(torch.unique(messages)),
    }


def loss_nll_and_report(*args: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    nll, aux = loss_nll(*args)
    return nll, {**aux, "nll": nll}


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
    images = data.load(opts.data, opts.root, opts.data_root, bool(opts.same))
    loaders = build_loaders(opts, images)
    sender, receiver = build_agents(opts, images.n_features)
    game = build_game(opts, sender, receiver)
    if opts.load_from_checkpoint:
        checkpoint = host.load_checkpoint(opts.load_from_checkpoint)
        host.check_architecture(game, checkpoint.model_state_dict, opts.load_from_checkpoint)
    if opts.evaluate:
        game.load_state_dict(checkpoint.model_state_dict)
    else:
        train(opts, game, loaders)
    final = None
    if leader:
        final = {
            "mode": "final",
            **evaluate(opts, sender, receiver, loaders["test"], opts.device),
            "seconds": round(time.perf_counter() - started, 1),
            "host": "egg" if host.is_egg() else "standin",
            "device": str(opts.device),
        }
        print(json.dumps(final), flush=True)
        core.close()
    if opts.distributed_context.is_distributed:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    return final


def train(opts: argparse.Namespace, game: nn.Module, loaders: dict[str, data.GameLoader]) -> None:
    """Trains the game, and fills the run folder."""
    require("matplotlib.figure", "matplotlib")  # of the curves, which come last
    leader = opts.distributed_context.is_leader
    folder = None
    if leader:
        goes_on = bool(opts.load_from_checkpoint) or opts.preemptable
        folder = run_folder.create(opts.out, "signal_game", f"{opts.mode}-{opts.random_seed}", goes_on)
        run_folder.save_options(folder, opts)
        if opts.checkpoint_dir is None:
            opts.checkpoint_dir = str(folder / run_folder.CHECKPOINTS)
        os.makedirs(opts.checkpoint_dir, exist_ok=True)

    optimizer = core.build_optimizer(game.parameters())
    for group in optimizer.param_groups:
        group["weight_decay"] = opts.weight_decay
    scheduler = None
    if opts.lr_schedule == "linear":
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda epoch: max(0.0, 1 - epoch / max(1, opts.n_epochs))
        )
    metrics = MetricsWriter(folder / run_folder.METRICS_FILE if folder else None)
    callbacks: list[Any] = [EpochSetter(loaders["train"]), metrics]
    if opts.mode == "gs":
        callbacks.append(
            StepTemperature(
                game.sender,
                opts.batches_per_epoch,
                opts.temperature_decay,
                update_frequency=opts.temperature_update_freq,
            )
        )
    progress = None
    if leader:
        if sys.stdout.isatty():
            require("rich", "rich")
            progress = TrainingProgress(opts.n_epochs, opts.batches_per_epoch)
            callbacks.append(progress)
        else:
            callbacks.append(core.ConsoleLogger(print_train_loss=True, as_json=True))
    trainer = core.Trainer(
        game=game,
        optimizer=optimizer,
        optimizer_scheduler=scheduler,
        train_data=loaders["train"],
        validation_data=loaders["validation"],
        callbacks=callbacks,
    )
    try:
        trainer.train(n_epochs=opts.n_epochs)
    except RuntimeError as error:
        if "inline_container" not in str(error):
            raise
        # how torch.save says that it could not write
        raise OSError(f"cannot write a checkpoint to {opts.checkpoint_dir}: is the disk full?") from error
    finally:
        if progress:
            progress.stop()
    if folder:
        run_folder.plot_curves(
            folder,
            metrics.history,
            {
                "acc": f"success among {opts.game_size}",
                "support": "support (messages)",
                "sender_entropy": "entropy (nats)",
            },
            f"signal game, {opts.mode}, {opts.data}, seed {opts.random_seed}",
        )
        print(f"# options, metrics, checkpoints and curves: {folder}", flush=True)
