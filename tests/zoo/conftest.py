"""Fixtures of the zoo's tests: each runs in a folder of its own, and may play few games in validation and test."""

import pytest

from egg_sparse.zoo.signal_game import train as signal_game


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def few_test_games(monkeypatch):
    monkeypatch.setattr(signal_game, "TEST_GAMES", 64)
    monkeypatch.setattr(signal_game, "VALIDATION_GAMES", 64)
