"""Time of the mappings to bit-vectors, beside the official code and lp-sparsemap.

Standard normal scores; the budget is a quarter of the bits; forward and backward, top-k forward alone. Where the
official code of the paper (the package lvmhelpers of deep-spin/sparse-marginalization-lvm) or lp-sparsemap is
installed (docs/lp-sparsemap.md), it solves the same scores in the same run, one example after the other, and the ratio
says how many times longer it takes. The official code starts from the best structure and stops at a gap of 1e-9, or
after 100 iterations, of which an entry of a structure takes two. On CUDA the number of synchronizations with the device
is counted instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measure import Settings, Step, Table, milliseconds, ratio, seconds_in_turns, synchronizations
from egg_sparse.mappings import sparsemap_bit_vectors, sparsemap_chain, topk_bit_vectors, topk_sparsemax

try:
    import lvmhelpers.pbinary_topk as official_topk
    import lvmhelpers.sparsemap as official
except ImportError:
    official = official_topk = None
try:
    import lpsmap
except ImportError:
    lpsmap = None

SIZES = ((64, 32), (64, 128), (512, 32), (1024, 128))
#: The largest number of scores that the active set, the other solvers of chains, and larger k are measured with.
LARGEST_ACTIVE_SET, LARGEST_CHAINS, LARGEST_TOP_50 = 512 * 32, 64 * 128, 64 * 32


def solved(solve: Callable[[], Any]) -> Step:
    """A step that solves, and goes back from the squared probabilities."""
    return lambda: solve().probs.square().sum().backward()


def one_by_one(solve: Callable[..., Any], *inputs: torch.Tensor) -> Step:
    """The same for the official code, which solves one example."""

    def step() -> None:
        sum(solve(*example)[0].square().sum() for example in zip(*inputs, strict=True)).backward()

    return step


def steps(batch: int, n_bits: int, device: torch.device) -> dict[str, tuple[Step, Step | None, Step | None]]:
    """Ours, the official one and lp-sparsemap's, which may be None, by the name of the mapping."""
    torch.manual_seed(0)
    x = torch.randn(batch, n_bits, device=device, requires_grad=True)
    t = torch.randn(batch, n_bits - 1, device=device, requires_grad=True)
    budget, n_scores, values = n_bits // 4, batch * n_bits, x.detach()
    with_official, with_lpsmap = (module is not None and device.type == "cpu" for module in (official, lpsmap))
    bits = one_by_one(lambda s: official.bernoulli_smap(s, 100, False), x) if with_official else None
    limited = one_by_one(lambda s: official.budget_smap(s, budget, 100, False), x) if with_official else None
    chains = one_by_one(lambda s, u: official.sequence_smap(s, u, 100, False), x, t) if with_official else None
    bits_of_lpsmap = solved(lambda: sparsemap_bit_vectors(x, None, "active_set", "lpsmap")) if with_lpsmap else None

    def official_top(k: int) -> Step | None:
        vectors = torch.empty(batch, k, n_bits)
        return (lambda: official_topk.batched_topk(values.numpy(), vectors.numpy(), k)) if with_official else None

    found: dict[str, tuple[Step, Step | None, Step | None]] = {
        "systematic": (solved(lambda: sparsemap_bit_vectors(x)), bits, bits_of_lpsmap),
        "threshold": (solved(lambda: sparsemap_bit_vectors(x, None, "threshold")), bits, bits_of_lpsmap),
        "systematic, budget": (solved(lambda: sparsemap_bit_vectors(x, budget)), limited, None),
    }
    if n_scores <= LARGEST_ACTIVE_SET:
        found["active set"] = solved(lambda: sparsemap_bit_vectors(x, None, "active_set")), bits, bits_of_lpsmap
        found["active set, budget"] = solved(lambda: sparsemap_bit_vectors(x, budget, "active_set")), limited, None
    found["chain"] = solved(lambda: sparsemap_chain(x, t)), None, None
    if n_scores <= LARGEST_CHAINS:
        chain_of_lpsmap = solved(lambda: sparsemap_chain(x, t, solver="lpsmap")) if with_lpsmap else None
        found["chain"] = found["chain"][0], chains, chain_of_lpsmap
        found["chain, active set"] = solved(lambda: sparsemap_chain(x, t, "active_set")), chains, chain_of_lpsmap
    found["top 10, forward"] = (lambda: topk_bit_vectors(values, 10)), official_top(10), None
    found["top 10"] = solved(lambda: topk_sparsemax(x, 10)), None, None
    if n_scores <= LARGEST_TOP_50:
        found["top 50, forward"] = (lambda: topk_bit_vectors(values, 50)), official_top(50), None
        found["top 10,000"] = solved(lambda: topk_sparsemax(x, 10_000)), None, None
    return found


def tables(settings: Settings) -> list[Table]:
    """One table, a row for each mapping and size."""
    table = Table("bit_vector_mappings", "Mappings to bit-vectors: milliseconds, and how many times longer others take")
    sizes = ((4, 8),) if settings.quick else SIZES if settings.device.type == "cpu" else (*SIZES, (4096, 128))
    for batch, n_bits in sizes:
        for name, (ours, theirs, reference) in steps(batch, n_bits, settings.device).items():
            compared = {"ours": ours, "official": theirs, "lp-sparsemap": reference}
            present = {who: step for who, step in compared.items() if step is not None}
            seconds = seconds_in_turns(present, settings.repeated(5), settings.device)
            row: dict[str, Any] = {"mapping, examples x bits": f"{name}, {batch}x{n_bits}"}
            row["ms"] = milliseconds(seconds["ours"])
            for who in ("official", "lp-sparsemap"):
                row[f"{who} ms"] = milliseconds(seconds[who]) if who in seconds else None
                row[f"{who} ratio"] = ratio(seconds[who], seconds["ours"]) if who in seconds else None
            row["synchronizations"] = synchronizations(ours, settings.device)
            table.rows.append(row)
    return [table]
