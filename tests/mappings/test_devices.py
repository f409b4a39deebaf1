"""Mappings to bit-vectors give the same results in NumPy, in PyTorch and on CUDA, with few synchronizations."""

import warnings

import pytest
import torch

from egg_sparse.mappings import arrays as small_arrays
from egg_sparse.mappings import (
    sequence_distribution,
    sparsemap_bit_vectors,
    sparsemap_chain,
    sparsemap_marginals,
    topk_bit_vectors,
    topk_sparsemax,
)

MAX_LEN = 3


class Rotating:
    """A decoder whose scores rotate by one symbol per step."""

    def begin(self, scores):
        return scores

    def step(self, scores, symbols):
        return scores, scores.roll(1, 1) + (0 if symbols is None else 0.01 * symbols[:, None])


def expected_counts(x, **options):
    """How often a message of several symbols has each symbol, ``(B, V)``."""
    d = sequence_distribution(Rotating(), 0.7 * x, max_len=MAX_LEN, **options)
    return d.expectation(torch.nn.functional.one_hot(d.messages, x.shape[1]).sum(2).to(d.probs))


MAPPINGS = {
    "sequences": expected_counts,
    "systematic": lambda x: sparsemap_bit_vectors(x).mean,
    "threshold": lambda x: sparsemap_bit_vectors(x, None, "threshold").mean,
    "budget": lambda x: sparsemap_bit_vectors(x, 5).mean,
    "active set": lambda x: sparsemap_bit_vectors(x, 5, "active_set").mean,
    "chain": lambda x: sparsemap_chain(x, x[:, 1:]).mean,
    "marginals": lambda x: sparsemap_marginals(x, 5),
    "top-k sparsemax": lambda x: topk_sparsemax(x, 10).mean,
    "top-k": lambda x: topk_bit_vectors(x, 10)[1],
}


DISTRIBUTIONS = {
    "systematic": sparsemap_bit_vectors,
    "threshold": lambda x: sparsemap_bit_vectors(x, None, "threshold"),
    "budget": lambda x: sparsemap_bit_vectors(x, 5),
    "no bit": lambda x: sparsemap_bit_vectors(x, 0),
    "active set": lambda x: sparsemap_bit_vectors(x, None, "active_set"),
    "active set, budget": lambda x: sparsemap_bit_vectors(x, 5, "active_set"),
    "chain": lambda x: sparsemap_chain(x, x[:, 1:]),
    "chain, active set": lambda x: sparsemap_chain(x, x[:, 1:], "active_set"),
    "top-k sparsemax": lambda x: topk_sparsemax(x, 10),
}


def solved(mapping, x, weights):
    """The distribution, and the gradient of an expectation that is not linear in the bits."""
    d = mapping(x)
    pairs = (d.messages.double() @ weights * d.messages.double()).sum(-1)
    return d.messages, d.probs.detach(), torch.autograd.grad((d.probs * pairs).sum(), x)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_numpy_and_pytorch_agree(monkeypatch, name, dtype):
    for batch, n_bits in ((16, 12), (3, 80), (0, 4)):
        x = (0.8 * torch.randn(batch, n_bits, dtype=dtype)).requires_grad_()
        weights = torch.randn(n_bits, n_bits, dtype=torch.float64)
        with_numpy = solved(DISTRIBUTIONS[name], x, weights)
        monkeypatch.setattr(small_arrays, "NUMPY_ON_CPU", False)
        with_pytorch = solved(DISTRIBUTIONS[name], x, weights)
        monkeypatch.setattr(small_arrays, "NUMPY_ON_CPU", True)
        assert torch.equal(with_numpy[0], with_pytorch[0])
        tolerance = 1e-5 if dtype == torch.float32 else 1e-9
        for one, other in zip(with_numpy[1:], with_pytorch[1:], strict=True):
            torch.testing.assert_close(one, other, atol=tolerance, rtol=1e-4 if dtype == torch.float32 else 1e-8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", MAPPINGS)
def test_cpu_and_cuda_agree(name):
    x = torch.randn(32, 20, dtype=torch.float64, requires_grad=True)
    results = [MAPPINGS[name](x.to(device)) for device in ("cpu", "cuda")]
    torch.testing.assert_close(results[0], results[1].cpu(), atol=1e-6, rtol=0)
    weights = torch.randn_like(results[0])
    grads = [torch.autograd.grad((result.cpu() * weights).sum(), x)[0] for result in results]
    torch.testing.assert_close(*grads, atol=1e-6, rtol=0)
    with torch.autocast("cuda", dtype=torch.float16):
        assert MAPPINGS[name](x.detach().half().cuda()).dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["systematic", "threshold", "budget", "top-k sparsemax", "top-k"])
def test_one_synchronization(name):
    x = torch.randn(32, 20, device="cuda")
    MAPPINGS[name](x)
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        MAPPINGS[name](x)
    torch.cuda.set_sync_debug_mode("default")
    assert sum("synchronizing" in str(warning.message) for warning in caught) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_synchronization_per_symbol_of_a_sequence():
    x = torch.randn(32, 20, device="cuda")
    expected_counts(x, max_support=8)
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        expected_counts(x, max_support=8)
    torch.cuda.set_sync_debug_mode("default")
    assert sum("synchronizing" in str(warning.message) for warning in caught) <= MAX_LEN + 1
