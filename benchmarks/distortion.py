"""Time and memory of the bit-vector VAE's likelihood, forward and backward, beside plain cross-entropy.

640 decoded messages of 28 x 28 pixels with 256 grey levels, from 5 features per pixel: 64 images with 10 messages each.
Memory is the peak of a process of its own, less that of one that only makes the inputs (on a CPU: Linux only).

    python benchmarks/distortion.py [--device cuda] [--messages 640] [--repeats 5]
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from egg_sparse.zoo.bit_vector_vae.distortion import categorical_distortion

PIXELS, RANK, LEVELS = 784, 5, 256


def plain(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    logits = F.linear(features.flatten(0, 1), weight, bias)
    return F.cross_entropy(logits, levels.flatten().long(), reduction="none").view(levels.shape).sum(1)


METHODS = {"plain": plain, "categorical_distortion": categorical_distortion}
if hasattr(F, "linear_cross_entropy"):

    def linear_cross_entropy(
        features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, levels: torch.Tensor
    ) -> torch.Tensor:
        options = torch.nn.LinearCrossEntropyOptions()
        flat, targets = features.flatten(0, 1), levels.flatten().long()
        losses = F.linear_cross_entropy(flat, weight, targets, linear_bias=bias, reduction="none", options=options)
        return losses.view(levels.shape).sum(1)

    METHODS["torch's linear_cross_entropy"] = linear_cross_entropy


def measure(name: str, device: torch.device, messages: int, repeats: int) -> dict[str, float]:
    torch.manual_seed(0)
    inputs = [
        (0.3 * torch.randn(*shape, device=device)).requires_grad_()
        for shape in ((messages, PIXELS, RANK), (LEVELS, RANK), (LEVELS,))
    ]
    levels = torch.randint(0, LEVELS, (messages, PIXELS), dtype=torch.uint8, device=device)
    weights = torch.rand(messages, device=device)
    times = []
    for _ in range(repeats if name in METHODS else 0):
        start = time.perf_counter()
        torch.autograd.grad((METHODS[name](*inputs, levels) * weights).sum(), inputs)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"ms": 1000 * statistics.median(times) if times else 0.0, "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--messages", type=int, default=640)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(measure(options.alone, options.device, options.messages, options.repeats)))
        return
    where = torch.cuda.get_device_name() if options.device.type == "cuda" else platform.processor() or "CPU"
    print(f"torch {torch.__version__}, {where}, {torch.get_num_threads()} threads, {options.messages} messages\n")
    found = {}
    for name in ("inputs", *METHODS):
        result = subprocess.run(
            [sys.executable, *sys.argv, "--alone", name], stdout=subprocess.PIPE, text=True, check=True
        )
        found[name] = json.loads(result.stdout)
    print("| | ms | times faster | GB | times less |\n| --- | ---: | ---: | ---: | ---: |")
    for name in METHODS:
        ms, memory = found[name]["ms"], (found[name]["peak"] - found["inputs"]["peak"]) / 2**30
        base = (found["plain"]["peak"] - found["inputs"]["peak"]) / 2**30
        print(f"| {name} | {ms:.0f} | {found['plain']['ms'] / ms:.1f} | {memory:.2f} | {base / memory:.1f} |")


if __name__ == "__main__":
    main()
