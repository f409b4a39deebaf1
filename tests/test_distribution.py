import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from egg_sparse import SparseDistribution


def symbols(probs=((0.6, 1.0, 0.5), (0.3, 0.0, 0.5), (0.1, 0.0, 0.0)), dtype=torch.float64):
    messages = torch.tensor([[3, 7, 1], [5, 2, 0], [4, 9, 8]])
    return SparseDistribution(messages, torch.tensor(probs, dtype=dtype))


def test_shapes_and_support():
    d = symbols()
    assert d.batch_shape == (3,)
    assert d.event_shape == ()
    assert d.support_size.tolist() == [3, 1, 2]
    assert d.mode.tolist() == [3, 7, 1]
    assert torch.equal(d.enumerate_support(), d.messages)
    with pytest.raises(ValueError, match="support of its own"):
        d.enumerate_support(expand=False)


def test_expectation_is_the_sum_over_terms():
    d = symbols()
    values = torch.randn(3, 3, 2, 4, dtype=torch.float64)
    slow = torch.stack([sum(d.probs[k, b] * values[k, b] for k in range(3)) for b in range(3)])
    torch.testing.assert_close(d.expectation(values), slow)
    with pytest.raises(ValueError, match=r"values must start with \(K, B\) = \(3, 3\)"):
        d.expectation(values[:2])


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_padding_never_leaks(garbage):
    d = symbols()
    probs = d.probs.clone().requires_grad_()
    values = torch.ones(3, 3, dtype=torch.float64)
    values[~d.mask] = garbage
    values.requires_grad_()
    padded = SparseDistribution(d.messages, probs, validate_args=False)
    result = padded.expectation(values)
    torch.testing.assert_close(result, torch.ones(3, dtype=torch.float64))
    result.sum().backward()
    assert torch.equal(probs.grad, d.mask.double())
    torch.testing.assert_close(values.grad, d.probs)


def test_entropy_value_and_gradient():
    d = symbols()
    expected = [-sum(p * math.log(p) for p in column if p) for column in d.probs.t().tolist()]
    torch.testing.assert_close(d.entropy(), torch.tensor(expected, dtype=torch.float64))
    probs = d.probs.clone().requires_grad_()
    SparseDistribution(d.messages, probs, validate_args=False).entropy().sum().backward()
    assert torch.isfinite(probs.grad).all()
    torch.testing.assert_close(probs.grad[d.mask], -(d.probs[d.mask].log() + 1))
    assert math.copysign(1, float(symbols().entropy()[1])) == 1, "an entropy of -0.0 looks wrong in a log"


def test_log_prob():
    d = symbols()
    assert d.log_prob(torch.tensor([5, 7, 2]))[:2].exp().tolist() == pytest.approx([0.3, 1.0])
    assert d.log_prob(torch.tensor([5, 7, 2]))[2] == -math.inf
    assert d.log_prob(torch.tensor([3, 9, 8])).exp().tolist() == pytest.approx([0.6, 0.0, 0.0]), "9 and 8 are padding"
    assert d.log_prob(torch.full((4, 2, 3), 3)).shape == (4, 2, 3)
    with pytest.raises(ValueError, match=r"value must end with shape \(3,\), got \(2,\)"):
        d.log_prob(torch.tensor([1, 2]))


def test_vectors_mean_and_log_prob():
    messages = torch.tensor([[[1.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]]])
    d = SparseDistribution(messages, torch.tensor([[0.75, 1.0], [0.25, 0.0]]))
    assert d.event_shape == (2,)
    torch.testing.assert_close(d.mean, torch.tensor([[0.75, 0.0], [1.0, 1.0]]))
    assert d.log_prob(torch.tensor([[0.0, 0.0], [0.0, 1.0]])).exp().tolist() == [0.25, 0.0]
    assert d.mode.tolist() == [[1, 0], [1, 1]]
    assert torch.isnan(symbols().mean).all(), "symbol ids have no mean"


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_sample_shapes_and_support(shape):
    d = symbols()
    sample = d.sample(shape)
    assert sample.shape == (*shape, 3)
    assert torch.isfinite(d.log_prob(sample)).all()


def test_sample_frequencies():
    d = symbols()
    sample = d.sample((20_000,))
    for k in range(3):
        frequency = (sample == d.messages[k]).double().mean(0)
        torch.testing.assert_close(frequency, d.probs[k], atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("messages", "probs", "error"),
    [
        ([[1]], torch.ones(1, 1), "messages must be a tensor"),
        (torch.zeros(1, 2).long(), torch.ones(2), "probs must be floating point of shape"),
        (torch.zeros(1, 2).long(), torch.ones(1, 3), r"\(K, B\) = \(1, 3\) as in probs"),
        (torch.zeros(1, 2), torch.ones(1, 2), "integer symbol ids"),
        (torch.zeros(1, 2, 3).long(), torch.ones(1, 2), "floating-point vectors"),
        (torch.zeros(0, 2).long(), torch.ones(0, 2), "at least one row"),
        (torch.zeros(1, 2).long(), torch.tensor([[1.0, math.nan]]), "non-negative and not NaN"),
        (torch.zeros(1, 2).long(), torch.tensor([[1.0, 0.5]]), "sum to 1"),
        (torch.zeros(2, 1).long(), torch.tensor([[0.2], [0.8]]), "descending"),
    ],
)
def test_refuses(messages, probs, error):
    with pytest.raises((TypeError, ValueError), match=error):
        SparseDistribution(messages, probs)


@given(st.lists(st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(any), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_sum_of_probabilities_of_all_symbols_is_one(weights):
    w = torch.tensor(weights, dtype=torch.float64).t().sort(0, descending=True).values
    probs = w / w.sum(0)
    messages = torch.arange(3)[:, None].expand(3, len(weights))
    d = SparseDistribution(messages, probs)
    total = sum(d.log_prob(torch.full((len(weights),), v)).exp() for v in range(3))
    torch.testing.assert_close(total, torch.ones(len(weights), dtype=torch.float64))
