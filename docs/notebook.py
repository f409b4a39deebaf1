"""Makes the tutorial's notebook from its page, runs it, and shows its outputs and its picture in the page.

    python docs/notebook.py

The page, tutorial.md, is the source. Its code blocks are the notebook's cells, and the text between them is text there.
The blocks that begin with ```text and the picture are outputs.
"""

from __future__ import annotations

import base64
import pathlib
import re
from typing import Any

import nbformat
from nbclient import NotebookClient

DOCS = pathlib.Path(__file__).parent
PAGE, NOTEBOOK, PICTURE = DOCS / "tutorial.md", DOCS / "tutorial.ipynb", DOCS / "tutorial.png"
_OUTPUT = re.compile(r"```text\n(.*?)```\n|^!\[.*\n", re.DOTALL | re.MULTILINE)


def notebook(page: str) -> nbformat.NotebookNode:
    """The notebook of a page, without outputs."""
    cells = []
    for number, text in enumerate(re.split(r"```python\n(.*?)```\n", page, flags=re.DOTALL)):
        is_code = number % 2 == 1
        source = (text if is_code else _OUTPUT.sub("", text)).strip()
        if source:
            new_cell = nbformat.v4.new_code_cell if is_code else nbformat.v4.new_markdown_cell
            cells.append(new_cell(source, id=f"cell-{len(cells)}"))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def run(found: nbformat.NotebookNode, folder: pathlib.Path = DOCS) -> nbformat.NotebookNode:
    """Runs a notebook in a folder and keeps its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell that fails.
    """
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(found, timeout=300, kernel_name="python3", record_timing=False, resources=resources).execute()
    found.metadata.pop("language_info", None)  # the version of Python
    return found


def printed(found: nbformat.NotebookNode) -> list[str]:
    """What the cells print, without those that print nothing."""
    texts = ["".join(output.get("text", "") for output in _outputs(cell)) for cell in found.cells]
    return [text for text in texts if text]


def picture(found: nbformat.NotebookNode) -> bytes:
    """The picture of the notebook, as PNG."""
    (png,) = (output.data["image/png"] for cell in found.cells for output in _outputs(cell) if "data" in output)
    return base64.b64decode(png)


def _outputs(cell: nbformat.NotebookNode) -> list[Any]:
    return cell.get("outputs", [])


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    found = run(notebook(page))
    texts = iter(printed(found))
    PAGE.write_text(re.sub(r"```text\n.*?```", lambda _: f"```text\n{next(texts)}```", page, flags=re.DOTALL), "utf-8")
    PICTURE.write_bytes(picture(found))
    nbformat.write(found, NOTEBOOK)


if __name__ == "__main__":
    main()
