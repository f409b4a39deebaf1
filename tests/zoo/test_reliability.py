"""What a run promises when it is killed, interrupted, or fed with faults: docs/reliability.md lists it."""

import argparse
import contextlib
import errno
import importlib
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from egg_sparse.callbacks import MetricsWriter
from egg_sparse.zoo import checkpoints, run_folder
from egg_sparse.zoo.cli import run
from egg_sparse.zoo.signal_game import train as signal_game
from egg_sparse.zoo.signal_game.data import GameLoader
from egg_sparse.zoo.signal_game.train import PROG, main
from small_runs import OPTIONS, RUNS, command, same

SIGNAL_GAME = OPTIONS["signal_game"].split()

# A run kills itself where it writes a line of metrics.jsonl, where it renames a file that is written, or in its test.
OPTIONS_WRITTEN = ("write", "opts.json", signal.SIGKILL)
IN_EPOCH_2 = ("line", 3, signal.SIGKILL)
BEFORE_CHECKPOINT_2 = ("line", 4, signal.SIGTERM)
CHECKPOINT_2_WRITTEN = ("write", "2.tar", signal.SIGKILL)
IN_EPOCH_3 = ("line", 5, signal.SIGINT)
LAST_CHECKPOINT_WRITTEN = ("write", "final.tar", signal.SIGKILL)
IN_THE_TEST = ("test", None, signal.SIGTERM)
CURVES_WRITTEN = ("write", "curves.png", signal.SIGKILL)
KILLS = [
    OPTIONS_WRITTEN, IN_EPOCH_2, BEFORE_CHECKPOINT_2, CHECKPOINT_2_WRITTEN, IN_EPOCH_3, LAST_CHECKPOINT_WRITTEN,
    IN_THE_TEST, CURVES_WRITTEN,
]  # fmt: skip

# By default five runs, of every entry, are killed twice. EGG_SPARSE_LONG=1 kills every mode eight times.
LONG = bool(os.environ.get("EGG_SPARSE_LONG"))
KILLED = {
    "signal_game --mode=marg": [OPTIONS_WRITTEN, CHECKPOINT_2_WRITTEN],
    "signal_game --mode=sfe --keep_best=loss": [BEFORE_CHECKPOINT_2, CURVES_WRITTEN],
    "semi_supervised_vae --mode=sfe": [IN_EPOCH_3, IN_THE_TEST],
    "bit_vector_vae --mode=sparsemap --temperature=5 --temperature_end=1 --entropy_warmup=2": [
        CHECKPOINT_2_WRITTEN,
        IN_EPOCH_3,
    ],
    "compo_vs_generalization --mode=rf": [IN_EPOCH_2, LAST_CHECKPOINT_WRITTEN],
}
if LONG:
    KILLED = dict.fromkeys(RUNS, KILLS)


pytestmark = pytest.mark.usefixtures("few_test_games")


@pytest.fixture(scope="module")
def processes():
    """Processes that are forked from one that has imported everything already, so that many can be killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"egg_sparse.zoo.{entry}.train" for entry in OPTIONS])
    return context


def play(folder, entry, params, kill=(None, None, None)):
    """In a process of its own: a run, as the command line starts it, which kills itself where it is told to."""
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.argv = [sys.argv[0]]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs may ignore it
    train = importlib.import_module(f"egg_sparse.zoo.{entry}.train")
    train.TEST_GAMES = train.VALIDATION_GAMES = 64
    event, what, number = kill

    def instead_of(owner, name, is_meant, after=False):
        plain = getattr(owner, name)

        def call(*args, **kwargs):
            result = plain(*args, **kwargs) if after else None
            if is_meant(*args):
                os.kill(os.getpid(), number)
            return result if after else plain(*args, **kwargs)

        setattr(owner, name, call)

    if event == "line":
        for hook in ("on_epoch_end", "on_validation_end"):
            instead_of(
                MetricsWriter, hook, lambda writer, *_: len(writer.path.read_text().splitlines()) == what, after=True
            )
    if event == "write":
        for function in ("link", "replace"):
            instead_of(os, function, lambda source, target: os.path.basename(target) == what)
    if event == "test":
        instead_of(train, "evaluate", lambda *_: True)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        status = run(train.PROG, train.main, [*params, "--random_seed=3", "--no_cuda"])
    os._exit(status)


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_killed_and_resumed_it_ends_like_the_uninterrupted_run(name, processes, tmp_path):
    entry, params = command(name)

    def exit_code_of(*args):
        process = processes.Process(target=play, args=(tmp_path, entry, *args))
        process.start()
        process.join()
        return process.exitcode

    def how():
        there = (tmp_path / "cut" / run_folder.OPTIONS_FILE).exists()
        return ["--resume=cut"] if there else [*params, "--out=cut"]

    assert exit_code_of([*params, "--out=whole"]) == 0
    for kill in KILLED[name]:
        died = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}[kill[2]]
        assert exit_code_of(how(), kill) == died, kill
        for checkpoint in (tmp_path / "cut").rglob("*.tar"):
            checkpoints.read(checkpoint)  # it is whole
    assert exit_code_of(how()) == 0
    print(f"\n{name}: killed {len(KILLED[name])} times")
    assert same(tmp_path / "whole", tmp_path / "cut")
    if "keep_best" in name:
        assert same(tmp_path / "whole", tmp_path / "cut", run_folder.BEST)
    whole, cut = (
        sorted(str(path.relative_to(tmp_path / name)) for path in (tmp_path / name).rglob("*"))
        for name in ("whole", "cut")
    )
    assert whole == cut, "nothing unfinished stays behind, nothing is missing"
    curves = [(tmp_path / name / run_folder.CURVES_FILE).read_bytes() for name in ("whole", "cut")]
    assert curves[0] == curves[1]


@pytest.mark.slow
def test_preemptable_jobs_end_like_the_uninterrupted_one(monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    main(["--mode=sfe", *SIGNAL_GAME, "--random_seed=3", "--no_cuda", "--out=whole"])
    job = ["--mode=sfe", *SIGNAL_GAME, "--random_seed=3", "--no_cuda", "--out=job", "--preemptable"]
    monkeypatch.setattr(checkpoints.RunCheckpoints, "on_train_end", lambda self: None)
    stopped = []

    def stop(self, loss, logs, epoch):
        self._save_epoch(epoch)
        if epoch == 2 and not stopped:
            stopped.append(epoch)
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.RunCheckpoints, "on_validation_end", stop)
    with pytest.raises(KeyboardInterrupt):
        main(job)
    main(job)
    whole, again = ((tmp_path / name / run_folder.METRICS_FILE).read_bytes() for name in ("whole", "job"))
    assert whole == again


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signal_number", "status", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_signals_say_how_to_go_on(signal_number, status, word):
    options = [*SIGNAL_GAME, "--n_epochs=10000", "--no_cuda", "--out=job"]
    command = [sys.executable, "-m", PROG, *options]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that runs the tests in the background ignores SIGINT, and so would whatever it starts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not os.path.exists("job/checkpoints/2.tar"):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal_number)
    try:
        _, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == status
    assert f"{PROG}: {word}; python -m {PROG} --resume job goes on" in error
    assert "Traceback" not in error


@pytest.mark.slow
@pytest.mark.parametrize("frequency", [0, 3])
def test_an_interrupted_run_saves_its_last_whole_epoch(frequency, monkeypatch, tmp_path):
    """Also one that checkpoints of every few epochs, or of the end alone, would have left out."""
    params = ["--mode=sfe", *SIGNAL_GAME, "--random_seed=3", "--no_cuda", f"--checkpoint_freq={frequency}"]
    main([*params, "--out=whole"])
    plain = GameLoader.set_epoch

    def interrupted(self, epoch):
        if epoch == 3:
            raise KeyboardInterrupt
        plain(self, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(GameLoader, "set_epoch", interrupted)
        assert run(PROG, main, [*params, "--out=cut"]) == 130
    assert checkpoints.newest(tmp_path / "cut/checkpoints") == (tmp_path / "cut/checkpoints/2.tar", 2)
    main(["--resume=cut", "--no_cuda"])
    assert same(tmp_path / "whole", tmp_path / "cut")


def contents(folder):
    """Every file, with what is in it and when it was written."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
class TestResume:
    PARAMS = ("--mode=sfe", *SIGNAL_GAME, "--random_seed=3", "--no_cuda")

    @pytest.fixture
    def groups(self, monkeypatch):
        """Options of the optimizer in every epoch that is trained."""
        seen = []

        def look(self, epoch):
            (group,) = self.trainer.optimizer.param_groups
            seen.append((epoch, group["lr"], group["weight_decay"]))

        monkeypatch.setattr(checkpoints.RunCheckpoints, "on_epoch_begin", look)
        return seen

    def test_more_epochs_have_the_rates_of_the_longer_run(self, groups):
        main([*self.PARAMS, "--n_epochs=6", "--lr=0.01", "--out=whole"])
        whole = groups.copy()
        assert [rate for _, rate, _ in whole] == pytest.approx([0.01 * (6 - trained) / 6 for trained in range(6)])
        groups.clear()
        main([*self.PARAMS, "--n_epochs=2", "--lr=0.01", "--out=run"])
        main(["--resume=run", "--n_epochs=3"])
        assert groups[2][1] == pytest.approx(0.01 / 3), "the last of three epochs"
        main(["--resume=run", "--n_epochs=6"])
        assert groups[3:] == whole[3:]

    @pytest.mark.parametrize("schedules", [("linear", "constant"), ("constant", "linear"), ("linear", "linear")])
    def test_takes_over_options_of_the_optimizer(self, schedules, groups):
        main([*self.PARAMS, "--n_epochs=2", f"--lr_schedule={schedules[0]}", "--out=run"])
        main(["--resume=run", "--n_epochs=4", "--lr=0.5", "--weight_decay=0.25", f"--lr_schedule={schedules[1]}"])
        rates = [0.25, 0.125] if schedules[1] == "linear" else [0.5, 0.5]
        assert groups[2:] == [(3, rates[0], 0.25), (4, rates[1], 0.25)]

    def test_refuses_another_optimizer(self, capsys):
        main([*self.PARAMS, "--out=run"])
        for optimizer in ("sgd", "adagrad"):
            assert run(PROG, main, ["--resume=run", "--n_epochs=9", f"--optimizer={optimizer}"]) == 1
            error = capsys.readouterr().err.splitlines()[-1]
            assert "--optimizer" in error
            assert f"got {optimizer}" in error

    def test_fewer_epochs_are_refused(self, capsys, tmp_path):
        main([*self.PARAMS, "--out=run"])
        before = contents(tmp_path / "run")
        assert run(PROG, main, ["--resume=run", "--n_epochs=3", "--lr=7"]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert "nothing is left to train" in error
        assert "--n_epochs" in error
        assert "got 3" in error
        assert contents(tmp_path / "run") == before

    @pytest.mark.parametrize(
        "name",
        [
            "signal_game --mode=sfe",
            "semi_supervised_vae --mode=gs",
            "bit_vector_vae --mode=gs",
            "compo_vs_generalization --mode=gs",
        ],
    )
    def test_a_complete_run_is_only_tested(self, name, capsys, tmp_path):
        entry, params = command(name)
        train = importlib.import_module(f"egg_sparse.zoo.{entry}.train")
        final = train.main([*params, "--no_cuda", "--out=run"])
        before = contents(tmp_path / "run")
        again = train.main(["--resume=run", "--no_cuda", f"--n_epochs={4 if entry == 'signal_game' else 3}", "--lr=7"])
        assert "nothing is left to train" in capsys.readouterr().err
        assert {**again, "seconds": 0} == {**final, "seconds": 0}
        results = tmp_path / "run" / run_folder.RESULTS_FILE
        assert json.loads(results.read_text()) == again
        after = contents(tmp_path / "run")
        assert before.pop(results)
        assert after.pop(results)
        assert after == before

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, signal.SIGTERM])
    def test_interrupted_in_its_test_it_says_that_the_training_had_ended(self, kind, monkeypatch, capsys):
        def interrupted(*args):
            if kind is KeyboardInterrupt:
                raise KeyboardInterrupt
            os.kill(os.getpid(), kind)

        final = main([*self.PARAMS, "--out=whole"])
        with monkeypatch.context() as patch:
            patch.setattr(signal_game, "evaluate", interrupted)
            assert run(PROG, main, [*self.PARAMS, "--out=a cut"]) == (130 if kind is KeyboardInterrupt else 143)
        *_, before, last = capsys.readouterr().err.splitlines()
        assert "the training has ended" in before, "also for one that is killed"
        assert "in the test, after the training had ended" in last
        assert f"python -m {PROG} --resume 'a cut' only tests" in last
        assert "--resume 'a cut' only tests" in before
        again = main(["--resume=a cut", "--no_cuda"])
        assert {**again, "seconds": 0} == {**final, "seconds": 0}

    def test_goes_on_from_a_newer_checkpoint_than_an_earlier_end(self, tmp_path):
        main([*self.PARAMS, "--n_epochs=5", "--out=whole"])
        final = tmp_path / "whole/checkpoints/final.tar"
        (tmp_path / "whole/checkpoints/4.tar").replace(final)
        assert checkpoints.newest(tmp_path / "whole/checkpoints") == (tmp_path / "whole/checkpoints/5.tar", 5)

    def test_a_job_of_slurm_is_resumed_by_hand(self, monkeypatch, tmp_path):
        monkeypatch.setenv("SLURM_JOB_ID", "17")
        main([*self.PARAMS, "--n_epochs=2", "--preemptable", "--out=job"])
        monkeypatch.delenv("SLURM_JOB_ID")
        main(["--resume=job", "--n_epochs=3"])
        epochs = [json.loads(line)["epoch"] for line in (tmp_path / "job/metrics.jsonl").open()]
        assert epochs == [1, 1, 2, 2, 3, 3]
        assert (tmp_path / "job/checkpoints/17_0/3.tar").exists()

    def test_warm_start_options_that_have_no_effect_draw_a_warning(self, capsys):
        train = importlib.import_module("egg_sparse.zoo.semi_supervised_vae.train")
        train.main([*command("semi_supervised_vae")[1], "--n_epochs=1", "--no_cuda", "--out=run"])
        capsys.readouterr()
        train.main(["--resume=run", "--n_epochs=2", "--no_cuda", "--warm_start_epochs=7", "--warm_start_path=no.tar"])
        error = capsys.readouterr().err
        assert "warning: --warm_start_epochs has no effect" in error
        assert "warning: --warm_start_path has no effect" in error


class TestFolders:
    PARAMS = ("--mode=marg", *SIGNAL_GAME, "--n_epochs=1", "--no_cuda")

    def options(self, out=None):
        return argparse.Namespace(mode="marg", random_seed=1, out=out)

    def test_runs_of_one_second_have_folders_of_their_own(self, monkeypatch):
        monkeypatch.setattr(time, "strftime", lambda _: "20260101-000000")
        folders = [run_folder.create(self.options(), "signal_game", goes_on=False) for _ in range(3)]
        assert len(set(folders)) == 3
        assert all(folder.name.startswith("marg-1-20260101-000000") for folder in folders)

    def test_one_of_two_that_start_at_once_gets_a_folder(self, monkeypatch, tmp_path):
        """Both have looked into the folder before one of them writes."""
        both, link, results = threading.Barrier(2, timeout=30), os.link, []

        def late_link(*args):
            both.wait()
            link(*args)

        monkeypatch.setattr(os, "link", late_link)

        def start():
            try:
                results.append(run_folder.create(self.options("run"), "signal_game", goes_on=False))
            except ValueError as error:
                results.append(str(error))

        threads = [threading.Thread(target=start) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(map(type, results), key=str) == sorted([str, type(tmp_path)], key=str)
        assert any("--out" in str(result) and "holds a run already" in str(result) for result in results)
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["opts.json"]

    def test_without_hard_links(self, monkeypatch, tmp_path):
        def refuse(*args):
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
        run_folder.create(self.options("run"), "signal_game", goes_on=False)
        assert json.loads((tmp_path / "run/opts.json").read_text())["mode"] == "marg"
        with pytest.raises(ValueError, match="--out"):
            run_folder.create(self.options("run"), "signal_game", goes_on=False)
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["opts.json"]

    @pytest.mark.slow
    def test_a_folder_of_another_run_is_refused(self, capsys, tmp_path):
        for name in "AB":
            main([*self.PARAMS, f"--out={name}"])
        before = contents(tmp_path / "B")
        more = [*self.PARAMS, "--n_epochs=2", "--load_from_checkpoint=A/checkpoints/final.tar"]
        assert run(PROG, main, [*more, "--out=B"]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert "--out" in error
        assert "B holds a run already" in error
        assert contents(tmp_path / "B") == before
        assert run(PROG, main, [*more, "--out=C", "--checkpoint_dir=B/checkpoints"]) == 1
        assert "--checkpoint_dir" in capsys.readouterr().err.splitlines()[-1]
        assert contents(tmp_path / "B") == before
        main([*more, "--out=A"])
        epochs = [json.loads(line)["epoch"] for line in (tmp_path / "A/metrics.jsonl").open()]
        assert epochs == [1, 1, 2, 2]

    @pytest.mark.parametrize(
        ("params", "named"),
        [
            (["--resume", ""], ["--resume", "''"]),
            (["--resume="], ["--resume", "''"]),
            (["--out="], ["--out", "''"]),
            (["--load_from_checkpoint="], ["--load_from_checkpoint", "''"]),
            (["--checkpoint_dir="], ["--checkpoint_dir", "''"]),
            (["--resume=run", "--out=other"], ["--resume", "--out"]),
            (["--resume=run", "--evaluate"], ["--resume", "--evaluate"]),
            (["--resume=run", "--evaluate", "--load_from_checkpoint=x.tar"], ["--resume", "--evaluate"]),
            (["--resume=run", "--load_from_checkpoint=x.tar"], ["--resume", "--load_from_checkpoint"]),
            (["--resume=run", "--preemptable"], ["--resume", "--preemptable"]),
            (["--evaluate", "--load_from_checkpoint=x.tar", "--out=other"], ["--evaluate", "--out"]),
            (["--evaluate", "--load_from_checkpoint=x.tar", "--preemptable"], ["--evaluate", "--preemptable"]),
        ],
    )
    def test_contradictions_are_refused(self, params, named, capsys, tmp_path):
        assert run(PROG, main, params) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert all(name in error for name in named)
        assert not list(tmp_path.iterdir())

    def test_training_options_have_no_effect_in_a_test(self, capsys):
        main([*self.PARAMS, "--out=run"])
        capsys.readouterr()
        main(["--evaluate", "--load_from_checkpoint=run/checkpoints/final.tar", "--lr=0.5", "--batch_size=3"])
        error = capsys.readouterr().err
        assert error.count("warning: ") == 2
        assert "warning: --lr has no effect" in error
        assert "warning: --batch_size has no effect" in error


@pytest.mark.slow
class TestCheckpoints:
    @pytest.fixture
    def folder(self, tmp_path):
        main([*SIGNAL_GAME, "--random_seed=3", "--no_cuda", "--out=run", "--keep=3"])
        return tmp_path / "run/checkpoints"

    def test_keeps_the_newest(self, folder):
        assert {path.name for path in folder.iterdir()} == {"2.tar", "3.tar", "4.tar", "final.tar"}
        assert checkpoints.newest(folder) == (folder / "final.tar", 4)

    @pytest.mark.parametrize("damage", ["truncated", "foreign", "empty", "flipped"])
    def test_passes_over_damaged_ones(self, folder, damage, capsys):
        for name in ("final.tar", "4.tar"):
            content = (folder / name).read_bytes()
            damaged = {
                "truncated": content[: len(content) // 2],
                "foreign": b"nothing of the kind",
                "empty": b"",
                "flipped": bytes(byte ^ 0xFF for byte in content[:200]) + content[200:],
            }[damage]
            (folder / name).write_bytes(damaged)
        assert checkpoints.newest(folder) == (folder / "3.tar", 3)
        assert capsys.readouterr().err.count("passing over a damaged checkpoint") == 2
        main(["--resume=run", "--no_cuda"])
        assert checkpoints.newest(folder) == (folder / "final.tar", 4)

    def test_a_writer_that_fails_leaves_what_was_there(self, folder, monkeypatch):
        before = (folder / "final.tar").read_bytes()

        def fail(*args):
            args[1].write(b"half")
            raise RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0")

        monkeypatch.setattr(torch, "save", fail)
        with pytest.raises(OSError, match=r"checkpoint.*disk"):
            checkpoints.write({}, folder / "final.tar")
        assert (folder / "final.tar").read_bytes() == before
        assert {path.name for path in folder.iterdir()} == {"2.tar", "3.tar", "4.tar", "final.tar"}

    def test_does_not_execute_what_is_in_one(self, folder, tmp_path, capsys):
        class Harm:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "harm"),)

        for name in ("final.tar", "4.tar"):
            torch.save(Harm(), folder / name)
        main(["--resume=run", "--no_cuda"])
        assert "passing over a damaged checkpoint" in capsys.readouterr().err
        assert not (tmp_path / "harm").exists()


class TestFaults:
    """NaN in the 15th step of a run, which is batch 4 of epoch 2, counted from 0."""

    PARAMS = ("--mode=gs", *SIGNAL_GAME, "--random_seed=3", "--no_cuda", "--out=run")

    @pytest.fixture
    def fault(self, kind, monkeypatch):
        from egg_sparse.zoo.signal_game.archs import MLPSender, Receiver

        agent = MLPSender if kind == "scores" else Receiver
        plain, steps = agent.forward, []

        def spoil(gradient):
            return gradient * float("nan")

        def forward(self, *inputs):
            output = plain(self, *inputs)
            steps.append(self.training)
            if not self.training or sum(steps) != 15:
                return output
            if kind == "gradient":
                output.register_hook(spoil)
                return output
            return spoil(output)

        monkeypatch.setattr(agent, "forward", forward)

    @pytest.mark.parametrize(
        ("kind", "mode", "what"),
        [
            ("loss", "gs", "the loss is not finite"),
            ("gradient", "gs", "the gradient of sender.agent.hidden.weight is not finite"),
            ("scores", "gs", "the scores of an agent are not finite"),
            ("scores", "sfe", "the scores of an agent are not finite"),
            ("scores", "marg", "320 of 320"),
        ],
    )
    def test_stops(self, fault, mode, what, capsys):
        assert run(PROG, main, [*self.PARAMS, f"--mode={mode}"]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert re.search(rf"error: .*{what}.* at step 15, in epoch 2 \(batch seed 3, 2, 4\); ", error)
        assert "the weights of that moment are in run/checkpoints/not-finite-2.tar" in error
        folder = run_folder.current / "checkpoints"
        weights = checkpoints.read(folder / "not-finite-2.tar").model_state_dict
        weights.pop("sender.control.averages", None)  # NaN, as a floor of the schedule's needs no averages
        assert all(torch.isfinite(value).all() for value in weights.values() if isinstance(value, torch.Tensor))
        assert checkpoints.newest(folder) == (folder / "1.tar", 1), "a run does not go on from the marked one"

    @pytest.mark.parametrize("kind", ["loss", "gradient"])
    def test_skips(self, fault, capsys):
        params = [*self.PARAMS, "--on_nan=skip"]
        assert run(PROG, main, params) == 0
        error = capsys.readouterr().err
        assert error.count("skipping a step: ") == error.count("at step 15, in epoch 2") == 1
        weights = checkpoints.read("run/checkpoints/final.tar").model_state_dict
        assert all(torch.isfinite(value).all() for value in weights.values())

    @pytest.mark.parametrize("kind", ["loss"])
    def test_names_the_batch_of_a_step_of_several(self, fault, capsys):
        """Steps are of three batches; the second batch of the fifth step is meant."""
        assert run(PROG, main, [*self.PARAMS, "--on_nan=skip", "--update_freq=3"]) == 0
        assert "step 15, in epoch 2 (batch seed 3, 2, 4)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "must hold one object of options"),
        ('{"mode": {"a": 1}}', "must hold one object of options"),
        ('{"mode": "marg", "unheard_of": 3}', "unrecognized arguments: --unheard_of=3"),
        ('{"n_epochs": "many"}', "argument --n_epochs: expected a whole number"),
        ("{", "cannot be read as JSON"),
        (None, "there is no run in job: it has no opts.json"),
    ],
)
def test_refuses_to_resume_other_options(content, message, tmp_path, capsys):
    (tmp_path / "job").mkdir()
    if content is not None:
        (tmp_path / "job/opts.json").write_text(content)
    assert run(PROG, main, ["--resume=job"]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_metrics_of_unfinished_epochs_are_taken_out(tmp_path):
    lines = [json.dumps({"epoch": epoch, "loss": 0.5}) for epoch in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"epoch": 2, "lo']))
    assert [record["epoch"] for record in run_folder.keep_metrics_until(tmp_path, 2)] == [1, 2]
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == lines[:2]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS if LONG else ["signal_game --mode=gs --straight_through"])
def test_memory_files_and_threads_stay_constant(name):
    """In one process, after 200 steps and after 2,000; by default after 100 and 500."""
    entry, params = command(name)
    steps = (200, 2000) if LONG else (100, 500)
    code = f"""
import gc, os, resource, sys, threading
from egg_sparse.zoo.{entry} import train
from egg_sparse.zoo import faults
found, steps = [], {steps}
class Found(BaseException):
    pass
def look(self, logs, loss, batch_id, is_training=True, seen=[0]):
    seen[0] += is_training
    if is_training and seen[0] in steps:
        gc.collect()
        memory = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
        found.append((memory, len(os.listdir("/proc/self/fd")), threading.active_count()))
        if seen[0] == steps[1]:
            raise Found
faults.FaultGuard.on_batch_end = look
try:
    train.main({[*params, "--n_epochs=1000", "--out=run", "--random_seed=3", "--no_cuda", "--validation_freq=0"]!r})
except Found:
    pass
(before, files, threads), (after, files_after, threads_after) = found
print(before, after, files, files_after, threads, threads_after, file=sys.stderr)
sys.exit(not (after < 1.02 * before and files_after == files and threads_after == threads))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-500:]


def test_scores_that_overflow_float16_are_refused():
    from egg_sparse.mappings import sparsemax

    scores = torch.tensor([[1.0, 70_000.0]]).half()
    with pytest.raises(ValueError, match=r"scores.*1 of 2"):
        sparsemax(scores)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["signal_game --mode=marg", "semi_supervised_vae --mode=gs", "bit_vector_vae --mode=sparsemap"]
)
def test_deterministic_algorithms_alone(name, monkeypatch):
    """PyTorch raises an error where an algorithm is not."""
    entry, params = command(name)
    train = importlib.import_module(f"egg_sparse.zoo.{entry}.train")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        final = train.main([*params, "--n_epochs=1", "--deterministic", "--random_seed=3", "--out=run"])
        assert final["mode"] == "final"
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_one_seed_draws_the_same_in_every_epoch():
    from egg_sparse.callbacks import EpochSeeds

    def drawn(epoch, rank=0):
        EpochSeeds(3, rank).on_epoch_begin(epoch)
        return torch.rand(1).item(), np.random.rand(), random.random()

    assert drawn(2) == drawn(2)
    assert len({drawn(1), drawn(2), drawn(1, rank=1)}) == 3
