"""DistributedDataParallel on the CPU: two processes with half a batch each equal one with the whole."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch
from torch import nn

from egg_sparse import RnnSenderSparsemax, SenderReceiverRnnMarg, SparsemaxWrapper, SymbolGameMarg, standin
from egg_sparse.standin import util
from egg_sparse.zoo import checkpoints
from egg_sparse.zoo.faults import FaultGuard

pytestmark = pytest.mark.slow


class Agent(nn.Module):
    def __init__(self, n_inputs, n_outputs):
        super().__init__()
        self.linear = nn.Linear(n_inputs, n_outputs)

    def forward(self, x, receiver_input=None, aux_input=None):
        return 4 * self.linear(x)


def loss(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    return nn.functional.cross_entropy(receiver_output, labels, reduction="none"), {}


def game_of_sequences():
    sender = RnnSenderSparsemax(Agent(6, 8), 4, 5, 8, 3, cell="gru", support=None, max_support=None)
    receiver = standin.RnnReceiverDeterministic(Agent(8, 3), 4, 5, 8)
    return SenderReceiverRnnMarg(sender, receiver, loss, 0.1, length_cost=0.01).double()


def train(rank, world_size, chunk_size, support=None, sequences=False):
    """Ten steps; examples of the second half have scores of a much larger scale, hence other supports."""
    generator = torch.Generator().manual_seed(1)
    inputs, labels = (
        torch.randn(10, 16, 6, generator=generator).double(),
        torch.randint(3, (10, 16), generator=generator),
    )
    inputs[:, 8:] *= 10
    part = slice(rank * 16 // world_size, (rank + 1) * 16 // world_size)
    batches = [(x[part], y[part]) for x, y in zip(inputs, labels, strict=True)]
    torch.manual_seed(2)
    receiver = standin.SymbolReceiverWrapper(Agent(5, 3), 8, 5)
    game = SymbolGameMarg(
        SparsemaxWrapper(Agent(6, 8), support=support), receiver, loss, 0.1, chunk_size=chunk_size
    ).double()
    if sequences:
        game = game_of_sequences()
    optimizer = torch.optim.SGD(game.parameters(), lr=0.1)
    trainer = standin.Trainer(game, optimizer, train_data=batches)
    supports = []

    class Supports(standin.Callback):
        def on_batch_end(self, logs, loss, batch_id, is_training=True):
            supports.append(logs.aux["support"].tolist())

    trainer.callbacks.append(Supports())
    trainer.train(1)
    game = trainer.game.module if world_size > 1 else trainer.game
    state = {name: value.tolist() for name, value in game.named_buffers()}
    return {"weights": [p.tolist() for p in game.parameters()], "supports": supports, "state": state}


def train_with_an_infinite_loss(rank, world_size):
    """Six steps; in the fifth the loss of the second process is infinite, and its gradient is not."""
    torch.manual_seed(2)
    inputs = torch.randn(6, 2, 4, 6)[:, rank]
    game = InfiniteOnce(5 if rank == 1 else None)
    optimizer = torch.optim.SGD(game.parameters(), lr=0.1)
    guard = FaultGuard(game, optimizer, seed=1, batches_per_epoch=6, skip=True)
    batches = [(x, torch.zeros(4)) for x in inputs]
    trainer = standin.Trainer(game, optimizer, train_data=batches, callbacks=[guard])
    trainer.train(1)
    return {"weights": [p.tolist() for p in game.parameters()], "steps": game.steps}


class InfiniteOnce(nn.Module):
    def __init__(self, infinite_step):
        super().__init__()
        self.linear, self.infinite_step, self.steps = nn.Linear(6, 1), infinite_step, 0

    def forward(self, x, labels, receiver_input=None, aux_input=None):
        self.steps += 1
        loss = self.linear(x).square().mean()
        if self.steps == self.infinite_step:
            loss = loss + torch.inf
        return loss, standin.Interaction.empty()


def on_two_processes(folder, call):
    """What a call of a function of this module returns in each of two processes; it may use rank and world_size."""
    code = f"""
import gc, json, sys, torch
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
from test_distributed import *
from egg_sparse import standin
opts = standin.init(params=["--no_cuda", "--random_seed=1"])
rank, world_size = opts.distributed_context.rank, opts.distributed_context.world_size
result = {call}
open(f"{folder}/{{rank}}.json", "w").write(json.dumps(result))
del result
torch.distributed.barrier()
gc.collect()  # or gloo's threads outlive the group
torch.distributed.destroy_process_group()
"""
    script = folder / "script.py"
    script.write_text(code)
    root = pathlib.Path(__file__).parent.parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(root), environment.get("PYTHONPATH", "")])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    result = subprocess.run(launch, capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 0, result.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)], result.stderr


def test_a_step_is_skipped_in_both_processes_or_in_none(tmp_path):
    (first, second), errors = on_two_processes(tmp_path, "train_with_an_infinite_loss(rank, world_size)")
    assert first["steps"] == second["steps"] == 6
    assert first["weights"] == second["weights"]
    assert errors.count("skipping a step: the loss is not finite at step 5") == 1


@pytest.mark.parametrize(
    ("chunk_size", "support", "sequences"),
    [(None, None, False), (2, None, False), (None, "auto", False), (None, None, True)],
)
def test_two_processes_equal_one(tmp_path, chunk_size, support, sequences):
    """Also with support control, which takes account of the whole batch."""
    both, _ = on_two_processes(tmp_path, f"train(rank, world_size, {chunk_size}, {support!r}, {sequences})")
    previous = util.common_opts
    try:
        standin.init(params=["--no_cuda", "--random_seed=1"])
        alone = train(0, 1, chunk_size, support, sequences)
    finally:
        util.common_opts = previous
    for together in both:
        assert together["supports"] == alone["supports"], "the log has the examples of both processes, in order"
        for found, wanted in zip(together["weights"], alone["weights"], strict=True):
            torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), atol=1e-6, rtol=0)
    assert bool(alone["state"]) == (support == "auto")
    for together in both:
        for name, wanted in alone["state"].items():
            torch.testing.assert_close(
                torch.tensor(together["state"][name]), torch.tensor(wanted), atol=1e-5, rtol=1e-5
            )
    halves = [[max(step[:8]), max(step[8:])] for step in alone["supports"]]
    assert any(first != second for first, second in halves), "supports must differ between processes"


# SGD, since Adam makes whole steps of gradients that are nothing but rounding errors
SGD = ["--optimizer=sgd", "--lr=0.01"]
ENTRIES = {
    "signal_game": ["--mode=marg", *SGD, "--batches_per_epoch=50", "--n_epochs=2", "--vocab_size=30", "--game_size=4"],
    "bit_vector_vae": [
        "--temperature=1",
        "--mode=sparsemap",
        "--optimizer=sgd",
        "--lr=0.0001",
        "--n_epochs=5",
        "--latent_size=8",
        "--nll_samples=2",
        "--nll_images=4",
    ],
}


def launch(entry, folder, *options, processes=2, path="", restarts=0):
    command = ["-m", f"egg_sparse.zoo.{entry}", *options, "--random_seed=3", "--no_cuda"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    torchrun.append(f"--max-restarts={restarts}")
    return subprocess.run(
        [sys.executable, *(torchrun if processes > 1 else []), *command],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "EGG_SPARSE_HOST": "standin", "PYTHONPATH": str(path)},
        timeout=240,
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of a whole run, of an entry on so many processes; each is run once."""
    folders = {}

    def run(entry, processes):
        if (entry, processes) not in folders:
            folder = tmp_path_factory.mktemp(f"{entry}{processes}")
            result = launch(entry, folder, *ENTRIES[entry], "--out=job", processes=processes)
            assert result.returncode == 0, result.stderr
            finals = [line for line in result.stdout.splitlines() if line.startswith('{"mode": "final"')]
            assert len(finals) == 1, "only the leading process reports"
            assert json.loads((folder / "job/results.json").read_text()) == json.loads(finals[0])
            folders[entry, processes] = folder / "job"
        return folders[entry, processes]

    return run


def weights(folder):
    return checkpoints.read(folder / "checkpoints/final.tar").model_state_dict


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_zoo_on_two_processes_equals_one(entry, uninterrupted):
    """After 100 steps, with the same whole batches."""
    alone, together = (weights(uninterrupted(entry, processes)) for processes in (1, 2))
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, atol=1e-5, rtol=0, equal_nan=True)


def kill_second_process(folder, checkpoint):
    """Lets the second of the processes that torchrun starts first kill itself, when there is such a checkpoint."""
    (folder / "sitecustomize.py").write_text(
        f"""
import os, pathlib, signal, threading, time
def kill():
    while not pathlib.Path("job/checkpoints/{checkpoint}").exists():
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)
if os.environ.get("RANK") == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    threading.Thread(target=kill, daemon=True).start()
"""
    )


def test_a_killed_worker_ends_the_others(tmp_path):
    """Within seconds, and with a message."""
    kill_second_process(tmp_path, "2.tar")
    result = launch("signal_game", tmp_path, *ENTRIES["signal_game"], "--n_epochs=10000", "--out=job", path=tmp_path)
    assert result.returncode != 0
    assert "egg_sparse.zoo.signal_game: error: " in result.stderr
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "job/metrics.jsonl").read_text().splitlines()]
    assert 2 <= max(epochs) < 1000


def test_restarted_by_torchrun_they_go_on_from_the_last_checkpoint(tmp_path, uninterrupted):
    kill_second_process(tmp_path, "1.tar")
    options = [*ENTRIES["signal_game"], "--out=job", "--preemptable"]
    result = launch("signal_game", tmp_path, *options, path=tmp_path, restarts=1)
    assert result.returncode == 0, result.stderr
    assert "exitcode: -9" in result.stderr
    whole = uninterrupted("signal_game", 2)
    ended = weights(tmp_path / "job")
    for name, value in weights(whole).items():
        torch.testing.assert_close(ended[name], value, atol=0, rtol=0, equal_nan=True)
    assert (tmp_path / "job/metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
