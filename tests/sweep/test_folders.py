"""The folder of a sweep: names, the list of runs, claims, and what is read of a run."""

import json
import pathlib
import subprocess
import sys

import pytest

from egg_sparse.sweep import experiments, folders, grids

ROOT = pathlib.Path("root")


def runs_of(grid, extra=(), game="toy_experiment"):
    return experiments.check(grids.with_seeds(grids.cross(grid, "grid"), None), game, extra)[0]


def plan(grid, extra=(), **options):
    return [str(path.relative_to(ROOT)) for path in folders.plan(ROOT, "name", runs_of(grid, extra), **options)]


class TestPlan:
    def test_folders_are_named_by_what_varies_and_the_seed(self):
        grid = {"x": [1, 2], "wait": 0, "random_seed": [1, 2]}
        assert plan(grid) == ["x=1,seed=1", "x=1,seed=2", "x=2,seed=1", "x=2,seed=2"]

    def test_a_flag_and_signs_that_a_shell_reads(self):
        assert plan({"title": ["a b/c$'", "../x"], "fail": [False, True]}) == [
            "title=a_b_c_,fail=False,seed=1",
            "title=a_b_c_,fail=True,seed=1",
            "title=.._x,fail=False,seed=1",
            "title=.._x,fail=True,seed=1",
        ]

    def test_long_and_equal_names_stay_different(self):
        names = plan({"title": ["x" * 300 + "1", "x" * 300 + "2", "a/b", "a:b"]})
        assert len(set(names)) == 4
        assert names[2:] == ["title=a_b,seed=1", "title=a_b,seed=1-2"]
        assert all(len(name) <= folders.NAME_LENGTH for name in names)

    def test_a_run_keeps_its_folder_whatever_else_the_grid_gets(self):
        assert plan({"x": [1, 2]}) == ["x=1,seed=1", "x=2,seed=1"]
        assert plan({"title": ["none", "new"], "x": [2, 3]}) == [
            "x=2,seed=1",
            "x=3,title=none,seed=1",
            "x=2,title=new,seed=1",
            "x=3,title=new,seed=1",
        ]
        assert plan({"x": [3, 2, 1]}) == ["x=3,title=none,seed=1", "x=2,seed=1", "x=1,seed=1"]
        assert len(json.loads((ROOT / "sweep.json").read_text())["runs"]) == 5

    def test_options_after_the_dashes_make_another_run(self):
        assert plan({"x": [1, 2]}) == ["x=1,seed=1", "x=2,seed=1"]
        assert plan({"x": [1, 2]}, ["--wait", "1"]) == ["x=1,wait=1,seed=1", "x=2,wait=1,seed=1"]

    def test_of_two_experiments_each_has_the_names_of_its_options(self):
        runs = [*runs_of({"x": [1, 2]}), *runs_of({"lr": 0.1, "n_epochs": 2}, game="signal_game")]
        assert [path.name for path in folders.plan(ROOT, "name", runs)] == [
            "game=toy_experiment,x=1,seed=1",
            "game=toy_experiment,x=2,seed=1",
            "game=signal_game,seed=1",
        ]

    def test_the_list_of_runs_says_their_options(self):
        plan({"x": [1, -2], "no_cuda": True})
        entries = json.loads((ROOT / "sweep.json").read_text())["runs"]
        assert [entry["options"] for entry in entries] == [
            {"x": 1, "no_cuda": True, "random_seed": 1},
            {"x": -2, "no_cuda": True, "random_seed": 1},
        ]
        assert entries[1]["arguments"] == ["--x=-2", "--no_cuda", "--random_seed=1"]
        assert {entry["game"] for entry in entries} == {"toy_experiment"}

    def test_a_preview_writes_nothing(self):
        assert plan({"x": [1]}, write=False) == ["seed=1"]
        assert not ROOT.exists()

    @pytest.mark.parametrize(
        "content",
        [
            "{",
            "[]",
            '{"runs": [1]}',
            '{"runs": [{"folder": 1, "key": "", "options": {}}]}',
            *(
                json.dumps({"runs": [{"folder": folder, "key": "", "module": "", "options": {}}]})
                for folder in ("", ".", "..", "../other", "/tmp/other", ".submitit", "a/b")
            ),
        ],
    )
    def test_a_damaged_list_is_refused(self, content):
        ROOT.mkdir()
        (ROOT / "sweep.json").write_text(content)
        with pytest.raises(ValueError, match=r"sweep\.json is damaged"):
            plan({"x": [1]})

    def test_a_root_that_cannot_be_written_to_is_refused(self):
        ROOT.write_text("")
        with pytest.raises(OSError, match="--root"):
            plan({"x": [1]})

    def test_a_folder_with_a_run_of_other_options_is_refused(self):
        (run,) = runs_of({"lr": 0.1}, game="signal_game")
        (folder,) = folders.plan(ROOT, "name", [run])
        folder.mkdir()
        for lr in (0.1, 0.2):
            (folder / "opts.json").write_text(json.dumps({**run.options, "lr": lr}))
            if lr == 0.1:
                folders.plan(ROOT, "name", [run])
        with pytest.raises(ValueError, match=r"--lr 0\.2, expected 0\.1"):
            folders.plan(ROOT, "name", [run])


HOLD = """
import fcntl, os, time
os.mkdir("run")
file = open("run/.lock", "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("taken", flush=True)
time.sleep(60)
"""


def test_a_claim_is_of_one_process_and_ends_with_it():
    folder = pathlib.Path("run")
    assert not folders.is_claimed(folder)
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"taken\n"
        assert folders.is_claimed(folder)
        assert not folders.Claim(folder).take(patience=0.1)
        process.kill()
    claim = folders.Claim(folder)
    assert claim.take()
    assert folders.is_claimed(folder)
    claim.release()
    assert not folders.is_claimed(folder)


class TestWhatIsRead:
    def test_results_are_those_of_a_run_that_has_options_too(self):
        (run,) = runs_of({}, game="signal_game")
        ROOT.mkdir()
        for content, expected in (("{", None), ("[1]", None), ('{"acc": 1}', {"acc": 1})):
            (ROOT / "results.json").write_text(content)
            assert folders.results(run, ROOT) is None
            (ROOT / "opts.json").write_text("{}")
            assert folders.results(run, ROOT) == expected
            (ROOT / "opts.json").unlink()

    def test_results_of_another_module_are_its_last_line_of_json(self):
        one, other = runs_of({"x": [1, 2]})
        ROOT.mkdir()
        (ROOT / "log.txt").write_text('{"acc": 1}\n{"acc": 2}\n# end\n')
        for state, expected in (("running", None), ("failed", None), ("done", {"acc": 2})):
            folders.write_record(ROOT, state=state, key=one.key)
            assert folders.results(one, ROOT) == expected
            assert folders.results(other, ROOT) is None

    def test_progress_is_the_last_whole_line(self):
        assert folders.progress(ROOT) == {}
        ROOT.mkdir()
        (ROOT / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
        assert folders.progress(ROOT) == {"epoch": 2}

    def test_the_error_is_that_of_the_last_job(self):
        log = pathlib.Path("log.txt")
        assert folders.last_error(log) == ""
        log.write_text("# $ a\nprog.x: error: first\n# $ b\nprog.x: error: second: of it\nlast\n")
        assert folders.last_error(log) == "second: of it"
        log.write_text("# $ a\nprog.x: error: first\n# $ b\nlast\n")
        assert folders.last_error(log) == ""

    @pytest.mark.parametrize("content", ["", "{", "[1]", '{"started": "x"}', '{"pid": []}'])
    def test_a_damaged_record_is_none(self, content):
        ROOT.mkdir()
        (ROOT / folders.RECORD).write_text(content)
        assert folders.read_record(ROOT) == {}
