"""Time of the mappings to bit-vectors, forward and backward, beside the official code and lp-sparsemap.

Standard normal scores; the budget is a quarter of the bits. Where the official code of the paper (the package
lvmhelpers of deep-spin/sparse-marginalization-lvm) or lp-sparsemap is installed, it solves the same scores in the same
run, one example after the other, and the ratio says how many times longer it takes. On CUDA the number of
synchronisations with the device is counted as well.

    python benchmarks/bit_vector_mappings.py [--device cuda] [--sizes 64x32 64x128] [--repeats 7]
"""

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable

import torch

from egg_sparse.mappings import sparsemap_bit_vectors, sparsemap_chain, topk_bit_vectors

try:
    import lvmhelpers.pbinary_topk as official_topk
    import lvmhelpers.sparsemap as official
except ImportError:
    official = official_topk = None
try:
    import lpsmap
except ImportError:
    lpsmap = None

TOP_K = {"64x32": (10, 50), "64x128": (10,), "1024x128": (10,)}


def median_ms(step: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median over ``repeats`` measurements, each of as many steps as take 20 ms."""

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / steps

    run(1)
    steps = max(1, int(0.02 / run(1)))
    return 1000 * statistics.median(run(steps) for _ in range(repeats))


def synchronisations(step: Callable[[], object], device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    step()
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step()
    torch.cuda.set_sync_debug_mode("default")
    return str(sum("synchronizing" in str(warning.message) for warning in caught))


def row(name: str, ours: float, others: dict[str, float | None], synced: str) -> None:
    cells = [f"{ours:.2f}"]
    for other in others.values():
        cells += ["", ""] if other is None else [f"{other:.2f}", f"{other / ours:.1f}"]
    print("| " + " | ".join([name, *cells, synced]) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--sizes", nargs="+", default=["64x32", "64x128", "512x32", "1024x128"])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    if options.device.type == "cuda" and options.sizes == parser.get_default("sizes"):
        options.sizes = [*options.sizes, "4096x128"]
    where = torch.cuda.get_device_name() if options.device.type == "cuda" else platform.processor() or "CPU"
    print(f"torch {torch.__version__}, {where}, {torch.get_num_threads()} threads\n")
    print("| mapping, examples x bits | ms | official ms | ratio | lp-sparsemap ms | ratio | synchronisations |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for size in options.sizes:
        batch, n_bits = (int(number) for number in size.split("x"))
        torch.manual_seed(0)
        scores = torch.randn(batch, n_bits, device=options.device, requires_grad=True)
        transitions = torch.randn(batch, n_bits - 1, device=options.device, requires_grad=True)
        budget = n_bits // 4
        large = batch * n_bits > 64 * 128

        def measured(step: Callable[[], object], repeats: int = options.repeats) -> float:
            return median_ms(step, repeats, options.device)

        def solved(solve: Callable[[], object]) -> Callable[[], object]:
            return lambda: solve().probs.square().sum().backward()

        def one_by_one(solve: Callable[..., object], *inputs: torch.Tensor) -> Callable[[], object]:
            def step() -> None:
                sum(solve(*example)[0].square().sum() for example in zip(*inputs, strict=True)).backward()

            return step

        def beside(name: str, solve: Callable[[], object], theirs: object, reference: object, size: str = size) -> None:
            step = solved(solve)
            slow = options.device.type == "cuda"
            others = {
                "official": measured(theirs, 3) if theirs is not None and not slow else None,
                "lpsmap": measured(solved(reference), 3) if reference is not None and not slow else None,
            }
            row(f"{name}, {size}", measured(step), others, synchronisations(step, options.device))

        theirs = official and one_by_one(lambda x: official.bernoulli_smap(x, 100, False), scores)
        reference = lpsmap and (lambda s=scores: sparsemap_bit_vectors(s, None, "active_set", "lpsmap"))
        limited = official and one_by_one(lambda x, b=budget: official.budget_smap(x, b, 100, False), scores)
        sequences = official and one_by_one(lambda x, t: official.sequence_smap(x, t, 100, False), scores, transitions)
        beside("systematic", lambda s=scores: sparsemap_bit_vectors(s), theirs, reference)
        beside("threshold", lambda s=scores: sparsemap_bit_vectors(s, None, "threshold"), theirs, reference)
        beside("systematic, budget", lambda s=scores, b=budget: sparsemap_bit_vectors(s, b), limited, None)
        if not large or batch * n_bits <= 512 * 32:
            beside("active set", lambda s=scores: sparsemap_bit_vectors(s, None, "active_set"), theirs, reference)
            beside(
                "active set, budget",
                lambda s=scores, b=budget: sparsemap_bit_vectors(s, b, "active_set"),
                limited,
                None,
            )
        if not large:
            chain = lpsmap and (lambda s=scores, t=transitions: sparsemap_chain(s, t, "lpsmap"))
            beside("chain", lambda s=scores, t=transitions: sparsemap_chain(s, t), sequences, chain)
        values = scores.detach()
        for k in TOP_K.get(size, ()):

            def step(k: int = k, values: torch.Tensor = values) -> object:
                return topk_bit_vectors(values, k)

            def theirs_topk(k: int = k, values: torch.Tensor = values) -> object:
                vectors = torch.empty(len(values), k, values.shape[1])
                return official_topk.batched_topk(values.numpy(), vectors.numpy(), k)

            other = measured(theirs_topk) if official_topk and options.device.type == "cpu" else None
            synced = synchronisations(step, options.device)
            row(f"top {k}, forward, {size}", measured(step), {"official": other, "lpsmap": None}, synced)


if __name__ == "__main__":
    main()
