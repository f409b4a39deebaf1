"""What is read of run folders, and what is said of damaged ones."""

import json
import os

import pytest

from egg_sparse.report import runs


def test_finds_runs_at_any_depth_once(write_run, tmp_path):
    names = ["a", "deep/er/b", "c"]
    folders = [write_run(name) for name in names]
    (folders[0] / "checkpoints").mkdir()
    (folders[0] / "checkpoints/opts.json").write_text("{}")
    found = runs.find([tmp_path / "runs", folders[1], tmp_path])
    assert sorted(map(str, found)) == sorted(map(str, folders))


def test_links_in_a_circle_end(write_run, tmp_path):
    folder = write_run("a")
    os.symlink(tmp_path / "runs", folder / "again")
    assert runs.find([tmp_path]) == [folder]


def test_nothing_to_find(tmp_path):
    with pytest.raises(ValueError, match=f"FOLDER.*{tmp_path}"):
        runs.find([tmp_path])
    with pytest.raises(FileNotFoundError, match=r"FOLDER.*nowhere"):
        runs.find([tmp_path / "nowhere"])


def test_a_whole_run(write_run):
    run = runs.read(write_run("a", random_seed=7))
    assert run.fault is None
    assert (run.mode, run.seed, run.experiment.name) == ("marg", 7, "signal_game")
    assert run.results["acc"] == 0.5
    assert [record["epoch"] for record in run.metrics] == [1, 1, 2, 2]
    assert [record["examples"] for record in run.costs] == [100, 200]


def spoil(file, text):
    return lambda folder: (folder / file).write_text(text)


def append(file, text):
    return lambda folder: (folder / file).write_text((folder / file).read_text() + text)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "results.json").unlink(), ("results.json", "2 of 2")),
        (append("metrics.jsonl", '{"epoch": 3, "lo'), ("metrics.jsonl", "a line")),
        (append("metrics.jsonl", "[1]\nnull\n"), ("metrics.jsonl", "2 lines")),
        (append("metrics.jsonl", '{"epoch": true}\n'), ("metrics.jsonl", "a line")),
        (append("costs.jsonl", '{"epoch": '), ("costs.jsonl", "a line")),
        (append("metrics.jsonl", '{"epoch": 3, "mode": "train", "acc": NaN}\n'), ("acc", "epoch 3", "nan")),
        (spoil("results.json", '{"acc": NaN}'), ("acc", "nan")),
        (spoil("results.json", '{"acc": -Infinity}'), ("acc", "-inf")),
        (spoil("results.json", f'{{"acc": 1{"0" * 400}}}'), ("acc", "not finite")),
        (spoil("results.json", '{"acc": 0.5'), ("results.json", "JSON")),
        (spoil("results.json", "[" * 100_000), ("results.json", "JSON")),
        (spoil("results.json", "[0.5]"), ("results.json", "one object")),
        (spoil("opts.json", "{"), ("opts.json", "JSON")),
        (spoil("opts.json", '{"mode": ["marg"]}'), ("opts.json", "plain values")),
        (lambda folder: (folder / "metrics.jsonl").write_bytes(b"\xff\xfe\n"), ("metrics.jsonl", "a line")),
        (lambda folder: (folder / "results.json").write_bytes(b"\xff\xfe"), ("results.json",)),
    ],
)
def test_damage_is_named_in_a_sentence(damage, words, write_run):
    folder = write_run("a")
    damage(folder)
    fault = runs.read(folder).fault
    assert all(word in fault for word in words), fault
    assert "\n" not in fault
    assert str(folder) not in fault


def test_runs_of_older_versions_have_no_costs(write_run):
    run = runs.read(write_run("a", costs=False))
    assert run.fault is None
    assert not run.costs


def test_the_frame_has_all(write_run):
    frame = runs.frame([runs.read(write_run("a")), runs.read(write_run("b", lr=0.5, results={"lr": 3.0}))])
    assert frame["lr"].tolist() == [0.005, 0.5]
    assert frame["lr_result"].tolist()[1] == 3.0
    assert frame["acc"].tolist() == [0.5, 0.5]
    assert frame["mode"].tolist() == ["marg", "marg"]


def test_other_runs_are_read_too(tmp_path):
    (tmp_path / "opts.json").write_text(json.dumps({"mode": "mine"}))
    (tmp_path / "results.json").write_text(json.dumps({"score": 2.0}))
    run = runs.read(tmp_path)
    assert run.fault is None
    assert run.experiment.name == ""
