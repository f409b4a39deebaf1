"""Grids: the format of EGG's nest, and the mistakes in one."""

import itertools
import json
import pathlib
import sys

import pytest

from egg_sparse.sweep import grids

GRID = {
    "mode": ["marg", "sfe"],
    "lr": [0.01, -1],
    "no_cuda": True,
    "fp16": [False, True],
    "root": ["my data"],
    "n_epochs": 2,
}


def arguments(combinations):
    return [each.arguments() for each in combinations]


def test_combinations_are_those_of_eggs_nest():
    nest = pytest.importorskip("egg.nest.common", reason="EGG is not installed", exc_type=ImportError)
    assert arguments(grids.cross(GRID, "grid")) == nest.parse_json_sweep(GRID)
    for paths in grids.shipped().values():
        for path in paths:
            assert arguments(grids.read(path)) == nest.sweep(path)


def test_values_are_crossed_and_the_last_varies_fastest():
    expected = [
        [f"--mode={mode}", f"--lr={lr}", "--no_cuda", *fp16, "--root=my data", "--n_epochs=2"]
        for mode, lr, fp16 in itertools.product(("marg", "sfe"), ("0.01", "-1"), ([], ["--fp16"]))
    ]
    assert arguments(grids.cross(GRID, "grid")) == expected


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"lr": [0.1, 0.2],}', ["JSON", "line 1"]),
        ('["lr"]', ["object", "list"]),
        ('{"lr": []}', ["lr", "empty"]),
        ('{"lr": [[0.1]]}', ["lr", "[0.1]"]),
        ('{"lr": {"low": 1}}', ["lr", '{"low": 1}']),
        ('{"lr": [null]}', ["lr", "null"]),
        ('{"lr": [NaN]}', ["JSON", "NaN"]),
        ('{"lr": [1], "lr": [2]}', ["lr", "twice"]),
        ('{"--lr": [1]}', ["'--lr'", "dashes"]),
        ('{"lr 1": [1]}', ["'lr 1'"]),
        ('{"game": ["a", "b"]}', ["game", '["a", "b"]']),
        ("[" * 100_000, ["JSON"]),
        ("\x00\xff", ["JSON"]),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_file(text, named):
    pathlib.Path("grid.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"grid\.json") as raised:
        grids.load("grid.json")
    assert all(name in str(raised.value) for name in named)
    assert "\n" not in str(raised.value)


def test_a_missing_file_and_an_unknown_name_are_named():
    with pytest.raises(OSError, match=r"cannot read the grid no\.json"):
        grids.load("no.json")
    with pytest.raises(ValueError, match=r"'signal_game/digit'.*signal_game/digits"):
        grids.load("signal_game/digit")


def test_an_empty_grid_is_one_run_of_the_defaults():
    assert arguments(grids.cross({}, "grid")) == [[]]


def test_a_set_of_the_package_has_the_runs_of_all_its_grids_and_knows_its_experiment():
    whole = grids.load("semi_supervised_vae/paper")
    parts = [each for name in ("gs", "marg_softmax", "marg_sparsemax", "nvil", "sfe", "sumsample")
             for each in grids.load(f"semi_supervised_vae/paper/{name}")]  # fmt: skip
    assert arguments(whole) == arguments(parts)
    assert {each.game for each in whole} == {"semi_supervised_vae"}


class TestSeeds:
    def test_one_where_the_grid_has_none(self):
        assert arguments(grids.with_seeds(grids.cross({"lr": [1, 2]}, ""), None)) == [
            ["--lr=1", "--random_seed=1"],
            ["--lr=2", "--random_seed=1"],
        ]

    def test_of_the_grid(self):
        combinations = grids.cross({"random_seed": [7, 8], "lr": 1}, "")
        assert arguments(grids.with_seeds(combinations, None)) == arguments(combinations)

    def test_in_place_of_the_grids(self):
        combinations = grids.with_seeds(grids.cross({"random_seed": [7, 8, 9], "lr": [1, 2]}, ""), 2)
        assert arguments(combinations) == [
            [f"--lr={lr}", f"--random_seed={seed}"] for lr, seed in itertools.product((1, 2), (1, 2))
        ]


def write_module(text):
    pathlib.Path("own_grid.py").write_text(text)
    sys.modules.pop("own_grid", None)


def test_a_module_is_a_grid_as_in_eggs_nest(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(tmp_path))
    write_module("def grid():\n    for x in (1, 2):\n        yield [f'--x={x}', '--no_cuda']")
    assert arguments(grids.read_module("own_grid")) == [["--x=1", "--no_cuda"], ["--x=2", "--no_cuda"]]
    write_module("def grid():\n    return ['--x=1']")
    with pytest.raises(ValueError, match=r"own_grid must yield lists of options, got '--x=1'"):
        grids.read_module("own_grid")
    write_module("")
    with pytest.raises(ValueError, match=r"own_grid must have a function grid"):
        grids.read_module("own_grid")


def test_a_command_line_as_options_and_back():
    options = {"lr": "0.1", "no_cuda": True, "root": "my data"}
    assert grids.as_options(["--lr", "0.1", "--no_cuda", "--root=my data"]) == options
    assert grids.as_options(grids.as_arguments(options)) == options
    with pytest.raises(ValueError, match=r"'0\.2'"):
        grids.as_options(["--lr", "0.1", "0.2"])


def test_files_of_the_package_have_lists_alone():
    """So that each is an example of the format."""
    for path in grids.SHIPPED.rglob("*.json"):
        assert all(isinstance(values, list) for values in json.loads(path.read_text()).values()), path
