import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from egg_sparse import SparseDistribution
from egg_sparse.mappings.resampling import sum_and_sample


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
    with pytest.raises(ValueError, match="own support"):
        d.enumerate_support(expand=False)


def test_expectation_is_the_sum_over_terms():
    d = symbols()
    values = torch.randn(3, 3, 2, 4, dtype=torch.float64)
    slow = torch.stack([sum(d.probs[k, b] * values[k, b] for k in range(3)) for b in range(3)])
    torch.testing.assert_close(d.expectation(values), slow)
    with pytest.raises(ValueError, match=r"values .*\(2, 3, 2, 4\)"):
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


def test_log_prob_is_minus_infinity_outside_the_support():
    d = symbols()
    assert d.log_prob(torch.tensor([5, 7, 2]))[:2].exp().tolist() == pytest.approx([0.3, 1.0])
    assert d.log_prob(torch.tensor([5, 7, 2]))[2] == -math.inf
    assert d.log_prob(torch.tensor([3, 9, 8])).exp().tolist() == pytest.approx([0.6, 0.0, 0.0]), "9 and 8 are padding"
    assert d.log_prob(torch.full((4, 2, 3), 3)).shape == (4, 2, 3)
    with pytest.raises(ValueError, match=r"value .*\(2,\)"):
        d.log_prob(torch.tensor([1, 2]))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (4, 1), (4, 3), (2, 1, 3)])
def test_log_prob_broadcasts_as_torch_does(shape):
    d = symbols()
    dense = torch.zeros(3, 10, dtype=torch.float64).scatter_add_(1, d.messages.t(), d.probs.t())
    reference = torch.distributions.Categorical(probs=dense)
    value = torch.randint(0, 10, shape)
    torch.testing.assert_close(d.log_prob(value).exp(), reference.log_prob(value).exp(), atol=1e-12, rtol=0)
    bits = torch.tensor([[[1.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]]])
    vectors = SparseDistribution(bits, torch.tensor([[0.75, 1.0], [0.25, 0.0]]))
    assert vectors.log_prob(torch.tensor([1.0, 0.0])).exp().tolist() == [0.75, 0.0]
    for wrong in (torch.tensor(1.0), torch.ones(2, 3), torch.ones(2, 1)):
        with pytest.raises(ValueError, match="value"):
            vectors.log_prob(wrong)


def test_bit_vectors_have_a_mean_and_symbol_ids_have_none():
    messages = torch.tensor([[[1.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]]])
    d = SparseDistribution(messages, torch.tensor([[0.75, 1.0], [0.25, 0.0]]))
    assert d.event_shape == (2,)
    torch.testing.assert_close(d.mean, torch.tensor([[0.75, 0.0], [1.0, 1.0]]))
    assert d.log_prob(torch.tensor([[0.0, 0.0], [0.0, 1.0]])).exp().tolist() == [0.25, 0.0]
    assert d.mode.tolist() == [[1, 0], [1, 1]]
    assert torch.isnan(symbols().mean).all(), "symbol ids have no mean"


def test_variance_is_the_weighted_sum_of_squared_deviations():
    messages = torch.randn(4, 3, 5, dtype=torch.float64)
    probs = torch.rand(4, 3, dtype=torch.float64).sort(0, descending=True).values
    d = SparseDistribution(messages, probs / probs.sum(0))
    for b in range(3):
        weighted = [(d.probs[k, b], messages[k, b]) for k in range(4)]
        mean = sum(p * m for p, m in weighted)
        torch.testing.assert_close(d.variance[b], sum(p * (m - mean) ** 2 for p, m in weighted))
    torch.testing.assert_close(d.stddev, d.variance.sqrt())
    assert torch.isnan(symbols().variance).all(), "nor have symbol ids a variance"


def random_distribution(vocab_size, bits):
    """Supports of different sizes in random order, and the same distribution as dictionaries."""
    batch = 5
    sizes = torch.randint(1, vocab_size + 1, (batch,)).tolist()
    messages, probs = torch.zeros(vocab_size, batch, dtype=torch.long), torch.zeros(vocab_size, batch).double()
    for b, size in enumerate(sizes):
        messages[:, b] = torch.randperm(vocab_size)
        probs[:size, b] = torch.rand(size).double().sort(descending=True).values + 0.1
    probs = probs / probs.sum(0)
    dictionaries = [
        {int(m): p for m, p in zip(messages[:, b], probs[:, b], strict=True) if p > 0} for b in range(batch)
    ]
    if bits:
        messages = (messages[..., None] >> torch.arange(4)) % 2
        return SparseDistribution(messages.double(), probs), dictionaries
    return SparseDistribution(messages, probs, vocab_size), dictionaries


@pytest.mark.parametrize("bits", [False, True])
def test_cross_entropy_and_divergence_align_supports(bits):
    (p, p_terms), (q, q_terms) = random_distribution(9, bits), random_distribution(9, bits)
    cross_entropy, divergence = p.cross_entropy(q), torch.distributions.kl_divergence(p, q)
    assert torch.isinf(cross_entropy).any()
    for b in range(5):
        terms = [(prob, q_terms[b].get(m, 0)) for m, prob in p_terms[b].items()]
        wanted = math.inf if any(w == 0 for _, w in terms) else -sum(v * math.log(w) for v, w in terms)
        assert float(cross_entropy[b]) == pytest.approx(wanted)
        wanted = math.inf if any(w == 0 for _, w in terms) else sum(v * math.log(v / w) for v, w in terms)
        assert float(divergence[b]) == pytest.approx(wanted, abs=1e-12)
    assert torch.distributions.kl_divergence(p, p).abs().max() < 1e-12


def test_divergence_from_other_distributions():
    p, _ = random_distribution(9, bits=False)
    uniform = torch.distributions.Categorical(logits=torch.zeros(9).double())
    torch.testing.assert_close(torch.distributions.kl_divergence(p, uniform), math.log(9) - p.entropy())
    bits, _ = random_distribution(9, bits=True)
    prior = torch.distributions.Independent(torch.distributions.Bernoulli(torch.full((4,), 0.5).double()), 1)
    torch.testing.assert_close(bits.cross_entropy(prior), torch.full((5,), 4 * math.log(2)).double())
    with pytest.raises(ValueError, match=r"other .*\(4,\)"):
        p.cross_entropy(bits)
    with pytest.raises(ValueError, match=r"other .*\(3,\)"):
        p.cross_entropy(symbols())


def test_divergence_has_a_gradient():
    messages = torch.tensor([[3, 7], [5, 2], [4, 2]])

    def divergence(scores, others):
        masked = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, -math.inf]]).double()
        p, q = (SparseDistribution(messages, (x + masked).softmax(0), validate_args=False) for x in (scores, others))
        return torch.distributions.kl_divergence(p, q)

    scores, others = (torch.randn(3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(divergence, (scores, others))


def test_expand_repeats_a_batch_of_one():
    one = SparseDistribution(torch.tensor([[4], [1]]), torch.tensor([[0.75], [0.25]]), vocab_size=6)
    one.is_exact = torch.tensor([True])
    three = one.expand((3,))
    assert three.batch_shape == (3,)
    assert three.log_prob(torch.tensor([4, 1, 0])).exp().tolist() == [0.75, 0.25, 0.0]
    assert three.is_exact.tolist() == [True] * 3
    assert symbols().expand((3,)).batch_shape == (3,)
    for shape in ((4,), (2, 3), ()):
        with pytest.raises(ValueError, match="batch_shape"):
            symbols().expand(shape)


def test_to_changes_the_dtype_of_probabilities_and_not_of_ids():
    d = symbols().to(torch.float32)
    assert (d.probs.dtype, d.messages.dtype) == (torch.float32, torch.long)
    bits, _ = random_distribution(9, bits=True)
    half = bits.to(torch.float16)
    assert (half.probs.dtype, half.messages.dtype) == (torch.float32, torch.float16)
    on_meta = bits.to("meta")
    assert on_meta.probs.device.type == on_meta.messages.device.type == "meta"
    with pytest.raises(TypeError, match="int64"):
        bits.to(torch.int64)


def test_a_resampled_support_keeps_its_weights():
    d = symbols()
    d.ratios = torch.tensor([[1.0, 1.0, 2.0], [3.0, 1.0, 1.5], [2.0, 1.0, 1.0]], dtype=torch.float64)
    for other in (d.to(torch.float64), d.to("cpu"), d.expand((3,))):
        assert torch.equal(other.weights, d.weights)
    with pytest.raises(ValueError, match="resampled"):
        sum_and_sample(d, 1)


def test_cross_entropy_of_other_kinds_of_messages_is_refused():
    one_hot = SparseDistribution(
        torch.eye(3)[:, None].expand(-1, 3, -1), torch.tensor([[0.5], [0.3], [0.2]]).expand(3, 3)
    )
    bernoulli = torch.distributions.Bernoulli(torch.full((3,), 0.5))
    for p, q in (
        (one_hot, torch.distributions.Categorical(torch.ones(3, 3))),
        (one_hot, bernoulli),
        (symbols(), torch.distributions.Independent(bernoulli, 1)),
    ):
        with pytest.raises(ValueError, match="other"):
            p.cross_entropy(q)


def test_rounding_is_accepted_and_no_more():
    probs = torch.rand(60, 4).softmax(0).sort(0, descending=True).values
    rows = torch.arange(60)[:, None].expand(-1, 4)
    SparseDistribution(rows, probs.double())
    SparseDistribution(rows, probs.bfloat16())
    with pytest.raises(ValueError, match="probs"):
        SparseDistribution(rows, (probs * 1.1).bfloat16())
    assert SparseDistribution(rows[:, :0], probs[:, :0]).probs.shape == (60, 0)


@pytest.mark.parametrize("name", ["rsample", "cdf", "icdf"])
def test_what_is_undefined_says_why(name):
    with pytest.raises(NotImplementedError, match=r"\w+ \w+"):
        getattr(symbols(), name)(*([] if name == "rsample" else [torch.zeros(3)]))


def test_padding_holds_the_most_probable_message():
    assert symbols().messages.tolist() == [[3, 7, 1], [5, 7, 0], [4, 7, 1]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_float32(dtype):
    d = SparseDistribution(torch.arange(3)[:, None], torch.full((3, 1), 1 / 3, dtype=dtype))
    assert d.probs.dtype == d.entropy().dtype == torch.float32
    assert d.expectation(torch.ones(3, 1, dtype=dtype)).dtype == torch.float32


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
        torch.testing.assert_close(frequency[d.mask[k]], d.probs[k, d.mask[k]], atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("messages", "probs", "error"),
    [
        ([[1]], torch.ones(1, 1), "messages .* list"),
        (torch.zeros(1, 2).long(), torch.ones(2), r"probs .*\(2,\)"),
        (torch.zeros(1, 2).long(), torch.ones(1, 3), r"messages .*\(1, 3\).*\(1, 2\)"),
        (torch.zeros(1, 2), torch.ones(1, 2), r"messages .*float32.*\(1, 2\)"),
        (torch.zeros(1, 2, 3).long(), torch.ones(1, 2), r"messages .*int64.*\(1, 2, 3\)"),
        (torch.zeros(0, 2).long(), torch.ones(0, 2), "messages .* K = 0"),
        (torch.zeros(1, 2).long(), torch.tensor([[1.0, math.nan]]), "probs .*NaN"),
        (torch.zeros(1, 2).long(), torch.tensor([[1.0, 0.5]]), "probs .*sum"),
        (torch.zeros(2, 1).long(), torch.tensor([[0.2], [0.8]]), "probs .*descending"),
        (torch.tensor([[4, 4], [1, 4]]), torch.full((2, 2), 0.5), "messages .*differ"),
        (torch.tensor([[[1.0, 0]], [[1.0, 0]]]), torch.full((2, 1), 0.5), "messages .*differ"),
        (torch.tensor([[10]]), torch.ones(1, 1), "vocab_size.* 10"),
        (torch.tensor([[-1]]), torch.ones(1, 1), "messages .*-1"),
    ],
)
def test_refuses(messages, probs, error):
    with pytest.raises((TypeError, ValueError), match=error):
        SparseDistribution(messages, probs, vocab_size=10)


@given(st.lists(st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(any), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_sum_of_probabilities_of_all_symbols_is_one(weights):
    w = torch.tensor(weights, dtype=torch.float64).t().sort(0, descending=True).values
    probs = w / w.sum(0)
    messages = torch.arange(3)[:, None].expand(3, len(weights))
    d = SparseDistribution(messages, probs)
    total = sum(d.log_prob(torch.full((len(weights),), v)).exp() for v in range(3))
    torch.testing.assert_close(total, torch.ones(len(weights), dtype=torch.float64))


def sequences(**changes):
    """Of two examples, the second of which has two messages and padding."""
    messages = torch.tensor([[[1, 2, 0], [0, 0, 0]], [[0, 0, 0], [2, 0, 0]], [[1, 0, 0], [0, 0, 0]]])
    given = {
        "messages": messages,
        "probs": torch.tensor([[0.5, 0.7], [0.3, 0.3], [0.2, 0.0]], dtype=torch.float64),
        "vocab_size": 3,
        "validate_args": True,
        "lengths": (messages != 0).sum(2) + 1,
    }
    return SparseDistribution(**{**given, **changes})


class TestSequences:
    def test_shapes_and_values(self):
        d = sequences()
        assert (d.batch_shape, d.event_shape) == ((2,), (3,))
        assert d.lengths.tolist() == [[3, 1], [1, 2], [2, 1]]
        assert d.support_size.tolist() == [3, 2]
        assert d.mode.tolist() == [[1, 2, 0], [0, 0, 0]]
        assert d.mean.isnan().all()
        torch.testing.assert_close(d.expectation(d.lengths.double()), torch.tensor([2.2, 1.3], dtype=torch.float64))
        assert d.weights is d.probs
        torch.testing.assert_close(d.log_probs, torch.where(d.mask, d.probs, 1).log())
        found = d.log_prob(torch.tensor([[[1, 0, 0], [2, 0, 0]], [[2, 2, 0], [0, 0, 0]]])).exp()
        torch.testing.assert_close(found, torch.tensor([[0.2, 0.3], [0.0, 0.7]], dtype=torch.float64))
        assert d.log_prob(torch.tensor([0, 0, 0])).exp().tolist() == pytest.approx([0.3, 0.7])
        assert d.support.check(d.messages).all()
        assert not d.support.check(torch.tensor([3, 0, 0]))

    def test_samples(self):
        found = sequences().sample((2000,))
        assert found.shape == (2000, 2, 3)
        frequency = (found == torch.tensor([[1, 2, 0], [2, 0, 0]])).all(2).double().mean(0)
        assert frequency.tolist() == pytest.approx([0.5, 0.3], abs=0.06)
        assert ((found != torch.tensor([2, 0, 0])).any(2) | (torch.arange(2) == 1)).all()

    def test_divergences(self):
        p = sequences()
        q = sequences(probs=torch.tensor([[0.6, 0.5], [0.3, 0.5], [0.1, 0.0]], dtype=torch.float64))
        cross = [
            -(0.5 * math.log(0.6) + 0.3 * math.log(0.3) + 0.2 * math.log(0.1)),
            -(0.7 * math.log(0.5) + 0.3 * math.log(0.5)),
        ]
        assert p.cross_entropy(q).tolist() == pytest.approx(cross)
        divergence = torch.distributions.kl_divergence(p, q)
        torch.testing.assert_close(divergence, p.cross_entropy(q) - p.entropy())
        with pytest.raises(ValueError, match=r"\(3,\), got \(\)"):
            p.cross_entropy(symbols())

    def test_moves_and_expands(self):
        d = sequences(probs=sequences().probs.float())
        d.is_exact = torch.tensor([True, False])
        moved = d.to(torch.float64)
        assert (moved.probs.dtype, moved.messages.dtype, moved.lengths.dtype) == (
            torch.float64,
            torch.long,
            torch.long,
        )
        assert torch.equal(moved.is_exact, d.is_exact)
        one = SparseDistribution(d.messages[:, :1], d.probs[:, :1], 3, lengths=d.lengths[:, :1]).expand((4,))
        assert one.lengths.shape == one.probs.shape == (3, 4)
        assert one.messages.shape == (3, 4, 3)
        assert d.to("cpu").lengths.tolist() == d.lengths.tolist()

    def test_padding_repeats_the_first_message(self):
        messages = sequences().messages.clone()
        messages[2, 1] = torch.tensor([2, 2, 0])
        d = sequences(messages=messages, lengths=(messages != 0).sum(2) + 1)
        assert d.messages[2, 1].tolist() == [0, 0, 0]
        assert d.lengths[2, 1] == 1

    @pytest.mark.parametrize(
        ("changes", "error", "match"),
        [
            ({"lengths": torch.tensor([[3, 1], [1, 3], [2, 1]])}, ValueError, "end with symbol 0 at position lengths"),
            ({"lengths": torch.tensor([[4, 1], [1, 2], [2, 1]])}, ValueError, "end with symbol 0 at position lengths"),
            ({"lengths": torch.tensor([[3, 0], [1, 2], [2, 0]])}, ValueError, "end with symbol 0 at position lengths"),
            ({"lengths": torch.tensor([3, 1])}, ValueError, r"lengths must be.*\(3, 2\).*got.*\(2,\)"),
            ({"lengths": torch.ones(3, 2)}, ValueError, r"lengths must be integers.*float32"),
            ({"lengths": None}, TypeError, r"messages must be.*int64.*\(3, 2, 3\)"),
            ({"messages": torch.zeros(3, 2, 3)}, TypeError, "messages must be.*float32"),
            ({"messages": torch.zeros(3, 2).long()}, ValueError, r"lengths must be.*\(K, B, L\)"),
            ({"vocab_size": 2}, ValueError, "below vocab_size, 2, got 0 to 2"),
            (
                {
                    "messages": torch.tensor([[[1, 2, 0]] * 2, [[1, 2, 0]] * 2, [[1, 0, 0]] * 2]),
                    "lengths": torch.tensor([[3, 3], [3, 3], [2, 2]]),
                },
                ValueError,
                "messages must differ",
            ),
            (
                {"messages": torch.tensor([[[0, 1, 0]] * 2, [[2, 0, 0]] * 2, [[0, 0, 0]] * 2])},
                ValueError,
                "no 0 before it",
            ),
        ],
    )
    def test_what_is_no_distribution_over_sequences(self, changes, error, match):
        with pytest.raises(error, match=match):
            sequences(**changes)
