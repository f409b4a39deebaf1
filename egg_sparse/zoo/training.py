"""Trains the games of the zoo: common options, optimizer, Trainer, callbacks, and the end of a run."""

from __future__ import annotations

import argparse
import gc
import json
import os
import pathlib
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from egg_sparse import host
from egg_sparse.callbacks import (
    BestCheckpoint,
    EpochSeeds,
    EpochSetter,
    GradientVariance,
    MessageUsage,
    MetricsWriter,
    SenderState,
    TensorboardMetrics,
    TrainingProgress,
    WandbMetrics,
)
from egg_sparse.callbacks.checkpoints import direction_of
from egg_sparse.zoo import checkpoints, faults, plots, resume, run_folder
from egg_sparse.zoo.cli import Terminated, ZooParser, number, path, require
from egg_sparse.zoo.loaders import OnDevice

core = host.core


def add_run_options(parser: ZooParser, experiment: str, lr_schedule: str = "linear") -> None:
    """Adds the options that every entry has, beside those that EGG adds.

    Args:
        parser: the parser.
        experiment: the name of the folder of runs of one kind.
        lr_schedule: the default of ``--lr_schedule``.
    """
    option = parser.group["training"].add_argument
    schedules = "learning rate that falls to 0 at the last epoch, or stays"
    option("--lr_schedule", choices=("linear", "constant"), default=lr_schedule, help=schedules)
    option("--weight_decay", type=number(float, at_least=0), default=0.0, help="L2 regularization")
    option(
        "--on_nan",
        choices=("stop", "skip"),
        default="stop",
        help="end of the run, or step left out, where a loss or a gradient is not finite",
    )
    option("--deterministic", action="store_true", help="deterministic algorithms alone, also on a GPU; slower there")
    option = parser.group["run"].add_argument
    option("--out", type=path, help=f"run folder (default: runs/{experiment}/<mode>-<seed>-<time>)")
    option("--resume", type=path, help="run folder to go on in, with the options of that run and those given")
    option("--evaluate", action="store_true", help="test --load_from_checkpoint with the options in its run folder")
    option("--keep", type=number(int, at_least=1), default=2, help="newest checkpoints to keep, beside the last one")
    best = (
        "keep best.tar, the checkpoint with the best METRIC of the validation; METRIC:min or METRIC:max names the best"
    )
    option("--keep_best", type=metric, help=best)
    variance = "epochs between measurements of the variance of the sender's gradient"
    option("--gradient_variance", type=number(int, at_least=1), help=variance)
    option(
        "--wandb", action="store_true", help="log the metrics to Weights & Biases; WANDB_MODE=offline to a file alone"
    )
    option("--wandb_project", metavar="NAME", default="egg_sparse", help="project there")
    option("--wandb_dir", type=path, help="folder of its files (default: the run folder)")
    option("--debug", action="store_true", help="show the traceback of an error")


def metric(text: str) -> str:
    """An argparse type: the name of a metric, and after a colon, if it must be said, whether min or max is the best."""
    name, colon, mode = text.partition(":")
    try:
        if name and colon and mode in ("min", "max"):
            return text
        if name and not colon:
            direction_of(name)
            return text
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(
        f"expected a metric such as acc or loss, or METRIC:min or METRIC:max, got {text!r}"
    )


metric.__name__ = "METRIC"


def part_of_batch(opts: argparse.Namespace) -> tuple[int, int]:
    """The part of each training batch that this process plays: the number of the process, and of processes.

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


def build_optimizer(
    opts: argparse.Namespace, parameters: Iterable[nn.Parameter], lr: float | None = None
) -> torch.optim.Optimizer:
    """The optimizer of ``--optimizer``; Adam's step is one kernel, unless a gradient scaler is to skip steps.

    Args:
        opts: all options.
        parameters: the parameters to optimize.
        lr: the learning rate; ``--lr`` if None.
    """
    optimizer = core.build_optimizer(parameters)
    for group in optimizer.param_groups:
        group["weight_decay"] = opts.weight_decay
        if lr is not None:
            group["lr"] = lr
        if isinstance(optimizer, torch.optim.Adam) and not opts.fp16:
            group["fused"] = True
    return optimizer


def build_schedule(opts: argparse.Namespace, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule of the learning rate."""
    constant = opts.lr_schedule == "constant"
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda epoch: 1.0 if constant else max(0.0, 1 - epoch / max(1, opts.n_epochs))
    )


@contextmanager
def with_options(opts: argparse.Namespace, **values: Any) -> Iterator[None]:
    """Gives options, which EGG's Trainer reads, other values for a while."""
    kept = {name: getattr(opts, name) for name in values}
    vars(opts).update(values)
    try:
        yield
    finally:
        vars(opts).update(kept)


class ValidationAsTrained(host.core.Callback):
    """Adds metrics of the messages that the game is trained with; EGG validates the most probable ones.

    Args:
        play: the function that plays the validation data on a device, and returns metrics per example by name.
    """

    def __init__(self, play: Callable[[torch.device], dict[str, torch.Tensor]]) -> None:
        self.play = play

    def on_validation_end(self, loss: float, logs: Any, epoch: int) -> None:
        logs.aux.update(self.play(self.trainer.device))


class TransferOfInteractions(host.core.Callback):
    """Copies each training Interaction from a GPU while the backward pass is computed; it must be the first callback.

    A Trainer copies it after the optimizer's step, and waits for that, in EGG once for each tensor.

    Args:
        game: the game that is trained.
    """

    def __init__(self, game: nn.Module) -> None:
        self.event: Any = None
        self.hook = game.register_forward_hook(self._copy)

    def _copy(self, game: nn.Module, _inputs: Any, output: tuple[torch.Tensor, Any]) -> None:
        if game.training:
            output[1].to("cpu", non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def on_batch_end(self, logs: Any, loss: Any, batch_id: int, is_training: bool = True) -> None:
        if is_training:
            self.event.synchronize()

    def on_train_end(self) -> None:
        self.hook.remove()


class CostsWriter(host.core.Callback):
    """Writes what the training has cost by the end of each epoch, in a file of its own: metrics do not depend on time.

    A line has the ``seconds`` of training, without validation, and the ``examples`` that have been played; those of the
    epochs before a run was resumed count.

    Args:
        path: the file, to which a line with a JSON object is appended per epoch.
        so_far: the last line of the run that goes on.
    """

    def __init__(self, path: pathlib.Path, so_far: dict[str, Any] | None) -> None:
        self.path = path
        self.seconds: float = so_far["seconds"] if so_far else 0.0
        self.examples: int = so_far["examples"] if so_far else 0
        self.began = 0.0

    def on_epoch_begin(self, epoch: int) -> None:
        self.began = time.perf_counter()

    def on_epoch_end(self, loss: float, logs: Any, epoch: int) -> None:
        self.seconds += time.perf_counter() - self.began
        self.examples += logs.size
        line = {"epoch": epoch, "seconds": round(self.seconds, 3), "examples": self.examples}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


@dataclass
class Run:
    """A run whose training has ended, in the leading process.

    Args:
        folder: the run folder.
        history: the records of ``metrics.jsonl``.
        title: the title above the curves.
        unfinished: whether the folder lacks pictures, or has those of fewer epochs.
        costs: the callback that writes ``costs.jsonl``; None where the costs of earlier epochs are not known.
    """

    folder: pathlib.Path
    history: list[dict[str, Any]]
    title: str
    unfinished: bool
    costs: CostsWriter | None

    def draw_curves(self, panels: Iterable[plots.Panel], results: dict[str, Any]) -> None:
        """Draws ``curves.png``, the last of a run's plots."""
        if self.unfinished:
            plots.curves(self.history, results, panels, self.folder / run_folder.CURVES_FILE, self.title)
        print(f"# options, metrics, checkpoints and curves: {self.folder}", flush=True)


def train(
    opts: argparse.Namespace,
    game: nn.Module,
    sender: Any,
    train_data: Any,
    validation_data: Iterable,
    experiment: str,
    callbacks: Iterable[Any] = (),
    shown: tuple[str, ...] = ("acc", "loss", "support", "sender_entropy"),
) -> Run | None:
    """Trains a game, and fills the run folder.

    A run that has been trained for ``--n_epochs`` already is not trained, and gets the files that its end lacks.

    Args:
        opts: all options.
        game: the game to train.
        sender: its sender.
        train_data: the training batches, a loader with ``set_epoch`` and a length.
        validation_data: the validation batches.
        experiment: the name of the folder of runs of one kind.
        callbacks: the EGG callbacks of this experiment.
        shown: the metrics beside the progress bar.

    Returns:
        The run; None in processes other than the leading one.
    """
    require("matplotlib.figure", "matplotlib")  # for the curves at the end: told now, not after the training
    checkpoint = checkpoints.read(opts.load_from_checkpoint) if opts.load_from_checkpoint else None
    complete = checkpoint is not None and checkpoint.epoch == opts.n_epochs
    run = None
    if opts.distributed_context.is_leader:
        run = _begin(opts, experiment, checkpoint.epoch if checkpoint else 0, complete)
    if not complete:
        _train(opts, game, sender, train_data, validation_data, callbacks, shown, run)
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
            f"--resume {shlex.quote(str(run.folder))} only tests",
            file=sys.stderr,
            flush=True,
        )
    return run


def _begin(opts: argparse.Namespace, experiment: str, epoch: int, complete: bool) -> Run:
    """Prepares the run folder, and sets ``checkpoint_dir``.

    Args:
        opts: all options.
        experiment: the name of the folder of runs of one kind.
        epoch: the number of epochs that have been trained.
        complete: whether none is left.
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
    data = f", {opts.data}" if hasattr(opts, "data") else ""
    title = f"{experiment.replace('_', ' ')}, {opts.mode}{data}, seed {opts.random_seed}"
    unfinished = not (complete and (folder / run_folder.CURVES_FILE).is_file())
    return Run(folder, history, title, unfinished, _costs(folder, epoch))


def _costs(folder: pathlib.Path, epoch: int) -> CostsWriter | None:
    """The callback that goes on counting a run's costs after an epoch, where they are known until then."""
    kept = run_folder.keep_metrics_until(folder, epoch, run_folder.COSTS_FILE)
    so_far = kept[-1] if kept else None
    numbers = so_far is None or all(isinstance(so_far.get(name), (int, float)) for name in ("seconds", "examples"))
    known = numbers and (so_far["epoch"] if so_far else 0) == epoch
    return CostsWriter(folder / run_folder.COSTS_FILE, so_far) if known else None


def _train(
    opts: argparse.Namespace,
    game: nn.Module,
    sender: Any,
    train_data: Any,
    validation_data: Iterable,
    callbacks: Iterable[Any],
    shown: tuple[str, ...],
    run: Run | None,
) -> None:
    transfers: list[Any] = []
    if opts.device.type == "cuda":
        train_data = OnDevice(train_data, opts.device)
        if not opts.distributed_context.is_distributed:  # else Trainers gather Interactions from the devices
            transfers = [TransferOfInteractions(game)]
    optimizer = build_optimizer(opts, game.parameters())
    schedule = build_schedule(opts, optimizer)
    options = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    metrics = MetricsWriter(run.folder / run_folder.METRICS_FILE if run else None)
    loggers = _loggers(opts, run.folder) if run else []
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
    costs = [run.costs] if run and run.costs else []
    added: list[Any] = [*callbacks, SenderState(sender), MessageUsage()]
    if opts.gradient_variance:
        added.append(GradientVariance(sender, opts.gradient_variance))
    # the costs are those of training alone, so that they come before what measures
    first: list[Any] = [*transfers, seeds, EpochSetter(train_data), guard, *costs]
    all_callbacks = [*first, *added, metrics, *loggers]
    if saver:
        if opts.keep_best:  # before the checkpoint of the epoch: a run that is killed between them does both again
            name, _, mode = opts.keep_best.partition(":")
            best = pathlib.Path(opts.checkpoint_dir) / run_folder.BEST
            all_callbacks.append(BestCheckpoint(best, name, mode or None))
        all_callbacks.append(saver)
    progress = None
    if run:
        if sys.stdout.isatty():
            require("rich", "rich")
            progress = TrainingProgress(opts.n_epochs, len(train_data), shown)
            all_callbacks.append(progress)
        else:
            all_callbacks.append(core.ConsoleLogger(print_train_loss=True, as_json=True))
    with with_options(opts, tensorboard=False):  # its own logger would write in every process
        trainer = core.Trainer(
            game=game,
            optimizer=optimizer,
            optimizer_scheduler=schedule,
            train_data=train_data,
            validation_data=validation_data,
            callbacks=all_callbacks,
        )
    if opts.load_from_checkpoint:
        resume.set_options(optimizer, schedule, options, trainer.start_epoch)
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
        for logger in loggers:
            logger.close()


def _loggers(opts: argparse.Namespace, folder: pathlib.Path) -> list[Any]:
    """The callbacks of ``--tensorboard`` and ``--wandb``."""
    loggers: list[Any] = []
    if opts.tensorboard:
        loggers.append(TensorboardMetrics(opts.tensorboard_dir or folder / "tensorboard"))
    if opts.wandb:
        where = pathlib.Path(opts.wandb_dir or folder)
        where.mkdir(parents=True, exist_ok=True)
        loggers.append(
            WandbMetrics(
                project=opts.wandb_project,
                dir=str(where),
                name=folder.name,
                id=run_folder.wandb_id(folder),
                resume="allow",
                config=run_folder.saved_options(opts),
                settings={"console": "off"},
            )
        )
    return loggers


def finish(
    opts: argparse.Namespace, results: dict[str, Any] | None, started: float, run: Run | None
) -> dict[str, Any] | None:
    """Prints the last line, in the leading process, writes it to the run folder, and ends what ``core.init`` began.

    Args:
        opts: all options.
        results: the test's results; None in processes other than the leading one.
        started: the value of ``time.perf_counter`` at the start.
        run: the run that was trained; None for a test alone, which writes nothing.

    Returns:
        The content of that line.
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
