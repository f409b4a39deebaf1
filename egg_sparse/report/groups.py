"""Puts the runs of one setting together, and names settings by what tells them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from egg_sparse.report.runs import Run
from egg_sparse.zoo import look
from egg_sparse.zoo.compo_vs_generalization.games import METHODS as METHODS_OF_SEQUENCES
from egg_sparse.zoo.methods import BIT_VECTOR_METHODS, SYMBOL_METHODS

METHODS = {**METHODS_OF_SEQUENCES, **BIT_VECTOR_METHODS, **SYMBOL_METHODS}
"""The methods of all experiments, by ``--mode``."""

NO_SETTINGS = frozenset(
    {"random_seed", "checkpoint_freq", "keep", "keep_best", "gradient_variance", "distributed_port", "data_root"}
)
"""Options that do not change what a run computes but for chance."""

_NO_SETTINGS_BEGIN = ("tensorboard", "wandb")
_FIRST = ("mode", "data")
_LONGEST_VALUE = 80


@dataclass
class Group:
    """The runs of one setting.

    Args:
        title: the name of the setting, by which it differs from the others.
        name: the same without the value of ``--mode``, for plots.
        settings: the options by which the runs are grouped.
        runs: the runs, by seed.
        color: the color of its line.
        style: the style of its line.
    """

    title: str
    name: str
    settings: dict[str, Any]
    runs: list[Run]
    color: str = look.BLUE
    style: Any = "-"

    @property
    def seeds(self) -> list[Any]:
        return list(dict.fromkeys(run.seed for run in self.runs))


def group(runs: Sequence[Run], by: Sequence[str] | None = None) -> list[Group]:
    """Groups runs of one experiment.

    Args:
        runs: the runs.
        by: the options whose values make a group; None for all that differ between runs, but for the seed and options
            that do not change results.

    Returns:
        The groups; those of the methods of egg_sparse come first.

    Raises:
        ValueError: no run has an option.
    """
    known = dict.fromkeys(name for run in runs for name in run.options)
    if by is None:
        names = [name for name in known if is_setting(name) and len({_key(run, name) for run in runs}) > 1]
        names.sort(key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))
        names = names or ["mode"]
    else:
        unknown = [name for name in by if name not in known]
        if unknown:
            raise ValueError(f"--by: no run has the option {unknown[0]}; there are {', '.join(sorted(known))}")
        names = list(by)
    parts: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        parts.setdefault(tuple(_key(run, name) for name in names), []).append(run)
    settings = [{name: part[0].options.get(name) for name in names} for part in parts.values()]
    shown = [_telling(each, settings) if by is None else names for each in settings]
    found = [
        Group(
            _title(each, own, code=True),
            _title(each, own),
            each,
            sorted(part, key=lambda run: (str(run.seed).zfill(12), str(run.folder))),
        )
        for each, own, part in zip(settings, shown, parts.values(), strict=True)
    ]
    methods = list(look.COLORS_OF_METHODS)
    found.sort(key=lambda each: (_position(each.runs[0].mode, methods), each.title))
    looks = look.looks_of([each.runs[0].mode for each in found])
    for each, (color, style) in zip(found, looks, strict=True):
        each.color, each.style = color, style
    return found


def is_setting(name: str) -> bool:
    """Whether an option can change what a run computes, other than by chance."""
    return name not in NO_SETTINGS and not name.startswith(_NO_SETTINGS_BEGIN)


def _key(run: Run, name: str) -> str:
    """The value of an option as text, so that 1 and True differ."""
    return repr(run.options.get(name))


def _position(name: str, names: list[str]) -> int:
    return names.index(name) if name in names else len(names)


def _telling(setting: dict[str, Any], settings: list[dict[str, Any]]) -> list[str]:
    """The method, and the first options that tell the method's settings apart."""
    rivals = [other for other in settings if other.get("mode") == setting.get("mode")]
    shown = [name for name in setting if name == "mode"]
    for name in setting:
        if _classes(rivals, [*shown, name]) > _classes(rivals, shown):
            shown.append(name)
    return shown


def _classes(settings: list[dict[str, Any]], names: Sequence[str]) -> int:
    """The number of settings that differ in these options."""
    return len({tuple(repr(each[name]) for name in names) for each in settings})


def _title(setting: dict[str, Any], names: Sequence[str], code: bool = False) -> str:
    """The name of a setting.

    Args:
        setting: the options and their values.
        names: the options to name.
        code: whether the value of ``--mode`` stands behind the name of the method.
    """
    parts = []
    for name in names:
        value = text_of(setting.get(name))
        if name != "mode":
            parts.append(f"{text_of(name)} {value}")
        elif value in METHODS:
            parts.append(f"{METHODS[value].summary} ({value})" if code else METHODS[value].summary)
        else:
            parts.append(value)
    return ", ".join(parts) or "all runs"


def text_of(value: Any) -> str:
    """A value of an option in one short line."""
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = "".join(char if char.isprintable() else " " for char in str(value)).strip()
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"


def repeated(groups: Sequence[Group]) -> list[str]:
    """A sentence for each seed that a setting has more than one run of."""
    sentences = []
    for each in groups:
        for seed in each.seeds:
            folders = [str(run.folder) for run in each.runs if run.seed == seed]
            if len(folders) > 1:
                sentences.append(
                    f"{each.title} has {len(folders)} runs of seed {seed}, which all count: {', '.join(folders)}."
                )
    return sentences
