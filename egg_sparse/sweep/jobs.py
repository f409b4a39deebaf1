"""Jobs of a sweep: what each does in its process, and the executors of submitit that start them."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from egg_sparse.sweep import folders
from egg_sparse.sweep.experiments import Experiment, Run
from egg_sparse.zoo import cli, run_folder

CLAIMED = "claimed"
"""The state of a job whose run is in the hands of another process."""

CLAIM_PATIENCE = 5.0
"""Seconds that a job waits for the claim on its run, which a sweep takes for a moment to see whether it is free."""

PATIENCE = 600.0
"""Seconds that a job of SLURM waits, once it has saved, for SLURM to end it."""


@dataclass
class Job:
    """A run, as a function that submitit calls in a process of its own.

    The process has the claim on the run's folder, and writes there what is printed and how the job stands. It does not
    run a run that has ended. SIGTERM ends it, after the last whole epoch is saved; so does the signal by which SLURM
    announces a preemption or the end of the job's time, and then submitit queues the job again.

    Args:
        run: the run.
        folder: the run's folder.
        token: the name of this job, unlike any other's.
        requeue: whether the job is queued again.
    """

    run: Run
    folder: pathlib.Path
    token: str
    requeue: bool = True

    def __call__(self) -> str:
        """Runs the run, and returns its state: "done", "failed", "stopped", or ``CLAIMED``."""
        signal.signal(signal.SIGTERM, _terminate)
        if not self.leads:  # the leader would not come to train a run that is done
            return "done" if self._is_done else self._run()
        claim = folders.Claim(self.folder)
        if not claim.take(CLAIM_PATIENCE):
            return CLAIMED
        try:
            return "done" if self._is_done else self._run()
        finally:
            claim.release()

    @property
    def _is_done(self) -> bool:
        return folders.results(self.run, self.folder) is not None

    @property
    def leads(self) -> bool:
        """Whether this is the one of several processes of a run that keeps its records."""
        return os.environ.get("SLURM_NTASKS", "1") == "1" or os.environ.get("SLURM_PROCID", "0") == "0"

    def _run(self) -> str:
        arguments = folders.job_arguments(self.run, self.folder)
        # EGG's games expect the folder of their checkpoints to be there
        (self.folder / run_folder.CHECKPOINTS).mkdir(exist_ok=True)
        log = self.folder / (folders.LOG if self.leads else f"log-{os.environ['SLURM_PROCID']}.txt")
        with _printing_to(log), _announced_end() as announcement:
            print(folders.begin_log(folders.command(self.run, self.folder)), end="", flush=True)
            started = time.time()
            self._record("running", started)
            status = cli.run(self.run.experiment.command, _Traced(self.run.experiment), arguments)
            state = {0: "done", 130: "stopped", 143: "stopped"}.get(status, "failed")
            error = folders.last_error(log) if state == "failed" else ""
            if state == "done" and self.run.experiment.in_zoo and self.leads and not self._is_done:
                state, error = "failed", "it has left no results"
            self._record(state, started, ended=time.time(), error=error)
            if state == "stopped":
                self._queue_again(announcement, started)
        return state

    def checkpoint(self) -> Any:
        """What submitit queues again: the same job, which goes on from its checkpoints."""
        import submitit

        return submitit.helpers.DelayedSubmission(self) if self.requeue else None

    def _record(self, state: str, started: float, **more: Any) -> None:
        if self.leads:
            process = {"host": socket.gethostname(), "pid": os.getpid()}
            folders.write_record(
                self.folder, state=state, token=self.token, key=self.run.key, started=started, **process, **more
            )

    def _queue_again(self, announcement: _Announcement, started: float) -> None:
        """Lets submitit queue the job again, if its end was announced.

        SLURM ends a job that it preempts or cancels by SIGTERM first. One that is preempted it queues again itself, if
        the job has not ended before.
        """
        if not announcement.made and os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print("# saved; waiting for SLURM to end the job", file=sys.stderr, flush=True)
            with contextlib.suppress(cli.Terminated):
                time.sleep(PATIENCE)
        if announcement.made:
            try:
                announcement.answer()
            except Exception as error:
                self._record("failed", started, ended=time.time(), error=str(error))
                raise


class _Traced:
    """``main`` of an experiment, which prints the traceback of an error."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    def __call__(self, params: list[str]) -> None:
        try:
            self.experiment.main(params)
        except Exception:
            traceback.print_exc()
            raise


@contextlib.contextmanager
def _printing_to(path: pathlib.Path) -> Iterator[None]:
    """Appends to a file what this process and its children print."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with path.open("a", encoding="utf-8", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        finally:
            for descriptor, number in zip(kept, (1, 2), strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)


class _Announcement:
    """The signal by which SLURM announces the end of a job's time, and submitit's answer to it."""

    def __init__(self, number: int, handler: Any) -> None:
        self.number, self.handler = number, handler
        self.made = False

    def receive(self, *_: Any) -> None:
        if not self.made:
            self.made = True
            raise cli.Terminated  # so that the run saves what it has

    def answer(self) -> None:
        """Queues the job again, and ends this process."""
        if callable(self.handler):
            self.handler(self.number, None)


@contextlib.contextmanager
def _announced_end() -> Iterator[_Announcement]:
    """Receives that signal in place of submitit, which would end the process at once."""
    from submitit import JobEnvironment

    number = getattr(signal, f"SIG{JobEnvironment.USR_SIG}")
    announcement = _Announcement(number, signal.getsignal(number))
    signal.signal(number, announcement.receive)
    try:
        yield announcement
    finally:
        signal.signal(number, announcement.handler)


def _terminate(*_: Any) -> None:
    raise cli.Terminated


def n_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalProcesses:
    """Processes of this machine, some at a time; each has its share of the cores, and the GPU with the fewest of them.

    Args:
        root: the sweep's folder.
        n_parallel: the number of processes at a time; None for one per GPU, or without GPUs one per core.
    """

    poll = 0.25

    def __init__(self, root: pathlib.Path, n_parallel: int | None) -> None:
        import torch

        submitit = cli.require("submitit", "submitit")
        self.gpus = _visible_gpus(torch.cuda.device_count())
        self.n_parallel = n_parallel or len(self.gpus) or n_cores()
        self.threads = max(1, n_cores() // self.n_parallel)
        self.executor = submitit.LocalExecutor(root / ".submitit")
        self.executor.update_parameters(timeout_min=60 * 24 * 3650, stderr_to_stdout=True)
        self.on_gpus: list[tuple[int, Any]] = []  # the GPU and submitit's handle of every job

    def free(self, n_running: int) -> int:
        """How many jobs may be submitted."""
        return max(0, self.n_parallel - n_running)

    def submit(self, jobs: Sequence[Job]) -> list[Any]:
        """Starts jobs, and returns submitit's handles of them."""
        handles = []
        for job in jobs:
            if self.gpus:
                busy = [gpu for gpu, handle in self.on_gpus if not handle.done()]
                gpu = min(self.gpus, key=busy.count)
                self.executor.update_parameters(gpus_per_node=1, visible_gpus=[gpu])
            with _environment(OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", str(self.threads))), _no_interrupts():
                handles.append(self.executor.submit(job))
            if self.gpus:
                self.on_gpus.append((gpu, handles[-1]))
        return handles

    def stop(self, handle: Any, record: dict[str, Any], kill: bool = False) -> None:
        """Ends a job, after it has saved; or at once.

        Args:
            handle: submitit's handle of it.
            record: what the job says of itself, empty if it has not begun.
            kill: whether it is ended at once.
        """
        processes = [int(handle.job_id)]
        if kill and record.get("state") == "running" and record.get("host") == socket.gethostname():
            processes.append(int(record["pid"]))
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL if kill else signal.SIGTERM)

    def why_ended(self, handle: Any) -> str:
        """Why a job has ended that does not say so itself."""
        said = folders.last_lines(handle.paths.stdout)
        raised = any(line.startswith("Traceback") for line in said)
        return said[-1] if raised else "its process was killed; out of memory, perhaps"


def _visible_gpus(count: int) -> list[int]:
    given = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip().isdigit()]
    return [int(each) for each in given[:count]] if given else list(range(count))


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Sets variables for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """Lets the processes that are started meanwhile ignore Ctrl-C, which a terminal sends to all of them.

    The sweep ends them itself.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class SlurmArray:
    """Jobs of SLURM, submitted as one array, which SLURM queues again if it preempts them or their time is over.

    Args:
        root: the sweep's folder, which all machines see.
        parameters: the parameters of the array, by submitit's names.
    """

    poll = 2.0
    MAX_TIMEOUTS = 10

    def __init__(self, root: pathlib.Path, parameters: dict[str, Any]) -> None:
        submitit = cli.require("submitit", "submitit")
        try:
            self.executor = submitit.SlurmExecutor(root / ".submitit", max_num_timeout=self.MAX_TIMEOUTS)
        except RuntimeError as error:
            raise ValueError(f"--executor slurm needs the commands of SLURM on this machine: {error}") from error
        self.executor.update_parameters(stderr_to_stdout=True, **parameters)
        self.job_class = submitit.SlurmJob

    def free(self, n_running: int) -> int:
        """How many jobs may be submitted: all."""
        return sys.maxsize

    def submit(self, jobs: Sequence[Job]) -> list[Any]:
        """Submits jobs, and returns submitit's handles of them."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            return self.executor.submit_array(list(jobs))
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            said = [line for line in str(error).splitlines() if line.strip()]
            raise OSError(f"sbatch has refused the jobs: {said[-1] if said else 'no reason given'}") from error

    def find(self, job_ids: Sequence[str]) -> dict[str, Any]:
        """The handles of jobs of an earlier sweep, without those that have ended or that SLURM does not know."""
        handles = {job_id: self.job_class(folder=self.executor.folder, job_id=job_id) for job_id in job_ids}
        watcher = self.job_class.watcher
        watcher.update()  # of all jobs in one call
        return {
            job_id: handle
            for job_id, handle in handles.items()
            if watcher.get_state(job_id, mode="cache") != "UNKNOWN" and not handle.done()
        }

    def why_ended(self, handle: Any) -> str:
        """Why a job has ended that does not say so itself."""
        return f"SLURM has ended job {handle.job_id}: {handle.state}"
