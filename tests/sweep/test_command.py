"""The command, as a user meets it."""

import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

from egg_sparse.sweep import command, grids
from egg_sparse.zoo.cli import run
from waiting import wait_for

COMMAND = [sys.executable, "-m", "egg_sparse.sweep"]


def write(name="grid.json", **grid):
    pathlib.Path(name).write_text(json.dumps(grid))
    return name


def call(*params):
    return run(command.PROG, command.main, list(params))


def last_line(text):
    return json.loads(text.splitlines()[-1])


def runs():
    """What has run, each time that it did."""
    return sorted(pathlib.Path("ran").read_text().splitlines())


class TestMistakes:
    @pytest.mark.parametrize(
        ("params", "named"),
        [
            ([], ["nothing to run", "--list"]),
            (["no.json"], ["no.json"]),
            (["signal_gam/digits"], ["signal_gam/digits", "signal_game/digits"]),
            (["grid.json"], ["grid.json", "--game"]),
            (["grid.json", "--game", "no_such"], ["--game", "no_such"]),
            (["grid.json", "--game", "toy_experiment", "--", "--no_such"], ["--no_such"]),
            (["grid.json", "--game", "toy_experiment", "--", "no_such"], ["'no_such'", "--"]),
            (["grid.json", "grid.json", "--game", "toy_experiment"], ["twice"]),
            (["grid.json", "--game", "toy_experiment", "--seeds", "0"], ["--seeds", "'0'"]),
            (["grid.json", "--game", "toy_experiment", "--partition", "long"], ["--partition", "--executor slurm"]),
            (["grid.json", "--game", "toy_experiment", "--executor", "slurm", "--n_parallel", "2"], ["--n_parallel"]),
            (["grid.json", "--game", "toy_experiment", "--executor", "slurm", "--slurm", "=x"], ["--slurm"]),
            (["grid.json", "--game", "toy_experiment", "--root", "grid.json"], ["--root"]),
            (["--py_sweep", "no_such_module", "--game", "toy_experiment"], ["no_such_module"]),
            (["--no_such"], ["--no_such"]),
        ],
    )
    def test_are_one_sentence_before_anything_starts(self, params, named, capsys):
        write(x=[1, 2])
        assert call(*params) in (1, 2)
        output = capsys.readouterr()
        sentences = [line for line in output.err.splitlines() if "error: " in line]
        assert len(sentences) == 1
        assert sentences[0].startswith("egg_sparse.sweep: error: ")
        assert all(name in sentences[0] for name in named)
        assert not output.out
        assert {path.name for path in pathlib.Path().iterdir()} == {"grid.json"}


def test_the_list_has_all_grids_and_what_varies(capsys):
    assert call("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[1:]} == set(grids.shipped())
    found = {line.split()[0]: line.split()[1:] for line in lines}
    assert found["signal_game/digits/gs"] == ["10", "straight_through,", "random_seed"]
    assert found["bit_vector_vae/paper_32_bits/nvil"] == ["1"]


class TestPreview:
    def test_prints_what_a_user_would_type(self, capsys):
        write(game="signal_game", mode=["marg", "gs"], root=["my data"])
        params = ["--sweep", "grid.json", "--dry_run", "--root_dir", "here", "--seeds", "2", "--checkpoint_freq", "5"]
        assert call(*params, "--", "--n_epochs", "1") == 0
        lines = capsys.readouterr().out.splitlines()
        here = pathlib.Path("here").absolute()
        assert lines[0].partition(" ")[2] == (
            "-m egg_sparse.zoo.signal_game --mode=marg '--root=my data' --random_seed=1 --n_epochs 1 "
            f"--checkpoint_freq=5 --out={here}/mode=marg,seed=1 --preemptable"
        )
        assert len(lines) == 5
        assert lines[-1] == "# 4 runs, of which 0 are done"
        assert not here.exists()

    def test_of_a_grid_of_the_package_and_a_shorter_one(self, capsys):
        assert call("signal_game/digits", "--preview", "--", "--n_epochs=1") == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1] == "# 50 runs, of which 0 are done"
        folder = pathlib.Path("runs/sweep-signal_game-digits").absolute()
        assert all(f"--n_epochs=1 --out={folder}/mode=" in line for line in lines[:-1])


def test_debug_runs_here_and_shows_where_it_fails(capsys):
    params = [write(x=[1, 2], fail=[False, True], game="toy_experiment"), "--debug", "--root", "root"]
    assert call(*params) == 1
    output = capsys.readouterr()
    assert "Traceback" in output.err
    assert "in main\n    raise ValueError" in output.err
    assert runs() == ["1 1 none", "1 1 none"]
    pathlib.Path("mended").touch()
    assert call(*params) == 0
    summary = last_line(capsys.readouterr().out)
    assert (summary["done"], summary["done_before"]) == (4, 1)


def test_warnings_come_once(capsys):
    assert call(write(game="signal_game", mode=["marg", "sfe"], gs_tau=[1, 2]), "--preview") == 0
    assert capsys.readouterr().err.splitlines() == [
        "egg_sparse.sweep: warning: --gs_tau has no effect in mode marg",
        "egg_sparse.sweep: warning: --gs_tau has no effect in mode sfe",
    ]


@pytest.mark.long
@pytest.mark.slow
def test_two_sweeps_at_once_a_failure_and_what_follows(capsys):
    params = [write(x=1, fail=[False, True], title="a b", wait=3, game="toy_experiment"), "--root", "my root"]
    params += ["--n_parallel", "2"]
    with subprocess.Popen([*COMMAND, *params], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as other:
        wait_for(lambda: len(list(pathlib.Path("my root").glob("*/job.json"))) == 2)
        assert call(*params) == 1
        outputs = [*other.communicate(timeout=120)], capsys.readouterr()
    assert other.returncode == 1
    assert runs() == ["1 1 a b"] * 2, "one sweep ran them, the other waited"
    for out, err in outputs:
        summary = last_line(out)
        assert {**summary, "seconds": 0} == {
            "mode": "sweep", "root": "my root", "runs": 2, "done": 1, "failed": 1, "done_before": 0, "seconds": 0,
        }  # fmt: skip
        assert any(line.startswith("done    fail=False,seed=1  acc 0.1") for line in out.splitlines())
        assert "failed: fail=True,seed=1: x must not be 1 (log: my root/fail=True,seed=1/log.txt)" in err
    assert "Traceback" in pathlib.Path("my root/fail=True,seed=1/log.txt").read_text()
    pathlib.Path("mended").touch()
    assert call(*params, "--debug") == 0
    summary = last_line(capsys.readouterr().out)
    assert (summary["done"], summary["failed"], summary["done_before"]) == (2, 0, 1)
    assert runs() == ["1 1 a b"] * 3, "what was done is not run again"
    assert call(*params) == 0
    assert last_line(capsys.readouterr().out)["done_before"] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_ends_the_runs_and_says_how_to_go_on(capsys):
    """How a run goes on is tested in test_jobs.py, and of the zoo's entries in tests/zoo/test_reliability.py."""
    params = [write(wait=600, game="toy_experiment"), "--root", "my root"]
    folder = pathlib.Path("my root/seed=1")

    def record():
        return json.loads((folder / "job.json").read_text())

    def interrupt():
        wait_for(lambda: pathlib.Path("ran").exists())
        for process in (record()["pid"], os.getpid()):  # a terminal sends it to all of them
            os.kill(process, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert call(*params) == 130
    thread.join()
    output = capsys.readouterr()
    assert "interrupted; python -m egg_sparse.sweep grid.json --root 'my root' goes on" in output.err
    assert last_line(output.out)["stopped"] == 1
    assert record()["state"] == "stopped"
    with pytest.raises(ProcessLookupError):
        os.kill(record()["pid"], 0)
    assert "toy_experiment: terminated" in (folder / "log.txt").read_text()


@pytest.mark.slow
def test_slurm_jobs_are_followed_and_found_again(slurm, capsys):
    params = [write(x=1, fail=[False, True], wait=1, game="toy_experiment"), "--root", "root"]
    params += ["--executor", "slurm", "--n_gpus", "0", "--time", "90", "--comment", "my comment"]
    params += ["--max_parallel", "3", "--slurm", "account=lab", "--name", "mine"]
    assert call(*params, "--detach") == 0
    assert call(*params, "--detach") == 0, "they are not submitted twice"
    assert call(*params) == 1
    output = capsys.readouterr()
    assert (last_line(output.out)["done"], last_line(output.out)["failed"]) == (1, 1)
    assert "x must not be 1" in output.err
    assert runs() == ["1 1 none"] * 2
    script = (slurm / "100.sh").read_text().splitlines()
    wanted = "array=0-1%2", "time=90", "comment='my comment'", "account=lab", "job-name=mine", "cpus-per-task=4"
    for line in (*wanted, "mem=16GB", "requeue", "signal=USR2@120", "nodes=1", "ntasks-per-node=1"):
        assert f"#SBATCH --{line}" in script
    assert not [line for line in script if "gpu" in line or "partition" in line]


@pytest.mark.slow
def test_eggs_nest_runs_the_same_file():
    pytest.importorskip("egg.nest", reason="EGG is not installed", exc_type=ImportError)
    grid = {"mode": ["gs"], "n_values": [4], "data_scaler": [1], "n_epochs": [1], "no_cuda": [True, False]}
    write("nest.json", **grid, random_seed=[1])
    nest = "-m egg.nest.nest_local --sweep nest.json --root_dir nest --n_workers 2 --checkpoint_freq 1 --game"
    game = "egg_sparse.zoo.compo_vs_generalization.train"
    subprocess.run([sys.executable, *nest.split(), game], check=True, timeout=200)
    for number in range(2):
        assert last_line(pathlib.Path(f"nest/{number}.out").read_text())["mode"] == "final"
        assert pathlib.Path(f"nest/{number}/final.tar").is_file()
    module = importlib.import_module("egg.nest.common")
    assert module.sweep("nest.json") == [each.arguments() for each in grids.load("nest.json")]
