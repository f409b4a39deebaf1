"""Trains and evaluates the bit-vector VAE."""

from __future__ import annotations

import argparse
import math
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from egg_sparse import SparseMAPBitVectorWrapper, SymbolGameMarg, TopKSparsemaxWrapper, host
from egg_sparse.callbacks import Schedule, StepTemperature, SupportSchedule
from egg_sparse.estimators import BitVectorSampler, RelaxedWrapper
from egg_sparse.mappings.sparsemap import DECOMPOSITIONS
from egg_sparse.wrappers import SparseWrapper
from egg_sparse.zoo import methods, plots, resume, training
from egg_sparse.zoo.bit_vector_vae import data
from egg_sparse.zoo.bit_vector_vae.archs import Distortion, Generator, Inference
from egg_sparse.zoo.bit_vector_vae.likelihood import ESTIMATES, log_likelihood
from egg_sparse.zoo.cli import ZooParser, number

core = host.core

PROG = "egg_sparse.zoo.bit_vector_vae"
MODES = ("sparsemap", "topksparse", "sfe", "nvil", "gs")
SPARSE = ("sparsemap", "topksparse")
EVALUATION_SEED = 20201208
EVALUATION_BATCH = 100
SUPPORT_END = 3.0  # higher than for a game: the entropy is part of the ELBO

MODE_OPTIONS = {
    "budget": ("sparsemap",),
    "decomposition": ("sparsemap",),
    "topksparse": ("topksparse",),
    "max_support": SPARSE,
    "temperature_end": SPARSE,
    "baseline_type": ("sfe",),
    "gs_tau": ("gs",),
    "straight_through": ("gs",),
    "temperature_decay": ("gs",),
    "temperature_update_freq": ("gs",),
}
DATA_OPTIONS = {"data_root": ("mnist", "fashion-mnist")}


def build_parser() -> ZooParser:
    parser = ZooParser(
        prog=PROG,
        description="A VAE whose latent is a vector of bits, by exact sparse marginalization or by sampling.",
        defaults={"batch_size": 64, "n_epochs": 50, "lr": 0.002, "checkpoint_freq": 1, "lr_schedule": "constant"},
    )
    option, count, not_negative = parser.add_argument, number(int, at_least=1), number(float, at_least=0)
    option("--mode", choices=MODES, default="sparsemap", help="how the sender learns (default: sparsemap)")
    option("--latent_size", type=count, default=32, help="bits of a message (default: 32)")
    option("--budget", type=number(int, at_least=0), default=None, help="sparsemap: at most so many bits are on")
    listed = f"{', '.join(DECOMPOSITIONS)} (default: systematic)"
    option("--decomposition", choices=DECOMPOSITIONS, default="systematic", help=f"sparsemap: {listed}")
    option("--topksparse", type=count, default=10, help="topksparse: k, of the k best bit-vectors (default: 10)")
    bounded = "sum over at most so many bit-vectors exactly, and sample one of the others"
    option("--max_support", type=count, default=None, help=f"sparsemap, topksparse: {bounded}")
    methods.add_temperature_option(parser, MODES)
    ends = "the temperature at the last epoch, on a line from --temperature or from 1 (default: the same)"
    option("--temperature_end", type=number(float, above=0), default=None, help=f"sparsemap, topksparse: {ends}")
    entropy = "coefficient of the sender's entropy in nats; 1 makes the loss an ELBO"
    option("--entropy_coeff", type=not_negative, default=1.0, help=f"{entropy} (default: 1)")
    start = "what that coefficient is at first, falling on a line for --entropy_warmup epochs"
    option("--entropy_start", type=not_negative, default=10.0, help=f"{start} (default: 10)")
    option("--entropy_warmup", type=number(int, at_least=0), default=0, help="epochs until then (default: 0)")
    methods.add_baseline_option(parser)
    methods.add_gumbel_options(parser)
    sources = "scikit-learn's digits, or torchvision's images"
    option("--data", choices=data.SOURCES, default="digits", help=f"{sources} (default: digits)")
    option(
        "--data_root", default="data", help="mnist, fashion-mnist: torchvision's folder, filled by download if empty"
    )
    estimates = "how the test's likelihood is estimated: see this experiment's README"
    option("--nll", choices=ESTIMATES, default="disjoint", help=f"{estimates} (default: disjoint)")
    samples = "importance samples per test image"
    option("--nll_samples", type=count, default=1024, help=f"{samples} (default: 1024)")
    option("--nll_images", type=count, default=None, help="of so many test images, the first (default: all)")
    validation = "importance samples per validation image, 0 for none"
    option("--validation_nll_samples", type=number(int, at_least=0), default=16, help=f"{validation} (default: 16)")
    training.add_run_options(parser, "bit_vector_vae")
    return parser


def parse_options(params: list[str]) -> argparse.Namespace:
    parser = build_parser()
    opts = resume.parse(parser, params)
    methods.warn_unused(parser, opts, DATA_OPTIONS, MODE_OPTIONS)
    parser.warn_unused(["max_len", "vocab_size"], "in this game: messages are bit-vectors")
    if not opts.entropy_warmup:
        parser.warn_unused(["entropy_start"], "without --entropy_warmup")
    if opts.budget is not None and opts.decomposition == "threshold":
        parser.error("--decomposition threshold cannot keep a --budget; use systematic or active_set")
    return opts


class VAE(nn.Module):
    """A game, with what its losses mean for an image: rate, distortion and bits per dimension.

    To the Interaction's ``aux`` it adds ``rate``, the divergence of the sender's distribution from the uniform prior,
    and ``negative_elbo``, rate plus distortion, in nats; and in evaluation, with samples, ``bits_per_dimension``.
    """

    def __init__(
        self,
        game: Any,
        inference: Inference,
        generator: Generator,
        n_bits: int,
        nll_samples: int = 0,
        estimate: str = "",
    ) -> None:
        super().__init__()
        self.game = game
        self.inference = inference
        self.generator = generator
        self.n_bits = n_bits
        self.nll_samples = nll_samples
        self.estimate = estimate

    def forward(
        self, sender_input: torch.Tensor, labels: torch.Tensor, receiver_input: Any = None, aux_input: Any = None
    ) -> tuple[torch.Tensor, Any]:
        loss, interaction = self.game(sender_input, labels, receiver_input, aux_input)
        aux = interaction.aux
        aux["rate"] = self.n_bits * math.log(2) - aux["sender_entropy"]
        aux["negative_elbo"] = aux["rate"] + aux["distortion"]
        if not self.training and self.nll_samples:
            aux["bits_per_dimension"] = self.bits_per_dimension(sender_input, labels, self.nll_samples)
        return loss, interaction

    def distribution(self, images: torch.Tensor) -> Any:
        """The sender's distribution over bit-vectors."""
        sender = self.game.sender
        if isinstance(sender, SparseWrapper):
            return sender.distribution(images)
        return (sender.sender if isinstance(sender, RelaxedWrapper) else sender)(images)

    @torch.no_grad()
    def bits_per_dimension(self, images: torch.Tensor, levels: torch.Tensor, n_samples: int) -> torch.Tensor:
        """The negative log-likelihood of images, by importance sampling, in bits per pixel, ``(B,)``."""

        def log_prob_given(messages: torch.Tensor) -> torch.Tensor:
            rows, batch = messages.shape[:2]
            pairs = levels.expand(rows, *levels.shape).flatten(0, 1)
            features = self.generator(messages.flatten(0, 1))
            distortion, _ = self.game.loss(None, None, None, features, pairs, None)
            return -distortion.view(rows, batch)

        estimate = log_likelihood(log_prob_given, self.distribution(images), n_samples, self.estimate)
        return -estimate / math.log(2) / images.shape[1]


def build_vae(opts: argparse.Namespace, n_pixels: int, n_levels: int) -> VAE:
    """The agents in the game that trains them."""
    inference = Inference(n_pixels, opts.latent_size)
    generator = Generator(opts.latent_size, n_pixels, n_levels)
    loss = Distortion(generator)
    options: dict[str, Any] = {"sender_entropy_coeff": opts.entropy_coeff, **training.quiet_logging()}
    game: nn.Module
    if opts.mode in SPARSE:
        sender: nn.Module
        if opts.mode == "sparsemap":
            kept = methods.support_options(opts)
            sender = SparseMAPBitVectorWrapper(inference, opts.budget, opts.decomposition, **kept)
        else:
            sender = TopKSparsemaxWrapper(inference, opts.topksparse, **methods.support_options(opts))
        gathered = {
            "strategy": "gather",
            "evaluation": "expected",
            "max_support": opts.max_support,
            "bound": "sum_and_sample",
        }
        game = SymbolGameMarg(sender, generator, loss, **gathered, **options)
    else:
        sampler = BitVectorSampler(inference, opts.temperature or 1.0)
        game = methods.sampling_game(opts, sampler, generator, loss, n_pixels, evaluation="sampled", **options)
    return VAE(game, inference, generator, opts.latent_size, opts.validation_nll_samples, opts.nll)


def line(start: float, end: float, n_epochs: int) -> Callable[[int], float]:
    """A schedule from ``start`` at epoch 1 to ``end`` at epoch ``n_epochs``, and there from then on."""
    return lambda epoch: end if n_epochs < 2 else start + (end - start) * min(1.0, (epoch - 1) / (n_epochs - 1))


def build_callbacks(opts: argparse.Namespace, vae: VAE, batches_per_epoch: int) -> list[Any]:
    callbacks: list[Any] = []
    if opts.mode == "gs":
        decay, steps = opts.temperature_decay, opts.temperature_update_freq
        callbacks.append(StepTemperature(vae.game.sender, batches_per_epoch, decay, update_frequency=steps))
    if methods.controls_support(opts):
        callbacks.append(SupportSchedule(vae.game.sender, end=SUPPORT_END))
    if opts.mode in SPARSE and opts.temperature_end is not None:
        schedule = line(opts.temperature or 1.0, opts.temperature_end, opts.n_epochs)
        callbacks.append(Schedule(vae.game.sender, "temperature", schedule))
    if opts.entropy_warmup:
        schedule = line(opts.entropy_start, opts.entropy_coeff, opts.entropy_warmup + 1)
        callbacks.append(Schedule(vae.game, "sender_entropy_coeff", schedule))
    return callbacks


@torch.no_grad()
def evaluate(opts: argparse.Namespace, vae: VAE, loader: Iterable) -> tuple[dict[str, float], torch.Tensor | None]:
    """Tests a VAE, however it was trained: the same figures for all methods, and the sizes of all supports.

    ELBO, rate and distortion are exact where the sender's distribution is sparse, else with one sample per image.
    """
    vae.to(opts.device).eval()
    vae.nll_samples = 0
    if opts.mode in SPARSE and opts.temperature_end is not None:
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
    calls = joined["receiver_calls"].mean() if opts.mode in SPARSE else _calls_in_training(opts)
    return {**results, "receiver_calls": float(calls)}, supports


def _calls_in_training(opts: argparse.Namespace) -> float:
    return 2.0 if opts.mode == "sfe" and opts.baseline_type == "sample" else 1.0


@torch.no_grad()
def draw(vae: VAE, images: data.GreyImages, supports: torch.Tensor | None, folder: pathlib.Path, device: Any) -> None:
    """Images beside what their most probable message decodes to, samples from the prior, and sizes of supports."""
    shown = torch.from_numpy(images.pixels[:20]).float().to(device) / (images.levels - 1)
    restored = vae.generator.mean_levels(vae.distribution(shown).mode)
    rows = torch.stack((shown, restored), 1).flatten(0, 1)
    plots.grid(rows, 10, folder / "reconstructions.png", "test images, each beside its reconstruction")
    with torch.random.fork_rng():
        torch.manual_seed(EVALUATION_SEED)
        messages = torch.randint(0, 2, (50, vae.n_bits)).float().to(device)
    plots.grid(vae.generator.mean_levels(messages), 10, folder / "samples.png", "decoded from uniform bits")
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
    split = data.load(opts.data, opts.data_root)
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
            draw(vae, split.test, supports, run.folder, opts.device)
        run.draw_curves(_panels(opts), results)
    return training.finish(opts, results, started, run)


def _panels(opts: argparse.Namespace) -> list[plots.Panel]:
    messages = methods.trained_messages(opts)
    trained = "" if messages in ("expected", "sampled") else messages  # as in validation and test
    likelihood = plots.Curve(
        "validation",
        "bits_per_dimension",
        f"{opts.validation_nll_samples} importance samples",
        "bits_per_dimension",
        f"{opts.nll_samples} importance samples",
    )
    return [
        plots.compared("negative ELBO (nats)", "negative_elbo", "negative_elbo", trained),
        plots.compared("rate (nats)", "rate", "rate", trained),
        plots.compared("support (bit-vectors)", "support", "support"),
        plots.Panel("negative log-likelihood (bits per dimension)", (likelihood,)),
    ]
