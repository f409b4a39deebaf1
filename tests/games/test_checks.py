"""What a receiver and a loss may return, and the sentence for what they may not."""

import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse import SymbolGameMarg
from small_games import Passing, Receiver, Sender, batch_of, fixed_sender, game_of, loss_of_three, nll, squared_distance


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


def test_a_loss_of_several_views_per_example_is_refused():
    game = game_of("sparsemax", "auto", "index", 17, 0)
    game.loss = lambda *arguments: (torch.zeros(10), {})
    with pytest.raises(ValueError, match=r"\(5,\).*\(10,\).*views"):
        game(*batch_of(5, 0))


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


def test_what_may_be_an_action_is_named_once():
    game = SymbolGameMarg(fixed_sender(Sender(4, 17, 0)), Passing(), loss_of_three)
    images = batch_of(5, 0)[0].float()
    with pytest.warns(RuntimeWarning, match="receiver_acts"):
        game(images, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        game(images, None)
        SymbolGameMarg(fixed_sender(Sender(4, 17, 0)), Passing((2, 2, 2)), loss_of_three)(images, None)


@pytest.mark.parametrize(
    ("output", "error"), [((1, 2, 3), "tuple"), (torch.zeros(5), "Tensor"), ((torch.zeros(5, 2),) * 3, r"\(5, 2\)")]
)
def test_a_receiver_that_does_not_act_as_it_should_is_refused(output, error):
    game = SymbolGameMarg(fixed_sender(Sender(4, 17, 0)), lambda *_: output, squared_distance, receiver_acts=True)
    with pytest.raises((TypeError, ValueError), match=error):
        game(batch_of(5, 0)[0].float(), None)


class TestLosses:
    @pytest.mark.parametrize("strategy", ["auto", "vmap", "gather", "loop"])
    def test_an_averaged_loss_is_refused(self, strategy):
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
    def test_what_is_no_loss_per_example_is_refused(self, result, error):
        returned = result if not isinstance(result, torch.Tensor) else (result, {})
        game = SymbolGameMarg(fixed_sender(Sender(4, 17, 1)), Receiver(4, 17, 1, False), lambda *_: returned)
        with pytest.raises((TypeError, ValueError), match=error):
            game(*batch_of(5, 1, dtype=torch.float32))


class TestVocabularies:
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
    def test_vocabularies_that_do_not_fit_are_refused(self, strategy, message_format, one_hot, covered, error):
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
            game(*batch_of(5, 1, dtype=torch.float32))

    def test_hooks_are_removed_and_not_set_again(self):
        game = SymbolGameMarg(fixed_sender(Sender(4, 17, 1)), Receiver(4, 17, 1, False), nll)
        game(*batch_of(5, 1, dtype=torch.float32))
        pickle.dumps(game.receiver)  # which no module with hooks of the game's would survive
        set_again = []
        game.receiver.read.register_forward_pre_hook = lambda *args: set_again.append(args)
        game(*batch_of(5, 1, dtype=torch.float32))
        assert not set_again

    def test_symbols_beyond_a_table_are_refused(self):
        class Table(nn.Module):
            def __init__(self):
                super().__init__()
                self.table = nn.Parameter(torch.randn(16, 3))

            def forward(self, message, receiver_input=None, aux_input=None):
                return self.table[message].log_softmax(1)

        game = SymbolGameMarg(fixed_sender(Sender(4, 17, 1), "softmax"), Table(), nll)
        with pytest.raises(ValueError, match="symbols 0 to 16"):
            game(*batch_of(5, 1, dtype=torch.float32))
