"""The site of the documentation: what it shows is what GitHub shows, and it needs no network."""

import os
import pathlib
import pkgutil
import re
import subprocess
import sys

import griffe
import pytest
from markdown_it import MarkdownIt

import egg_sparse
from docs_scripts import DOCS, script
from egg_sparse import mappings

ROOT = pathlib.Path(__file__).parent.parent


NOTEBOOK, PAGES, FORMULAS, DOCSTRINGS = map(
    script, ("notebook", "website/pages", "website/formulas", "website/docstrings")
)


@pytest.fixture(scope="module")
def docstring():
    """The Markdown of a docstring that would be SparsemaxWrapper's."""
    wrapper = griffe.load("egg_sparse.wrappers.SparsemaxWrapper", search_paths=[ROOT])
    return lambda text: DOCSTRINGS.markdown(text, wrapper)


def counts(html, tags=("h2", "h3", "li", "ol", "ul", "pre", "table", "tr", "td", "strong")):
    return {tag: len(re.findall(f"<{tag}[ >]", html)) for tag in tags}


def article(page):
    html = page.read_text(encoding="utf-8")
    return html[html.index("<article") : html.index("</article>")]


@pytest.mark.slow
def test_the_site_is_what_github_shows(tmp_path):
    """Built with warnings as errors, so that every link and every anchor leads somewhere."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr

    as_on_github = MarkdownIt("commonmark").enable("table")
    sources = {f"docs/{file.name}": file.name for file in DOCS.glob("*.md")} | PAGES.pages()
    assert len(sources) > 30
    for source, place in sources.items():
        shown = counts(article(tmp_path / place.replace(".md", ".html")))
        text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", "", (ROOT / source).read_text(encoding="utf-8"), flags=re.DOTALL)
        assert shown == counts(as_on_github.render(text)), source

    reference = "".join(article(page) for page in (tmp_path / "api").glob("*.html"))
    for name in {*egg_sparse.__all__, *mappings.__all__} - {"__version__"}:
        assert re.search(rf'<h2 id="egg_sparse\.[\w.]*\b{name}"', reference), name
    for page in tmp_path.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|img|iframe)[^>]*src="(?:https?:)?//', html), page
        assert not re.search(r'<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*href="(?:https?:)?//', html), page
        assert "arithmatex" not in html, page
        text = re.sub(r"<pre.*?</pre>|<code.*?</code>|<script.*?</script>", "", html, flags=re.DOTALL)
        assert not re.search(r":(?:class|func|meth|math|mod|attr|data):|\.\. math::|\$\$", text), page


def test_every_public_module_has_a_page():
    modules = {module.name for module in pkgutil.iter_modules(egg_sparse.__path__)} - {"standin", "version"}
    assert {f"egg_sparse.{name}" for name in modules} | {"egg_sparse"} == {file.stem for file in DOCS.glob("api/*.md")}


def test_links_lead_to_pages_or_to_copies_of_files():
    page = type("Page", (), {"file": type("File", (), {"src_uri": "zoo/signal_game.md"})})
    text = "[docs/support.md](../../../docs/support.md#the-rule), [a script](train.py), "
    text += "[raw](../../../docs/signal_game.json), [code](../..), [e](https://example.org)"
    turned = PAGES.on_page_markdown(text, page, None, None)
    assert turned == (
        "[Support control](../support.md#the-rule), [a script](../files/egg_sparse/zoo/signal_game/train.py), "
        "[raw](../signal_game.json), code, [e](https://example.org)"
    )
    code = "```\n[a](b.md)\n```\n"
    assert PAGES.on_page_markdown(code, page, None, None) == code


def test_formulas_become_mathml():
    assert "<mi>&#x003C4;</mi>" in FORMULAS.mathml(r"\tau", "inline")
    assert "argmin" in FORMULAS.mathml(r"\arg\min_p p", "block")
    with pytest.raises(ValueError, match="nosuchcommand"):
        FORMULAS.mathml(r"\nosuchcommand{x}", "inline")


def test_docstrings_become_markdown(docstring):
    found = docstring(
        "A :math:`p_i`.\n\n"
        ".. math:: a\n    + b\n\nText of :class:`egg_sparse.support.FollowLoss`, :meth:`distribution`, "
        ":class:`TopKSparsemaxWrapper` and :func:`print`.\n\nExample:\n    >>> 1\n    1\n"
    )
    assert "A $p_i$." in found
    assert "$$ a + b $$" in found
    assert "\nExamples:\n" in found
    identifiers = re.findall(r'identifier="(.*?)"><code>(.*?)</code>', found)
    assert identifiers == [
        ("egg_sparse.support.FollowLoss", "egg_sparse.support.FollowLoss"),
        ("egg_sparse.wrappers.SparseWrapper.distribution", "distribution()"),
        ("egg_sparse.wrappers.TopKSparsemaxWrapper", "TopKSparsemaxWrapper"),
        ("print", "print()"),
    ]


def words(text):
    return set(re.findall(r"[^\W\d]+", text))


def test_the_notebook_is_that_of_the_page():
    nbformat = NOTEBOOK.nbformat
    page = NOTEBOOK.PAGE.read_text(encoding="utf-8")
    kept = nbformat.read(NOTEBOOK.NOTEBOOK, as_version=4)
    nbformat.validate(kept)
    made = NOTEBOOK.notebook(page)
    assert [(cell.cell_type, cell.source) for cell in kept.cells] == [
        (cell.cell_type, cell.source) for cell in made.cells
    ]
    assert re.findall(r"```text\n(.*?)```", page, re.DOTALL) == NOTEBOOK.printed(kept)
    assert NOTEBOOK.PICTURE.read_bytes() == NOTEBOOK.picture(kept)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    """Its cells check their results; the numbers that it prints may differ from one version of torch to another."""
    page = NOTEBOOK.PAGE.read_text(encoding="utf-8")
    found = NOTEBOOK.run(NOTEBOOK.notebook(page), tmp_path)
    shown = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    assert list(map(words, NOTEBOOK.printed(found))) == list(map(words, shown))
    assert NOTEBOOK.picture(found).startswith(b"\x89PNG")
