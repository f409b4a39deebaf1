"""Shared fixtures: both hosts, seeds, and what is skipped where."""

import os
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from egg_sparse import host, standin
from egg_sparse.mappings.topk import candidates_and_steps

if "PYTEST_XDIST_WORKER" in os.environ:
    # processes of several threads each would wait for one another on the same cores
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture
def egg() -> ModuleType:
    """The real egg.core; skips where it is not installed."""
    return pytest.importorskip("egg.core", reason="EGG is not installed", exc_type=ImportError)


@pytest.fixture(params=["standin", "egg"])
def core(request) -> ModuleType:
    """egg_sparse's stand-in, and the real egg.core where it is installed."""
    return standin if request.param == "standin" else request.getfixturevalue("egg")


@pytest.fixture
def accelerator() -> Iterator:
    """An emulated GPU, see ``tests/emulated_accelerator.py``; what is made on it stays behind when the test ends."""
    from emulated_accelerator import emulated

    with emulated() as device:
        yield device
    candidates_and_steps.cache_clear()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def pytest_report_header() -> str:
    return f"egg_sparse host: {host.describe()} (EGG_SPARSE_HOST={os.environ.get('EGG_SPARSE_HOST', '')!r})"


def pytest_collection_modifyitems(items) -> None:
    if not os.environ.get("EGG_SPARSE_LONG"):
        for item in items:
            if "long" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="runs with EGG_SPARSE_LONG=1"))
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
