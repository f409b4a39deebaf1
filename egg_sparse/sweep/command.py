"""The command ``python -m egg_sparse.sweep``."""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from egg_sparse.sweep import experiments, folders, grids, table, watch
from egg_sparse.sweep.jobs import LocalProcesses, SlurmArray
from egg_sparse.zoo import run_folder
from egg_sparse.zoo.cli import HelpFormatter, Terminated, number, path
from egg_sparse.zoo.experiments import EXPERIMENTS

PROG = "egg_sparse.sweep"

SLURM_OPTIONS = (
    "array_parallelism",
    "comment",
    "constraint",
    "cpus_per_task",
    "detach",
    "mem_gb",
    "n_gpus",
    "no_preemption",
    "nodes",
    "partition",
    "slurm",
    "tasks",
    "time",
)
"""The options that have no effect in local processes."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists all options)\n")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROG,
        usage="python -m egg_sparse.sweep [options] GRID [GRID ...] [-- options of every run]",
        description="Runs an experiment with every combination of a grid's options. The same command, given again, "
        "goes on: runs that are done stay as they are, others go on from their last checkpoint.",
        formatter_class=HelpFormatter,
    )
    count = number(int, at_least=1)
    group = parser.add_argument_group("what is run")
    option = group.add_argument
    option("grids", nargs="*", metavar="GRID", help="JSON file with a list of values per option, or a name of --list")
    option("--sweep", action="append", default=[], metavar="GRID", help="another way to give a grid, as in EGG's nest")
    modules = "module with a function grid() that yields lists of options"
    option("--py_sweep", action="append", default=[], metavar="MODULE", help=modules)
    entries = f"experiment: {', '.join(EXPERIMENTS)}, or a module with main(params)"
    option("--game", metavar="MODULE", help=entries)
    option("--seeds", type=count, help="run everything with the seeds 1 to N, instead of the grid's (if none, 1)")
    option("--list", action="store_true", help="list the grids of the package")
    option("--preview", "--dry_run", action="store_true", help="print the commands, and run nothing")
    option("--debug", action="store_true", help="run in this process, one run after the other, with tracebacks")
    group = parser.add_argument_group("where")
    option = group.add_argument
    option("--name", type=path, metavar="NAME", help="name of the sweep (default: that of the grids)")
    roots = "folder of the runs' folders (default: runs/sweep-NAME)"
    option("--root", "--root_dir", "--checkpoint_dir", type=path, metavar="PATH", help=roots)
    option(
        "--executor", choices=("local", "slurm"), default="local", help="processes of this machine, or jobs of SLURM"
    )
    option("--checkpoint_freq", type=number(int, at_least=0), help="epochs between checkpoints of every run")
    group = parser.add_argument_group("local")
    processes = "runs at a time (default: one per GPU, or without GPUs one per core)"
    group.add_argument("--n_parallel", "--n_workers", type=count, metavar="N", help=processes)
    group = parser.add_argument_group("slurm, for each run")
    option = group.add_argument
    option("--partition", help="partition (default: that of the cluster)")
    option("--time", type=count, default=4320, help="minutes until SLURM ends a job, which is queued again")
    option("--tasks", type=count, default=1, help="processes on a node")
    option("--nodes", type=count, default=1, help="nodes")
    option("--n_gpus", type=number(int, at_least=0), help="GPUs on a node (default: one per task)")
    option("--cpus_per_task", type=count, default=4, help="cores of a process")
    option("--mem_gb", type=count, default=16, help="GB of memory on a node")
    option("--constraint", help="constraint on the nodes")
    option("--comment", help="comment on the jobs")
    option("--slurm", action="append", default=[], metavar="KEY=VALUE", help="any other option of sbatch")
    option("--array_parallelism", "--max_parallel", type=count, default=128, metavar="N", help="jobs at a time")
    option("--no_preemption", action="store_true", help="do not queue jobs again that were preempted")
    option("--detach", action="store_true", help="submit the jobs, and do not wait for them")
    return parser


def parse_options(params: Sequence[str]) -> argparse.Namespace:
    params = list(params)
    own = params[: params.index("--")] if "--" in params else params
    parser = build_parser()
    opts = parser.parse_args(own)
    opts.extra = params[len(own) + 1 :]
    if opts.checkpoint_freq is not None:
        opts.extra.append(f"--checkpoint_freq={opts.checkpoint_freq}")
    opts.grids = [*opts.grids, *opts.sweep]
    if opts.extra and not opts.extra[0].startswith("--"):
        parser.error(f"expected options of the experiment after --, got {opts.extra[0]!r}")
    local = opts.executor == "local"
    for name in SLURM_OPTIONS if local else ("n_parallel",):
        if getattr(opts, name) != parser.get_default(name):
            parser.error(f"--{name} needs --executor {'slurm' if local else 'local'}")
    opts.slurm = dict(each.partition("=")[::2] for each in opts.slurm)
    if "" in opts.slurm:
        parser.error("--slurm must be KEY=VALUE")
    if opts.name is None:
        names = [pathlib.Path(each).stem if each.endswith(".json") else each for each in [*opts.grids, *opts.py_sweep]]
        opts.name = "+".join(name.replace("/", "-") for name in names)[:80]
    opts.root = pathlib.Path(opts.root or f"runs/sweep-{opts.name}").absolute()
    return opts


def list_grids() -> None:
    """Prints the grids of the package: their names, numbers of runs, and what varies in them."""
    print(f"{'grid':50} runs  what varies")
    for name, paths in grids.shipped().items():
        combinations = [each for path in paths for each in grids.read(path)]
        options = dict.fromkeys(name for each in combinations for name in each.options)
        values = {key: {str(each.options.get(key, False)) for each in combinations} for key in options}
        varying = ", ".join(key for key, found in values.items() if len(found) > 1)
        indent = "  " if name.count("/") > 1 else ""
        print(f"{indent + name:50} {len(combinations):4}  {varying}".rstrip())


def main(params: list[str]) -> None:
    """Runs a sweep; ``params`` are command-line arguments.

    Raises:
        SystemExit: a run has failed (status 1), or the sweep was interrupted (130) or terminated (143).
    """
    started = time.perf_counter()
    opts = parse_options(params)
    if opts.list:
        list_grids()
        return
    combinations = [each for name in opts.grids for each in grids.load(name)]
    combinations += [each for name in opts.py_sweep for each in grids.read_module(name)]
    runs, warnings = experiments.check(grids.with_seeds(combinations, opts.seeds), opts.game, opts.extra)
    for warning in warnings:
        print(f"{PROG}: warning: {warning}", file=sys.stderr, flush=True)
    paths = folders.plan(opts.root, opts.name, runs, write=not opts.preview)
    statuses = [watch.Status(run, folder) for run, folder in zip(runs, paths, strict=True)]
    for status in statuses:
        status.end_if_done(before=True)
    if opts.preview:
        for status in statuses:
            print(("# done: " if status.before else "") + shlex.join(folders.command(status.run, status.folder)))
        print(f"# {len(statuses)} runs, of which {sum(status.before for status in statuses)} are done")
        return
    code = 0
    if opts.debug:
        _run_here(statuses)
    elif any(not status.before for status in statuses):
        code = _run(opts, statuses, params)
    _summarize(opts, statuses, started)
    if code or any(status.state in (watch.FAILED, watch.STOPPED) for status in statuses):
        raise SystemExit(code or 1)


def _run_here(statuses: Sequence[watch.Status]) -> None:
    for status in statuses:
        if status.before:
            continue
        claim = folders.Claim(status.folder)
        if not claim.take():
            print(f"# by another sweep: {status.folder.name}", flush=True)
            continue
        print(f"# {shlex.join(folders.command(status.run, status.folder))}", flush=True)
        began = time.time()
        try:
            status.run.experiment.main(folders.job_arguments(status.run, status.folder))
            folders.write_record(status.folder, state="done", key=status.run.key, started=began, ended=time.time())
        finally:
            run_folder.current = None  # it is the sweep that goes on, not the run
            claim.release()
        status.end_if_done()


def _executor(opts: argparse.Namespace) -> LocalProcesses | SlurmArray:
    if opts.executor == "local":
        return LocalProcesses(opts.root, opts.n_parallel)
    parameters: dict[str, Any] = {
        "job_name": opts.name,
        "time": opts.time,
        "partition": opts.partition,
        "nodes": opts.nodes,
        "ntasks_per_node": opts.tasks,
        "cpus_per_task": opts.cpus_per_task,
        "gpus_per_node": opts.tasks if opts.n_gpus is None else opts.n_gpus or None,
        "mem": f"{opts.mem_gb}GB",
        "constraint": opts.constraint,
        "comment": opts.comment,
        "array_parallelism": opts.array_parallelism,
        "signal_delay_s": 120,
        "additional_parameters": {"no-requeue" if opts.no_preemption else "requeue": True, **opts.slurm},
    }
    return SlurmArray(opts.root, {name: value for name, value in parameters.items() if value is not None})


def _run(opts: argparse.Namespace, statuses: Sequence[watch.Status], params: Sequence[str]) -> int:
    """Runs the runs with the executor.

    Returns:
        0, or the status of a command that was interrupted or terminated.
    """
    executor = _executor(opts)
    again = f"python -m {PROG} {shlex.join(params)}"
    if isinstance(executor, SlurmArray):
        watch.find_submitted(statuses, executor)
        watch.submit(statuses, executor, requeue=not opts.no_preemption)
        jobs = sorted({str(status.handle.job_id).partition("_")[0] for status in statuses if status.in_hand})
        print(f"# jobs of SLURM: {', '.join(jobs) or 'none'}", file=sys.stderr, flush=True)
        if opts.detach:
            return 0
    display = table.Table(opts.name) if sys.stdout.isatty() else table.Lines()
    try:
        watch.run_all(statuses, executor, display.show, requeue=not opts.no_preemption)
        display.close()
        return 0
    except (KeyboardInterrupt, Terminated) as interruption:
        if isinstance(executor, LocalProcesses):
            print("# ending the runs, which save what they have (Ctrl-C again: at once)", file=sys.stderr, flush=True)
            _stop(statuses, executor, display)
            said = f"{again} goes on"
        else:
            said = f"SLURM goes on with the jobs; {again} shows how they stand, scancel ends them"
        display.close()
        word, code = ("terminated", 143) if isinstance(interruption, Terminated) else ("interrupted", 130)
        print(f"{PROG}: {word}; {said}", file=sys.stderr, flush=True)
        return code
    except BaseException:
        display.close()
        if isinstance(executor, LocalProcesses):
            watch.stop_all(statuses, executor, lambda _: None)
        raise


def _stop(statuses: Sequence[watch.Status], executor: LocalProcesses, display: Any) -> None:
    try:
        watch.stop_all(statuses, executor, display.show)
    except (KeyboardInterrupt, Terminated):
        with contextlib.suppress(KeyboardInterrupt, Terminated):
            watch.stop_all(statuses, executor, display.show, kill=True)


def _summarize(opts: argparse.Namespace, statuses: Sequence[watch.Status], started: float) -> None:
    """Prints the last line, and above it the failures, on standard error."""
    for status in statuses:
        if status.state == watch.FAILED:
            print(f"{PROG}: failed: {status.folder.name}: {table.notes_of(status)}", file=sys.stderr, flush=True)
    summary = {
        "mode": "sweep",
        "root": table.path_of(opts.root),
        "runs": len(statuses),
        **dict.fromkeys((watch.DONE, watch.FAILED), 0),
        **table.counts(statuses),
        "done_before": sum(status.before for status in statuses),
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(json.dumps(summary), flush=True)
