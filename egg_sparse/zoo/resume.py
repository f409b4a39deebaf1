"""Finds and loads what a run goes on from: ``--resume``, ``--evaluate``, ``--preemptable``."""

from __future__ import annotations

import argparse
import importlib
import os
import pathlib
import sys
from typing import Any

import torch
from torch import nn

from egg_sparse import host
from egg_sparse.zoo import checkpoints, run_folder
from egg_sparse.zoo.cli import ZooParser

core = host.core


def parse(parser: ZooParser, params: list[str]) -> argparse.Namespace:
    """Parses the options, makes the processes agree on a seed, and finds the checkpoint that a run goes on from."""
    opts = core.init(parser, params)
    opts.tensorboard = parser.tensorboard
    if opts.keep_best and opts.validation_freq == 0 and not opts.evaluate:
        parser.error("--keep_best needs a validation: --validation_freq must be at least 1, got 0")
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
    """Sets ``load_from_checkpoint`` to the newest checkpoint, for ``--resume`` and ``--preemptable``."""
    if opts.preemptable:
        root = opts.checkpoint_dir or (pathlib.Path(opts.out) / run_folder.CHECKPOINTS if opts.out else None)
        if root is None:
            raise ValueError("--preemptable needs --out or --checkpoint_dir, where the job finds its checkpoints again")
        pathlib.Path(root).mkdir(parents=True, exist_ok=True)
        folders = [_preemptive_folder(root)]
        if not opts.checkpoint_dir:  # all checkpoints in a run folder are of this run, also those of an earlier job
            folders = list(dict.fromkeys([*folders, *_folders_in(pathlib.Path(root))]))
    elif opts.resume:
        folders = _folders_in(pathlib.Path(opts.checkpoint_dir or pathlib.Path(opts.resume) / run_folder.CHECKPOINTS))
    else:
        return
    found = [newest for folder in folders if (newest := checkpoints.newest(folder))]
    opts.checkpoint_dir = str(folders[0])
    if found:
        checkpoint, _ = max(found, key=lambda each: each[1])
        opts.load_from_checkpoint, opts.checkpoint_dir = str(checkpoint), str(checkpoint.parent)
    elif opts.resume:
        print(f"# no checkpoint in {folders[0]}: the run begins again", file=sys.stderr, flush=True)


def _folders_in(root: pathlib.Path) -> list[pathlib.Path]:
    """The folders of a run's checkpoints: a job of SLURM, started with --preemptable, has one of its own."""
    return [root, *sorted(folder for folder in root.glob("*") if folder.is_dir())]


def _preemptive_folder(root: str | pathlib.Path) -> pathlib.Path:
    if "SLURM_JOB_ID" not in os.environ:
        return pathlib.Path(root)  # the restarted job finds the same one
    distributed = importlib.import_module(f"{core.__name__}.distributed")
    return distributed.get_preemptive_checkpoint_dir(root)


def load_for_evaluation(opts: argparse.Namespace, game: nn.Module) -> None:
    """Checks that the checkpoint, if there is one, fits, and loads its weights if they are only tested.

    Raises:
        FileNotFoundError, ValueError: there is no checkpoint, or one that does not fit game, ``--n_epochs`` or
            ``--optimizer``.
    """
    if not opts.load_from_checkpoint:
        return
    path = opts.load_from_checkpoint
    checkpoint = checkpoints.read(path)
    checkpoints.check_architecture(game, checkpoint.model_state_dict, path)
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
"""An option that each optimizer's state has and the others' do not."""


def set_options(
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    options: list[dict[str, Any]],
    epoch: int,
) -> None:
    """Sets the options of an optimizer and its schedule, which a checkpoint has replaced, to those of this run again.

    Args:
        optimizer: the optimizer whose state was loaded.
        schedule: the schedule of its learning rate, whose state was loaded.
        options: the options of each group of parameters, with the learning rate of the first epoch as ``initial_lr``.
        epoch: the number of epochs that have been trained.
    """
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)
    schedule.base_lrs = [own["initial_lr"] for own in options]
    schedule.last_epoch = epoch
    rates = [rate * factor(epoch) for rate, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
