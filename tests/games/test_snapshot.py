"""What a game does to its agents beside playing them: a failed attempt of auto leaves no trace."""

import random
import warnings

import numpy as np
import torch
from torch import nn

from egg_sparse import SymbolGameMarg
from small_games import Receiver, Sender, batch_of, fixed_sender, nll, squared_distance


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


def test_scripted_layers_are_played_and_keep_their_state():
    class Scripted(nn.Module):
        def __init__(self):
            super().__init__()
            self.read = nn.Embedding(17, 6)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.norm = torch.jit.script(nn.BatchNorm1d(6))

        def forward(self, message, receiver_input=None, aux_input=None):
            return self.norm(self.read(message))

    means = []
    for checks in ("approximate", "refuse"):  # a check of a loss that ignores the receiver plays it several times
        torch.manual_seed(0)
        game = SymbolGameMarg(
            fixed_sender(Sender(4, 17, 0), "entmax15"),
            Scripted(),
            lambda sender_input, *_: (sender_input.sum((1, 2)), {}),
            strategy="loop",
            coupled=checks,
        ).double()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            game(batch_of(5, 0)[0], None)
        means.append(game.receiver.norm.running_mean)
    assert means[0].abs().max() > 0
    torch.testing.assert_close(*means)
