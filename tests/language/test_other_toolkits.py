"""The statistics of deterministic languages against EGG's and emlangkit's; where those are wrong, how."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine, pdist

from egg_sparse import SparseDistribution
from egg_sparse.language import (
    Language,
    bosdis,
    emlangkit_arrays,
    posdis,
    sent_messages,
    statistics,
    topographic_similarity,
    write_elcc,
)


def spoken(seed, end=False):
    """Attributes and messages of 60 objects, related but not perfectly; with ``end`` some messages end early."""
    generator = torch.Generator().manual_seed(seed)
    attributes = torch.randint(0, 4, (60, 3), generator=generator)
    noise = torch.randint(0, 2, (60, 3), generator=generator)
    messages = attributes + noise + 1
    if end:
        messages = messages * (torch.rand(60, 3, generator=generator) < 0.8)
    return attributes, messages


@pytest.mark.parametrize("seed", [1, 2, 3])
class TestEGG:
    """EGG's functions, of the stand-in as of the real EGG where it is installed."""

    def test_topographic_similarity(self, core, seed):
        attributes, messages = spoken(seed)
        theirs = core.TopographicSimilarity.compute_topsim(attributes, messages, "hamming", "edit")
        assert topographic_similarity(Language.of_messages(messages), attributes) == pytest.approx(theirs, abs=1e-9)
        real = attributes + torch.rand(60, 3)
        theirs = core.TopographicSimilarity.compute_topsim(real, messages, "cosine", "euclidean")
        found = topographic_similarity(Language.of_messages(messages), real, "cosine", "euclidean")
        assert found == pytest.approx(theirs, abs=1e-9)

    def test_it_ranks_rounding_errors(self, core, seed):
        """Cosines that are equal differ in their last digit, and have different ranks then."""
        attributes, messages = spoken(seed)

        def rounded(first, second):
            return round(cosine(first, second), 9)

        real = attributes.double() + 1
        ours = topographic_similarity(Language.of_messages(messages), real, "cosine", "euclidean")
        compute = core.TopographicSimilarity.compute_topsim
        assert ours == pytest.approx(compute(real, messages, rounded, "euclidean"), abs=1e-9)
        assert ours != pytest.approx(compute(real, messages, "cosine", "euclidean"), abs=1e-6)

    def test_it_counts_edits_after_the_end(self, core, seed):
        """What follows the end symbol has no meaning, but EGG compares it, and divides by the padded length."""
        attributes, messages = spoken(seed, end=True)
        cut = messages * (messages != 0).long().cumprod(1)
        compute = core.TopographicSimilarity.compute_topsim
        assert compute(attributes, messages, "hamming", "edit") != compute(attributes, cut, "hamming", "edit")
        ours = topographic_similarity(Language.of_messages(messages), attributes)
        assert ours == topographic_similarity(Language.of_messages(cut), attributes)
        assert ours != pytest.approx(compute(attributes, cut, "hamming", "edit"), abs=1e-6)

    def test_posdis_and_bosdis(self, egg, seed):
        attributes, messages = spoken(seed)
        language = Language.of_messages(messages)
        assert posdis(language, attributes) == pytest.approx(egg.Disent.posdis(attributes, messages), abs=1e-5)
        theirs = egg.Disent.bosdis(attributes, messages, vocab_size=8)
        assert bosdis(language, attributes) == pytest.approx(theirs, abs=1e-5)

    def test_entropy(self, egg, seed):
        from egg.core.language_analysis import calc_entropy, mutual_info

        _, messages = spoken(seed)
        found = statistics(Language.of_messages(messages))
        assert found["entropy"] == pytest.approx(calc_entropy(messages), abs=1e-5)
        said = mutual_info(torch.arange(60), messages)
        assert found["information"] == pytest.approx(said, abs=1e-5)


def test_egg_fails_for_one_attribute_and_constant_messages(egg):
    attributes, messages = spoken(1)
    with pytest.raises(IndexError):
        egg.Disent.posdis(attributes[:, :1], messages)
    assert math.isnan(egg.Disent.posdis(attributes, torch.ones_like(messages)))
    assert 0 < posdis(Language.of_messages(messages), attributes[:, :1]) < 1
    assert posdis(Language.of_messages(torch.ones_like(messages)), attributes) == 0


@pytest.mark.parametrize("seed", [1, 2, 3])
class TestEmlangkit:
    """emlangkit's metrics, where it is installed."""

    @pytest.fixture
    def metrics(self):
        return pytest.importorskip("emlangkit.metrics")

    def test_what_agrees(self, metrics, seed):
        attributes, messages = spoken(seed)
        language = Language.of_messages(messages)
        sent, observed = emlangkit_arrays(language, attributes)
        found = statistics(language, attributes)
        assert found["topsim"] == pytest.approx(metrics.compute_topographic_similarity(sent, observed)[0], abs=1e-9)
        assert found["posdis"] == pytest.approx(metrics.compute_posdis(sent, observed), abs=1e-9)
        assert found["bosdis"] == pytest.approx(metrics.compute_bosdis(sent, observed), abs=1e-9)
        assert found["entropy"] == pytest.approx(metrics.compute_entropy(sent), abs=1e-9)
        said = metrics.compute_mutual_information(sent, observed)
        assert Language.of_messages(messages).information() >= said - 1e-9, "attributes say at most what inputs say"

    def test_where_it_differs(self, metrics, seed):
        """It takes the end symbol for a symbol, needs two attributes, and gives NaN for constant messages."""
        attributes, messages = spoken(seed, end=True)
        language = Language.of_messages(messages)
        sent, observed = emlangkit_arrays(language, attributes)
        assert metrics.compute_bosdis(sent, observed) != pytest.approx(bosdis(language, attributes), abs=1e-6)
        with pytest.raises(IndexError):
            metrics.compute_posdis(sent, observed[:, :1])
        assert math.isnan(metrics.compute_posdis(sent * 0, observed))

    def test_its_law_of_abbreviation_counts_the_words_of_the_corpus(self, metrics, seed):
        """The "length" of each word is the number of messages, whatever the word."""
        lengths, _ = metrics.zla([["a", "bbb"], ["bbb", "cc"], ["cc", "bbb"]])
        assert set(lengths) == {3}


def test_jaccard_is_right_however_wide_the_inputs_are():
    inputs = torch.randint(0, 3, (12, 70_000))
    inputs[0] = inputs[1] = 0
    messages = torch.randint(1, 9, (12, 2))
    found = topographic_similarity(Language.of_messages(messages), inputs, "jaccard", "hamming", "pearson")
    between_messages = pdist(messages.numpy(), lambda a, b: (a != b).mean())
    expected = np.corrcoef(pdist(inputs.numpy(), jaccard_of_numbers), between_messages)[0, 1]
    assert found == pytest.approx(expected, abs=1e-9)


def jaccard_of_numbers(first, second):
    present = (first != 0) | (second != 0)
    return (first != second)[present].mean() if present.any() else 0.0


class TestExports:
    """Arrays and files for other tools."""

    language = Language(
        SparseDistribution(
            torch.tensor([[[3, 1, 0], [2, 0, 0]], [[0, 0, 0], [2, 0, 0]]]),
            torch.tensor([[0.75, 1.0], [0.25, 0.0]]),
            lengths=torch.tensor([[3, 2], [1, 2]]),
        )
    )

    def test_greedy_messages_in_the_order_of_the_inputs(self):
        messages, inputs = sent_messages(self.language)
        assert messages.tolist() == [[3, 1, 0], [2, 0, 0]]
        assert inputs.tolist() == [0, 1]

    def test_drawn_messages_have_the_frequencies_of_the_language(self):
        messages, inputs = sent_messages(self.language, samples=4000, seed=1)
        assert inputs.tolist() == [0] * 4000 + [1] * 4000
        share = float((messages[:4000] == torch.tensor([3, 1, 0])).all(1).float().mean())
        assert share == pytest.approx(0.75, abs=0.03)
        assert {tuple(row) for row in messages[4000:].tolist()} == {(2, 0, 0)}
        assert torch.equal(messages, sent_messages(self.language, 4000, 1)[0])

    def test_arrays(self):
        messages, observations = emlangkit_arrays(self.language, torch.tensor([[7, 8], [9, 8]]), samples=2)
        assert messages.shape == (4, 2)
        assert observations.tolist() == [[7, 8], [7, 8], [9, 8], [9, 8]]

    def test_elcc(self, tmp_path):
        known = {"game_subtype": "discrimination", "paper": "https://arxiv.org/abs/2007.01919", "options": {"seed": 1}}
        file = write_elcc(self.language, tmp_path, "signal-game", "seed-1", known, {"entropy": 1.5}, samples=20)
        write_elcc(self.language, tmp_path, "signal-game", "seed-2", {**known, "options": {"seed": 2}})
        assert file == tmp_path / "systems/signal-game/data/seed-1/corpus.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert len(lines) == 40
        assert {tuple(line) for line in lines} == {(3, 1), (2,), ()}
        yaml = pytest.importorskip("yaml")
        described = yaml.safe_load((tmp_path / "systems/signal-game/metadata.yml").read_text())
        assert described["origin"] == {"name": "signal-game", "paper": "https://arxiv.org/abs/2007.01919"}
        assert described["system"]["game_subtype"] == "discrimination"
        assert described["system"]["variants"] == {"seed-1": {"seed": 1}, "seed-2": {"seed": 2}}
        assert json.loads((file.parent / "metadata.json").read_text()) == {"entropy": 1.5}

    @pytest.mark.parametrize("name", ["", "..", "a/b"])
    def test_names_that_leave_the_folder_are_refused(self, tmp_path, name):
        with pytest.raises(ValueError, match="variant must be the name of a folder"):
            write_elcc(self.language, tmp_path, "system", name)
        assert not list(tmp_path.iterdir())
