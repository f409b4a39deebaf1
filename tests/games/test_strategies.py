"""The strategies: each plays every term, with the same result, and refuses what it cannot play."""

import copy
import warnings

import pytest
import torch
from torch import nn

from egg_sparse import SymbolGameMarg
from egg_sparse.games.calls import vmap_can_be_recomputed
from small_games import (
    Dropping,
    Normalizing,
    Peeking,
    Sender,
    batch_of,
    fixed_sender,
    game_of,
    gradients,
    squared_distance,
)


@pytest.mark.parametrize("message_format", ["index", "one_hot"])
def test_the_hosts_symbol_receiver_is_played_alike_by_every_strategy(core, message_format):
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


def distance_of_axis_1(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    return (receiver_output.sum(1) - sender_input[0].sum(1)).pow(2), {}


class ReadingInput(nn.Module):
    """A receiver that reads its input beside the message."""

    def __init__(self, receiver):
        super().__init__()
        self.receiver = receiver

    def forward(self, message, receiver_input=None, aux_input=None):
        return self.receiver(message) + receiver_input[0].sum(1, keepdim=True)


@pytest.mark.parametrize("receiver_class", [Recurrent, Normalizing, Peeking])
def test_what_vmap_cannot_trace_is_played_by_loop(receiver_class):
    sender = fixed_sender(Sender(4, 17, 1), "entmax15")
    game = SymbolGameMarg(sender, ReadingInput(receiver_class()), distance_of_axis_1).double()
    images = batch_of(5, 1)[0]
    with pytest.warns(RuntimeWarning, match=r"auto .*loop"):
        loss, _ = game(images, None, images)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        game(images, None, images)
    reference = copy.deepcopy(game)
    reference.strategy = "loop"
    torch.testing.assert_close(reference(images, None, images)[0], loss)


@pytest.mark.parametrize("reads_input", [False, True])
@pytest.mark.parametrize("kind", ["layer", "tensor"])
def test_auto_obeys_backward_hooks(kind, reads_input):
    class Hooked(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.out = nn.Embedding(17, 6), nn.Linear(6, 5)
            if kind == "layer":
                self.out.register_full_backward_hook(lambda layer, inputs, outputs: (inputs[0].clamp(-0.01, 0.01),))

        def forward(self, message, receiver_input=None, aux_input=None):
            hidden = self.read(message) + (receiver_input[0].sum(1, keepdim=True) if reads_input else 0)
            if kind == "tensor" and hidden.requires_grad:
                hidden.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))
            return self.out(hidden)

    results = []
    for strategy in ("loop", "auto"):
        torch.manual_seed(0)
        game = SymbolGameMarg(fixed_sender(Sender(4, 17, 1), "softmax"), Hooked(), distance_of_axis_1).double()
        game.strategy = strategy
        images = batch_of(8, 1)[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            for _ in range(2):
                loss, _ = game(images, None, images)
        results.append([loss, *gradients(loss, game)])
    torch.testing.assert_close(*results)


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


@pytest.mark.parametrize("strategy", ["auto", "vmap", "gather", "loop"])
@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_autocast_is_close_to_float32(strategy, dtype):
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
