"""What the site has beside the pages of docs/: the repository's other Markdown files, and the files that pages link to.

On GitHub, pages link to each other by their places in the repository. On the site the same links lead to its pages.
"""

from __future__ import annotations

import functools
import os
import pathlib
import re
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parent.parent.parent
_LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\[\]]*\])*\])\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")
_CODE_BLOCK = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)


@functools.cache
def pages() -> dict[str, str]:
    """The Markdown files outside docs/ that become pages: their places in the repository, and in the site."""
    found = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
    found["examples/README.md"] = "examples/index.md"
    for pattern, folder in (("egg_sparse/zoo/*/README.md", "zoo"), ("examples/*/README.md", "examples")):
        for file in sorted(ROOT.glob(pattern)):
            found[file.relative_to(ROOT).as_posix()] = f"{folder}/{file.parent.name}.md"
    return found


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages outside docs/, and the files outside it that pages link to."""
    for source, place in pages().items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    for page in files.documentation_pages():
        for _, target, _ in _LINK.findall(_CODE_BLOCK.sub("", page.content_string)):
            source = _source(page.src_uri, target)
            place = _place(source)
            if place is not None and files.get_file_from_path(place) is None and (ROOT / source).exists():
                files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns links between places in the repository into links between places in the site."""

    def to_site(link: re.Match[str]) -> str:
        text, target, anchor = link.groups()
        source = _source(page.file.src_uri, target)
        place = _place(source)
        if place is None:
            return text[1:-1]
        if text[1:-1].endswith(".md") and (ROOT / source).exists():
            text = f"[{_title(source)}]"
        return f"{text}({os.path.relpath(place, os.path.dirname(page.file.src_uri) or '.')}{anchor or ''})"

    parts = _CODE_BLOCK.split(markdown)
    parts[::2] = [_LINK.sub(to_site, part) for part in parts[::2]]
    return "".join(parts)


def _source(page: str, target: str) -> str:
    """The place in the repository of what a page of the site links to."""
    source = {place: source for source, place in pages().items()}.get(page, f"docs/{page}")
    return os.path.normpath(os.path.join(os.path.dirname(source), target))


def _place(source: str) -> str | None:
    """The place in the site of a file of the repository; None for a folder, which the site does not show."""
    if source in pages():
        return pages()[source]
    if (ROOT / source).is_dir():
        return None
    return source.removeprefix("docs/") if source.startswith("docs/") else f"files/{source}"


def _title(source: str) -> str:
    """The first heading of a Markdown file of the repository."""
    return (ROOT / source).read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")


def on_page_content(content: str, page: Any, config: Any, files: Files) -> str:
    """Keeps short code, and means and their deviations, in one line."""
    content = re.sub(r"(?<!</span>)<code>([^<]{1,32})</code>", r'<code class="whole">\1</code>', content)
    return re.sub(r"(?<=\d) ± (?=\d)", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}", content)
