"""Messages of several symbols on both hosts: EGG's figures, EGG beside the stand-in, and what both do by hand."""

import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse import standin

VOCAB, MAX_LEN = 7, 4
CELLS = ["rnn", "gru", "lstm"]


class Affine(nn.Linear):
    def forward(self, x, receiver_input=None, aux_input=None):
        return super().forward(x)


class Classifier(nn.Linear):
    def forward(self, x, receiver_input=None, aux_input=None):
        return super().forward(x).log_softmax(1)


def classify(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    loss = F.nll_loss(receiver_output, labels, reduction="none")
    return loss, {"acc": (receiver_output.argmax(1) == labels).float()}


def guess(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    acc = (receiver_output == labels).float()
    return -acc, {"acc": acc}


def rnn_sender(core, cell="rnn", num_layers=1):
    return core.RnnSenderReinforce(Affine(6, 8), VOCAB, 5, 8, MAX_LEN, num_layers, cell)


def rnn_receiver(core, cell="rnn", num_layers=1):
    return core.RnnReceiverDeterministic(Classifier(9, 3), VOCAB, 5, 9, cell, num_layers)


def rnn(core, cell="rnn", num_layers=1):
    agents = rnn_sender(core, cell, num_layers), rnn_receiver(core, cell, num_layers)
    return core.SenderReceiverRnnReinforce(*agents, classify, 0.1, 0.05, 0.02)


def acting(core, baseline):
    receiver = core.RnnReceiverReinforce(core.ReinforceWrapper(Classifier(9, 3)), VOCAB, 5, 9, "gru")
    baseline_type = getattr(core.baselines, baseline)
    return core.SenderReceiverRnnReinforce(rnn_sender(core), receiver, guess, 0.1, 0.05, 0.02, baseline_type)


def population(core):
    senders = [rnn_sender(core, cell) for cell in CELLS]
    sampler = core.UniformAgentSampler(senders, [rnn_receiver(core), rnn_receiver(core)], [classify])
    return core.PopulationGame(core.CommunicationRnnReinforce(0.1, 0.05, 0.02), sampler)


def gs(core, cell="rnn", **options):
    sender = core.RnnSenderGS(Affine(6, 8), VOCAB, 5, 8, MAX_LEN, 1.3, cell, **options)
    receiver = core.RnnReceiverGS(Classifier(9, 3), VOCAB, 5, 9, cell)
    return core.SenderReceiverRnnGS(sender, receiver, classify, 0.02)


class EncoderAttention(nn.MultiheadAttention):
    """Makes EGG's sender run: see docs/egg_today.md."""

    def forward(self, query, key, value, static_kv=True):
        return super().forward(query, key.unsqueeze(0), value.unsqueeze(0))


def transformer_sender(core, generate_style="standard", causal=True):
    sender = core.TransformerSenderReinforce(Affine(6, 8), VOCAB, 8, MAX_LEN, 2, 2, 12, generate_style, causal)
    if core is not standin:
        for layer in sender.transformer.layers:
            layer.encoder_attn.__class__ = EncoderAttention
    return sender


def transformer_receiver(core, positional_emb=True, causal=True):
    return core.TransformerReceiverDeterministic(
        Classifier(8, 3), VOCAB, MAX_LEN, 8, 2, 12, 2, positional_emb=positional_emb, causal=causal
    )


def transformer(core, generate_style="standard", causal=True, reads_causally=True, positional_emb=True):
    agents = (
        transformer_sender(core, generate_style, causal),
        transformer_receiver(core, positional_emb, reads_causally),
    )
    return core.SenderReceiverRnnReinforce(*agents, classify, 0.1, 0.05, 0.02)


GAMES = {
    **{f"{cell}-{n}": functools.partial(rnn, cell=cell, num_layers=n) for cell in CELLS for n in (1, 2)},
    **{name: functools.partial(acting, baseline=name) for name in ("MeanBaseline", "NoBaseline", "BuiltInBaseline")},
    "population": population,
    **{f"gs-{cell}": functools.partial(gs, cell=cell) for cell in CELLS},
    "gs-straight-through": functools.partial(gs, straight_through=True),
    "gs-trainable": functools.partial(gs, cell="gru", trainable_temperature=True),
    **{
        f"transformer-{style}-{'causal' if causal else 'all'}": functools.partial(
            transformer, generate_style=style, causal=causal, reads_causally=causal
        )
        for style in ("standard", "in-place")
        for causal in (True, False)
    },
    "transformer-mixed": functools.partial(transformer, causal=False, reads_causally=True, positional_emb=False),
}
every_game = pytest.mark.parametrize("kind", GAMES)

# recorded on EGG: the losses of the first and the last of six training steps, the mean length in the last one, the sum
# of the absolute changes of all weights, and the loss of the greedy messages at the end
RECORDED = {
    "rnn-1": [-2.33615, 2.1807, 2.75, 11.6184, 1.65874],
    "rnn-2": [-16.6621, 3.27891, 4.75, 40.5789, 2.07256],
    "gru-1": [-7.5155, 1.50645, 4.5625, 16.1486, 1.42424],
    "gru-2": [-6.64169, 2.34012, 3.125, 23.3161, 2.43014],
    "lstm-1": [-6.97657, 1.46382, 4.0625, 6.99645, 1.32708],
    "lstm-2": [-5.33972, 2.31188, 3.5, 8.2653, 1.46462],
    "MeanBaseline": [0.210462, -0.395423, 4.25, 3.49619, -0.603146],
    "NoBaseline": [0.210462, 0.85965, 4.25, 3.45748, 0.222965],
    "BuiltInBaseline": [-0.820954, -0.516464, 4.25, 4.11628, -0.61286],
    "population": [-8.18891, 1.66467, 4.3125, 17.8085, 0.80974],
    "gs-rnn": [1.79124, 1.3112, 3.00563, 7.51862, 1.26582],
    "gs-gru": [1.79204, 1.21415, 3.98055, 8.64583, 1.35115],
    "gs-lstm": [1.28493, 1.20824, 4.04377, 2.38169, 1.21583],
    "gs-straight-through": [1.78768, 1.13665, 2.8125, 8.89547, 1.18602],
    "gs-trainable": [1.57007, 1.20609, 4.17711, 5.36085, 1.22858],
    "transformer-standard-causal": [-4.20901, 2.97462, 4.3125, 20.1025, 2.08488],
    "transformer-standard-all": [-4.11351, 2.73738, 4.0625, 18.423, 1.98296],
    "transformer-in-place-causal": [-6.21338, 2.75883, 4.0625, 17.1444, 2.04947],
    "transformer-in-place-all": [-5.88497, 2.59783, 4.0625, 15.4132, 1.90161],
    "transformer-mixed": [-4.14727, 2.91204, 4.3125, 19.5096, 2.05288],
}


def batches(n, size=16):
    random = np.random.RandomState(3)
    for _ in range(n):
        inputs = torch.tensor(random.standard_normal((size, 6)), dtype=torch.float32)
        yield inputs, inputs[:, :3].argmax(1)


class PortableDraws:
    """Samples of symbols from NumPy's RandomState, which draws the same numbers everywhere."""

    def __init__(self, monkeypatch):
        self.random = np.random.RandomState(7)
        monkeypatch.setattr(torch, "multinomial", self.multinomial)
        monkeypatch.setattr(torch, "rand", self.rand)

    def rand(self, shape, **options):
        return torch.tensor(self.random.random_sample(tuple(shape)), **options)

    def multinomial(self, probs, num_samples, replacement):
        assert num_samples == 1
        below = probs.cumsum(1) < self.rand((len(probs), 1), dtype=probs.dtype)
        return below.sum(1, keepdim=True).clamp(max=probs.size(1) - 1)


@every_game
def test_figures_recorded_on_egg(core, kind, monkeypatch):
    game = GAMES[kind](core)
    with torch.no_grad():
        for i, parameter in enumerate(game.parameters()):
            values = torch.arange(parameter.numel(), dtype=torch.float32).add(i).sin()
            parameter.copy_(0.8 * values.view_as(parameter) + (1 if parameter.shape == (1,) else 0))
    start = [parameter.clone() for parameter in game.parameters()]
    PortableDraws(monkeypatch)
    optimizer = torch.optim.SGD(game.parameters(), lr=0.2)
    losses, lengths = [], []
    for batch in batches(6):
        loss, interaction = game(*batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        lengths.append(interaction.message_length.float().mean().item())
    change = sum((now - then).abs().sum().item() for now, then in zip(game.parameters(), start, strict=True))
    loss, _ = game.eval()(*next(batches(1)))
    found = [losses[0], losses[-1], lengths[-1], change, loss.item()]
    assert found == pytest.approx(RECORDED[kind], rel=1e-4)


def fields(interaction):
    names = ("sender_input", "receiver_input", "labels", "message", "receiver_output", "message_length")
    return {**{name: getattr(interaction, name) for name in names}, **interaction.aux}


@functools.cache
def trained(egg, kind):
    """What a training by EGG and one by the stand-in leave: the game, and losses and Interactions of every epoch."""
    # Adam would scale up the gradients that are rounding errors alone, such as those of the keys' biases
    optimizer = ["--optimizer=sgd", "--lr=0.3"] if "transformer" in kind else ["--lr=0.02"]
    both = []
    for core in (egg, standin):
        core.init(params=["--random_seed=5", "--no_cuda", *optimizer])
        epochs = []

        class Noting(core.Callback):
            def on_epoch_end(self, loss, logs, epoch, epochs=epochs):
                epochs.append((loss, logs))

            on_validation_end = on_epoch_end

        game = GAMES[kind](core)
        trainer = core.Trainer(
            game,
            core.build_optimizer(game.parameters()),
            train_data=list(batches(2)),
            validation_data=list(batches(1)),
            callbacks=[Noting()],
        )
        trainer.train(2)
        both.append((game, epochs))
    return both


class TestBesideEgg:
    """EGG and the stand-in do the same from one seed."""

    @every_game
    def test_trains_equally(self, egg, kind):
        (game, epochs), (other, other_epochs) = trained(egg, kind)
        assert [name for name, _ in game.named_parameters()] == [name for name, _ in other.named_parameters()]
        assert list(game.state_dict()) == list(other.state_dict())
        torch.testing.assert_close(dict(other.state_dict()), dict(game.state_dict()), atol=1e-5, rtol=1e-5)
        assert len(epochs) == 4
        for (loss, logs), (other_loss, other_logs) in zip(epochs, other_epochs, strict=True):
            assert loss == pytest.approx(other_loss, rel=1e-5, abs=1e-6)
            torch.testing.assert_close(fields(other_logs), fields(logs), atol=1e-5, rtol=1e-5)

    @every_game
    def test_state_dicts_move(self, egg, kind):
        for core, (game, _) in zip((standin, egg), trained(egg, kind), strict=True):
            torch.manual_seed(17)
            other = GAMES[kind](core)
            other.load_state_dict(game.state_dict())
            interactions = []
            for one in (game, other):
                np.random.seed(2)  # which picks the agents of a population
                interactions.append(one.eval()(*next(batches(1)))[1])
            torch.testing.assert_close(*map(fields, interactions))

    @pytest.mark.parametrize("kind", ["lstm-2", "gs-gru", "transformer-standard-causal"])
    def test_dumps_equally(self, egg, kind):
        data = [(*batch, None, {}) for batch in batches(2)]
        dumps = [
            core.dump_interactions(game, data, gs=kind == "gs-gru", variable_length=True)
            for core, (game, _) in zip((egg, standin), trained(egg, kind), strict=True)
        ]
        torch.testing.assert_close(*map(fields, dumps))
        message = dumps[1].message
        assert message.shape == (32, MAX_LEN + 1)
        after = torch.arange(MAX_LEN + 1) >= dumps[1].message_length.unsqueeze(1)
        assert (message[after] == 0).all()


LINEAR = ["weight", "bias"]
ATTENTION = ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]


def under(prefix, names):
    return [f"{prefix}.{name}" for name in names]


def of_cell(layer=""):
    return [f"{kind}_{of}{layer}" for kind in ("weight", "bias") for of in ("ih", "hh")]


class TestWeights:
    def test_names_of_recurrent_agents(self, core):
        agent, symbols = under("agent", LINEAR), [*under("hidden_to_output", LINEAR), "embedding.weight"]
        layers = [name for layer in range(2) for name in under(f"cells.{layer}", of_cell())]
        assert list(rnn_sender(core, "gru", 2).state_dict()) == ["sos_embedding", *agent, *symbols, *layers]
        layers = [name for layer in range(2) for name in under("encoder.cell", of_cell(f"_l{layer}"))]
        assert list(rnn_receiver(core, "gru", 2).state_dict()) == [*agent, *layers, "encoder.embedding.weight"]
        game = gs(core, "lstm", trainable_temperature=True)
        cell = under("cell", of_cell())
        sender = ["sos_embedding", "temperature", *agent, *symbols, "embedding.bias", *cell]
        receiver = [*agent, *cell, *under("embedding", LINEAR)]
        assert list(game.state_dict()) == [*under("sender", sender), *under("receiver", receiver)]

    def test_names_of_transformers(self, core):
        attention = [*under("self_attn", ATTENTION), *under("self_attn_layer_norm", LINEAR)]
        to_sender = [*under("encoder_attn", ATTENTION), *under("encoder_attn_layer_norm", LINEAR)]
        feed_forward = [name for part in ("fc1", "fc2", "layer_norm") for name in under(part, LINEAR)]

        def stack(layer):
            layers = [name for i in range(2) for name in under(f"layers.{i}", layer)]
            return ["embed_positions.pe", *layers, *under("layer_norm", LINEAR)]

        agent = under("agent", LINEAR)
        decoder = under("transformer", stack([*attention, *to_sender, *feed_forward]))
        symbols = [*under("embedding_to_vocab", LINEAR), "embed_tokens.weight"]
        assert list(transformer_sender(core).state_dict()) == ["special_symbol_embedding", *agent, *decoder, *symbols]
        for causal in (True, False):
            receiver = transformer_receiver(core, causal=causal)
            encoder = ["embedding.weight", *stack([*attention, *feed_forward])]
            assert list(receiver.state_dict()) == [*agent, *under("encoder.base_encoder", encoder)]
            embedding = receiver.encoder.base_encoder.embedding
            assert embedding.weight.shape == (VOCAB if causal else VOCAB + 1, 8)

    def test_initial_values(self, core):
        def std(parameter):
            return parameter.std().item()

        sender = core.TransformerSenderReinforce(Affine(6, 64), 400, 64, 4, 1, 2, 256)
        receiver = core.TransformerReceiverDeterministic(Affine(64, 6), 400, 4, 64, 2, 256, 1)
        assert std(sender.embed_tokens.weight) == pytest.approx(1 / 8, rel=0.05)
        assert std(receiver.encoder.base_encoder.embedding.weight) == pytest.approx(1 / 8, rel=0.05)
        assert (sender.special_symbol_embedding == 0).all()
        for layer in (sender.transformer.layers[0], receiver.encoder.base_encoder.layers[0]):
            for linear in (layer.fc1, layer.fc2):
                assert std(linear.weight) == pytest.approx((2 / (64 + 256)) ** 0.5, rel=0.05)
                assert linear.weight.abs().max() <= (6 / (64 + 256)) ** 0.5
                assert (linear.bias == 0).all()
        for sender in (
            core.RnnSenderReinforce(Affine(6, 8), VOCAB, 1000, 8, 4),
            core.RnnSenderGS(Affine(6, 8), VOCAB, 1000, 8, 4, 1.0),
        ):
            assert std(sender.sos_embedding) == pytest.approx(0.01, rel=0.1)


class TestSenders:
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("num_layers", [1, 2])
    @pytest.mark.parametrize("cell", CELLS)
    def test_rnn_sender(self, core, cell, num_layers, training):
        """One example at a time, given what was sent."""
        sender, x = rnn_sender(core, cell.upper(), num_layers).train(training), torch.randn(5, 6)
        message, log_probs, entropies = sender(x)
        assert message.dtype == torch.long
        assert message[:, -1].tolist() == log_probs[:, -1].tolist() == entropies[:, -1].tolist() == [0] * 5
        for i in range(5):
            states = [
                (sender.agent(x[i]) if layer == 0 else torch.zeros(8), torch.zeros(8)) for layer in range(num_layers)
            ]
            read = sender.sos_embedding
            for position in range(MAX_LEN):
                for layer in range(num_layers):
                    of = sender.cells[layer]
                    states[layer] = of(read, states[layer]) if cell == "lstm" else (of(read, states[layer][0]), None)
                    read = states[layer][0]
                scores = sender.hidden_to_output(read).log_softmax(0)
                symbol = message[i, position]
                assert training or symbol == scores.argmax()
                torch.testing.assert_close(log_probs[i, position], scores[symbol])
                torch.testing.assert_close(entropies[i, position], -(scores.exp() * scores).sum())
                read = sender.embedding(symbol)

    @pytest.mark.parametrize("make", [rnn_sender, transformer_sender])
    def test_samples_follow_the_probabilities(self, core, make):
        sender = make(core)
        message, log_probs, _ = sender(torch.randn(1, 6).expand(4_000, 6))
        first, counts = message[:, 0].unique(return_counts=True)
        for symbol, count in zip(first, counts, strict=True):
            prob = log_probs[message[:, 0] == symbol, 0].exp()
            assert prob.amax() - prob.amin() < 1e-5
            assert count.item() / 4_000 == pytest.approx(prob[0].item(), abs=0.03)

    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("generate_style", ["standard", "in-place"])
    def test_transformer_sender(self, core, generate_style, causal):
        sender, x = transformer_sender(core, generate_style, causal).eval(), torch.randn(5, 6)
        with torch.no_grad():
            sender.special_symbol_embedding.normal_()
        message, log_probs, entropies = sender(x)
        assert message[:, -1].tolist() == log_probs[:, -1].tolist() == entropies[:, -1].tolist() == [0] * 5
        embedded = math.sqrt(8) * sender.embed_tokens(message)
        special = sender.special_symbol_embedding.expand(5, 1, 8)
        for position in range(MAX_LEN):
            before = [embedded[:, :position]]
            read = torch.cat([special, *before] if generate_style == "standard" else [*before, special], dim=1)
            mask = torch.full((position + 1, position + 1), -math.inf).triu(1) if causal else None
            output = sender.transformer(read, sender.agent(x), attn_mask=mask)
            scores = sender.embedding_to_vocab(output[:, -1]).log_softmax(1)
            assert torch.equal(message[:, position], scores.argmax(1))
            torch.testing.assert_close(log_probs[:, position], scores.amax(1))
            torch.testing.assert_close(entropies[:, position], -(scores.exp() * scores).sum(1))

    def test_positions(self, core):
        embedding = core.transformer.SinusoidalPositionEmbedding(5, 6)
        expected = [
            [(math.cos if d % 2 else math.sin)(p / 10000 ** (2 * (d // 2) / 6)) for d in range(6)] for p in range(3)
        ]
        torch.testing.assert_close(embedding(torch.zeros(1, 3, 6)), torch.tensor([expected]))

    @pytest.mark.parametrize("straight_through", [True, False])
    def test_gs_sender(self, core, straight_through):
        sender, x = gs(core, "lstm", straight_through=straight_through).sender, torch.randn(5, 6)
        message = sender(x)
        assert message.shape == (5, MAX_LEN + 1, VOCAB)
        torch.testing.assert_close(message.sum(2), torch.ones(5, MAX_LEN + 1))
        assert (message[:, :-1].amax(2) > 0.999).all() == straight_through
        assert torch.equal(message[:, -1], F.one_hot(torch.zeros(5, dtype=torch.long), VOCAB).float())
        message = sender.eval()(x)
        hidden, memory, read = sender.agent(x), torch.zeros(5, 8), sender.sos_embedding.expand(5, 5)
        for position in range(MAX_LEN):
            hidden, memory = sender.cell(read, (hidden, memory))
            assert torch.equal(message[:, position].argmax(1), sender.hidden_to_output(hidden).argmax(1))
            read = sender.embedding(message[:, position])
        assert set(message.unique().tolist()) == {0, 1}

    def test_temperature(self, core):
        sender = gs(core, trainable_temperature=True).sender
        sender(torch.randn(5, 6)).square().sum().backward()
        assert sender.temperature.grad.abs() > 0
        agent = gs(core).sender
        core.TemperatureUpdater(agent, decay=0.5).on_epoch_end(0.0, None, 1)
        assert agent.temperature == 0.65

    @pytest.mark.parametrize("name", ["RnnSenderReinforce", "RnnSenderGS", "TransformerSenderReinforce"])
    def test_refuses_messages_without_symbols(self, core, name):
        sizes = {"vocab_size": 7, "embed_dim": 8, "hidden_size": 8, "max_len": 0}
        sizes.update({"TransformerSenderReinforce": {"num_layers": 1, "num_heads": 2}}.get(name, {}))
        sizes.update({"RnnSenderGS": {"temperature": 1.0}}.get(name, {}))
        with pytest.raises(AssertionError, match="max_len"):
            getattr(core, name)(Affine(6, 8), **sizes)

    def test_refuses_unknown_kinds(self, core):
        for make in (rnn_sender, rnn_receiver, gs):
            with pytest.raises(ValueError, match="elman"):
                make(core, "elman")
        with pytest.raises(ValueError, match="elman"):
            core.RnnReceiverGS(Classifier(9, 3), VOCAB, 5, 9, "elman")
        with pytest.raises(AssertionError):
            transformer_sender(core, "backwards")


MESSAGES = torch.tensor([[1, 2, 0, 6, 5], [0, 3, 3, 3, 0], [4, 4, 4, 4, 4], [1, 2, 3, 4, 0]])
LENGTHS = [3, 1, 5, 5]


class TestReceivers:
    @pytest.mark.parametrize("num_layers", [1, 2])
    @pytest.mark.parametrize("cell", CELLS)
    def test_rnn_receivers_read_up_to_the_end(self, core, cell, num_layers):
        receiver = rnn_receiver(core, cell.upper(), num_layers)
        output, log_prob, entropy = receiver(MESSAGES)
        assert log_prob.tolist() == entropy.tolist() == [0] * 4
        encoder = receiver.encoder
        for i, length in enumerate(LENGTHS):
            outputs, _ = encoder.cell(encoder.embedding(MESSAGES[i : i + 1, :length]))
            torch.testing.assert_close(output[i], receiver.agent(outputs[:, -1])[0])
        torch.testing.assert_close(receiver(MESSAGES, lengths=torch.tensor(LENGTHS))[0], output)

    def test_acting_receiver(self, core):
        receiver = core.RnnReceiverReinforce(core.ReinforceWrapper(Classifier(9, 3)), VOCAB, 5, 9)
        action, log_prob, entropy = receiver(MESSAGES)
        scores = receiver.agent.agent(receiver.encoder(MESSAGES))
        torch.testing.assert_close(log_prob, scores.gather(1, action[:, None])[:, 0])
        torch.testing.assert_close(entropy, -(scores.exp() * scores).sum(1))

    @pytest.mark.parametrize("cell", CELLS)
    def test_gs_receiver_answers_after_every_symbol(self, core, cell):
        receiver = gs(core, cell).receiver
        message = torch.randn(4, 5, VOCAB).softmax(2)
        state, outputs = None, []
        for position in range(5):
            state = receiver.cell(receiver.embedding(message[:, position]), state)
            outputs.append(receiver.agent(state[0] if cell == "lstm" else state))
        torch.testing.assert_close(receiver(message), torch.stack(outputs, 1))

    def test_transformer_receivers_read_up_to_the_end(self, core):
        """Without the causal mask: what follows the end, and which messages are beside, changes nothing."""
        receiver = transformer_receiver(core, causal=False)
        output, log_prob, entropy = receiver(MESSAGES)
        assert log_prob.tolist() == entropy.tolist() == [0] * 4
        for i, length in enumerate(LENGTHS):
            torch.testing.assert_close(receiver(MESSAGES[i : i + 1, :length])[0][0], output[i])

    def test_causal_transformer_receiver(self, core):
        """It reads the position after the end, which sees itself and what comes before the end, at most max_len - 1."""
        receiver = transformer_receiver(core)
        output, _, _ = receiver(MESSAGES)
        base = receiver.encoder.base_encoder
        for i, length in enumerate(LENGTHS):
            at = min(length, MAX_LEN - 1)
            mask = torch.ones(at + 1, at + 1).triu(1).bool()
            padding = torch.arange(at + 1)[None] >= length
            encoded = base(MESSAGES[i : i + 1, : at + 1], padding, mask)
            torch.testing.assert_close(output[i], receiver.agent(encoded[:, at])[0])


class Fixed(nn.Module):
    """An agent that says what it is given."""

    def __init__(self, *said):
        super().__init__()
        self.said = said

    def forward(self, *args):
        return self.said if len(self.said) > 1 else self.said[0]


class TestGames:
    def test_reinforce(self, core):
        """Steps of training and evaluations, by plain loops over examples and positions."""
        log_probs = torch.randn(4, 5, requires_grad=True)
        entropies = torch.rand(4, 5, requires_grad=True)
        outputs = torch.randn(4, requires_grad=True)
        log_prob, entropy = torch.randn(4, requires_grad=True), torch.rand(4, requires_grad=True)
        leaves = (log_probs, entropies, outputs, log_prob, entropy)
        game = core.SenderReceiverRnnReinforce(
            Fixed(MESSAGES, log_probs, entropies),
            Fixed(outputs, log_prob, entropy),
            lambda sender_input, message, receiver_input, output, labels, aux: (
                output.square() + labels,
                {"of": labels},
            ),
            0.3,
            0.7,
            0.05,
        )
        costs = [0.05 * length for length in LENGTHS]
        loss_baseline = cost_baseline = 0.0
        n_updates = 0
        for training in (True, True, False, True, False):
            labels = torch.randn(4)
            game.train(training)
            losses = outputs.square() + labels
            expected = 0.0
            for i, length in enumerate(LENGTHS):
                said = sum(log_probs[i, j] for j in range(length))
                expected += losses[i] + (losses[i].item() - loss_baseline) * (said + log_prob[i])
                expected += (costs[i] - cost_baseline) * said
                expected -= 0.3 * sum(entropies[i, j] for j in range(length)) / length + 0.7 * entropy[i]
            optimized, interaction = game(torch.zeros(4, 2), labels)
            torch.testing.assert_close(optimized, expected / 4)
            torch.testing.assert_close(
                torch.autograd.grad(optimized, leaves), torch.autograd.grad(expected / 4, leaves)
            )
            if training:
                n_updates += 1
                loss_baseline += (losses.mean().item() - loss_baseline) / n_updates
                cost_baseline += (sum(costs) / 4 - cost_baseline) / n_updates
        assert interaction.message_length.tolist() == interaction.aux["length"].tolist() == LENGTHS
        assert not any(value.requires_grad for value in interaction.aux.values())
        assert torch.equal(interaction.aux["sender_entropy"], entropies)
        assert torch.equal(interaction.aux["receiver_entropy"], entropy)
        assert torch.equal(interaction.aux["of"], labels)
        assert torch.equal(interaction.message, MESSAGES)

    def test_gs(self, core):
        """The sum over where the message ends, by plain loops; what has not ended by the last position ends there."""
        message = torch.randn(4, 5, VOCAB).softmax(2).requires_grad_()
        outputs = torch.randn(4, 5, 3, requires_grad=True)
        labels = torch.tensor([0, 1, 2, 0])
        seen = []

        def loss(sender_input, symbol, receiver_input, output, labels, aux_input):
            seen.append(symbol)
            return F.cross_entropy(output, labels, reduction="none") + symbol[:, 1], {"first": output[:, 0]}

        game = core.SenderReceiverRnnGS(Fixed(message), Fixed(outputs), loss, 0.1)
        optimized, interaction = game(torch.zeros(4, 2), labels)
        total, lengths, metrics = 0.0, [], []
        for i in range(4):
            unended, length, metric = 1.0, 0.0, 0.0
            for j in range(5):
                ends = unended * message[i, j, 0] if j < 4 else unended
                task_loss = F.cross_entropy(outputs[i, j], labels[i]) + message[i, j, 1]
                total += ends * (task_loss + 0.1 * (j + 1))
                length += ends.item() * (j + 1)
                metric += ends * outputs[i, j, 0]
                unended = unended * (1 - message[i, j, 0])
            lengths.append(length)
            metrics.append(metric.item())
        torch.testing.assert_close(optimized, total / 4)
        leaves = (message, outputs)
        torch.testing.assert_close(
            torch.autograd.grad(optimized, leaves), torch.autograd.grad(total / 4, leaves), atol=1e-5, rtol=1e-4
        )
        assert not interaction.message_length.requires_grad
        assert interaction.message_length.tolist() == pytest.approx(lengths)
        assert interaction.aux["length"].tolist() == pytest.approx(lengths)
        assert interaction.aux["first"].tolist() == pytest.approx(metrics, rel=1e-4)
        assert [torch.equal(symbol, message[:, j]) for j, symbol in enumerate(seen)] == [True] * 5

    def test_gs_refuses_what_is_no_distribution(self, core):
        game = core.SenderReceiverRnnGS(
            Fixed(torch.full((4, 5, VOCAB), torch.nan)), Fixed(torch.zeros(4, 5, 3)), classify
        )
        with pytest.raises(AssertionError, match=r"mass|probability"):
            game(torch.zeros(4, 2), torch.tensor([0, 1, 2, 0]))

    @pytest.mark.parametrize("kind", ["gru-1", "gs-gru", "transformer-in-place-all"])
    def test_logging_strategies(self, core, kind):
        game = GAMES[kind](core)
        logger = getattr(game, "mechanics", game)
        logger.train_logging_strategy = core.LoggingStrategy.minimal()
        for training in (True, False):
            _, interaction = game.train(training)(*next(batches(1)))
            assert (interaction.message is None) == (interaction.message_length is None) == training
            assert interaction.aux["length"].shape == (16,)
