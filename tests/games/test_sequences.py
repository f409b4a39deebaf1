"""Games of messages of several symbols: loss and gradients are those of all messages, one after the other."""

import copy
import itertools
import json
import pickle
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn

from egg_sparse import (
    CommunicationRnnMarg,
    RnnSenderSparsemax,
    SenderReceiverRnnMarg,
    SparseDistribution,
    SparsemaxWrapper,
    SymbolGameMarg,
    host,
)
from egg_sparse.callbacks import MessageEntropy, SupportSchedule
from egg_sparse.standin.util import find_lengths
from small_sequences import (
    EMBED,
    FEATURES,
    HIDDEN,
    MAPPINGS,
    MAX_LEN,
    OUTPUTS,
    RECEIVERS,
    SENDERS,
    VOCAB,
    Agent,
    Receiver,
    assert_same_gradients,
    batch_of,
    distance,
    entmax_library,
    enumerated,
    game_of,
    probabilities_of_all,
    rnn_senders,
    sharpened,
    transformer_senders,
    wrong,
)

COSTS = {"sender_entropy_coeff": 0.3, "length_cost": 0.2}


def assert_is_enumerated(game, theirs, mapping, monkeypatch, parameters=(), acting=0.0, size=6):
    batch = batch_of(size)
    costs = game.sender_entropy_coeff, game.length_cost, acting
    expected, metrics = enumerated(theirs, game.receiver, game.loss, batch, mapping, monkeypatch, *costs)
    for _ in range(3):  # the first batch is checked, and later ones are played in other ways
        value, interaction = game(*batch)
        torch.testing.assert_close(value, expected)
        for name, metric in metrics.items():
            torch.testing.assert_close(interaction.aux[name], metric)
        assert_same_gradients(value, expected, game.sender, theirs, game.receiver, parameters)
    return metrics["support"]


@pytest.mark.parametrize("kind", SENDERS)
@pytest.mark.parametrize("normalizer", ["sparsemax", "softmax"])
def test_every_sender(monkeypatch, kind, normalizer):
    sender, theirs = sharpened(*SENDERS[kind](normalizer=normalizer, max_support=None))
    game = game_of(sender, RECEIVERS["gru-1"](), **COSTS)
    support = assert_is_enumerated(game, theirs, MAPPINGS[normalizer], monkeypatch)
    if normalizer == "softmax":
        assert support.tolist() == [15] * 6
    else:
        assert support.max() > 1
        assert support.min() < 15


@pytest.mark.parametrize("kind", RECEIVERS)
def test_every_receiver(monkeypatch, kind):
    sender, theirs = sharpened(*rnn_senders("gru", max_support=None))
    acting = 0.4 if kind == "acting" else 0.0
    game = game_of(sender, RECEIVERS[kind](), **COSTS, receiver_entropy_coeff=acting)
    assert assert_is_enumerated(game, theirs, MAPPINGS["sparsemax"], monkeypatch, acting=acting).max() > 3


@pytest.mark.parametrize("normalizer", ["entmax15", 1.2, 3.0, "learnable"])
def test_every_normalizer(monkeypatch, normalizer):
    parameters = ()
    if normalizer == "learnable":
        normalizer = nn.Parameter(torch.tensor(1.4, dtype=torch.float64))
        parameters = (normalizer,)
    mapping = MAPPINGS.get(normalizer) if isinstance(normalizer, str) else None
    if mapping is None:

        def mapping(x):
            return entmax_library.entmax_bisect(x / 1.5, normalizer, dim=1, n_iter=100)
    else:
        mapping = lambda x, named=mapping: named(x / 1.5)  # noqa: E731
    sender, theirs = sharpened(*rnn_senders("lstm", normalizer=normalizer, max_support=None, temperature=1.5))
    game = game_of(sender, RECEIVERS["rnn-1"](), **COSTS)
    assert_is_enumerated(game, theirs, mapping, monkeypatch, parameters)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gru-2", "gs", "acting", "transformer-causal", "three arguments", "four arguments"])
@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "loop"},
        {"strategy": "distinct"},
        {"strategy": "auto"},
        {"strategy": "gather", "chunk_size": 2},
        {"strategy": "loop", "chunk_size": 2},
    ],
    ids=str,
)
def test_every_strategy(monkeypatch, kind, options):
    sender, theirs = sharpened(*rnn_senders(max_support=None, normalizer="entmax15"))
    acting = 0.4 if kind == "acting" else 0.0
    game = game_of(sender, RECEIVERS[kind](), **COSTS, receiver_entropy_coeff=acting, **options)
    if kind == "acting" and options["strategy"] == "distinct":
        with pytest.raises(ValueError, match="distinct cannot play a receiver that acts"):
            game(*batch_of())
        return
    assert_is_enumerated(game, theirs, MAPPINGS["entmax15"], monkeypatch, acting=acting)


def test_bounded_games_are_unbiased(monkeypatch):
    """Loss and every gradient, of sender and receiver, in units of the standard error of their means over draws."""
    sender, theirs = sharpened(*rnn_senders("gru", normalizer="softmax", max_support=3))
    game = game_of(sender, RECEIVERS["rnn-1"](), **COSTS)
    batch = batch_of(3)
    expected, metrics = enumerated(
        theirs, game.receiver, distance, batch, MAPPINGS["softmax"], monkeypatch, *COSTS.values()
    )
    ours = dict(sender.named_parameters())
    parameters = [*(ours[name] for name, _ in theirs.named_parameters()), *game.receiver.parameters()]
    wanted = torch.autograd.grad(expected, [*theirs.parameters(), *game.receiver.parameters()])
    draws, n_draws = [], 120
    found = {name: [] for name in metrics}
    copies = [part.repeat_interleave(6, 0) for part in batch]
    for _ in range(n_draws):
        value, interaction = game(*copies)
        draws.append((value, *torch.autograd.grad(value, parameters)))
        for name, values in found.items():
            values.append(interaction.aux[name].view(3, 6).mean(1))
    for values, exact in zip(zip(*draws, strict=True), (expected, *wanted), strict=True):
        values = torch.stack(values).detach()
        error = values.std(0) / n_draws**0.5
        assert ((values.mean(0) - exact).abs() <= 5 * error + 1e-9).all()
    for name, values in found.items():
        values = torch.stack(values)
        if name == "support":
            assert (values == 3).all()
            continue
        assert ((values.mean(0) - metrics[name]).abs() <= 5 * values.std(0) / n_draws**0.5 + 1e-9).all(), name
    assert (interaction.aux["exact"] == 0).all()
    assert (interaction.aux["receiver_calls"] == 3).all()


@pytest.mark.slow
def test_an_acting_receiver_learns_without_bias(monkeypatch):
    """The mean gradient over many draws of messages and actions is that of the expected loss over both."""
    sender, theirs = sharpened(*rnn_senders(max_support=4, normalizer="softmax"))
    receiver = host.core.RnnReceiverReinforce(host.core.ReinforceWrapper(Agent(HIDDEN, 3)), VOCAB, EMBED, HIDDEN)
    game = SenderReceiverRnnMarg(sender, receiver.double(), wrong, 0.3, 0.2, 0.1)
    inputs, labels = batch_of(4)
    ours = dict(sender.named_parameters())
    parameters = [*(ours[name] for name, _ in theirs.named_parameters()), *receiver.parameters()]
    total = 0
    for message, length, prob in probabilities_of_all(theirs, inputs, MAPPINGS["softmax"], monkeypatch):
        messages, lengths = message.repeat(4, 1), torch.full((4,), length)
        logits = receiver.agent.agent(receiver.encoder(messages, lengths), None, None)
        actions = logits.softmax(1)
        loss = (actions * (torch.arange(3) - labels[:, None]).square()).sum(1) + 0.1 * length
        entropy = -(actions * actions.log()).sum(1)
        total = total + (prob * (loss - 0.2 * entropy + 0.3 * prob.log())).mean()
    wanted = torch.autograd.grad(total, [*theirs.parameters(), *receiver.parameters()])
    n_draws = 120
    copies = [part.repeat_interleave(6, 0) for part in (inputs, labels)]
    draws = [torch.autograd.grad(game(*copies)[0], parameters) for _ in range(n_draws)]
    for values, exact in zip(zip(*draws, strict=True), wanted, strict=True):
        values = torch.stack(values)
        error = values.std(0) / n_draws**0.5
        assert ((values.mean(0) - exact).abs() <= 5 * error + 1e-9).all()


@pytest.mark.parametrize("normalizer", ["sparsemax", "softmax"])
def test_one_symbol_is_the_symbol_game(normalizer):
    """A game of messages of one symbol, with the same scores and a receiver that reads the first symbol alone."""

    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.read = nn.Embedding(7, OUTPUTS)

        def forward(self, message, receiver_input=None, aux_input=None):
            return self.read(message if message.dim() == 1 else message[:, 0])

    class Scores(nn.Module):
        def __init__(self, sender):
            super().__init__()
            self.sender = sender

        def forward(self, x, aux_input=None):
            return self.sender.step(self.sender.begin(x, aux_input), None)[0]

    def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        return (receiver_output - sender_input[:, :OUTPUTS]).square().sum(1), {}

    sender = rnn_senders("gru", vocab_size=7, max_len=1, normalizer=normalizer)[0]().double()
    receiver = First().double()
    several = SenderReceiverRnnMarg(sender, receiver, loss, sender_entropy_coeff=0.3)
    one = SymbolGameMarg(SparsemaxWrapper(Scores(sender), normalizer, support=None), receiver, loss, 0.3)
    batch = batch_of(5)
    results = [game(*batch) for game in (several, one)]
    torch.testing.assert_close(results[0][0], results[1][0])
    parameters = [sender.hidden_to_output.weight, sender.cells[0].weight_ih, *receiver.parameters()]
    gradients = [torch.autograd.grad(value, parameters) for value, _ in results]
    torch.testing.assert_close(*gradients)
    for name in ("task_loss", "sender_entropy", "support", "exact"):
        torch.testing.assert_close(*(interaction.aux[name] for _, interaction in results))
    expected = [game.eval()(*batch)[0] for game in (several, one)]
    torch.testing.assert_close(*expected)


class TestInteractions:
    def game(self, **options):
        sender, theirs = sharpened(*rnn_senders("gru", normalizer="softmax"))
        return game_of(sender, RECEIVERS["gru-1"](), **COSTS, **options), theirs

    def test_training(self):
        game, _ = self.game()
        batch = batch_of(5)
        _, interaction = game(*batch)
        assert interaction.message.shape == (5, MAX_LEN + 1)
        assert interaction.message.dtype == torch.long
        assert torch.equal(interaction.message_length, find_lengths(interaction.message))
        assert interaction.receiver_output.shape == (5, OUTPUTS)
        assert interaction.sender_input is batch[0]
        assert set(interaction.aux) == {
            "error", "exact", "length", "receiver_calls", "sender_entropy", "support", "task_loss",
        }  # fmt: skip
        assert all(value.shape == (5,) and not value.requires_grad for value in interaction.aux.values())
        distribution = game.sender.distribution(batch[0])
        assert torch.equal(interaction.message, distribution.mode)

    def test_greedy_evaluation_is_eggs(self):
        game, theirs = self.game()
        batch = batch_of(30)
        before = torch.random.get_rng_state()
        value, interaction = game.eval()(*batch)
        assert torch.equal(torch.random.get_rng_state(), before)
        egg = host.core.SenderReceiverRnnReinforce(theirs, game.receiver, distance).eval()
        _, wanted = egg(*batch)
        game.sender.max_support = 3
        _, bounded = game(*batch)
        assert (bounded.aux["exact"] == 0).all()
        assert torch.equal(torch.random.get_rng_state(), before)
        game.sender.max_support = 16
        lengths = wanted.message_length
        said = torch.arange(MAX_LEN + 1) < lengths[:, None]
        assert torch.equal(interaction.message, torch.where(said, wanted.message, 0))
        assert torch.equal(interaction.message_length, lengths)
        torch.testing.assert_close(interaction.aux["length"] + 1, lengths.double())
        torch.testing.assert_close(interaction.receiver_output, wanted.receiver_output)
        assert set(interaction.aux) == {"error", "exact", "length", "sender_entropy", "support", "task_loss"}
        task_loss = distance(batch[0], interaction.message, None, interaction.receiver_output, batch[1], None)[0]
        torch.testing.assert_close(interaction.aux["task_loss"], task_loss)
        entropy = game.sender.distribution(batch[0]).entropy()
        torch.testing.assert_close(value, (task_loss - 0.3 * entropy + 0.2 * lengths).mean())

    def test_expected_evaluation_is_the_training_loss(self):
        game, _ = self.game(evaluation="expected")
        batch = batch_of(5)
        value, interaction = game(*batch)
        found, evaluated = game.eval()(*batch)
        torch.testing.assert_close(found, value)
        assert set(evaluated.aux) == set(interaction.aux)
        for name, metric in interaction.aux.items():
            torch.testing.assert_close(evaluated.aux[name], metric)

    def test_an_acting_receiver(self):
        sender, _ = sharpened(*rnn_senders())
        game = game_of(sender, RECEIVERS["acting"](), receiver_entropy_coeff=0.1)
        for mode in (True, False):
            _, interaction = game.train(mode)(*batch_of(5))
            assert interaction.aux["receiver_entropy"].shape == (5,)
            assert interaction.aux["miss"].shape == (5,)
            assert interaction.receiver_output.shape == (5,)

    def test_logging_strategies(self):
        sender, _ = sharpened(*rnn_senders())
        minimal = host.core.LoggingStrategy.minimal()
        game = game_of(sender, RECEIVERS["gru-1"](), train_logging_strategy=minimal)
        assert game(*batch_of(5))[1].message is None
        assert game.eval()(*batch_of(5))[1].message.shape == (5, MAX_LEN + 1)

    def test_batches_of_one(self):
        game, _ = self.game()
        batch = batch_of(1)
        assert game(*batch)[0].isfinite()
        assert game.eval()(*batch)[1].message.shape == (1, MAX_LEN + 1)


class Sending(nn.Module):
    """A sender of a user's own, which always returns a distribution: the messages 0, 1 and 2 1."""

    def __init__(self, probs=(0.2, 0.5, 0.3)):
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(probs, dtype=torch.float64).log())

    def forward(self, x, aux_input=None):
        order = self.scores.detach().argsort(descending=True)
        messages = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [2, 1, 0, 0]])[order, None].expand(-1, len(x), -1)
        probs = self.scores.softmax(0)[order, None].expand(-1, len(x))
        return SparseDistribution(messages, probs, VOCAB, lengths=(messages != 0).sum(2) + 1)


def test_a_sender_of_a_users_own():
    game = SenderReceiverRnnMarg(Sending(), Receiver().double(), distance)
    batch = batch_of(4)
    value, interaction = game(*batch)
    losses = [
        distance(batch[0], message, None, game.receiver(message), batch[1], None)[0]
        for message in torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [2, 1, 0, 0]])[:, None].expand(-1, 4, -1)
    ]
    torch.testing.assert_close(value, sum(p * loss.mean() for p, loss in zip((0.2, 0.5, 0.3), losses, strict=True)))
    assert interaction.aux["length"].tolist() == pytest.approx([1.1] * 4)
    value, interaction = game.eval()(*batch)
    torch.testing.assert_close(value, losses[1].mean())
    assert interaction.message.tolist() == [[1, 0, 0, 0]] * 4


@pytest.mark.parametrize("wrapper", ["ReinforceDeterministicWrapper", "ReinforceWrapper"])
def test_receivers_of_three_arguments_in_eggs_wrappers(wrapper):
    """EGG's wrappers take any arguments, and hand them to an agent that has no place for the lengths."""
    sender, _ = sharpened(*rnn_senders())
    receiver = getattr(host.core, wrapper)(Receiver()).double()
    game = SenderReceiverRnnMarg(sender, receiver, distance if "Deterministic" in wrapper else wrong)
    value, _ = game(*batch_of(4))
    assert value.isfinite()
    if "Deterministic" in wrapper:
        plain = SenderReceiverRnnMarg(sender, receiver.agent, distance)
        batch = batch_of(4)
        torch.testing.assert_close(game(*batch)[0], plain(*batch)[0])


@pytest.mark.parametrize("wrapped", [nn.DataParallel, nn.Sequential])
def test_wrapped_receivers(wrapped, monkeypatch):
    sender, theirs = sharpened(*rnn_senders(max_support=None))
    receiver = RECEIVERS["gru-1"]()
    if wrapped is nn.Sequential:

        class Outer(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = receiver

            def forward(self, message, receiver_input=None, aux_input=None, lengths=None):
                assert lengths is not None
                return self.inner(message, receiver_input, aux_input, lengths)[0]

        game = SenderReceiverRnnMarg(sender, Outer().double(), distance, **COSTS)
    else:
        game = SenderReceiverRnnMarg(sender, wrapped(receiver.double()), distance, **COSTS)
    batch = batch_of(4)
    wanted, _ = enumerated(theirs, receiver, distance, batch, MAPPINGS["sparsemax"], monkeypatch, *COSTS.values())
    for _ in range(2):
        torch.testing.assert_close(game(*batch)[0], wanted)


def test_eggs_receiver_of_one_hot_rows_in_a_data_parallel():
    sender, _ = sharpened(*rnn_senders(max_support=None))
    receiver, batch = RECEIVERS["gs"]().double(), batch_of(4)
    expected = SenderReceiverRnnMarg(sender, receiver, distance)(*batch)[0]
    for _ in range(2):
        found = SenderReceiverRnnMarg(sender, nn.DataParallel(receiver), distance)(*batch)[0]
        torch.testing.assert_close(found, expected)


class OneHotReceiver(nn.Module):
    """A receiver of a user's own, for one-hot rows."""

    def __init__(self, as_product):
        super().__init__()
        self.read = nn.Linear(VOCAB, OUTPUTS)
        self.as_product = as_product

    def forward(self, message, receiver_input=None, aux_input=None):
        return message @ self.read.weight.t() if self.as_product else self.read(message)


@pytest.mark.parametrize("as_product", [False, True])
def test_receivers_of_one_hot_rows_are_told_what_they_get(as_product):
    sender, _ = sharpened(*rnn_senders())
    game = SenderReceiverRnnMarg(sender, OneHotReceiver(as_product).double(), distance, strategy="loop")
    with pytest.raises(ValueError, match=r"one-hot.*nn\.Embedding.*RnnReceiverGS"):
        game(*batch_of(4))


class LinearReceiver(nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        self.read = nn.Linear(*sizes)

    def forward(self, message, receiver_input=None, aux_input=None):
        return self.read(message)


MISTAKES = {
    "EGG's sender": (lambda s, r: (rnn_senders()[1](), r), TypeError, "RnnSenderReinforce.*RnnSenderSparsemax"),
    "EGG's GS sender": (
        lambda s, r: (host.core.RnnSenderGS(Agent(FEATURES, HIDDEN), VOCAB, EMBED, HIDDEN, 3, 1.0), r),
        TypeError,
        "RnnSenderGS.*RnnSenderSparsemax",
    ),
    "EGG's Transformer": (
        lambda s, r: (transformer_senders()[1](), r),
        TypeError,
        "TransformerSenderReinforce.*TransformerSenderSparsemax",
    ),
    "one symbol": (
        lambda s, r: (SparsemaxWrapper(Agent(FEATURES, 5)).double(), r),
        TypeError,
        "one symbol.*SymbolGameMarg",
    ),
    "no distribution": (
        lambda s, r: (Agent(FEATURES, 5).double(), r),
        TypeError,
        "SparseDistribution.*RnnSenderSparsemax",
    ),
    "an agent that samples": (
        lambda s, r: (RnnSenderSparsemax(host.core.ReinforceWrapper(Agent(FEATURES, 5)), 3, 4, 5, 3), r),
        TypeError,
        "agent is in a ReinforceWrapper",
    ),
    "a small receiver": (
        lambda s, r: (rnn_senders(vocab_size=9, max_support=None)[0]().double(), r),
        ValueError,
        r"9 symbols.*Embedding\(3, 4\).*3",
    ),
    "a small receiver of one-hot rows": (
        lambda s, r: (rnn_senders(vocab_size=9)[0]().double(), RECEIVERS["gs"]().double()),
        ValueError,
        "9 symbols.*one-hot rows of 3",
    ),
    "a linear reader": (
        lambda s, r: (rnn_senders()[0]().double(), LinearReceiver(MAX_LEN + 1, OUTPUTS).double()),
        ValueError,
        r"Linear\(in_features=4.*symbol ids: .*nn.Embedding",
    ),
    **{
        f"a short Transformer, causal={causal}": (
            lambda s, r, causal=causal: (
                rnn_senders()[0]().double(),
                host.core.TransformerReceiverDeterministic(
                    Agent(EMBED, OUTPUTS), VOCAB, MAX_LEN - 1, EMBED, 2, HIDDEN, 1, causal=causal
                ).double(),
            ),
            ValueError,
            r"receiver's max_len must be at least .*, 3, got 2",
        )
        for causal in (True, False)
    },
    "another width": (
        lambda s, r: (RnnSenderSparsemax(Agent(FEATURES, 7), 3, 4, 5, 3).double(), r),
        ValueError,
        r"agent must return shape \(B, 5\), got \(6, 7\)",
    ),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes(kind, training):
    agents, error, match = MISTAKES[kind]
    if kind.startswith("a small receiver") and not training:
        pytest.skip("a greedy message may have symbols that the receiver reads")
    game = SenderReceiverRnnMarg(*agents(None, RECEIVERS["gru-1"]().double()), distance).train(training)
    with pytest.raises(error, match=match):
        game(*batch_of(6))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"length_cost": "high"}, TypeError, "length_cost must be a number, got str"),
        ({"length_cost": float("nan")}, ValueError, "length_cost must be finite, got nan"),
        ({"sender_entropy_coeff": None}, TypeError, "sender_entropy_coeff must be a number, got NoneType"),
        ({"strategy": "all"}, ValueError, "strategy must be.*'all'"),
        ({"evaluation": "best"}, ValueError, "evaluation must be.*'best'"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1, got 0"),
    ],
    ids=str,
)
def test_options_that_are_none(options, error, match):
    sender, receiver = rnn_senders()[0](), RECEIVERS["gru-1"]()
    with pytest.raises(error, match=match):
        SenderReceiverRnnMarg(sender, receiver, distance, **options)
    with pytest.raises(error, match=match):
        CommunicationRnnMarg(**options)


def test_more_mistakes():
    sender, receiver = (module.double() for module in (rnn_senders()[0](), RECEIVERS["gru-1"]()))
    inputs, labels = batch_of(6)
    with pytest.raises(ValueError, match="batch is empty"):
        SenderReceiverRnnMarg(sender, receiver, distance)(inputs[:0], labels[:0])
    with pytest.raises(ValueError, match=r"examples on axis 0 of receiver_input.*\(3, 6\)"):
        SenderReceiverRnnMarg(sender, receiver, distance)(inputs, labels, torch.randn(3, 6))
    with pytest.raises(ValueError, match=r"receiver_entropy_coeff.*got 0.3"):
        SenderReceiverRnnMarg(sender, Receiver().double(), distance, receiver_entropy_coeff=0.3)(inputs, labels)
    with pytest.raises(TypeError, match=r"several symbols.*SenderReceiverRnnMarg"):
        SymbolGameMarg(sender, Receiver().double(), distance)(inputs, labels)
    with pytest.raises(TypeError, match=r"several symbols.*SenderReceiverRnnMarg"):
        SymbolGameMarg(SparsemaxWrapper(Agent(FEATURES, VOCAB)).double(), receiver, distance)(inputs, labels)
    with pytest.raises(TypeError, match="CommunicationRnnMarg"):
        SenderReceiverRnnMarg(sender, receiver, distance)(sender, receiver, distance, inputs, labels)


def test_receiver_acts_false_is_deterministic():
    sender, _ = sharpened(*rnn_senders())
    receiver, batch = RECEIVERS["gru-1"](), batch_of(5)
    games = [game_of(sender, receiver, receiver_acts=acts) for acts in (None, False, True)]
    values = [game(*batch)[0] for game in games]
    torch.testing.assert_close(values[1], values[0])
    torch.testing.assert_close(values[2], values[0])
    gradients = [torch.autograd.grad(value, list(receiver.parameters())) for value in values]
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


@pytest.mark.parametrize("kind", RECEIVERS)
def test_autocast(kind):
    sender = rnn_senders("gru", normalizer="entmax15")[0]()
    receiver = RECEIVERS[kind]()
    game = SenderReceiverRnnMarg(sender, receiver, wrong if kind == "acting" else distance)
    inputs, labels = (part.float() for part in batch_of(5))
    expected = game(inputs, labels)[0]
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            value = game(inputs, labels)[0]
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected, atol=0.05, rtol=0.05)
        value.backward()
    assert all(p.grad.isfinite().all() for p in game.parameters() if p.grad is not None)


class TestReceiversThatAreNotEggsOwn:
    """What messages have in common is computed once for EGG's receivers alone: others keep what they compute."""

    def played(self, receiver):
        sender, _ = sharpened(*rnn_senders("gru", max_support=None))
        game = SenderReceiverRnnMarg(sender, receiver.double(), distance)
        batch = batch_of(4)
        return [float(game(*batch)[0].detach()) for _ in range(3)]

    def test_an_encoder_with_a_forward_method_of_its_own(self):
        calls = []

        class Encoder(type(RECEIVERS["gru-1"]().encoder)):
            def forward(self, message, lengths=None):
                calls.append(len(message))
                return 2 * super().forward(message, lengths)

        receiver = RECEIVERS["gru-1"]()
        receiver.encoder.__class__ = Encoder
        first, *later = self.played(receiver)
        assert later == pytest.approx([first, first])
        assert len(calls) >= 3

    def test_an_encoder_with_hooks(self):
        receiver = RECEIVERS["gru-1"]()
        calls = []
        receiver.encoder.register_forward_hook(lambda *_: calls.append("encoder"))
        receiver.encoder.cell.register_forward_hook(lambda *_: calls.append("cell"))
        first, *later = self.played(receiver)
        assert later == pytest.approx([first, first])
        assert calls.count("encoder") == calls.count("cell") >= 3

    def test_one_hot_rows_read_otherwise(self):
        class Twice(type(RECEIVERS["gs"]())):
            def forward(self, message, input=None, aux_input=None):
                return 2 * super().forward(message, input, aux_input)

        receiver = RECEIVERS["gs"]()
        receiver.__class__ = Twice
        first, *later = self.played(receiver)
        assert later == pytest.approx([first, first])

    def test_one_hot_rows_read_with_hooks(self):
        receiver, calls = RECEIVERS["gs"](), []
        receiver.register_forward_hook(lambda _module, _inputs, output: calls.append(1) or 2 * output)
        first, *later = self.played(receiver)
        assert later == pytest.approx([first, first])
        assert len(calls) >= 3

    def test_a_deterministic_receiver_that_returns_its_output_alone(self):
        class OutputAlone(type(RECEIVERS["gru-1"]())):
            def forward(self, *inputs):
                return super().forward(*inputs)[0]

        receiver = RECEIVERS["gru-1"]().double()
        sender, _ = sharpened(*rnn_senders("gru", normalizer="softmax", max_support=1))
        batch = batch_of(20)
        torch.manual_seed(1)
        wanted, _ = SenderReceiverRnnMarg(sender, receiver, distance)(*batch)
        receiver.__class__ = OutputAlone
        torch.manual_seed(1)
        torch.testing.assert_close(SenderReceiverRnnMarg(sender, receiver, distance)(*batch)[0], wanted)

    def test_dropout_between_layers_is_drawn(self):
        receiver = host.core.RnnReceiverDeterministic(Agent(HIDDEN, OUTPUTS), VOCAB, EMBED, HIDDEN, "gru", 2)
        receiver.encoder.cell.dropout = 0.5
        assert len(set(self.played(receiver))) == 3

    def test_the_receiver_is_left_as_it_was(self):
        receiver = RECEIVERS["gru-2"]()
        self.played(receiver)
        assert "forward" not in vars(receiver.encoder)
        message = torch.tensor([[1, 2, 0, 0]])
        assert receiver(message, None, None, torch.tensor([3]))[0].shape == (1, OUTPUTS)


def right(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    loss = nn.functional.cross_entropy(receiver_output, sender_input.argmax(1), reduction="none")
    return loss, {"acc": (receiver_output.argmax(1) == sender_input.argmax(1)).to(loss)}


class TestTraining:
    """Naming one of 9 objects with up to two of three symbols."""

    objects = 9

    def game(self, **options):
        torch.manual_seed(3)
        sizes = {"vocab_size": 4, "embed_dim": 8, "hidden_size": 24}
        sender = RnnSenderSparsemax(Agent(self.objects, 24), **sizes, max_len=2, cell="gru", **options)
        receiver = host.core.RnnReceiverDeterministic(Agent(24, self.objects), **sizes, cell="gru")
        return SenderReceiverRnnMarg(sender, receiver, right, length_cost=0.001)

    def trainer(self, game, *arguments, callbacks=(), n_batches=10):
        host.core.init(params=[f"--random_seed={7}", "--n_epochs=1", *arguments])
        data = [(torch.eye(self.objects).repeat(3, 1), torch.zeros(3 * self.objects))] * n_batches
        optimizer = torch.optim.Adam(game.parameters(), lr=0.01)
        return host.core.Trainer(game, optimizer, data, validation_data=data[:1], callbacks=list(callbacks))

    @pytest.mark.slow
    @pytest.mark.parametrize("normalizer", ["sparsemax", "entmax15", "softmax"])
    def test_learns(self, normalizer):
        logged = []

        class Logs(host.core.Callback):
            def on_validation_end(self, loss, logs, epoch):
                logged.append(logs.aux["acc"].mean())

        game = self.game(normalizer=normalizer, max_support=8)
        self.trainer(game, callbacks=[Logs()]).train(40)
        assert logged[-1] > 0.5

    def test_callbacks(self, capsys):
        found = []

        class Asks(host.core.Callback):
            def on_validation_end(self, loss, logs, epoch):
                message, _, _ = self.trainer.game.sender(logs.sender_input[:9], None)
                found.append((message, logs.message[:9], logs.message_length[:9]))

        game = self.game(max_support=5)
        callbacks = [
            Asks(),
            MessageEntropy(print_train=True),
            host.core.TopographicSimilarity("euclidean", "edit", is_gumbel=False),
            SupportSchedule(game.sender, 5.0, 1.2, over=8),
            host.core.ConsoleLogger(print_train_loss=True, as_json=True),
        ]
        self.trainer(game, callbacks=callbacks, n_batches=3).train(2)
        assert len(found) == 2
        for asked, logged, lengths in found:
            assert torch.equal(asked, logged)
            assert torch.equal(lengths, find_lengths(logged))
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        counts = torch.unique(found[-1][0], dim=0, return_counts=True)[1] / 9
        entropies = [line["entropy"] for line in lines if "entropy" in line and line["mode"] == "test"]
        assert entropies[-1] == pytest.approx(float(-(counts * counts.log2()).sum()))
        assert any("topsim" in line for line in lines)
        losses = [line for line in lines if "loss" in line]
        assert {line["mode"] for line in losses} == {"train", "test"}
        assert all(0 <= line["length"] <= 2 for line in losses)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("bias", [0.0, 50.0])
    def test_a_bound_of_one_message_is_no_collapse(self, bias):
        """Of many messages one is drawn, which is no reason to warn; a sender that is decided is one."""
        sender, _ = sharpened(*rnn_senders(max_support=1))
        with torch.no_grad():
            sender.hidden_to_output.bias[0] += bias
        n_calls = itertools.count(1)

        def shrinking(*inputs):
            return distance(*inputs)[0] / next(n_calls), {}

        game = SenderReceiverRnnMarg(sender, RECEIVERS["gru-1"]().double(), shrinking)
        batch = batch_of(4)
        warns = pytest.warns(RuntimeWarning, match="mean support of 200 steps was 1.000") if bias else nullcontext()
        with warns:
            for _ in range(200):
                game(*batch)

    @pytest.mark.slow
    def test_a_resumed_run_is_an_uninterrupted_one(self, tmp_path):
        """With support control and draws of messages."""
        states = []

        class Generator(host.core.Callback):
            def on_validation_end(self, loss, logs, epoch):
                states.append(torch.random.get_rng_state())

        uninterrupted = self.game(max_support=3)
        saving = f"--checkpoint_dir={tmp_path}", "--checkpoint_freq=1"
        self.trainer(uninterrupted, *saving, callbacks=[Generator()], n_batches=4).train(2)
        resumed = self.game(max_support=3)
        with torch.no_grad():
            for parameter in resumed.parameters():
                parameter.add_(1)
        again = self.trainer(resumed, f"--load_from_checkpoint={tmp_path / '1.tar'}", n_batches=4)
        torch.random.set_rng_state(states[0])
        again.train(2)
        for name, value in uninterrupted.state_dict().items():
            torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, equal_nan=True)

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda game: pickle.loads(pickle.dumps(game))])
    def test_copies(self, copied):
        game = self.game(max_support=3)
        batch = torch.eye(self.objects), None
        game(*batch)
        again = copied(game)
        values = []
        for one in (game, again):
            torch.manual_seed(1)
            value, _ = one(*batch)
            values.append((value, torch.autograd.grad(value, list(one.parameters()))))
        torch.testing.assert_close(*values)

    def test_interactions_of_several_batches_are_joined(self):
        game = self.game(max_support=3).eval()
        data = [(torch.eye(self.objects), torch.zeros(self.objects), None, {"more": torch.zeros(9)})] * 3
        logs = host.core.dump_interactions(game, data, gs=False, variable_length=True)
        assert logs.message.shape == (27, 3)
        assert torch.equal(logs.message_length, find_lengths(logs.message))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["four arguments", "gru-1", "gs"])
@pytest.mark.parametrize("wrapped", [partial(torch.compile, backend="eager", dynamic=True), nn.DataParallel])
def test_a_receiver_within_another_module(monkeypatch, kind, wrapped):
    # torch.compile turns the checks of distributions off for the whole process
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    sender, _ = sharpened(*rnn_senders("gru", max_support=None))
    receiver, batch = RECEIVERS[kind]().double(), batch_of(4)
    expected, interaction = SenderReceiverRnnMarg(sender, receiver, distance)(*batch)
    game = SenderReceiverRnnMarg(sender, wrapped(receiver), distance)
    for _ in range(2):
        value, found = game(*batch)
        torch.testing.assert_close(value, expected)
        assert found.aux.keys() == interaction.aux.keys()


def test_a_population():
    senders = [rnn_senders(cell)[0]().double() for cell in ("rnn", "lstm")]
    receivers = [RECEIVERS[kind]().double() for kind in ("gru-1", "transformer-all")]
    sampler = host.core.UniformAgentSampler(senders, receivers, [distance])
    population = host.core.PopulationGame(CommunicationRnnMarg(0.3, length_cost=0.2), sampler)
    batch = batch_of(4)
    pairs = [
        float(SenderReceiverRnnMarg(s, r, distance, **COSTS)(*batch)[0].detach()) for s in senders for r in receivers
    ]
    found = [float(population(*batch)[0].detach()) for _ in range(30)]
    assert {min(range(4), key=lambda i: abs(value - pairs[i])) for value in found} == set(range(4))
    assert all(min(abs(value - pair) for pair in pairs) < 1e-9 for value in found)
    assert population.eval()(*batch)[1].message.shape == (4, MAX_LEN + 1)


@pytest.mark.parametrize("coefficient", [0.0, 1e-3, 0.5])
def test_the_coefficient_of_the_game_counts_towards_that_of_support_control(monkeypatch, coefficient):
    sender, _ = sharpened(*rnn_senders("gru", max_support=None))
    sender.support = 2.0
    game = game_of(sender, RECEIVERS["gru-1"](), sender_entropy_coeff=coefficient)
    pressure = torch.tensor(0.1, dtype=torch.float64)
    monkeypatch.setattr(type(sender.control), "entropy_coefficient", lambda *_: pressure)
    batch = batch_of(4)
    parameters = list(sender.parameters())
    found = torch.autograd.grad(game(*batch)[0], parameters, allow_unused=True)
    sender.support = None
    game.sender_entropy_coeff = max(coefficient, 0.1)
    sender.temperature = 1.0
    expected = torch.autograd.grad(game(*batch)[0], parameters, allow_unused=True)
    assert any(value is not None and value.abs().max() > 1e-3 for value in expected)
    torch.testing.assert_close(found, expected)
