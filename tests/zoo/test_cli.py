"""The entries in a sweep, as EGG's nest runs one: it calls ``main(params)`` of each in processes of a pool."""

import argparse
import importlib
import json
import multiprocessing
import os
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import pytest

from egg_sparse import host
from egg_sparse.zoo import run_folder
from egg_sparse.zoo.cli import run
from egg_sparse.zoo.signal_game import train as signal_game
from egg_sparse.zoo.signal_game.train import PROG, main

ENTRIES = ("signal_game", "semi_supervised_vae", "bit_vector_vae", "compo_vs_generalization")
SMALL = ["--n_epochs=1", "--batches_per_epoch=5", "--no_cuda"]
SWEEP = {"lr": [0.01, 0.001], "mode": ["marg", "sfe"], "n_epochs": 1, "batches_per_epoch": 5, "no_cuda": True}
COMBINATIONS = [
    ["--lr=0.01", "--mode=marg", "--n_epochs=1", "--batches_per_epoch=5", "--no_cuda"],
    ["--lr=0.01", "--mode=sfe", "--n_epochs=1", "--batches_per_epoch=5", "--no_cuda"],
    ["--lr=0.001", "--mode=marg", "--n_epochs=1", "--batches_per_epoch=5", "--no_cuda"],
    ["--lr=0.001", "--mode=sfe", "--n_epochs=1", "--batches_per_epoch=5", "--no_cuda"],
]


def train_of(entry):
    return importlib.import_module(f"egg_sparse.zoo.{entry}.train")


pytestmark = pytest.mark.usefixtures("few_test_games")


def combinations():
    """Those of a sweep: EGG's own where it is the host."""
    if not host.is_egg():
        return COMBINATIONS
    return importlib.import_module("egg.nest.common").parse_json_sweep(SWEEP)


@pytest.mark.slow
def test_a_sweep_in_one_process(tmp_path, capsys):
    """As nest_local with one worker and --checkpoint_freq calls it; each run is that of its options alone."""
    assert combinations() == COMBINATIONS
    finals = []
    for number, combination in enumerate(combinations()[1:3]):
        (tmp_path / f"{number}").mkdir()
        folders = [f"--checkpoint_dir={tmp_path / str(number)}", f"--out=run{number}"]
        finals.append(main([*combination, "--random_seed=3", "--checkpoint_freq=1", *folders]))
        assert json.loads(capsys.readouterr().out.splitlines()[-1]) == finals[-1]
        assert json.loads((tmp_path / f"run{number}/results.json").read_text()) == finals[-1]
        assert {path.name for path in (tmp_path / f"{number}").iterdir()} == {"1.tar", "final.tar"}
    assert ["exact" in final for final in finals] == [False, True]
    alone = main([*COMBINATIONS[2], "--random_seed=3", "--out=alone"])
    assert {**alone, "seconds": 0} == {**finals[1], "seconds": 0}


def begin_at_once(barrier, folder):
    """In a process of a pool: all begin when the last is there, and in the same second."""
    os.chdir(folder)
    plain = time.strftime
    # of the present time alone; packages that are imported meanwhile write others
    time.strftime = lambda form, *when: plain(form, *when) if when else "20260101-000000"
    signal_game.TEST_GAMES = signal_game.VALIDATION_GAMES = 64
    barrier.wait()


class Job:
    """What nest_local submits, without EGG: its outputs are in files."""

    def __init__(self, runnable, log_dir, job_id):
        self.runnable, self.log_dir, self.job_id = runnable, log_dir, job_id

    def __call__(self, params):
        sys.stdout = open(f"{self.log_dir}/{self.job_id}.out", "w")  # noqa: SIM115
        sys.stderr = open(f"{self.log_dir}/{self.job_id}.err", "w")  # noqa: SIM115
        self.runnable(params)


@pytest.mark.slow
def test_runs_that_start_at_once_in_processes_of_a_pool(tmp_path):
    """Two with the same options, so that their folders would have the same name, and two that cannot run."""
    job = importlib.import_module("egg.nest.wrappers").ConcurrentWrapper if host.is_egg() else Job
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["egg_sparse.zoo.signal_game.train"])
    params = [*COMBINATIONS[0], "--random_seed=3"]
    swept = [params, params, [*params, "--lr=-1"], [*params, "--data=npz", "--root=no.npz"]]
    with ProcessPoolExecutor(
        len(swept), context, initializer=begin_at_once, initargs=(context.Barrier(len(swept), timeout=300), tmp_path)
    ) as pool:
        jobs = [
            pool.submit(job(runnable=main, log_dir=str(tmp_path), job_id=number), each)
            for number, each in enumerate(swept)
        ]
        errors = [each.exception() for each in jobs]
    assert errors[:2] == [None, None]
    assert isinstance(errors[2], SystemExit)
    assert errors[2].code == 2
    assert re.search("--lr.*'-1'", (tmp_path / "2.err").read_text())
    assert isinstance(errors[3], FileNotFoundError)
    assert "--root" in str(errors[3])
    finals = [json.loads((tmp_path / f"{number}.out").read_text().splitlines()[-1]) for number in range(2)]
    folders = sorted((tmp_path / "runs/signal_game").iterdir())
    assert [folder.name for folder in folders] == [f"marg-3-20260101-000000{end}" for end in ("", "-2")]
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]
    assert sorted(results, key=str) == sorted(finals, key=str)
    for folder in folders:
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
        assert (folder / "checkpoints/final.tar").is_file()


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    ("params", "error", "named"),
    [
        (["--lr=-1"], SystemExit, ["--lr", "'-1'"]),
        (["--no_such_option=1"], SystemExit, ["--no_such_option"]),
        (["--data=mnist", "--data_root=/dev/null"], OSError, ["--data_root", "/dev/null"]),
        (["--out=/dev/null/run"], OSError, ["--out", "/dev/null/run"]),
        (
            ["--n_epochs=3", "--lr=1e30", "--lr_schedule=constant", "--out=run"],
            FloatingPointError,
            ["finite", "step", "seed"],
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_failure_is_an_exception_of_main_and_a_sentence_of_the_command(entry, params, error, named, capsys):
    train = train_of(entry)
    if entry == "compo_vs_generalization" and "--data=mnist" in params:
        params, error, named = ["--hold_out=2"], ValueError, ["--hold_out", "2.0"]
    params = ["--no_cuda", "--random_seed=1", *params]
    if entry == "semi_supervised_vae":
        params.append("--warm_start_epochs=0")
    with pytest.raises(error) as raised:
        train.main(params)
    said = capsys.readouterr().err if error is SystemExit else str(raised.value)
    assert all(name in said for name in named)
    assert error is not SystemExit or raised.value.code == 2
    assert run(train.PROG, train.main, [param.replace("=run", "=other") for param in params]) == (
        2 if error is SystemExit else 1
    )
    sentences = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"{train.PROG}: error: ")]
    assert len(sentences) == 1
    assert all(name in sentences[0] for name in named)


class TestAbbreviations:
    """EGG's parsers take an option by as few letters as no other option begins with."""

    @pytest.fixture(params=ENTRIES)
    def parser(self, request, monkeypatch):
        """With all options, those of EGG included."""
        train, parsers = train_of(request.param), []
        monkeypatch.setattr(train.core, "init", lambda parser, params: _keep(parsers, parser, train.core.util))
        with pytest.raises(StopIteration):
            train.parse_options([])
        return parsers[0]

    def test_every_option_by_every_prefix(self, parser, capsys):
        actions = {name: action for action in parser._actions for name in action.option_strings if name[:2] == "--"}
        for name, action in actions.items():
            if name in ("--help", "--version", "--config", "--resume", "--evaluate"):
                continue  # which do more than set a value
            value = [] if action.nargs == 0 else [str(action.choices[0] if action.choices else 3)]
            value = {"normalizer": ["softmax"], "keep_best": ["acc"]}.get(action.dest, value)
            for length in range(3, len(name)):
                prefix = name[:length]
                meant = sorted(other for other in actions if other.startswith(prefix))
                if prefix in actions:
                    continue  # an option of its own
                if meant == [name]:
                    for params in ([prefix, *value], ["=".join([prefix, *value])]):
                        assert vars(parser.parse_args(params)) == vars(parser.parse_args([name, *value]))
                        assert list(parser.given) == [action.dest]
                else:
                    with pytest.raises(SystemExit) as raised:
                        parser.parse_args([prefix, *value])
                    error = capsys.readouterr().err
                    assert raised.value.code == 2
                    assert error.count("\n") == 1
                    assert all(each in error for each in [f"ambiguous option: {prefix}", *meant])

    @pytest.mark.parametrize("entry", ENTRIES)
    def test_of_debug_shows_the_traceback_also_where_no_parser_was_reached(self, entry, capsys):
        def fail(params):
            raise ValueError("no parser yet")

        for name in ("--debug", "--debu", "--deb", "--de", "--d", "--no_cuda"):
            assert run(f"egg_sparse.zoo.{entry}", fail, [name, "--n_epochs=1"]) == 1
            assert ("Traceback" in capsys.readouterr().err) == name.startswith("--deb")

    @pytest.mark.parametrize("entry", ENTRIES)
    def test_as_the_user_types_them(self, entry, capsys):
        opts = train_of(entry).parse_options(["--n_ep", "3", "--vocab", "32", "--rand", "7", "--max_l=2", "--no_c"])
        assert (opts.n_epochs, opts.vocab_size, opts.random_seed, opts.max_len) == (3, 32, 7, 2)
        reads_it = entry in ("compo_vs_generalization", "signal_game")
        assert ("warning: --max_len has no effect" in capsys.readouterr().err) != reads_it

    def test_of_options_that_exclude_others(self, capsys, tmp_path):
        for params, named in (
            (["--res=run", "--ou=other"], ["--resume", "--out"]),
            (["--ev", "--res", "run"], ["--evaluate", "--resume"]),
            (["--ev", "--load=x.tar", "--preem"], ["--evaluate", "--preemptable"]),
            (["--ev"], ["--evaluate", "--load_from_checkpoint"]),
            (["--lat=3", "--vocab=4"], ["--latent_size", "--vocab_size"]),
        ):
            assert run(PROG, main, params) == 2
            error = capsys.readouterr().err
            assert error.count("\n") == 1
            assert all(name in error for name in named)
        assert not list(tmp_path.iterdir())

    @pytest.mark.slow
    def test_of_resume_and_evaluate(self, tmp_path):
        final = main([*SMALL, "--random_seed=3", "--vocab=9", "--ou=run"])
        assert json.loads((tmp_path / "run/opts.json").read_text())["vocab_size"] == 9
        again = main(["--ev", "--load=run/checkpoints/final.tar", "--no_c"])
        assert {**again, "seconds": 0} == {**final, "seconds": 0}
        main(["--res=run", "--n_ep", "2", "--no_c"])
        epochs = [json.loads(line)["epoch"] for line in (tmp_path / "run/metrics.jsonl").open()]
        assert epochs == [1, 1, 2, 2]

    def test_none_in_what_a_run_has_saved(self, capsys, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run/opts.json").write_text('{"n_ep": 3}')
        assert run(PROG, main, ["--resume=run"]) == 2
        assert "unrecognized arguments: --n_ep=3" in capsys.readouterr().err


def _keep(parsers, parser, util):
    add = getattr(util, "_add_common_options", None) or util._populate_cl_params
    add(parser)
    parsers.append(parser)
    raise StopIteration


class TestResults:
    PARAMS = (*SMALL, "--random_seed=3", "--out=run")

    def test_are_of_the_run_as_it_is(self, monkeypatch, tmp_path):
        """A run that goes on has none until it has ended again."""
        file = tmp_path / "run/results.json"
        first = main(list(self.PARAMS))
        assert json.loads(file.read_text()) == first
        with monkeypatch.context() as patch:
            patch.setattr(signal_game, "evaluate", _interrupted)
            with pytest.raises(KeyboardInterrupt):
                main(["--resume=run", "--n_epochs=2", "--no_cuda"])
        assert not file.exists()
        second = main(["--resume=run", "--no_cuda"])
        assert json.loads(file.read_text()) == second
        assert second["loss"] != first["loss"]

    def test_are_whole_or_not_there(self, monkeypatch, capsys, tmp_path):
        file = tmp_path / "run/results.json"
        main(list(self.PARAMS))
        before, replace = file.read_bytes(), os.replace

        def fail(source, target):
            if os.path.basename(target) == file.name:
                raise OSError(28, "No space left on device")
            replace(source, target)

        monkeypatch.setattr(os, "replace", fail)
        assert run(PROG, main, ["--resume=run", "--no_cuda"]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert all(name in error for name in (file.name, "No space left"))
        assert file.read_bytes() == before
        assert {path.name for path in file.parent.iterdir()} == {
            "opts.json", "metrics.jsonl", "costs.jsonl", "checkpoints", "curves.png", file.name,
        }  # fmt: skip

    def test_of_a_refused_run_stay(self, tmp_path):
        """They are not those of the run that claims the folder."""
        main(list(self.PARAMS))
        before = (tmp_path / "run/results.json").read_bytes()
        with pytest.raises(ValueError, match="--out"):
            run_folder.create(argparse.Namespace(mode="marg", random_seed=1, out="run"), "signal_game", goes_on=False)
        assert (tmp_path / "run/results.json").read_bytes() == before


def test_a_file_that_cannot_be_written_is_named_without_an_error_number(capsys, tmp_path):
    assert run("command", lambda _: (tmp_path / "no" / "file").open("wb"), []) == 1
    expected = f"command: error: cannot read or write {tmp_path}/no/file: No such file or directory"
    assert capsys.readouterr().err.strip() == expected


def _interrupted(*_):
    raise KeyboardInterrupt
