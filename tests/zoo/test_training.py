"""What a run writes beside its metrics: the loggers' files, the best checkpoint, the variance of the gradient."""

import importlib
import json

import pytest
import torch

from egg_sparse import host
from egg_sparse.zoo import checkpoints, run_folder
from egg_sparse.zoo.cli import run
from egg_sparse.zoo.signal_game.train import PROG, main, parse_options
from logged import by_tag, events, written_to_wandb
from small_runs import MODES, command, same

SMALL = ["--batches_per_epoch=5", "--vocab_size=12", "--game_size=4", "--batch_size=16", "--no_cuda", "--random_seed=3"]

pytestmark = pytest.mark.usefixtures("few_test_games")


def records_of(folder):
    return [json.loads(line) for line in (folder / run_folder.METRICS_FILE).open()]


@pytest.mark.slow
def test_one_switch_for_each_logger(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    main([*SMALL, "--n_epochs=3", "--tensorboard", "--wandb", "--gradient_variance=2", "--keep_best=loss", "--out=run"])
    folder = tmp_path / "run"
    records = records_of(folder)
    expected = by_tag(records)
    names = {"support", "temperature", "learning_rate", "messages_used", "acc", "loss"}
    assert {f"{phase}/{name}" for name in names for phase in ("train", "validation")} <= expected.keys()
    assert list(expected["train/gradient_variance"]) == [2]
    assert events(folder / "tensorboard") == expected
    tags, config = written_to_wandb(folder)
    assert tags == expected
    assert {"vocab_size": 12, "gradient_variance": 2, "mode": "marg"}.items() <= config.items()
    assert "out" not in config
    losses = [record["loss"] for record in records if record["mode"] == "validation"]
    best = losses.index(min(losses)) + 1
    assert checkpoints.read(folder / "checkpoints/best.tar").epoch == best
    kept = json.loads((folder / "checkpoints/best.json").read_text())
    assert kept == {"metric": "loss", "mode": "min", "value": min(losses), "epoch": best}


@pytest.mark.slow
def test_a_resumed_run_knows_the_best_so_far(monkeypatch, tmp_path):
    """Accuracies that are made up: the best one is before the interruption, and that of epoch 4 is its equal."""
    from egg_sparse.zoo import training

    values = [0.25, 0.75, 0.5, 0.75, float("nan"), 0.625]

    def made_up(self, loss, logs, epoch):
        logs.aux["acc_made_up"] = torch.tensor([values[epoch - 1]])

    monkeypatch.setattr(training.ValidationAsTrained, "on_validation_end", made_up)
    params = [*SMALL, "--mode=sfe", "--lr_schedule=constant", "--keep_best=acc_made_up"]
    main([*params, "--n_epochs=6", "--out=whole"])
    main([*params, "--n_epochs=3", "--out=cut"])
    main(["--resume=cut", "--n_epochs=6", "--no_cuda"])
    assert checkpoints.read(tmp_path / "cut/checkpoints/best.tar").epoch == 2
    whole, cut = (tmp_path / run / "checkpoints/best.json" for run in ("whole", "cut"))
    assert whole.read_text() == cut.read_text()
    assert all(same(tmp_path / "whole", tmp_path / "cut", checkpoint) for checkpoint in ("best.tar", "final.tar"))
    tested = main(["--evaluate", "--load_from_checkpoint=cut/checkpoints/best.tar", "--no_cuda"])
    assert tested["mode"] == "final"


@pytest.mark.parametrize(
    ("params", "named"),
    [
        (["--keep_best=entropy"], ["--keep_best", "METRIC:min", "'entropy'"]),
        (["--keep_best=acc:most"], ["--keep_best", "'acc:most'"]),
        (["--keep_best=:max"], ["--keep_best", "':max'"]),
        (["--keep_best=acc", "--validation_freq=0"], ["--keep_best", "--validation_freq"]),
        (["--gradient_variance=0"], ["--gradient_variance", "'0'"]),
        (["--quick", "--resume=run"], ["--quick", "--resume"]),
    ],
)
def test_refused(params, named, capsys):
    assert run(PROG, main, params) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(each in error for each in named)


@pytest.mark.slow
def test_a_metric_that_there_is_not(capsys):
    assert run(PROG, main, [*SMALL, "--n_epochs=1", "--keep_best=accuracy"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "metric must be one of loss" in error
    assert "'accuracy'" in error


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["signal_game --mode=nvil", "bit_vector_vae --mode=sparsemap --budget=3", "compo_vs_generalization --mode=rf"],
)
def test_the_variance_of_the_gradient_changes_nothing(name, tmp_path):
    """More kinds of games are in tests/callbacks/test_gradients.py."""
    entry, params = command(name)
    train = importlib.import_module(f"egg_sparse.zoo.{entry}.train")
    params = [*params, "--n_epochs=1", "--no_cuda", "--random_seed=3"]
    if entry != "signal_game":
        params.append("--quick")
    for options, out in (([], "plain"), (["--gradient_variance=1"], "measured")):
        train.main([*params, *options, f"--out={out}"])
    plain, measured = (records_of(tmp_path / out) for out in ("plain", "measured"))
    found = [record.pop("gradient_variance") for record in measured if record["mode"] == "train"]
    for record in measured:
        record.pop("relative_gradient_variance", None)
    assert plain == measured
    assert (found[0] == 0) == ("sparsemap" in name)
    (tmp_path / "measured" / run_folder.METRICS_FILE).write_bytes(
        (tmp_path / "plain" / run_folder.METRICS_FILE).read_bytes()
    )
    assert same(tmp_path / "plain", tmp_path / "measured")


@pytest.mark.parametrize("entry", MODES)
def test_quick_is_for_every_mode(entry):
    train = importlib.import_module(f"egg_sparse.zoo.{entry}.train")
    quick = train.build_parser().quick
    for mode in MODES[entry]:
        opts = train.parse_options([*f"--mode={mode}".split(), "--quick", "--no_cuda"])
        assert quick.items() <= vars(opts).items()


@pytest.mark.slow
@pytest.mark.parametrize("entry", MODES)
def test_a_quick_run(entry, tmp_path):
    train = importlib.import_module(f"egg_sparse.zoo.{entry}.train")
    final = train.main(["--quick", "--no_cuda", "--random_seed=1", "--keep=3", "--out=run"])
    assert final["seconds"] < 20
    saved = json.loads((tmp_path / "run/opts.json").read_text())
    quick = train.build_parser().quick
    assert {**quick, "keep": 3}.items() <= saved.items(), "what is given wins, and what was run is kept"
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"opts.json", "metrics.jsonl", "results.json", "curves.png", "checkpoints"} <= files


def test_what_is_given_wins_over_quick():
    opts = parse_options(["--n_epochs=1", "--quick", "--vocab_size=5", "--no_cuda"])
    assert (opts.n_epochs, opts.vocab_size) == (1, 5)


def test_versions(capsys, tmp_path):
    import egg_sparse

    assert run(PROG, main, ["--version", "--out=run"]) == 0
    out = capsys.readouterr().out
    assert out == f"egg_sparse {egg_sparse.__version__}, on {host.describe()}, torch {torch.__version__}\n"
    assert not list(tmp_path.iterdir())
