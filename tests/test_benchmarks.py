"""The benchmarks: what they measure with, the command that runs them, and that they compare equal computations."""

import json
import math
import pathlib
import subprocess
import sys
import types

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import measure, receivers, shared_decoder, signal_game_step, training_steps
from benchmarks.agents import sender_of_support
from benchmarks.measure import Settings, Spread, Table

CPU = torch.device("cpu")
ROOT = pathlib.Path(command.__file__).parent.parent


@pytest.mark.parametrize("exponent", [-1.0, 0.5, 1.0, 2.0])
def test_the_fitted_exponent_is_that_of_a_power_law(exponent):
    sizes = [3, 10, 40, 1000]
    assert measure.fitted_exponent(sizes, [7 * size**exponent for size in sizes]) == pytest.approx(exponent)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ("plain", "plain"),
        (0.0, "0.0"),
        (math.inf, "inf"),
        (0.012345, "0.0123"),
        (1.2345, "1.23"),
        (123.45, "123"),
        (12345.6, "12,346"),
        (12345, "12,345"),
        (Spread(1.5, [1.4, 1.5, 1.62]), "1.50 (1.40 to 1.62)"),
        (Spread(1.5, [1.4999, 1.5, 1.5001]), "1.50"),
    ],
)
def test_shown(value, text):
    assert measure.shown(value) == text


def test_a_table_in_markdown_has_all_columns_of_its_rows_and_its_notes():
    table = Table("sizes", "Time by size", [{"step": "a", "ms": 1.5}, {"step": "b", "GB": 2}], ["No c."])
    assert table.markdown().splitlines() == [
        "**Time by size**",
        "",
        "| step | ms | GB |",
        "| --- | ---: | ---: |",
        "| a | 1.50 |  |",
        "| b |  | 2 |",
        "",
        "No c.",
    ]


def test_runs_are_merged_into_medians_with_their_range():
    runs = [Table("t", "T", [{"step": "a", "n": 3, "ratio": ratio, "GB": None}]) for ratio in (2.0, 1.0, 4.0)]
    merged = measure.merged(runs)
    assert merged.rows == [{"step": "a", "n": 3, "ratio": Spread(2.0, [2.0, 1.0, 4.0]), "GB": None}]
    assert merged.as_dict()["rows"][0]["ratio"] == {"median": 2.0, "runs": [2.0, 1.0, 4.0]}
    assert "3 runs" in merged.markdown()


@pytest.mark.parametrize("rows", [[{"step": "b"}], [{"step": "a"}, {"step": "a"}]])
def test_runs_with_other_rows_are_not_merged(rows):
    with pytest.raises(ValueError, match="table t must have"):
        measure.merged([Table("t", "T", [{"step": "a"}]), Table("t", "T", rows)])


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for what a step adds to it."""
    now = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    return now


def test_steps_take_turns_and_short_ones_are_repeated_within_a_measurement(clock):
    calls = []

    def step(name, seconds):
        calls.append(name)
        clock[0] += seconds

    steps = {"short": lambda: step("short", 0.25), "long": lambda: step("long", 2.0)}
    seconds = measure.seconds_in_turns(steps, 3, CPU, least_seconds=1.0)
    assert seconds == {"short": [0.25] * 3, "long": [2.0] * 3}
    assert calls == ["short"] * 2 + ["long"] * 2 + (["short"] * 4 + ["long"]) * 3


def test_a_slow_step_is_measured_three_times_and_then_left_out(clock):
    def step(seconds):
        clock[0] += seconds

    steps = {"quick": lambda: step(1.0), "slow": lambda: step(100.0), "between": lambda: step(2.0)}
    seconds = measure.seconds_in_turns(steps, 8, CPU, most_seconds=10.0)
    assert {name: len(measured) for name, measured in seconds.items()} == {"quick": 8, "slow": 3, "between": 5}


@pytest.mark.slow
def test_the_peak_of_a_process_contains_what_it_allocates():
    gigabytes = [measure.peak_gigabytes("torch", "ones", numbers) for numbers in (1, 50_000_000)]
    assert gigabytes[1] - gigabytes[0] == pytest.approx(0.2, abs=0.02)


@pytest.mark.slow
def test_a_process_whose_memory_is_measured_may_not_fail():
    with pytest.raises(RuntimeError, match=r"(?s)import torch.*failed.*must be"):
        measure.peak_gigabytes("torch", "ones", "many")


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (["recievers"], ["NAME", "'recievers'", "receivers"]),
        (["--device", "cuda"], ["--device cuda", "CUDA"]),
        (["--runs", "0"], ["--runs", "'0'"]),
        (["--repeats", "many"], ["--repeats", "'many'"]),
    ],
)
def test_a_mistake_on_the_command_line_gets_one_sentence(params, words, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as caught:
        command.main(params)
    output = capsys.readouterr()
    assert caught.value.code == 2
    assert not output.out
    assert output.err.count("\n") == 1
    assert all(word in output.err for word in words)


def test_a_benchmark_that_fails_does_not_keep_others_from_running(tmp_path, capsys, monkeypatch):
    asked = []

    def fail(settings):
        raise RuntimeError("out of order")

    def measured(settings):
        asked.append(settings)
        return [Table("lengths", "Lengths", [{"step": "a", "ms": 1.5}])]

    monkeypatch.setitem(sys.modules, "benchmarks.distortion", types.SimpleNamespace(tables=fail))
    monkeypatch.setitem(sys.modules, "benchmarks.receivers", types.SimpleNamespace(tables=measured))
    params = ["distortion", "receivers", "--quick", "--repeats=4", f"--out={tmp_path}"]
    assert command.main(params) == 1
    output = capsys.readouterr()
    assert "out of order" in output.err
    assert "failed: distortion" in output.err.splitlines()[-1]
    assert "| a | 1.50 |" in output.out
    assert asked == [Settings(CPU, quick=True, repeats=4)]
    saved = json.loads((tmp_path / "lengths.json").read_text())
    assert saved["rows"] == [{"step": "a", "ms": 1.5}]
    assert saved["command"] == f"python -m benchmarks {' '.join(params)}"
    assert saved["machine"]["torch"] == torch.__version__
    assert {path.name for path in tmp_path.iterdir()} == {"lengths.json", "lengths.md"}


def test_every_module_with_tables_is_a_benchmark():
    assert {"receivers", "shared_decoder", "signal_game_step", "distortion", "import_time"} <= set(command.names())
    assert {"measure", "swap_games", "__main__"}.isdisjoint(command.names())


KINDS = {*receivers.READING_THE_EXAMPLE.values(), *receivers.SHARED.values()}
RANDOM = {receivers.Dropout, receivers.Acting}


@pytest.mark.parametrize("kind", sorted(KINDS - RANDOM, key=lambda kind: kind.__name__))
def test_a_receiver_folded_by_hand_has_the_loss_that_the_game_has(kind):
    computations, agents = receivers.computations_of(kind, 5, 6, CPU)
    losses, gradients = [], []
    for name, compute in computations.items():
        if name == "torch.func.vmap" and kind in receivers.NOT_TRACED_BY_VMAP:
            continue
        loss = compute()
        losses.append(loss)
        gradients.append(torch.autograd.grad(loss, agents[0].scores)[0])
    torch.testing.assert_close(torch.stack(losses), losses[0].expand(len(losses)))
    torch.testing.assert_close(torch.stack(gradients), gradients[0].expand(len(losses), -1, -1))


@pytest.mark.parametrize(
    ("support", "sizes"), [("1", [1] * 4), ("3", [3] * 4), ("all", [20] * 4), ("uneven", [20, 1, 1, 1])]
)
def test_a_sender_of_a_support_has_it_whatever_the_scores(support, sizes):
    sender = sender_of_support(torch.nn.Linear(5, 20), support, 4, 20)
    assert sender(10 * torch.randn(4, 5)).support_size.tolist() == sizes


def gradients_of(problem):
    return [parameter.grad for module in (problem.encoder, problem.receiver) for parameter in module.parameters()]


@pytest.mark.parametrize("loss", [shared_decoder.SQUARED_ERROR, shared_decoder.CROSS_ENTROPY])
def test_the_steps_with_a_shared_decoder_have_one_loss_and_one_gradient(loss):
    losses, gradients = [], []
    marginalized = [("marginalized", "all", strategy) for strategy in ("auto", "vmap", "gather")]
    for method, *arguments in [("by_product",), ("by_pairs",), *marginalized]:
        problem = shared_decoder.Problem.of(4, CPU, loss)
        losses.append(getattr(problem, method)(*arguments)())
        gradients.append(gradients_of(problem))
    for found, of_loss in zip(losses, gradients, strict=True):
        torch.testing.assert_close(found, losses[0])
        torch.testing.assert_close(of_loss, gradients[0])


@pytest.mark.parametrize("loss", [shared_decoder.SQUARED_ERROR, shared_decoder.CROSS_ENTROPY])
def test_pyro_has_the_same_loss_and_the_divergence_from_a_uniform_prior(loss):
    pytest.importorskip("pyro")
    problem = shared_decoder.Problem.of(4, CPU, loss)
    expected = problem.by_product()()
    with torch.no_grad():
        log_probs = problem.encoder(problem.images).log_softmax(1)
        divergence = (log_probs.exp() * (log_probs + math.log(log_probs.shape[1]))).sum(1).mean()
    constant = math.log(math.pi) / 2 if loss is shared_decoder.SQUARED_ERROR else 0.0
    torch.testing.assert_close(problem.pyro()(), (expected + constant) * shared_decoder.PIXELS + divergence)


@pytest.mark.parametrize("messages", ["3", "all"])
def test_the_direct_product_of_the_signal_game_has_the_loss_of_the_game(messages):
    rows = [signal_game_step.Row("", messages, kind) for kind in ("product", "auto", "vmap", "gather", "loop")]
    losses = torch.stack([row.step(signal_game_step.QUICK, CPU)() for row in rows])
    torch.testing.assert_close(losses, losses[0].expand(len(losses)))


@pytest.mark.slow
def test_runs_in_fresh_processes_give_ranges(tmp_path):
    options = ["import_time", "--quick", "--repeats=1", "--runs=2", f"--out={tmp_path}"]
    subprocess.run([sys.executable, "-m", "benchmarks", *options], cwd=ROOT, check=True, capture_output=True)
    rows = json.loads((tmp_path / "import_time.json").read_text())["rows"]
    assert [row["import"] for row in rows] == ["torch", "egg_sparse"]
    assert all(len(row["s"]["runs"]) == 2 and row["s"]["median"] > 0 for row in rows)
    assert "2 runs" in (tmp_path / "import_time.md").read_text()


@pytest.mark.parametrize(
    "entry",
    [pytest.param(entry, marks=[pytest.mark.slow] * ("paper" in entry)) for entry in training_steps.ENTRIES],
)
def test_the_plain_loops_beside_a_training_step_have_its_loss(entry, monkeypatch):
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # the VAE's, which is drawn in another order
    build, _ = training_steps.ENTRIES[entry]
    entry = build(CPU, 2, 2)
    batch = next(iter(entry.loader))
    entry.game.train()(*batch)  # which finds the temperature
    temperature = entry.core_game.sender.temperature
    loss, _ = entry.game(*batch)
    for loop in (entry.plain, entry.tuned):
        torch.testing.assert_close(loop(entry.game, temperature)(*batch), loss, rtol=1e-4, atol=1e-5)
