import json
import math

import pytest
import torch

from egg_sparse import CommunicationMarg, host
from egg_sparse.callbacks import (
    EntropyCoefficientUpdater,
    EpochSetter,
    MetricsWriter,
    StepTemperature,
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
def test_metrics_writer(tmp_path, leader):
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


def test_epoch_setter():
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


def test_entropy_coefficient_updater():
    game = CommunicationMarg(sender_entropy_coeff=5.0)
    updater = EntropyCoefficientUpdater(game, lambda epoch: 1 / epoch)
    for epoch in (1, 4):
        updater.on_epoch_begin(epoch)
        assert game.sender_entropy_coeff == 1 / epoch
    with pytest.raises(TypeError, match=r"sender_entropy_coeff.* Identity"):
        EntropyCoefficientUpdater(torch.nn.Identity(), lambda epoch: 1.0)


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
    assert task.fields["shown"] == "[dim]train[/dim] acc 0.500  loss 0.500"
    progress.on_train_end()
