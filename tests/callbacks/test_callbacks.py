import collections
import itertools
import json
import math
import sys

import pytest
import torch

from egg_sparse import CommunicationMarg, host
from egg_sparse.callbacks import (
    EpochSetter,
    MessageEntropy,
    MetricsWriter,
    Schedule,
    StepTemperature,
    TopographicSimilarity,
    TrainingProgress,
)


class Trainer:
    validation_data = None
    validation_freq = 1
    start_epoch = 0

    def __init__(self, leader=True):
        self.distributed_context = type("Context", (), {"is_leader": leader})


def interaction(**aux):
    logs = host.core.Interaction.empty()
    logs.aux = {name: torch.tensor(values) for name, values in aux.items()}
    return logs


@pytest.mark.parametrize("leader", [True, False])
def test_the_leading_process_alone_writes_mean_metrics(tmp_path, leader):
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.on_train_begin(Trainer(leader))
    writer.on_epoch_end(0.5, interaction(acc=[0.0, 1.0], support=[2, 4]), 1)
    writer.on_validation_end(0.25, interaction(acc=[1.0]), 1)
    expected = [
        {"loss": 0.5, "acc": 0.5, "support": 3.0, "mode": "train", "epoch": 1},
        {"loss": 0.25, "acc": 1.0, "mode": "validation", "epoch": 1},
    ]
    assert writer.history == expected
    if leader:
        assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()] == expected
    else:
        assert not (tmp_path / "metrics.jsonl").exists()


def test_the_loader_is_told_the_epoch():
    class Loader:
        def set_epoch(self, epoch):
            self.epoch = epoch

    loader = Loader()
    EpochSetter(loader).on_epoch_begin(7)
    assert loader.epoch == 7


def test_step_temperature_follows_the_schedule_and_survives_a_resume():
    def temperatures(first_epoch, last_epoch):
        agent = host.core.GumbelSoftmaxWrapper(torch.nn.Identity(), temperature=1.0)
        callback = StepTemperature(agent, batches_per_epoch=10, decay=0.01, minimum=0.6, update_frequency=15)
        seen = {}
        for epoch in range(first_epoch, last_epoch + 1):
            callback.on_epoch_begin(epoch)
            for batch in range(10):
                seen[(epoch - 1) * 10 + batch] = agent.temperature
                callback.on_batch_end(None, 0.0, batch)
                callback.on_batch_end(None, 0.0, batch, is_training=False)
        return seen

    whole = temperatures(1, 8)
    for step, temperature in whole.items():
        assert temperature == pytest.approx(max(0.6, math.exp(-0.01 * (step // 15 * 15))))
    assert temperatures(4, 8) == {step: value for step, value in whole.items() if step >= 30}


def test_step_temperature_below_the_minimum_is_kept():
    agent = host.core.GumbelSoftmaxWrapper(torch.nn.Identity(), temperature=0.3)
    StepTemperature(agent, 10, decay=1.0).on_epoch_begin(5)
    assert agent.temperature == 0.3
    with pytest.raises(ValueError, match=r"update_frequency .* 0"):
        StepTemperature(agent, 10, decay=1.0, update_frequency=0)


def test_schedule_sets_an_attribute():
    game = CommunicationMarg(sender_entropy_coeff=5.0)
    updater = Schedule(game, "sender_entropy_coeff", lambda epoch: 1 / epoch)
    for epoch in (1, 4):
        updater.on_epoch_begin(epoch)
        assert game.sender_entropy_coeff == 1 / epoch
    with pytest.raises(TypeError, match=r"sender_entropy_coeff.* Identity"):
        Schedule(torch.nn.Identity(), "sender_entropy_coeff", lambda epoch: 1.0)


def test_training_progress_counts_batches_and_shows_metrics():
    progress = TrainingProgress(n_epochs=2, batches_per_epoch=3)
    progress.on_train_begin(Trainer())
    progress.on_epoch_begin(1)
    for batch in range(3):
        progress.on_batch_end(None, 0.0, batch)
        progress.on_batch_end(None, 0.0, batch, is_training=False)
    progress.on_epoch_end(0.5, interaction(acc=[0.0, 1.0], unknown=[1.0]), 1)
    task = progress.progress.tasks[0]
    assert (task.completed, task.total, task.fields["epoch"]) == (3, 6, "1")
    assert task.fields["shown"] == "[dim]train[/dim]  acc [bold]0.500[/bold]  loss [bold]0.500[/bold]"
    progress.on_train_end()


def sent(message, sender_input=None):
    logs = host.core.Interaction.empty()
    logs.message, logs.sender_input = message, sender_input
    return logs


def printed(capsys):
    """The last line that was printed, as strict JSON."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(capsys.readouterr().out.splitlines()[-1], parse_constant=refuse)


def messages(message_format):
    """Thirty messages, some of them equal."""
    symbols = torch.randint(5, (30,))
    if message_format == "one_hot":
        return torch.nn.functional.one_hot(symbols, 5).float()
    return symbols if message_format == "index" else torch.randint(2, (30, 4)).double()


def ranks(values):
    """Ranks from 1, equal values sharing the mean of theirs."""
    values = [round(float(value), 9) for value in values]
    return torch.tensor([sum(v < value for v in values) + (values.count(value) + 1) / 2 for value in values]).double()


FORMATS = ["index", "one_hot", "bits"]
DISTANCES = {
    "cosine": lambda x, y: 1 - torch.nn.functional.cosine_similarity(x, y, dim=0),
    "euclidean": lambda x, y: (x - y).square().sum().sqrt(),
    "hamming": lambda x, y: (x != y).double().mean(),
}


def test_symbols_after_the_end_do_not_count(capsys):
    sequences = torch.tensor([[2, 0, 1], [2, 0, 2], [1, 2, 0], [0, 2, 1], [0, 1, 1]])
    inputs = torch.tensor([[0.0], [0.1], [2.0], [7.0], [7.5]])
    ended = torch.tensor([[2, 0, 0], [2, 0, 0], [1, 2, 0], [0, 0, 0], [0, 0, 0]])
    pairs = list(itertools.combinations(range(5), 2))
    distances = [[float((inputs[i] - inputs[j]).abs()), float((ended[i] != ended[j]).sum())] for i, j in pairs]
    topsim = torch.corrcoef(torch.stack([ranks(values) for values in zip(*distances, strict=True)]))[0, 1].item()
    entropy = -2 * 0.4 * math.log2(0.4) - 0.2 * math.log2(0.2)
    for message in (sequences, torch.nn.functional.one_hot(sequences).float()):
        MessageEntropy().on_validation_end(0.0, sent(message), 1)
        assert printed(capsys)["entropy"] == pytest.approx(entropy)
        TopographicSimilarity("euclidean").on_validation_end(0.0, sent(message, inputs), 1)
        assert printed(capsys)["topsim"] == pytest.approx(topsim)


class TestMessageEntropy:
    @pytest.mark.parametrize("message_format", FORMATS)
    def test_counts_distinct_messages(self, message_format, capsys):
        message = messages(message_format)
        counts = collections.Counter(str(each.tolist()) for each in message)
        entropy = -sum(n / 30 * math.log2(n / 30) for n in counts.values())
        MessageEntropy().on_validation_end(0.0, sent(message), 3)
        assert printed(capsys) == {"entropy": pytest.approx(entropy), "mode": "test", "epoch": 3}

    @pytest.mark.parametrize("message_format", FORMATS)
    def test_agrees_with_eggs(self, egg, message_format, capsys):
        logs = sent(messages(message_format))
        for callback in (egg.MessageEntropy(), MessageEntropy()):
            callback.on_epoch_end(0.0, logs, 2)
        eggs, ours = map(json.loads, capsys.readouterr().out.splitlines())
        assert ours == {**eggs, "entropy": pytest.approx(eggs["entropy"], rel=1e-6)}

    def test_one_message_has_none(self, capsys):
        MessageEntropy().on_validation_end(0.0, sent(torch.ones(5, 3)), 1)
        assert capsys.readouterr().out == '{"entropy": 0.0, "mode": "test", "epoch": 1}\n'

    def test_training_only_if_asked(self, capsys):
        MessageEntropy(print_train=False).on_epoch_end(0.0, sent(torch.ones(5)), 1)
        assert not capsys.readouterr().out

    @pytest.mark.parametrize(
        ("message", "named"), [(None, "store_message"), (torch.full((3, 2), 0.5), r"message .*relax.*print_train")]
    )
    def test_refuses(self, message, named):
        for callback in (MessageEntropy(), TopographicSimilarity(print_train=True)):
            with pytest.raises(ValueError, match=named):
                callback.on_epoch_end(0.0, sent(message, torch.eye(3)), 1)


class TestTopographicSimilarity:
    @pytest.mark.parametrize("distance", DISTANCES)
    @pytest.mark.parametrize("message_format", FORMATS)
    def test_is_spearmans_correlation_over_pairs(self, message_format, distance, capsys):
        message = messages(message_format)
        # rounding would decide the order of equal cosine distances
        inputs = torch.randn(30, 2, 2) if distance == "cosine" else torch.randint(4, (30, 2, 2)).float()
        rows = message.view(30, -1)
        if message_format == "one_hot":  # where Hamming distances of rows are those of the symbols, doubled
            rows = message.argmax(dim=1, keepdim=True)
        pairs = list(itertools.combinations(range(30), 2))
        of_inputs = ranks(
            [DISTANCES[distance](inputs[i].double().flatten(), inputs[j].double().flatten()) for i, j in pairs]
        )
        of_messages = ranks([(rows[i] != rows[j]).double().mean() for i, j in pairs])
        expected = torch.corrcoef(torch.stack((of_inputs, of_messages)))[0, 1].item()
        TopographicSimilarity(distance).on_validation_end(0.0, sent(message, inputs), 3)
        assert printed(capsys) == {"topsim": pytest.approx(expected, abs=1e-6), "mode": "test", "epoch": 3}

    @pytest.mark.parametrize("distance", DISTANCES)
    @pytest.mark.parametrize("message_format", FORMATS)
    def test_agrees_with_eggs(self, egg, message_format, distance, capsys):
        message = messages(message_format)
        inputs = torch.randn(30, 4) if distance != "hamming" else torch.randint(3, (30, 4))
        # EGG's takes no symbol ids, but sequences of one symbol
        eggs = egg.TopographicSimilarity(distance, "hamming")
        eggs.on_validation_end(0.0, sent(message if message.dim() == 2 else message[:, None], inputs), 2)
        expected = printed(capsys)
        TopographicSimilarity(distance).on_validation_end(0.0, sent(message, inputs), 2)
        assert printed(capsys) == {**expected, "topsim": pytest.approx(expected["topsim"], abs=1e-9)}

    def test_takes_a_function(self, capsys):
        inputs, message = torch.randn(30, 4), messages("index")
        for distance in ("euclidean", lambda x, y: ((x - y) ** 2).sum()):
            TopographicSimilarity(distance, print_train=True).on_epoch_end(0.0, sent(message, inputs), 2)
        named, function = map(json.loads, capsys.readouterr().out.splitlines())
        assert named == {**function, "topsim": pytest.approx(function["topsim"])}
        assert named["mode"] == "train"

    @pytest.mark.parametrize(
        ("message", "inputs"),
        [
            (torch.ones(4), torch.randn(4, 3)),
            (torch.arange(4), torch.randn(4, 3)),
            (torch.arange(4) % 2, torch.ones(4, 3)),
            (torch.arange(4) % 2, torch.zeros(4, 3)),
            (torch.arange(4) % 2, torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 1.0], [2.0, 1.0]])),
            (torch.arange(2), torch.randn(2, 3)),
            (torch.arange(1), torch.randn(1, 3)),
        ],
        ids=["one message", "all differ", "one input", "no input", "a zero vector", "one pair", "no pair"],
    )
    @pytest.mark.filterwarnings("error")
    def test_undefined_is_null(self, message, inputs, capsys):
        TopographicSimilarity().on_validation_end(0.0, sent(message, inputs), 1)
        assert printed(capsys) == {"topsim": None, "mode": "test", "epoch": 1}

    def test_refuses(self, monkeypatch):
        with pytest.raises(ValueError, match=r"sender_input_distance .* 'cosinus'"):
            TopographicSimilarity("cosinus")
        with pytest.raises(ValueError, match=r"sender_input.*store_sender_input"):
            TopographicSimilarity().on_validation_end(0.0, sent(torch.arange(3)), 1)
        with pytest.raises(ValueError, match=r"sender_input .*axis 0.* 2 .* 3 "):
            TopographicSimilarity().on_validation_end(0.0, sent(torch.arange(3), torch.zeros(2, 3, 4)), 1)
        monkeypatch.setitem(sys.modules, "scipy.spatial.distance", None)
        with pytest.raises(ImportError, match=r"SciPy.*egg_sparse\[zoo\]"):
            TopographicSimilarity()
