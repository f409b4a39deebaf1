"""What a user sees of a sweep."""

import io
import pathlib
import time

import pytest
from rich.console import Console

from egg_sparse.sweep import experiments, grids, table, watch


@pytest.fixture
def statuses():
    combinations = grids.with_seeds(grids.cross({"mode": ["marg", "gs", "sfe", "nvil"], "n_epochs": 8}, "grid"), None)
    runs = experiments.check(combinations, "signal_game", [])[0]
    waiting, running, done, failed = (watch.Status(run, pathlib.Path(f"root/mode={run.given['mode']}")) for run in runs)
    running.state, running.started = watch.RUNNING, time.time() - 61
    running.metrics = {"epoch": 3, "mode": "validation", "acc": 0.51234, "loss": 1.5, "support": 2.0, "other": 7.0}
    done.end(watch.DONE)
    done.metrics, done.seconds = {"mode": "final", "acc": 0.9, "receiver_calls": 2.0, "length": None}, 3725.0
    failed.end(watch.FAILED, {"started": 1.0, "ended": 3.0}, "the [scores] must be finite " + "x" * 200)
    return [waiting, running, done, failed]


def test_lines_are_printed_where_something_has_changed(statuses, capsys):
    lines = table.Lines()
    lines.show(statuses)
    assert capsys.readouterr().out.splitlines() == [
        "running mode=gs",
        "done    mode=sfe  acc 0.9  1:02:05",
        f"failed  mode=nvil  0:02  the [scores] must be finite {'x' * 200} (log: root/mode=nvil/log.txt)",
    ]
    statuses[1].metrics["epoch"] = 4
    lines.show(statuses)
    assert capsys.readouterr().out == ""
    statuses[0].state, statuses[0].elsewhere = watch.RUNNING, True
    lines.show(statuses)
    assert capsys.readouterr().out == "running mode=marg  by another sweep\n"


def drawn(statuses, height, width=110):
    console = Console(file=io.StringIO(), width=width, height=30, force_terminal=False)
    live = table.Table("name", console)
    try:
        console.print(live.draw(statuses, height))
    finally:
        live.close()
    return console.file.getvalue()


def test_the_table_has_a_row_per_run(statuses):
    text = drawn(statuses, 10)
    assert "name: 1 waiting, 1 running, 1 done, 1 failed" in text
    rows = {
        row.split()[1]: [cell.strip() for cell in row.split("│")[1:-1]]
        for row in text.splitlines()
        if "mode=" in row[:9]
    }
    assert rows["mode=marg"] == ["mode=marg", "waiting", "", "", ""]
    assert rows["mode=gs"] == ["mode=gs", "running", "3/8", "acc 0.5123  loss 1.5  support 2", "1:01"]
    assert rows["mode=sfe"] == ["mode=sfe", "done", "8/8", "acc 0.9", "1:02:05"]
    assert rows["mode=nvil"][:2] == ["mode=nvil", "failed"]
    assert "the [scores] must be finite" in text
    assert "root/mode=nvil/log.txt" in text


def test_a_table_that_is_too_long_shows_what_matters_first(statuses):
    text = drawn(statuses, 2)
    assert "mode=gs" in text
    assert "mode=nvil" in text
    assert "mode=marg" not in text
    assert "and 2 more" in text


def test_other_experiments_metrics():
    status = watch.Status(None, pathlib.Path("run"), metrics={"negative_elbo": 98.4567, "bits_per_dimension": 1.98})
    assert table.metrics_of(status) == "negative_elbo 98.46  bits_per_dimension 1.98"
