"""Trains and evaluates the semi-supervised VAE."""

from __future__ import annotations

import argparse
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import entmax
import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse import SparsemaxWrapper, SymbolGameMarg, host
from egg_sparse.callbacks import EpochSetter, StepTemperature
from egg_sparse.estimators import SymbolSampler
from egg_sparse.zoo import methods, plots, resume, training
from egg_sparse.zoo.cli import ZooParser, number
from egg_sparse.zoo.semi_supervised_vae import data
from egg_sparse.zoo.semi_supervised_vae.archs import Classifier, GaussianVAE, negative_elbo

core = host.core

PROG = "egg_sparse.zoo.semi_supervised_vae"
MODES = ("marg", "sfe", "nvil", "sumsample", "gs")
NORMALIZERS = ("sparsemax", "softmax", "entmax15")
WARM_START_EPOCHS = {"digits": 150, "mnist": 100}
N_CLASSES = 10
EVALUATION_SEED = 20201207
EVALUATION_BATCH = 500

MODE_OPTIONS = {
    "max_support": ("sumsample",),
    "baseline_type": ("sfe",),
    "gs_tau": ("gs",),
    "straight_through": ("gs",),
    "temperature_decay": ("gs",),
    "temperature_update_freq": ("gs",),
}
DATA_OPTIONS = {"data_root": ("mnist",)}


def build_parser() -> ZooParser:
    parser = ZooParser(
        prog=PROG,
        description="A VAE of images whose class is a message, learnt from few labels.",
        defaults={"batch_size": 64, "n_epochs": 50, "lr": 0.0005, "checkpoint_freq": 1, "lr_schedule": "constant"},
    )
    option, count, not_negative = parser.add_argument, number(int, at_least=1), number(float, at_least=0)
    modes = "exact marginalization, score function, NVIL, sum-and-sample or Gumbel-Softmax"
    option("--mode", choices=MODES, default="marg", help=f"{modes} (default: marg)")
    normalizers = "of the sender, with its own classification loss; default sparsemax in marg, else softmax"
    option("--normalizer", choices=NORMALIZERS, default=None, help=normalizers)
    entropy = "coefficient of the sender's entropy in nats; 1 makes the loss an ELBO"
    option("--entropy_coeff", type=not_negative, default=1.0, help=f"{entropy} (default: 1)")
    summed = "classes that are summed exactly, beside a sampled one"
    option("--max_support", "--topk", type=count, default=1, help=f"sumsample: {summed} (default: 1)")
    methods.add_baseline_option(parser)
    methods.add_gumbel_options(parser, decay=1e-4)
    divided = "what the classifier's scores are divided by"
    option("--temperature", type=number(float, above=0), default=1.0, help=f"{divided} (default: 1.0)")
    sources = "scikit-learn's digits, or torchvision's MNIST with the paper's split"
    option("--data", choices=data.SOURCES, default="digits", help=f"{sources} (default: digits)")
    option("--data_root", default="data", help="mnist: torchvision's folder, filled by download if empty")
    option("--n_labeled", type=count, default=None, help="images with a label (default: 100 of digits, 5000 of mnist)")
    warm = "epochs on the labelled images alone, before the others"
    default = "of digits 150, of mnist 100; none with --warm_start_path"
    option("--warm_start_epochs", type=number(int, at_least=0), default=None, help=f"{warm} (default: {default})")
    option("--warm_start_lr", type=number(float, above=0), default=0.001, help="their learning rate (default: 0.001)")
    option("--warm_start_path", default=None, help="start from the agents of this checkpoint, of --labeled_only, say")
    option("--labeled_only", action="store_true", help="learn from the labelled images alone")
    training.add_run_options(parser, "semi_supervised_vae")
    return parser


def parse_options(params: list[str]) -> argparse.Namespace:
    parser = build_parser()
    opts = resume.parse(parser, params)
    if opts.normalizer is None:
        opts.normalizer = "sparsemax" if opts.mode == "marg" else "softmax"
    if opts.warm_start_epochs is None:
        opts.warm_start_epochs = 0 if opts.warm_start_path else WARM_START_EPOCHS[opts.data]
    if opts.mode in ("sfe", "nvil", "gs") and opts.normalizer != "softmax":
        parser.error(f"--normalizer must be softmax in mode {opts.mode}, which samples, got {opts.normalizer}")
    methods.warn_unused(parser, opts, DATA_OPTIONS, MODE_OPTIONS)
    parser.warn_unused(["max_len", "vocab_size"], "in this game: a message is one of the ten classes")
    if opts.evaluate or opts.load_from_checkpoint:
        warm = ["warm_start_epochs", "warm_start_lr", "warm_start_path"]
        parser.warn_unused(warm, "where the agents come from a checkpoint")
    return opts


def elbo_loss(
    sender_input: torch.Tensor,
    message: torch.Tensor,
    _receiver_input: Any,
    receiver_output: torch.Tensor,
    labels: torch.Tensor,
    _aux_input: Any,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The negative ELBO of an image given its class, in nats; ``acc`` where the class is the right one.

    The sender's entropy and the uniform prior's log 10 are not in it; the game subtracts the former. It is reported as
    ``conditional_elbo_loss`` too, which means the same in training and validation.
    """
    latent_dim = (receiver_output.shape[-1] - sender_input.shape[-1]) // 2
    classes = message.argmax(-1) if message.is_floating_point() else message
    loss = negative_elbo(receiver_output, sender_input, latent_dim)
    return loss, {"acc": (classes == labels).float(), "conditional_elbo_loss": loss.detach()}


def unconditional(aux: dict[str, torch.Tensor]) -> torch.Tensor:
    """The negative ELBO ``(B,)`` in nats, with the divergence of the sender's distribution from a uniform one."""
    return aux["conditional_elbo_loss"] - aux["sender_entropy"] + math.log(N_CLASSES)


def classification_loss(normalizer: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The loss whose gradient is normalizer(scores) less the true class, per example."""
    if normalizer == "softmax":
        return lambda scores, classes: F.cross_entropy(scores, classes, reduction="none")
    loss = {"sparsemax": entmax.SparsemaxLoss, "entmax15": entmax.Entmax15Loss}[normalizer]
    return loss(reduction="none")


@contextmanager
def in_next_call(agent: nn.Module, *labeled: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Makes the next call of an agent take a labelled batch as well: one call for both is cheaper than two.

    Args:
        agent: called with tensors that have examples on axis 0, and other arguments behind them.
        labeled: its arguments for the labelled batch. Classes become rows where the call's own messages are.

    Yields:
        A list, empty until that call, then with the agent's output for the labelled batch.
    """
    outputs: list[torch.Tensor] = []

    def join(_agent: nn.Module, own: tuple[Any, ...]) -> tuple[Any, ...]:
        joining.remove()
        return *map(joined, own, labeled), *own[len(labeled) :]

    def joined(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        if own.dim() > other.dim():
            other = F.one_hot(other, own.shape[-1]).to(own.dtype)
        return torch.cat((own, other))

    def split(_agent: nn.Module, _inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        splitting.remove()
        own, of_labeled = output.tensor_split([len(output) - len(labeled[0])])
        outputs.append(of_labeled)
        return own

    joining, splitting = agent.register_forward_pre_hook(join), agent.register_forward_hook(split)
    try:
        yield outputs
    finally:
        joining.remove()
        splitting.remove()


class SemiSupervisedGame(nn.Module):
    """A game on unlabelled images, plus the losses of a labelled batch that comes in ``aux_input``.

    The loss in training is

        labelled ELBO loss + classification loss + unlabeled_weight * the game's loss,

    each a mean over its batch. In evaluation it is the game.

    Args:
        game: on images ``sender_input``, which are also ``receiver_input``.
        classifier, vae: the agents that play it.
        classification_loss: scores ``(B, n_classes)`` and classes ``(B,)`` to losses ``(B,)``.
        unlabeled_weight: unlabelled images per labelled one.
        labeled_only: train on labelled images alone, which then are ``sender_input``, their classes ``labels``.
    """

    def __init__(
        self,
        game: Any,
        classifier: Classifier,
        vae: GaussianVAE,
        classification_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        unlabeled_weight: float,
        labeled_only: bool = False,
    ) -> None:
        super().__init__()
        self.game = game
        self.classifier = classifier
        self.vae = vae
        self.classification_loss = classification_loss
        self.unlabeled_weight = unlabeled_weight
        self.labeled_only = labeled_only

    def labeled_losses(
        self, images: torch.Tensor, classes: torch.Tensor, scores: torch.Tensor, vae_output: torch.Tensor
    ) -> torch.Tensor:
        """Losses ``(B,)`` of labelled images, of what the agents make of them."""
        elbo, _ = elbo_loss(images, classes, images, vae_output, classes, None)
        return elbo + self.classification_loss(scores, classes)

    def forward(
        self, sender_input: torch.Tensor, labels: torch.Tensor, receiver_input: Any = None, aux_input: Any = None
    ) -> tuple[torch.Tensor, Any]:
        if not self.training:
            return self.game(sender_input, labels, receiver_input)
        if self.labeled_only:
            scores, vae_output = self.classifier(sender_input), self.vae(labels, sender_input)
            losses = self.labeled_losses(sender_input, labels, scores, vae_output)
            guesses = scores.detach().argmax(-1)
            return losses.mean(), self.game.train_logging_strategy.filtered_interaction(
                sender_input=sender_input,
                receiver_input=receiver_input,
                labels=labels,
                aux_input=None,
                message=guesses,
                receiver_output=None,
                message_length=torch.ones_like(losses.detach()),
                aux={"acc": (guesses == labels).float(), "labeled_loss": losses.detach()},
            )
        images, classes = aux_input["images"], aux_input["classes"]
        with in_next_call(self.classifier, images) as scores, in_next_call(self.vae, classes, images) as vae_output:
            loss, interaction = self.game(sender_input, labels, receiver_input)
        interaction.aux["negative_elbo"] = unconditional(interaction.aux)
        losses = self.labeled_losses(images, classes, *scores, *vae_output)
        interaction.aux["labeled_loss"] = losses.detach()
        return losses.mean() + self.unlabeled_weight * loss, interaction


def build_game(opts: argparse.Namespace, split: data.Split) -> SemiSupervisedGame:
    """The agents in the game that trains them."""
    n_pixels = split.labeled.pixels.shape[1]
    classifier, vae = Classifier(n_pixels, N_CLASSES), GaussianVAE(n_pixels, N_CLASSES)
    options: dict[str, Any] = {"sender_entropy_coeff": opts.entropy_coeff, **training.quiet_logging()}
    game: nn.Module
    if opts.mode in ("marg", "sumsample"):
        sender = SparsemaxWrapper(classifier, opts.normalizer, temperature=opts.temperature)
        bounded: dict[str, Any] = {"max_support": methods.max_support(opts), "bound": "sum_and_sample"}
        game = SymbolGameMarg(sender, vae, elbo_loss, strategy="gather", **bounded, **options)
    else:
        sampler = SymbolSampler(classifier, opts.temperature)
        game = methods.sampling_game(opts, sampler, vae, elbo_loss, n_pixels, **options)
    loss = classification_loss(opts.normalizer)
    weight = len(split.unlabeled) / len(split.labeled)
    return SemiSupervisedGame(game, classifier, vae, loss, weight, opts.labeled_only)


def load_agents(game: SemiSupervisedGame, path: str) -> None:
    """Takes classifier and VAE from the checkpoint of a run of any mode.

    Raises:
        FileNotFoundError, ValueError: there is none, or it is of agents of other sizes.
    """
    state = host.load_checkpoint(path).model_state_dict
    for name, agent in (("classifier", game.classifier), ("vae", game.vae)):
        own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        host.check_architecture(agent, own, path)
        agent.load_state_dict(own)


def warm_start(opts: argparse.Namespace, game: SemiSupervisedGame, split: data.Split) -> None:
    """Trains the agents on the labelled images alone, with an optimizer of its own and no checkpoints."""
    part = training.part_of_batch(opts)
    loader = data.SemiSupervisedLoader(split.labeled, None, opts.batch_size, opts.random_seed, part=part)
    agents = [*game.classifier.parameters(), *game.vae.parameters()]
    optimizer = training.build_optimizer(opts, agents, opts.warm_start_lr, fused=True)
    kept = {name: getattr(opts, name) for name in ("checkpoint_dir", "preemptable", "tensorboard")}
    for name, off in (("checkpoint_dir", None), ("preemptable", False), ("tensorboard", False)):
        setattr(opts, name, off)
    game.labeled_only = True
    try:
        core.Trainer(game=game, optimizer=optimizer, train_data=loader, callbacks=[EpochSetter(loader)]).train(
            opts.warm_start_epochs
        )
    finally:
        game.labeled_only = opts.labeled_only
        for name, value in kept.items():
            setattr(opts, name, value)


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
    exact = SymbolGameMarg(
        sender,
        game.vae,
        elbo_loss,
        1.0,
        strategy="gather",
        evaluation="expected",
        max_support=methods.max_support(opts),
        **training.quiet_logging(),
    )
    exact.to(opts.device).eval()
    reported = ("sender_entropy", "support", *(("exact",) if opts.mode in ("marg", "sumsample") else ()))
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
    means["negative_elbo"] += float(torch.log(torch.tensor(float(N_CLASSES))))  # of the uniform prior
    return {**means, "receiver_calls": means["support"] if opts.mode == "marg" else _calls_in_training(opts)}


def _calls_in_training(opts: argparse.Namespace) -> float:
    """Classes per unlabelled image that the VAE is given in one training step of a sampling method."""
    if opts.mode == "sumsample":
        return float(min(opts.max_support + 1, N_CLASSES))
    return 2.0 if opts.mode == "sfe" and opts.baseline_type == "sample" else 1.0


def draw(game: SemiSupervisedGame, images: data.GreyImages, folder: pathlib.Path, device: torch.device) -> None:
    """Samples of every class, and images beside what is left of them."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(EVALUATION_SEED)
        latent = torch.randn(N_CLASSES, game.vae.latent_dim, device=device).repeat(N_CLASSES, 1)
        classes = torch.arange(N_CLASSES, device=device).repeat_interleave(N_CLASSES)
        plots.grid(
            game.vae.generate(classes, latent), N_CLASSES, folder / "samples.png", "classes, one latent a column"
        )
        shown = torch.from_numpy(images.pixels[: 2 * N_CLASSES] / (images.levels - 1)).float().to(device)
        guesses = game.classifier(shown).argmax(-1)
        restored = game.vae(guesses, shown)[:, : shown.shape[1]].sigmoid()
        rows = torch.stack((shown, restored), 1).flatten(0, 1)
        plots.grid(rows, N_CLASSES, folder / "reconstructions.png", "test images, each beside its reconstruction")


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
    split = data.load(opts.data, opts.data_root, opts.n_labeled)
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
            draw(game, split.test, run.folder, opts.device)
        run.draw_curves(_panels(opts), results)
    return training.finish(opts, results, started, run)


@torch.no_grad()
def play_as_trained(
    game: SemiSupervisedGame, loader: data.SemiSupervisedLoader, device: torch.device
) -> dict[str, torch.Tensor]:
    """Figures per image of the messages that the game is trained with: all with a probability where it sums, else one
    that is drawn.

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
        "negative_elbo": torch.cat([unconditional(aux) for aux in parts]).cpu(),
    }


def train(
    opts: argparse.Namespace, game: SemiSupervisedGame, loaders: dict[str, data.SemiSupervisedLoader]
) -> training.Run | None:
    """Trains the game, and fills the run folder."""
    callbacks: list[Any] = [
        training.ValidationAsTrained(lambda device: play_as_trained(game, loaders["validation"], device))
    ]
    if opts.mode == "gs":
        decay, steps = opts.temperature_decay, opts.temperature_update_freq
        callbacks.append(StepTemperature(game.game.sender, len(loaders["train"]), decay, update_frequency=steps))
    return training.train(opts, game, loaders["train"], loaders["validation"], "semi_supervised_vae", callbacks)


def _panels(opts: argparse.Namespace) -> list[plots.Panel]:
    trained = "greedy" if opts.labeled_only else methods.trained_messages(opts)
    validated = "expected" if opts.mode in ("marg", "sumsample") else "sampled"
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
        plots.Panel("accuracy (share of images)", accuracy, 1 / N_CLASSES),
        plots.Panel("negative ELBO (nats)", elbo),
        plots.compared("support (classes)", "support", "support"),
        plots.compared("entropy of the sender (nats)", "sender_entropy", "sender_entropy"),
    ]
