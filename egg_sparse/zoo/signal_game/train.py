"""Trains and evaluates the agents of the signal game."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse import SparsemaxWrapper, SymbolGameMarg, host
from egg_sparse.wrappers import MessageFormat, Normalizer
from egg_sparse.zoo import methods, plots, resume, sequences, training
from egg_sparse.zoo.cli import ZooParser, number, path
from egg_sparse.zoo.signal_game import data
from egg_sparse.zoo.signal_game.archs import Receiver
from egg_sparse.zoo.signal_game.games import (
    EGGS_BASELINES,
    METHODS,
    SEQUENCE_METHODS,
    build_agents,
    build_game,
    build_sequence_game,
    loss_nll_and_report,
    methods_of,
)

core = host.core

PROG = "egg_sparse.zoo.signal_game"
VALIDATION_GAMES, TEST_GAMES = 1024, 10_000
EVALUATION_BATCH = 64
TEMPERATURE, SEQUENCE_TEMPERATURE, ENTROPY_COEFF = 10.0, 1.0, 0.1
VALIDATION_SEED, TEST_SEED = 20200724, 20200725
DATA_OPTIONS = {
    "root": ("imagenet", "npz"),
    "data_root": ("mnist", "fashion-mnist"),
    "pixels": ("digits", "mnist", "fashion-mnist"),
}


METHOD_OPTIONS: dict[str, dict[str, Any]] = {
    "normalizer": {
        "type": methods.normalizer,
        "help": "sparsemax (default in marg), softmax (default in sumsample), entmax15, or an alpha above 1",
    },
    "max_support": {
        "default": 10,
        "help": "symbols that are summed exactly, beside a sampled one of the others; marg with --max_len above 1: "
        "messages per game, larger supports are resampled without bias",
    },
    "entropy_coeff": {
        "type": number(float, at_least=0),
        "help": "coefficient of the acting agents' entropy in nats "
        f"(default: 0 where support control chooses the temperature, else {ENTROPY_COEFF})",
    },
    "loss_type": {
        "choices": ("nll", "acc"),
        "default": "nll",
        "help": "negative log-likelihood, or accuracy of a sampled guess",
    },
    "baseline_type": {
        "choices": (*EGGS_BASELINES, "sample"),
        "help": "running mean, mean of the batch's other examples, none, or the loss of a second sample",
    },
}


def build_parser() -> ZooParser:
    parser = ZooParser(
        prog=PROG,
        description="Two agents learn to name images, by exact sparse marginalization or by sampling.",
        quick={"n_epochs": 2, "batches_per_epoch": 10, "vocab_size": 16, "game_size": 4, "batch_size": 16},
        defaults={"batch_size": 64, "n_epochs": 40, "lr": 0.005, "vocab_size": 256, "max_len": 1, "checkpoint_freq": 1},
    )
    count = number(int, at_least=1)
    option = parser.group["data"].add_argument
    sources = "scikit-learn's digits, concept features or an archive from --root, or torchvision's images"
    option("--data", choices=data.SOURCES, default="digits", help=sources)
    roots = "imagenet: folder with train/ and test/; npz: file with features (n, d) and labels (n,)"
    option("--root", type=path, help=roots)
    torchvision = "mnist, fashion-mnist: torchvision's folder, filled by download if empty"
    option("--data_root", type=path, default="data", help=torchvision)
    pixels = "pixels of mean 0 and standard deviation 1, or brightness from 0 to 1, which suits the paper's sender"
    option("--pixels", choices=("standard", "brightness"), default="standard", help=pixels)
    option("--game_size", type=count, default=16, help="candidates, the target among them")
    option("--same", type=int, choices=(0, 1), default=0, help="1: candidates of the same concept")
    option("--batches_per_epoch", type=count, default=100, help="training batches per epoch")
    option = parser.group["agents"].add_argument
    option("--sender", choices=("mlp", "paper"), default="mlp", help="one hidden layer, or the sender of the paper")
    option("--embedding_size", type=count, default=64, help="size of embedded images and messages")
    option("--hidden_size", type=count, default=128, help="hidden units, or filters, of the sender")
    option("--latent_size", type=count, help="another name of --vocab_size")
    cells = "network that writes and reads messages, with --max_len above 1"
    option("--cell", choices=sequences.CELLS, default="gru", help=cells)
    cost = "cost of a symbol, with --max_len above 1"
    option("--length_cost", type=number(float, at_least=0), default=0.0, help=cost)
    methods.add_options(parser, METHODS, METHOD_OPTIONS, aliases={"max_support": "topk"})
    otherwise = f"{TEMPERATURE:g}, or {SEQUENCE_TEMPERATURE:g} with --max_len above 1"
    methods.add_temperature_option(parser, METHODS, "--tau_s", otherwise=otherwise)
    training.add_run_options(parser, "signal_game")
    return parser


def parse_options(params: list[str]) -> argparse.Namespace:
    parser = build_parser()
    opts = resume.parse(parser, params)
    if opts.latent_size is not None:
        if "vocab_size" in parser.given and opts.vocab_size != opts.latent_size:
            parser.error(
                f"--latent_size and --vocab_size are the same option, got {opts.latent_size} and {opts.vocab_size}"
            )
        opts.vocab_size = opts.latent_size
    opts.latent_size = None
    if opts.max_len > 1:
        _check_sequences(parser, opts)
    else:
        parser.warn_unused(["cell", "length_cost"], "with --max_len 1")
    methods.warn_unused(parser, opts, methods_of(opts), DATA_OPTIONS)
    methods.complete(opts, methods_of(opts)[opts.mode], TEMPERATURE if opts.max_len == 1 else SEQUENCE_TEMPERATURE)
    if opts.entropy_coeff is None:
        opts.entropy_coeff = ENTROPY_COEFF if opts.temperature is not None else 0.0
    return opts


def _check_sequences(parser: ZooParser, opts: argparse.Namespace) -> None:
    """Refuses what has no form for messages of several symbols."""
    several = f"with --max_len {opts.max_len}"
    if opts.mode not in methods_of(opts):
        parser.error(f"--max_len must be 1 in mode {opts.mode}, which has messages of one symbol, got {opts.max_len}")
    if opts.mode == "sfe" and opts.baseline_type == "sample":
        parser.error(f"--baseline_type must be one of {', '.join(EGGS_BASELINES)} {several}, got sample")
    if opts.mode == "sfe" and opts.loss_type == "acc":
        parser.error(f"--loss_type must be nll {several}, got acc")
    if opts.cell == "transformer" and opts.mode == "gs":
        parser.error("--cell must be rnn, gru or lstm in mode gs, got transformer")
    if opts.cell == "transformer" and opts.embedding_size % sequences.Coder.heads:
        parser.error(
            f"--embedding_size must be a multiple of {sequences.Coder.heads} with --cell transformer, got "
            f"{opts.embedding_size}"
        )
    if opts.mode != "marg":
        parser.warn_unused(["temperature"], f"in mode {opts.mode} {several}")


def build_loaders(opts: argparse.Namespace, images: data.SignalData) -> dict[str, data.GameLoader]:
    sizes: dict[str, Any] = {"game_size": opts.game_size, "same": bool(opts.same), "batch_first": opts.max_len > 1}

    def fixed(part: data.Images, games: int, seed: int, name: str) -> data.GameLoader:
        batches: dict[str, Any] = {"batch_size": EVALUATION_BATCH, "n_batches": max(1, games // EVALUATION_BATCH)}
        return data.GameLoader(part, seed=seed, fixed=True, name=name, **batches, **sizes)

    return {
        "validation": fixed(images.validation, VALIDATION_GAMES, VALIDATION_SEED, "validation"),
        "test": fixed(images.test, TEST_GAMES, TEST_SEED, "test"),
        "train": data.GameLoader(
            images.train,
            batch_size=opts.batch_size,
            n_batches=opts.batches_per_epoch,
            seed=opts.random_seed,
            part=training.part_of_batch(opts),
            **sizes,
        ),
    }


@torch.no_grad()
def play_exactly(
    opts: argparse.Namespace,
    sender: nn.Module,
    receiver: Receiver,
    loader: Iterable,
    device: torch.device,
    temperature: float,
) -> dict[str, torch.Tensor]:
    """Plays games over all messages of the distribution that the sender was trained with, each game once.

    Args:
        opts: all options.
        sender: the agent that returns scores of symbols.
        receiver: the agent that returns log-probabilities of candidates.
        loader: batches of games.
        device: the device that plays them.
        temperature: the divisor of the sender's scores that its wrapper has, see :func:`wrapper_temperature`.

    Returns:
        Per game, on the CPU: ``acc`` with the most probable message, which is ``message``; and in exact expectation
        over messages ``acc_expected``, ``nll``, ``support`` and ``receiver_calls``; and ``exact``, 1 where training
        sums over a support of this size exactly, else 0, in the modes that sum.
    """
    method = METHODS[opts.mode]
    normalizer: Normalizer | float = methods.alpha_of(opts.normalizer) if method.sums else "softmax"
    message_format: MessageFormat = "one_hot" if method.one_hot else "index"
    wrapped = SparsemaxWrapper(sender, normalizer, message_format, temperature, support=None)
    kept = core.LoggingStrategy(False, False, False, False, True, True, False)
    game = SymbolGameMarg(
        wrapped,
        receiver,
        loss_nll_and_report,
        strategy="vmap",
        evaluation="expected",
        max_support=methods.max_support(opts, method),
        test_logging_strategy=kept,
    )
    game.to(device).eval()
    figures: dict[str, list[torch.Tensor]] = {}
    for batch in loader:
        on_device = core.batch.Batch(*batch).to(device)
        _, played = game(*on_device)
        message = played.message.argmax(-1) if method.one_hot else played.message
        greedy = {"acc": (played.receiver_output.argmax(dim=1) == on_device.labels).float(), "message": message}
        for name, value in {**played.aux, "acc_expected": played.aux["acc"], **greedy}.items():
            figures.setdefault(name, []).append(value.cpu())
    return {name: torch.cat(values) for name, values in figures.items()}


@torch.no_grad()
def play_sampled(
    sender: nn.Module,
    receiver: Receiver,
    one_hot: bool,
    loader: Iterable,
    device: torch.device,
    temperature: float,
) -> torch.Tensor:
    """Success per game, on the CPU, with one symbol that is sampled from the sender's softmax."""
    successes = []
    for batch in loader:
        sender_input, labels, receiver_input = (part.to(device) for part in batch)
        scores = sender(sender_input) / temperature
        message = torch.distributions.Categorical(logits=scores).sample()
        if one_hot:
            message = F.one_hot(message, scores.shape[-1]).to(scores.dtype)
        successes.append((receiver(message, receiver_input).argmax(dim=1) == labels).float().cpu())
    return torch.cat(successes)


def evaluate(
    opts: argparse.Namespace,
    sender: nn.Module,
    receiver: Receiver,
    loader: Iterable,
    device: torch.device,
    temperature: float,
) -> dict[str, float]:
    """Tests agents with the most probable message, and in exact expectation over the messages.

    The distribution is the one that they were trained with.
    """
    method = METHODS[opts.mode]
    figures = play_exactly(opts, sender, receiver, loader, device, temperature)
    means = {name: float(values.mean()) for name, values in figures.items() if name != "message"}
    calls = method.receiver_calls(opts, opts.vocab_size)
    return {
        "acc": means["acc"],
        "acc_expected": means["acc_expected"],
        "loss": means["nll"],
        "support": means["support"],
        **({"exact": means["exact"]} if method.sums else {}),
        "receiver_calls": means["receiver_calls"] if calls is None else calls,
        "messages_used": len(torch.unique(figures["message"])),
    }


def evaluate_sequences(
    opts: argparse.Namespace, game: nn.Module, loader: Iterable, device: torch.device
) -> dict[str, float]:
    """Tests agents with the most probable symbol at each step, and those that sum over messages in expectation, too."""
    method = SEQUENCE_METHODS[opts.mode]
    greedy = sequences.play(game, loader, device)
    messages = greedy["message"]
    results = {
        "acc": float(greedy["acc"].mean()),
        "loss": float(greedy["nll"].mean()),
        "length": float((messages != 0).sum(1).float().mean()),
        "messages_used": len(messages.unique(dim=0)),
    }
    if method.sums:
        expected = sequences.play(game, loader, device, "expected")
        results |= {"acc_expected": float(expected["acc"].mean()), "loss": float(expected["nll"].mean())}
        results |= {name: float(expected[name].float().mean()) for name in ("support", "exact", "receiver_calls")}
        return results
    return {**results, "receiver_calls": 1.0}


def wrapper_temperature(opts: argparse.Namespace, game: Any) -> float:
    """The divisor of the sender's scores that its wrapper has; 1 where the agent divides them itself."""
    return float(game.sender.temperature) if METHODS[opts.mode].sums else 1.0


ExpectedSuccess = Callable[[torch.device], dict[str, torch.Tensor]]


def _of_one_symbol(
    opts: argparse.Namespace, n_features: int, loaders: dict[str, data.GameLoader]
) -> tuple[nn.Module, Callable[[], dict[str, float]], ExpectedSuccess]:
    """The game, its test, and the metrics that its validation adds."""
    method = METHODS[opts.mode]
    sender, receiver = build_agents(opts, n_features)
    game = build_game(opts, sender, receiver)

    def test() -> dict[str, float]:
        return evaluate(opts, sender, receiver, loaders["test"], opts.device, wrapper_temperature(opts, game))

    def expected_success(device: torch.device) -> dict[str, torch.Tensor]:
        # exact where training sums over the same messages; of sampling methods the estimate that they train with
        temperature = wrapper_temperature(opts, game)
        if method.trained_messages(opts) == "expected":
            figures = play_exactly(opts, sender, receiver, loaders["validation"], device, temperature)
            return {"acc_expected": figures["acc_expected"]}
        played = play_sampled(sender, receiver, method.one_hot, loaders["validation"], device, temperature)
        return {"acc_expected": played}

    return game, test, expected_success


def _of_several_symbols(
    opts: argparse.Namespace, n_features: int, loaders: dict[str, data.GameLoader]
) -> tuple[nn.Module, Callable[[], dict[str, float]], ExpectedSuccess | None]:
    """The game, its test, and the metrics that its validation adds, None where messages are sampled."""
    game = build_sequence_game(opts, n_features)

    def test() -> dict[str, float]:
        return evaluate_sequences(opts, game, loaders["test"], opts.device)

    def expected_success(device: torch.device) -> dict[str, torch.Tensor]:
        return {"acc_expected": sequences.play(game, loaders["validation"], device, "expected")["acc"]}

    return game, test, expected_success if SEQUENCE_METHODS[opts.mode].sums else None


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
    images = data.load(opts.data, opts.root, opts.data_root, bool(opts.same), opts.pixels == "standard")
    loaders = build_loaders(opts, images)
    parts = _of_one_symbol if opts.max_len == 1 else _of_several_symbols
    game, test, expected_success = parts(opts, images.n_features, loaders)
    resume.load_for_evaluation(opts, game)
    run = None if opts.evaluate else train(opts, game, loaders, expected_success)
    results = test() if leader else None
    if run and results:
        run.draw_curves(_panels(opts), results)
    return training.finish(opts, results, started, run)


def train(
    opts: argparse.Namespace,
    game: nn.Module,
    loaders: dict[str, data.GameLoader],
    expected_success: ExpectedSuccess | None,
) -> training.Run | None:
    """Trains the game, and fills the run folder.

    Args:
        opts: all options.
        game: the game to train.
        loaders: the batches of training, validation and test.
        expected_success: the function that returns ``acc_expected`` of each validation game, if it is to be reported.
    """
    callbacks = methods_of(opts)[opts.mode].callbacks(opts, game.sender, opts.batches_per_epoch)
    if expected_success is not None:
        callbacks.insert(0, training.ValidationAsTrained(expected_success))
    return training.train(opts, game, game.sender, loaders["train"], loaders["validation"], "signal_game", callbacks)


def _panels(opts: argparse.Namespace) -> list[plots.Panel]:
    messages = METHODS[opts.mode].trained_messages(opts)
    success = (
        plots.Curve("train", "acc", messages),
        plots.Curve(
            "validation",
            "acc_expected",
            "expected" if messages == "expected" else "sampled",
            "acc_expected",
            "expected",
        ),
        plots.Curve("validation", "acc", "greedy", "acc"),
    )
    return [
        plots.Panel(f"success among {opts.game_size} (share of games)", success, 1 / opts.game_size),
        plots.compared(f"support ({'messages' if opts.max_len > 1 else 'symbols'})", "support", "support"),
        plots.compared("entropy of the sender (nats)", "sender_entropy"),
    ]
