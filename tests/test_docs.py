"""What lies in docs/: tables are made of the numbers beside them, scripts draw what they say."""

import itertools
import json
import pathlib
import re

import pytest

from docs_scripts import DOCS, script
from test_imports import LAYERS, USERS_OF_HOST

ROOT = pathlib.Path(__file__).parent.parent


TABLES = script("tables")


def marked(text):
    """The names and the contents of the tables between marks."""
    return re.findall(r"<!-- table: (\w+) -->\n(.*?)\n<!-- end of table -->", text, re.DOTALL)


@pytest.mark.parametrize("name", TABLES.FILES)
def test_tables_are_what_the_command_writes(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    found = TABLES.tables()
    shown = marked(text)
    assert len(shown) == text.count("<!-- table: ") >= 2
    for title, table in shown:
        assert table == found[title]
    assert TABLES.with_tables(text, found) == text


def test_every_table_is_shown_and_every_result_is_a_table_of_json():
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in TABLES.FILES}
    shown = [title for text in texts.values() for title, _ in marked(text)]
    assert sorted(shown) == sorted(TABLES.tables())
    results = re.sub(r"<!-- table: .*?<!-- end of table -->", "", texts["docs/results.md"], flags=re.DOTALL)
    assert not re.search(r"^\|", results, re.MULTILINE)


def test_a_changed_run_or_text_is_noticed():
    found = TABLES.tables()
    text = "a\n<!-- table: signal_game -->\n| 1 |\n<!-- end of table -->\nb\n"
    assert found["signal_game"] in TABLES.with_tables(text, found)
    signal = TABLES.read("signal_game")["runs"]
    signal[0]["results"]["acc"] += 0.05
    assert list(TABLES.signal_game(signal))[1][1] == "0.911 \N{PLUS-MINUS SIGN} 0.017"


def test_cells_of_means():
    cells = [
        ([0.6, 0.02], {"digits": 3}, "0.600 \N{PLUS-MINUS SIGN} 0.020"),
        (1987, {}, "1,987"),
        (96.1, {"digits": 2, "unit": " %"}, "96.10 %"),
        (1.0058, {}, "1.0058"),
        (None, {"digits": 1}, "\N{EN DASH}"),
        ("all", {"digits": 1}, "all"),
    ]
    for value, column, text in cells:
        assert TABLES.cell(value, column) == text


def write_run(folder, seed, **options):
    folder.mkdir()
    options = {"mode": "marg", "data": "digits", "batch_size": 64, "random_seed": seed, **options}
    (folder / "opts.json").write_text(json.dumps(options))
    (folder / "results.json").write_text(json.dumps({"acc": 0.25 * seed, "support": 2.0}))
    metrics = {"acc": 0.1 * seed, "support": 3.0, "negative_elbo": 100.0}
    phases = [{"epoch": epoch, "mode": mode, **metrics} for epoch in (1, 2) for mode in ("train", "validation")]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, phases)))
    return folder


def test_curves_are_collected_and_drawn(tmp_path):
    curves = script("curves")
    settings = {"game_size": 16, "vocab_size": 256, "batches_per_epoch": 100}
    runs = [write_run(tmp_path / f"run-{seed}", seed, **settings) for seed in (1, 2)]
    curves.collect(tmp_path / "runs.json", [f"exact={runs[0]},{runs[1]}"])
    found = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert [(run["title"], run["seed"], run["results"]["acc"]) for run in found] == [
        ("exact", 1, 0.25),
        ("exact", 2, 0.5),
    ]
    assert found[1]["curves"]["acc"] == {"epoch": [1, 2], "value": [0.2, 0.2]}
    curves.draw(tmp_path / "curves.png", tmp_path / "runs.json")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_curves_of_the_bit_vector_vae_count_steps(tmp_path):
    curves = script("curves")
    curves.collect(tmp_path / "runs.json", [f"sparse={write_run(tmp_path / 'run', 1, topksparse=10, nll_samples=1)}"])
    (run,) = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert run["curves"]["negative_elbo"] == {"step": [20, 40], "value": [100.0, 100.0]}
    curves.draw(tmp_path / "curves.png", tmp_path / "runs.json")


def test_architecture_names_modules_that_exist():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w./]+)` \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) > 8
    for name, contents in rows:
        place = ROOT / "egg_sparse" / name
        assert place.exists(), name
        for file in re.findall(r"`(\w+\.py)`", contents):
            assert (place / file).exists(), f"{name}{file}"
    for path in re.findall(r"`((?:mappings|games|tests|egg_sparse)/\w+\.py)`", text):
        assert (ROOT / path).exists() or (ROOT / "egg_sparse" / path).exists(), path


def test_the_architecture_says_the_import_rule():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    (way,) = re.findall(r"Imports go one way: (.*?)\. Only", text, re.DOTALL)
    rows = [set(re.findall(r"`(\w+)`", rooms)) for rooms in way.split("->")]
    (users,) = re.findall(r"Only\s(.*?) import `host`", text, re.DOTALL)
    assert set().union(*rows) == set(LAYERS)
    for above, below in itertools.pairwise(rows):
        assert min(LAYERS[room] for room in above) > max(LAYERS[room] for room in below)
    assert set(re.findall(r"`(\w+)`", users)) == USERS_OF_HOST


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.json")), ids=lambda path: path.stem)
def test_raw_data_can_be_read(path):
    assert json.loads(path.read_text(encoding="utf-8"))
