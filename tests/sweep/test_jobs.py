"""Jobs in processes of their own, and what SLURM is told of them."""

import json
import os
import pathlib
import signal
import sys
import threading

import pytest

from egg_sparse.sweep import experiments, folders, grids, jobs, watch
from egg_sparse.zoo import checkpoints
from waiting import wait_for


def statuses_of(grid, game="toy_experiment"):
    runs = experiments.check(grids.with_seeds(grids.cross(grid, "grid"), None), game, [])[0]
    root = pathlib.Path("root").absolute()
    return [watch.Status(run, folder) for run, folder in zip(runs, folders.plan(root, "name", runs), strict=True)]


def call(status):
    """Calls a job in this process, and puts the handlers of signals back."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        return jobs.Job(status.run, status.folder, "token")()
    finally:
        signal.signal(signal.SIGTERM, before)


class TestJob:
    def test_it_keeps_what_is_printed_and_how_it_ended(self, capfd):
        good, bad = statuses_of({"x": 3, "fail": [False, True]})
        assert [call(good), call(bad)] == ["done", "failed"]
        assert folders.results(good.run, good.folder) == {"acc": 0.3, "epoch": 1}
        record = folders.read_record(bad.folder)
        assert record["error"] == "x must not be 3"
        assert record["ended"] >= record["started"]
        assert record["pid"] == os.getpid()
        log = bad.log.read_text()
        assert "$ python" in log
        assert "-m toy_experiment --x=3 --fail --random_seed=1" in log
        assert "Traceback" in log
        assert "toy_experiment" not in "".join(capfd.readouterr()), "all of it is in the log"

    def test_it_does_not_run_what_is_done_or_claimed(self, monkeypatch):
        monkeypatch.setattr(jobs, "CLAIM_PATIENCE", 0.1)
        (status,) = statuses_of({"x": 3})
        claim = folders.Claim(status.folder)
        assert claim.take()
        assert call(status) == jobs.CLAIMED
        claim.release()
        assert [call(status), call(status)] == ["done", "done"]
        assert pathlib.Path("ran").read_text().count("\n") == 1

    def test_of_several_processes_one_alone_keeps_the_records(self, monkeypatch):
        """All leave a run alone that is done, which none would otherwise join."""
        (status,) = statuses_of({"x": 3})
        status.folder.mkdir()
        monkeypatch.setenv("SLURM_NTASKS", "2")
        for process, ran in (("1", 1), ("0", 2), ("1", 2)):
            monkeypatch.setenv("SLURM_PROCID", process)
            assert call(status) == "done"
            assert pathlib.Path("ran").read_text().count("\n") == ran
            assert (status.folder / folders.RECORD).is_file() == (ran == 2)
        assert (status.folder / "log-1.txt").read_text().count("# $ ") == 1

    def test_an_option_that_the_parser_refuses_fails(self):
        (status,) = statuses_of({"x": 3})
        status.run.arguments.append("--no_such")
        assert call(status) == "failed"
        assert "--no_such" in folders.read_record(status.folder)["error"]

    @pytest.mark.parametrize(("executor", "waits"), [("local", False), ("slurm", True)])
    def test_a_signal_stops_it_and_slurm_ends_it(self, monkeypatch, executor, waits):
        """SLURM queues a job again that it preempts, if the job has not ended before."""
        monkeypatch.setenv("SUBMITIT_EXECUTOR", executor)
        monkeypatch.setenv("SLURM_JOB_ID", "17")
        monkeypatch.setattr(jobs, "PATIENCE", 0.1)
        (status,) = statuses_of({"wait": 30})
        ran = pathlib.Path("ran")
        thread = threading.Thread(target=lambda: (wait_for(ran.exists), os.kill(os.getpid(), signal.SIGTERM)))
        thread.start()
        assert call(status) == "stopped"
        thread.join()
        assert folders.read_record(status.folder)["state"] == "stopped"
        log = status.log.read_text()
        assert "toy_experiment: terminated" in log
        assert ("waiting for SLURM" in log) == waits


class Handle:
    def __init__(self, ended=False):
        self.ended = ended

    def done(self):
        return self.ended


@pytest.mark.usefixtures("interrupts")
def test_cores_are_shared_and_gpus_are_taken_that_are_free(monkeypatch, tmp_path):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(jobs, "n_cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    processes = jobs.LocalProcesses(tmp_path, None)
    assert (processes.n_parallel, processes.threads) == (8, 1)
    assert jobs.LocalProcesses(tmp_path, 3).threads == 2
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    processes = jobs.LocalProcesses(tmp_path, None)
    assert processes.n_parallel == 2
    given = []

    def submit(job):
        given.append((processes.executor.parameters["visible_gpus"], os.environ["OMP_NUM_THREADS"]))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        return Handle()

    monkeypatch.setattr(processes.executor, "submit", submit)
    first, second, _ = processes.submit([None, None, None])
    assert given == [([3], "4"), ([5], "4"), ([3], "4")]
    first.ended = second.ended = True
    processes.submit([None, None])
    assert given[3:] == [([5], "4"), ([3], "4")]
    assert "OMP_NUM_THREADS" not in os.environ
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


EPOCHS = 60


@pytest.mark.slow
def test_slurm_queues_a_preempted_run_again_and_it_goes_on(slurm):
    """The batch script really runs; the second run of the array gets the signal that announces its end."""
    grid = {"mode": "gs", "n_epochs": EPOCHS, "checkpoint_freq": 0, "validation_freq": 0, "no_cuda": True}
    statuses = [*statuses_of({}), *statuses_of({**grid, "n_values": 4, "data_scaler": 1}, "compo_vs_generalization")]
    parameters = {"time": 60, "partition": "long", "mem": "3GB", "additional_parameters": {"requeue": True}}
    executor = jobs.SlurmArray(pathlib.Path("root").absolute(), {"array_parallelism": 1, **parameters})
    executor.poll = 0.1
    watch.submit(statuses, executor)
    record = statuses[1].folder / folders.RECORD
    metrics = statuses[1].folder / "metrics.jsonl"
    wait_for(lambda: metrics.is_file() and metrics.read_bytes().count(b"\n") > 3)
    assert list(executor.find(["100_1", "7_1"])) == ["100_1"]
    os.kill(json.loads(record.read_text())["pid"], signal.SIGUSR2)
    states = []
    watch.run_all(statuses, executor, lambda current: states.append(current[1].state))
    assert [status.state for status in statuses] == [watch.DONE, watch.DONE], [status.error for status in statuses]
    assert (slurm / "requeued").read_text() == "100_1\n"
    assert statuses[1].log.read_text().count("\n# $ ") == 2
    epochs = [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()]
    assert epochs == list(range(1, EPOCHS + 1)), "nothing is lost and nothing is repeated"
    assert checkpoints.newest(next((statuses[1].folder / "checkpoints").glob("*_1")))[1] == EPOCHS
    assert not executor.find(["100_0", "100_1"])
    script = (slurm / "100.sh").read_text()
    for line in ("array=0-1%1", "time=60", "partition=long", "mem=3GB", "requeue"):
        assert f"#SBATCH --{line}\n" in script


def test_sbatch_that_refuses_is_a_sentence(slurm):
    (slurm / "sbatch").write_text("#!/bin/bash\necho 'sbatch: error: invalid partition: nowhere' >&2\nexit 1\n")
    (status,) = statuses_of({"x": 1})
    executor = jobs.SlurmArray(pathlib.Path("root").absolute(), {"partition": "nowhere"})
    with pytest.raises(OSError, match=r"sbatch has refused the jobs: .*invalid partition: nowhere"):
        watch.submit([status], executor)


def test_slurm_needs_its_commands(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(pathlib.Path(sys.executable).parent / "none"))
    with pytest.raises(ValueError, match="--executor slurm needs the commands of SLURM"):
        jobs.SlurmArray(tmp_path, {})
