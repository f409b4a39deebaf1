"""What lies in docs/: tables equal the runs beside them, scripts draw what they say."""

import importlib.util
import itertools
import json
import pathlib
import re
import sys

import pytest

from test_imports import LAYERS, USERS_OF_HOST

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"


def script(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words_and_numbers(row):
    parts = re.split(r"(\d[\d,.]*)", row)
    return parts[::2], [float(number.replace(",", "")) for number in parts[1::2]]


TABLES = script("tables").main()


@pytest.mark.parametrize("title", TABLES)
def test_tables_are_those_of_the_runs(title):
    """But for the last digit: some runs are stored rounded."""
    text = (ROOT / title.split(":")[0]).read_text(encoding="utf-8")
    shown = [words_and_numbers(line) for line in text.splitlines() if line.startswith("|")]
    assert len(TABLES[title]) >= 2
    for row in TABLES[title]:
        words, numbers = words_and_numbers(row)
        found = [others for same, others in shown if same == words and numbers == pytest.approx(others, abs=1.001e-3)]
        assert found, row


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
    settings = {"game_size": 16, "vocab_size": 256}
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
    curves.collect(tmp_path / "runs.json", [f"sparse={write_run(tmp_path / 'run', 1)}"])
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
