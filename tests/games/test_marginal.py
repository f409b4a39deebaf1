"""The games against a brute-force sum over the whole vocabulary, in float64: loss and all gradients."""

import copy
import gc
import itertools
import math
import pickle
import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse import CommunicationMarg, SparsemaxWrapper, SymbolGameMarg
from egg_sparse.games.strategies import vmap_can_be_recomputed


def fixed_sender(agent, *args, **options):
    """A sender whose temperature stays, so that two calls play the same distribution."""
    return SparsemaxWrapper(agent, *args, support=None, **options)


class Sender(nn.Module):
    """Scores symbols by the target, the first of the images, wherever the examples are."""

    def __init__(self, n_features, vocab_size, examples_axis):
        super().__init__()
        self.linear = nn.Linear(n_features, vocab_size)
        self.examples_axis = examples_axis

    def forward(self, images, aux_input=None):
        target = images[0] if self.examples_axis == 1 else images[:, 0]
        return 3 * self.linear(target).log_softmax(1)


class Receiver(nn.Module):
    """Picks a candidate, as the receiver of EGG's signal game does."""

    def __init__(self, n_features, vocab_size, examples_axis, one_hot, hidden=7):
        super().__init__()
        self.embed = nn.Linear(n_features, hidden, bias=False)
        self.read = nn.Linear(vocab_size, hidden, bias=False) if one_hot else nn.Embedding(vocab_size, hidden)
        self.examples_axis = examples_axis

    def forward(self, message, images, aux_input=None):
        candidates = self.embed(images.transpose(0, 1) if self.examples_axis == 1 else images)
        return torch.bmm(candidates, self.read(message).unsqueeze(-1)).squeeze(-1).log_softmax(1)


def nll(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    loss = F.nll_loss(receiver_output, labels, reduction="none")
    return loss, {"acc": (receiver_output.argmax(1) == labels).to(loss), "rank": receiver_output.argsort(1).to(loss)}


def batch_of(size, axis, n_features=4, game_size=3):
    images = torch.randn(game_size, size, n_features, dtype=torch.float64)
    labels = torch.arange(size) % game_size
    if axis == 0:
        images = images.transpose(0, 1).contiguous()
    return images, labels, images.flip(2)


def brute_force(game, batch, vocab_size, one_hot, coefficient):
    """Plays every symbol of the vocabulary to every example, one plain call each, and sums with dense probabilities."""
    sender_input, labels, receiver_input = batch
    scores = game.sender.agent(sender_input) / game.sender.temperature
    normalizer = game.sender.normalizer if game.sender.alpha is None else game.sender.alpha
    distribution = fixed_sender(nn.Identity(), normalizer)(scores)
    probs = torch.zeros_like(scores).scatter_add(1, distribution.messages.t(), distribution.probs.t())
    total, aux = 0, {"acc": 0, "rank": 0}
    for symbol in range(vocab_size):
        message = torch.full(labels.shape, symbol)
        if one_hot:
            message = F.one_hot(message, vocab_size).double()
        output = game.receiver(message, receiver_input, None)
        loss, reported = nll(sender_input, message, receiver_input, output, labels, None)
        total = total + probs[:, symbol] * loss
        for name, value in reported.items():
            aux[name] = aux[name] + probs[:, symbol].view(-1, *(1,) * (value.dim() - 1)) * value
    entropy = -torch.special.xlogy(probs, torch.where(probs > 0, probs, 1)).sum(1)
    return (total - coefficient * entropy).mean(), aux, probs


def gradients(loss, game):
    return torch.autograd.grad(loss, list(game.parameters()))


def game_of(normalizer, strategy, message_format, vocab_size, axis, coefficient=0.2, **options):
    sender = fixed_sender(Sender(4, vocab_size, axis), normalizer, message_format)
    receiver = Receiver(4, vocab_size, axis, message_format == "one_hot")
    return SymbolGameMarg(sender, receiver, nll, coefficient, strategy=strategy, max_support=None, **options).double()


@pytest.mark.parametrize("normalizer", ["sparsemax", "entmax15", "softmax", 1.3, "learned"])
@pytest.mark.parametrize("strategy", ["auto", "vmap", "gather", "loop"])
@pytest.mark.parametrize("message_format", ["index", "one_hot"])
@pytest.mark.parametrize(("vocab_size", "size", "axis"), [(1, 1, 0), (2, 3, 0), (17, 5, 0), (17, 5, 1), (300, 2, 1)])
def test_equals_brute_force(normalizer, strategy, message_format, vocab_size, size, axis):
    if normalizer == "learned":
        normalizer = nn.Parameter(torch.tensor(1.6))
    game = game_of(normalizer, strategy, message_format, vocab_size, axis)
    batch = batch_of(size, axis)
    if strategy == "gather" and axis == 1:
        with pytest.raises(ValueError, match=r"gather .* sender_input"):
            game(*batch)
        return
    loss, interaction = game(*batch)
    expected, aux, probs = brute_force(game, batch, vocab_size, message_format == "one_hot", 0.2)
    torch.testing.assert_close(loss, expected, atol=1e-10, rtol=1e-10)
    for found, wanted in zip(gradients(loss, game), gradients(expected, game), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(interaction.aux["acc"], aux["acc"].detach())
    torch.testing.assert_close(interaction.aux["rank"], aux["rank"].detach())
    assert torch.equal(interaction.aux["support"], (probs > 0).sum(1).double())
    greedy = probs.argmax(1) if message_format == "index" else F.one_hot(probs.argmax(1), vocab_size).double()
    assert torch.equal(interaction.message, greedy)
    calls = (probs > 0).sum(1) if strategy == "gather" else (probs > 0).sum(1).max().expand(size)
    assert torch.equal(interaction.aux["receiver_calls"], calls.double())
    assert not any(value.requires_grad for value in interaction.aux.values())


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
@pytest.mark.parametrize("message_format", ["index", "one_hot"])
def test_unmodified_egg_agents(egg, strategy, message_format):
    from egg.zoo.signal_game.archs import InformedSender
    from egg.zoo.signal_game.archs import Receiver as EGGReceiver

    one_hot = message_format == "one_hot"
    sender = fixed_sender(InformedSender(3, 4, 5, 6, 20), 1.5, message_format)
    receiver = EGGReceiver(3, 4, 5, 20, reinforce=not one_hot)
    game = SymbolGameMarg(sender, receiver, nll, 0.2, strategy=strategy).double()
    batch = batch_of(5, 1)
    loss, _ = game(*batch)
    expected, _, _ = brute_force(game, batch, 20, one_hot, 0.2)
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(gradients(loss, game), gradients(expected, game), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("message_format", ["index", "one_hot"])
def test_symbol_receiver_wrapper_of_both_hosts(core, message_format):
    class Agent(nn.Module):
        def forward(self, embedded, input=None, aux_input=None):
            return embedded.tanh()

    sender = fixed_sender(Sender(4, 20, 0), message_format=message_format)
    images = batch_of(5, 0)[0]
    receiver = core.SymbolReceiverWrapper(Agent(), 20, 6)
    game = SymbolGameMarg(sender, receiver, squared_distance).double()
    results = []
    for game.strategy in ("loop", "vmap", "gather"):
        loss, _ = game(images, None)
        results.append([loss, *gradients(loss, game)])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


def squared_distance(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    return (receiver_output.sum(1) - sender_input.flatten(1).sum(1)).pow(2), {}


@pytest.mark.parametrize("strategy", ["vmap", "gather", "loop"])
@pytest.mark.parametrize("chunk_size", [1, 3, 1000])
def test_chunks_change_nothing(strategy, chunk_size):
    game = game_of("softmax", strategy, "index", 17, 0)
    batch = batch_of(5, 0)
    whole, _ = game(*batch)
    game.chunk_size = chunk_size
    if strategy == "vmap" and not vmap_can_be_recomputed():
        with pytest.raises(RuntimeError, match=r"chunk_size .* vmap"):
            game(*batch)
        return
    in_chunks, _ = game(*batch)
    torch.testing.assert_close(in_chunks, whole)
    for found, wanted in zip(gradients(in_chunks, game), gradients(whole, game), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_chunks_repeat_dropout_in_the_backward_pass(strategy):
    if strategy == "vmap" and not vmap_can_be_recomputed():
        pytest.skip("needs torch 2.6")
    torch.manual_seed(0)
    game = game_of("softmax", strategy, "index", 17, 0, chunk_size=4)
    game.receiver.embed = nn.Sequential(game.receiver.embed, nn.Dropout(0.5)).double()
    batch = batch_of(5, 0)
    torch.manual_seed(1)
    loss, _ = game(*batch)
    direction = [torch.randn_like(p) for p in game.parameters()]
    slope = sum((g * d).sum() for g, d in zip(gradients(loss, game), direction, strict=True))

    def loss_at(step):
        with torch.no_grad():
            for p, d in zip(game.parameters(), direction, strict=True):
                p += step * d
        torch.manual_seed(1)
        value = game(*batch)[0].detach()
        with torch.no_grad():
            for p, d in zip(game.parameters(), direction, strict=True):
                p -= step * d
        return value

    torch.testing.assert_close(slope, (loss_at(1e-6) - loss_at(-1e-6)) / 2e-6, atol=1e-5, rtol=1e-5)


def test_greedy_evaluation_plays_the_mode_and_expected_the_sum():
    game = game_of("sparsemax", "auto", "index", 17, 1, coefficient=0.0)
    images, labels, candidates = batch_of(5, 1)
    training_loss, _ = game(images, labels, candidates)
    game.eval()
    loss, interaction = game(images, labels, candidates)
    mode = game.sender.distribution(images, None).mode
    output = game.receiver(mode, candidates)
    torch.testing.assert_close(loss, F.nll_loss(output, labels))
    assert torch.equal(interaction.message, mode)
    torch.testing.assert_close(interaction.receiver_output, output.detach())
    assert "receiver_calls" not in interaction.aux
    assert torch.equal(interaction.message_length, torch.ones(5))
    game.evaluation = "expected"
    torch.testing.assert_close(game(images, labels, candidates)[0], training_loss)
    with pytest.raises(ValueError, match=r"evaluation .*'sampled'"):
        game.evaluation = "sampled"


class Recurrent(nn.Module):
    """Reads the message as a packed sequence of one symbol."""

    def __init__(self):
        super().__init__()
        self.read = nn.Embedding(17, 6)
        self.rnn = nn.GRU(6, 6, batch_first=True)

    def forward(self, message, receiver_input=None, aux_input=None):
        lengths = torch.ones(len(message), dtype=torch.long)
        packed = nn.utils.rnn.pack_padded_sequence(self.read(message).unsqueeze(1), lengths, batch_first=True)
        return self.rnn(packed)[1][0]


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.read = nn.Embedding(17, 6)
        self.drop = nn.Dropout(0.5)

    def forward(self, message, receiver_input=None, aux_input=None):
        return self.drop(self.read(message))


class Normalizing(nn.Module):
    def __init__(self):
        super().__init__()
        self.read = nn.Embedding(17, 6)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, message, receiver_input=None, aux_input=None):
        return self.norm(self.read(message))


class Peeking(nn.Module):
    """Looks at a value, which vmap cannot."""

    def __init__(self):
        super().__init__()
        self.read = nn.Embedding(17, 6)

    def forward(self, message, receiver_input=None, aux_input=None):
        return self.read(message) * (1 + message.sum().item() * 0)


@pytest.mark.parametrize("receiver_class", [Recurrent, Normalizing, Peeking])
def test_what_vmap_cannot_trace_is_played_by_loop(receiver_class):
    sender = fixed_sender(Sender(4, 17, 1), "entmax15")
    game = SymbolGameMarg(sender, receiver_class(), distance_of_axis_1).double()
    images = batch_of(5, 1)[0]
    with pytest.warns(RuntimeWarning, match=r"auto .*loop"):
        loss, _ = game(images, None, images)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        game(images, None, images)
    reference = copy.deepcopy(game)
    reference.strategy = "loop"
    torch.testing.assert_close(reference(images, None, images)[0], loss)


def distance_of_axis_1(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    return (receiver_output.sum(1) - sender_input[0].sum(1)).pow(2), {}


@pytest.mark.parametrize("strategy", ["auto", "vmap", "gather", "loop"])
def test_dropout_differs_between_messages(strategy):
    sender = fixed_sender(Sender(4, 17, 0), "softmax")
    receiver = Dropping()
    nn.init.ones_(receiver.read.weight)

    def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        return receiver_output.sum(1), {"output": receiver_output.sum(1)}

    game = SymbolGameMarg(sender, receiver, loss, strategy=strategy)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        values = [game(batch_of(64, 0)[0].float(), None)[1].aux["output"] for _ in range(2)]
    seen = torch.stack(values)
    assert 5 < seen.mean() < 7, "6 units of 1, half of them dropped and the others doubled"
    assert seen.std() < 2, "17 messages with a mask each average out; one mask for all would give 2.4"


def test_batchnorm_is_not_gathered():
    game = SymbolGameMarg(fixed_sender(Sender(4, 17, 0)), Normalizing(), squared_distance, strategy="gather")
    images = batch_of(5, 0)[0].float()
    with pytest.raises(ValueError, match=r"gather .* BatchNorm"):
        game(images, None)
    game.evaluation = "expected"
    game.eval()
    gathered = game(images, None)[0]
    game.strategy = "vmap"
    torch.testing.assert_close(game(images, None)[0], gathered)


def test_auto_says_once_what_it_takes(caplog):
    caplog.set_level("INFO", logger="egg_sparse")
    game = SymbolGameMarg(fixed_sender(Sender(4, 17, 0)), Dropping(), squared_distance)
    images = batch_of(5, 0)[0].float()
    game(images, None)
    game(images, None)
    assert caplog.messages == ["strategy auto plays this receiver with vmap"]


def test_scalars_that_a_loss_reports_are_expanded(core):
    def loss(*args):
        per_example, aux = nll(*args)
        return per_example, {"acc": aux["acc"].mean(), "constant": 3, "flag": torch.tensor([1.0])}

    batch = batch_of(5, 1)
    results = {}
    for strategy in ("vmap", "loop"):
        torch.manual_seed(0)
        game = game_of("sparsemax", strategy, "index", 17, 1)
        game.loss = loss
        _, interaction = game(*batch)
        results[strategy] = interaction.aux
        assert interaction.aux["constant"].tolist() == pytest.approx([3.0] * 5)
        assert interaction.aux["flag"].tolist() == pytest.approx([1.0] * 5)
        assert interaction.aux["acc"].shape == (5,)
        core.Interaction.from_iterable([interaction, interaction])
    torch.testing.assert_close(results["vmap"], results["loop"])
    game = game_of("sparsemax", "gather", "index", 17, 0)
    game.loss = loss
    with pytest.raises(ValueError, match=r"gather .* acc "):
        game(*batch_of(5, 0))


@pytest.mark.parametrize("strategy", ["auto", "vmap", "gather", "loop"])
def test_acting_receivers_learn_by_the_score_function(core, strategy):
    """The mean gradient over many draws of the receiver's actions equals the exact one."""
    if strategy == "vmap" and not vmap_can_be_recomputed():
        pytest.skip("before torch 2.6 vmap cannot trace torch.distributions.Categorical")
    vocab_size, size = 6, 400

    class Guesser(nn.Module):
        def __init__(self):
            super().__init__()
            self.read = nn.Embedding(vocab_size, 3)

        def forward(self, message, receiver_input=None, aux_input=None):
            return self.read(message).log_softmax(1)

    def miss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        return (receiver_output != labels).double(), {}

    def miss_exactly(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        return 1 - receiver_output.exp().gather(1, labels[:, None])[:, 0], {}

    images = batch_of(1, 0)[0].expand(size, -1, -1).clone()
    labels = torch.ones(size, dtype=torch.long)
    guesser = Guesser()
    sender = fixed_sender(Sender(4, vocab_size, 0), "softmax")
    sampled = SymbolGameMarg(sender, core.ReinforceWrapper(guesser), miss, strategy=strategy).double()
    exact = SymbolGameMarg(sender, guesser, miss_exactly).double()
    wanted = gradients(exact(images, labels)[0], exact)
    found = [gradients(sampled(images, labels)[0], sampled) for _ in range(60)]
    for index, gradient in enumerate(wanted):
        mean = torch.stack([each[index] for each in found]).mean(0)
        torch.testing.assert_close(mean, gradient, atol=0.02, rtol=0.1)


def test_receiver_entropy(core):
    sender = fixed_sender(Sender(4, 6, 0))
    agent = nn.Embedding(6, 3)

    class Guesser(nn.Module):
        def __init__(self):
            super().__init__()
            self.read = agent

        def forward(self, message, receiver_input=None, aux_input=None):
            return self.read(message)

    def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        return torch.zeros(len(message)), {}

    images = batch_of(5, 0)[0].float()
    game = SymbolGameMarg(sender, core.ReinforceWrapper(Guesser()), loss, receiver_entropy_coeff=0.5)
    optimized, interaction = game(images, None)
    torch.testing.assert_close(optimized.detach(), -0.5 * interaction.aux["receiver_entropy"].mean())
    deterministic = SymbolGameMarg(
        sender, core.ReinforceDeterministicWrapper(Guesser()), squared_distance, receiver_entropy_coeff=0.5
    )
    loss, interaction = deterministic(images, None)
    assert interaction.aux["receiver_entropy"].tolist() == [0.0] * 5
    with pytest.raises(ValueError, match=r"receiver_entropy_coeff .* 0\.5"):
        SymbolGameMarg(sender, Guesser(), squared_distance, receiver_entropy_coeff=0.5)(images, None)


class Passing(nn.Module):
    """Returns three tensors that are no action: a number, and two more per example."""

    def __init__(self, widths=(1, 1, 1)):
        super().__init__()
        self.read = nn.Embedding(17, 6)
        self.widths = widths

    def forward(self, message, receiver_input=None, aux_input=None):
        parts = self.read(message).split([*self.widths, 6 - sum(self.widths)], 1)[:3]
        return tuple(part[:, 0] if width == 1 else part for part, width in zip(parts, self.widths, strict=True))


def loss_of_three(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    value, mean, log_variance = (part if part.dim() == 1 else part.sum(1) for part in receiver_output)
    return (value - mean).pow(2) * log_variance.exp(), {}


@pytest.mark.parametrize("strategy", ["auto", "vmap", "gather", "loop"])
@pytest.mark.parametrize("widths", [(1, 1, 1), (2, 1, 2), (2, 2, 2)])
def test_receivers_that_return_three_tensors_of_their_own(strategy, widths):
    """They go to the loss, with no score function added: loss and gradients are the brute-force sum."""
    sender = fixed_sender(Sender(4, 17, 0), "entmax15")
    game = SymbolGameMarg(sender, Passing(widths), loss_of_three, strategy=strategy, receiver_acts=False).double()
    images = batch_of(5, 0)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss, interaction = game(images, None)
    distribution, expected = game.sender(images, None), 0
    for symbol in range(17):
        prob = torch.where(distribution.messages == symbol, distribution.probs, 0).sum(0)
        output = game.receiver(torch.full((5,), symbol))
        expected = expected + prob * loss_of_three(None, None, None, output, None, None)[0]
    torch.testing.assert_close(loss, expected.mean())
    for found, wanted in zip(gradients(loss, game), gradients(expected.mean(), game), strict=True):
        torch.testing.assert_close(found, wanted)
    assert interaction.receiver_output is None
    assert "receiver_entropy" not in interaction.aux


def test_what_may_be_an_action_is_named_once():
    game = SymbolGameMarg(fixed_sender(Sender(4, 17, 0)), Passing(), loss_of_three)
    images = batch_of(5, 0)[0].float()
    with pytest.warns(RuntimeWarning, match="receiver_acts"):
        game(images, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        game(images, None)
        SymbolGameMarg(fixed_sender(Sender(4, 17, 0)), Passing((2, 2, 2)), loss_of_three)(images, None)


@pytest.mark.parametrize("strategy", ["gather", "loop"])
def test_a_receiver_of_several_actions_acts_where_the_game_is_told_so(core, strategy):
    """The same numbers as EGG's wrapper has for one action, of which this receiver makes three alike."""

    class Agent(nn.Module):
        def __init__(self):
            super().__init__()
            self.read = nn.Embedding(17, 4)

        def forward(self, message, receiver_input=None, aux_input=None):
            return self.read(message).log_softmax(1)

    class Several(nn.Module):
        def __init__(self, one):
            super().__init__()
            self.one = one

        def forward(self, message, receiver_input=None, aux_input=None):
            action, log_prob, entropy = self.one(message)
            return action[:, None].expand(-1, 3), log_prob, entropy[:, None].expand(-1, 3)

    def miss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        return (receiver_output.reshape(len(message), -1)[:, 0] != labels).double(), {}

    one = core.ReinforceWrapper(Agent())
    sender = fixed_sender(Sender(4, 17, 0), "entmax15")
    options = {"strategy": strategy, "receiver_entropy_coeff": 0.3}
    results = []
    for receiver, acts in ((one, None), (Several(one), True)):
        game = SymbolGameMarg(sender, receiver, miss, receiver_acts=acts, **options).double()
        torch.manual_seed(1)
        loss, interaction = game(batch_of(1, 0)[0].expand(5, -1, -1), torch.arange(5) % 4)
        results.append([loss, interaction.aux["receiver_entropy"], *gradients(loss, game)])
    assert len(results[0]) == len(results[1])
    torch.manual_seed(1)
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("output", "error"), [((1, 2, 3), "tuple"), (torch.zeros(5), "Tensor"), ((torch.zeros(5, 2),) * 3, r"\(5, 2\)")]
)
def test_a_receiver_that_does_not_act_as_it_should(output, error):
    game = SymbolGameMarg(fixed_sender(Sender(4, 17, 0)), lambda *_: output, squared_distance, receiver_acts=True)
    with pytest.raises((TypeError, ValueError), match=error):
        game(batch_of(5, 0)[0].float(), None)


class TestCoupledLosses:
    """Losses in which an example depends on the messages of others, such as in-batch negatives."""

    class Reader(nn.Module):
        def __init__(self, vocab_size=6):
            super().__init__()
            self.read = nn.Embedding(vocab_size, 4)

        def forward(self, message, receiver_input=None, aux_input=None):
            return self.read(message)

    @staticmethod
    def among_the_batch(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        scores = sender_input.flatten(1)[:, :4] @ receiver_output.T
        return F.cross_entropy(scores, torch.arange(len(scores)), reduction="none"), {}

    @staticmethod
    def of_a_neighbour(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        """Only example 6 depends on another one, 2, and by little."""
        loss = receiver_output.sum(1)
        return torch.where(torch.arange(len(loss)) == 6, loss + 1e-3 * loss[2], loss), {}

    @staticmethod
    def among_the_inputs(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        scores = receiver_output @ sender_input.flatten(1)[:, :4].T
        return F.cross_entropy(scores, torch.arange(len(scores)), reduction="none"), {}

    @staticmethod
    def shifted_by_the_batch(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        """A shift that cancels but for rounding."""
        shift = receiver_output.max()
        return (receiver_output - shift).exp().sum(1).log() + shift, {}

    def game(self, loss, receiver=None, **options):
        sender = fixed_sender(Sender(4, 6, 0), "entmax15")
        return SymbolGameMarg(sender, receiver or self.Reader(), loss, **options).double()

    @pytest.mark.parametrize("strategy", ["auto", "vmap", "gather", "loop"])
    @pytest.mark.parametrize("loss", ["among_the_batch", "of_a_neighbour"])
    def test_are_refused(self, strategy, loss):
        game = self.game(getattr(self, loss), strategy=strategy)
        for training in (True, False):
            game.train(training)
            game.evaluation = "expected"
            with pytest.raises(ValueError, match=r'messages of the other examples .* coupled="approximate"'):
                game(batch_of(8, 0)[0], None)

    @pytest.mark.parametrize("strategy", ["auto", "vmap", "gather", "loop"])
    def test_negatives_that_are_inputs_are_exact(self, strategy):
        game = self.game(self.among_the_inputs, strategy="vmap" if strategy == "gather" else strategy)
        images = batch_of(4, 0)[0]
        loss, _ = game(images, None)
        torch.testing.assert_close(loss, self.enumerated(game, self.among_the_inputs, images))

    def enumerated(self, game, loss, images):
        """The expectation over independent messages of all examples together."""
        distribution, total = game.sender(images, None), 0
        for rows in itertools.product(range(len(distribution.probs)), repeat=len(images)):
            prob = torch.stack([distribution.probs[row, b] for b, row in enumerate(rows)]).prod()
            message = torch.stack([distribution.messages[row, b] for b, row in enumerate(rows)])
            total = total + prob * loss(images, message, None, game.receiver(message), None, None)[0].mean()
        return total

    def test_rounding_is_no_dependence(self):
        game = self.game(self.shifted_by_the_batch).float()
        game(batch_of(64, 0)[0].float(), None)

    def test_the_expectation_over_independent_messages_is_another_number(self):
        """What is refused would be wrong: this is why."""
        images = batch_of(4, 0)[0]
        game = self.game(self.among_the_batch, coupled="approximate")
        loss, _ = game(images, None)
        assert abs(loss - self.enumerated(game, self.among_the_batch, images)) > 0.01

    def test_approximate_plays_what_nobody_sends_nowhere(self):
        """Symbols of probability 0 are no negatives: they get no gradient."""
        images = batch_of(4, 0)[0]
        game = self.game(self.among_the_batch, coupled="approximate")
        gradient = torch.autograd.grad(game(images, None)[0], game.receiver.read.weight)[0]
        sent = game.sender(images, None)
        assert 0 < len(sent.messages[sent.mask].unique()) < 6
        assert gradient.abs().sum(1).nonzero().flatten().tolist() == sent.messages[sent.mask].unique().tolist()
        game.strategy = "gather"
        with pytest.raises(ValueError, match=r"coupled.* gather"):
            game(images, None)

    @pytest.mark.parametrize("strategy", ["auto", "vmap", "gather", "loop"])
    @pytest.mark.parametrize("receiver_class", ["Dropping", "Acting", "Drawing", "Poisson"])
    def test_receivers_that_draw_are_not_taken_for_coupled(self, core, strategy, receiver_class):
        class Drawing(nn.Module):
            """Draws with NumPy and Python, which vmap cannot see."""

            def __init__(self):
                super().__init__()
                self.read = nn.Embedding(17, 6)

            def forward(self, message, receiver_input=None, aux_input=None):
                return self.read(message) * (1 + np.random.rand() + random.random())

        class Poisson(nn.Module):
            """How many numbers it draws depends on the message."""

            def __init__(self):
                super().__init__()
                self.read = nn.Embedding(17, 6)

            def forward(self, message, receiver_input=None, aux_input=None):
                return torch.poisson(40 * self.read(message).detach().abs()) * self.read(message)

        receivers = {
            "Dropping": Dropping,
            "Drawing": Drawing,
            "Poisson": Poisson,
            "Acting": lambda: core.ReinforceWrapper(TestCoupledLosses.Reader(17)),
        }
        if receiver_class in ("Acting", "Poisson") and strategy == "vmap":
            return  # torch.func.vmap cannot trace all of these
        receiver = receivers[receiver_class]()

        def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
            return receiver_output.double().reshape(len(message), -1).sum(1), {}

        game = SymbolGameMarg(fixed_sender(Sender(4, 17, 0), "softmax"), receiver, loss, strategy=strategy)
        game(batch_of(16, 0)[0].float(), None)

    def test_the_question_changes_nothing(self):
        """Neither random numbers nor buffers, whatever the receiver does."""

        class Counting(Dropping):
            def __init__(self):
                super().__init__()
                self.register_buffer("calls", torch.zeros(()))

            def forward(self, message, receiver_input=None, aux_input=None):
                self.calls += 1
                np.random.rand(), random.random()
                return super().forward(message)

        results = []
        for coupled in ("refuse", "approximate"):
            torch.manual_seed(0), np.random.seed(0), random.seed(0)
            game = SymbolGameMarg(
                fixed_sender(Sender(4, 17, 0)), Counting(), squared_distance, strategy="loop", coupled=coupled
            )
            loss, interaction = game(batch_of(8, 0)[0].float(), None)
            loss.backward()
            assert game.receiver.calls == interaction.aux["receiver_calls"][0]
            results.append([loss.item(), torch.rand(1).item(), np.random.rand(), random.random()])
        assert results[0] == results[1]

    def test_is_asked_once_per_receiver_and_loss(self):
        calls = []

        class Recording(TestCoupledLosses.Reader):
            def forward(self, message, receiver_input=None, aux_input=None):
                calls.append(len(message))
                return super().forward(message)

        game = self.game(self.shifted_by_the_batch, Recording(), strategy="loop")
        images = batch_of(5, 0)[0]
        game(images[:1], None)  # of one example nothing can be asked
        counts = []
        for _ in range(3):
            calls.clear()
            game(images, None)
            counts.append(len(calls))
        rows = len(game.sender(images, None).probs)
        assert counts == [rows + 2 + 2 * 3, rows, rows], "the messages as they are, first and last, and three digits"
        calls.clear()
        game.loss = self.of_a_neighbour
        game(images, None)
        assert len(calls) > rows

    def test_batchnorm_is_named_once(self):
        game = SymbolGameMarg(fixed_sender(Sender(4, 17, 0), "softmax"), Normalizing(), squared_distance).double()
        game.strategy = "loop"
        images = batch_of(8, 0)[0]
        with pytest.warns(RuntimeWarning, match="BatchNorm1d"):
            game(images, None)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            game(images, None)

    def test_batchnorm_hides_no_other_dependence(self):
        class NormalizingReader(Normalizing):
            def forward(self, message, receiver_input=None, aux_input=None):
                return super().forward(message)[:, :4]

        game = SymbolGameMarg(
            fixed_sender(Sender(4, 17, 0), "softmax"), NormalizingReader(), self.among_the_batch, strategy="loop"
        ).double()
        with pytest.warns(RuntimeWarning, match="BatchNorm1d"), pytest.raises(ValueError, match="coupled"):
            game(batch_of(8, 0)[0], None)
        assert game.receiver.norm.training


class TestWhatCannotBeTold:
    """Found out later, or not at all, but never taken for known; and other ways to be wrong about it."""

    Reader, game = TestCoupledLosses.Reader, TestCoupledLosses.game
    among_the_batch = staticmethod(TestCoupledLosses.among_the_batch)
    shifted_by_the_batch = staticmethod(TestCoupledLosses.shifted_by_the_batch)

    def coupled_after(self, first):
        calls = []

        def loss(*args):
            values, aux = self.among_the_batch(*args)
            calls.append(0)
            return (values + first[0] * (torch.arange(len(values)) == 0) if first else values), aux

        return loss

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_losses_that_are_not_finite_are_asked_about_again(self, value):
        first = [value]
        game = self.game(self.coupled_after(first), strategy="loop")
        game(batch_of(8, 0)[0], None)
        first.clear()
        with pytest.raises(ValueError, match="coupled"):
            game(batch_of(8, 0)[0], None)

    def test_what_holds_in_evaluation_is_asked_again_in_training(self):
        class Loss(nn.Module):
            def forward(module, *args):
                return (self.among_the_batch if module.training else self.shifted_by_the_batch)(*args)

        game = self.game(Loss(), strategy="loop", evaluation="expected").eval()
        game(batch_of(8, 0)[0], None)
        with pytest.raises(ValueError, match="coupled"):
            game.train()(batch_of(8, 0)[0], None)

    def test_one_large_loss_hides_no_other(self):
        game = self.game(self.coupled_after([1e9]), strategy="loop").float()
        with pytest.raises(ValueError, match="coupled"):
            game(batch_of(8, 0)[0].float(), None)

    @pytest.mark.parametrize("draw", [np.random.rand, random.random])
    def test_draws_that_depend_on_the_messages_are_no_dependence(self, draw):
        class Drawing(nn.Module):
            def __init__(self):
                super().__init__()
                self.read = nn.Embedding(6, 4)

            def forward(self, message, receiver_input=None, aux_input=None):
                noise = [sum(draw() for _ in range(1 + int(symbol))) for symbol in message]
                return self.read(message) * torch.tensor(noise)[:, None]

        self.game(self.shifted_by_the_batch, Drawing(), strategy="loop")(batch_of(8, 0)[0], None)

    def test_a_loss_that_changes_in_time_is_no_dependence(self):
        calls = []

        def loss(*args):
            calls.append(0)
            values, aux = self.shifted_by_the_batch(*args)
            return values * (1 + (len(calls) > 7)), aux

        self.game(loss, strategy="gather")(batch_of(8, 0)[0], None)

    @pytest.mark.parametrize("strategy", ["auto", "vmap", "loop"])
    def test_buffers_that_a_graph_has_saved_stay_as_they_were(self, strategy):
        class Scaling(nn.Module):
            """Divides by a buffer that every call changes in place, and has another that cannot be written to."""

            def __init__(self):
                super().__init__()
                self.read = nn.Linear(4, 4)
                self.register_buffer("scale", torch.ones(()))
                self.register_buffer("index", torch.arange(4).expand(3, 4))

            def forward(self, message, receiver_input=None, aux_input=None):
                return F.one_hot(message, 6)[:, :4].double() + self.read(receiver_input) / self.scale

        sender = fixed_sender(Sender(4, 6, 0), "entmax15")
        game = SymbolGameMarg(sender, Scaling(), self.shifted_by_the_batch, strategy=strategy).double()
        images = batch_of(8, 0)[0]
        loss, _ = game(images, None, images[:, 0])
        loss.backward()
        assert game.receiver.read.weight.grad.abs().sum() > 0

    @pytest.mark.parametrize("dtype", [torch.long, torch.bool])
    def test_whole_numbers_and_truths_are_losses_too(self, dtype):
        def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
            return (message > 2).to(dtype), {}

        images = batch_of(8, 0)[0]
        for options in ({}, {"max_support": 2}, {"max_support": 2, "strategy": "loop"}):
            game = self.game(loss, **options)
            assert game(images, None)[0].is_floating_point()


class TestWhatAutoDoesWithStatefulReceivers:
    @pytest.mark.parametrize("kind", ["buffer", "attribute", "none", "late", "aux", "loss"])
    def test_tensors_that_are_kept_are_played_by_loop(self, kind):
        class Keeping(nn.Module):
            def __init__(self):
                super().__init__()
                self.read = nn.Embedding(17, 6)
                if kind == "buffer":
                    self.register_buffer("kept", torch.zeros(6))
                if kind == "attribute":
                    self.kept = torch.zeros(6)
                if kind == "none":
                    self.register_buffer("kept", None)

            def forward(self, message, receiver_input=None, aux_input=None):
                read = self.read(message)
                mean = read.detach().mean(0)
                if kind in ("buffer", "attribute"):
                    self.kept = 0.9 * self.kept + 0.1 * mean
                if kind == "none":
                    self.kept = mean if self.kept is None else 0.9 * self.kept + 0.1 * mean
                if kind == "late":
                    if not hasattr(self, "kept"):
                        self.register_buffer("kept", torch.zeros(6, dtype=mean.dtype))
                    self.kept = self.kept + mean
                if kind == "aux":
                    aux_input["kept"] = read.detach()
                return read

        class Loss:
            def __call__(self, sender_input, message, receiver_input, receiver_output, labels, aux_input):
                if kind == "loss":
                    self.kept = receiver_output.detach().mean() + getattr(self, "kept", 0.0)
                return squared_distance(sender_input, message, receiver_input, receiver_output, labels, aux_input)

        results = []
        for strategy in ("auto", "loop"):
            torch.manual_seed(0)
            sender = fixed_sender(Sender(4, 17, 0), "entmax15")
            game = SymbolGameMarg(sender, Keeping(), Loss(), strategy=strategy).double()
            images, aux = batch_of(5, 0)[0], {"given": torch.zeros(5)}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                for _ in range(2):
                    loss, interaction = game(images, None, None, aux)
                    loss.backward()
            owner = {"aux": interaction.aux_input, "loss": vars(game.loss)}.get(kind)
            kept = game.receiver.kept if owner is None else owner["kept"]
            results.append((loss.detach(), kept.clone()))
        torch.testing.assert_close(*results)

    def test_lazy_layers_begin_as_they_should(self):
        class Lazy(nn.Module):
            def __init__(self):
                super().__init__()
                self.read = nn.Embedding(17, 6)
                self.out, self.norm = nn.LazyLinear(5), nn.LazyBatchNorm1d()

            def forward(self, message, receiver_input=None, aux_input=None):
                return self.norm(self.out(self.read(message)))

        torch.manual_seed(0)
        game = SymbolGameMarg(fixed_sender(Sender(4, 17, 0), "softmax"), Lazy(), squared_distance)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(2):
                game(batch_of(5, 0)[0].float(), None)
        assert game.receiver.out.weight.abs().max() < 1


class TestTheFailedAttemptOfAuto:
    class Failing(nn.Module):
        """Counts, replaces a buffer and draws, and then does what vmap cannot trace."""

        def __init__(self):
            super().__init__()
            self.read = nn.Embedding(17, 6)
            self.norm = nn.BatchNorm1d(6, momentum=None)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("last", torch.zeros(5))

        def forward(self, message, receiver_input=None, aux_input=None):
            self.calls += 1
            self.last = message.double()
            noise = torch.rand(len(message), 1) + np.random.rand() + random.random()
            return self.norm(self.read(message) * noise)

    def test_leaves_nothing_behind(self):
        results = []
        for strategy in ("auto", "loop"):
            torch.manual_seed(0), np.random.seed(0), random.seed(0)
            sender = fixed_sender(Sender(4, 17, 0), "entmax15")
            game = SymbolGameMarg(sender, self.Failing(), squared_distance, strategy=strategy).double()
            images = batch_of(5, 0)[0]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                for _ in range(2):
                    game.zero_grad()
                    loss, _ = game(images, None)
                    loss.backward()
            results.append((game.state_dict(), [p.grad for p in game.parameters()], torch.rand(1), np.random.rand()))
        torch.testing.assert_close(*results, atol=0, rtol=0)

    def test_a_shared_encoder_keeps_its_graph(self):
        """What sender and receiver share is put back without the sender's graph noticing."""
        norm = nn.BatchNorm1d(4)

        class NormalizingSender(Sender):
            def forward(self, images, aux_input=None):
                return self.linear(norm(images[:, 0])).log_softmax(1)

        class NormalizingReceiver(Receiver):
            def __init__(self):
                super().__init__(4, 17, 0, one_hot=False)
                self.norm = norm

            def forward(self, message, images, aux_input=None):
                return super().forward(message, self.norm(images.flatten(0, 1)).view_as(images))

        game = SymbolGameMarg(fixed_sender(NormalizingSender(4, 17, 0)), NormalizingReceiver(), nll).double()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            game(*batch_of(5, 0))[0].backward()


class TestMetrics:
    @staticmethod
    def reporting(**metrics):
        def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
            per_example, _ = nll(sender_input, message, receiver_input, receiver_output, labels, aux_input)
            return per_example, {name: metric(receiver_output, labels) for name, metric in metrics.items()}

        return loss

    @pytest.mark.parametrize("strategy", ["auto", "vmap", "gather", "loop"])
    def test_whole_numbers_and_truths_are_numbers_in_training_and_evaluation(self, core, strategy):
        game = game_of("sparsemax", strategy, "index", 17, 0)
        game.loss = self.reporting(
            hit=lambda output, labels: output.argmax(1) == labels, rank=lambda output, labels: output.argmax(1)
        )
        for training in (True, False):
            _, interaction = game.train(training)(*batch_of(5, 0))
            assert {interaction.aux[name].dtype for name in ("hit", "rank")} == {torch.float64}
            core.ConsoleLogger(as_json=True).aggregate_print(0.0, interaction, "test", 1)

    @pytest.mark.parametrize(
        "metric",
        [
            lambda output, labels: output.mean(),
            lambda output, labels: output.mean().reshape(1),
            lambda output, labels: output.mean(0),
            lambda output, labels: output.mean(1)[None],
            lambda output, labels: output.mean().item(),
        ],
    )
    def test_gather_refuses_what_is_no_value_per_example(self, metric):
        game = game_of("softmax", "gather", "index", 17, 0)
        game.loss = self.reporting(odd=metric)
        with pytest.raises(ValueError, match=r"gather .* odd"):
            game(*batch_of(5, 0))

    @pytest.mark.parametrize("name", ["support", "sender_entropy", "receiver_calls", "task_loss"])
    def test_names_of_the_game_are_refused(self, name):
        game = game_of("sparsemax", "auto", "index", 17, 0)
        game.loss = self.reporting(**{name: lambda output, labels: labels})
        with pytest.raises(ValueError, match=name):
            game(*batch_of(5, 0))


def test_what_is_known_of_a_receiver_is_forgotten_with_it(caplog):
    """Python gives the identity of an object that is gone to a new one."""
    caplog.set_level("INFO", logger="egg_sparse")
    mechanics = CommunicationMarg()
    images = batch_of(5, 0)[0].float()
    sender = fixed_sender(Sender(4, 17, 0), "softmax")
    seen = {}
    for receiver_class in (Peeking, Dropping) * 20:
        receiver = receiver_class()
        caplog.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mechanics(sender, receiver, squared_distance, images, None)
        by_vmap = caplog.messages == ["strategy auto plays this receiver with vmap"]
        assert by_vmap == (receiver_class is Dropping)
        seen.setdefault(id(receiver), set()).add(receiver_class)
        del receiver
        gc.collect()
    assert any(len(classes) == 2 for classes in seen.values()), "no identity was used again, so nothing was tested"


def test_pickle():
    game = game_of("sparsemax", "auto", "index", 17, 1)
    batch = batch_of(5, 1)
    loss, _ = game(*batch)
    torch.testing.assert_close(pickle.loads(pickle.dumps(game))(*batch)[0], loss)


def test_logging_strategies(core):
    batch = batch_of(5, 1)
    game = game_of("sparsemax", "auto", "index", 17, 1)
    _, everything = game(*batch)
    assert torch.equal(everything.sender_input, batch[0])
    assert everything.receiver_output.shape == (5, 3)
    assert everything.message_length.tolist() == [1.0] * 5
    kept = core.LoggingStrategy(False, False, False, False, True, False, True)
    game = game_of("sparsemax", "auto", "index", 17, 1, train_logging_strategy=kept)
    _, some = game(*batch)
    assert (some.sender_input, some.receiver_input, some.labels, some.receiver_output) == (None,) * 4
    assert some.size == 5


def test_aux_input_reaches_receiver_and_loss():
    class Adding(nn.Module):
        def __init__(self):
            super().__init__()
            self.read = nn.Embedding(17, 1)

        def forward(self, message, receiver_input=None, aux_input=None):
            return self.read(message)[:, 0] + aux_input["bias"]

    def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        return receiver_output * aux_input["weight"], {}

    aux = {"bias": torch.randn(5), "weight": torch.randn(5)}
    images = batch_of(5, 0)[0].float()
    values = []
    for strategy in ("vmap", "gather", "loop"):
        torch.manual_seed(0)
        game = SymbolGameMarg(fixed_sender(Sender(4, 17, 0)), Adding(), loss, strategy=strategy)
        values.append(game(images, None, None, aux)[0])
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[0], values[2])


def test_population_game(core):
    senders = [fixed_sender(Sender(4, 17, 1)) for _ in range(2)]
    receivers = [Receiver(4, 17, 1, one_hot=False) for _ in range(2)]
    game = core.PopulationGame(
        CommunicationMarg(sender_entropy_coeff=0.1), core.FullSweepAgentSampler(senders, receivers, [nll])
    ).double()
    batch = batch_of(5, 1)
    found = sorted(game(*batch)[0].item() for _ in range(4))
    wanted = sorted(SymbolGameMarg(s, r, nll, 0.1)(*batch)[0].item() for s in senders for r in receivers)
    assert found == pytest.approx(wanted)
    interaction = game.eval()(*batch)[1]
    modes = torch.stack([sender.distribution(batch[0], None).mode for sender in senders])
    assert (modes == interaction.message).all(1).any()
    assert "receiver_calls" not in interaction.aux


def test_agents_of_its_own_are_not_those_of_a_population(core):
    sender, receiver = fixed_sender(Sender(4, 17, 1)), Receiver(4, 17, 1, one_hot=False)
    game = SymbolGameMarg(sender, receiver, nll)
    population = core.PopulationGame(game, core.FullSweepAgentSampler([sender], [receiver], [nll]))
    for arguments in (batch_of(5, 1), batch_of(5, 1)[:1]):
        with pytest.raises(TypeError, match=r"CommunicationMarg"):
            population(*arguments)


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_one_number_per_batch_draws_one_warning(strategy):
    game = game_of("sparsemax", strategy, "index", 17, 0)
    plain = game.loss

    def loss(*arguments):
        losses, aux = plain(*arguments)
        return losses, {**aux, "fixed": torch.tensor(2.0), "mean_rank": aux["rank"][:, 0].mean()}

    game.loss = loss
    with pytest.warns(RuntimeWarning, match=r"reports mean_rank as one number per batch"):
        game(*batch_of(5, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        game(*batch_of(5, 0))
        game.eval()(*batch_of(5, 0))


@pytest.mark.parametrize("strategy", ["auto", "loop"])
def test_a_read_of_the_other_format_is_explained(strategy):
    class Multiplying(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(17, 4))

        def forward(self, message, receiver_input=None, aux_input=None):
            return message @ self.weight

    class Indexing(Multiplying):
        def forward(self, message, receiver_input=None, aux_input=None):
            return self.weight[message]

    class Activating(Multiplying):
        def forward(self, message, receiver_input=None, aux_input=None):
            return F.leaky_relu(message)[:, None]

    images = batch_of(5, 0)[0].float()
    for receiver, given, needed in (
        (Multiplying, "index", "one_hot"),
        (Activating, "index", "one_hot"),
        (Indexing, "one_hot", "index"),
    ):
        sender = fixed_sender(Sender(4, 17, 0), message_format=given)
        game = SymbolGameMarg(sender, receiver(), squared_distance, strategy=strategy)
        with pytest.raises(ValueError, match=rf'message_format="{needed}"'):
            game(images, None)


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_batch_norm_of_what_is_no_message_draws_no_warning(strategy):
    """It is exact, too: the candidates are normalized alike whatever the messages are."""

    class Normalizing(nn.Module):
        def __init__(self, of_message):
            super().__init__()
            self.read, self.norm, self.of_message = nn.Embedding(17, 4), nn.BatchNorm1d(4), of_message

        def forward(self, message, receiver_input=None, aux_input=None):
            read = self.read(message)
            return self.norm(read) if self.of_message else read + self.norm(receiver_input)

    def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        return (receiver_output - receiver_input).square().sum(1), {}

    images = batch_of(5, 0)[0].float()
    targets = images[:, 0]
    sender, receiver = fixed_sender(Sender(4, 17, 0)), Normalizing(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, _ = SymbolGameMarg(sender, receiver, loss, strategy=strategy)(images, None, targets)
    distribution = sender.distribution(images)
    outputs = receiver.read(distribution.messages) + receiver.norm(targets)
    torch.testing.assert_close(found, distribution.expectation((outputs - targets).square().sum(-1)).mean())
    with pytest.warns(RuntimeWarning, match=r"BatchNorm1d in training"):
        SymbolGameMarg(sender, Normalizing(True), loss, strategy="loop")(images, None, targets)


@pytest.mark.parametrize("evaluation", ["greedy", "expected"])
def test_the_task_loss_is_reported_without_entropies(evaluation):
    game = game_of("sparsemax", "auto", "index", 17, 1, evaluation=evaluation)
    batch = batch_of(5, 1)
    for mode in (True, False):
        game.train(mode).sender_entropy_coeff = 0.3
        loss, interaction = game(*batch)
        game.sender_entropy_coeff = 0.0
        wanted, _ = game(*batch)
        torch.testing.assert_close(interaction.aux["task_loss"].mean(), wanted.detach())
        assert not torch.isclose(loss, wanted)


def test_a_loss_of_several_views_per_example_is_refused():
    game = game_of("sparsemax", "auto", "index", 17, 0)
    game.loss = lambda *arguments: (torch.zeros(10), {})
    with pytest.raises(ValueError, match=r"\(5,\).*\(10,\).*views"):
        game(*batch_of(5, 0))


@pytest.mark.parametrize("strategy", ["auto", "vmap", "gather", "loop"])
@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_autocast(strategy, dtype):
    game = game_of("sparsemax", strategy, "index", 17, 0).float()
    images, labels, candidates = batch_of(5, 0)
    images, candidates = images.float(), candidates.float()
    exact = game(images, labels, candidates)[0]
    with torch.autocast("cpu", dtype=dtype):
        loss, _ = game(images, labels, candidates)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, atol=0.05, rtol=0.05)
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in game.parameters())


def test_deepcopy_and_state_dict():
    game = game_of("sparsemax", "auto", "index", 17, 1)
    batch = batch_of(5, 1)
    loss, _ = game(*batch)
    torch.testing.assert_close(copy.deepcopy(game)(*batch)[0], loss)
    assert {name.split(".")[0] for name in game.state_dict()} == {"sender", "receiver"}
    assert "strategy=auto" in repr(game)


class TestMistakes:
    batch = staticmethod(lambda: [value.float() if value.is_floating_point() else value for value in batch_of(5, 1)])

    def test_sender_not_wrapped(self):
        game = SymbolGameMarg(Sender(4, 17, 1), Receiver(4, 17, 1, False), nll)
        with pytest.raises(TypeError, match=r"SparsemaxWrapper.* Tensor"):
            game(*self.batch())

    @pytest.mark.parametrize("strategy", ["auto", "vmap", "gather", "loop"])
    def test_averaged_loss(self, strategy):
        def averaged(sender_input, message, receiver_input, receiver_output, labels, aux_input):
            return F.nll_loss(receiver_output, labels), {}

        game = SymbolGameMarg(fixed_sender(Sender(4, 17, 0)), Receiver(4, 17, 0, False), averaged, strategy=strategy)
        images, labels, candidates = batch_of(5, 0)
        with pytest.raises(ValueError, match=r"loss .* average"):
            game(images.float(), labels, candidates.float())

    @pytest.mark.parametrize(
        ("result", "error"),
        [
            (torch.zeros(5, 2), r"loss .*\(5,\).*\(5, 2\)"),
            (1.0, r"loss .* float"),
            ((1.0, {}), "loss .* float"),
            ((torch.zeros(5), {"note": "fine"}), "note .* str"),
        ],
    )
    def test_other_losses(self, result, error):
        returned = result if not isinstance(result, torch.Tensor) else (result, {})
        game = SymbolGameMarg(fixed_sender(Sender(4, 17, 1)), Receiver(4, 17, 1, False), lambda *_: returned)
        with pytest.raises((TypeError, ValueError), match=error):
            game(*self.batch())

    def test_empty_batch(self):
        game = SymbolGameMarg(fixed_sender(Sender(4, 17, 1)), Receiver(4, 17, 1, False), nll)
        with pytest.raises(ValueError, match=r"batch .* empty"):
            game(torch.zeros(3, 0, 4), torch.zeros(0).long(), torch.zeros(3, 0, 4))

    def test_scores_that_are_not_finite(self):
        images, labels, candidates = self.batch()
        game = SymbolGameMarg(fixed_sender(Sender(4, 17, 1)), Receiver(4, 17, 1, False), nll)
        with pytest.raises(ValueError, match=r"scores .* finite"):
            game(images * math.nan, labels, candidates)

    @pytest.mark.parametrize("strategy", ["auto", "vmap", "loop"])
    @pytest.mark.parametrize(
        ("message_format", "one_hot", "covered", "error"),
        [
            ("index", False, 16, "17 .* 16"),
            ("one_hot", True, 16, "17 .* 16"),
            ("one_hot", True, 18, "17 .* 18"),
            ("index", True, 17, 'message_format="one_hot"'),
            ("one_hot", False, 17, 'message_format="index"'),
        ],
    )
    def test_vocabularies_that_do_not_fit(self, strategy, message_format, one_hot, covered, error):
        """Found in the first batch, whether or not it has a symbol that the receiver lacks."""
        sender = Sender(4, 17, 1)
        nn.init.zeros_(sender.linear.weight)
        sender.linear.bias.data = torch.arange(17.0).flip(0)
        game = SymbolGameMarg(
            fixed_sender(sender, message_format=message_format),
            Receiver(4, covered, 1, one_hot),
            nll,
            strategy=strategy,
        )
        with pytest.raises(ValueError, match=error):
            game(*self.batch())

    def test_hooks_are_removed_and_not_set_again(self):
        game = SymbolGameMarg(fixed_sender(Sender(4, 17, 1)), Receiver(4, 17, 1, False), nll)
        game(*self.batch())
        assert not any(layer._forward_pre_hooks for layer in game.modules())
        set_again = []
        game.receiver.read.register_forward_pre_hook = lambda *args: set_again.append(args)
        game(*self.batch())
        assert not set_again

    def test_symbols_beyond_a_table(self):
        class Table(nn.Module):
            def __init__(self):
                super().__init__()
                self.table = nn.Parameter(torch.randn(16, 3))

            def forward(self, message, receiver_input=None, aux_input=None):
                return self.table[message].log_softmax(1)

        game = SymbolGameMarg(fixed_sender(Sender(4, 17, 1), "softmax"), Table(), nll)
        with pytest.raises(ValueError, match="symbols 0 to 16"):
            game(*self.batch())

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"strategy": "map"}, "strategy .*'map'"),
            ({"chunk_size": 0}, "chunk_size .* 0"),
            ({"chunk_size": 2.0}, "chunk_size .* float"),
            ({"evaluation": "argmax"}, "evaluation .*'argmax'"),
            ({"max_support": 0}, "max_support .* 0"),
            ({"max_support": True}, "max_support .* bool"),
            ({"sender_entropy_coeff": math.nan}, "sender_entropy_coeff .* nan"),
            ({"receiver_entropy_coeff": math.inf}, "receiver_entropy_coeff .* inf"),
            ({"sender_entropy_coeff": "0.1"}, "sender_entropy_coeff .* str"),
            ({"receiver_acts": "yes"}, "receiver_acts .*'yes'"),
            ({"coupled": "accept"}, "coupled .*'accept'"),
        ],
    )
    def test_options(self, options, error):
        """At construction, and whenever they are set."""
        with pytest.raises((TypeError, ValueError), match=error):
            CommunicationMarg(**options)
        game = CommunicationMarg()
        ((name, value),) = options.items()
        before = getattr(game, name)
        with pytest.raises((TypeError, ValueError), match=error):
            setattr(game, name, value)
        assert getattr(game, name) == before

    def test_an_error_of_the_receiver_is_shown_as_it_is(self):
        class Broken(nn.Module):
            def forward(self, message, receiver_input=None, aux_input=None):
                raise KeyError("my own mistake")

        game = SymbolGameMarg(fixed_sender(Sender(4, 17, 1)), Broken(), nll)
        with pytest.raises(KeyError, match="my own mistake"):
            game(*self.batch())


@pytest.mark.gpu
@pytest.mark.parametrize("strategy", ["auto", "vmap", "loop"])
def test_cuda_equals_cpu(strategy):
    game = game_of("sparsemax", strategy, "index", 17, 1)
    batch = batch_of(5, 1)
    loss, _ = game(*batch)
    on_gpu, interaction = copy.deepcopy(game).cuda()(*(value.cuda() for value in batch))
    torch.testing.assert_close(on_gpu.cpu(), loss)
    assert interaction.message.is_cuda


@pytest.mark.gpu
def test_float16_autocast_on_cuda():
    game = game_of("sparsemax", "auto", "index", 17, 1).float().cuda()
    batch = [value.float().cuda() if value.is_floating_point() else value.cuda() for value in batch_of(5, 1)]
    exact = game(*batch)[0]
    with torch.autocast("cuda"):
        loss, _ = game(*batch)
    torch.testing.assert_close(loss, exact, atol=0.05, rtol=0.05)
