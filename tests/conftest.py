"""Shared fixtures: both hosts, and a small game that any of them can play."""

import argparse
import importlib
import os
from types import ModuleType

import pytest
import torch

from egg_sparse import host, standin


def real_egg() -> ModuleType | None:
    try:
        return importlib.import_module("egg.core")
    except Exception:
        return None


@pytest.fixture(params=["standin", "egg"])
def core(request):
    """egg_sparse's stand-in, and the real egg.core where it is installed."""
    if request.param == "standin":
        return standin
    core = real_egg()
    if core is None:
        pytest.skip("EGG is not installed")
    return core


@pytest.fixture
def opts(tmp_path, monkeypatch) -> argparse.Namespace:
    """Options of a fresh run on this process' host, with nothing left in the working folder."""
    monkeypatch.chdir(tmp_path)
    return host.core.init(params=["--random_seed=7"])


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def pytest_report_header() -> str:
    return f"egg_sparse host: {host.describe()} (EGG_SPARSE_HOST={os.environ.get('EGG_SPARSE_HOST', '')!r})"


def pytest_collection_modifyitems(items) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
