"""Fixtures of the sweeps' tests: each runs in a folder of its own, where processes find the toy experiment."""

import os
import pathlib
import signal
import sys

import pytest

import egg_sparse

HERE = pathlib.Path(__file__).parent


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [str(HERE), str(pathlib.Path(egg_sparse.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def interrupts():
    """Ctrl-C interrupts, also in a shell that runs the tests in the background and ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Commands of SLURM on the PATH, which run jobs here; the folder where they keep their account."""
    sys.modules.pop("fake_slurm", None)
    import fake_slurm

    for name, value in fake_slurm.install(tmp_path / "slurm").items():
        monkeypatch.setenv(name, value)
    return tmp_path / "slurm"
