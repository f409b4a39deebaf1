"""An experiment outside the zoo: it says that it ran, waits, and may fail."""

import argparse
import json
import pathlib
import time


def main(params):
    parser = argparse.ArgumentParser("toy_experiment")
    parser.add_argument("--x", type=int, default=0)
    parser.add_argument("--title", default="none")
    parser.add_argument("--wait", type=float, default=0.0)
    parser.add_argument("--fail", action="store_true")
    parser.add_argument("--no_cuda", action="store_true")
    parser.add_argument("--random_seed", type=int, required=True)
    opts = parser.parse_args(params)
    with pathlib.Path("ran").open("a") as file:
        file.write(f"{opts.x} {opts.random_seed} {opts.title}\n")
    print(json.dumps({"acc": opts.x / 10, "epoch": 1}), flush=True)
    mended = pathlib.Path("mended").exists()
    time.sleep(0.0 if mended else opts.wait)
    if opts.fail and not mended:
        raise ValueError(f"x must not be {opts.x}")
