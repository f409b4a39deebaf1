"""Statistics of languages against loops over all pairs."""

import collections
import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import language_by_loops as by_loops
from egg_sparse import SparseDistribution
from egg_sparse.language import (
    Language,
    attribute_information,
    bosdis,
    conflict_count,
    posdis,
    residual_entropy,
    topographic_similarity,
    topography,
)
from egg_sparse.language import attributes as attributes_of_messages

Case = collections.namedtuple("Case", "language table weights attributes kind width")


@st.composite
def cases(draw, kinds=("symbols", "bits", "sequences")):
    kind = draw(st.sampled_from(kinds))
    n = draw(st.integers(1, 5))
    largest = draw(st.integers(1, 3))
    width = 1 if kind == "symbols" else draw(st.integers(1, 3))
    symbol = st.integers(0, 1 if kind == "bits" else 2)
    message = st.tuples(*[symbol] * width)
    if kind == "sequences":
        message = message.map(by_loops.until_end).map(lambda m: m + (0,) * (width - len(m)))
    supports = [draw(st.lists(message, min_size=1, max_size=largest, unique=True)) for _ in range(n)]
    masses = [sorted(draw(st.lists(st.integers(1, 9), min_size=len(s), max_size=len(s))))[::-1] for s in supports]
    weights = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n).filter(any))
    attributes = draw(st.lists(st.tuples(*[st.integers(0, 2)] * draw(st.integers(1, 3))), min_size=n, max_size=n))
    rows = max(map(len, supports))
    messages = torch.tensor([[s[min(k, len(s) - 1) if k < len(s) else 0] for s in supports] for k in range(rows)])
    shares = [[m[k] / sum(m) if k < len(m) else 0.0 for m in masses] for k in range(rows)]
    probs = torch.tensor(shares, dtype=torch.double)
    lengths = None
    if kind == "symbols":
        messages = messages[:, :, 0]
    elif kind == "bits":
        messages = messages.double()
    else:
        messages = torch.nn.functional.pad(messages, (0, 1))
        lengths = (messages != 0).sum(2) + 1
    parts = [slice(0, n)] if draw(st.booleans()) else [slice(i, i + 1) for i in range(n)]
    batches = [
        SparseDistribution(messages[:, part], probs[:, part], lengths=None if lengths is None else lengths[:, part])
        for part in parts
    ]
    shares = [w / sum(weights) for w in weights]
    table = [
        (x, m, shares[x] * p / sum(masses[x]))
        for x in range(n)
        for m, p in zip(supports[x], masses[x], strict=True)
        if shares[x]
    ]
    language = Language(batches, torch.tensor(weights))
    return Case(language, table, shares, attributes, kind, width)


def close(value):
    return pytest.approx(value, abs=1e-9)


@given(cases())
@settings(max_examples=60, deadline=None)
def test_entropies(case):
    language, table = case.language, case.table
    of_messages = by_loops.grouped(table, lambda x, m: m)
    joint = by_loops.entropy(by_loops.grouped(table, lambda x, m: (x, m)))
    of_inputs = by_loops.entropy(dict(enumerate(case.weights)))
    assert language.entropy() == close(by_loops.entropy(of_messages))
    assert language.input_entropy() == close(of_inputs)
    assert language.conditional_entropy() == close(joint - of_inputs)
    assert language.information() == close(by_loops.entropy(of_messages) - joint + of_inputs)
    assert language.perplexity() == close(2 ** by_loops.entropy(of_messages))


@given(cases())
@settings(max_examples=60, deadline=None)
def test_usage(case):
    language, table = case.language, case.table
    of_messages = sorted(by_loops.grouped(table, lambda x, m: m).values(), reverse=True)
    counts = collections.Counter(x for x, _, _ in table)
    assert language.messages_used() == len(of_messages)
    assert language.synonyms() == close(sum(case.weights[x] * count for x, count in counts.items()))
    assert language.inputs_per_message() == close(len(table) / len(of_messages))
    enough = [k for k in range(1, len(of_messages) + 1) if sum(of_messages[:k]) >= 0.8 - 1e-12]
    assert language.lexicon_size(0.8) == enough[0]
    assert language.lexicon_size(1.0) == len(of_messages)


@given(cases(("sequences",)))
@settings(max_examples=40, deadline=None)
def test_lengths(case):
    language, table = case.language, case.table
    of_messages = by_loops.grouped(table, lambda x, m: m)
    lengths = [len(by_loops.until_end(m)) for m in of_messages]
    assert language.expected_length() == close(sum(p * n for p, n in zip(of_messages.values(), lengths, strict=True)))
    assert language.mean_length_of_types() == close(sum(lengths) / len(lengths))
    law = by_loops.weighted_correlation(list(of_messages.values()), lengths, [1] * len(lengths), True)
    assert language.abbreviation() == pytest.approx(law, abs=1e-6)


@given(cases())
@settings(max_examples=80, deadline=None)
def test_attributes(case):
    language, table, attributes = case.language, case.table, case.attributes
    values = torch.tensor(attributes)
    found = attribute_information(language, values)
    for i in range(values.shape[1]):
        for j in range(case.width):
            said = by_loops.information(table, lambda x, m, i=i: attributes[x][i], lambda x, m, j=j: m[j])
            assert float(found[i, j]) == close(said)
    positions = [lambda m, j=j: m[j] for j in range(case.width)]
    assert posdis(language, values) == close(by_loops.gap(table, attributes, positions))
    symbols = range(0 if case.kind == "symbols" else 1, 3)
    counts = [lambda m, s=s: m.count(s) for s in symbols]
    assert bosdis(language, values) == close(by_loops.gap(table, attributes, counts))
    assert residual_entropy(language, values) == close(by_loops.residual_entropy(table, attributes, case.width))
    widest = case.width
    if case.kind == "sequences":
        widest = max(1, int(language.lengths.max()))
    conflicts = by_loops.conflict_count(table, attributes, widest, len(language))
    assert conflict_count(language, values) == pytest.approx(conflicts, abs=1e-8)


def hamming(a, b):
    return sum(x != y for x, y in zip(a, b, strict=True)) / len(a)


@pytest.mark.parametrize("ranked", [True, False], ids=["spearman", "pearson"])
@given(case=cases())
@settings(max_examples=60, deadline=None)
def test_topographic_similarity(case, ranked):
    language, table, attributes = case.language, case.table, case.attributes
    cut = by_loops.until_end if case.kind == "sequences" else tuple
    expected = by_loops.topographic_similarity(
        table, case.weights, attributes, hamming, lambda m, n: by_loops.edit(cut(m), cut(n)), ranked
    )
    values, correlation = torch.tensor(attributes), "spearman" if ranked else "pearson"
    assert topographic_similarity(language, values, correlation=correlation) == pytest.approx(expected, abs=1e-7)
    euclidean = by_loops.topographic_similarity(table, case.weights, attributes, math.dist, hamming, ranked)
    found = topographic_similarity(
        language, values.float(), "euclidean", lambda m, n: (m[:, None] != n).double().mean(2), correlation
    )
    if case.kind != "sequences":  # whose positions the loops count without the end
        assert found == pytest.approx(euclidean, abs=1e-7)


@pytest.mark.parametrize("kept", [16, 1500])
@pytest.mark.parametrize("correlation", ["spearman", "pearson"])
@pytest.mark.parametrize("distances", [("euclidean", "edit"), ("cosine", "jaccard")])
def test_blocks_give_what_all_pairs_at_once_give(correlation, distances, kept, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(40, 3, generator=generator, dtype=torch.double)
    messages = torch.randint(0, 4, (2, 40, 5), generator=generator)
    messages = messages * (messages != 0).long().cumprod(2)
    messages[:, :, -1] = 0
    messages[1, :, 0] = 5  # another message than in row 0
    messages[1] = messages[1] * (messages[1] != 0).long().cumprod(1)
    probs = torch.tensor([[0.75], [0.25]]).expand(2, 40)
    language = Language(SparseDistribution(messages, probs, lengths=(messages != 0).sum(2) + 1))
    whole = topographic_similarity(language, inputs, *distances, correlation)
    monkeypatch.setattr(topography, "KEPT", kept)
    monkeypatch.setattr(topography, "BLOCK", 700)
    assert topographic_similarity(language, inputs, *distances, correlation) == pytest.approx(whole, abs=1e-12)
    monkeypatch.setattr(topography, "MAX_RANKS", 400)  # 1,560 pairs of inputs
    assert topographic_similarity(language, inputs, *distances, correlation) == pytest.approx(whole, abs=1e-2)
    assert whole != 0


@pytest.mark.parametrize("many", ["smallest", "middle"])
def test_many_equal_distances_keep_one_rank_where_intervals_are_shared(many, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    if many == "smallest":
        inputs = torch.randn(300, 2, generator=generator, dtype=torch.double)
        inputs[:150] = 0  # a quarter of the pairs
    else:
        near = 1 + 1e-4 * torch.rand(99, 1, generator=generator, dtype=torch.double)
        inputs = torch.cat((torch.zeros(100, 1), torch.ones(100, 1), near, torch.full((1, 1), 1000.0)))
    messages = torch.randint(1, 4, (300, 3), generator=generator)
    messages[:, 0] = (inputs[:, 0] > 0.5).long() + 1
    language = Language.of_messages(messages)
    whole = topographic_similarity(language, inputs, "euclidean")
    monkeypatch.setattr(topography, "KEPT", 16)
    monkeypatch.setattr(topography, "BLOCK", 3000)
    monkeypatch.setattr(topography, "MAX_RANKS", 2000)
    assert topographic_similarity(language, inputs, "euclidean") == pytest.approx(whole, abs=1e-3)


class LargestTensor(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that is made."""

    n_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        for each in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(each, torch.Tensor):
                stored = each._values() if each.is_sparse else each
                self.n_elements = max(self.n_elements, stored.numel())
        return made


def test_memory_is_bounded_with_large_supports(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    messages = torch.stack([torch.randperm(200, generator=generator)[:180] for _ in range(8)], 1)
    language = Language(SparseDistribution(messages, torch.full((180, 8), 1 / 180)))
    monkeypatch.setattr(topography, "KEPT", 16)
    monkeypatch.setattr(topography, "BLOCK", 1 << 15)
    with LargestTensor() as largest:
        topographic_similarity(language, torch.arange(8), message_distance="hamming")
    assert largest.n_elements <= 1 << 16


def test_residual_entropy_keeps_few_sets_of_positions_at_once():
    language = Language.of_messages((torch.rand(200, 9, generator=torch.Generator().manual_seed(0)) < 0.5).float())
    codes, kept = [], []

    def joined(first, second):
        kept.append(sum(code() is not None for code in codes))
        code = (first * (second.max() + 1) + second).unique(return_inverse=True)[1]
        codes.append(weakref.ref(code))
        return code

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attributes_of_messages, "_joined", joined)
        residual_entropy(language, torch.arange(200) % 5)
    assert len(codes) > 512
    assert max(kept) < 20
