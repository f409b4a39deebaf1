"""Success of the methods in the game of objects, each at the best setting of its grid.

python -m benchmarks.sequence_methods [--vocab_size 40 --max_len 2] [--seeds 1,2,3,4,5] [--out FILE.json] [--quick]

Every method has the same number of trials, six, with the first seed: two learning rates by three entropy coefficients,
or temperatures of Gumbel-Softmax. The best trial has the highest success on training objects, then on combinations that
are not in the training data; its setting is run with all seeds. REINFORCE and Gumbel-Softmax are run for as many
steps as the exact sum, and for about as many seconds; their trials have the steps that take as long. The runs are those
of ``python -m egg_sparse.zoo.compo_vs_generalization``, and the file keeps the options and results of all of them.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import device

from benchmarks.measure import machine

GAME = [sys.executable, "-W", "ignore", "-m", "egg_sparse.zoo.compo_vs_generalization", "--no_cuda"]
LEARNING_RATES = (0.001, 0.003)
#: The options of a method, and the option that its grid varies beside the learning rate.
METHODS: dict[str, tuple[dict[str, Any], str, tuple[float, ...]]] = {
    "marg, sparsemax": ({"mode": "marg", "normalizer": "sparsemax"}, "sender_entropy_coeff", (0.0, 0.03, 0.1)),
    "marg, entmax15": ({"mode": "marg", "normalizer": "entmax15"}, "sender_entropy_coeff", (0.0, 0.03, 0.1)),
    "rf": ({"mode": "rf"}, "sender_entropy_coeff", (0.05, 0.1, 0.5)),
    "gs": ({"mode": "gs"}, "temperature", (1.0, 1.5, 2.0)),
}
KEPT = ("acc_train", "acc_unseen", "acc_or_train", "acc_or_unseen", "length", "topsim", "posdis", "bosdis", "support")


def run(options: dict[str, Any]) -> dict[str, Any]:
    """The options, the results and the seconds of training of a run."""
    flags = [f"--{name}={value}" for name, value in options.items()]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([*GAME, *flags, f"--out={folder}/run"], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the run with {' '.join(flags)} failed: {done.stderr}")
        results = json.loads(done.stdout.splitlines()[-1])
    found = {"options": options, **{name: results.get(name) for name in KEPT}, "seconds": results.get("seconds")}
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def trials(name: str, common: dict[str, Any]) -> list[dict[str, Any]]:
    """The options of the trials of a method."""
    method, varied, values = METHODS[name]
    return [{**common, **method, "lr": lr, varied: value} for lr in LEARNING_RATES for value in values]


def quality(run: dict[str, Any]) -> tuple[float, float]:
    return run["acc_train"], run["acc_unseen"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,3,4,5", help="seeds of the final runs; the first is that of the trials")
    parser.add_argument("--vocab_size", type=int, default=40, help="symbols in the vocabulary")
    parser.add_argument("--max_len", type=int, default=2, help="symbols in the longest message")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of the exact sum")
    parser.add_argument("--ratio", type=int, default=3, help="steps of the sampling methods in as many seconds")
    parser.add_argument("--processes", type=int, default=2, help="runs side by side")
    parser.add_argument("--quick", action="store_true", help="two seeds and an epoch")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("sequence_methods.json"), help="the file")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    epochs = args.epochs
    if args.quick:
        seeds, epochs = seeds[:2], 1
    common = {
        "random_seed": seeds[0],
        "validation_freq": 0,
        "checkpoint_freq": 0,
        "hold_out": 0.2,
        "vocab_size": args.vocab_size,
        "max_len": args.max_len,
    }

    def in_steps(name: str, equal: str) -> dict[str, int]:
        return {"n_epochs": epochs * (args.ratio if equal == "seconds" and not name.startswith("marg") else 1)}

    with ThreadPoolExecutor(args.processes) as pool:
        grid = {
            name: [pool.submit(run, {**options, **in_steps(name, "seconds")}) for options in trials(name, common)]
            for name in METHODS
        }
        found = {name: [future.result() for future in futures] for name, futures in grid.items()}
        final = {}
        for name in METHODS:
            best = max(found[name], key=quality)["options"]
            for equal in ("seconds",) if name.startswith("marg") else ("steps", "seconds"):
                final[name, equal] = [
                    pool.submit(run, {**best, "random_seed": seed, **in_steps(name, equal)}) for seed in seeds
                ]
        results: list[dict[str, Any]] = [
            {"method": name, "equal": equal, "runs": [future.result() for future in futures]}
            for (name, equal), futures in final.items()
        ]
    content = {"machine": machine(device("cpu")), "trials": found, "results": results}
    args.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for row in results:
        print(row["method"], f"equal {row['equal']}", row["runs"][0]["options"])
        for key in (*KEPT, "seconds"):
            values = [run[key] for run in row["runs"] if run[key] is not None]
            if values:
                print(f"    {key} {statistics.mean(values):.3f} ± {statistics.pstdev(values):.3f}")


if __name__ == "__main__":
    main()
