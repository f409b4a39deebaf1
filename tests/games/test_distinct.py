"""The strategy ``distinct``: one receiver call per distinct message, with the result of plain calls."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from egg_sparse import CommunicationMarg, SparseMAPBitVectorWrapper, SymbolGameMarg, TopKSparsemaxWrapper, host
from egg_sparse.games.calls import vmap_can_be_recomputed
from egg_sparse.games.distinct import distinct_messages
from small_games import Dropping, Normalizing, Sender, batch_of, fixed_sender, gradients

VOCABULARY, PIXELS = 17, 12


class Decoder(nn.Module):
    """Reads the message alone, counts its calls and the messages it is given, and may ignore an input."""

    def __init__(self, one_hot=False, n_bits=None):
        super().__init__()
        linear = one_hot or n_bits
        self.read = nn.Linear(n_bits or VOCABULARY, 6) if linear else nn.Embedding(VOCABULARY, 6)
        self.out = nn.Linear(6, PIXELS)
        self.sizes = []

    def forward(self, message, receiver_input=None, aux_input=None):
        self.sizes.append(len(message))
        return self.out(self.read(message).tanh()).sigmoid()


def image_of(sender_input):
    return sender_input.flatten(1).sigmoid()


def cross_entropy(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    loss = F.binary_cross_entropy(receiver_output, image_of(sender_input), reduction="none").mean(dim=1)
    return loss, {"brightness": receiver_output.mean(1), "matches": (receiver_output.argmax(1) == labels).to(loss)}


def by_hand(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    return (receiver_output - image_of(sender_input)).square().sum(1), {}


def batch(size=5):
    images = batch_of(size, 0)[0]
    return images, torch.arange(size) % PIXELS


def of_bits(wrapper):
    class Bits(nn.Linear):
        def forward(self, images, aux_input=None):
            return super().forward(images[:, 0])

    return wrapper(Bits(4, 5), support=None)


def games(receiver, loss, sender=None, **options):
    game = SymbolGameMarg(sender or fixed_sender(Sender(4, VOCABULARY, 0), "entmax15"), receiver, loss, **options)
    return game.double()


@pytest.mark.parametrize("loss", [cross_entropy, by_hand])
@pytest.mark.parametrize("kind", ["index", "one_hot", "top-k", "SparseMAP"])
@pytest.mark.parametrize("chunk_size", [None, pytest.param(1, marks=pytest.mark.slow), 4])
def test_loss_metrics_and_gradients_are_those_of_plain_calls(loss, kind, chunk_size):
    if kind in ("index", "one_hot"):
        sender = fixed_sender(Sender(4, VOCABULARY, 0), "entmax15", kind)
        receiver = Decoder(kind == "one_hot")
    else:
        sender = of_bits(TopKSparsemaxWrapper if kind == "top-k" else SparseMAPBitVectorWrapper)
        receiver = Decoder(n_bits=5)
    game = games(receiver, loss, sender)
    data = batch()
    if chunk_size and not vmap_can_be_recomputed():
        game.strategy, game.chunk_size = "distinct", chunk_size
        with pytest.raises(RuntimeError, match=r"chunk_size .* distinct"):
            game(*data)
        return
    results = []
    for game.strategy, game.chunk_size in (("loop", None), ("distinct", chunk_size)):
        value, interaction = game(*data)
        results.append([value, *gradients(value, game), *(interaction.aux[name] for name in sorted(interaction.aux))])
        if game.strategy == "loop":
            kept = interaction
    for found, wanted, name in zip(
        *reversed(results), ["loss", *(n for n, _ in game.named_parameters()), *sorted(kept.aux)], strict=True
    ):
        if name != "receiver_calls":
            torch.testing.assert_close(found, wanted, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(interaction.receiver_output, kept.receiver_output)
    torch.testing.assert_close(interaction.message, kept.message)


def test_auto_learns_in_chunks_on_every_version_of_torch():
    data, results = batch(), []
    for strategy, chunk_size in (("loop", None), ("auto", 2)):
        torch.manual_seed(0)
        game = games(Decoder(), cross_entropy, strategy=strategy, chunk_size=chunk_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            game(*data)
        value, _ = game(*data)
        results.append([value, *gradients(value, game)])
    torch.testing.assert_close(*results)


def test_the_receiver_is_called_once_with_every_distinct_message():
    game = games(Decoder(), cross_entropy, strategy="distinct")
    data = batch(40)
    _, interaction = game(*data)
    n_distinct = len(torch.unique(game.sender.distribution(data[0], None).messages))
    assert game.receiver.sizes[0] == n_distinct < 40
    torch.testing.assert_close(interaction.aux["receiver_calls"], interaction.aux["support"])


def calls_in_third_step(game, *data, warned="ignore"):
    """The sizes of the receiver's calls in a step in which "auto" compares nothing, as it does in steps 1, 2, 4, 8."""
    with warnings.catch_warnings():
        warnings.simplefilter(warned)
        for _ in range(2):
            game(*data)
    del game.receiver.sizes[:]
    game(*data)
    return game.receiver.sizes


class TestWhatAutoTakes:
    @pytest.mark.parametrize("receiver_input", [None, "ignored", {"ignored": torch.zeros(40), "number": 3.0}])
    def test_receivers_that_read_the_message_alone(self, receiver_input, caplog):
        caplog.set_level("INFO", logger="egg_sparse")
        game = games(Decoder(), cross_entropy)
        images, labels = batch(40)
        calls = calls_in_third_step(game, images, labels, images if receiver_input == "ignored" else receiver_input)
        n_distinct = len(torch.unique(game.sender.distribution(images, None).messages))
        assert calls == [n_distinct]
        assert caplog.messages == ["strategy auto calls this receiver once per distinct message (distinct)"]

    def test_receivers_whose_recurrent_layers_vmap_cannot_trace_without_a_warning(self):
        class Recurrent(Decoder):
            def __init__(self):
                super().__init__()
                self.rnn = nn.GRU(6, 6, batch_first=True)

            def forward(self, message, receiver_input=None, aux_input=None):
                self.sizes.append(len(message))
                lengths = torch.ones(len(message), dtype=torch.long)
                packed = nn.utils.rnn.pack_padded_sequence(self.read(message).unsqueeze(1), lengths, batch_first=True)
                return self.out(self.rnn(packed)[1][0]).sigmoid()

        game = games(Recurrent(), cross_entropy)
        data = batch(40)
        assert len(calls_in_third_step(game, *data, warned="error")) == 1

    def test_agents_of_a_population(self):
        senders = [fixed_sender(Sender(4, VOCABULARY, 0)).double() for _ in range(2)]
        receivers = [Decoder().double() for _ in range(2)]
        sampler = host.core.FullSweepAgentSampler(senders, receivers, [cross_entropy])
        game = host.core.PopulationGame(CommunicationMarg(), sampler)
        data = batch(40)
        for _ in range(8):
            game(*data)
        for receiver in receivers:
            assert len(receiver.sizes) >= 2
            assert receiver.sizes[-1] <= VOCABULARY

    @pytest.mark.parametrize("batch_norm", [False, True])
    def test_not_receivers_with_dropout_or_batch_norm(self, batch_norm):
        class Random(Decoder):
            def __init__(self):
                super().__init__()
                self.layer = Normalizing() if batch_norm else Dropping()

            def forward(self, message, receiver_input=None, aux_input=None):
                self.sizes.append(len(message))
                return self.layer(message)

        def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
            return (receiver_output.sum(1) - sender_input.sum((1, 2))).square(), {}

        game = games(Random(), loss)
        assert set(calls_in_third_step(game, *batch(40))) == {40}
        game.eval()
        game.evaluation = "expected"
        assert calls_in_third_step(game, *batch(40))[0] <= VOCABULARY, "in evaluation they read the message alone"

    @pytest.mark.parametrize("how", ["shape", "sum", "in a list", "late", "hidden"])
    def test_not_receivers_that_read_more(self, how):
        class Reading(Decoder):
            step = 0

            def forward(self, message, receiver_input=None, aux_input=None):
                output = super().forward(message)
                if how == "shape":
                    return output * receiver_input.shape[0]
                if how == "sum":
                    return output + 0 * receiver_input.sum()
                if how == "in a list":
                    return torch.cat([output[:, :-1], torch.stack([receiver_input])[0, :, :1, 0].sigmoid()], 1)
                if how == "hidden":
                    return output * self.hidden
                return output * (1 if self.quiet else receiver_input[:, 0, :1].sigmoid())

        game = games(Reading(), by_hand)
        images, labels = batch(40)
        game.receiver.hidden = torch.rand(40, 1, dtype=torch.float64)
        game.receiver.quiet = True
        reference = copy.deepcopy(game)
        reference.strategy = "loop"
        for _ in range(3):
            found, wanted = game(images, labels, images)[0], reference(images, labels, images)[0]
            torch.testing.assert_close(found, wanted)
        game.receiver.quiet = reference.receiver.quiet = False
        torch.testing.assert_close(game(images, labels, images)[0], reference(images, labels, images)[0])

    @pytest.mark.parametrize("how", ["BatchNorm", "a list", "output", "loss"])
    def test_plain_calls_when_it_can_no_longer_be_played(self, how):
        class Changing(Decoder):
            def __init__(self):
                super().__init__()
                self.norm = nn.BatchNorm1d(PIXELS).eval()

            def forward(self, message, receiver_input=None, aux_input=None):
                output = self.norm(super().forward(message))
                return (output, output.mean()) if how == "output" and self.has_changed else (output, output.mean(1))

        def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
            if how == "loss" and game.receiver.has_changed:
                assert receiver_output[0].mean().item() < 100
            return receiver_output[0].sum(1) * receiver_output[1], {}

        results = []
        images, labels = batch(40)
        for strategy in ("loop", "auto"):
            torch.manual_seed(0)
            game = games(Changing(), loss, strategy=strategy)
            game.receiver.has_changed = False
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                game(images, labels)
                game(images, labels)
                assert (game.receiver.sizes[-1] < 40) == (strategy == "auto")
                game.receiver.has_changed = True
                game.receiver.norm.train(how == "BatchNorm")
                results.append(game(images, labels, None, {"names": ["a"] * 40} if how == "a list" else None)[0])
        torch.testing.assert_close(*results)

    def test_averages_over_the_batch_that_are_equal_in_the_first(self):
        def averaging(sender_input, message, receiver_input, receiver_output, labels, aux_input):
            loss = F.mse_loss(receiver_output, image_of(sender_input), reduction="none").sum(1)
            return loss, {"accuracy": (receiver_output.argmax(1) == labels).double().mean(), "weight": 0.5}

        images, labels = batch(40)
        averages = []
        for strategy in ("loop", "auto", "distinct"):
            torch.manual_seed(0)
            game = games(Decoder(), averaging, strategy=strategy)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                game(images, labels - 100)
                averages.append(game(images, labels)[1].aux["accuracy"])
        torch.testing.assert_close(averages[1:], averages[:1] * 2)

    def test_losses_that_are_infinite_outside_of_the_supports(self):
        class Certain(nn.Module):
            def __init__(self):
                super().__init__()
                self.scores = nn.Parameter(1e3 * torch.eye(VOCABULARY)[:, :PIXELS])

            def forward(self, message, receiver_input=None, aux_input=None):
                return self.scores[message]

        class Informed(nn.Linear):
            def forward(self, images, aux_input=None):
                symbols = torch.arange(len(images)) % PIXELS
                is_sent = F.one_hot(symbols, VOCABULARY) + F.one_hot(torch.full_like(symbols, PIXELS), VOCABULARY)
                return super().forward(images[:, 0]).tanh() + 10 * is_sent

        def perplexity(sender_input, message, receiver_input, receiver_output, labels, aux_input):
            return F.cross_entropy(receiver_output, labels, reduction="none").exp(), {}

        results = []
        data = batch(40)
        for strategy in ("loop", "auto"):
            torch.manual_seed(0)
            game = games(Certain(), perplexity, fixed_sender(Informed(4, VOCABULARY), "entmax15"), strategy=strategy)
            game(*data)
            value, _ = game(*data)
            results.append([value, *gradients(value, game)])
            assert torch.isfinite(torch.cat([part.flatten() for part in results[-1]])).all()
        torch.testing.assert_close(*results)

    def test_losses_that_write_to_masked_entries_after_the_first_batch(self):
        def masked(sender_input, message, receiver_input, receiver_output, labels, aux_input):
            loss = F.mse_loss(receiver_output, image_of(sender_input), reduction="none")
            loss[labels < 0] = 0
            return loss.sum(1), {}

        images, labels = batch(40)
        results = []
        for strategy in ("loop", "auto"):
            torch.manual_seed(0)
            game = games(Decoder(), masked, fixed_sender(Sender(4, VOCABULARY, 0), "softmax"), strategy=strategy)
            game(images, labels)
            value, _ = game(images, labels - 4)
            results.append([value, *gradients(value, game)])
        torch.testing.assert_close(*results)

    def test_not_scripted_receivers_whose_use_of_an_input_is_not_seen(self):
        class Scripted(nn.Module):
            def __init__(self):
                super().__init__()
                self.read = nn.Embedding(VOCABULARY, PIXELS)

            def forward(self, message: torch.Tensor, receiver_input: torch.Tensor, aux_input: int | None):
                return self.read(message).sigmoid() + 0 * receiver_input.sum()

        images, labels = batch(40)
        game = games(torch.jit.script(Scripted()), by_hand, strategy="distinct")
        with pytest.raises(ValueError, match=r"strategy distinct .*compiled"):
            game(images, labels, images)

    def test_a_dependence_that_begins_later_is_found_in_the_next_comparison(self):
        class Changing(Decoder):
            counts = False

            def forward(self, message, receiver_input=None, aux_input=None):
                return super().forward(message) * (len(message) if self.counts else 1)

        game = games(Changing(), by_hand)
        data = batch(40)
        reference = copy.deepcopy(game)
        reference.strategy = "loop"
        for step in range(1, 7):
            game.receiver.counts = reference.receiver.counts = step >= 3
            found, wanted = game(*data)[0], reference(*data)[0]
            if step != 3:
                torch.testing.assert_close(found, wanted)

    def test_a_run_that_begins_anew_has_the_same_numbers(self):
        data = batch(40)
        images = data[0].float()

        def trained(steps, state=None):
            torch.manual_seed(0)
            game = games(Decoder(), cross_entropy).float()
            if state is not None:
                game.load_state_dict(state)
            optimizer = torch.optim.SGD(game.parameters(), 1.0)
            for _ in range(steps):
                optimizer.zero_grad()
                game(images, data[1])[0].backward()
                optimizer.step()
            return game.state_dict()

        whole, resumed = trained(7), trained(4, trained(3))
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    def test_not_losses_that_must_be_played_as_a_batch(self):
        def coupled(sender_input, message, receiver_input, receiver_output, labels, aux_input):
            return (receiver_output - receiver_output.mean(0)).square().sum(1), {}

        data = batch(40)
        values = []
        for strategy in ("loop", "auto"):
            torch.manual_seed(0)
            game = games(Decoder(), coupled, strategy=strategy, coupled="approximate")
            game(*data)
            values.append(game(*data)[0])
        torch.testing.assert_close(*values)


@pytest.mark.parametrize("receiver_class", ["acting", "normalizing", "reading"])
def test_what_cannot_be_played_is_refused_in_words(core, receiver_class):
    class Guesser(nn.Module):
        def __init__(self):
            super().__init__()
            self.read = nn.Embedding(VOCABULARY, 3)

        def forward(self, message, receiver_input=None, aux_input=None):
            return self.read(message).log_softmax(1) + (0 if receiver_input is None else receiver_input[:, 0, :1])

    def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
        return receiver_output.reshape(len(sender_input), -1).sum(1).double(), {}

    receiver = {"acting": core.ReinforceWrapper(Guesser()), "normalizing": Normalizing(), "reading": Guesser()}
    game = games(receiver[receiver_class], loss, strategy="distinct")
    images, _ = batch()
    word = {"acting": "acts", "normalizing": "BatchNorm", "reading": "message alone"}[receiver_class]
    with pytest.raises(ValueError, match=rf"strategy distinct .*{word}"):
        game(images, None, images if receiver_class == "reading" else None)


def test_a_list_that_the_receiver_may_read_is_refused_in_words():
    game = games(Decoder(), cross_entropy, strategy="distinct")
    with pytest.raises(ValueError, match=r"strategy distinct needs inputs"):
        game(*batch(), None, {"names": ["a", "b", "c", "d", "e"]})


def test_an_output_without_one_entry_per_message_is_refused_in_words():
    class Summary(Decoder):
        def forward(self, message, receiver_input=None, aux_input=None):
            return super().forward(message).sum(0)

    game = games(Summary(), lambda *_: (torch.zeros(5), {}), strategy="distinct")
    with pytest.raises(ValueError, match=r"strategy distinct .*\(12,\)"):
        game(*batch())


@given(st.integers(1, 4), st.integers(1, 6), st.sampled_from([1, 3, 63]), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_distinct_vectors_are_found(rows, size, width, seed):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randint(0, 3, (rows, size, width), generator=generator).double()
    distinct, index = distinct_messages(vectors, None)
    assert torch.equal(distinct[index], vectors)
    assert len(distinct) == len(torch.unique(vectors.flatten(0, 1), dim=0))


@given(st.integers(1, 4), st.integers(1, 6), st.sampled_from([3, 1000]), st.booleans(), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_distinct_symbols_are_found(rows, size, vocab_size, one_hot, seed):
    generator = torch.Generator().manual_seed(seed)
    symbols = torch.randint(0, vocab_size, (rows, size), generator=generator)
    messages = F.one_hot(symbols, vocab_size).double() if one_hot else symbols
    distinct, index = distinct_messages(messages, vocab_size)
    assert torch.equal(distinct[index], messages)
    assert len(distinct) == len(torch.unique(symbols))
