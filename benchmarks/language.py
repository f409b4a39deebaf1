"""Time of language statistics, beside EGG's functions for deterministic languages.

Objects of two attributes with 30 values each; messages of three symbols of 31, which say the attributes with errors in
a third of the positions. EGG's functions, of the real EGG or of the stand-in for it, read one message per object; ours
read that, and a language of four messages per object as well. Where the real EGG is not installed, its posdis, which
the stand-in lacks, is left out. A ratio says how many times longer EGG's function takes.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.measure import Settings, Step, Table, milliseconds, ratio, seconds_in_turns
from egg_sparse import SparseDistribution, host
from egg_sparse.language import Language, posdis, topographic_similarity

N_VALUES, LENGTH = 30, 3


def language(n: int, support: int) -> tuple[Language, torch.Tensor]:
    """A language of n objects with so many messages each, and the objects' attributes."""
    generator = torch.Generator().manual_seed(0)
    attributes = torch.randint(0, N_VALUES, (n, 2), generator=generator)
    said = attributes[:, [0, 1, 0]].expand(support, n, LENGTH)
    errors = torch.randint(0, N_VALUES, said.shape, generator=generator)
    wrong = torch.rand(said.shape, generator=generator) < 1 / 3
    messages = torch.where(wrong, errors, said) + 1
    messages[:, :, -1] = torch.arange(1, support + 1)[:, None]  # no message twice
    messages = torch.nn.functional.pad(messages, (0, 1))
    probs = torch.rand(support, n, generator=generator).sort(0, descending=True).values
    lengths = torch.full((support, n), LENGTH + 1)
    distribution = SparseDistribution(messages, probs / probs.sum(0), validate_args=False, lengths=lengths)
    return Language(distribution), attributes


def steps(n: int) -> dict[str, dict[str, Step]]:
    """Ours, ours of four messages per object, and EGG's, which may be missing, by the name of the statistic."""
    one, attributes = language(n, 1)
    four, _ = language(n, 4)
    messages = one.positions[:, :LENGTH]
    found: dict[str, dict[str, Step]] = {
        "topographic similarity": {
            "ours": lambda: topographic_similarity(one, attributes),
            "four": lambda: topographic_similarity(four, attributes),
            "EGG": lambda: host.core.TopographicSimilarity.compute_topsim(attributes, messages, "hamming", "edit"),
        },
        "posdis": {"ours": lambda: posdis(one, attributes), "four": lambda: posdis(four, attributes)},
    }
    if host.is_egg():
        egg: Any = host.core
        found["posdis"]["EGG"] = lambda: egg.Disent.posdis(attributes, messages)
    return found


def tables(settings: Settings) -> list[Table]:
    """One table, a row for each statistic and number of objects."""
    table = Table("language", "Language statistics: milliseconds, and how many times longer EGG's functions take")
    for n in (20,) if settings.quick else (100, 400):
        for name, compared in steps(n).items():
            seconds = seconds_in_turns(compared, settings.repeated(3), settings.device)
            table.rows.append(
                {
                    "statistic, objects": f"{name}, {n}",
                    "ms": milliseconds(seconds["ours"]),
                    "four messages per object, ms": milliseconds(seconds["four"]),
                    "EGG's ms": milliseconds(seconds["EGG"]) if "EGG" in seconds else None,
                    "ratio": ratio(seconds["EGG"], seconds["ours"]) if "EGG" in seconds else None,
                }
            )
    return [table]
