"""Which experiment a run is of."""

import importlib
import pathlib

import pytest

import egg_sparse.zoo
from egg_sparse.report import experiments as shown
from egg_sparse.zoo.experiments import EXPERIMENTS, experiment_of


def test_all_folders_of_experiments_are_known():
    folders = {path.parent.name for path in pathlib.Path(egg_sparse.zoo.__file__).parent.glob("*/train.py")}
    assert folders == set(EXPERIMENTS) == {each.name for each in shown.EXPERIMENTS}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_one_is_known_by_its_options(experiment):
    """All options of the real parser, which has none of the others' own."""
    parser = importlib.import_module(f"egg_sparse.zoo.{experiment}.train").build_parser()
    options = {action.dest: None for action in parser._actions}
    assert [name for name, own in EXPERIMENTS.items() if own in options] == [experiment]
    assert experiment_of(options) == shown.of(options).name == experiment


def test_others_are_of_none():
    assert experiment_of({"mode": "mine"}) is None
