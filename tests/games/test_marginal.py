"""The exact games against a brute-force sum over the whole vocabulary, in float64: loss and all gradients."""

import copy
import math
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse import CommunicationMarg, SymbolGameMarg
from egg_sparse.games.calls import vmap_can_be_recomputed
from small_games import (
    Passing,
    Receiver,
    Sender,
    batch_of,
    fixed_sender,
    game_of,
    gradients,
    loss_of_three,
    nll,
    squared_distance,
)


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


@pytest.mark.parametrize(
    "normalizer", ["sparsemax", "entmax15", "softmax", pytest.param(1.3, marks=pytest.mark.slow), "learned"]
)
@pytest.mark.parametrize("strategy", ["auto", "vmap", "gather", "loop"])
@pytest.mark.parametrize("message_format", ["index", "one_hot"])
@pytest.mark.parametrize(
    ("vocab_size", "size", "axis"),
    [
        (1, 1, 0),
        pytest.param(2, 3, 0, marks=pytest.mark.slow),
        (17, 5, 0),
        (17, 5, 1),
        pytest.param(300, 2, 1, marks=pytest.mark.slow),
    ],
)
def test_loss_and_gradients_equal_the_sum_over_the_vocabulary(
    normalizer, strategy, message_format, vocab_size, size, axis
):
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
def test_eggs_own_agents_have_the_loss_of_the_sum_over_the_vocabulary(egg, strategy, message_format):
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


@pytest.mark.slow
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


def test_the_receivers_entropy_enters_the_loss_with_its_coefficient(core):
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


@pytest.mark.parametrize("strategy", ["auto", "vmap", "gather", "loop"])
@pytest.mark.parametrize("widths", [(1, 1, 1), (2, 1, 2), (2, 2, 2)])
def test_three_tensors_of_a_receiver_that_does_not_act_go_to_the_loss(strategy, widths):
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


def test_a_population_plays_every_pair_as_a_game_of_its_own(core):
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


def test_a_pickled_game_has_the_same_loss():
    game = game_of("sparsemax", "auto", "index", 17, 1)
    batch = batch_of(5, 1)
    loss, _ = game(*batch)
    torch.testing.assert_close(pickle.loads(pickle.dumps(game))(*batch)[0], loss)


def test_a_copied_game_has_the_same_loss_and_the_state_of_its_agents_alone():
    game = game_of("sparsemax", "auto", "index", 17, 1)
    batch = batch_of(5, 1)
    loss, _ = game(*batch)
    torch.testing.assert_close(copy.deepcopy(game)(*batch)[0], loss)
    assert {name.split(".")[0] for name in game.state_dict()} == {"sender", "receiver"}
    assert "strategy=auto" in repr(game)


class TestMistakes:
    def test_a_sender_without_a_wrapper_is_refused(self):
        game = SymbolGameMarg(Sender(4, 17, 1), Receiver(4, 17, 1, False), nll)
        with pytest.raises(TypeError, match=r"SparsemaxWrapper.* Tensor"):
            game(*batch_of(5, 1, dtype=torch.float32))

    def test_an_empty_batch_is_refused(self):
        game = SymbolGameMarg(fixed_sender(Sender(4, 17, 1)), Receiver(4, 17, 1, False), nll)
        with pytest.raises(ValueError, match=r"batch .* empty"):
            game(torch.zeros(3, 0, 4), torch.zeros(0).long(), torch.zeros(3, 0, 4))

    def test_scores_that_are_not_finite_are_refused(self):
        images, labels, candidates = batch_of(5, 1, dtype=torch.float32)
        game = SymbolGameMarg(fixed_sender(Sender(4, 17, 1)), Receiver(4, 17, 1, False), nll)
        with pytest.raises(ValueError, match=r"scores .* finite"):
            game(images * math.nan, labels, candidates)

    def test_an_error_of_the_receiver_is_shown_as_it_is(self):
        class Broken(nn.Module):
            def forward(self, message, receiver_input=None, aux_input=None):
                raise KeyError("my own mistake")

        game = SymbolGameMarg(fixed_sender(Sender(4, 17, 1)), Broken(), nll)
        with pytest.raises(KeyError, match="my own mistake"):
            game(*batch_of(5, 1, dtype=torch.float32))


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
def test_float16_autocast_on_cuda_is_close_to_float32():
    game = game_of("sparsemax", "auto", "index", 17, 1).float().cuda()
    batch = [value.float().cuda() if value.is_floating_point() else value.cuda() for value in batch_of(5, 1)]
    exact = game(*batch)[0]
    with torch.autocast("cuda"):
        loss, _ = game(*batch)
    torch.testing.assert_close(loss, exact, atol=0.05, rtol=0.05)
