"""Formulas as MathML, which browsers draw without a script: arithmatex finds them, latex2mathml converts them."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def mathml(latex: str, display: str) -> str:
    """A formula as a MathML element.

    Args:
        latex: the formula.
        display: "inline" or "block".

    Raises:
        ValueError: a command that latex2mathml does not know.
    """
    found: str = convert(re.sub(r"\\arg\s*\\(min|max)", r"\\operatorname{arg\1}", latex), display=display)
    if "\\" in found:
        raise ValueError(f"latex2mathml does not know a command of {latex!r}: {found}")
    return found


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """Converts the formulas of a page."""

    def converted(formula: re.Match[str]) -> str:
        latex = html.unescape(formula[3]).strip()
        return mathml(latex, "inline") if formula[2] == "(" else f'<div class="formula">{mathml(latex, "block")}</div>'

    return _FORMULA.sub(converted, content)
