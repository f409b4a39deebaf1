"""How a run stands, for everything that its folder and its job may say."""

import pathlib
import time

import pytest

from egg_sparse.sweep import experiments, folders, grids, watch


class Handle:
    """A job of submitit's that ends when the test says so."""

    def __init__(self, ended=False):
        self.ended = ended

    def done(self):
        return self.ended


class Executor:
    """Takes some jobs at a time, and keeps them."""

    poll = 0.0

    def __init__(self, places):
        self.places, self.jobs = places, []

    def free(self, n_running):
        return self.places - n_running

    def submit(self, jobs):
        self.jobs += jobs
        return [Handle() for _ in jobs]

    def why_ended(self, handle):
        return "killed"


@pytest.fixture
def statuses(tmp_path):
    combinations = grids.with_seeds(grids.cross({"x": [1, 2, 3]}, "grid"), None)
    runs = experiments.check(combinations, "toy_experiment", [])[0]
    folder = pathlib.Path("root")
    return [watch.Status(run, path) for run, path in zip(runs, folders.plan(folder, "", runs), strict=True)]


def submitted(statuses, places=1):
    executor = Executor(places)
    watch.submit(statuses, executor)
    return statuses[0]


def record(status, state, token=None, **more):
    folders.write_record(
        status.folder, state=state, token=token or status.token, key=status.run.key, started=time.time() - 7, **more
    )


def update(status):
    watch.update(status, lambda handle: "killed")
    return status.state


def test_no_more_jobs_are_submitted_than_there_are_places(statuses):
    executor = Executor(2)
    for _ in range(3):
        watch.submit(statuses, executor)
    assert [job.run.options["x"] for job in executor.jobs] == [1, 2]
    statuses[0].end(watch.DONE)
    watch.submit(statuses, executor)
    assert [job.run.options["x"] for job in executor.jobs] == [1, 2, 3]
    assert len({job.token for job in executor.jobs}) == 3


def test_a_run_from_its_start_to_its_end(statuses):
    status = submitted(statuses)
    assert update(status) == watch.WAITING, "its process has yet to begin"
    record(status, "running")
    (status.folder / "metrics.jsonl").write_text('{"epoch": 3, "acc": 0.5}\n')
    assert update(status) == watch.RUNNING
    assert status.metrics == {"epoch": 3, "acc": 0.5}
    (status.folder / "log.txt").write_text('{"acc": 0.9}\n')
    record(status, "done", ended=time.time())
    assert update(status) == watch.RUNNING, "its process has yet to end"
    status.handle.ended = True
    assert update(status) == watch.DONE
    assert status.metrics == {"acc": 0.9}
    assert status.seconds == pytest.approx(7, abs=1)
    assert not status.before


@pytest.mark.parametrize(
    ("state", "expected", "error"),
    [("failed", watch.FAILED, "why"), ("stopped", watch.STOPPED, ""), ("running", watch.FAILED, "killed")],
)
def test_ends_that_are_not_good(statuses, state, expected, error):
    status = submitted(statuses)
    record(status, state, error=error, ended=time.time())
    status.handle.ended = True
    assert (update(status), status.error) == (expected, error)


def test_a_job_that_slurm_has_queued_again_waits(statuses):
    status = submitted(statuses)
    record(status, "stopped", ended=time.time())
    assert update(status) == watch.WAITING
    record(status, "running")
    assert update(status) == watch.RUNNING


def test_a_process_that_ends_before_its_run_begins(statuses):
    status = submitted(statuses)
    status.handle.ended = True
    assert (update(status), status.error) == (watch.FAILED, "killed")


def test_the_record_of_a_killed_job_is_not_taken_for_the_new_ones(statuses):
    folder = statuses[0].folder
    folder.mkdir()
    record(statuses[0], "running", token="old")
    executor = Executor(1)
    for _ in range(watch.ATTEMPTS):
        watch.submit(statuses[:1], executor)
        assert update(statuses[0]) == watch.WAITING
        statuses[0].handle.ended = True
        update(statuses[0])
    assert (statuses[0].state, statuses[0].error) == (watch.FAILED, "killed")
    assert len(executor.jobs) == watch.ATTEMPTS


class TestByAnotherSweep:
    @pytest.fixture
    def status(self, statuses):
        self.claim = folders.Claim(statuses[0].folder)
        assert self.claim.take()
        record(statuses[0], "running", token="other")
        self.executor = Executor(3)
        watch.submit(statuses, self.executor)
        assert [job.run.options["x"] for job in self.executor.jobs] == [2, 3]
        assert update(statuses[0]) == watch.RUNNING
        assert statuses[0].elsewhere
        return statuses[0]

    def end(self, status, state, **more):
        record(status, state, token="other", ended=time.time(), **more)
        self.claim.release()
        return update(status)

    def test_it_is_followed_to_a_good_end(self, status):
        assert self.end(status, "done") == watch.DONE

    def test_it_is_followed_to_a_bad_end(self, status):
        assert self.end(status, "failed", error="why") == watch.FAILED
        assert status.error == "why"

    @pytest.mark.parametrize("state", ["stopped", "running"])
    def test_it_is_taken_over_where_that_sweep_gives_up(self, status, state):
        assert self.end(status, state) == watch.WAITING
        watch.submit([status], self.executor)
        assert [job.run.options["x"] for job in self.executor.jobs] == [2, 3, 1]

    def test_also_where_the_other_was_first_by_a_moment(self, statuses):
        status = submitted(statuses)
        claim = folders.Claim(status.folder)
        assert claim.take()
        record(status, "running", token="other")
        status.handle.ended = True  # it has found the claim taken
        update(status)
        assert update(status) == watch.RUNNING
        assert status.elsewhere
        claim.release()


def test_what_another_sweep_has_done_meanwhile_is_not_run(statuses):
    statuses[0].folder.mkdir()
    record(statuses[0], "done", token="other", ended=time.time())
    executor = Executor(1)
    watch.submit(statuses[:2], executor)
    assert [job.run.options["x"] for job in executor.jobs] == [2]
    assert statuses[0].state == watch.DONE


@pytest.mark.parametrize("own", [True, False])
def test_ending_at_once_spares_the_process_that_an_earlier_job_names(statuses, own):
    given = []

    class Stopping(Executor):
        def stop(self, handle, record, kill):
            given.append(record.get("pid"))
            handle.ended = True

    status = submitted(statuses)
    record(status, "running", token=None if own else "earlier", pid=17)
    watch.stop_all([status], Stopping(1), lambda _: None, kill=True)
    assert given == [17 if own else None]
    assert status.state == watch.STOPPED


def test_all_are_run_to_their_ends(statuses):
    shown = []

    def show(current):
        shown.append([status.state for status in current])
        for status in current:
            if status.in_hand:
                record(status, "failed" if status.run.options["x"] == 2 else "done", ended=time.time(), error="why")
                status.handle.ended = True

    watch.run_all(statuses, Executor(1), show)
    assert shown[-1] == [watch.DONE, watch.FAILED, watch.DONE]
