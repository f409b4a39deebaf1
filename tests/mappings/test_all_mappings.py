"""What every mapping promises: its padding, the types of its result, second-order gradients, the largest scores."""

import pytest
import torch
from torch import nn

from egg_sparse import SparsemaxWrapper
from egg_sparse.mappings import arrays as small_arrays
from egg_sparse.mappings import (
    entmax,
    entmax15,
    softmax,
    sparsemap_active_set,
    sparsemap_bit_vectors,
    sparsemap_chain,
    sparsemap_marginals,
    sparsemax,
    topk_bit_vectors,
    topk_sparsemax,
)
from egg_sparse.mappings.resampling import sum_and_sample


class UpToHalf:
    """An oracle of bit-vectors with at most half of the bits on, which can be called for some of the examples."""

    def __call__(self, scores):
        best = scores.topk(scores.shape[1] // 2, dim=1).indices
        return (scores > 0).to(scores.dtype) * torch.zeros_like(scores).scatter(1, best, 1.0)

    def for_examples(self, rows):
        return self


CATEGORICAL = {
    "softmax": softmax,
    "sparsemax": sparsemax,
    "entmax15": entmax15,
    "entmax1.3": lambda x: entmax(x, 1.3),
    "entmax2.7": lambda x: entmax(x, torch.tensor(2.7)),
}
BIT_VECTORS = {
    "top-k": lambda x: topk_sparsemax(x, 12),
    "systematic": sparsemap_bit_vectors,
    "threshold": lambda x: sparsemap_bit_vectors(x, None, "threshold"),
    "budget": lambda x: sparsemap_bit_vectors(x, 2),
    "active set": lambda x: sparsemap_bit_vectors(x, None, "active_set"),
    "active set, budget": lambda x: sparsemap_bit_vectors(x, 2, "active_set"),
    "oracle": lambda x: sparsemap_active_set(x, UpToHalf()),
    "chain": lambda x: sparsemap_chain(x, 0.5 * x[:, 1:]),
    "chain, active set": lambda x: sparsemap_chain(x, 0.5 * x[:, 1:], "active_set"),
}
LPSMAP = {
    "lpsmap": lambda x: sparsemap_bit_vectors(x, None, "active_set", solver="lpsmap"),
    "lpsmap, chain": lambda x: sparsemap_chain(x, 0.5 * x[:, 1:], solver="lpsmap"),
}
MAPPINGS = {**CATEGORICAL, **BIT_VECTORS, **LPSMAP}


@pytest.fixture(params=MAPPINGS)
def mapping(request):
    if request.param in LPSMAP:
        pytest.importorskip("lpsmap", reason="lp-sparsemap is not installed")
    return MAPPINGS[request.param]


def uneven(batch, columns, dtype=torch.float64):
    """Scores whose supports differ in size; softmax underflows for some."""
    return (torch.randn(batch, columns, dtype=torch.float64) * 10.0 ** torch.randint(-1, 4, (batch, 1))).to(dtype)


def padding_repeats_the_first_row(d):
    mask = d.mask if d.messages.dim() == 2 else d.mask[:, :, None]
    assert not d.mask.all(), "a test without padding tests nothing"
    return torch.equal(torch.where(mask, d.messages, d.messages[:1]), d.messages)


@pytest.mark.parametrize("numpy_on_cpu", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_padding_holds_the_most_probable_message(mapping, dtype, numpy_on_cpu, monkeypatch):
    monkeypatch.setattr(small_arrays, "NUMPY_ON_CPU", numpy_on_cpu)
    for columns in (2, 5, 9):
        d = mapping(uneven(24, columns, dtype))
        assert padding_repeats_the_first_row(d)
        if len(d.probs) > 2:
            terms, _ = sum_and_sample(d, 2)
            assert padding_repeats_the_first_row(terms)


def test_padding_of_many_examples():
    """Solved examples leave the batch of the active-set method while the others go on."""
    x = torch.cat((3 * torch.randn(60, 64, dtype=torch.float64), 0.2 * torch.randn(4, 64, dtype=torch.float64)))
    x = x.requires_grad_()
    d = sparsemap_bit_vectors(x, None, "active_set")
    assert padding_repeats_the_first_row(d)
    weights = torch.randn(64, dtype=torch.float64)
    (grad,) = torch.autograd.grad((d.mean * weights).cos().sum(), x)
    for b in (0, 30, 63):
        alone = sparsemap_bit_vectors(x[b : b + 1], None, "active_set")
        (expected,) = torch.autograd.grad((alone.mean * weights).cos().sum(), x)
        torch.testing.assert_close(grad[b], expected[b], atol=1e-9, rtol=0)


def test_padding_of_a_distribution_that_was_made_by_hand():
    from egg_sparse import SparseDistribution

    messages = torch.tensor([[3, 1], [4, 2], [5, 0]])
    for of_messages in (messages, nn.functional.one_hot(messages).float()):
        d = SparseDistribution(of_messages, torch.tensor([[0.5, 1.0], [0.25, 0.0], [0.25, 0.0]]))
        for kept in (1, 2):
            terms, _ = sum_and_sample(d, kept)
            assert padding_repeats_the_first_row(terms)
            assert torch.equal(terms.messages[: kept + 1, 0][:kept], of_messages[:kept, 0])


@pytest.mark.parametrize("normalizer", ["softmax", "sparsemax", "entmax15", 1.3])
def test_padding_of_one_hot_messages(normalizer):
    d = SparsemaxWrapper(nn.Identity(), normalizer, message_format="one_hot")(uneven(24, 9))
    assert padding_repeats_the_first_row(d)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_probabilities_are_not_rounded_to_half_precision(mapping, dtype, autocast):
    scores = (2 * torch.randn(64, 24)).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        d = mapping(scores)
    at_least_single = torch.promote_types(dtype, torch.float32)
    assert d.probs.dtype == at_least_single
    if d.messages.is_floating_point():
        assert d.messages.dtype == (at_least_single if autocast else dtype)
    total = d.probs.double().sum(0)
    torch.testing.assert_close(
        total, torch.ones_like(total), atol=max(24 * torch.finfo(at_least_single).eps, 1e-12), rtol=0
    )

    # the same as from those scores in double precision, and a gradient in their own type
    exact_scores = scores.detach().double().requires_grad_()
    exact = mapping(exact_scores)
    torch.testing.assert_close(d.entropy().double(), exact.entropy(), atol=2e-5, rtol=0)
    (grad,) = torch.autograd.grad(d.probs.pow(2).sum(), scores)
    (expected,) = torch.autograd.grad(exact.probs.pow(2).sum(), exact_scores)
    assert grad.dtype == dtype
    torch.testing.assert_close(grad.double(), expected, atol=max(2 * torch.finfo(dtype).eps, 1e-4), rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_expectation_by_hand_in_half_precision(dtype):
    scores = torch.tensor([[0.5, 0.25, 0.125]], dtype=dtype, requires_grad=True)
    d = sparsemax(scores)  # tau is -1/24: 13/24, 7/24 and 4/24
    values = torch.tensor([[3.0], [6.0], [12.0]], dtype=dtype)
    torch.testing.assert_close(d.expectation(values), torch.tensor([129 / 24]), atol=1e-6, rtol=0)
    d.expectation(values).sum().backward()
    assert scores.grad.dtype == dtype
    assert scores.grad.tolist() == [[-4.0, -1.0, 5.0]]

    bits = torch.tensor([[0.125, -3.0]], dtype=dtype)
    assert sparsemap_marginals(bits).tolist() == [[0.5625, 0.0]]
    assert sparsemap_marginals(bits + 0.125 - 1 / 128).dtype == torch.float32
    vectors, values = topk_bit_vectors(torch.tensor([[256.0, 1.0, 0.25]], dtype=dtype), 1)
    assert vectors.dtype == dtype
    assert values.tolist() == [[257.25]]


def test_one_hot_messages_keep_the_type_of_scores():
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        d = SparsemaxWrapper(nn.Identity(), message_format="one_hot")(torch.randn(4, 9).to(dtype))
        assert d.messages.dtype == dtype
        assert d.probs.dtype == torch.promote_types(dtype, torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            d = SparsemaxWrapper(nn.Identity(), message_format="one_hot")(torch.randn(4, 9).to(dtype))
        assert d.messages.dtype == d.probs.dtype == torch.promote_types(dtype, torch.float32)


def nonlinear(d, columns):
    """A number per example that is not linear in the probabilities, nor in the messages."""
    if d.messages.dim() == 2:
        values = torch.linspace(-1, 1, columns, dtype=d.probs.dtype).exp()[d.messages]
    else:
        values = (d.messages @ torch.linspace(-1, 1, columns, dtype=d.probs.dtype)).exp()
    return (d.probs.pow(2) * values).sum(0) + d.expectation(values).cos()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in (*CATEGORICAL, *BIT_VECTORS) if name != "oracle"])
def test_second_order_gradients(name):
    """The oracle above is left out: rounding decides which of several equally good structures it returns."""
    mapping = MAPPINGS[name]
    x = torch.randn(4, 6, dtype=torch.float64)
    x[0] *= 4  # fewer terms, hence padding
    assert name == "softmax" or not mapping(x).mask.all()
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: nonlinear(mapping(s), 6), (x,), atol=1e-4)
    assert torch.autograd.gradgradcheck(lambda s: nonlinear(mapping(s), 6), (x,), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1.2, 1.5, 2.0, 2.6])
@pytest.mark.parametrize("per_example", [False, True])
def test_second_order_gradients_of_a_learned_alpha(alpha, per_example):
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    alpha = torch.full((3, 1) if per_example else (), alpha, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, a: nonlinear(entmax(s, a), 6), (x, alpha), atol=1e-4)
    assert torch.autograd.gradgradcheck(lambda s, a: nonlinear(entmax(s, a), 6), (x, alpha), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [None, 2])
def test_second_order_gradients_of_marginals_and_values(budget):
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda s: sparsemap_marginals(s, budget).exp(), (x,))
    assert torch.autograd.gradgradcheck(lambda s: topk_bit_vectors(s, 5)[1].cos(), (x,))
    transitions = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda s, t: nonlinear(sparsemap_chain(s, t), 6), (x, transitions))


@pytest.mark.parametrize("name", LPSMAP)
def test_second_order_gradients_of_lpsmap_are_refused(name):
    pytest.importorskip("lpsmap", reason="lp-sparsemap is not installed")
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(nonlinear(MAPPINGS[name](x), 6).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grad.sum().backward()


@pytest.mark.parametrize("numpy_on_cpu", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*CATEGORICAL, *BIT_VECTORS])
@pytest.mark.filterwarnings("error")
def test_the_largest_scores(name, dtype, numpy_on_cpu, monkeypatch):
    monkeypatch.setattr(small_arrays, "NUMPY_ON_CPU", numpy_on_cpu)
    largest = torch.finfo(dtype).max
    shares = [[1.0, -1.0, 0.97, -0.98], [0.2, 0.1, -1.0, -1.0], [-1.0, -1.0, -1.0, 1.0]]
    x = (torch.tensor(shares, dtype=torch.float64) * largest).to(dtype).requires_grad_()
    if name in ("oracle", "chain", "chain, active set") and dtype == torch.float64:
        with pytest.raises(ValueError, match=r"(scores|transitions).*sums.*e\+30[78]"):
            MAPPINGS[name](x)
        return
    d = MAPPINGS[name](x)
    assert d.support_size.tolist() == [1, 1, 1]
    torch.testing.assert_close(d.probs[0], torch.ones_like(d.probs[0]))
    if name in CATEGORICAL:
        assert d.mode.tolist() == [0, 0, 3]
    else:
        assert d.mode.tolist() == [[1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]]
    (grad,) = torch.autograd.grad(d.entropy().sum() + d.probs.pow(2).sum(), x)
    assert torch.isfinite(grad).all()
