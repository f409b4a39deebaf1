"""The best checkpoint in a plain EGG game, on both hosts."""

import json

import pytest
import torch

from egg_sparse import host
from egg_sparse.callbacks import BestCheckpoint
from egg_sparse.callbacks.checkpoints import direction_of
from symbol_games import Read, Score, nll


class Values(host.core.Callback):
    """A metric that is made up, and the weights of every epoch."""

    def __init__(self, values):
        self.values, self.weights = values, {}

    def on_validation_end(self, loss, logs, epoch):
        logs.aux["made_up"] = torch.tensor([self.values[epoch - 1]])
        self.weights[epoch] = {name: value.clone() for name, value in self.trainer.game.state_dict().items()}


def train(core, monkeypatch, values, best, *params, validation=True):
    monkeypatch.setattr(host, "_resolved", {"core": core})
    core.init(params=["--random_seed=1", "--lr=0.1", "--no_cuda", *params])
    game = core.SymbolGameReinforce(
        core.ReinforceWrapper(Score(6, 5)), core.ReinforceDeterministicWrapper(Read(5, 6)), nll
    )
    batches = [(torch.eye(6), torch.arange(6))] * 2
    spy = Values(values)
    core.Trainer(
        game,
        core.build_optimizer(game.parameters()),
        batches,
        validation_data=batches[:1] if validation else None,
        callbacks=[spy, best],
    ).train(len(values))
    return spy.weights


@pytest.mark.parametrize(
    ("mode", "values", "epoch"),
    [
        ("max", [0.25, 0.75, 0.5, 0.75], 2),
        ("min", [0.5, float("nan"), 0.25, 0.375], 3),
        ("min", [float("nan"), 1e30], 2),
    ],
)
def test_keeps_the_weights_of_the_best_epoch(mode, values, epoch, core, monkeypatch, tmp_path):
    path = tmp_path / "folder/best.tar"
    best = BestCheckpoint(path, "made_up", mode)
    weights = train(core, monkeypatch, values, best)
    checkpoint = torch.load(path, weights_only=True)
    assert (checkpoint.epoch, best.best) == (epoch, pytest.approx(values[epoch - 1]))
    assert all(torch.equal(value, weights[epoch][name]) for name, value in checkpoint.model_state_dict.items())
    assert {each.name for each in path.parent.iterdir()} == {"best.tar", "best.json"}


def test_a_training_that_goes_on_knows_the_best_so_far(core, monkeypatch, tmp_path):
    path, last = tmp_path / "best.tar", tmp_path / "checkpoints/final.tar"
    saves = f"--checkpoint_dir={last.parent}"
    train(core, monkeypatch, [0.25, 0.75, 0.5], BestCheckpoint(path, "made_up", "max"), saves)
    assert last.is_file(), "EGG's own saver is added as before"
    goes_on = f"--load_from_checkpoint={last}"
    train(core, monkeypatch, [0, 0, 0, 0.625, 0.75], BestCheckpoint(path, "made_up", "max"), goes_on)
    assert torch.load(path, weights_only=True).epoch == 2
    train(core, monkeypatch, [0, 0, 0, 0.625, 0.875], BestCheckpoint(path, "made_up", "max"), goes_on)
    assert torch.load(path, weights_only=True).epoch == 5
    train(core, monkeypatch, [0, 0, 0, 0.625], BestCheckpoint(path, "made_up", "min"), goes_on)
    assert json.loads(path.with_suffix(".json").read_text())["mode"] == "min", "the best by another rule begins anew"
    train(core, monkeypatch, [5.0], BestCheckpoint(path, "made_up", "min"))
    assert torch.load(path, weights_only=True).epoch == 1, "and so does another training"
    path.with_suffix(".json").write_text("{")
    with pytest.raises(ValueError, match=r"best\.json must say"):
        train(core, monkeypatch, [0, 0, 0, 0.625], BestCheckpoint(path, "made_up", "min"), goes_on)


def test_what_is_refused(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r'mode must be "min" or "max" for the metric .made_up'):
        BestCheckpoint(tmp_path / "best.tar", "made_up")
    with pytest.raises(ValueError, match=r"mode .* 'most'"):
        BestCheckpoint(tmp_path / "best.tar", "made_up", "most")
    with pytest.raises(ValueError, match=r"metric must be one of loss, .*made_up, got 'length'"):
        train(host.core, monkeypatch, [1.0], BestCheckpoint(tmp_path / "best.tar", "length"))
    with pytest.raises(ValueError, match="best validation"):
        train(host.core, monkeypatch, [1.0], BestCheckpoint(tmp_path / "best.tar", "loss"), validation=False)
    assert not list(tmp_path.iterdir())


def test_other_processes_write_nothing(tmp_path):
    class Trainer:
        distributed_context = type("Context", (), {"is_leader": False})
        start_epoch, validation_data, validation_freq = 0, [], 1

    best = BestCheckpoint(tmp_path / "best.tar", "loss")
    best.on_train_begin(Trainer)
    best.on_validation_end(0.5, host.core.Interaction.empty(), 1)
    assert best.best == 0.5
    assert not list(tmp_path.iterdir())


def test_directions():
    assert [direction_of(name) for name in ("acc", "acc_expected", "loss", "negative_elbo")] == [
        "max",
        "max",
        "min",
        "min",
    ]
