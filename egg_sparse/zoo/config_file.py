"""Reads files of options, in YAML or JSON: ``--config``."""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import pathlib
from typing import Any, NoReturn

_LARGEST = 100_000  # bytes
ON_THE_COMMAND_LINE = ("config", "debug", "evaluate", "help", "quick", "resume", "version")
"""Options that say what a command does, and have no place in a file."""


def read(parser: argparse.ArgumentParser, file: str) -> dict[str, Any]:
    """The options in a file, by name: numbers, texts, True and False of switches, and None for what has no value.

    A file whose name ends in neither .json nor .yaml or .yml is JSON if it begins with a brace, else YAML. What is
    wrong with it is an error of the parser. Whether an option takes its value is left to the parser.

    Args:
        parser: the parser that knows the options.
        file: the path of the file.

    Raises:
        ImportError: it is YAML, and pyyaml is not installed.
    """

    def refuse(what: str) -> NoReturn:
        parser.error(f"--config: {file}: {what}")

    path = pathlib.Path(file)
    try:
        if path.stat().st_size > _LARGEST:
            refuse(f"it has more than {_LARGEST:,} bytes, which no file of options has")
        text = path.read_text(encoding="utf-8")
        found = _parsed(text, path.suffix.lower())
    except OSError as error:
        refuse(f"it cannot be read: {error.strerror or error}")
    except (ValueError, RecursionError) as error:
        refuse(f"it is damaged, or neither YAML nor JSON: {' '.join(str(error).split())}")
    if not isinstance(found, dict):
        refuse(f"it must have options by name, such as lr: 0.01, got {_kind(found)}")
    for name, value in found.items():
        wrong = _wrong(parser, name, value)
        if wrong:
            refuse(wrong)
    return found


def _parsed(text: str, suffix: str) -> Any:
    """What a text says.

    Raises:
        ValueError, RecursionError: it is damaged, or names an option twice.
    """
    if suffix == ".json" or (suffix not in (".yaml", ".yml") and text.lstrip().startswith("{")):
        return json.loads(text, object_pairs_hook=_once)
    try:
        yaml = importlib.import_module("yaml")
    except ImportError as error:
        raise ImportError(f"a YAML file needs pyyaml: pip install 'egg_sparse[zoo]' ({error})") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if isinstance(node, yaml.MappingNode):
            _once([(key.value if isinstance(key.value, str) else "", None) for key, _ in node.value])
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dictionary.

    Raises:
        ValueError: a name is there twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise ValueError(f"{twice} is there twice")
    return found


def _wrong(parser: argparse.ArgumentParser, name: Any, value: Any) -> str | None:
    """What is wrong with an option, or None."""
    actions = parser._option_string_actions
    options = {text.removeprefix("--"): action for text, action in actions.items() if text.startswith("--")}
    if not isinstance(name, str) or name not in options:
        close = difflib.get_close_matches(str(name), options, n=3)
        meant = f"; did you mean {' or '.join(close)}?" if close else ""
        return f"there is no option {name!r}{meant}"
    if name in ON_THE_COMMAND_LINE:
        return f"{name} belongs on the command line"
    if value is None:
        return None
    is_switch = options[name].nargs == 0
    if is_switch:
        return None if isinstance(value, bool) else f"{name} must be true or false, got {value!r}"
    if isinstance(value, bool):
        return f'{name} must have a value, got {str(value).lower()}; words such as no and on need quotes in YAML: "no"'
    if not isinstance(value, (int, float, str)):
        return f"{name} must have a number or a text, got {_kind(value)}"
    return None


def _kind(value: Any) -> str:
    kinds = {dict: "options within it", list: "a list", type(None): "nothing"}
    return kinds.get(type(value), f"a {type(value).__name__}")
