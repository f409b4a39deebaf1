"""Losses in which an example depends on the messages of others: refused, because their sum is not the expected loss."""

import itertools
import math
import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse import SymbolGameMarg
from small_games import Dropping, Normalizing, Sender, batch_of, fixed_sender, squared_distance


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
    def of_a_neighbor(sender_input, message, receiver_input, receiver_output, labels, aux_input):
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
        shift = receiver_output.mean()
        return (receiver_output - shift).exp().sum(1).log() + shift, {}

    def game(self, loss, receiver=None, **options):
        sender = fixed_sender(Sender(4, 6, 0), "entmax15")
        return SymbolGameMarg(sender, receiver or self.Reader(), loss, **options).double()

    @pytest.mark.parametrize("strategy", ["auto", "vmap", "gather", "loop"])
    @pytest.mark.parametrize("loss", ["among_the_batch", "of_a_neighbor"])
    def test_are_refused(self, strategy, loss):
        game = self.game(getattr(self, loss), strategy=strategy)
        for training in (True, False):
            game.train(training)
            game.evaluation = "expected"
            with pytest.raises(ValueError, match=r'messages of the other examples .* coupled="approximate"'):
                game(batch_of(8, 0)[0], None)

    @pytest.mark.parametrize("strategy", ["auto", "vmap", "gather", "loop"])
    def test_are_refused_if_a_single_message_is_drawn(self, strategy):
        game = self.game(self.among_the_batch, strategy=strategy, max_support=1)
        with pytest.raises(ValueError, match=r'messages of the other examples .* coupled="approximate"'):
            game(batch_of(8, 0)[0], None)
        game = self.game(self.among_the_inputs, strategy=strategy, max_support=1)
        assert game(batch_of(8, 0)[0], None)[0].isfinite()

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
        """What is refused would be wrong: the approximation plays each row of messages as a batch of its own."""
        images = batch_of(4, 0)[0]
        game = self.game(self.among_the_batch, coupled="approximate")
        loss, _ = game(images, None)
        sent = game.sender(images, None)
        rows = [self.among_the_batch(images, row, None, game.receiver(row), None, None)[0] for row in sent.messages]
        torch.testing.assert_close(loss, (sent.probs * torch.stack(rows)).sum(0).mean())
        assert abs(loss - self.enumerated(game, self.among_the_batch, images)) > 0.01

    def test_approximate_plays_what_nobody_sends_nowhere(self):
        """Symbols of probability 0 are no negatives: they get no gradient."""
        images = batch_of(4, 0)[0]
        game = self.game(self.among_the_batch, coupled="approximate")
        gradient = torch.autograd.grad(game(images, None)[0], game.receiver.read.weight)[0]
        sent = game.sender(images, None)
        assert 0 < len(sent.messages[sent.mask].unique()) < 6
        assert gradient.abs().sum(1).nonzero().flatten().tolist() == sent.messages[sent.mask].unique().tolist()
        for game.strategy in ("gather", "distinct"):
            with pytest.raises(ValueError, match=rf"coupled.* {game.strategy}"):
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
        game.loss = self.of_a_neighbor
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
