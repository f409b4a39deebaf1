"""Trains and evaluates the agents of the signal game."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse import SparsemaxWrapper, SymbolGameMarg, host
from egg_sparse.callbacks import StepTemperature, SupportSchedule
from egg_sparse.estimators import NeuralBaseline, SymbolGameScoreFunction, SymbolSampler
from egg_sparse.zoo import methods, plots, resume, training
from egg_sparse.zoo.cli import ZooParser, number
from egg_sparse.zoo.signal_game import data
from egg_sparse.zoo.signal_game.archs import MLPSender, PaperSender, Receiver

core = host.core

PROG = "egg_sparse.zoo.signal_game"
MODES = ("marg", "sfe", "nvil", "sumsample", "gs")
EGGS_BASELINES = {
    "runavg": core.baselines.MeanBaseline,
    "builtin": core.baselines.BuiltInBaseline,
    "none": core.baselines.NoBaseline,
}
VALIDATION_GAMES, TEST_GAMES = 1024, 10_000
EVALUATION_BATCH = 64
TEMPERATURE, ENTROPY_COEFF = 10.0, 0.1
VALIDATION_SEED, TEST_SEED = 20200724, 20200725

# Options of one mode alone; given with another, they draw a warning.
MODE_OPTIONS = {
    "normalizer": ("marg", "sumsample"),
    "max_support": ("sumsample",),
    "entropy_coeff": ("marg", "sfe", "nvil", "sumsample"),
    "loss_type": ("sfe",),
    "baseline_type": ("sfe",),
    "gs_tau": ("gs",),
    "straight_through": ("gs",),
    "temperature_decay": ("gs",),
    "temperature_update_freq": ("gs",),
}
DATA_OPTIONS = {
    "root": ("imagenet", "npz"),
    "data_root": ("mnist", "fashion-mnist"),
    "pixels": ("digits", "mnist", "fashion-mnist"),
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
        defaults={"batch_size": 64, "n_epochs": 40, "lr": 0.005, "vocab_size": 256, "checkpoint_freq": 1},
    )
    _add_method_options(parser)
    _add_game_options(parser)
    training.add_run_options(parser, "signal_game")
    return parser


def _add_method_options(parser: ZooParser) -> None:
    option, not_negative = parser.add_argument, number(float, at_least=0)
    modes = "exact marginalization, score function, NVIL, sum-and-sample or Gumbel-Softmax"
    option("--mode", choices=MODES, default="marg", help=f"{modes} (default: marg)")
    normalizers = "sparsemax (default in marg), softmax (default in sumsample), entmax15 or an alpha above 1"
    option("--normalizer", type=_normalizer, default=None, help=f"marg, sumsample: {normalizers}")
    summed = "symbols that are summed exactly, beside a sampled one"
    option(
        "--max_support", "--topk", type=number(int, at_least=1), default=10, help=f"sumsample: {summed} (default: 10)"
    )
    entropy = "coefficient of the acting agents' entropy in nats; not in gs"
    default = f"0 where marg controls its support, else {ENTROPY_COEFF}"
    option("--entropy_coeff", type=not_negative, default=None, help=f"{entropy} (default: {default})")
    losses = "negative log-likelihood, or accuracy of a sampled guess"
    option("--loss_type", choices=("nll", "acc"), default="nll", help=f"sfe: {losses} (default: nll)")
    baselines = "running mean, mean of the batch's other examples, the loss of a second sample, or none"
    names = (*EGGS_BASELINES, "sample")
    option("--baseline_type", choices=names, default="runavg", help=f"sfe: {baselines} (default: runavg)")
    methods.add_gumbel_options(parser)


def _add_game_options(parser: ZooParser) -> None:
    option, count = parser.add_argument, number(int, at_least=1)
    option("--game_size", type=count, default=16, help="candidates, the target among them (default: 16)")
    option("--same", type=int, choices=(0, 1), default=0, help="1: candidates of the same concept (default: 0)")
    option("--latent_size", type=count, default=None, help="the same as --vocab_size")
    senders = "one hidden layer, or the agents of the paper"
    option("--sender", choices=("mlp", "paper"), default="mlp", help=f"{senders} (default: mlp)")
    option("--embedding_size", type=count, default=64, help="of embedded images and messages (default: 64)")
    option("--hidden_size", type=count, default=128, help="the sender's hidden units, or filters (default: 128)")
    methods.add_temperature_option(parser, MODES, "--tau_s", otherwise=TEMPERATURE)
    sources = "scikit-learn's digits, concept features or an archive from --root, or torchvision's images"
    option("--data", choices=data.SOURCES, default="digits", help=f"{sources} (default: digits)")
    roots = "imagenet: folder with train/ and test/; npz: file with features (n, d) and labels (n,)"
    option("--root", default=None, help=roots)
    torchvision = "mnist, fashion-mnist: torchvision's folder, filled by download if empty"
    option("--data_root", default="data", help=f"{torchvision} (default: data)")
    pixels = "of mean 0 and standard deviation 1, or brightness from 0 to 1, which suits the paper's sender"
    option("--pixels", choices=("standard", "brightness"), default="standard", help=f"{pixels} (default: standard)")
    option("--batches_per_epoch", type=count, default=100, help="training batches per epoch (default: 100)")


def parse_options(params: list[str]) -> argparse.Namespace:
    parser = build_parser()
    opts = resume.parse(parser, params)
    if opts.normalizer is None:
        opts.normalizer = "softmax" if opts.mode == "sumsample" else "sparsemax"
    if opts.entropy_coeff is None:
        opts.entropy_coeff = 0.0 if methods.controls_support(opts) else ENTROPY_COEFF
    if opts.latent_size is not None:
        if "vocab_size" in parser.given and opts.vocab_size != opts.latent_size:
            parser.error(
                f"--latent_size and --vocab_size are the same option, got {opts.latent_size} and {opts.vocab_size}"
            )
        opts.vocab_size = opts.latent_size
    methods.warn_unused(parser, opts, DATA_OPTIONS, MODE_OPTIONS)
    parser.warn_unused(["max_len"], "in this game: messages have one symbol")
    opts.latent_size = None
    return opts


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


def build_agents(opts: argparse.Namespace, n_features: int) -> tuple[nn.Module, Receiver]:
    """The sender, which returns scores of symbols, and the receiver, which returns log-probabilities of candidates."""
    sizes: dict[str, Any] = {"n_features": n_features, "vocab_size": opts.vocab_size}
    temperature = 1.0 if methods.controls_support(opts) else opts.temperature or TEMPERATURE
    hidden: dict[str, Any] = {**sizes, "hidden_size": opts.hidden_size, "temperature": temperature}
    sizes["embedding_size"] = opts.embedding_size
    one_hot = opts.mode == "gs"
    if opts.sender == "paper":
        return PaperSender(**hidden, embedding_size=opts.embedding_size), Receiver(**sizes, one_hot=one_hot)
    return MLPSender(**hidden), Receiver(**sizes, one_hot=one_hot, symbol_std=(3 * opts.vocab_size) ** -0.5)


def _normalizer_of(opts: argparse.Namespace) -> str | float:
    named = opts.normalizer in ("sparsemax", "softmax", "entmax15")
    return opts.normalizer if named else float(opts.normalizer)


def build_game(opts: argparse.Namespace, sender: nn.Module, receiver: Receiver) -> nn.Module:
    """The agents in the game that trains them. Interactions keep messages and scalars, no images."""
    kept = training.quiet_logging()
    if opts.mode in ("marg", "sumsample"):
        support = "auto" if methods.controls_support(opts) else None
        wrapped: nn.Module = SparsemaxWrapper(sender, normalizer=_normalizer_of(opts), support=support)
        entropy_coeff = {"sender_entropy_coeff": opts.entropy_coeff}
        bounded: dict[str, Any] = {"max_support": methods.max_support(opts), "bound": "sum_and_sample"}
        return SymbolGameMarg(wrapped, receiver, loss_nll, **bounded, **entropy_coeff, **kept)
    if opts.mode == "gs":
        wrapped = core.GumbelSoftmaxWrapper(sender, temperature=opts.gs_tau, straight_through=opts.straight_through)
        return core.SymbolGameGS(wrapped, receiver, loss_nll, **kept)
    guesses = opts.mode == "sfe" and opts.loss_type == "acc"
    loss = loss_acc if guesses else loss_nll
    entropy_coeffs = {
        "sender_entropy_coeff": opts.entropy_coeff,
        "receiver_entropy_coeff": opts.entropy_coeff if guesses else 0.0,
    }
    if opts.mode == "nvil" or opts.baseline_type == "sample":
        baseline = NeuralBaseline(receiver.embed.in_features, select=_target) if opts.mode == "nvil" else "sample"
        acting: nn.Module = core.ReinforceWrapper(receiver) if guesses else receiver
        return SymbolGameScoreFunction(SymbolSampler(sender), acting, loss, baseline, **entropy_coeffs, **kept)
    return ReinforceGame(
        core.ReinforceWrapper(sender),
        core.ReinforceWrapper(receiver) if guesses else core.ReinforceDeterministicWrapper(receiver),
        loss,
        baseline_type=EGGS_BASELINES[opts.baseline_type],
        **entropy_coeffs,
        **kept,
    )


class ReinforceGame(host.core.SymbolGameReinforce):
    """EGG's game, with its running-mean baseline in the checkpoint, so that a resumed run has it."""

    _STATE = ("mean_baseline", "n_points")

    def get_extra_state(self) -> dict[str, Any]:
        return {name: getattr(self.baseline, name) for name in self._STATE if hasattr(self.baseline, name)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        for name in self._STATE:
            if name in state:
                setattr(self.baseline, name, state[name])


def _target(images: torch.Tensor) -> torch.Tensor:
    return images[0]


def build_loaders(opts: argparse.Namespace, images: data.SignalData) -> dict[str, data.GameLoader]:
    sizes: dict[str, Any] = {"game_size": opts.game_size, "same": bool(opts.same)}

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
    temperature: float = 1.0,
) -> dict[str, torch.Tensor]:
    """Plays games over all messages of the distribution that the sender was trained with, each game once.

    Args:
        opts: all options.
        sender: the agent that returns scores of symbols.
        receiver: the agent that returns log-probabilities of candidates.
        loader: batches of games.
        device: where they are played.
        temperature: the divisor of the scores that support control has reached.

    Returns:
        Per game, on the CPU: ``acc`` with the most probable message, which is ``message``; and in exact expectation
        over messages ``acc_expected``, ``nll``, ``support`` and ``receiver_calls``; and ``exact``, 1 where training
        sums over a support of this size exactly, else 0, in the modes that sum.
    """
    one_hot = opts.mode == "gs"
    normalizer = _normalizer_of(opts) if opts.mode in ("marg", "sumsample") else "softmax"
    message_format = "one_hot" if one_hot else "index"
    wrapped = SparsemaxWrapper(sender, normalizer, message_format, temperature, support=None)
    kept = core.LoggingStrategy(False, False, False, False, True, True, False)
    game = SymbolGameMarg(
        wrapped,
        receiver,
        loss_nll_and_report,
        strategy="vmap",
        evaluation="expected",
        max_support=methods.max_support(opts),
        test_logging_strategy=kept,
    )
    game.to(device).eval()
    figures: dict[str, list[torch.Tensor]] = {}
    for batch in loader:
        on_device = core.batch.Batch(*batch).to(device)
        _, played = game(*on_device)
        message = played.message.argmax(-1) if one_hot else played.message
        greedy = {"acc": (played.receiver_output.argmax(dim=1) == on_device.labels).float(), "message": message}
        for name, value in {**played.aux, "acc_expected": played.aux["acc"], **greedy}.items():
            figures.setdefault(name, []).append(value.cpu())
    return {name: torch.cat(values) for name, values in figures.items()}


@torch.no_grad()
def play_sampled(
    sender: nn.Module, receiver: Receiver, one_hot: bool, loader: Iterable, device: torch.device
) -> torch.Tensor:
    """Success per game, on the CPU, with one symbol that is drawn from the sender's softmax."""
    successes = []
    for batch in loader:
        sender_input, labels, receiver_input = (part.to(device) for part in batch)
        scores = sender(sender_input)
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
    temperature: float = 1.0,
) -> dict[str, float]:
    """Tests agents, however they were trained: with the most probable message, and exactly in expectation over the
    messages of the distribution that they were trained with.
    """
    figures = play_exactly(opts, sender, receiver, loader, device, temperature)
    names = ("acc", "acc_expected", "nll", "support", "exact", "receiver_calls")
    means = {name: float(figures[name].mean()) for name in names}
    return {
        "acc": means["acc"],
        "acc_expected": means["acc_expected"],
        "loss": means["nll"],
        "support": means["support"],
        **({"exact": means["exact"]} if opts.mode in ("marg", "sumsample") else {}),
        "receiver_calls": means["receiver_calls"] if opts.mode == "marg" else _calls_in_training(opts),
        "messages_used": len(torch.unique(figures["message"])),
    }


def controlled_temperature(opts: argparse.Namespace, game: Any) -> float:
    """The temperature that support control has reached; 1 without it, where the agent divides its scores itself."""
    return float(game.sender.temperature) if methods.controls_support(opts) else 1.0


def _calls_in_training(opts: argparse.Namespace) -> float:
    """Symbols per example that the receiver is given in one training step of a sampling method."""
    if opts.mode == "sumsample":
        return float(min(opts.max_support + 1, opts.vocab_size))
    return 2.0 if opts.mode == "sfe" and opts.baseline_type == "sample" else 1.0


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
    images = data.load(opts.data, opts.root, opts.data_root, bool(opts.same), opts.pixels == "standard")
    loaders = build_loaders(opts, images)
    sender, receiver = build_agents(opts, images.n_features)
    game = build_game(opts, sender, receiver)
    resume.load_for_evaluation(opts, game)
    run = None if opts.evaluate else train(opts, game, loaders, sender, receiver)
    temperature = controlled_temperature(opts, game)
    results = evaluate(opts, sender, receiver, loaders["test"], opts.device, temperature) if leader else None
    if run and results:
        run.draw_curves(_panels(opts), results)
    return training.finish(opts, results, started, run)


def train(
    opts: argparse.Namespace,
    game: nn.Module,
    loaders: dict[str, data.GameLoader],
    sender: nn.Module,
    receiver: Receiver,
) -> training.Run | None:
    """Trains the game, and fills the run folder."""

    def expected_success(device: torch.device) -> dict[str, torch.Tensor]:
        # exact where training sums over the same messages; of sampling methods the estimate that they train with
        if opts.mode == "marg":
            temperature = controlled_temperature(opts, game)
            figures = play_exactly(opts, sender, receiver, loaders["validation"], device, temperature)
            return {"acc_expected": figures["acc_expected"]}
        return {"acc_expected": play_sampled(sender, receiver, opts.mode == "gs", loaders["validation"], device)}

    callbacks: list[Any] = [training.ValidationAsTrained(expected_success)]
    if methods.controls_support(opts):
        callbacks.append(SupportSchedule(game.sender))
    if opts.mode == "gs":
        decay, steps = opts.temperature_decay, opts.temperature_update_freq
        callbacks.append(StepTemperature(game.sender, opts.batches_per_epoch, decay, update_frequency=steps))
    return training.train(opts, game, loaders["train"], loaders["validation"], "signal_game", callbacks, fused=False)


def _panels(opts: argparse.Namespace) -> list[plots.Panel]:
    messages = methods.trained_messages(opts)
    success = (
        plots.Curve("train", "acc", messages),
        plots.Curve(
            "validation", "acc_expected", "expected" if opts.mode == "marg" else "sampled", "acc_expected", "expected"
        ),
        plots.Curve("validation", "acc", "greedy", "acc"),
    )
    return [
        plots.Panel(f"success among {opts.game_size} (share of games)", success, 1 / opts.game_size),
        plots.compared("support (symbols)", "support", "support"),
        plots.compared("entropy of the sender (nats)", "sender_entropy"),
    ]
