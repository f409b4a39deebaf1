"""The native solvers against lp-sparsemap, and the error if it is not installed."""

import sys

import pytest
import torch
from torch import nn

from egg_sparse import SparseMAPBitVectorWrapper
from egg_sparse.mappings import sparsemap_bit_vectors, sparsemap_chain, sparsemap_marginals


@pytest.fixture
def lpsmap():
    return pytest.importorskip("lpsmap", reason="lp-sparsemap is not installed")


def close(first, second):
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


@pytest.mark.parametrize("n_bits", [1, 2, 8, 32])
@pytest.mark.parametrize("decomposition", ["systematic", "threshold", "active_set"])
def test_bits(lpsmap, n_bits, decomposition):
    x = torch.randn(8, n_bits, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(8, n_bits, dtype=torch.float64)
    d = sparsemap_bit_vectors(x, None, decomposition, solver="lpsmap")
    close(d.mean, sparsemap_marginals(x))
    if n_bits > 8:
        return  # an active set that stops at a tolerance has a gradient within its support alone
    grads = [torch.autograd.grad((mu * weights).sum(), x)[0] for mu in (d.mean, sparsemap_marginals(x))]
    close(*grads)


@pytest.mark.parametrize("budget", [1, 3, 8, 12])
def test_budget(lpsmap, budget):
    x = torch.randn(8, 12, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(8, 12, dtype=torch.float64)
    d = sparsemap_bit_vectors(x, budget, solver="lpsmap")
    assert (d.messages.sum(-1)[d.mask] <= budget).all()
    close(d.mean, sparsemap_marginals(x, budget))
    grads = [torch.autograd.grad((mu * weights).sum(), x)[0] for mu in (d.mean, sparsemap_marginals(x, budget))]
    close(*grads)


@pytest.mark.parametrize("n_bits", [1, 2, 8, 20])
def test_chain(lpsmap, n_bits):
    x = torch.randn(8, n_bits, dtype=torch.float64, requires_grad=True)
    transitions = torch.randn(8, n_bits - 1, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(8, n_bits, dtype=torch.float64)
    theirs, ours = (sparsemap_chain(x, transitions, solver=solver) for solver in ("lpsmap", "native"))
    close(theirs.mean, ours.mean)
    for first, second in zip(
        *(torch.autograd.grad((d.mean * weights).sum(), (x, transitions)) for d in (theirs, ours)), strict=True
    ):
        close(first, second)


def test_types_and_empty_batches(lpsmap):
    d = sparsemap_bit_vectors(torch.randn(3, 4), None, "active_set", solver="lpsmap")
    assert d.probs.dtype == d.messages.dtype == torch.float32
    for budget in (None, 2):
        assert sparsemap_bit_vectors(torch.zeros(0, 4), budget, solver="lpsmap").mode.shape == (0, 4)


def test_wrapper(lpsmap):
    wrapper = SparseMAPBitVectorWrapper(nn.Linear(5, 6), decomposition="active_set", solver="lpsmap")
    d = wrapper(torch.randn(3, 5))
    d.entropy().sum().backward()
    assert torch.isfinite(wrapper.agent.weight.grad).all()


def test_says_how_to_get_it(monkeypatch):
    for name in ("lpsmap", "lpsmap.ad3ext", "lpsmap.ad3ext.sequence", "lpsmap.ad3qp", "lpsmap.ad3qp.factor_graph"):
        monkeypatch.setitem(sys.modules, name, None)
    message = r'solver="lpsmap" needs the lp-sparsemap package, which is not installed: .*docs/lp-sparsemap.md'
    for call in (
        lambda: sparsemap_bit_vectors(torch.zeros(1, 2), solver="lpsmap"),
        lambda: sparsemap_bit_vectors(torch.zeros(1, 2), budget=1, solver="lpsmap"),
        lambda: sparsemap_chain(torch.zeros(1, 2), torch.zeros(1), solver="lpsmap"),
        lambda: SparseMAPBitVectorWrapper(nn.Linear(2, 2), solver="lpsmap"),
    ):
        with pytest.raises(ImportError, match=message):
            call()


def test_refuses_an_active_set_with_a_budget():
    with pytest.raises(ValueError, match='solver "lpsmap" has marginals for a budget, but no active set'):
        sparsemap_bit_vectors(torch.zeros(1, 2), 1, "active_set", solver="lpsmap")


@pytest.mark.parametrize("options", [{}, {"budget": 1}, {"decomposition": "active_set"}])
def test_refuses_scores_before_it_is_asked(options):
    with pytest.raises(ValueError, match=r"scores.*2 of 2"):
        sparsemap_bit_vectors(torch.full((1, 2), torch.nan), **options, solver="lpsmap")
