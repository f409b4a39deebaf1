"""Distributions over sequences: every probability and gradient, against all messages one by one, and many draws."""

import itertools

import pytest
import torch
from entmax import entmax15, entmax_bisect, sparsemax
from hypothesis import given, settings
from hypothesis import strategies as st

from egg_sparse import SparseDistribution, host
from egg_sparse.mappings import categorical
from egg_sparse.mappings.sequences import greedy_sequence, sequence_distribution

MAPPINGS = {
    "softmax": lambda x: x.softmax(-1),
    "sparsemax": lambda x: sparsemax(x, dim=-1),
    "entmax15": lambda x: entmax15(x, dim=-1),
    1.2: lambda x: entmax_bisect(x, 1.2, dim=-1, n_iter=100),
    3.0: lambda x: entmax_bisect(x, 3.0, dim=-1, n_iter=100),
}


class Table:
    """A decoder whose scores of the next symbol are any function of the whole prefix.

    Its input is that function, ``(B, P, V)``; the prefixes are numbered as :func:`position` does.
    """

    def begin(self, table):
        return {"table": table, "position": [torch.zeros(len(table), dtype=torch.long)]}

    def step(self, state, symbols):
        table, position = state["table"], state["position"][0]
        if symbols is not None:
            position = position * table.shape[2] + symbols + 1
        scores = table[torch.arange(len(table)), position]
        return scores, {"table": table, "position": [position]}


def position(prefix, vocab_size):
    found = 0
    for symbol in prefix:
        found = found * vocab_size + symbol + 1
    return found


def table_of(batch, vocab_size, max_len, scale=1.0, dtype=torch.float64):
    return (scale * torch.randn(batch, sum(vocab_size**t for t in range(max_len)), vocab_size, dtype=dtype)).detach()


def all_messages(vocab_size, max_len):
    for length in range(max_len + 1):
        yield from itertools.product(range(1, vocab_size), repeat=length)


def enumerated(table, mapping, max_len):
    """The messages, padded with 0, ``(M, max_len + 1)``, and their probabilities ``(M, B)``."""
    vocab_size = table.shape[2]
    probs, messages = mapping(table), list(all_messages(vocab_size, max_len))
    result = []
    for message in messages:
        said = [*message, 0][:max_len]
        result.append(
            torch.stack([probs[:, position(said[:t], vocab_size), said[t]] for t in range(len(said))]).prod(0)
        )
    padded = torch.tensor([[*message, *[0] * (max_len + 1 - len(message))] for message in messages])
    return padded, torch.stack(result)


def value_of(messages):
    """A number per message, which its symbols and their order decide."""
    powers = torch.tensor([1.0, 2.3, 5.1, 0.7, 3.9])[: messages.shape[-1]].double()
    return torch.sin((messages * powers).sum(-1)) + 0.3 * (messages != 0).sum(-1)


def expected_value(distribution):
    """An objective of a game: a value, the entropy and the length."""
    values = value_of(distribution.messages) + 0.2 * distribution.lengths
    return distribution.expectation(values) - 0.5 * distribution.entropy()


def expected_by_enumeration(table, mapping, max_len):
    messages, probs = enumerated(table, mapping, max_len)
    values = value_of(messages) + 0.2 * ((messages != 0).sum(1) + 1)
    entropy = -(probs * torch.where(probs > 0, probs, 1).log()).sum(0)
    return (probs * values[:, None]).sum(0) - 0.5 * entropy


@pytest.mark.parametrize("max_support", [None, 1000])
@pytest.mark.parametrize("normalizer", MAPPINGS)
def test_equals_the_sum_over_all_messages(normalizer, max_support):
    table = table_of(5, 3, 3).requires_grad_()
    distribution = sequence_distribution(Table(), table, max_len=3, normalizer=normalizer, max_support=max_support)
    messages, probs = enumerated(table, MAPPINGS[normalizer], 3)
    assert torch.equal(distribution.support_size, (probs > 0).sum(0))
    for message, prob in zip(messages, probs, strict=True):
        torch.testing.assert_close(distribution.log_prob(message), prob.log())
    assert distribution.is_exact.all()
    assert distribution.ratios is None
    found = expected_value(distribution)
    expected = expected_by_enumeration(table, MAPPINGS[normalizer], 3)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(5, dtype=torch.float64)
    gradients = [torch.autograd.grad(weights @ value, table)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_learnable_alpha_and_temperature():
    table = table_of(4, 3, 3)
    alpha = torch.tensor([1.3], dtype=torch.float64, requires_grad=True)
    temperature = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    distribution = sequence_distribution(Table(), table, max_len=3, normalizer=alpha, temperature=temperature)
    expected = expected_by_enumeration(
        table, lambda x: entmax_bisect(x / temperature, alpha, dim=-1, n_iter=100), 3
    ).sum()
    gradients = [
        torch.autograd.grad(value, (alpha, temperature)) for value in (expected_value(distribution).sum(), expected)
    ]
    torch.testing.assert_close(*gradients)


DRAWS = 6000


@pytest.mark.parametrize("max_support", [1, 2, 4, 7])
@pytest.mark.parametrize(("normalizer", "scale"), [("softmax", 1.0), ("softmax", 0.3), ("sparsemax", 0.4)])
def test_bounded_supports_are_unbiased(normalizer, scale, max_support):
    """Value and gradient, in units of the standard error of their means over draws."""
    table = table_of(1, 3, 3, scale)
    single = table.clone().requires_grad_()
    expected = expected_by_enumeration(single, MAPPINGS[normalizer], 3)
    gradient = torch.autograd.grad(expected.sum(), single)[0]
    copies = table.repeat(DRAWS, 1, 1).requires_grad_()
    distribution = sequence_distribution(Table(), copies, max_len=3, normalizer=normalizer, max_support=max_support)
    assert not distribution.is_exact.any()
    assert (distribution.support_size == max_support).all()
    torch.testing.assert_close(distribution.weights.sum(0), torch.ones(DRAWS, dtype=torch.float64))
    found = expected_value(distribution)
    gradients = torch.autograd.grad(found.sum(), copies)[0]
    for draws, exact in ((found.detach()[:, None], expected.detach()[None]), (gradients, gradient)):
        error = draws.std(0) / DRAWS**0.5
        assert ((draws.mean(0) - exact[0]).abs() <= 5 * error + 1e-9).all()
    messages, probs = enumerated(table, MAPPINGS[normalizer], 3)
    for message, prob in zip(messages, probs[:, 0], strict=True):
        weights = torch.where((distribution.messages == message).all(2) & distribution.mask, distribution.weights, 0)
        draws = weights.sum(0).detach()
        assert (draws.mean() - prob).abs() <= 5 * draws.std() / DRAWS**0.5 + 1e-9
    drawn = distribution.log_probs.exp()
    torch.testing.assert_close(drawn * distribution.ratios, distribution.weights.detach())
    torch.testing.assert_close(drawn, distribution.probs.detach())


def test_only_trees_that_do_not_fit_are_drawn():
    table = table_of(40, 3, 3, 0.8)
    exact = sequence_distribution(Table(), table, max_len=3)
    found = [sequence_distribution(Table(), table, max_len=3, max_support=5) for _ in range(2)]
    fits = found[0].is_exact
    assert 5 < fits.sum() < 40
    assert (exact.support_size[fits] <= 5).all()
    for b in fits.nonzero().flatten().tolist():
        size = exact.support_size[b]
        for one in found:
            assert one.support_size[b] == size
            torch.testing.assert_close(one.probs[:size, b], exact.probs[:size, b])
            assert torch.equal(one.messages[:size, b], exact.messages[:size, b])
            assert (one.ratios[:, b] == 1).all()
    assert not torch.equal(found[0].messages, found[1].messages)
    torch.manual_seed(0)
    again = sequence_distribution(Table(), table, max_len=3, max_support=5)
    torch.manual_seed(0)
    assert torch.equal(again.messages, sequence_distribution(Table(), table, max_len=3, max_support=5).messages)


@given(
    seed=st.integers(0, 2**16),
    batch=st.integers(0, 4),
    vocab_size=st.integers(1, 4),
    max_len=st.integers(1, 4),
    max_support=st.one_of(st.none(), st.integers(1, 12)),
    normalizer=st.sampled_from(["softmax", "sparsemax", "entmax15", 1.3]),
    scale=st.sampled_from([0.0, 0.3, 1.0, 5.0, 1e4]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    end=st.sampled_from([0.0, 0.0, -1e4, 1e4]),
)
@settings(max_examples=150, deadline=None)
def test_any_tree(seed, batch, vocab_size, max_len, max_support, normalizer, scale, dtype, end):
    torch.manual_seed(seed)
    table = table_of(batch, vocab_size, max_len, scale, torch.float64)
    table[:, :, 0] += end
    table = table.to(dtype).requires_grad_()
    d = sequence_distribution(Table(), table, max_len=max_len, normalizer=normalizer, max_support=max_support)
    assert d.messages.shape == (len(d.probs), batch, max_len + 1)
    assert d.lengths.shape == d.probs.shape
    assert d.probs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert d.vocab_size == vocab_size
    assert d.is_exact.shape == (batch,)
    if batch == 0:
        assert torch.autograd.grad(d.probs.sum(), table)[0].shape == table.shape
        return
    lengths = host.core.find_lengths if hasattr(host.core, "find_lengths") else host.core.util.find_lengths
    assert torch.equal(lengths(d.messages.flatten(0, 1)), d.lengths.flatten())
    after_the_end = torch.arange(max_len + 1) >= d.lengths[:, :, None] - 1
    assert torch.equal(d.messages == 0, after_the_end)
    assert d.messages.max() < vocab_size
    torch.testing.assert_close(d.weights.sum(0), torch.ones_like(d.weights[0]), atol=1e-5, rtol=0)
    assert (d.support_size >= 1).all()
    if max_support is not None:
        assert (d.support_size <= max_support).all()
        assert len(d.probs) <= max_support
        assert (d.support_size[~d.is_exact] == max_support).all()
    for b in range(batch):
        messages = d.messages[:, b][d.mask[:, b]].tolist()
        assert len({tuple(message) for message in messages}) == len(messages)
        assert (d.messages[:, b][~d.mask[:, b]] == d.messages[0, b]).all()
    assert (d.log_probs[:-1] >= d.log_probs[1:])[d.mask[1:]].all()
    if d.ratios is None:
        SparseDistribution(d.messages, d.probs.detach(), vocab_size, validate_args=True, lengths=d.lengths)
    if end == 1e4 and dtype in (torch.float64, torch.float32) and scale <= 1:
        assert (d.lengths[d.mask] == 1).all()
    if end == -1e4 and dtype in (torch.float64, torch.float32) and scale <= 1 and vocab_size > 1:
        assert (d.lengths[d.mask] == max_len + 1).all()
    gradient = torch.autograd.grad(expected_value(d).sum(), table)[0]
    assert gradient.isfinite().all()


@pytest.mark.parametrize("normalizer", ["softmax", "sparsemax", "entmax15", 1.3])
def test_one_symbol_is_the_categorical_mapping(normalizer):
    table = table_of(6, 9, 1).requires_grad_()
    d = sequence_distribution(Table(), table, max_len=1, normalizer=normalizer)
    named = isinstance(normalizer, str)
    scores = table[:, 0]
    one = getattr(categorical, normalizer)(scores) if named else categorical.entmax(scores, normalizer)
    assert torch.equal(d.messages[:, :, 0], one.messages)
    assert (d.messages[:, :, 1] == 0).all()
    torch.testing.assert_close(d.probs, one.probs)
    weights = torch.randn_like(d.probs)
    torch.testing.assert_close(*(torch.autograd.grad((x.probs * weights).sum(), table)[0] for x in (d, one)))


class Recurrent:
    def __init__(self, vocab_size, width=8):
        self.read = torch.randn(vocab_size, width)
        self.mix = torch.randn(width, width)
        self.write = (0.1 * torch.randn(width, vocab_size)).requires_grad_()

    def begin(self, hidden):
        return hidden

    def step(self, hidden, symbols):
        if symbols is not None:
            hidden = torch.tanh(hidden @ self.mix + self.read[symbols])
        return hidden @ self.write, hidden


def test_probabilities_far_below_the_range_of_float32():
    """A softmax over 1,000 symbols, 20 times: a message has the probability 1e-60."""
    decoder = Recurrent(1000)
    d = sequence_distribution(
        decoder, torch.randn(3, 8), max_len=20, normalizer="softmax", max_support=16
    )  # fmt: skip
    assert d.log_probs.min() < -120
    assert d.support_size.tolist() == [16] * 3
    torch.testing.assert_close(d.weights.sum(0), torch.ones(3))
    entropy = d.entropy()
    assert (entropy > 60).all()
    loss = (entropy + d.expectation(d.lengths.float())).sum()
    assert torch.autograd.grad(loss, decoder.write, retain_graph=True)[0].isfinite().all()
    torch.testing.assert_close(d.log_prob(d.messages), d.log_probs)
    torch.testing.assert_close(d.cross_entropy(d), entropy)
    torch.testing.assert_close(torch.distributions.kl_divergence(d, d), torch.zeros(3))
    assert torch.autograd.grad(d.log_prob(d.messages).sum(), decoder.write)[0].isfinite().all()


def test_autocast():
    linear = torch.nn.Linear(8, 6)

    class Decoder:
        def begin(self, hidden):
            return hidden

        def step(self, hidden, symbols):
            return linear(hidden), (hidden if symbols is None else hidden.roll(1, 1))

    x = torch.randn(4, 8)
    exact = sequence_distribution(Decoder(), x, max_len=3)
    with torch.autocast("cpu", torch.bfloat16):
        d = sequence_distribution(Decoder(), x, max_len=3)
        bounded = sequence_distribution(Decoder(), x, max_len=3, max_support=3)
        loss = d.expectation(d.lengths.float()).sum() + bounded.entropy().sum()
    assert d.probs.dtype == bounded.weights.dtype == torch.float32
    torch.testing.assert_close(bounded.weights.sum(0), torch.ones(4))
    torch.testing.assert_close(
        d.expectation(d.lengths.float()), exact.expectation(exact.lengths.float()), atol=0.1, rtol=0
    )
    loss.backward()
    assert linear.weight.grad.isfinite().all()


@pytest.mark.parametrize("normalizer", ["softmax", "sparsemax"])
def test_the_greedy_sequence(normalizer):
    table = table_of(30, 3, 3)
    found = greedy_sequence(Table(), table, max_len=3, normalizer=normalizer)
    probs = MAPPINGS[normalizer](table)
    assert len(found.message[:, :-1].eq(0).sum(1).unique()) > 2
    for b in range(30):
        prefix = []
        for t in range(4):
            if t == 3 or (prefix and prefix[-1] == 0):
                assert found.message[b, t] == found.log_prob[b, t] == found.entropy[b, t] == 0
                continue
            p = probs[b, position(prefix, 3)]
            assert found.message[b, t] == p.argmax()
            torch.testing.assert_close(found.log_prob[b, t], p.max().log())
            torch.testing.assert_close(found.entropy[b, t], -(p * torch.where(p > 0, p, 1).log()).sum())
            prefix.append(int(p.argmax()))
    assert greedy_sequence(Table(), table[:0], max_len=3).message.shape == (0, 4)


def test_types_follow_the_scores():
    for dtype, wanted in ((torch.float64, torch.float64), (torch.float32, torch.float32), (torch.half, torch.float32)):
        d = sequence_distribution(
            Table(), table_of(3, 4, 3, dtype=dtype), max_len=3, normalizer="softmax", max_support=6
        )
        assert {d.probs.dtype, d.weights.dtype, d.ratios.dtype, d.log_probs.dtype} == {wanted}
        tolerance = {torch.float64: 1e-14, torch.float32: 1e-5}[wanted]
        assert (d.probs.log() - d.log_probs).abs().max() < tolerance


@pytest.mark.parametrize("normalizer", ["softmax", "sparsemax", "entmax15", 1.3])
@pytest.mark.parametrize("temperature", [1e-300, 1e-40])
def test_a_temperature_of_next_to_nothing(normalizer, temperature):
    table = table_of(4, 3, 3, dtype=torch.float32)
    d = sequence_distribution(Table(), table, max_len=3, normalizer=normalizer, temperature=temperature)
    assert d.support_size.tolist() == [1] * 4
    assert torch.equal(d.mode, greedy_sequence(Table(), table, max_len=3, temperature=temperature).message)


class Faulty(Table):
    """A decoder with a fault, from a given step on."""

    def __init__(self, fault, begin=lambda state: state, at=1):
        self.fault, self.first, self.at, self.steps = fault, begin, at, 0

    def begin(self, table):
        return self.first(super().begin(table))

    def step(self, state, symbols):
        scores, state = super().step(state, symbols)
        self.steps += 1
        return self.fault(scores, state) if self.steps > self.at else (scores, state)


FAULTS = {
    "no tensor": (Faulty(lambda scores, state: (scores.tolist(), state)), TypeError, "decoder's scores.*list"),
    "integers": (Faulty(lambda scores, state: (scores.long(), state)), TypeError, "decoder's scores.*int64"),
    "one axis": (Faulty(lambda scores, state: (scores[:, 0], state)), ValueError, r"decoder's scores.*\(\d+,\)"),
    "other examples": (
        Faulty(lambda scores, state: (scores[:1], state)),
        ValueError,
        r"decoder's scores must have shape \(\d+, 3\), got \(1, 3\)",
    ),
    "other symbols": (
        Faulty(lambda scores, state: (torch.cat((scores, scores), 1), state)),
        ValueError,
        r"decoder's scores must have shape \(\d+, 3\), got \(\d+, 6\)",
    ),
    "state of other examples": (
        Faulty(lambda scores, state: (scores, state["table"][:1]), at=0),
        ValueError,
        r"decoder's state.*4 prefixes.*\(1, 13, 3\)",
    ),
    "state of numbers": (
        Faulty(lambda scores, state: (scores, [state["table"], 3.5]), at=0),
        ValueError,
        "decoder's state.*float",
    ),
    "no state": (Faulty(None, begin=lambda state: None), ValueError, "decoder's state must hold a tensor"),
    "a number as state": (Faulty(None, begin=lambda state: torch.tensor(3.0)), ValueError, "decoder's state must hold"),
    "NaN": (
        Faulty(lambda scores, state: (scores * float("nan"), state)),
        ValueError,
        r"decoder's scores must be finite: \d+ are NaN",
    ),
    "infinite": (
        Faulty(lambda scores, state: (scores / 0, state), at=0),
        ValueError,
        r"decoder's scores must be finite: \d+ are",
    ),
}


@pytest.mark.parametrize("max_support", [None, 3])
@pytest.mark.parametrize("kind", FAULTS)
def test_faulty_decoders(kind, max_support):
    decoder, error, match = FAULTS[kind]
    decoder.steps = 0
    with pytest.raises(error, match=match):
        sequence_distribution(decoder, table_of(4, 3, 3, 0.3), max_len=3, max_support=max_support)


@pytest.mark.parametrize("solve", [sequence_distribution, greedy_sequence])
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"max_len": 0}, ValueError, "max_len must be at least 1, got 0"),
        ({"max_len": 2.0}, TypeError, "max_len must be an integer, got float"),
        ({"max_len": True}, TypeError, "max_len must be an integer, got bool"),
        ({"max_len": None}, TypeError, "max_len must be an integer, got NoneType"),
        ({"max_support": 0}, ValueError, "max_support must be at least 1, got 0"),
        ({"max_support": 1.5}, TypeError, "max_support must be an integer, got float"),
        ({"normalizer": "maxent"}, ValueError, "normalizer must be one of.*'maxent'"),
        ({"normalizer": 1.0}, ValueError, "normalizer.*above 1, got 1.0"),
        ({"normalizer": None}, TypeError, "normalizer must be.*NoneType"),
        ({"normalizer": torch.tensor([1.5, 1.5])}, ValueError, "normalizer must hold one"),
        ({"normalizer": torch.tensor(0.9)}, ValueError, "normalizer.*above 1"),
        ({"normalizer": torch.tensor(float("nan"))}, ValueError, "normalizer.*above 1"),
        ({"temperature": 0}, ValueError, "temperature must be.*got 0"),
        ({"temperature": float("nan")}, ValueError, "temperature must be.*got nan"),
    ],
    ids=str,
)
def test_options_that_are_none(solve, options, error, match):
    if solve is greedy_sequence and "max_support" in options:
        pytest.skip("greedy_sequence has no such option")
    with pytest.raises(error, match=match):
        solve(Table(), table_of(2, 3, 2), **{"max_len": 2, **options})
