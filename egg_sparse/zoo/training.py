"""What training has in common in all of the zoo: options, the run folder, callbacks, and how a run ends."""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from egg_sparse import host
from egg_sparse.callbacks import EpochSeeds, EpochSetter, MetricsWriter, TrainingProgress
from egg_sparse.estimators import NeuralBaseline, RelaxedWrapper, SymbolGameRelaxed, SymbolGameScoreFunction
from egg_sparse.zoo import checkpoints, faults, pictures, run_folder
from egg_sparse.zoo.options import Terminated, ZooParser, number, require

core = host.core


def add_run_options(parser: ZooParser, experiment: str) -> None:
    """Options that every entry has, beside those that EGG adds."""
    option = parser.add_argument
    schedules = "linear: the learning rate falls to 0 at the last epoch"
    option("--lr_schedule", choices=("linear", "constant"), default="linear", help=f"{schedules} (default: linear)")
    option("--weight_decay", type=number(float, at_least=0), default=0.0, help="L2 regularization (default: 0)")
    option("--out", default=None, help=f"the run folder (default: runs/{experiment}/<mode>-<seed>-<time>)")
    option("--resume", default=None, help="go on with the run in this folder, with its options and those given")
    kept = "checkpoints of epochs to keep, the newest, beside the last"
    option("--keep", type=number(int, at_least=1), default=2, help=f"{kept} (default: 2)")
    faults = "what to do where a loss or a gradient is not finite"
    option("--on_nan", choices=("stop", "skip"), default="stop", help=f"{faults} (default: stop)")
    option("--deterministic", action="store_true", help="deterministic algorithms alone, also on a GPU; slower there")
    option("--evaluate", action="store_true", help="test --load_from_checkpoint with the options in its run folder")
    option("--debug", action="store_true", help="show the traceback of an error")


def add_gumbel_options(parser: ZooParser, decay: float = 1e-5) -> None:
    option, not_negative, positive = parser.add_argument, number(float, at_least=0), number(float, above=0)
    option("--gs_tau", type=positive, default=1.0, help="gs: first temperature (default: 1.0)")
    option("--straight_through", action="store_true", help="gs: discrete messages in the forward pass")
    rule = "gs: r in the temperature max(0.5, gs_tau exp(-r t)) at step t"
    option("--temperature_decay", type=not_negative, default=decay, help=f"{rule} (default: {decay})")
    steps = "gs: steps between changes of the temperature"
    option("--temperature_update_freq", type=number(int, at_least=1), default=1000, help=f"{steps} (default: 1000)")


BASELINES = {"runavg": "running_mean", "sample": "sample", "none": "none"}
"""Of the VAEs' score function: ``--baseline_type`` -> what ``SymbolGameScoreFunction`` calls it."""


def add_baseline_option(parser: ZooParser) -> None:
    baselines = "running mean, the loss of a second sample, or none"
    parser.add_argument(
        "--baseline_type", choices=tuple(BASELINES), default="runavg", help=f"sfe: {baselines} (default: runavg)"
    )


def sampling_game(
    opts: argparse.Namespace, sampler: Any, receiver: nn.Module, loss: Any, n_inputs: int, **options: Any
) -> nn.Module:
    """The game of mode sfe, nvil or gs.

    Args:
        opts: all options.
        sampler: of the sender's messages.
        receiver: plays with them.
        loss: of the game.
        n_inputs: features of the sender's input, which NVIL's baseline reads.
        options: of the game.
    """
    if opts.mode == "gs":
        relaxed = RelaxedWrapper(sampler, opts.gs_tau, straight_through=opts.straight_through)
        return SymbolGameRelaxed(relaxed, receiver, loss, **options)
    baseline = NeuralBaseline(n_inputs) if opts.mode == "nvil" else BASELINES[opts.baseline_type]
    return SymbolGameScoreFunction(sampler, receiver, loss, baseline, **options)


TRAINING_OPTIONS = (
    "batch_size",
    "checkpoint_dir",
    "checkpoint_freq",
    "fp16",
    "keep",
    "lr",
    "lr_schedule",
    "n_epochs",
    "on_nan",
    "optimizer",
    "random_seed",
    "tensorboard",
    "update_freq",
    "validation_freq",
    "weight_decay",
)
"""Options that have no effect with ``--evaluate``."""


def parse(parser: ZooParser, params: list[str]) -> argparse.Namespace:
    """The options; with ``--evaluate`` or ``--resume``, those of the run that is meant, and what is given."""
    opts = core.init(parser, params)
    if opts.resume:
        opts.out = opts.resume
    if opts.distributed_context.is_distributed:
        opts.random_seed = _common_seed(opts)
    if opts.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if not opts.evaluate:
        _find_checkpoint(opts)
    return opts


def _common_seed(opts: argparse.Namespace) -> int:
    """The leading process's seed: ``core.init`` gives every process one of its own, but they share their batches."""
    if opts.cuda:
        torch.cuda.set_device(opts.distributed_context.local_rank)
    seeds = [opts.random_seed]
    torch.distributed.broadcast_object_list(seeds, src=0)
    return seeds[0]


def _find_checkpoint(opts: argparse.Namespace) -> None:
    """Where a run goes on by itself, with --resume or --preemptable: the checkpoint that it goes on from."""
    if opts.preemptable:
        root = opts.checkpoint_dir or (pathlib.Path(opts.out) / run_folder.CHECKPOINTS if opts.out else None)
        if root is None:
            raise ValueError("--preemptable needs --out or --checkpoint_dir, where the job finds its checkpoints again")
        pathlib.Path(root).mkdir(parents=True, exist_ok=True)
        folders = [_preemptive_folder(root)]
    elif opts.resume:
        root = pathlib.Path(opts.checkpoint_dir or pathlib.Path(opts.resume) / run_folder.CHECKPOINTS)
        # a job of SLURM, started with --preemptable, has its checkpoints in a folder of its own
        folders = [root, *sorted(folder for folder in root.glob("*") if folder.is_dir())]
    else:
        return
    found = [newest for folder in folders if (newest := checkpoints.newest(folder))]
    opts.checkpoint_dir = str(folders[0])
    if found:
        checkpoint, _ = max(found, key=lambda each: each[1])
        opts.load_from_checkpoint, opts.checkpoint_dir = str(checkpoint), str(checkpoint.parent)
    elif opts.resume:
        print(f"# no checkpoint in {root}: the run begins again", file=sys.stderr, flush=True)


def _preemptive_folder(root: str | pathlib.Path) -> pathlib.Path:
    if "SLURM_JOB_ID" not in os.environ:
        return pathlib.Path(root)  # the restarted job finds the same one
    distributed = importlib.import_module(f"{core.__name__}.distributed")
    return distributed.get_preemptive_checkpoint_dir(root)


def warn_unused(
    parser: ZooParser,
    opts: argparse.Namespace,
    data_options: Mapping[str, tuple[str, ...]],
    mode_options: Mapping[str, tuple[str, ...]],
) -> None:
    """One warning for every given option that has no effect in this mode, with this data or in a mere test."""
    if opts.evaluate:
        parser.warn_unused(TRAINING_OPTIONS, "with --evaluate")
    parser.warn_unused([name for name, modes in mode_options.items() if opts.mode not in modes], f"in mode {opts.mode}")
    parser.warn_unused(
        [name for name, sources in data_options.items() if opts.data not in sources], f"with --data {opts.data}"
    )


def part_of_batch(opts: argparse.Namespace) -> tuple[int, int]:
    """Which part of each training batch this process plays: its number, and of how many.

    Raises:
        ValueError: there are more processes than examples in a batch.
    """
    context = opts.distributed_context
    if opts.batch_size < context.world_size:
        raise ValueError(
            f"--batch_size must be at least {context.world_size}, an example for every process, got {opts.batch_size}"
        )
    return context.rank, context.world_size


def quiet_logging() -> dict[str, Any]:
    """LoggingStrategies for a game, of interactions with messages and scalars but no images."""
    return {
        f"{phase}_logging_strategy": core.LoggingStrategy(
            store_sender_input=False,
            store_receiver_input=False,
            store_labels=False,
            store_aux_input=False,
            store_receiver_output=False,
        )
        for phase in ("train", "test")
    }


def load_for_evaluation(opts: argparse.Namespace, game: nn.Module) -> None:
    """Checks that the checkpoint fits, if there is one, and loads its weights where nothing is left but to test them.

    Raises:
        FileNotFoundError, ValueError: there is no checkpoint, or one that does not fit game, ``--n_epochs`` or
            ``--optimizer``.
    """
    if not opts.load_from_checkpoint:
        return
    path = opts.load_from_checkpoint
    checkpoint = host.load_checkpoint(path)
    host.check_architecture(game, checkpoint.model_state_dict, path)
    if not opts.evaluate:
        if opts.n_epochs < checkpoint.epoch:
            raise ValueError(
                f"nothing is left to train: --n_epochs must be above {checkpoint.epoch}, the epochs that {path} has "
                f"been trained for, got {opts.n_epochs}"
            )
        groups = checkpoint.optimizer_state_dict.get("param_groups", [])
        if any(_OWN_OPTION[opts.optimizer] not in group for group in groups):
            raise ValueError(f"--optimizer must be that of {path}, whose state it goes on with, got {opts.optimizer}")
    if opts.evaluate or checkpoint.epoch == opts.n_epochs:
        game.load_state_dict(checkpoint.model_state_dict)


_OWN_OPTION = {"adam": "betas", "sgd": "momentum", "adagrad": "lr_decay"}
"""An option in the state of each optimizer that the others do not have."""


def build_optimizer(
    opts: argparse.Namespace, parameters: Iterable[nn.Parameter], lr: float | None = None, fused: bool = False
) -> torch.optim.Optimizer:
    """The optimizer that was asked for.

    Args:
        opts: all options.
        parameters: what it optimizes.
        lr: the learning rate if it is not ``--lr``.
        fused: Adam's step in one kernel, which takes half as long on a CPU, and rounds differently.
    """
    optimizer = core.build_optimizer(parameters)
    for group in optimizer.param_groups:
        group["weight_decay"] = opts.weight_decay
        if lr is not None:
            group["lr"] = lr
        if fused and isinstance(optimizer, torch.optim.Adam) and not opts.fp16:
            group["fused"] = True
    return optimizer


def build_schedule(opts: argparse.Namespace, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule of the learning rate."""
    constant = opts.lr_schedule == "constant"
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda epoch: 1.0 if constant else max(0.0, 1 - epoch / max(1, opts.n_epochs))
    )


def set_options(
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    options: list[dict[str, Any]],
    epoch: int,
) -> None:
    """Gives an optimizer and its schedule options of this run, where a checkpoint has brought those of its own.

    Args:
        optimizer: what was loaded.
        schedule: the schedule of its learning rate, which was loaded too.
        options: the options of each group of parameters, with the learning rate of the first epoch as ``initial_lr``.
        epoch: how many epochs have been trained.
    """
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)
    schedule.base_lrs = [own["initial_lr"] for own in options]
    schedule.last_epoch = epoch
    rates = [rate * factor(epoch) for rate, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


class ValidationAsTrained(host.core.Callback):
    """Adds figures of the messages that are trained with to those of the most probable ones that EGG validates.

    Args:
        play: called with the device after each validation; returns tensors of figures per example, by name.
    """

    def __init__(self, play: Callable[[torch.device], dict[str, torch.Tensor]]) -> None:
        self.play = play

    def on_validation_end(self, loss: float, logs: Any, epoch: int) -> None:
        logs.aux.update(self.play(self.trainer.device))


SUMMING_MODES = ("marg", "sparsemap", "topksparse")
"""The modes that sum over all messages of non-zero probability."""


def add_temperature_option(parser: ZooParser, modes: tuple[str, ...], *aliases: str, otherwise: float = 1.0) -> None:
    """The option ``--temperature`` of an experiment with these modes, and what holds without it."""
    names = {"marg": "marg with a sparse normalizer"}
    controlled = " and ".join(names.get(mode, mode) for mode in modes if mode in SUMMING_MODES)
    parser.add_argument(
        "--temperature",
        *aliases,
        type=number(float, above=0),
        default=None,
        help=f"what the sender's scores are divided by (default: chosen by support control in {controlled}, "
        f"else {otherwise:g})",
    )


def controls_support(opts: argparse.Namespace) -> bool:
    """Whether the sender's temperature follows from a floor under its support, which falls over the training."""
    fixed = opts.temperature is not None or getattr(opts, "temperature_end", None) is not None
    return opts.mode in SUMMING_MODES and getattr(opts, "normalizer", "") != "softmax" and not fixed


def support_options(opts: argparse.Namespace, otherwise: float = 1.0) -> dict[str, Any]:
    """The options ``temperature`` and ``support`` of the wrapper of a sender that sums over messages."""
    if controls_support(opts):
        return {}
    return {"temperature": otherwise if opts.temperature is None else opts.temperature, "support": None}


def trained_messages(opts: argparse.Namespace) -> str:
    """Which messages a mode is trained with, in the words of a curve's label."""
    if opts.mode == "gs":
        return "sampled" if opts.straight_through else "relaxed"
    if opts.mode in ("sfe", "nvil"):
        return "sampled"
    return "expected" if max_support(opts) is None else "sampled in part"


def max_support(opts: argparse.Namespace) -> int | None:
    """The largest support that a mode that sums over messages sums exactly in training; None for any."""
    return opts.topk if opts.mode == "sumsample" else getattr(opts, "max_support", None)


@dataclass
class Run:
    """A run whose training has ended, in the leading process.

    Args:
        folder: the run folder.
        history: the records of ``metrics.jsonl``.
        title: what stands above the curves.
        unfinished: whether the folder lacks pictures, or has those of fewer epochs.
    """

    folder: pathlib.Path
    history: list[dict[str, Any]]
    title: str
    unfinished: bool

    def draw_curves(self, panels: Iterable[pictures.Panel], results: dict[str, Any]) -> None:
        """Draws ``curves.png``, the last of a run's pictures."""
        if self.unfinished:
            pictures.curves(self.history, results, panels, self.folder / run_folder.CURVES_FILE, self.title)
        print(f"# options, metrics, checkpoints and curves: {self.folder}", flush=True)


def train(
    opts: argparse.Namespace,
    game: nn.Module,
    train_data: Any,
    validation_data: Iterable,
    experiment: str,
    callbacks: Iterable[Any] = (),
    shown: tuple[str, ...] = ("acc", "loss", "support", "sender_entropy"),
    fused: bool = True,
) -> Run | None:
    """Trains a game, and fills the run folder.

    A run that has been trained for ``--n_epochs`` already is left as it is, apart from what its end has not written.

    Args:
        opts: all options.
        game: what the Trainer trains.
        train_data: a loader with ``set_epoch`` and a length.
        validation_data: another.
        experiment: the folder of runs of one kind.
        callbacks: EGG callbacks of this experiment.
        shown: metrics beside the progress bar.
        fused: see :func:`build_optimizer`.

    Returns:
        What the pictures are drawn from; None in processes other than the leading one.
    """
    require("matplotlib.figure", "matplotlib")  # of the curves, which come last
    checkpoint = host.load_checkpoint(opts.load_from_checkpoint) if opts.load_from_checkpoint else None
    complete = checkpoint is not None and checkpoint.epoch == opts.n_epochs
    run = None
    if opts.distributed_context.is_leader:
        run = _begin(opts, experiment, checkpoint.epoch if checkpoint else 0, complete)
    if not complete:
        _train(opts, game, train_data, validation_data, callbacks, shown, fused, run)
    elif run:
        print(
            f"# nothing is left to train: {opts.load_from_checkpoint} has been trained for {opts.n_epochs} epochs",
            file=sys.stderr,
            flush=True,
        )
        final = pathlib.Path(opts.checkpoint_dir) / "final.tar"
        if pathlib.Path(opts.load_from_checkpoint).resolve() != final.resolve():
            checkpoints.write(checkpoint, final)
    if run:
        run_folder.trained = True
        print(
            f"# the training has ended; should the test be interrupted, python -m egg_sparse.zoo.{experiment} "
            f"--resume {run.folder} only tests",
            file=sys.stderr,
            flush=True,
        )
    return run


def _begin(opts: argparse.Namespace, experiment: str, epoch: int, complete: bool) -> Run:
    """Prepares the run folder, and sets ``checkpoint_dir``.

    Args:
        opts: all options.
        experiment: the folder of runs of one kind.
        epoch: how many epochs have been trained.
        complete: whether those are all.
    """
    in_its_folder = opts.load_from_checkpoint and opts.out and run_folder.holds(opts.out, opts.load_from_checkpoint)
    goes_on = bool(opts.preemptable or opts.resume or in_its_folder)
    if opts.checkpoint_dir and not goes_on and any(pathlib.Path(opts.checkpoint_dir).glob("*.tar")):
        raise ValueError(
            f"--checkpoint_dir: {opts.checkpoint_dir} holds checkpoints of another run; choose another folder"
        )
    folder = run_folder.create(opts, experiment, goes_on, unchanged=complete)
    if opts.checkpoint_dir is None:
        opts.checkpoint_dir = str(folder / run_folder.CHECKPOINTS)
    os.makedirs(opts.checkpoint_dir, exist_ok=True)
    run_folder.remove_unfinished(folder, pathlib.Path(opts.checkpoint_dir))
    history = run_folder.keep_metrics_until(folder, epoch) if goes_on else []
    title = f"{experiment.replace('_', ' ')}, {opts.mode}, {opts.data}, seed {opts.random_seed}"
    return Run(folder, history, title, not (complete and (folder / run_folder.CURVES_FILE).is_file()))


def _train(
    opts: argparse.Namespace,
    game: nn.Module,
    train_data: Any,
    validation_data: Iterable,
    callbacks: Iterable[Any],
    shown: tuple[str, ...],
    fused: bool,
    run: Run | None,
) -> None:
    optimizer = build_optimizer(opts, game.parameters(), fused=fused)
    schedule = build_schedule(opts, optimizer)
    options = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    metrics = MetricsWriter(run.folder / run_folder.METRICS_FILE if run else None)
    saver = None
    if run:
        metrics.history = run.history
        saver = checkpoints.RunCheckpoints(opts.checkpoint_dir, opts.checkpoint_freq, opts.keep)

    context = opts.distributed_context
    seeds = EpochSeeds(opts.random_seed, getattr(context, "rank", 0))
    guard = faults.FaultGuard(
        game,
        optimizer,
        opts.random_seed,
        len(train_data),
        skip=opts.on_nan == "skip",
        fp16=opts.fp16,
        save=saver.save_as if saver else None,
    )
    all_callbacks: list[Any] = [seeds, EpochSetter(train_data), guard, *callbacks, metrics]
    if saver:
        all_callbacks.append(saver)
    progress = None
    if run:
        if sys.stdout.isatty():
            require("rich", "rich")
            progress = TrainingProgress(opts.n_epochs, len(train_data), shown)
            all_callbacks.append(progress)
        else:
            all_callbacks.append(core.ConsoleLogger(print_train_loss=True, as_json=True))
    trainer = core.Trainer(
        game=game,
        optimizer=optimizer,
        optimizer_scheduler=schedule,
        train_data=train_data,
        validation_data=validation_data,
        callbacks=all_callbacks,
    )
    if opts.load_from_checkpoint:
        set_options(optimizer, schedule, options, trainer.start_epoch)
    try:
        trainer.train(n_epochs=opts.n_epochs)
    except (ValueError, RuntimeError) as error:
        fault = faults.in_words(error)
        if fault is None:
            raise
        guard.stop(fault)
    except (KeyboardInterrupt, Terminated):
        if saver:
            saver.save_last_epoch()
        raise
    finally:
        if progress:
            progress.stop()


def finish(
    opts: argparse.Namespace, results: dict[str, Any] | None, started: float, run: Run | None
) -> dict[str, Any] | None:
    """Prints the last line, in the leading process, writes it to the run folder, and ends what ``core.init`` began.

    Args:
        opts: all options.
        results: of the test; None in processes other than the leading one.
        started: what ``time.perf_counter`` said at the start.
        run: the run that was trained; None for a test alone, which writes nothing.

    Returns:
        What the line says.
    """
    final = None
    if results is not None:
        final = {
            "mode": "final",
            **results,
            "seconds": round(time.perf_counter() - started, 1),
            "host": "egg" if host.is_egg() else "standin",
            "device": str(opts.device),
        }
        if run:
            run_folder.write_results(run.folder, final)
        print(json.dumps(final), flush=True)
        core.close()
    if opts.distributed_context.is_distributed:
        torch.distributed.barrier()
        # A DistributedDataParallel that is still alive keeps gloo's threads alive beyond the group; one of them that
        # lets go of a tensor while the interpreter ends aborts the process.
        gc.collect()
        torch.distributed.destroy_process_group()
    return final
