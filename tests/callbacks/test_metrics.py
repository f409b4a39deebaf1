"""What reaches the loggers, on both hosts: the sender's state, and the statistics of messages."""

import collections
import json
import math
import sys

import pytest
import torch
import torch.nn.functional as F

from egg_sparse import SparsemaxWrapper, SymbolGameMarg, host
from egg_sparse.callbacks import MessageUsage, MetricsWriter, SenderState, TensorboardMetrics, WandbMetrics
from logged import by_tag, events, written_to_wandb
from symbol_games import Read, Score, nll

EPOCHS = 3


def train(core, monkeypatch, callbacks, options=(), game=None):
    """A game of 6 objects and 5 symbols, for which a callback is made by a function of the sender."""
    monkeypatch.setattr(host, "_resolved", {"core": core})
    core.util.summary_writer = None
    core.init(params=["--random_seed=1", "--lr=0.1", f"--n_epochs={EPOCHS}", "--no_cuda", *options])
    game = game or SymbolGameMarg(SparsemaxWrapper(Score(6, 5)), Read(5, 6), nll)
    optimizer = core.build_optimizer(game.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    batches = [(torch.eye(6), torch.arange(6))] * 4
    core.Trainer(
        game, optimizer, batches, schedule, validation_data=batches[:1], callbacks=callbacks(game.sender)
    ).train(EPOCHS)
    return game


@pytest.fixture
def offline(monkeypatch):
    """A wandb that writes to files alone."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def test_egg_loggers_get_what_stands_before_them(core, monkeypatch, capsys, tmp_path):
    """The one line of a user's own game; EGG's TensorboardLogger is added by its Trainer."""
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    train(
        core,
        monkeypatch,
        lambda sender: [SenderState(sender), MessageUsage(), writer, core.ConsoleLogger(True, as_json=True)],
        ["--tensorboard", f"--tensorboard_dir={tmp_path / 'events'}"],
    )
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert records == writer.history
    assert len(records) == 2 * EPOCHS
    names = {"loss", "acc", "support", "temperature", "support_pressure", "learning_rate", "messages_used"}
    assert all(names | {"message_entropy", "largest_message_share"} <= record.keys() for record in records)
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    as_egg = [{**record, "mode": record["mode"].replace("validation", "test")} for record in records]
    assert [{**record, "loss": 0} for record in printed] == [
        {**{name: pytest.approx(value) for name, value in record.items()}, "loss": 0} for record in as_egg
    ]
    assert events(tmp_path / "events") == by_tag(as_egg)
    assert [r["learning_rate"] for r in records if r["mode"] == "train"] == pytest.approx([0.1, 0.05, 0.025])


def test_sender_state_is_that_of_the_sender(core, monkeypatch):
    seen, states = [], []

    class Look(host.core.Callback):
        def on_validation_end(self, loss, logs, epoch):
            seen.append({name: float(logs.aux[name]) for name in ("temperature", "support_pressure")})
            control = self.sender.control
            states.append({"temperature": float(control.temperature), "support_pressure": float(control.pressure)})

    look = Look()

    def callbacks(sender):
        look.sender = sender
        return [SenderState(sender), look]

    train(core, monkeypatch, callbacks)
    assert seen == states
    assert len({state["temperature"] for state in seen}) == EPOCHS, "support control changes it"


def test_senders_of_egg(core, monkeypatch):
    """A trainable temperature, and a sender without one; relaxed messages of the training have no statistics."""
    writer = MetricsWriter()
    sender = core.GumbelSoftmaxWrapper(Score(6, 5), temperature=1.5, trainable_temperature=True)
    game = core.SymbolGameGS(sender, core.SymbolReceiverWrapper(Read(6, 6), 5, 6), nll)
    game.receiver.agent.forward = lambda message, receiver_input=None, aux_input=None: message.log_softmax(1)
    train(core, monkeypatch, lambda sender: [SenderState(sender, "gs_"), MessageUsage(), writer], game=game)
    assert [r["gs_temperature"] for r in writer.history] == pytest.approx([1.5] * 2 * EPOCHS, abs=1.4)
    assert "gs_support_pressure" not in writer.history[0]
    assert ["messages_used" in record for record in writer.history] == [False, True] * EPOCHS

    writer = MetricsWriter()
    game = core.SymbolGameReinforce(
        core.ReinforceWrapper(Score(6, 5)), core.ReinforceDeterministicWrapper(Read(5, 6)), nll
    )
    train(core, monkeypatch, lambda sender: [SenderState(sender), MessageUsage(), writer], game=game)
    assert "temperature" not in writer.history[0]
    assert all("learning_rate" in record and "messages_used" in record for record in writer.history)


@pytest.mark.parametrize("as_rows", [False, True])
def test_message_usage_counts(as_rows):
    ids = torch.tensor([3, 1, 1, 3, 1, 0, 1, 3])
    logs = host.core.Interaction.empty()
    logs.message = F.one_hot(ids, 4).float() if as_rows else ids
    MessageUsage().on_epoch_end(0.0, logs, 1)
    counts = collections.Counter(ids.tolist())
    entropy = -sum(n / 8 * math.log2(n / 8) for n in counts.values())
    assert {name: float(value) for name, value in logs.aux.items()} == pytest.approx(
        {
            "messages_used": 3,
            "message_entropy": entropy,
            "message_perplexity": 2**entropy,
            "largest_message_share": 0.5,
        }
    )


def test_message_usage_of_sequences_ends_at_the_end_symbol():
    logs = host.core.Interaction.empty()
    logs.message = torch.tensor([[2, 0, 5], [2, 0, 1], [0, 2, 2]])
    MessageUsage().on_validation_end(0.0, logs, 1)
    assert float(logs.aux["messages_used"]) == 2


def test_message_usage_needs_messages():
    with pytest.raises(ValueError, match=r"no message.*store_message"):
        MessageUsage().on_epoch_end(0.0, host.core.Interaction.empty(), 1)


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_files_have_the_names_and_numbers_of_the_metrics(monkeypatch, tmp_path):
    writer = MetricsWriter()
    board = TensorboardMetrics(tmp_path / "events")
    wandb = WandbMetrics(project="tests", dir=str(tmp_path), config={"lr": 0.1})
    train(host.core, monkeypatch, lambda sender: [SenderState(sender), MessageUsage(), writer, board, wandb])
    expected = by_tag(writer.history)
    assert {"train/temperature", "validation/support", "validation/acc", "train/loss"} <= expected.keys()
    assert events(tmp_path / "events") == expected
    tags, config = written_to_wandb(tmp_path)
    assert tags == expected
    assert config["lr"] == 0.1


def test_a_resumed_run_reports_its_epochs_once(monkeypatch, tmp_path):
    """An epoch that was reported before the interruption and not saved is replaced."""

    class Trainer:
        distributed_context = type("Context", (), {"is_leader": True})
        start_epoch = 0

    logs = host.core.Interaction.empty()
    logs.aux = {"acc": torch.tensor([1.0])}
    for start, value in ((0, 5.0), (1, 7.0)):
        Trainer.start_epoch = start
        board = TensorboardMetrics(tmp_path)
        board.on_train_begin(Trainer)
        for epoch in range(start + 1, 4):
            board.on_epoch_end(value, logs, epoch)
        board.on_train_end()
    assert events(tmp_path)["train/loss"] == {1: 5.0, 2: 7.0, 3: 7.0}


@pytest.mark.parametrize("logger", [TensorboardMetrics, lambda folder: WandbMetrics(dir=str(folder), mode="offline")])
def test_other_processes_write_nothing(logger, tmp_path):
    class Trainer:
        distributed_context = type("Context", (), {"is_leader": False})
        start_epoch = 0

    callback = logger(tmp_path)
    callback.on_train_begin(Trainer)
    callback.on_epoch_end(0.5, host.core.Interaction.empty(), 1)
    callback.on_train_end()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "logger"), [("wandb", WandbMetrics), ("torch.utils.tensorboard", lambda: TensorboardMetrics("events"))]
)
def test_a_package_that_is_missing_is_named(module, logger, monkeypatch):
    class Trainer:
        distributed_context = type("Context", (), {"is_leader": True})
        start_epoch = 0

    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"pip install {module.split('.')[-1]}"):
        logger().on_train_begin(Trainer)
