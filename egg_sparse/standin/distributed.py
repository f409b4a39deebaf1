"""Which of several training processes this is, under torchrun or SLURM."""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import uuid
from dataclasses import dataclass

import torch
import torch.distributed as dist

_TORCHRUN_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK")
_SLURM_VARIABLES = ("SLURM_LOCALID", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_NODEID", "SLURM_JOB_NODELIST")


@dataclass(frozen=True)
class DistributedContext:
    is_distributed: bool
    rank: int
    local_rank: int
    world_size: int
    mode: str

    @property
    def is_leader(self) -> bool:
        return self.rank == 0


def maybe_init_distributed(args: argparse.Namespace) -> DistributedContext:
    """Joins the process group that the environment describes, if it describes one.

    EGG initializes NCCL only; here a CPU run uses gloo.
    """
    if hasattr(args, "distributed_context"):
        raise AssertionError("distributed context is already initialized?!")
    alone = DistributedContext(is_distributed=False, rank=0, local_rank=0, world_size=1, mode="none")
    if all(name in os.environ for name in _TORCHRUN_VARIABLES):
        context = DistributedContext(
            is_distributed=True,
            rank=int(os.environ["RANK"]),
            local_rank=int(os.environ["LOCAL_RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            mode="launch",
        )
    elif all(name in os.environ for name in _SLURM_VARIABLES):
        context = DistributedContext(
            is_distributed=True,
            rank=int(os.environ["SLURM_PROCID"]),
            local_rank=int(os.environ["SLURM_LOCALID"]),
            world_size=int(os.environ["SLURM_NTASKS"]),
            mode="slurm",
        )
        hostnames = subprocess.check_output(["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]])
        os.environ["MASTER_ADDR"] = hostnames.split()[0].decode()
        os.environ["MASTER_PORT"] = str(args.distributed_port)
        os.environ["WORLD_SIZE"] = str(context.world_size)
        os.environ["RANK"] = str(context.rank)
        if context.world_size == 1:
            return alone
    else:
        return alone
    backend = "nccl" if getattr(args, "cuda", torch.cuda.is_available()) else "gloo"
    store, rank, world_size = next(dist.rendezvous("env://", context.rank, context.world_size))
    # torchrun's workers that it starts again find the addresses of those before them in the same store (PyTorch 2.15)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"attempt_{attempt}", store)
    dist.init_process_group(backend=backend, store=store, world_size=world_size, rank=rank)
    return context


def get_preemptive_checkpoint_dir(checkpoint_root: str | pathlib.Path) -> pathlib.Path:
    """A folder that the restarted SLURM job will find again."""
    if "SLURM_JOB_ID" not in os.environ:
        print("Preemption flag set, but I am not running under SLURM?")
    job = os.environ.get("SLURM_ARRAY_JOB_ID")
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    if job is None or task is None:
        job = os.environ.get("SLURM_JOB_ID", str(uuid.uuid4()))
        task = os.environ.get("SLURM_PROCID", "0")
    folder = pathlib.Path(checkpoint_root) / f"{job}_{task}"
    folder.mkdir(exist_ok=True)
    return folder
