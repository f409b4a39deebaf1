"""One contract over both hosts: what this project relies on of egg.core 0.1.0, stated, and asked of each.

Where EGG is not installed, its half is skipped; the expectations are EGG's either way.
"""

import argparse
import copy
import importlib
import inspect
import io
import json
import math
from contextlib import redirect_stdout

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from egg_sparse import SparsemaxWrapper, SymbolGameMarg, host, standin
from egg_sparse.zoo import checkpoints

FLAGS = {
    "random_seed": None,
    "checkpoint_dir": None,
    "preemptable": False,
    "checkpoint_freq": 0,
    "validation_freq": 1,
    "n_epochs": 10,
    "load_from_checkpoint": None,
    "no_cuda": False,
    "batch_size": 32,
    "optimizer": "adam",
    "lr": 1e-2,
    "update_freq": 1,
    "vocab_size": 10,
    "max_len": 1,
    "tensorboard": False,
    "tensorboard_dir": "runs/",
    "distributed_port": 18363,
    "fp16": False,
}

SIGNATURES = {
    "init": "(arg_parser=None, params=None)",
    "get_opts": "()",
    "build_optimizer": "(params)",
    "close": "()",
    "move_to": "(x, device)",
    "find_lengths": "(messages)",
    "get_summary_writer": "()",
    "Interaction": "(sender_input, receiver_input, labels, aux_input, message, receiver_output, message_length, aux)",
    "Interaction.from_iterable": "(interactions)",
    "Interaction.empty": "()",
    "LoggingStrategy": "(store_sender_input=True, store_receiver_input=True, store_labels=True, store_aux_input=True, "
    "store_message=True, store_receiver_output=True, store_message_length=True)",
    "LoggingStrategy.filtered_interaction": "(self, sender_input, receiver_input, labels, aux_input, message, "
    "receiver_output, message_length, aux)",
    "dump_interactions": "(game, dataset, gs, variable_length, device=None, apply_padding=True)",
    "batch.Batch": "(sender_input, labels=None, receiver_input=None, aux_input=None)",
    "Trainer": "(game, optimizer, train_data, optimizer_scheduler=None, validation_data=None, device=None, "
    "callbacks=None, grad_norm=None, aggregate_interaction_logs=True)",
    "Trainer.train": "(self, n_epochs)",
    "Trainer.eval": "(self, data=None)",
    "Trainer.train_epoch": "(self)",
    "Trainer.load": "(self, checkpoint)",
    "Trainer.load_from_checkpoint": "(self, path)",
    "Trainer.load_from_latest": "(self, path)",
    "Callback.on_train_begin": "(self, trainer_instance)",
    "Callback.on_train_end": "(self)",
    "Callback.on_early_stopping": "(self, train_loss, train_logs, epoch, test_loss=None, test_logs=None)",
    "Callback.on_validation_begin": "(self, epoch)",
    "Callback.on_validation_end": "(self, loss, logs, epoch)",
    "Callback.on_epoch_begin": "(self, epoch)",
    "Callback.on_epoch_end": "(self, loss, logs, epoch)",
    "Callback.on_batch_end": "(self, logs, loss, batch_id, is_training=True)",
    "ConsoleLogger": "(print_train_loss=False, as_json=False)",
    "ProgressBarLogger": "(n_epochs, train_data_len=0, test_data_len=0, use_info_table=True)",
    "TensorboardLogger": "(writer=None)",
    "TemperatureUpdater": "(agent, decay=0.9, minimum=0.1, update_frequency=1)",
    "CheckpointSaver": f"(checkpoint_path, checkpoint_freq=1, prefix='', max_checkpoints={2**63 - 1})",
    "InteractionSaver": "(train_epochs=None, test_epochs=None, checkpoint_dir='', aggregated_interaction=True)",
    "EarlyStopperAccuracy": "(threshold, field_name='acc', validation=True)",
    "MessageEntropy": "(print_train=True, is_gumbel=False)",
    "TopographicSimilarity": "(sender_input_distance_fn='hamming', message_distance_fn='edit', "
    "compute_topsim_train_set=False, compute_topsim_test_set=True, is_gumbel=False)",
    "baselines.MeanBaseline": "()",
    "baselines.NoBaseline": "()",
    "baselines.BuiltInBaseline": "()",
    "ReinforceWrapper": "(agent)",
    "ReinforceDeterministicWrapper": "(agent)",
    "SymbolGameReinforce": "(sender, receiver, loss, sender_entropy_coeff=0.0, receiver_entropy_coeff=0.0, "
    "baseline_type=MeanBaseline, train_logging_strategy=None, test_logging_strategy=None)",
    "GumbelSoftmaxWrapper": "(agent, temperature=1.0, trainable_temperature=False, straight_through=False)",
    "SymbolGameGS": "(sender, receiver, loss, train_logging_strategy=None, test_logging_strategy=None)",
    "SymbolReceiverWrapper": "(agent, vocab_size, agent_input_size)",
    "RnnEncoder": "(vocab_size, embed_dim, n_hidden, cell='rnn', num_layers=1)",
    "RnnEncoder.forward": "(self, message, lengths=None)",
    "RnnSenderReinforce": "(agent, vocab_size, embed_dim, hidden_size, max_len, num_layers=1, cell='rnn')",
    "RnnSenderReinforce.forward": "(self, x, aux_input=None)",
    "RnnReceiverReinforce": "(agent, vocab_size, embed_dim, hidden_size, cell='rnn', num_layers=1)",
    "RnnReceiverReinforce.forward": "(self, message, input=None, aux_input=None, lengths=None)",
    "RnnReceiverDeterministic": "(agent, vocab_size, embed_dim, hidden_size, cell='rnn', num_layers=1)",
    "RnnReceiverDeterministic.forward": "(self, message, input=None, aux_input=None, lengths=None)",
    "RnnSenderGS": "(agent, vocab_size, embed_dim, hidden_size, max_len, temperature, cell='rnn', "
    "trainable_temperature=False, straight_through=False)",
    "RnnSenderGS.forward": "(self, x, aux_input=None)",
    "RnnReceiverGS": "(agent, vocab_size, embed_dim, hidden_size, cell='rnn')",
    "RnnReceiverGS.forward": "(self, message, input=None, aux_input=None)",
    "SenderReceiverRnnReinforce": "(sender, receiver, loss, sender_entropy_coeff=0.0, receiver_entropy_coeff=0.0, "
    "length_cost=0.0, baseline_type=MeanBaseline, train_logging_strategy=None, test_logging_strategy=None)",
    "SenderReceiverRnnReinforce.forward": "(self, sender_input, labels, receiver_input=None, aux_input=None)",
    "CommunicationRnnReinforce": "(sender_entropy_coeff, receiver_entropy_coeff, length_cost=0.0, "
    "baseline_type=MeanBaseline, train_logging_strategy=None, test_logging_strategy=None)",
    "CommunicationRnnReinforce.forward": "(self, sender, receiver, loss, sender_input, labels, receiver_input=None, "
    "aux_input=None)",
    "SenderReceiverRnnGS": "(sender, receiver, loss, length_cost=0.0, train_logging_strategy=None, "
    "test_logging_strategy=None)",
    "SenderReceiverRnnGS.forward": "(self, sender_input, labels, receiver_input=None, aux_input=None)",
    "TransformerReceiverDeterministic": "(agent, vocab_size, max_len, embed_dim, num_heads, hidden_size, num_layers, "
    "positional_emb=True, causal=True)",
    "TransformerReceiverDeterministic.forward": "(self, message, input=None, aux_input=None, lengths=None)",
    "TransformerSenderReinforce": "(agent, vocab_size, embed_dim, max_len, num_layers, num_heads, hidden_size, "
    "generate_style='standard', causal=True)",
    "TransformerSenderReinforce.forward": "(self, x, aux_input=None)",
    "transformer.TransformerEncoder": "(vocab_size, max_len, embed_dim, num_heads, hidden_size, num_layers=1, "
    "positional_embedding=True, causal=True)",
    "transformer.TransformerEncoder.forward": "(self, message, lengths=None)",
    "transformer.TransformerDecoder": "(embed_dim, max_len, num_layers, num_heads, hidden_size, dropout=0.0)",
    "transformer.TransformerDecoder.forward": "(self, embedded_input, encoder_out, key_mask=None, attn_mask=None)",
    "UniformAgentSampler": "(senders, receivers, losses, seed=1234)",
    "FullSweepAgentSampler": "(senders, receivers, losses)",
    "PopulationGame": "(game, agents_loss_sampler)",
}


def look_up(core, dotted):
    found = core
    for name in dotted.split("."):
        found = getattr(found, name)
    return found


def signature(function):
    def plain(parameter):
        default = parameter.default
        default = default.__name__ if inspect.isclass(default) and default is not parameter.empty else default
        return (
            parameter.replace(annotation=parameter.empty)
            if default is parameter.default
            else f"{parameter.name}={default}"
        )

    return "(" + ", ".join(str(plain(p)) for p in inspect.signature(function).parameters.values()) + ")"


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(core, name):
    assert signature(look_up(core, name)) == SIGNATURES[name]


@pytest.fixture
def run(core, tmp_path, monkeypatch):
    """A function that initializes a host in an empty folder, and returns the options."""
    monkeypatch.chdir(tmp_path)

    def init(*params, parser=None):
        return core.init(parser, ["--random_seed=5", *params])

    return init


class TestOptions:
    def test_flags_and_defaults(self, core, run):
        parser = argparse.ArgumentParser()
        opts = run(parser=parser)
        flags = vars(parser.parse_args([]))
        assert flags == FLAGS
        assert set(vars(opts)) == {*FLAGS, "cuda", "device", "distributed_context"}
        assert opts.no_cuda is not opts.cuda
        context = opts.distributed_context
        assert (context.is_distributed, context.rank, context.local_rank, context.world_size, context.mode) == (
            False, 0, 0, 1, "none",
        )  # fmt: skip
        assert context.is_leader
        assert core.get_opts() is opts

    def test_a_games_own_options(self, run):
        parser = argparse.ArgumentParser()
        parser.add_argument("--game_size", type=int, default=2)
        opts = run("--game_size=5", "--batch_size=3", parser=parser)
        assert (opts.game_size, opts.batch_size) == (5, 3)

    def test_seeds_everything(self, run):
        import random

        import numpy as np

        run()
        first = (random.random(), np.random.rand(), torch.rand(1).item())
        run()
        assert first == (random.random(), np.random.rand(), torch.rand(1).item())

    def test_draws_a_seed(self, core):
        assert isinstance(core.init(params=[]).random_seed, int)

    @pytest.mark.parametrize(("name", "kind"), [("adam", "Adam"), ("sgd", "SGD"), ("adagrad", "Adagrad")])
    def test_optimizers(self, core, run, name, kind):
        run(f"--optimizer={name}", "--lr=0.25")
        optimizer = core.build_optimizer(nn.Linear(1, 1).parameters())
        assert type(optimizer).__name__ == kind
        assert optimizer.param_groups[0]["lr"] == 0.25

    def test_refuses(self, run):
        with pytest.raises(NotImplementedError, match="Unknown optimizer name rmsprop!"):
            run("--optimizer=rmsprop")
        with pytest.raises(RuntimeError, match=r"update_freq should be an integer, >= 1\."):
            run("--update_freq=0")
        with pytest.raises(SystemExit):
            run("--no_such_flag")


class TestInteraction:
    @staticmethod
    def one(core, value=1.0, **fields):
        given = dict.fromkeys(
            ("sender_input", "receiver_input", "labels", "aux_input", "message", "receiver_output", "message_length")
        )
        given.update(sender_input=torch.full((2, 3), value), aux={"acc": torch.full((2,), value)})
        given.update(fields)
        return core.Interaction(**given)

    def test_from_iterable(self, core):
        whole = core.Interaction.from_iterable([self.one(core, value) for value in (1.0, 2.0)])
        assert whole.size == 4
        assert whole.aux["acc"].tolist() == [1, 1, 2, 2]
        assert whole.message is None
        assert whole.aux_input is None
        with_aux = [self.one(core, aux_input={"a": torch.ones(2)}) for _ in range(3)]
        assert core.Interaction.from_iterable(with_aux).aux_input["a"].tolist() == [1] * 6

    def test_from_iterable_errors(self, core):
        with pytest.raises(AssertionError, match="interaction list must not be empty"):
            core.Interaction.from_iterable([])
        with pytest.raises(AssertionError):
            core.Interaction.from_iterable([self.one(core), self.one(core, aux={})])
        with pytest.raises(AssertionError):
            core.Interaction.from_iterable(
                [self.one(core, aux_input={"a": torch.ones(2)}), self.one(core, aux_input={})]
            )
        with pytest.raises(AssertionError):
            core.Interaction.from_iterable([self.one(core), self.one(core, aux_input={"a": torch.ones(2)})])
        with pytest.raises(RuntimeError, match="Appending empty and non-empty interactions logs"):
            core.Interaction.from_iterable([self.one(core), self.one(core, sender_input=None)])
        with pytest.raises(RuntimeError, match="zero-dimensional tensor"):
            core.Interaction.from_iterable([self.one(core, aux={"acc": torch.ones(())})] * 2)

    def test_add(self, core):
        first = self.one(core, aux_input={"a": torch.ones(2), "b": torch.ones(2)})
        second = self.one(core, 2.0, aux_input={"b": torch.zeros(2), "c": torch.zeros(2)})
        both = first + second
        assert both.sender_input[:, 0].tolist() == [1, 1, 2, 2]
        assert {key: value.tolist() for key, value in both.aux_input.items()} == {
            "a": [1, 1], "b": [1, 1, 0, 0], "c": [0, 0],
        }  # fmt: skip
        assert both.aux["acc"].tolist() == [1, 1, 2, 2]
        with pytest.raises(RuntimeError, match="Appending empty and non-empty"):
            first + self.one(core, sender_input=None, aux_input={})
        with pytest.raises(AttributeError):
            self.one(core) + self.one(core)

    def test_to_size_and_empty(self, core):
        one = self.one(core, aux_input={"a": torch.ones(2), "note": "kept"})
        assert one.to(torch.float64) is one
        assert one.sender_input.dtype == one.aux["acc"].dtype == one.aux_input["a"].dtype == torch.float64
        assert one.aux_input["note"] == "kept"
        empty = core.Interaction.empty()
        assert (empty.aux, empty.aux_input) == ({}, {})
        with pytest.raises(RuntimeError, match=r"Cannot determine interaction log size; it is empty\."):
            _ = empty.size
        assert self.one(core, sender_input=None, message_length=torch.ones(5)).size == 5

    def test_logging_strategies(self, core):
        parts = dict.fromkeys(
            ("sender_input", "receiver_input", "labels", "message", "receiver_output", "message_length"), torch.ones(2)
        )
        parts.update(aux_input={"a": torch.ones(2)}, aux={"acc": torch.ones(2)})
        nothing = core.LoggingStrategy.minimal().filtered_interaction(**parts)
        assert all(getattr(nothing, name) is None for name in parts if name != "aux")
        assert nothing.aux["acc"].tolist() == [1, 1]
        everything = core.LoggingStrategy.maximal().filtered_interaction(**parts)
        assert all(getattr(everything, name) is not None for name in parts)
        assert core.LoggingStrategy() == core.LoggingStrategy.maximal()

    def test_batch(self, core):
        batch = core.batch.Batch(torch.zeros(1), torch.ones(1), None, {"a": [torch.zeros(1)]})
        assert [type(part).__name__ for part in batch] == ["Tensor", "Tensor", "NoneType", "dict"]
        assert batch[1].item() == 1
        assert batch[3] is batch.aux_input
        with pytest.raises(IndexError, match="Trying to access a wrong index in the batch"):
            batch[4]
        assert batch.to("cpu") is batch

    def test_move_to_and_find_lengths(self, core):
        nested = {"a": [torch.zeros(1), (torch.zeros(1), "text")], "b": 3}
        moved = core.move_to(nested, torch.device("meta"))
        assert moved is nested
        assert moved["a"][0].is_meta
        assert isinstance(moved["a"][1], list)
        assert moved["a"][1][1] == "text"
        lengths = core.find_lengths(torch.tensor([[0, 3, 0], [4, 0, 0], [1, 2, 3]]))
        assert lengths.tolist() == [1, 2, 3]


class Agent(nn.Module):
    def __init__(self, n_inputs, n_outputs):
        super().__init__()
        self.linear = nn.Linear(n_inputs, n_outputs)

    def forward(self, x, receiver_input=None, aux_input=None):
        return self.linear(x).log_softmax(1)


def classify(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    loss = F.nll_loss(receiver_output, labels, reduction="none")
    return loss, {"acc": (receiver_output.argmax(1) == labels).float()}


def guess(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    acc = (receiver_output == labels).float()
    return -acc, {"acc": acc}


def build(core, kind):
    sender = Agent(6, 8)
    if kind == "gs" or kind == "gs_straight_through":
        wrapped = core.GumbelSoftmaxWrapper(sender, 1.3, straight_through=kind != "gs")
        return core.SymbolGameGS(wrapped, core.SymbolReceiverWrapper(Agent(5, 3), 8, 5), classify)
    if kind == "gs_trainable":
        wrapped = core.GumbelSoftmaxWrapper(sender, 1.3, trainable_temperature=True)
        return core.SymbolGameGS(wrapped, core.SymbolReceiverWrapper(Agent(5, 3), 8, 5), classify)
    if kind == "marg":
        return SymbolGameMarg(SparsemaxWrapper(sender), core.SymbolReceiverWrapper(Agent(5, 3), 8, 5), classify, 0.1)
    receiver = core.SymbolReceiverWrapper(Agent(5, 3), 8, 5)
    wrapped = core.ReinforceWrapper(sender)
    if kind == "reinforce":
        return core.SymbolGameReinforce(
            wrapped, core.ReinforceDeterministicWrapper(receiver), classify, sender_entropy_coeff=0.1
        )
    baseline = getattr(core.baselines, kind)
    return core.SymbolGameReinforce(wrapped, core.ReinforceWrapper(receiver), guess, 0.1, 0.05, baseline_type=baseline)


GAMES = [
    "gs",
    "gs_straight_through",
    "gs_trainable",
    "marg",
    "reinforce",
    "MeanBaseline",
    "NoBaseline",
    "BuiltInBaseline",
]


class Batches:
    def __init__(self, n_batches=3, size=16):
        generator = torch.Generator().manual_seed(3)
        self.batches = []
        for _ in range(n_batches):
            inputs = torch.randn(size, 6, generator=generator)
            self.batches.append((inputs, inputs[:, :3].argmax(1)))

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def train(core, kind, *, n_epochs=3, callbacks=(), grad_norm=None, schedule=False, validate=True):
    torch.manual_seed(11)
    game = build(core, kind)
    optimizer = core.build_optimizer(game.parameters())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) if schedule else None
    trainer = core.Trainer(
        game,
        optimizer,
        train_data=Batches(),
        optimizer_scheduler=scheduler,
        validation_data=Batches(2) if validate else None,
        callbacks=list(callbacks),
        grad_norm=grad_norm,
    )
    trainer.train(n_epochs)
    return trainer


class Recorder:
    """Makes a callback, of a host's class, that notes what is called, with the losses."""

    def __new__(cls, core):
        class Noting(core.Callback):
            def __init__(self):
                self.events = []

            def on_train_begin(self, trainer_instance):
                super().on_train_begin(trainer_instance)
                self.events.append(("train_begin", trainer_instance is self.trainer))

            def on_train_end(self):
                self.events.append(("train_end",))

            def on_epoch_begin(self, epoch):
                self.events.append(("epoch_begin", epoch))

            def on_epoch_end(self, loss, logs, epoch):
                self.events.append(("epoch_end", epoch, loss, logs.size, sorted(logs.aux)))

            def on_validation_begin(self, epoch):
                self.events.append(("validation_begin", epoch))

            def on_validation_end(self, loss, logs, epoch):
                self.events.append(("validation_end", epoch, loss, logs.size, sorted(logs.aux)))

            def on_batch_end(self, logs, loss, batch_id, is_training=True):
                self.events.append(("batch_end", batch_id, is_training, logs.size))

            def on_early_stopping(self, train_loss, train_logs, epoch, test_loss=None, test_logs=None):
                self.events.append(("early_stopping", epoch, test_logs is not None))

        return Noting()


class TestTraining:
    def test_order_of_callbacks(self, core, run):
        run("--validation_freq=2")
        recorder = Recorder(core)
        train(core, "marg", n_epochs=2, callbacks=[recorder])
        names = [event[0] for event in recorder.events]
        epoch = ["epoch_begin", *["batch_end"] * 3, "epoch_end"]
        validation = ["validation_begin", *["batch_end"] * 2, "validation_end"]
        assert names == ["train_begin", *epoch, *epoch, *validation, "train_end"]
        batches = [event for event in recorder.events if event[0] == "batch_end"]
        assert [event[1:] for event in batches] == [
            *((i, True, 16) for i in range(3)), *((i, True, 16) for i in range(3)), *((i, False, 16) for i in range(2)),
        ]  # fmt: skip
        ends = [event for event in recorder.events if event[0] in ("epoch_end", "validation_end")]
        assert [(event[1], event[3]) for event in ends] == [(1, 48), (2, 48), (2, 32)]
        assert ends[0][4] == ["acc", "exact", "receiver_calls", "sender_entropy", "support", "task_loss"]
        assert ends[-1][4] == ["acc", "exact", "sender_entropy", "support", "task_loss"]

    @pytest.mark.parametrize("validation", [True, False])
    def test_early_stopping(self, core, run, validation):
        run()
        recorder = Recorder(core)
        stopper = core.EarlyStopperAccuracy(0.0, validation=validation)
        trainer = train(core, "marg", n_epochs=5, callbacks=[stopper, recorder])
        assert trainer.should_stop
        assert recorder.events[-2:] == [("early_stopping", 1, True), ("train_end",)]

    @pytest.mark.parametrize("kind", GAMES)
    @pytest.mark.parametrize("options", [{}, {"grad_norm": 0.1, "schedule": True}])
    def test_equal_on_both_hosts(self, egg, kind, options, tmp_path, monkeypatch):
        """Same losses, metrics and weights from one seed, with and without update_freq, clipping and a schedule."""
        monkeypatch.chdir(tmp_path)
        results = []
        for core in (egg, standin):
            core.init(params=["--random_seed=5", "--lr=0.05", *(["--update_freq=2"] if options else [])])
            recorder = Recorder(core)
            trainer = train(core, kind, callbacks=[recorder], **options)
            results.append((recorder.events, trainer.game.state_dict()))
        (events, weights), (standin_events, standin_weights) = results
        for event, other in zip(events, standin_events, strict=True):
            assert event[:2] == other[:2]
            assert event[3:] == other[3:]
            if event[0] in ("epoch_end", "validation_end"):
                assert event[2] == pytest.approx(other[2], rel=1e-5, abs=1e-6)
        assert weights.keys() == standin_weights.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(weight, standin_weights[name], atol=1e-6, rtol=1e-5)

    def test_update_freq_averages_gradients(self, core, run):
        """One step per two batches of halved losses, the rest of an epoch dropped, as in EGG."""
        run("--update_freq=2", "--optimizer=sgd", "--lr=1")
        torch.manual_seed(11)
        game = build(core, "marg")
        reference = copy.deepcopy(game)
        trainer = train(core, "marg", n_epochs=1, validate=False)
        loss = sum(reference(*batch)[0] for batch in Batches().batches[:2]) / 2
        gradients = torch.autograd.grad(loss, list(reference.parameters()))
        for found, start, gradient in zip(trainer.game.parameters(), game.parameters(), gradients, strict=True):
            torch.testing.assert_close(found, start - gradient)

    def test_fp16_flag_runs_everywhere(self, core, run):
        run("--fp16")
        trainer = train(core, "marg", n_epochs=1)
        assert all(torch.isfinite(parameter).all() for parameter in trainer.game.parameters())

    def test_eval_of_other_data(self, core, run):
        run()
        trainer = train(core, "marg", n_epochs=1)
        loss, interaction = trainer.eval(Batches(1))
        assert math.isfinite(loss)
        assert interaction.size == 16

    def test_dump_interactions(self, core, run):
        class WithAux(Batches):
            def __iter__(self):
                return ((inputs, labels, None, {}) for inputs, labels in self.batches)

        run()
        for kind in ("marg", "gs"):
            torch.manual_seed(11)
            game = build(core, kind)
            dump = core.dump_interactions(game, WithAux(), gs=kind == "gs", variable_length=False)
            assert game.training
            assert dump.message.shape == (48,)
            assert dump.message.dtype == torch.long


class TestPrinting:
    @staticmethod
    def printed(function):
        out = io.StringIO()
        with redirect_stdout(out):
            function()
        return out.getvalue().splitlines()

    @pytest.mark.parametrize(
        ("kind", "keys"),
        [
            ("gs", ["acc"]),
            ("marg", ["acc", "exact", "sender_entropy", "support", "task_loss"]),
            ("reinforce", ["acc", "baseline", "receiver_entropy", "sender_entropy"]),
        ],
    )
    def test_json_lines(self, core, run, kind, keys):
        run()
        logger = core.ConsoleLogger(print_train_loss=True, as_json=True)
        lines = [json.loads(line) for line in self.printed(lambda: train(core, kind, n_epochs=2, callbacks=[logger]))]
        assert [(line["mode"], line["epoch"]) for line in lines] == [
            ("train", 1),
            ("test", 1),
            ("train", 2),
            ("test", 2),
        ]
        for line in lines:
            of_training = ["receiver_calls"] if kind == "marg" and line["mode"] == "train" else []
            assert sorted(line) == sorted([*keys, *of_training, "loss", "mode", "epoch"])

    def test_plain_lines(self, core):
        interaction = core.Interaction.empty()
        interaction.aux = {"acc": torch.tensor([0.5, 1.0])}
        lines = self.printed(lambda: core.ConsoleLogger().on_validation_end(0.25, interaction, 3))
        assert lines == ["test: epoch 3, loss 0.25, acc=0.75, loss=0.25"]
        assert self.printed(lambda: core.ConsoleLogger().on_epoch_end(0.25, interaction, 3)) == []

    @pytest.mark.parametrize("is_gumbel", [False, True])
    def test_message_entropy(self, core, is_gumbel):
        symbols = torch.tensor([0, 0, 1, 2])
        interaction = core.Interaction.empty()
        interaction.message = F.one_hot(symbols, 3).float() if is_gumbel else symbols
        callback = core.MessageEntropy(is_gumbel=is_gumbel)
        (line,) = self.printed(lambda: callback.on_epoch_end(0.0, interaction, 2))
        assert json.loads(line) == {"entropy": pytest.approx(1.5), "mode": "train", "epoch": 2}
        (line,) = self.printed(lambda: callback.on_validation_end(0.0, interaction, 2))
        assert json.loads(line)["mode"] == "test"

    def test_topographic_similarity(self, core):
        interaction = core.Interaction.empty()
        interaction.sender_input = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
        interaction.message = torch.tensor([[3, 4], [3, 5], [6, 4], [6, 5]])
        callback = core.TopographicSimilarity()
        (line,) = self.printed(lambda: callback.on_validation_end(0.0, interaction, 2))
        assert json.loads(line) == {"topsim": pytest.approx(1.0), "mode": "test", "epoch": 2}
        interaction.message = torch.tensor([[3, 4], [3, 4], [6, 5], [3, 5]])
        (line,) = self.printed(lambda: callback.on_validation_end(0.0, interaction, 2))
        assert json.loads(line)["topsim"] == pytest.approx(4.5 / 180**0.5)  # by hand
        with pytest.raises(AssertionError):
            core.TopographicSimilarity(compute_topsim_test_set=False)

    def test_progress_bar(self, core, run):
        run()
        lines = self.printed(lambda: train(core, "marg", n_epochs=2, callbacks=[core.ProgressBarLogger(2, 3, 2)]))
        assert any("Epoch" in line or "train" in line for line in lines)

    def test_tensorboard(self, core, run, tmp_path):
        class Writer:
            def __init__(self):
                self.tags, self.closed = [], False

            def add_scalar(self, tag, scalar_value, global_step):
                self.tags.append((tag, global_step))

            def close(self):
                self.closed = True

        run()
        writer = Writer()
        train(core, "gs", n_epochs=1, callbacks=[core.TensorboardLogger(writer)])
        assert writer.tags == [("train/loss", 1), ("train/acc", 1), ("test/loss", 1), ("test/acc", 1)]
        assert writer.closed


class TestCheckpoints:
    def test_names_and_contents(self, core, run, tmp_path):
        run("--checkpoint_dir=saved", "--checkpoint_freq=2")
        trainer = train(core, "marg", n_epochs=3)
        assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["2.tar", "final.tar"]
        final = checkpoints.read(tmp_path / "saved/final.tar")
        assert final.epoch == 3
        assert final.optimizer_scheduler_state_dict is None
        for name, value in trainer.game.state_dict().items():
            torch.testing.assert_close(final.model_state_dict[name], value)

    def test_load_from_checkpoint_goes_on(self, core, run, tmp_path):
        run("--checkpoint_dir=whole")
        whole = train(core, "marg", n_epochs=4, schedule=True)
        run("--checkpoint_dir=half")
        train(core, "marg", n_epochs=2, schedule=True)
        run("--load_from_checkpoint=half/final.tar")
        recorder = Recorder(core)
        resumed = train(core, "marg", n_epochs=4, schedule=True, callbacks=[recorder])
        assert [event[1] for event in recorder.events if event[0] == "epoch_begin"] == [3, 4]
        for name, value in whole.game.state_dict().items():
            torch.testing.assert_close(resumed.game.state_dict()[name], value)

    def test_preemptable(self, core, run, tmp_path, monkeypatch):
        monkeypatch.setenv("SLURM_JOB_ID", "17")
        (tmp_path / "jobs").mkdir()
        run("--checkpoint_dir=jobs", "--preemptable", "--checkpoint_freq=1")
        train(core, "marg", n_epochs=1)
        assert {path.name for path in (tmp_path / "jobs/17_0").iterdir()} == {"1.tar", "final.tar"}
        recorder = Recorder(core)
        train(core, "marg", n_epochs=2, callbacks=[recorder])
        assert [event[1] for event in recorder.events if event[0] == "epoch_begin"] == [2]

    def test_prefix_and_limit(self, core, run, tmp_path):
        run()
        saver = core.CheckpointSaver(tmp_path / "saved", prefix="game", max_checkpoints=2)
        train(core, "marg", n_epochs=11, callbacks=[saver])
        names = {path.name for path in (tmp_path / "saved").iterdir()}
        assert names == {"game_10.tar", "game_11.tar", "game_final.tar"}

    def test_interactions(self, core, run, tmp_path):
        run()
        train(core, "marg", n_epochs=2, callbacks=[core.InteractionSaver([1], [2], "saved")])
        files = sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "saved").rglob("*") if path.is_file())
        assert files == [
            "saved/interactions/train/epoch_1/interaction_gpu0",
            "saved/interactions/validation/epoch_2/interaction_gpu0",
        ]
        assert host.core is not None  # allows the classes of interactions to be loaded
        loaded = torch.load(tmp_path / files[0], weights_only=True) if core is host.core else None
        assert loaded is None or loaded.size == 48

    def test_temperature_updater(self, core):
        agent = core.GumbelSoftmaxWrapper(nn.Identity(), temperature=1.0)
        updater = core.TemperatureUpdater(agent, decay=0.5, minimum=0.3, update_frequency=2)
        temperatures = []
        for epoch in range(1, 7):
            updater.on_epoch_end(0.0, None, epoch)
            temperatures.append(agent.temperature)
        assert temperatures == [1.0, 0.5, 0.5, 0.3, 0.3, 0.3]
        with pytest.raises(AssertionError):
            core.TemperatureUpdater(nn.Identity())
        with pytest.raises(AssertionError):
            core.TemperatureUpdater(core.GumbelSoftmaxWrapper(nn.Identity(), trainable_temperature=True))


class TestAgents:
    def test_reinforce_wrapper(self, core):
        agent = core.ReinforceWrapper(Agent(6, 8))
        x = torch.randn(2000, 6)[:1].expand(2000, 6)
        sample, log_prob, entropy = agent(x)
        log_probs = agent.agent(x)
        assert len(sample.unique()) > 1
        torch.testing.assert_close(log_prob, log_probs.gather(1, sample[:, None])[:, 0])
        torch.testing.assert_close(entropy, -(log_probs.exp() * log_probs).sum(1))
        agent.eval()
        assert torch.equal(agent(x)[0], log_probs.argmax(1))

    def test_deterministic_wrapper(self, core):
        output, log_prob, entropy = core.ReinforceDeterministicWrapper(Agent(6, 8))(torch.randn(4, 6))
        assert output.shape == (4, 8)
        assert (log_prob.tolist(), entropy.tolist()) == ([0.0], [0.0])

    def test_reinforce_refuses_averaged_losses(self, core, run):
        run()
        game = build(core, "reinforce")
        game.loss = lambda *args: (classify(*args)[0].mean(), {})
        with pytest.raises(RuntimeError):
            game(*Batches().batches[0])

    def test_gumbel_softmax_wrapper(self, core):
        agent, x = core.GumbelSoftmaxWrapper(Agent(6, 8)), torch.randn(5, 6)
        relaxed = agent(x)
        torch.testing.assert_close(relaxed.sum(1), torch.ones(5))
        assert (relaxed.amax(1) < 1).all()
        agent.straight_through = True
        hard = agent(x)
        torch.testing.assert_close(hard.amax(1), torch.ones(5))
        hard[:, 0].sum().backward()
        assert agent.agent.linear.weight.grad.abs().sum() > 0
        agent.eval()
        assert torch.equal(agent(x), F.one_hot(agent.agent(x).argmax(1), 8).float())

    def test_relaxed_embedding(self, core):
        embedding = core.RelaxedEmbedding(15, 10)
        ids = torch.tensor([[1], [2], [3]])
        torch.testing.assert_close(embedding(ids), embedding(F.one_hot(ids, 15).float()))

    def test_baselines(self, core):
        losses = [torch.tensor([1.0, 2.0, 6.0]), torch.tensor([4.0, 4.0, 7.0])]
        mean = core.baselines.MeanBaseline()
        assert mean.predict(losses[0]).item() == 0
        for loss in losses:
            mean.update(loss)
        assert mean.predict(losses[0]).item() == pytest.approx(4.0)
        assert core.baselines.NoBaseline().predict(losses[0]).tolist() == [0.0]
        built_in = core.baselines.BuiltInBaseline()
        assert built_in.predict(losses[0]).tolist() == pytest.approx([4.0, 3.5, 1.5])
        assert built_in.predict(torch.tensor([3.0])).item() == 3.0


def test_submodules_have_eggs_names():
    names = "baselines batch callbacks distributed gs_wrappers interaction population reinforce_wrappers rnn trainers"
    for name in (*names.split(), "transformer", "util"):
        importlib.import_module(f"egg_sparse.standin.{name}")
