"""The language of a saved run: what its sender says of the objects or images that it is tested on.

python -m egg_sparse.zoo.language RUN
"""

from __future__ import annotations

import argparse
import importlib
import json
import pathlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from egg_sparse.language import (
    Language,
    emlangkit_arrays,
    exact_and_greedy,
    language_of,
    standard_errors,
    write_elcc,
)
from egg_sparse.zoo import checkpoints, cli, resume, run_folder
from egg_sparse.zoo.cli import number, path
from egg_sparse.zoo.experiments import EXPERIMENTS, experiment_of

PROG = "egg_sparse.zoo.language"
SEED = 20200713
MAX_COMPARED = 4096
"""The number of inputs up to which the topographic similarity is computed by default."""


@dataclass
class SpokenRun:
    """The language of a run.

    Attributes:
        experiment: the experiment's name.
        language: the language.
        inputs: what the sender sees of each input ``(N, ...)``.
        attributes: the inputs' attributes ``(N, A)``; None where they have none.
        input_distance: the distance of inputs that suits them.
        options: the options of the run.
    """

    experiment: str
    language: Language
    inputs: torch.Tensor
    attributes: torch.Tensor | None
    input_distance: str
    options: dict[str, Any]

    @property
    def compared(self) -> dict[str, Any]:
        """The arguments of :func:`egg_sparse.language.statistics`."""
        by_attributes = self.input_distance == "hamming"
        return {
            "attributes": self.attributes,
            "inputs": None if by_attributes else self.inputs,
            "input_distance": self.input_distance,
        }


@dataclass
class _Speaker:
    """A sender, and what it speaks of: EGG's batches, and the same as in :class:`SpokenRun`."""

    game: nn.Module
    sender: Any
    batches: list[Any]
    inputs: torch.Tensor
    attributes: torch.Tensor | None
    input_distance: str = "euclidean"


def language_of_run(folder: str | pathlib.Path, checkpoint: str | pathlib.Path | None = None) -> SpokenRun:
    """The language of a run of the zoo, on the objects of its training or the images of its test.

    Args:
        folder: the run folder.
        checkpoint: the checkpoint; None for the newest one.

    Raises:
        FileNotFoundError: there is no run, or no checkpoint.
        ValueError: the run is of another experiment, a file is damaged, or the checkpoint is not in the folder.
    """
    folder = pathlib.Path(folder)
    saved = run_folder.load_options_of(folder)
    experiment = experiment_of(saved)
    if experiment is None:
        raise ValueError(f"{folder} has the options of none of the experiments {', '.join(EXPERIMENTS)}")
    if checkpoint is None:
        newest = checkpoints.newest(folder / run_folder.CHECKPOINTS)
        if newest is None:
            raise FileNotFoundError(f"there is no checkpoint in {folder / run_folder.CHECKPOINTS}")
        checkpoint = newest[0]
    elif not run_folder.holds(str(folder), str(checkpoint)):
        raise ValueError(f"checkpoint must be one in the run folder {folder}, got {checkpoint}")
    train = importlib.import_module(f"egg_sparse.zoo.{experiment}.train")
    opts = train.parse_options(["--evaluate", f"--load_from_checkpoint={checkpoint}"])
    speaker = _SPEAKERS[experiment](opts, train)
    resume.load_for_evaluation(opts, speaker.game)
    speaker.game.to(opts.device)
    with torch.random.fork_rng(devices=[opts.device] if opts.device.type == "cuda" else []):
        torch.manual_seed(SEED)  # supports that are bounded are drawn
        language = language_of(speaker.sender, speaker.batches)
    return SpokenRun(experiment, language, speaker.inputs, speaker.attributes, speaker.input_distance, saved)


def _signal_game(opts: argparse.Namespace, train: Any) -> _Speaker:
    source = train.data.load(opts.data, opts.root, opts.data_root, bool(opts.same), opts.pixels == "standard")
    loaders = train.build_loaders(opts, source)
    if opts.max_len == 1:
        game = train.build_game(opts, *train.build_agents(opts, source.n_features))
    else:
        game = train.build_sequence_game(opts, source.n_features)
    batches = list(loaders["test"])
    examples = 1 if opts.max_len == 1 else 0
    images = torch.cat([batch[0] for batch in batches], examples)
    _, which = images.select(1 - examples, 0).unique(dim=0, return_inverse=True)
    # one game for each target, the first one
    first = torch.full((int(which.max()) + 1,), len(which)).scatter_reduce(0, which, torch.arange(len(which)), "amin")
    games = images.index_select(examples, first.sort().values)
    return _Speaker(game, game.sender, [(games,)], games.select(1 - examples, 0), None)


def _semi_supervised_vae(opts: argparse.Namespace, train: Any) -> _Speaker:
    split = train.data.load(opts.data, opts.data_root, opts.n_labeled, opts.root)
    game = train.build_game(opts, split)
    batches = list(train.build_loaders(opts, split)["test"])
    inputs, classes = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
    return _Speaker(game, game.game.sender, batches, inputs, classes[:, None])


def _bit_vector_vae(opts: argparse.Namespace, train: Any) -> _Speaker:
    split = train.data.load(opts.data, opts.data_root, opts.root)
    vae = train.build_vae(opts, split.train.pixels.shape[1], split.train.levels)
    batches = list(train.data.ImageLoader(split.test, 1024, fixed=True))
    inputs = torch.cat([batch[0] for batch in batches])
    # without labels, images of one's own are all of one class
    classes = None if opts.data == "npz" else torch.from_numpy(split.test.classes)[:, None]
    return _Speaker(vae, vae.game.sender, batches, inputs, classes)


def _compo_vs_generalization(opts: argparse.Namespace, train: Any) -> _Speaker:
    split = train.data.split(opts.n_attributes, opts.n_values, opts.split, opts.hold_out)
    game = train.build_game(opts)
    batches = list(train.build_loaders(opts, split)["train"])
    inputs = torch.cat([batch[0] for batch in batches])
    return _Speaker(game, game.sender, batches, inputs, split.train, "hamming")


_SPEAKERS: dict[str, Callable[[argparse.Namespace, Any], _Speaker]] = {
    "signal_game": _signal_game,
    "semi_supervised_vae": _semi_supervised_vae,
    "bit_vector_vae": _bit_vector_vae,
    "compo_vs_generalization": _compo_vs_generalization,
}


def build_parser() -> argparse.ArgumentParser:
    description = "Prints the statistics of the language of a saved run, exact and greedy, as one JSON object."
    parser = argparse.ArgumentParser(f"python -m {PROG}", description=description, formatter_class=cli.HelpFormatter)
    option = parser.add_argument
    option("run", metavar="RUN", type=path, help="run folder")
    option("--checkpoint", type=path, help="checkpoint, instead of the newest one of the run")
    count = number(int, at_least=0)
    option("--resamples", type=count, default=0, help="draws of a bootstrap for standard errors, 0 for none")
    option("--samples", type=count, default=0, help="messages drawn per input for an export, 0 for the greedy message")
    option("--arrays", type=path, metavar="FILE.npz", help="file for the arrays that emlangkit takes")
    option("--elcc", type=path, metavar="FOLDER", help="folder for a corpus in the layout of ELCC")
    option("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(params: list[str]) -> dict[str, Any]:
    """Prints the statistics of a saved run's language; ``params`` are command-line arguments.

    Returns:
        What is printed: ``exact`` and ``greedy`` statistics and, on request, ``standard_errors`` of the exact ones.
    """
    opts = build_parser().parse_args(params)
    if opts.resamples == 1:
        raise ValueError("--resamples must be 0 or at least 2, got 1")
    spoken = language_of_run(opts.run, opts.checkpoint)
    compared = spoken.compared
    if len(spoken.language) > MAX_COMPARED and spoken.input_distance != "hamming":
        print(
            f"# no topographic similarity: {len(spoken.language):,} inputs are more than {MAX_COMPARED:,}",
            file=sys.stderr,
            flush=True,
        )
        compared = {"attributes": spoken.attributes, "input_distance": None}
    found: dict[str, Any] = {"run": str(opts.run), "inputs": len(spoken.language)}
    found |= exact_and_greedy(spoken.language, **compared)
    if opts.resamples:
        found["standard_errors"] = standard_errors(spoken.language, **compared, n_resamples=opts.resamples)
    print(json.dumps(_rounded(found)), flush=True)
    _export(opts, spoken, found)
    return found


def _rounded(found: Any) -> Any:
    """The numbers with six digits after the decimal point."""
    if isinstance(found, dict):
        return {name: _rounded(value) for name, value in found.items()}
    return round(found, 6) if isinstance(found, float) else found


def _export(opts: argparse.Namespace, spoken: SpokenRun, found: dict[str, Any]) -> None:
    if opts.arrays:
        import numpy as np

        observations = spoken.inputs.flatten(1) if spoken.attributes is None else spoken.attributes
        messages, observed = emlangkit_arrays(spoken.language, observations, opts.samples)
        with pathlib.Path(opts.arrays).open("wb") as file:
            np.savez_compressed(file, messages=messages, observations=observed)
    if opts.elcc:
        by_attributes = spoken.input_distance == "hamming"
        metadata = {
            "game_subtype": "discrimination" if spoken.experiment == "signal_game" else "reconstruction",
            "data_source": "synthetic" if by_attributes else "natural",
            "observation_type": "vector" if by_attributes else "image",
            "observation_continuous": not by_attributes,
            "options": spoken.options,
        }
        variant = f"{spoken.options['mode']}-{spoken.options['random_seed']}"
        analysis = found["exact"] if opts.samples else found["greedy"]
        write_elcc(
            spoken.language, opts.elcc, spoken.experiment.replace("_", "-"), variant, metadata, analysis, opts.samples
        )


if __name__ == "__main__":
    sys.exit(cli.run(PROG, main))
