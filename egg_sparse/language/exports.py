"""Languages for other tools: arrays as emlangkit takes them, a corpus as ELCC stores it."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import torch

from egg_sparse.language.attributes import columns_of
from egg_sparse.language.language import Language


def sent_messages(language: Language, samples: int = 0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """One message per input, or several that are drawn.

    Args:
        language: the language.
        samples: the number of messages drawn per input; 0 for the most probable message alone.
        seed: the seed of the draws.

    Returns:
        The messages ``(n, L)``, and the input of each ``(n,)``, one input after the other, on the CPU.

    Raises:
        ValueError: ``samples`` is negative.

    Example:
        >>> language = Language.of_messages(torch.tensor([[5, 3, 0], [5, 0, 3]]))
        >>> sent_messages(language)
        (tensor([[5, 3, 0],
                [5, 0, 0]]), tensor([0, 1]))
    """
    if samples < 0:
        raise ValueError(f"samples must be at least 0, got {samples}")
    if not samples:
        greedy = language.greedy()
        return greedy.positions.cpu(), greedy.inputs.cpu()
    inputs, order = language.inputs.cpu().sort(stable=True)
    probs = language.probs.cpu()[order]
    ends = probs.cumsum(0)
    last = torch.bincount(inputs, minlength=len(language)).cumsum(0) - 1
    starts = torch.cat((ends.new_zeros(1), ends[last[:-1]]))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(len(language), samples, generator=generator, dtype=torch.double)
    points = starts[:, None] + drawn * (ends[last] - starts)[:, None]
    pairs = torch.minimum(torch.searchsorted(ends, points, right=True), last[:, None])
    sent = language.messages.cpu()[language.index.cpu()[order]][pairs.flatten()]
    return sent, torch.arange(len(language)).repeat_interleave(samples)


def emlangkit_arrays(
    language: Language, attributes: torch.Tensor, samples: int = 0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The messages and observations that ``emlangkit.Language`` takes.

    Args:
        language: the language.
        attributes: the inputs' attributes ``(N, A)``.
        samples: the number of messages drawn per input; 0 for the most probable message alone.
        seed: the seed of the draws.

    Returns:
        Whole numbers ``(n, L)``, 0 from the end symbol of a sequence on, and the attributes ``(n, A)``.

    Raises:
        ValueError: ``attributes`` are not of one row per input.

    Example:
        >>> attributes = torch.cartesian_prod(torch.arange(2), torch.arange(2))
        >>> messages, observations = emlangkit_arrays(Language.of_messages(attributes + 1), attributes)
        >>> messages.shape, observations.shape
        ((4, 2), (4, 2))
    """
    observations = columns_of(language, attributes).cpu()
    messages, inputs = sent_messages(language, samples, seed)
    if language.kind == "sequences":
        messages = messages[:, : max(1, int(language.lengths.max()))]
    return messages.numpy(), observations[inputs].numpy()


def write_elcc(
    language: Language,
    folder: str | pathlib.Path,
    name: str,
    variant: str = "default",
    metadata: dict[str, Any] | None = None,
    analysis: dict[str, Any] | None = None,
    samples: int = 0,
    seed: int = 0,
) -> pathlib.Path:
    """Writes a corpus in the layout of the Emergent Language Corpus Collection (ELCC).

    The files are ``FOLDER/systems/NAME/metadata.yml`` with the keys ``origin`` and ``system``, and in
    ``data/VARIANT/`` below it ``corpus.jsonl``, where each line is a message as an array of whole numbers, without the
    end symbol, and ``metadata.json`` with an analysis.

    Args:
        language: the language.
        folder: the root of the collection.
        name: the name of the system, such as "signal-game".
        variant: the name of the run or the setting, such as "seed-1".
        metadata: what is known of the system, such as ``game_type`` and ``game_subtype``; other keys of ELCC's
            ``system`` have the values of a signaling game of two agents, and this replaces them. ``paper``, ``source``
            and ``upstream_source`` go to ``origin``, and ``options``, a dict, describes the variant.
        analysis: the content of ``metadata.json``, such as :func:`egg_sparse.language.statistics`; None to write none.
        samples: the number of messages drawn per input; 0 for the most probable message alone.
        seed: the seed of the draws.

    Returns:
        The path of ``corpus.jsonl``.

    Raises:
        OSError: the folder cannot be written to.
        ValueError: ``name`` or ``variant`` is no name of a folder.

    Source: Boldt and Mortensen, "ELCC: the Emergent Language Corpus Collection" (2024).
    """
    for argument, value in (("name", name), ("variant", variant)):
        if not value or value in (".", "..") or set(value) & set("/\\\0"):
            raise ValueError(f"{argument} must be the name of a folder, got {value!r}")
    system = pathlib.Path(folder) / "systems" / name
    data = system / "data" / variant
    data.mkdir(parents=True, exist_ok=True)
    messages, _ = sent_messages(language, samples, seed)
    is_symbol = messages != 0 if language.kind == "sequences" else torch.ones_like(messages)
    lines = (json.dumps(row[:n]) for row, n in zip(messages.tolist(), is_symbol.sum(1).tolist(), strict=True))
    corpus = data / "corpus.jsonl"
    corpus.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    known = dict(metadata or {})
    origin: dict[str, Any] = {"name": name}
    origin |= {key: known.pop(key) for key in ("source", "upstream_source", "paper") if key in known}
    file = system / "metadata.yml"
    variants = {**_variants(file), variant: known.pop("options", {})}
    described = {
        "game_type": "signalling",
        "data_source": "synthetic",
        "observation_type": "vector",
        "observation_continuous": False,
        "seeding_available": True,
        "multi_step": False,
        "multi_utterance": False,
        "more_than_2_agents": False,
        "symmetric_agents": False,
        **known,
        "variants": variants,
    }
    # JSON is YAML, too
    file.write_text(json.dumps({"origin": origin, "system": described}, indent=2) + "\n", encoding="utf-8")
    if analysis is not None:
        (data / "metadata.json").write_text(json.dumps(analysis, indent=2) + "\n", encoding="utf-8")
    return corpus


def _variants(file: pathlib.Path) -> dict[str, Any]:
    """The variants that a system's metadata already describes, if this module wrote them."""
    try:
        variants = json.loads(file.read_text(encoding="utf-8"))["system"]["variants"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return variants if isinstance(variants, dict) else {}
