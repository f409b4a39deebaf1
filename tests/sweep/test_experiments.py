"""The check of all combinations before anything starts."""

import pathlib

import pytest

from egg_sparse.sweep import experiments, grids


def check(grid, game="signal_game", extra=()):
    return experiments.check(grids.with_seeds(grids.cross(grid, "grid"), None), game, extra)


@pytest.mark.parametrize("name", [name for name in grids.shipped() if name.count("/") == 1])
def test_experiments_accept_every_combination_of_the_packages_grids(name):
    """Of one seed each, which is parsed alike."""
    combinations = grids.with_seeds(grids.load(name), 1)
    runs, warnings = experiments.check(combinations, None, [])
    assert len(runs) == len(combinations) > 0
    assert not warnings, "no grid gives an option that has no effect"
    for run, combination in zip(runs, combinations, strict=True):
        for option, value in combination.options.items():
            assert option == "latent_size" or run.options[option] in (value, str(value))
    assert experiments.check(combinations[:1], None, ["--n_epochs", "1"])[0][0].options["n_epochs"] == 1


@pytest.mark.parametrize(
    ("grid", "named"),
    [
        ({"lr": [0.1, -1]}, ["--lr=-1", "argument --lr", "'-1'"]),
        ({"no_such": 1}, ["signal_game", "--no_such=1", "unrecognized"]),
        ({"mode": "nvil", "max_len": 2}, ["--max_len must be 1 in mode nvil"]),
        ({"no_cuda": "yes"}, ["--no_cuda", "yes"]),
        ({"latent_size": 3, "vocab_size": 4}, ["--latent_size", "--vocab_size"]),
        ({"out": "here"}, ["--out", "sweep"]),
        ({"ou": "here"}, ["--out", "sweep"]),
        ({"preemptable": True, "out": "here"}, ["sweep"]),
        ({"checkpoint_dir": "here"}, ["--checkpoint_dir", "sweep"]),
        ({"resume": "here"}, ["here"]),
    ],
)
def test_a_combination_that_is_refused_is_named(grid, named):
    with pytest.raises(ValueError, match="grid") as raised:
        check(grid)
    assert all(name in str(raised.value) for name in named)
    assert "\n" not in str(raised.value)
    assert not list(pathlib.Path().iterdir())


@pytest.mark.parametrize(
    ("grid", "extra"),
    [
        ({"lr": [0.1, 0.1]}, []),
        ({"lr": [0.1, "1e-1"]}, []),
        ({"mode": "sfe", "tau_s": [10, "10.0"]}, []),
        ({"n_epochs": [1, 2]}, ["--n_epochs=3"]),
        ({"random_seed": [1, 2]}, ["--rand", "3"]),
    ],
)
def test_the_same_run_twice_is_refused_however_it_is_written(grid, extra):
    with pytest.raises(ValueError, match="the same run is there twice"):
        check(grid, extra=extra)


def test_the_same_run_by_two_names_of_an_option():
    combinations = [*grids.cross({"temperature": 10}, "a"), *grids.cross({"tau_s": 10}, "b")]
    with pytest.raises(ValueError, match=r"twice: --temperature=10 --random_seed=1 in a, and --tau_s=10 .* in b"):
        experiments.check(grids.with_seeds(combinations, None), "signal_game", [])


def test_options_without_effect_draw_one_warning_each(capsys):
    _, warnings = check({"mode": ["marg", "sfe"], "gs_tau": [1, 2], "random_seed": [1, 2]})
    assert warnings == ["--gs_tau has no effect in mode marg", "--gs_tau has no effect in mode sfe"]
    assert capsys.readouterr() == ("", "")


class TestWhichExperiment:
    def test_names_of_the_zoo(self):
        for name in ("signal_game", "egg_sparse.zoo.signal_game", "egg_sparse.zoo.signal_game.train"):
            assert experiments.find(name) == experiments.Experiment(
                "signal_game", "egg_sparse.zoo.signal_game.train", True
            )

    @pytest.mark.parametrize(
        ("game", "named"), [("no.such", ["--game", "no.such"]), ("json", ["main", "json"]), ("", ["--game"])]
    )
    def test_others_are_refused(self, game, named):
        with pytest.raises((ValueError, TypeError)) as raised:
            check({}, game)
        assert all(name in str(raised.value) for name in named)

    def test_none_is_refused(self):
        with pytest.raises(ValueError, match="--game"):
            check({}, None)
        with pytest.raises(ValueError, match="nothing to run"):
            experiments.check([], "signal_game", [])

    def test_another_than_the_grids_is_refused(self):
        with pytest.raises(ValueError, match=r"--game is bit_vector_vae, but the grid .* is of signal_game"):
            experiments.check(grids.load("signal_game/digits/nvil"), "bit_vector_vae", [])
        experiments.check(grids.load("signal_game/digits/nvil"), "egg_sparse.zoo.signal_game.train", [])


class TestModulesOutsideTheZoo:
    def test_are_parsed_and_not_run(self):
        runs, _ = check({"x": [1, 2], "no_cuda": True}, "toy_experiment")
        assert [run.options["x"] for run in runs] == [1, 2]
        assert not pathlib.Path("ran").exists()

    def test_refuse_what_they_refuse(self):
        with pytest.raises(ValueError, match=r"toy_experiment --x=a .*invalid int value: 'a'"):
            check({"x": ["a"]}, "toy_experiment")

    def test_eggs_own(self):
        pytest.importorskip("egg.core", reason="EGG is not installed", exc_type=ImportError)
        runs, _ = check({"vocab_size": [3, 4]}, "egg.zoo.simple_autoenc.train")
        assert [run.options["vocab_size"] for run in runs] == [3, 4]
        assert {"checkpoint_dir", "preemptable"} <= runs[0].names
        with pytest.raises(ValueError, match="--no_such"):
            check({"no_such": 1}, "egg.zoo.simple_autoenc.train")
