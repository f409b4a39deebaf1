"""What a run's epochs cost: counted once, also of a run that is resumed."""

import itertools
import json

import pytest

from egg_sparse.callbacks import MetricsWriter
from egg_sparse.zoo import run_folder, training
from egg_sparse.zoo.signal_game.train import main

OPTIONS = ["--batches_per_epoch=3", "--batch_size=8", "--vocab_size=20", "--random_seed=1", "--no_cuda"]


def costs(folder):
    return [json.loads(line) for line in (folder / "costs.jsonl").open()]


@pytest.mark.slow
def test_costs_of_a_resumed_run_go_on(tmp_path, monkeypatch, few_test_games):
    plain = MetricsWriter.on_epoch_end

    def stop(self, loss, logs, epoch):
        plain(self, loss, logs, epoch)
        if epoch == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(MetricsWriter, "on_epoch_end", stop)
    with pytest.raises(KeyboardInterrupt):
        main([*OPTIONS, "--n_epochs=4", f"--out={tmp_path / 'run'}"])
    before = costs(tmp_path / "run")
    monkeypatch.setattr(MetricsWriter, "on_epoch_end", plain)
    main([f"--resume={tmp_path / 'run'}", "--no_cuda"])
    after = costs(tmp_path / "run")
    assert [(line["epoch"], line["examples"]) for line in after] == [(1, 24), (2, 48), (3, 72), (4, 96)]
    assert after[:2] == before[:2]
    assert all(0 < early["seconds"] < late["seconds"] for early, late in itertools.pairwise(after))


@pytest.mark.parametrize(
    ("lines", "epoch", "known"),
    [
        ([], 0, (0.0, 0)),
        ([], 2, None),  # a run of an older version
        ([{"epoch": 1, "seconds": 1.5, "examples": 8}, {"epoch": 2, "seconds": 3.0, "examples": 16}], 2, (3.0, 16)),
        ([{"epoch": 1, "seconds": 1.5, "examples": 8}, {"epoch": 2, "seconds": 3.0, "examples": 16}], 1, (1.5, 8)),
        ([{"epoch": 1, "seconds": 1.5, "examples": 8}], 2, None),
        ([{"epoch": 1, "seconds": "x", "examples": 8}], 1, None),
        ([{"epoch": 1}], 1, None),
    ],
)
def test_costs_before_are_known_or_not_counted(lines, epoch, known, tmp_path):
    (tmp_path / run_folder.COSTS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"epoch')
    writer = training._costs(tmp_path, epoch)
    assert (writer and (writer.seconds, writer.examples)) == known
