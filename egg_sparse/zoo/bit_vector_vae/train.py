"""Trains and evaluates the bit-vector VAE."""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Iterable
from typing import Any

import torch

from egg_sparse import host
from egg_sparse.callbacks import Schedule
from egg_sparse.zoo import methods, plots, resume, training
from egg_sparse.zoo.bit_vector_vae import data
from egg_sparse.zoo.bit_vector_vae.games import VAE, build_vae
from egg_sparse.zoo.bit_vector_vae.likelihood import ESTIMATES
from egg_sparse.zoo.cli import ZooParser, number, path
from egg_sparse.zoo.methods import BIT_VECTOR_METHODS as METHODS

core = host.core

PROG = "egg_sparse.zoo.bit_vector_vae"
EVALUATION_SEED = 20201208
EVALUATION_BATCH = 100
DATA_OPTIONS = {"data_root": ("mnist", "fashion-mnist"), "root": ("npz",)}


def build_parser() -> ZooParser:
    bit_vectors = "in this game: messages are bit-vectors"
    parser = ZooParser(
        prog=PROG,
        description="A VAE whose latent is a vector of bits, by exact sparse marginalization or by sampling.",
        quick={"n_epochs": 1, "latent_size": 6, "nll_samples": 16, "nll_images": 20, "validation_nll_samples": 2},
        defaults={"batch_size": 64, "n_epochs": 50, "lr": 0.002, "checkpoint_freq": 1},
        unused={"max_len": bit_vectors, "vocab_size": bit_vectors},
    )
    count, not_negative = number(int, at_least=1), number(float, at_least=0)
    option = parser.group["data"].add_argument
    sources = "scikit-learn's digits, torchvision's images, or images of your own"
    option("--data", choices=data.SOURCES, default="digits", help=sources)
    roots = "mnist, fashion-mnist: torchvision's folder, filled by download if empty"
    option("--data_root", type=path, default="data", help=roots)
    option("--root", type=path, help="npz: file with images (n, height, width), and test_images or not")
    parser.group["agents"].add_argument("--latent_size", type=count, default=32, help="bits of a message")
    methods.add_options(parser, METHODS)
    methods.add_temperature_option(parser, METHODS)
    option = parser.group["method"].add_argument
    entropy = "coefficient of the sender's entropy in nats; 1 makes the loss an ELBO"
    option("--entropy_coeff", type=not_negative, default=1.0, help=entropy)
    start = "entropy coefficient at first, which falls linearly to --entropy_coeff in --entropy_warmup epochs"
    option("--entropy_start", type=not_negative, default=10.0, help=start)
    option("--entropy_warmup", type=number(int, at_least=0), default=0, help="epochs of that fall")
    training.add_run_options(parser, "bit_vector_vae", lr_schedule="constant")
    option = parser.group["run"].add_argument
    estimates = "estimate of the likelihood in the test: see this experiment's README"
    option("--nll", choices=ESTIMATES, default="disjoint", help=estimates)
    option("--nll_samples", type=count, default=1024, help="importance samples per test image")
    option("--nll_images", type=count, help="number of test images, the first ones, whose likelihood is estimated")
    validation = "importance samples per validation image, 0 for no estimate"
    option("--validation_nll_samples", type=number(int, at_least=0), default=16, help=validation)
    return parser


def parse_options(params: list[str]) -> argparse.Namespace:
    parser = build_parser()
    opts = resume.parse(parser, params)
    methods.complete(opts, METHODS[opts.mode], temperature=1.0)
    methods.warn_unused(parser, opts, METHODS, DATA_OPTIONS)
    if not opts.entropy_warmup:
        parser.warn_unused(["entropy_start"], "without --entropy_warmup")
    if opts.budget is not None and opts.decomposition == "threshold":
        parser.error("--decomposition threshold cannot keep a --budget; use systematic or active_set")
    return opts


def build_callbacks(opts: argparse.Namespace, vae: VAE, batches_per_epoch: int) -> list[Any]:
    callbacks = METHODS[opts.mode].callbacks(opts, vae.game.sender, batches_per_epoch)
    if opts.entropy_warmup:
        fn = methods.linear(opts.entropy_start, opts.entropy_coeff, opts.entropy_warmup + 1)
        callbacks.append(Schedule(vae.game, "sender_entropy_coeff", fn))
    return callbacks


@torch.no_grad()
def evaluate(opts: argparse.Namespace, vae: VAE, loader: Iterable) -> tuple[dict[str, float], torch.Tensor | None]:
    """Tests a VAE: the same metrics whatever the method, and the supports' sizes.

    ELBO, rate and distortion are exact where the sender's distribution is sparse, else with one sample per image.
    """
    vae.to(opts.device).eval()
    vae.nll_samples = 0
    method = METHODS[opts.mode]
    if method.sums and opts.temperature_end is not None:
        vae.game.sender.temperature = opts.temperature_end
    values: dict[str, list[torch.Tensor]] = {}
    left = opts.nll_images
    with torch.random.fork_rng():
        torch.manual_seed(EVALUATION_SEED)
        for batch in loader:
            images, levels = (part.to(opts.device) for part in batch)
            aux = dict(vae(images, levels)[1].aux)
            if left is None or left > 0:
                part = slice(None, left)
                aux["bits_per_dimension"] = vae.bits_per_dimension(images[part], levels[part], opts.nll_samples)
                left = None if left is None else left - len(aux["bits_per_dimension"])
            for name, value in aux.items():
                values.setdefault(name, []).append(value.cpu())
    joined = {name: torch.cat(parts).double() for name, parts in values.items()}
    names = ("negative_elbo", "rate", "distortion", "bits_per_dimension")
    results = {name: float(joined[name].mean()) for name in names}
    supports = joined.get("support")
    if supports is not None:
        results["support"] = float(supports.mean())
        results["support_median"] = float(supports.median())
        results["exact"] = float(joined["exact"].mean())
    calls = method.receiver_calls(opts, 2**opts.latent_size)
    return {**results, "receiver_calls": float(joined["receiver_calls"].mean()) if calls is None else calls}, supports


@torch.no_grad()
def save_pictures(
    vae: VAE, images: data.GreyImages, supports: torch.Tensor | None, folder: pathlib.Path, device: Any
) -> None:
    """Saves images beside their reconstructions, samples from the prior, and a histogram of the supports' sizes."""
    shown = torch.from_numpy(images.pixels[:20]).float().to(device) / (images.levels - 1)
    restored = vae.generator.mean_levels(vae.distribution(shown).mode)
    rows = torch.stack((shown, restored), 1).flatten(0, 1)
    title = "test images, each beside its reconstruction"
    plots.grid(rows, 10, folder / "reconstructions.png", title, images.height)
    with torch.random.fork_rng():
        torch.manual_seed(EVALUATION_SEED)
        messages = torch.randint(0, 2, (50, vae.n_bits)).float().to(device)
    samples = vae.generator.mean_levels(messages)
    plots.grid(samples, 10, folder / "samples.png", "decoded from uniform bits", images.height)
    if supports is not None:
        plots.histogram(supports, folder / "supports.png", "support of a test image (bit-vectors)")


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
    split = data.load(opts.data, opts.data_root, opts.root)
    vae = build_vae(opts, split.train.pixels.shape[1], split.train.levels)
    resume.load_for_evaluation(opts, vae)
    run = None
    if not opts.evaluate:
        part = training.part_of_batch(opts)
        loader = data.ImageLoader(split.train, opts.batch_size, opts.random_seed, part=part)
        validation = data.ImageLoader(split.validation, EVALUATION_BATCH, fixed=True)
        run = training.train(
            opts,
            vae,
            vae.game.sender,
            loader,
            validation,
            "bit_vector_vae",
            build_callbacks(opts, vae, len(loader)),
            shown=("negative_elbo", "rate", "support", "bits_per_dimension"),
        )
    if not leader:
        return training.finish(opts, None, started, run)
    results, supports = evaluate(opts, vae, data.ImageLoader(split.test, EVALUATION_BATCH, fixed=True))
    if run:
        if run.unfinished:
            save_pictures(vae, split.test, supports, run.folder, opts.device)
        run.draw_curves(_panels(opts), results)
    return training.finish(opts, results, started, run)


def _panels(opts: argparse.Namespace) -> list[plots.Panel]:
    messages = METHODS[opts.mode].trained_messages(opts)
    trained = "" if messages in ("expected", "sampled") else messages  # as in validation and test
    likelihood = plots.Curve(
        "validation",
        "bits_per_dimension",
        f"{opts.validation_nll_samples} samples",
        "bits_per_dimension",
        f"{opts.nll_samples} samples",
    )
    return [
        plots.compared("negative ELBO (nats)", "negative_elbo", "negative_elbo", trained),
        plots.compared("rate (nats)", "rate", "rate", trained),
        plots.compared("support (bit-vectors)", "support", "support"),
        plots.Panel("negative log-likelihood (bits per dimension)", (likelihood,)),
    ]
