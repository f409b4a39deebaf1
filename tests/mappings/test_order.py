"""The order of rows equals that of a stable torch.sort, also for ties, zeros and extreme values."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from egg_sparse.mappings import topk_bit_vectors
from egg_sparse.mappings.arrays import as_array, as_tensor
from egg_sparse.mappings.order import descending, order


def ascending(values, n=None):
    return as_tensor(order(as_array(values), n))


VALUES = st.sampled_from([0.0, 1e-45, 1e-30, 0.25, 1.0, 1.0000001, 2.0, 1e30]) | st.floats(0, 2.0**100, width=32)


@given(
    arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=VALUES),
    st.sampled_from([torch.float32, torch.float64]),
    st.data(),
)
def test_equals_a_stable_sort(values, dtype, data):
    values = torch.from_numpy(values).to(dtype)
    n = data.draw(st.none() | st.integers(1, values.shape[1]))
    assert torch.equal(ascending(values, n), values.sort(dim=1, stable=True).indices[:, :n])
    assert torch.equal(descending(values, n), values.sort(dim=1, stable=True, descending=True).indices[:, :n])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_few_of_many(dtype):
    for digits in (0, 1, 6):  # many ties, few, none
        values = (10**digits * torch.rand(5, 700, dtype=dtype)).round()
        for n in (1, 7, 174, 175, 699, 700):
            assert torch.equal(ascending(values, n), values.sort(dim=1, stable=True).indices[:, :n])
            assert torch.equal(descending(values, n), values.sort(dim=1, stable=True, descending=True).indices[:, :n])


def test_negative_zeros_are_zeros():
    values = torch.tensor([[0.0, -0.0, 0.0, -0.0]])
    assert ascending(values).tolist() == descending(values).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("shape", [(0, 5), (3, 1)])
def test_edges(shape):
    assert ascending(torch.zeros(shape)).tolist() == [[0]] * 3 * (shape[0] > 0)


def test_where_no_array_can_be_had():
    """Within torch.func's transforms PyTorch sorts, as it does on other devices."""
    scores = torch.randn(4, 30, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    for k in (3, 40):
        direct = scores.clone().requires_grad_()
        topk_bit_vectors(direct, k)[1].pow(2).sum().backward()
        transformed = torch.func.grad(lambda x, k=k: topk_bit_vectors(x, k)[1].pow(2).sum())(scores)
        torch.testing.assert_close(transformed, direct.grad)
