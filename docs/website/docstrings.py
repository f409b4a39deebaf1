"""Docstrings as Markdown: they have Google's sections, the roles and formulas of reST, and examples of doctest."""

from __future__ import annotations

import re
from typing import Any

import griffe

_SECTIONS = re.compile(r"^Example:", re.MULTILINE)
_FORMULA = re.compile(r"^( *)\.\. math::(.*(?:\n(?:\1 +.*)?(?=\n|$))*)", re.MULTILINE)
_INLINE_FORMULA = re.compile(r":math:`([^`]*)`")
_NAME = re.compile(r":(class|func|meth|mod|attr|data):`(~?)([^`]*)`")


class RestRoles(griffe.Extension):
    """Turns the roles and formulas of docstrings into Markdown, with links to what they name."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value, obj)


def markdown(text: str, obj: griffe.Object) -> str:
    """The Markdown of a docstring of an object."""
    text = _SECTIONS.sub("Examples:", text)
    text = _FORMULA.sub(_block, text)
    text = _INLINE_FORMULA.sub(lambda match: f"${match[1]}$", text)
    return _NAME.sub(lambda match: _link(match, obj), text)


def _block(match: re.Match[str]) -> str:
    indent, formula = match.groups()
    formula = " ".join(line.strip() for line in formula.splitlines())
    return f"{indent}$$ {formula.strip()} $$\n"


def _link(match: re.Match[str], obj: griffe.Object) -> str:
    kind, is_short, name = match.groups()
    shown = name.split(".")[-1] if is_short else name
    shown += "()" if kind in ("func", "meth") else ""
    return f'<autoref optional identifier="{_path(name, obj)}"><code>{shown}</code></autoref>'


def _path(name: str, obj: griffe.Object) -> str:
    """The full name of what a docstring of an object calls ``name``: a member of it or of what it is in."""
    first, _, rest = name.partition(".")
    scope: Any = obj
    while scope is not None and first != "egg_sparse":
        if first in scope.all_members:  # with those that a class inherits
            member = scope.all_members[first]
            path: str = member.target_path if member.is_alias else member.path
            return f"{path}.{rest}" if rest else path
        scope = scope.parent
    return name
