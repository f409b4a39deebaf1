"""Time of one training step of the semi-supervised VAE, as a ratio to a plain PyTorch loop.

The size is the paper's: 64 unlabelled and 64 labelled binarised images of 784 pixels, sparsemax, a sender that is sure
of its class, so that the VAE is called about once per image, as in training on MNIST. The plain loop does what the
experiment does, without EGG: classifier and VAE are called once for each of the two batches, images are kept as
floats, and Adam is PyTorch's default. "one call" is a plain loop too, with one call of each agent for both batches and
the fused Adam: what is left for everything around it. The three take turns, 100 steps each; a learning rate of 0 keeps
the sender sure.

    python benchmarks/semi_supervised_vae_step.py [--device cuda] [--repeats 7]
"""

import argparse
import platform
import statistics
import time
from collections.abc import Iterator

import entmax
import numpy as np
import torch
from torch.nn.functional import one_hot

from egg_sparse import host
from egg_sparse.zoo import faults, training
from egg_sparse.zoo.images import GreyImages
from egg_sparse.zoo.semi_supervised_vae import data
from egg_sparse.zoo.semi_supervised_vae.archs import negative_elbo
from egg_sparse.zoo.semi_supervised_vae.games import SemiSupervisedGame, build_game
from egg_sparse.zoo.semi_supervised_vae.train import parse_options

BATCH, PIXELS, CLASSES, STEPS, WEIGHT = 64, 784, 10, 100, 9.0


def images(n: int) -> GreyImages:
    """Grey images as bright as MNIST's."""
    random = np.random.default_rng(n)
    pixels = (random.random((n, PIXELS)) < 0.19) * random.integers(60, 256, (n, PIXELS))
    return GreyImages(pixels.astype(np.uint8), random.integers(0, CLASSES, n), 256)


class Plain:
    """The obvious loop."""

    fused = False

    def __init__(self, game: SemiSupervisedGame, split: data.Split, device: torch.device) -> None:
        self.classifier, self.vae = game.classifier, game.vae
        parameters = [*self.classifier.parameters(), *self.vae.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=0.0, fused=self.fused)
        self.classification_loss = entmax.SparsemaxLoss(reduction="none")
        self.unlabeled, self.labeled = (
            (torch.from_numpy(source.pixels).float().to(device) / 255, torch.from_numpy(source.classes).to(device))
            for source in (split.unlabeled, split.labeled)
        )

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        order = torch.randperm(len(self.unlabeled[0]), device=self.unlabeled[0].device)
        for chosen in order.split(BATCH):
            of_labeled = chosen % len(self.labeled[0])
            pixels, classes = self.labeled
            yield torch.bernoulli(self.unlabeled[0][chosen]), torch.bernoulli(pixels[of_labeled]), classes[of_labeled]

    def loss(self, unlabeled: torch.Tensor, labeled: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        probs = entmax.sparsemax(self.classifier(unlabeled), dim=-1)
        examples, messages = probs.nonzero(as_tuple=True)
        played = unlabeled[examples]
        elbos = negative_elbo(self.vae(messages, played), played, self.vae.latent_dim)
        of_labeled = negative_elbo(self.vae(classes, labeled), labeled, self.vae.latent_dim)
        of_classes = self.classification_loss(self.classifier(labeled), classes)
        return self.total(probs[examples, messages], elbos, of_labeled + of_classes)

    @staticmethod
    def total(probs: torch.Tensor, elbos: torch.Tensor, of_labeled: torch.Tensor) -> torch.Tensor:
        return of_labeled.mean() + WEIGHT * ((probs * elbos).sum() + (probs * probs.log()).sum()) / BATCH

    def epoch(self) -> None:
        for batch in self.batches():
            self.optimizer.zero_grad()
            self.loss(*batch).backward()
            self.optimizer.step()


class OneCall(Plain):
    fused = True

    def loss(self, unlabeled: torch.Tensor, labeled: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        scores = self.classifier(torch.cat((unlabeled, labeled)))
        probs = entmax.sparsemax(scores[:BATCH], dim=-1)
        examples, messages = probs.nonzero(as_tuple=True)
        played = torch.cat((unlabeled[examples], labeled))
        rows = one_hot(torch.cat((messages, classes)), CLASSES).float()
        elbos = negative_elbo(self.vae(rows, played), played, self.vae.latent_dim)
        of_classes = self.classification_loss(scores[BATCH:], classes)
        return self.total(probs[examples, messages], elbos[: len(examples)], elbos[len(examples) :] + of_classes)


class Zoo:
    """The experiment: EGG's Trainer, SymbolGameMarg, its Interactions, the check of every gradient."""

    def __init__(self, opts: argparse.Namespace, game: SemiSupervisedGame, split: data.Split) -> None:
        loader = data.SemiSupervisedLoader(split.unlabeled, split.labeled, BATCH, seed=1)
        optimizer = training.build_optimizer(opts, game.parameters(), lr=0.0)
        guard = faults.FaultGuard(game, optimizer, 1, len(loader))
        trainer = host.core.Trainer(game=game, optimizer=optimizer, train_data=loader, callbacks=[guard])
        self.epoch = trainer.train_epoch


def game_of(opts: argparse.Namespace, split: data.Split) -> SemiSupervisedGame:
    torch.manual_seed(0)
    game = build_game(opts, split)
    with torch.no_grad():
        game.classifier.layers[-1].weight.mul_(1000)  # sure of a class
    return game.to(opts.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()

    opts = parse_options(["--random_seed=1", *([] if args.device == "cuda" else ["--no_cuda"])])
    split = data.Split(*(images(n) for n in (STEPS * BATCH // 9, STEPS * BATCH, BATCH, BATCH)))
    loops = {
        "plain loop": Plain(game_of(opts, split), split, opts.device),
        "one call": OneCall(game_of(opts, split), split, opts.device),
        "python -m egg_sparse.zoo.semi_supervised_vae": Zoo(opts, game_of(opts, split), split),
    }
    times: dict[str, list[float]] = {name: [] for name in loops}
    for repeat in range(args.repeats + 1):
        for name, loop in loops.items():
            started = time.perf_counter()
            loop.epoch()
            if args.device == "cuda":
                torch.cuda.synchronize()
            if repeat:
                times[name].append((time.perf_counter() - started) / STEPS)
    base = statistics.median(times["plain loop"])
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{platform.machine()}, {device}, torch {torch.__version__}, host {host.describe()}")
    print(f"{'':48}{'ms':>8}{'ratio':>8}")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:48}{median * 1e3:8.2f}{median / base:8.2f}")


if __name__ == "__main__":
    main()
