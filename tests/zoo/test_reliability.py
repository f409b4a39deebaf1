"""What a run promises when it is killed, interrupted, or fed with faults: docs/reliability.md lists it."""

import contextlib
import importlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from egg_sparse import host
from egg_sparse.zoo import checkpoints, run_folder
from egg_sparse.zoo.options import run
from egg_sparse.zoo.signal_game import train as signal_game
from egg_sparse.zoo.signal_game.data import GameLoader
from egg_sparse.zoo.signal_game.train import PROG, main

OPTIONS = {
    "signal_game": "--n_epochs=4 --batches_per_epoch=10 --vocab_size=20 --game_size=4 --batch_size=16",
    "semi_supervised_vae": "--n_epochs=3 --n_labeled=50 --warm_start_epochs=2",
    "bit_vector_vae": "--n_epochs=3 --latent_size=6 --nll_samples=2 --nll_images=5 --validation_nll_samples=1",
}
MODES = {
    "signal_game": [
        "marg", "sfe", "sfe --baseline_type=sample", "nvil", "sumsample", "gs --temperature_update_freq=7",
        "gs --straight_through",
    ],
    "semi_supervised_vae": [
        "marg", "marg --normalizer=softmax", "sfe", "sfe --baseline_type=sample", "nvil", "sumsample", "gs",
        "gs --straight_through",
    ],
    "bit_vector_vae": [
        "sparsemap --temperature=5 --temperature_end=1 --entropy_warmup=2", "sparsemap --budget=3",
        "sparsemap --decomposition=active_set", "topksparse --max_support=3", "sfe", "sfe --baseline_type=sample",
        "nvil", "gs", "gs --straight_through",
    ],
}  # fmt: skip
RUNS = [f"{entry} --mode={mode}" for entry, modes in MODES.items() for mode in modes]
SIGNAL_GAME = OPTIONS["signal_game"].split()

# By default every entry and every kind of randomness is killed twice. EGG_SPARSE_LONG=1 kills every mode six times.
LONG = bool(os.environ.get("EGG_SPARSE_LONG"))
KILLED = [
    "signal_game --mode=marg",
    "signal_game --mode=sfe",
    "signal_game --mode=gs --temperature_update_freq=7",
    "semi_supervised_vae --mode=sfe",
    "bit_vector_vae --mode=sparsemap --temperature=5 --temperature_end=1 --entropy_warmup=2",
]


def command(name):
    """The entry of a run, and its options."""
    entry, *params = name.split()
    return entry, [*params, *OPTIONS[entry].split()]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    """And with few games in validation and test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal_game, "TEST_GAMES", 64)
    monkeypatch.setattr(signal_game, "VALIDATION_GAMES", 64)


@pytest.fixture(scope="module")
def processes():
    """Processes that are forked from one that has imported everything already, so that many can be killed."""
    context = multiprocessing.get_context("forkserver")
    entries = ("signal_game", "semi_supervised_vae", "bit_vector_vae")
    context.set_forkserver_preload([f"egg_sparse.zoo.{entry}.train" for entry in entries])
    return context


def play(folder, entry, params):
    """In a process of its own: a run, as the command line starts it."""
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.argv = [sys.argv[0]]
    train = importlib.import_module(f"egg_sparse.zoo.{entry}.train")
    train.TEST_GAMES = train.VALIDATION_GAMES = 64
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        status = run(train.PROG, train.main, [*params, "--random_seed=3", "--no_cuda"])
    os._exit(status)


def same(first, second):
    """Whether two runs ended alike, bit for bit."""
    metrics = [(folder / run_folder.METRICS_FILE).read_bytes() for folder in (first, second)]
    states = [host.load_checkpoint(folder / "checkpoints/final.tar") for folder in (first, second)]

    def equal(a, b):
        if isinstance(a, torch.Tensor):
            return torch.equal(a, b)
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
        if isinstance(a, (list, tuple)):
            return len(a) == len(b) and all(map(equal, a, b))
        return a == b

    return metrics[0] == metrics[1] and all(
        equal(getattr(states[0], part), getattr(states[1], part)) for part in states[0]._fields
    )


@pytest.mark.parametrize("name", RUNS if LONG else KILLED)
def test_killed_and_resumed_it_ends_like_the_uninterrupted_run(name, processes, tmp_path):
    entry, params = command(name)
    started = time.monotonic()
    whole = processes.Process(target=play, args=(tmp_path, entry, [*params, "--out=whole"]))
    whole.start()
    whole.join()
    assert whole.exitcode == 0
    duration = time.monotonic() - started

    moments, kills, signals = random.Random(name), 0, [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT]
    while True:
        there = (tmp_path / "cut" / run_folder.OPTIONS_FILE).exists()
        how = ["--resume=cut"] if there else [*params, "--out=cut"]
        part = processes.Process(target=play, args=(tmp_path, entry, how))
        part.start()
        if kills < (6 if LONG else 2):
            time.sleep(moments.uniform(0.2, 0.9) * duration)
            with contextlib.suppress(ProcessLookupError):  # it was faster
                os.kill(part.pid, signals[kills % len(signals)])
                kills += 1
        part.join()
        if part.exitcode == 0:
            break
        assert part.exitcode in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, 143, 130)
    print(f"\n{name}: killed {kills} times")
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert not list((tmp_path / "cut").rglob(".*.unfinished*")) or kills


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


@pytest.mark.parametrize("frequency", [0, 3])
def test_an_interrupted_run_saves_its_last_whole_epoch(frequency, monkeypatch, tmp_path):
    """Also one that checkpoints of every few epochs, or of the end alone, would have left out."""
    params = ["--mode=sfe", *SIGNAL_GAME, "--random_seed=3", "--no_cuda", f"--checkpoint_freq={frequency}"]
    main([*params, "--out=whole"])
    plain = GameLoader._batch

    def interrupted(self, rng):
        if self.epoch == 4 and not self.fixed:  # the third epoch: it has counted on
            raise KeyboardInterrupt
        return plain(self, rng)

    with monkeypatch.context() as patch:
        patch.setattr(GameLoader, "_batch", interrupted)
        assert run(PROG, main, [*params, "--out=cut"]) == 130
    assert checkpoints.newest(tmp_path / "cut/checkpoints") == (tmp_path / "cut/checkpoints/2.tar", 2)
    main(["--resume=cut", "--no_cuda"])
    assert same(tmp_path / "whole", tmp_path / "cut")


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
        with pytest.raises(OSError, match=r"cannot write a checkpoint to .*: is the disk full"):
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
            ("scores", "marg", "scores must be finite: 320 of 320 are NaN or infinite"),
        ],
    )
    def test_stops(self, fault, mode, what, capsys):
        assert run(PROG, main, [*self.PARAMS, f"--mode={mode}"]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"error: {what} at step 15, in epoch 2 (batch seed 3, 2, 4); " in error
        assert "the weights of that moment are in run/checkpoints/not-finite-2.tar" in error
        folder = run_folder.current / "checkpoints"
        weights = host.load_checkpoint(folder / "not-finite-2.tar").model_state_dict
        assert all(torch.isfinite(value).all() for value in weights.values() if isinstance(value, torch.Tensor))
        assert checkpoints.newest(folder) == (folder / "1.tar", 1), "a run does not go on from the marked one"

    @pytest.mark.parametrize("kind", ["loss", "gradient"])
    def test_skips(self, fault, capsys):
        params = [*self.PARAMS, "--on_nan=skip"]
        assert run(PROG, main, params) == 0
        error = capsys.readouterr().err
        assert error.count("skipping a step: ") == error.count("at step 15, in epoch 2") == 1
        weights = host.load_checkpoint("run/checkpoints/final.tar").model_state_dict
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
    with pytest.raises(ValueError, match="scores must be finite: 1 of 2"):
        sparsemax(scores)


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
