"""Runs the runs of a sweep, and keeps account of how each of them stands."""

from __future__ import annotations

import contextlib
import json
import pathlib
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from egg_sparse.sweep import folders
from egg_sparse.sweep.experiments import Run
from egg_sparse.sweep.jobs import Job, LocalProcesses, SlurmArray
from egg_sparse.zoo import run_folder

WAITING, RUNNING, DONE, FAILED, STOPPED = STATES = ("waiting", "running", "done", "failed", "stopped")
ENDED = (DONE, FAILED, STOPPED)

SUBMITTED = "slurm.json"
"""The file in a run's folder that names its job of SLURM."""

ATTEMPTS = 3
"""How often a job is submitted that ends before its run begins."""


@dataclass
class Status:
    """How a run stands.

    Args:
        run: the run.
        folder: its folder.

    Attributes:
        state: one of ``STATES``.
        metrics: the newest metrics of a run that runs, the results of one that is done.
        error: why a run has failed.
        started: when it began, in seconds since the epoch.
        seconds: how long it took.
        before: whether it was done before this sweep began.
        elsewhere: whether another sweep runs it.
    """

    run: Run
    folder: pathlib.Path
    state: str = WAITING
    metrics: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    started: float | None = None
    seconds: float | None = None
    before: bool = False
    elsewhere: bool = False
    handle: Any = None
    token: str = ""
    submitted: float = 0.0
    attempts: int = 0

    @property
    def log(self) -> pathlib.Path:
        """The file of what the run prints, or of what submitit does where no run has begun."""
        log = self.folder / folders.LOG
        return self.handle.paths.stdout if self.handle is not None and not log.is_file() else log

    @property
    def in_hand(self) -> bool:
        """Whether a job of this sweep has it."""
        return self.handle is not None and self.state not in ENDED

    def end(self, state: str, record: dict[str, Any] | None = None, error: str = "") -> None:
        """Marks the end of the run."""
        self.state, self.error, self.elsewhere = state, error, False
        if record and record.keys() >= {"started", "ended"}:
            self.seconds = record["ended"] - record["started"]

    def end_if_done(self, before: bool = False) -> bool:
        """Marks the end of a run that has results."""
        results = folders.results(self.run, self.folder)
        if results is None:
            return False
        record = folders.read_record(self.folder)
        self.end(DONE, record if record.get("state") == DONE else None)
        self.metrics, self.before = results, before
        if isinstance(results.get("seconds"), (int, float)):
            self.seconds = results["seconds"]
        return True


def update(status: Status, why_ended: Callable[[Any], str]) -> None:
    """Brings the status of a run that has not ended up to date."""
    if status.state in ENDED:
        return
    record = folders.read_record(status.folder)
    if status.handle is not None:
        own = record.get("token") == status.token
        if not status.handle.done():
            _follow(status, record if own and record.get("state") != STOPPED else None)
        elif status.end_if_done():
            pass
        elif own:
            state = record.get("state")
            if state == RUNNING:  # the process ended before it could say how
                status.end(FAILED, error=why_ended(status.handle))
            else:
                status.end(FAILED if state == FAILED else STOPPED, record, record.get("error", ""))
        elif folders.is_claimed(status.folder) or record.get("ended", 0) >= status.submitted:
            status.handle, status.elsewhere = None, True
        elif status.attempts < ATTEMPTS and record.get("state") == RUNNING:
            status.handle, status.state = None, WAITING
        else:
            status.end(FAILED, error=why_ended(status.handle))
    elif status.elsewhere:
        if folders.is_claimed(status.folder):
            _follow(status, record)
        elif not status.end_if_done():
            if record.get("state") == FAILED:
                status.end(FAILED, record, record.get("error", ""))
            else:
                status.elsewhere, status.state = False, WAITING


def _follow(status: Status, record: dict[str, Any] | None) -> None:
    """Takes over how far a run is; None where it does not run yet, or is queued again."""
    status.state = WAITING if record is None else RUNNING
    if record is not None:
        status.started = record.get("started")
        status.metrics = folders.progress(status.folder)


def submit(statuses: Iterable[Status], executor: LocalProcesses | SlurmArray, requeue: bool = True) -> None:
    """Submits as many of the waiting runs as the executor takes, but none that another sweep runs or has run."""
    statuses = list(statuses)
    free = executor.free(sum(status.in_hand for status in statuses))
    chosen: list[Status] = []
    for status in statuses:
        if len(chosen) == free:
            break
        if status.state != WAITING or status.handle is not None or status.elsewhere:
            continue
        if folders.is_claimed(status.folder):
            status.elsewhere = True
        elif not status.end_if_done():
            chosen.append(status)
    if not chosen:
        return
    for status in chosen:
        status.token, status.submitted = uuid.uuid4().hex, time.time()
        status.attempts += 1
        status.folder.mkdir(parents=True, exist_ok=True)
    jobs = [Job(status.run, status.folder, status.token, requeue) for status in chosen]
    for status, handle in zip(chosen, executor.submit(jobs), strict=True):
        status.handle = handle
        if isinstance(executor, SlurmArray):
            with run_folder.whole_file(status.folder / SUBMITTED) as unfinished:
                unfinished.write_text(
                    json.dumps({"job": handle.job_id, "token": status.token}) + "\n", encoding="utf-8"
                )


def find_submitted(statuses: Iterable[Status], executor: SlurmArray) -> None:
    """Takes over jobs that an earlier sweep has submitted to SLURM and that have not ended."""
    submitted = {}
    for status in statuses:
        if status.state not in ENDED:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                job = json.loads((status.folder / SUBMITTED).read_text(encoding="utf-8"))
                submitted[str(job["job"])] = status, str(job["token"])
    for job_id, handle in executor.find(list(submitted)).items():
        status, token = submitted[job_id]
        status.handle, status.token = handle, token


def run_all(
    statuses: Sequence[Status],
    executor: LocalProcesses | SlurmArray,
    show: Callable[[Sequence[Status]], None],
    requeue: bool = True,
) -> None:
    """Runs all runs to their ends.

    Args:
        statuses: the runs.
        executor: what runs them.
        show: a function that shows how they stand, several times a second.
        requeue: whether SLURM queues a job again that it has preempted.
    """
    while True:
        for status in statuses:
            update(status, executor.why_ended)
        submit(statuses, executor, requeue)
        show(statuses)
        if all(status.state in ENDED for status in statuses):
            return
        time.sleep(executor.poll)


def stop_all(
    statuses: Sequence[Status], executor: LocalProcesses, show: Callable[[Sequence[Status]], None], kill: bool = False
) -> None:
    """Ends the jobs of this sweep, which save their last whole epoch, and waits for them; or ends them at once."""
    mine = [status for status in statuses if status.in_hand]
    for status in mine:
        if not status.handle.done():
            record = folders.read_record(status.folder)
            # that of an earlier job names a process which is another one by now
            executor.stop(status.handle, record if record.get("token") == status.token else {}, kill)
    while any(not status.handle.done() for status in mine):
        show(statuses)
        time.sleep(executor.poll)
    for status in mine:
        if not status.end_if_done():
            status.end(STOPPED)
    show(statuses)
