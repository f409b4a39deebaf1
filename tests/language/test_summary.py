"""All statistics together, their standard errors, and exact and greedy side by side."""

import pytest
import torch

from egg_sparse import SparseDistribution, SparsemaxWrapper
from egg_sparse.estimators import BitVectorSampler, RelaxedWrapper, SymbolSampler
from egg_sparse.language import (
    Language,
    exact_and_greedy,
    language_of,
    standard_errors,
    statistics,
    topographic_similarity,
)
from egg_sparse.language import topography as topography_module
from egg_sparse.mappings import sparsemax

ATTRIBUTES = torch.cartesian_prod(torch.arange(4), torch.arange(4))


def compositional(n=1):
    return Language.of_messages(ATTRIBUTES.repeat(n, 1) + 1)


def test_of_a_compositional_language():
    found = statistics(compositional(), ATTRIBUTES)
    for name, value in {
        "entropy": 4,
        "conditional_entropy": 0,
        "information": 4,
        "perplexity": 16,
        "messages_used": 16,
        "synonyms": 1,
        "inputs_per_message": 1,
        "lexicon_size": 16,
        "length": 2,
        "length_of_types": 2,
        "abbreviation": 0,
        "posdis": 1,
        "bosdis": 0,  # a symbol stands for a value of both attributes
        "conflict_count": 0,
        "residual_entropy": 0,
        "topsim": 1,
        "topsim_pearson": 1,
        "exact": 1,
    }.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("shape", [(), (3,)], ids=["symbols", "sequences"])
def test_constant_messages_and_one_attribute_are_defined(shape):
    language = Language.of_messages(torch.full((6, *shape), 2))
    found = statistics(language, torch.arange(6))
    for name in ("information", "posdis", "bosdis", "topsim", "topsim_pearson"):
        assert found[name] == pytest.approx(0, abs=1e-12)
    for name in ("residual_entropy", "perplexity", "messages_used"):
        assert found[name] == pytest.approx(1)
    says_all = statistics(Language.of_messages(torch.arange(6)), torch.arange(6))
    assert says_all["posdis"] == pytest.approx(1)
    assert says_all["residual_entropy"] == says_all["conflict_count"] == 0


def test_the_order_of_symbols_matters_to_posdis_alone():
    messages = ATTRIBUTES + torch.tensor([1, 5])
    messages[::3] = messages[::3].flip(1)
    found = statistics(Language.of_messages(messages), ATTRIBUTES)
    assert found["bosdis"] == pytest.approx(1)
    assert found["posdis"] < 0.6


def test_messages_that_are_equally_far_apart_have_no_topographic_similarity():
    assert statistics(Language.of_messages(torch.arange(16)), ATTRIBUTES)["topsim"] == 0


def test_of_one_input():
    found = statistics(Language.of_messages(torch.tensor([[1, 2]])), torch.tensor([[1, 1]]))
    assert found["topsim"] == found["entropy"] == found["residual_entropy"] == 0


def test_what_needs_attributes_or_few_positions_is_left_out():
    language = Language.of_messages((torch.rand(8, 12) < 0.5).float())
    assert {"posdis", "topsim", "length"}.isdisjoint(statistics(language))
    found = statistics(language, torch.arange(8))
    assert "posdis" in found
    assert "residual_entropy" not in found
    images = torch.rand(8, 3, 3)
    assert statistics(language, inputs=images, input_distance="euclidean").keys() >= {"topsim", "exact"}


def test_symbols_may_be_any_whole_numbers():
    messages = ATTRIBUTES + 1
    messages[::3] = messages[::3].flip(1)
    spread = Language.of_messages(messages << torch.tensor([40, 58]))
    assert spread.messages.max() > 2**58
    assert statistics(spread, ATTRIBUTES)["residual_entropy"] > 0
    same = Language.of_messages(messages + torch.tensor([0, 4]))  # no symbol is at both positions there, either
    assert statistics(spread, ATTRIBUTES) == pytest.approx(statistics(same, ATTRIBUTES))


def test_frequencies_that_differ_by_rounding_errors_have_one_rank():
    a, b, c = [1, 1, 0, 0], [2, 0, 0, 0], [3, 3, 3, 0]
    messages = torch.tensor([[a, b, b], [c, b, c]])
    probs = torch.tensor([[5 / 6, 1, 4 / 6], [1 / 6, 0, 2 / 6]])
    distribution = SparseDistribution(messages, probs, lengths=(messages != 0).sum(2) + 1)
    language = Language(distribution, torch.tensor([2, 1, 1]))
    assert not torch.equal(language.marginal[0], language.marginal[1])  # 10 of 24 both
    assert language.abbreviation() == pytest.approx(-(0.75**0.5))


def test_exact_and_greedy():
    scores = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]])
    found = exact_and_greedy(Language(sparsemax(scores)))
    assert found["greedy"] == statistics(Language.of_messages(torch.tensor([0, 2])))
    assert found["exact"]["synonyms"] == 2
    assert found["greedy"]["synonyms"] == 1


def test_standard_errors_are_those_of_many_samples():
    """Languages of other inputs from the same source have statistics that spread as the bootstrap says."""

    def speak(seed):
        generator = torch.Generator().manual_seed(seed)
        values = torch.randint(0, 3, (300, 2), generator=generator)
        noise = torch.randint(0, 2, (300, 2), generator=generator)
        return Language.of_messages(values + noise + 1), values

    names = ("entropy", "posdis", "bosdis", "topsim", "residual_entropy")
    samples = [statistics(*speak(seed)) for seed in range(1, 41)]
    errors = standard_errors(*speak(0), n_resamples=40)
    for name in names:
        spread = float(torch.tensor([found[name] for found in samples]).std())
        assert 0.6 * spread < errors[name] < 1.6 * spread, name
    assert errors["exact"] == 0


def test_two_draws_of_an_input_are_no_pair():
    """The topographic similarity of a bootstrap is that of pairs of different inputs."""
    language, errors = compositional(), standard_errors(compositional(), ATTRIBUTES, n_resamples=5)
    assert errors["topsim"] == pytest.approx(0, abs=1e-9)
    assert statistics(language.weighted(torch.arange(16)), ATTRIBUTES)["topsim"] == pytest.approx(1)


def test_bounded_supports_are_not_called_exact():
    distribution = SparseDistribution(torch.tensor([[1, 1], [2, 2]]), torch.full((2, 2), 0.5))
    distribution.is_exact = torch.tensor([True, False])
    assert statistics(Language(distribution))["exact"] == 0.5


class Agent(torch.nn.Linear):
    def forward(self, sender_input, aux_input=None):
        return super().forward(sender_input)


class LogProbs(torch.nn.Module):
    def __init__(self, agent):
        super().__init__()
        self.agent = agent

    def forward(self, sender_input, aux_input=None):
        return self.agent(sender_input).log_softmax(1)


class TestLanguageOf:
    """What senders of both kinds speak."""

    inputs = torch.randn(7, 3)

    def test_exact_in_batches_and_in_the_mode_as_before(self):
        sender = SparsemaxWrapper(Agent(3, 5))
        sender.train()
        found = language_of(sender, self.inputs, batch_size=3)
        assert sender.training
        whole = Language(sender.eval().distribution(self.inputs))
        assert len(found) == 7
        assert torch.equal(found.messages, whole.messages)
        assert torch.allclose(found.marginal, whole.marginal)

    def test_of_batches_of_a_loader(self):
        sender = SparsemaxWrapper(Agent(3, 5))
        batches = [(self.inputs[:4], None), (self.inputs[4:], None, None, None)]
        assert torch.allclose(language_of(sender, batches).marginal, language_of(sender, self.inputs).marginal)

    @pytest.mark.parametrize("relaxed", [True, False])
    def test_of_other_senders_of_symbols(self, core, relaxed):
        agent = Agent(3, 5)
        sender = core.GumbelSoftmaxWrapper(agent) if relaxed else core.ReinforceWrapper(LogProbs(agent))
        found = language_of(sender, self.inputs)
        probs = agent(self.inputs).softmax(1)
        assert torch.allclose(found.marginal.float(), probs.mean(0))
        assert torch.equal(found.greedy().positions[:, 0], probs.argmax(1))

    @pytest.mark.parametrize("relaxed", [True, False])
    def test_of_samplers(self, relaxed):
        sampler = SymbolSampler(agent := Agent(3, 5))
        found = language_of(RelaxedWrapper(sampler) if relaxed else sampler, self.inputs)
        assert torch.equal(found.greedy().positions[:, 0], agent(self.inputs).argmax(1))
        assert found.synonyms() == pytest.approx(5)
        bits = language_of(BitVectorSampler(agent), self.inputs)
        assert torch.equal(bits.positions, (agent(self.inputs) > 0).long())

    def test_of_sequences_of_other_senders(self, core):
        sender = core.RnnSenderReinforce(Agent(3, 6), 5, 4, 6, max_len=3)
        found = language_of(sender, self.inputs)
        assert found.kind == "sequences"
        assert statistics(found)["synonyms"] == pytest.approx(1)
        assert statistics(found)["exact"] == 0, "other messages may have a probability, too"

    def test_every_part_is_in_its_own_mode_afterwards(self):
        sender = SparsemaxWrapper(torch.nn.Sequential(torch.nn.Linear(3, 5)))
        sender.agent.forward = lambda sender_input, aux_input=None: sender.agent[0](sender_input)
        sender.train()
        sender.agent[0].eval()  # frozen
        language_of(sender, self.inputs)
        assert sender.training
        assert not sender.agent[0].training

    @pytest.mark.parametrize("inputs", [[torch.randn(7, 3)], torch.randn(7, 3).numpy()])
    def test_refuses_batches_that_are_no_tuples(self, inputs):
        with pytest.raises(TypeError, match="inputs must be a tensor, or batches that are tuples"):
            language_of(SparsemaxWrapper(Agent(3, 5)), inputs)

    def test_refuses_an_auxiliary_input_beside_batches(self):
        with pytest.raises(ValueError, match="aux_input must be None where inputs are batches"):
            language_of(SparsemaxWrapper(Agent(3, 5)), [(self.inputs,)], aux_input={"x": self.inputs})

    def test_refuses_an_auxiliary_input_that_is_no_dict(self):
        with pytest.raises(TypeError, match="aux_input must be a dict of tensors, got Tensor"):
            language_of(SparsemaxWrapper(Agent(3, 5)), self.inputs, aux_input=self.inputs)

    def test_refuses_what_is_no_message(self):
        class Silent(torch.nn.Module):
            def forward(self, sender_input, aux_input=None):
                return None

        with pytest.raises(TypeError, match="sender must return a distribution or messages, got NoneType"):
            language_of(Silent(), self.inputs)


class TestMistakes:
    """A sentence that names the argument."""

    language = Language.of_messages(torch.arange(4))

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda it: statistics(it, torch.arange(3)), r"attributes must have shape \(N, A\) with N = 4 inputs"),
            (lambda it: statistics(it, inputs=torch.rand(3, 2)), "inputs must have the 4 inputs of the language"),
            (lambda it: statistics(it, torch.arange(4), input_distance="edit"), "input_distance must be a function or"),
            (lambda it: statistics(it, torch.arange(4), message_distance="l2"), "message_distance must be a function"),
            (lambda it: statistics(it, inputs=torch.zeros(4, 2), input_distance="cosine"), 'input_distance "cosine"'),
            (lambda it: statistics(it, mass=0.0), "mass must be above 0"),
            (lambda it: standard_errors(it, n_resamples=1), "n_resamples must be at least 2, got 1"),
            (lambda it: it.weighted(torch.zeros(4)), "weights must be finite, non-negative and not all 0"),
            (lambda it: it.weighted(torch.ones(3)), r"weights must have shape \(4,\)"),
            (lambda it: Language.of_messages(torch.rand(4, 3)), "relaxed messages"),
            (lambda it: Language.of_messages(torch.tensor([-1])), "at least 0, got -1"),
            (lambda it: Language.of_messages(torch.arange(3), "words"), "kind must be one of .* got 'words'"),
            (lambda it: Language.of_messages(torch.arange(3), "sequences"), "messages of kind sequences must have"),
            (lambda it: Language.of_messages(torch.eye(3), "sequences"), "messages must be whole numbers"),
            (lambda it: Language.of_messages(torch.tensor([[1, 2]]), "symbols"), "one-hot rows"),
            (lambda it: Language.of_messages(torch.zeros(3, 0).long()), r"messages must be .* got \(3, 0\)"),
            (lambda it: statistics(it, torch.tensor([0, 1, 2, float("nan")])), "attributes must be finite"),
            (lambda it: statistics(it, inputs=torch.tensor([0, 1, 2, float("inf")])), "inputs must be finite"),
            (lambda it: Language([]), "at least one input"),
        ],
    )
    def test_values(self, call, message):
        with pytest.raises(ValueError, match=message):
            call(self.language)

    def test_a_distance_of_another_shape(self):
        with pytest.raises(ValueError, match=r"input_distance must return finite distances of shape \(4, 4\)"):
            statistics(self.language, torch.arange(4), input_distance=lambda a, b: a.sum())

    @pytest.mark.parametrize("prob", [0.0, float("nan")])
    def test_an_input_without_messages(self, prob):
        probs = torch.tensor([[1.0, prob]])
        with pytest.raises(ValueError, match="distributions must give every input a message"):
            Language(SparseDistribution(torch.tensor([[1, 2]]), probs, validate_args=False))

    def test_kinds_are_not_mixed(self):
        bits = SparseDistribution(torch.ones(1, 1, 3), torch.ones(1, 1))
        with pytest.raises(ValueError, match="messages of one kind"):
            Language([bits, SparseDistribution(torch.ones(1, 1).long(), torch.ones(1, 1))])
        with pytest.raises(TypeError, match="distributions must be SparseDistributions, got Tensor"):
            Language([torch.ones(1)])


@pytest.mark.parametrize(
    ("attributes", "error", "text"),
    [
        (torch.tensor([0.0, float("nan")]), ValueError, "attributes must be finite"),
        ("ab", TypeError, "attributes must be a tensor of numbers, got str"),
    ],
)
def test_attributes_that_are_no_numbers_are_refused(attributes, error, text):
    with pytest.raises(error, match=text):
        statistics(Language.of_messages(torch.tensor([4, 2])), attributes)


def test_a_bootstrap_visits_the_pairs_of_messages_once(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    attributes = torch.randint(0, 3, (30, 2), generator=generator)
    language = Language(sparsemax(torch.randn(30, 20, generator=generator)))
    topography = topography_module.Topography(language, attributes, "hamming", "hamming")
    once = topography.similarity(language)
    products = []
    monkeypatch.setattr(torch.sparse, "mm", lambda *_: products.append(1))
    assert topography.similarity(language) == once
    assert topography.similarity(language.weighted(torch.arange(30.0)), "pearson") != once
    assert products == []


@pytest.mark.parametrize("correlation", ["spearman", "pearson"])
def test_the_similarity_is_the_same_where_too_much_would_be_kept(monkeypatch, correlation):
    generator = torch.Generator().manual_seed(0)
    attributes = torch.randint(0, 3, (30, 2), generator=generator)
    language = Language(sparsemax(torch.randn(30, 20, generator=generator))).weighted(torch.arange(30.0))
    kept = topographic_similarity(language, attributes, message_distance="hamming", correlation=correlation)
    monkeypatch.setattr(topography_module.Topography, "_shares_of_codes", lambda _: None)
    visited = topographic_similarity(language, attributes, message_distance="hamming", correlation=correlation)
    assert kept == pytest.approx(visited, abs=1e-12)
