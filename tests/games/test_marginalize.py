"""EGG's games, converted: the same agents, the exact loss, and a sentence for what cannot be converted."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse import (
    CommunicationMarg,
    CommunicationRnnMarg,
    SenderReceiverRnnMarg,
    SparsemaxWrapper,
    SymbolGameMarg,
    host,
    marginalize,
    standin,
)
from small_sequences import (
    EMBED,
    FEATURES,
    HIDDEN,
    MAPPINGS,
    MAX_LEN,
    OUTPUTS,
    Acting,
    Agent,
    batch_of,
    distance,
    enumerated,
    rnn_senders,
    wrong,
)
from small_sequences import VOCAB as VOCAB_OF_SEQUENCES

VOCAB = 12


class Sender(nn.Linear):
    def __init__(self):
        super().__init__(5, VOCAB)

    def forward(self, x, aux_input=None):
        return super().forward(x).log_softmax(1)


class Receiver(nn.Module):
    """Reads one-hot messages and symbol ids alike."""

    def __init__(self):
        super().__init__()
        self.read = nn.Parameter(torch.randn(VOCAB, 4))

    def forward(self, message, receiver_input=None, aux_input=None):
        read = message @ self.read if message.is_floating_point() else self.read[message]
        return read.log_softmax(1)


def nll(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    return F.nll_loss(receiver_output, labels, reduction="none"), {}


def miss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    return (receiver_output != labels).float(), {}


def reinforced(core, receiver=None, loss=nll, **options):
    receiver = core.ReinforceDeterministicWrapper(Receiver()) if receiver is None else receiver
    return core.SymbolGameReinforce(core.ReinforceWrapper(Sender()), receiver, loss, **options)


def relaxed(core, **options):
    return core.SymbolGameGS(core.GumbelSoftmaxWrapper(Sender(), temperature=0.7), Receiver(), nll, **options)


X, LABELS = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 4


def expected_loss(sender, receiver, temperature=1.0):
    """The sum over the whole vocabulary."""
    d = SparsemaxWrapper(nn.Identity(), temperature=temperature)(sender(X).detach())
    total = 0
    for symbol in range(VOCAB):
        prob = torch.where((d.messages == symbol) & d.mask, d.probs, 0).sum(0)
        total = total + prob * nll(X, None, None, receiver(torch.full((7,), symbol)), LABELS, None)[0]
    return total.mean()


@pytest.mark.parametrize("build", [reinforced, relaxed])
def test_a_converted_game_has_the_exact_loss_and_the_same_parameters(core, build):
    game = build(core)
    converted = marginalize(game, support=None)
    assert isinstance(converted, SymbolGameMarg)
    assert converted.sender.message_format == ("index" if build is reinforced else "one_hot")
    receiver = game.receiver.agent if build is reinforced else game.receiver
    assert converted.receiver is game.receiver
    loss, interaction = converted(X, LABELS)
    torch.testing.assert_close(loss, expected_loss(game.sender.agent, receiver))
    assert "receiver_entropy" not in interaction.aux
    assert {id(p) for p in converted.parameters()} == {id(p) for p in game.parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("build", [reinforced, relaxed])
@pytest.mark.parametrize("when", ["before", "after"])
def test_trains_with_an_optimizer_built_before_or_after(core, build, when):
    game = build(core)
    optimizer = torch.optim.Adam(game.parameters(), lr=0.05)
    converted = marginalize(game)
    if when == "after":
        optimizer = torch.optim.Adam(converted.parameters(), lr=0.05)
    core.init(params=["--n_epochs=30", "--random_seed=1"])
    receiver = game.receiver.agent if build is reinforced else game.receiver
    first = float(expected_loss(converted.sender.agent, receiver).detach())
    core.Trainer(converted, optimizer, [(X, LABELS)] * 5).train(30)
    assert float(expected_loss(game.sender.agent, receiver).detach()) < first / 2


def test_takes_over_what_the_game_was_given(core):
    train, test = core.LoggingStrategy.minimal(), core.LoggingStrategy()
    game = reinforced(
        core, core.ReinforceWrapper(Receiver()), miss, sender_entropy_coeff=0.2, receiver_entropy_coeff=0.1,
        train_logging_strategy=train, test_logging_strategy=test,
    ).eval()  # fmt: skip
    converted = marginalize(game)
    assert (converted.sender_entropy_coeff, converted.receiver_entropy_coeff) == (0.2, 0.1)
    assert converted.train_logging_strategy is train
    assert converted.test_logging_strategy is test
    assert not converted.training
    assert marginalize(game, sender_entropy_coeff=0.0).sender_entropy_coeff == 0


def test_options_go_where_they_belong(core):
    game = marginalize(
        reinforced(core), normalizer=1.5, temperature=2.0, strategy="gather", max_support=3, evaluation="expected"
    )
    assert (game.sender.alpha, game.sender.temperature) == (1.5, 2.0)
    assert (game.strategy, game.max_support, game.evaluation) == ("gather", 3, "expected")


@pytest.mark.parametrize("nested", [False, True])
def test_acting_receivers_still_act(core, nested):
    class Outer(nn.Module):
        """An acting receiver behind a layer of its own, as EGG's SymbolReceiverWrapper is."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *args):
            return self.inner(*args)

    acting = core.ReinforceWrapper(Receiver())
    game = reinforced(core, Outer(acting) if nested else acting, miss)
    converted = marginalize(game, support=None, strategy="loop")
    loss, interaction = converted(X, LABELS)
    assert "receiver_entropy" in interaction.aux
    loss.backward()
    assert acting.agent.read.grad.abs().sum() > 0


@pytest.mark.parametrize("sampler", ["UniformAgentSampler", "FullSweepAgentSampler"])
def test_a_population_is_converted(core, sampler):
    class Mechanics(nn.Module):
        sender_entropy_coeff = 0.3

    senders = [core.GumbelSoftmaxWrapper(Sender()) for _ in range(2)]
    receivers = [Receiver() for _ in range(2)]
    game = core.PopulationGame(Mechanics(), getattr(core, sampler)(senders, receivers, [nll]))
    converted = marginalize(game, support=None)
    assert isinstance(converted.game, CommunicationMarg)
    assert converted.game.sender_entropy_coeff == 0.3
    converted.game.sender_entropy_coeff = 0.0
    pairs = [float(expected_loss(s.agent, r).detach()) for s in senders for r in receivers]
    found = [float(converted(X, LABELS)[0].detach()) for _ in range(40)]
    assert all(min(abs(value - pair) for pair in pairs) < 1e-5 for value in found)
    assert all(min(abs(value - pair) for value in found) < 1e-5 for pair in pairs), "every pair is drawn"
    assert all(isinstance(sender, core.GumbelSoftmaxWrapper) for sender in game.agents_loss_sampler.senders)
    assert {id(p) for p in converted.parameters()} == {id(p) for p in game.parameters()}


def test_conversion_draws_no_random_numbers(core):
    import numpy as np

    game = core.PopulationGame(nn.Identity(), core.FullSweepAgentSampler([core.GumbelSoftmaxWrapper(Sender())], [Receiver()], [nll]))  # fmt: skip  # noqa: E501
    np.random.seed(0), torch.manual_seed(0)
    first = np.random.rand(), torch.rand(1)
    np.random.seed(0), torch.manual_seed(0)
    marginalize(game)
    assert (np.random.rand(), torch.rand(1)) == first


class TestMistakes:
    @pytest.mark.parametrize(
        ("build", "error"),
        [
            (lambda core: nn.Identity(), "Identity.* SymbolGameMarg"),
            (lambda core: marginalize(relaxed(core)), "SymbolGameMarg already"),
            (lambda core: CommunicationMarg(), "CommunicationMarg already"),
            (lambda core: core.SymbolGameGS(Sender(), Receiver(), nll), "Sender.* SparsemaxWrapper"),
            (lambda core: core.SymbolGameGS(SparsemaxWrapper(Sender()), Receiver(), nll), "SparsemaxWrapper already"),
            (
                lambda core: core.PopulationGame(
                    CommunicationMarg(), core.UniformAgentSampler([SparsemaxWrapper(Sender())], [Receiver()], [nll])
                ),
                "CommunicationMarg already",
            ),
            (lambda core: core.PopulationGame(nn.Identity(), nn.Identity()), "senders and receivers and losses"),
        ],
    )
    def test_what_cannot_be_converted_is_refused(self, core, build, error):
        with pytest.raises(TypeError, match=error):
            marginalize(build(core))

    def test_unknown_options_are_refused(self, core):
        for name in ("tau", "agent"):
            with pytest.raises(TypeError, match=f"{name} .*support.*strategy"):
                marginalize(relaxed(core), **{name: 1})
        with pytest.raises(TypeError, match=r"message_format .*follows"):
            marginalize(relaxed(core), message_format="index")

    def test_games_within_other_modules_are_refused_by_name(self, core):
        class PopulationGame(nn.Module):
            pass

        class Outer(nn.Module):
            def __init__(self, game):
                super().__init__()
                self.game = game

        with pytest.raises(TypeError, match=r"got .*test_marginalize\.\S*PopulationGame: .*CommunicationMarg"):
            marginalize(PopulationGame())
        with pytest.raises(TypeError, match=r"Outer: .*marginalize\(game\.game\)"):
            marginalize(Outer(relaxed(core)))

    def test_senders_of_another_kind_are_refused(self, core):
        receiver = core.RnnReceiverDeterministic(Agent(5, 4), 3, 4, 5)
        several, one = sequence_senders(core)["rnn"], core.ReinforceWrapper(Sender())
        for game, match in (
            (core.SymbolGameReinforce(several, receiver, nll), r"RnnSenderReinforce.*several symbols"),
            (core.SenderReceiverRnnReinforce(one, receiver, nll), r"RnnSenderReinforce.*got ReinforceWrapper"),
            (core.SenderReceiverRnnReinforce(Sender(), receiver, nll), r"RnnSenderReinforce.*got Sender"),
            (core.CommunicationRnnReinforce(0.0, 0.0), r"CommunicationRnnReinforce.*PopulationGame"),
            (population_of_sequences(core, [several, one]), r"RnnSenderReinforce.*got ReinforceWrapper"),
            (marginalize(sequences(core, several)), r"SenderReceiverRnnMarg already"),
            (marginalize(population_of_sequences(core, [several])), r"CommunicationRnnMarg already"),
            (sequences(core, rnn_senders()[0]()), r"RnnSenderSparsemax already.*SenderReceiverRnnMarg"),
        ):
            with pytest.raises(TypeError, match=match):
                marginalize(game)
        for name in ("cell", "bound", "tau"):
            with pytest.raises(TypeError, match=f"{name} .*RnnSenderSparsemax.*max_support.*length_cost"):
                marginalize(sequences(core, several), **{name: 1})

    @pytest.mark.parametrize("kind", ["rnn", "relaxed", "transformer"])
    def test_senders_with_a_forward_method_of_their_own_are_refused(self, core, kind):
        sender = sequence_senders(core)[kind]

        class Padded(type(sender)):
            def forward(self, *inputs):
                return super().forward(*inputs)

        patched = sequence_senders(core)[kind]
        patched.forward = sender.forward
        sender.__class__ = Padded
        for each in (sender, patched):
            with pytest.raises(TypeError, match=rf"{type(each).__name__} has a forward .*SequenceSender"):
                marginalize(sequences(core, each))


def sequence_senders(core):
    sizes = (VOCAB_OF_SEQUENCES, EMBED, HIDDEN, MAX_LEN)
    found = {
        "rnn": core.RnnSenderReinforce(Agent(FEATURES, HIDDEN), *sizes),
        "lstm of two layers": core.RnnSenderReinforce(Agent(FEATURES, HIDDEN), *sizes, 2, "lstm"),
        "relaxed": core.RnnSenderGS(Agent(FEATURES, HIDDEN), *sizes, 1.0, "gru"),
        "transformer": core.TransformerSenderReinforce(
            Agent(FEATURES, EMBED), VOCAB_OF_SEQUENCES, EMBED, MAX_LEN, 2, 2, HIDDEN, "in-place", False
        ),
    }
    if core is not standin:
        for layer in found["transformer"].transformer.layers:
            layer.encoder_attn.__class__ = EncoderAttention
    return found


class EncoderAttention(nn.MultiheadAttention):
    """Makes EGG's Transformer sender run: see docs/egg_today.md."""

    def forward(self, query, key, value, static_kv=True):
        return super().forward(query, key.unsqueeze(0), value.unsqueeze(0))


def sequences(core, sender, acts=False, **options):
    if host.egg_class(sender, "RnnSenderGS"):
        receiver = core.RnnReceiverGS(Agent(HIDDEN, OUTPUTS), VOCAB_OF_SEQUENCES, EMBED, HIDDEN)
        return core.SenderReceiverRnnGS(sender, receiver, distance, 0.2, **options)
    if acts:
        receiver = core.RnnReceiverReinforce(Acting(HIDDEN, OUTPUTS), VOCAB_OF_SEQUENCES, EMBED, HIDDEN)
        return core.SenderReceiverRnnReinforce(sender, receiver, wrong, 0.3, 0.1, 0.2, **options)
    receiver = core.RnnReceiverDeterministic(Agent(HIDDEN, OUTPUTS), VOCAB_OF_SEQUENCES, EMBED, HIDDEN)
    return core.SenderReceiverRnnReinforce(sender, receiver, distance, 0.3, 0.0, 0.2, **options)


def population_of_sequences(core, senders, receivers=None, mechanics=None):
    receivers = receivers or [core.RnnReceiverDeterministic(Agent(HIDDEN, OUTPUTS), VOCAB_OF_SEQUENCES, EMBED, HIDDEN)]
    mechanics = core.CommunicationRnnReinforce(0.3, 0.0, 0.2) if mechanics is None else mechanics
    return core.PopulationGame(mechanics, core.UniformAgentSampler(senders, receivers, [distance]))


def as_reinforced(core, sender):
    """EGG's sender of samples that computes the scores of its sender of relaxed messages."""
    cell = {nn.RNNCell: "rnn", nn.GRUCell: "gru", nn.LSTMCell: "lstm"}[type(sender.cell)]
    found = core.RnnSenderReinforce(sender.agent, sender.vocab_size, EMBED, HIDDEN, MAX_LEN, 1, cell)
    found.hidden_to_output, found.sos_embedding, found.cells = (
        sender.hidden_to_output, sender.sos_embedding, nn.ModuleList([sender.cell])
    )  # fmt: skip
    found.embedding = nn.Embedding.from_pretrained((sender.embedding.weight.t() + sender.embedding.bias).detach())
    return found


@pytest.mark.parametrize("acts", [False, True])
@pytest.mark.parametrize("kind", ["rnn", "lstm of two layers", "relaxed", "transformer"])
def test_a_converted_game_of_sequences_has_the_exact_loss(core, monkeypatch, kind, acts):
    sender = sequence_senders(core)[kind]
    game = sequences(core, sender, acts)
    size = torch.float32 if kind == "transformer" and core is not standin else torch.float64
    converted = marginalize(game.to(size), support=None, max_support=None)
    theirs = as_reinforced(core, sender).double() if kind == "relaxed" else sender
    acts = acts and kind != "relaxed"
    assert isinstance(converted, SenderReceiverRnnMarg)
    assert converted.receiver is game.receiver
    assert converted.length_cost == 0.2
    assert converted.sender_entropy_coeff == (0.0 if kind == "relaxed" else 0.3 / (MAX_LEN + 1))
    assert converted.receiver_entropy_coeff == (0.1 if acts else 0.0)
    batch = [part.to(size) for part in batch_of(5)]
    costs = converted.sender_entropy_coeff, 0.2, converted.receiver_entropy_coeff
    expected, metrics = enumerated(
        theirs, game.receiver, game.loss, batch, MAPPINGS["sparsemax"], monkeypatch, *costs
    )  # fmt: skip
    for _ in range(2):
        loss, interaction = converted(*batch)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(interaction.aux["length"].to(size), metrics["length"].to(size))
    assert {id(p) for p in converted.parameters()} == {id(p) for p in game.parameters()}
    parameters = [p for p in game.parameters() if p is not getattr(sender.embedding, "weight", None)] if (
        kind == "relaxed"
    ) else list(game.parameters())  # fmt: skip
    for one, other in zip(
        torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True),
        torch.autograd.grad(expected, parameters, allow_unused=True),
        strict=True,
    ):
        if other is not None and one is not None:
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
        else:
            assert one is None or one.abs().max() < 1e-6 or kind == "relaxed"
    if kind == "relaxed":
        assert torch.autograd.grad(loss, sender.embedding.weight)[0].abs().sum() > 0
    greedy = converted.eval()(*batch)[1]
    sampled = game.eval()(*batch)[1]
    if kind != "relaxed":
        said = torch.arange(MAX_LEN + 1) < greedy.message_length[:, None]
        assert torch.equal(greedy.message, torch.where(said, sampled.message, 0))
        assert torch.equal(greedy.message_length, sampled.message_length)


@pytest.mark.parametrize("kind", ["rnn", "lstm of two layers", "transformer"])
def test_weights_of_sequences_keep_their_names(core, kind):
    game, other = (sequences(core, sequence_senders(core)[kind]) for _ in range(2))
    converted = marginalize(game)
    inputs, labels = (part.float() for part in batch_of(5))
    converted(inputs, labels)
    converted.load_state_dict(other.state_dict())
    for name, value in other.state_dict().items():
        assert torch.equal(converted.state_dict()[name], value)
        assert torch.equal(game.state_dict()[name], value)
    copied = copy.deepcopy(converted)
    assert {id(p) for p in copied.parameters()}.isdisjoint(id(p) for p in converted.parameters())
    torch.manual_seed(0)
    value = converted(inputs, labels)[0]
    torch.manual_seed(0)
    torch.testing.assert_close(copied(inputs, labels)[0], value)


def test_a_converted_game_of_sequences_keeps_what_it_was_given(core):
    train, test = core.LoggingStrategy.minimal(), core.LoggingStrategy()
    game = sequences(
        core, sequence_senders(core)["rnn"], train_logging_strategy=train, test_logging_strategy=test
    ).eval()
    torch.manual_seed(0)
    first = torch.rand(1)
    torch.manual_seed(0)
    converted = marginalize(game, normalizer=1.5, temperature=2.0, max_support=3, strategy="loop", length_cost=0.5)
    assert torch.rand(1) == first, "conversion draws no random numbers"
    assert not converted.training
    assert converted.train_logging_strategy is train
    assert converted.test_logging_strategy is test
    assert (converted.sender.alpha, converted.sender.temperature, converted.sender.max_support) == (1.5, 2.0, 3)
    assert (converted.strategy, converted.length_cost) == ("loop", 0.5)


@pytest.mark.parametrize("mechanics", [None, nn.Identity()])
def test_a_population_of_sequences_is_converted(core, monkeypatch, mechanics):
    senders = [sequence_senders(core)[kind].double() for kind in ("rnn", "lstm of two layers")]
    receivers = [
        core.RnnReceiverDeterministic(Agent(HIDDEN, OUTPUTS), VOCAB_OF_SEQUENCES, EMBED, HIDDEN, cell).double()
        for cell in ("rnn", "gru")
    ]
    game = population_of_sequences(core, senders, receivers, mechanics)
    converted = marginalize(game, support=None, max_support=None)
    assert isinstance(converted.game, CommunicationRnnMarg)
    costs = (0.3 / (MAX_LEN + 1), 0.2) if mechanics is None else (0.0, 0.0)
    assert (converted.game.sender_entropy_coeff, converted.game.length_cost) == costs
    batch = batch_of(4)
    pairs = [
        float(enumerated(s, r, distance, batch, MAPPINGS["sparsemax"], monkeypatch, *costs)[0].detach())
        for s in senders
        for r in receivers
    ]
    found = [float(converted(*batch)[0].detach()) for _ in range(40)]
    assert all(min(abs(value - pair) for pair in pairs) < 1e-8 for value in found)
    assert all(min(abs(value - pair) for value in found) < 1e-8 for pair in pairs), "every pair is drawn"
    assert {id(p) for p in converted.parameters()} == {id(p) for p in game.parameters()}


@pytest.mark.parametrize("build", [reinforced, relaxed])
def test_agents_are_called_as_those_of_eggs_game_are(core, build):
    """As EGG's language_bottleneck callbacks do: with the first of what a REINFORCE game's agents return."""
    game = build(core).eval()
    converted = marginalize(game)
    answers = []
    for played in (game, converted):
        message = played.sender(X, None)
        message = message[0] if build is reinforced else message
        output = played.receiver(message, None, None)
        answers.append((message, output[0] if build is reinforced else output))
    for theirs, ours in zip(*answers, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("build", [reinforced, relaxed])
def test_weights_keep_their_names(core, build):
    game = build(core)
    converted = marginalize(game)
    converted(X, LABELS)
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.add_(1)
    temperature = converted.sender.temperature
    converted.load_state_dict(build(core).state_dict())  # which has no support control
    converted.load_state_dict(state := game.state_dict())
    assert converted.sender.temperature == temperature
    own = converted.state_dict()
    assert all(torch.equal(own[name], value) for name, value in state.items())
    del own["sender.control.step"]
    with pytest.raises(RuntimeError, match=r"sender\.control\.step"):
        converted.load_state_dict(own)


def test_eggs_evaluator_of_interventions_reads_a_converted_game(egg, capsys, monkeypatch):
    """EGG's CallbackEvaluator of the guessing game calls the agents of the game, and reads ``acc``."""
    intervention = pytest.importorskip("egg.zoo.language_bottleneck.intervention")
    # the original expects a ValueError of item(), where PyTorch raises a RuntimeError today
    monkeypatch.setattr(intervention, "_hashable_tensor", lambda t: str(t.tolist()) if torch.is_tensor(t) else t)

    def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        right = (receiver_output.argmax(1) == labels).float()
        return F.nll_loss(receiver_output, labels, reduction="none"), {"acc": right}

    egg.init(params=["--n_epochs=1", "--random_seed=1"])
    for is_gs, build in ((False, reinforced), (True, relaxed)):
        game = build(egg)
        game.loss = loss
        converted = marginalize(game)
        evaluator = intervention.CallbackEvaluator([(X, LABELS)], "cpu", is_gs, loss, var_length=False)
        egg.Trainer(converted, torch.optim.Adam(game.parameters()), [(X, LABELS)], callbacks=[evaluator]).train(1)
        printed = json.loads(capsys.readouterr().out.splitlines()[-1])
        symbols = game.sender.agent(X).argmax(1)
        majority = sum(int(torch.bincount(LABELS[symbols == symbol]).max()) for symbol in symbols.unique()) / len(X)
        assert printed["validation"]["majority_acc"] == pytest.approx(majority)
        # messages are permuted at random, so that the receiver has to name a label for each
        receiver = game.receiver if is_gs else game.receiver.agent
        named = receiver(symbols).argmax(1)
        most = sum(min(int((named == label).sum()), int((label == LABELS).sum())) for label in range(4)) / len(X)
        assert printed["intervention_message"]["mean_acc"] <= most + 1e-6


def test_a_copied_game_has_the_same_loss(core):
    converted = marginalize(reinforced(core), support=None)
    torch.testing.assert_close(copy.deepcopy(converted)(X, LABELS)[0], converted(X, LABELS)[0])
