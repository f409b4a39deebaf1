"""Trains and evaluates the semi-supervised VAE."""

from __future__ import annotations

import argparse
import math
import pathlib
import time
from typing import Any

import torch

from egg_sparse import SparsemaxWrapper, SymbolGameMarg, host
from egg_sparse.callbacks import EpochSetter
from egg_sparse.zoo import checkpoints, methods, plots, resume, training
from egg_sparse.zoo.cli import ZooParser, number, path
from egg_sparse.zoo.semi_supervised_vae import data
from egg_sparse.zoo.semi_supervised_vae.games import (
    METHODS,
    SemiSupervisedGame,
    build_game,
    elbo_loss,
    unconditional,
)

core = host.core

PROG = "egg_sparse.zoo.semi_supervised_vae"
WARM_START_EPOCHS = {"digits": 150, "mnist": 100, "npz": 100}
EVALUATION_SEED = 20201207
EVALUATION_BATCH = 500
DATA_OPTIONS = {"data_root": ("mnist",), "root": ("npz",)}
COLUMNS, MOST_CLASSES = 10, 20
"""The images in a row of a picture, and the classes of which samples are drawn."""


def build_parser() -> ZooParser:
    classes = "in this game: a message is one of the classes"
    parser = ZooParser(
        prog=PROG,
        description="A VAE of images whose class is a message, learnt from few labels.",
        quick={"n_epochs": 1, "warm_start_epochs": 2},
        defaults={"batch_size": 64, "n_epochs": 50, "lr": 0.0005, "checkpoint_freq": 1},
        unused={"max_len": classes, "vocab_size": classes},
    )
    count = number(int, at_least=1)
    option = parser.group["data"].add_argument
    sources = "scikit-learn's digits, torchvision's MNIST with the paper's split, or images of your own"
    option("--data", choices=data.SOURCES, default="digits", help=sources)
    roots = "mnist: torchvision's folder, filled by download if empty"
    option("--data_root", type=path, default="data", help=roots)
    own = "npz: file with images (n, height, width) and labels (n,), and test_images and test_labels or neither"
    option("--root", type=path, help=own)
    labeled = "images with a label (default: 100 of digits, 5000 of mnist, a tenth of npz)"
    option("--n_labeled", type=count, help=labeled)
    methods.add_options(
        parser,
        METHODS,
        {"max_support": {"default": 1}, "temperature_decay": {"default": 1e-4}},
        aliases={"max_support": "topk"},
    )
    methods.add_temperature_option(parser, METHODS)
    option = parser.group["method"].add_argument
    normalizers = (
        "normalizer of the sender, with its own classification loss (default: sparsemax in marg, else softmax)"
    )
    option("--normalizer", choices=methods.NORMALIZERS, help=normalizers)
    entropy = "coefficient of the sender's entropy in nats; 1 makes the loss an ELBO"
    option("--entropy_coeff", type=number(float, at_least=0), default=1.0, help=entropy)
    option = parser.group["training"].add_argument
    warm = "epochs on the labeled images alone, before the others"
    default = "of digits 150, else 100; none with --warm_start_path"
    option("--warm_start_epochs", type=number(int, at_least=0), help=f"{warm} (default: {default})")
    option("--warm_start_lr", type=number(float, above=0), default=0.001, help="learning rate of these epochs")
    starts = "checkpoint to start from, of a run with --labeled_only, say; takes the agents alone"
    option("--warm_start_path", type=path, help=starts)
    option("--labeled_only", action="store_true", help="learn from the labeled images alone")
    training.add_run_options(parser, "semi_supervised_vae", lr_schedule="constant")
    return parser


def parse_options(params: list[str]) -> argparse.Namespace:
    parser = build_parser()
    opts = resume.parse(parser, params)
    method = METHODS[opts.mode]
    methods.complete(opts, method, temperature=1.0)
    if opts.warm_start_epochs is None:
        opts.warm_start_epochs = 0 if opts.warm_start_path else WARM_START_EPOCHS[opts.data]
    if not method.sums and opts.normalizer != "softmax":
        parser.error(f"--normalizer must be softmax in mode {opts.mode}, which samples, got {opts.normalizer}")
    methods.warn_unused(parser, opts, METHODS, DATA_OPTIONS)
    if opts.evaluate or opts.load_from_checkpoint:
        warm = ["warm_start_epochs", "warm_start_lr", "warm_start_path"]
        parser.warn_unused(warm, "where the agents come from a checkpoint")
    return opts


def load_agents(game: SemiSupervisedGame, path: str) -> None:
    """Loads classifier and VAE from the checkpoint of a run of any mode.

    Raises:
        FileNotFoundError, ValueError: there is no such checkpoint, or its agents have other sizes.
    """
    state = checkpoints.read(path).model_state_dict
    for name, agent in (("classifier", game.classifier), ("vae", game.vae)):
        own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        checkpoints.check_architecture(agent, own, path)
        agent.load_state_dict(own)


def warm_start(opts: argparse.Namespace, game: SemiSupervisedGame, split: data.Split) -> None:
    """Trains the agents on the labeled images alone, with an optimizer of its own and no checkpoints."""
    part = training.part_of_batch(opts)
    loader = data.SemiSupervisedLoader(split.labeled, None, opts.batch_size, opts.random_seed, part=part)
    agents = [*game.classifier.parameters(), *game.vae.parameters()]
    optimizer = training.build_optimizer(opts, agents, opts.warm_start_lr)
    game.labeled_only = True
    try:
        with training.with_options(opts, checkpoint_dir=None, preemptable=False, tensorboard=False):
            core.Trainer(game=game, optimizer=optimizer, train_data=loader, callbacks=[EpochSetter(loader)]).train(
                opts.warm_start_epochs
            )
    finally:
        game.labeled_only = opts.labeled_only


def build_loaders(opts: argparse.Namespace, split: data.Split) -> dict[str, data.SemiSupervisedLoader]:
    def fixed(images: data.GreyImages) -> data.SemiSupervisedLoader:
        return data.SemiSupervisedLoader(images, None, EVALUATION_BATCH, EVALUATION_SEED, fixed=True)

    images, labeled = (split.labeled, None) if opts.labeled_only else (split.unlabeled, split.labeled)
    return {
        "train": data.SemiSupervisedLoader(
            images, labeled, opts.batch_size, opts.random_seed, part=training.part_of_batch(opts)
        ),
        "validation": fixed(split.validation),
        "test": fixed(split.test),
    }


def evaluate(opts: argparse.Namespace, game: SemiSupervisedGame, loader: data.SemiSupervisedLoader) -> dict[str, float]:
    """Tests agents, however they were trained: the most probable class, and the exact negative ELBO under the
    distribution that they were trained with.
    """
    sender = SparsemaxWrapper(game.classifier, opts.normalizer, temperature=opts.temperature)
    method = METHODS[opts.mode]
    exact = SymbolGameMarg(
        sender,
        game.vae,
        elbo_loss,
        sender_entropy_coeff=1.0,
        strategy="gather",
        evaluation="expected",
        max_support=methods.max_support(opts, method),
        **training.quiet_logging(),
    )
    exact.to(opts.device).eval()
    reported = ("sender_entropy", "support", *(("exact",) if method.sums else ()))
    totals = dict.fromkeys(("acc", "negative_elbo", *reported), 0.0)
    n_images = 0
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(EVALUATION_SEED)
        for batch in loader:
            images, classes = batch[0].to(opts.device), batch[1].to(opts.device)
            loss, interaction = exact(images, classes, images)
            totals["acc"] += float((interaction.message == classes).sum())
            totals["negative_elbo"] += float(loss) * len(images)
            for name in reported:
                totals[name] += float(interaction.aux[name].sum())
            n_images += len(images)
    means = {name: total / n_images for name, total in totals.items()}
    means["negative_elbo"] += math.log(game.n_classes)  # of the uniform prior
    calls = method.receiver_calls(opts, game.n_classes)
    return {**means, "receiver_calls": means["support"] if calls is None else calls}


def save_pictures(
    game: SemiSupervisedGame, images: data.GreyImages, folder: pathlib.Path, device: torch.device
) -> None:
    """Saves a grid of samples of the first classes, and one of images beside their reconstructions."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(EVALUATION_SEED)
        n_classes = min(game.n_classes, MOST_CLASSES)
        latent = torch.randn(COLUMNS, game.vae.latent_dim, device=device).repeat(n_classes, 1)
        classes = torch.arange(n_classes, device=device).repeat_interleave(COLUMNS)
        samples = game.vae.generate(classes, latent)
        plots.grid(samples, COLUMNS, folder / "samples.png", "classes, one latent a column", images.height)
        shown = torch.from_numpy(images.pixels[: 2 * COLUMNS] / (images.levels - 1)).float().to(device)
        guesses = game.classifier(shown).argmax(-1)
        restored = game.vae(guesses, shown)[:, : shown.shape[1]].sigmoid()
        rows = torch.stack((shown, restored), 1).flatten(0, 1)
        title = "test images, each beside its reconstruction"
        plots.grid(rows, COLUMNS, folder / "reconstructions.png", title, images.height)


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
    split = data.load(opts.data, opts.data_root, opts.n_labeled, opts.root)
    loaders = build_loaders(opts, split)
    game = build_game(opts, split)
    resume.load_for_evaluation(opts, game)
    run = None
    if not opts.evaluate:
        if not opts.load_from_checkpoint:
            if opts.warm_start_path:
                load_agents(game, opts.warm_start_path)
            if opts.warm_start_epochs and not opts.labeled_only:
                warm_start(opts, game, split)
        run = train(opts, game, loaders)
    game.to(opts.device).eval()
    results = evaluate(opts, game, loaders["test"]) if leader else None
    if run and results:
        if run.unfinished:
            save_pictures(game, split.test, run.folder, opts.device)
        run.draw_curves(_panels(opts, split.n_classes), results)
    return training.finish(opts, results, started, run)


@torch.no_grad()
def play_as_trained(
    game: SemiSupervisedGame, loader: data.SemiSupervisedLoader, device: torch.device
) -> dict[str, torch.Tensor]:
    """Metrics per image, of the messages that the game is trained with: the support where it sums, else one sample.

    Returns:
        ``acc_expected`` and ``negative_elbo``, on the CPU.
    """
    parts = []
    game.eval()
    game.game.evaluation = "expected" if isinstance(game.game, SymbolGameMarg) else "sampled"
    try:
        for batch in loader:
            images, classes = batch[0].to(device), batch[1].to(device)
            parts.append(game(images, classes, images)[1].aux)
    finally:
        game.game.evaluation = "greedy"
    return {
        "acc_expected": torch.cat([aux["acc"] for aux in parts]).cpu(),
        "negative_elbo": torch.cat([unconditional(aux, game.n_classes) for aux in parts]).cpu(),
    }


def train(
    opts: argparse.Namespace, game: SemiSupervisedGame, loaders: dict[str, data.SemiSupervisedLoader]
) -> training.Run | None:
    """Trains the game, and fills the run folder."""
    callbacks = [
        training.ValidationAsTrained(lambda device: play_as_trained(game, loaders["validation"], device)),
        *METHODS[opts.mode].callbacks(opts, game.game.sender, len(loaders["train"])),
    ]
    return training.train(
        opts, game, game.game.sender, loaders["train"], loaders["validation"], "semi_supervised_vae", callbacks
    )


def _panels(opts: argparse.Namespace, n_classes: int) -> list[plots.Panel]:
    method = METHODS[opts.mode]
    trained = "greedy" if opts.labeled_only else method.trained_messages(opts)
    validated = "expected" if method.sums else "sampled"
    accuracy = (
        plots.Curve("train", "acc", trained),
        plots.Curve("validation", "acc_expected", validated),
        plots.Curve("validation", "acc", "greedy", "acc"),
    )
    elbo = (
        plots.Curve("train", "negative_elbo", trained),
        plots.Curve("validation", "negative_elbo", validated, "negative_elbo", "expected"),
    )
    return [
        plots.Panel("accuracy (share of images)", accuracy, 1 / n_classes),
        plots.Panel("negative ELBO (nats)", elbo),
        plots.compared("support (classes)", "support", "support"),
        plots.compared("entropy of the sender (nats)", "sender_entropy", "sender_entropy"),
    ]
