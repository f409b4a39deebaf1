"""Time and memory of one training step of the signal game, forward and backward, as ratios to EGG's Gumbel game.

The size is the paper's: 64 examples, a vocabulary of 256, 16 candidates of 4096 features, embeddings of 256, 512
filters, with the paper's agents. Steps of the compared games alternate, so that a change of the machine's load meets
all of them; the ratio is that of the medians. Memory is the peak of a process of its own less that of the Gumbel step
(on a CPU: Linux only).

    python benchmarks/signal_game_step.py [--device cuda] [--repeats 15] [--loop] [--json]
"""

import argparse
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import time

import torch
from torch import nn

from egg_sparse import SparsemaxWrapper, SymbolGameMarg, host
from egg_sparse.zoo.signal_game.archs import PaperSender, Receiver
from egg_sparse.zoo.signal_game.games import loss_nll

BATCH, VOCABULARY, CANDIDATES, FEATURES, EMBEDDING, FILTERS = 64, 256, 16, 4096, 256, 512


class SupportOf(nn.Module):
    """The paper's sender, with scores spread so that sparsemax keeps exactly ``size`` symbols for every example."""

    def __init__(self, sender: nn.Module, size: int) -> None:
        super().__init__()
        self.sender = sender
        self.size = size

    def forward(self, images: torch.Tensor, aux_input: object = None) -> torch.Tensor:
        scores = self.sender(images, aux_input)
        ranks = scores.detach().argsort(dim=1, descending=True).argsort(dim=1)
        return scores * 1e-3 - 10 * (ranks >= self.size)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    sender = PaperSender(FEATURES, EMBEDDING, FILTERS, VOCABULARY, temperature=10.0)
    if name == "gumbel":
        receiver = Receiver(FEATURES, EMBEDDING, VOCABULARY, one_hot=True)
        return host.core.SymbolGameGS(host.core.GumbelSoftmaxWrapper(sender), receiver, loss_nll)
    receiver = Receiver(FEATURES, EMBEDDING, VOCABULARY, one_hot=False)
    if name == "one message":
        agent = host.core.ReinforceWrapper(sender)
        return host.core.SymbolGameReinforce(agent, host.core.ReinforceDeterministicWrapper(receiver), loss_nll)
    kind, _, rest = name.partition(" ")
    if kind == "support":
        return SymbolGameMarg(
            SparsemaxWrapper(SupportOf(sender, int(rest)), support=None), receiver, loss_nll, strategy="vmap"
        )
    options = {"chunks": {"strategy": "vmap", "chunk_size": int(rest or 0)}, "loop": {"strategy": "loop"}}
    return SymbolGameMarg(
        SparsemaxWrapper(sender, "softmax"), receiver, loss_nll, **options.get(kind, {"strategy": "vmap"})
    )


def batch(device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images = torch.nn.functional.normalize(torch.randn(CANDIDATES, BATCH, FEATURES), dim=-1).to(device)
    return images, torch.zeros(BATCH, dtype=torch.long, device=device), images


def step(game: nn.Module, data: tuple) -> float:
    game.zero_grad(set_to_none=True)
    started = time.perf_counter()
    loss, _ = game(*data)
    loss.backward()
    if data[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_memory(name: str, device: str) -> float:
    """Peak memory, in GB, of a process that makes two steps (on a GPU: of the allocated device memory)."""
    code = f"import signal_game_step as b; b.print_peak({name!r}, {device!r})"
    folder = __file__.rsplit("/", 1)[0]
    return float(subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, check=True).stdout)


def print_peak(name: str, device: str) -> None:
    game, data = build(name).to(device), batch(device)
    for _ in range(2):
        step(game, data)
    if device == "cuda":
        print(torch.cuda.max_memory_allocated() / 1e9)
    else:
        # not ru_maxrss, which a forked process starts with its parent's
        status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
        print(int(status["VmHWM"].split()[0]) * 1024 / 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--loop", action="store_true", help="also call the receiver once per symbol (slow)")
    parser.add_argument("--json", action="store_true", help="end with the figures as one JSON object")
    args = parser.parse_args()

    data = batch(args.device)
    labels = {
        "gumbel": "EGG's Gumbel-Softmax game",
        "one message": "EGG's score-function game (one message)",
        "support 1": "SymbolGameMarg, support 1",
        "support 3": "SymbolGameMarg, support 3",
        "support 10": "SymbolGameMarg, support 10",
        "all": "SymbolGameMarg, softmax: all 256 messages",
        "chunks 64": "the same, chunk_size=64",
        "chunks 16": "the same, chunk_size=16",
    }
    if args.loop:
        labels["loop"] = "the same, strategy loop: one call per message"
    games = {name: build(name).to(args.device) for name in labels}
    times: dict[str, list[float]] = {name: [] for name in labels}
    repeats = {name: min(args.repeats, 3) if name == "loop" else args.repeats for name in labels}
    for game in games.values():
        step(game, data)
    for repeat in range(args.repeats):
        for name, game in games.items():
            if repeat < repeats[name]:
                times[name].append(step(game, data))
    base = statistics.median(times["gumbel"])
    base_memory = peak_memory("gumbel", args.device)
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{platform.machine()}, {device}, torch {torch.__version__}, host {host.describe()}")
    print(f"{'':48}{'ms':>8}{'ratio':>8}{'GB above Gumbel':>17}")
    results = {}
    for name, label in labels.items():
        median = statistics.median(times[name])
        memory = peak_memory(name, args.device) - base_memory
        results[name] = {"ms": median * 1e3, "ratio": median / base, "gb_above_gumbel": memory}
        print(f"{label:48}{median * 1e3:8.0f}{median / base:8.2f}{memory:17.2f}")
    if args.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
