"""Run folders that a test writes, as the zoo writes them."""

import json

import pytest

OPTIONS = {
    "mode": "marg",
    "data": "digits",
    "game_size": 16,
    "batches_per_epoch": 100,
    "n_epochs": 2,
    "lr": 0.005,
    "keep": 2,
    "random_seed": 1,
}
RESULTS = {"mode": "final", "acc": 0.5, "acc_expected": 0.25, "support": 4.0, "receiver_calls": 8.0, "seconds": 12.5}


@pytest.fixture
def write_run(tmp_path):
    """A function that writes a run folder of the signal game below ``tmp_path``, and returns it."""

    def write(name, results=(), metrics=(), costs=True, **options):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "opts.json").write_text(json.dumps({**OPTIONS, **options}))
        if results is not None:
            (folder / "results.json").write_text(json.dumps({**RESULTS, **dict(results)}))
        records = [
            {"epoch": epoch, "mode": mode, "acc": 0.1 * epoch, "loss": 1.0, **dict(metrics)}
            for epoch in (1, 2)
            for mode in ("train", "validation")
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        if costs:
            lines = [{"epoch": epoch, "seconds": 1.5 * epoch, "examples": 100 * epoch} for epoch in (1, 2)]
            (folder / "costs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return write
