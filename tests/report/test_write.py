"""The whole report: what is written and printed, and what is not executed."""

import contextlib
import csv
import html.parser
import json
import os
import pathlib
import re
import shlex

import pytest

from egg_sparse.report import page, plots, runs
from egg_sparse.report.__main__ import PROG, main
from egg_sparse.report.groups import group
from egg_sparse.zoo import cli, run_folder
from egg_sparse.zoo.signal_game import train


@pytest.fixture(autouse=True)
def _there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def _no_pictures(monkeypatch):
    """Spares the PNGs and PDFs, which take time."""
    monkeypatch.setattr(plots, "save", lambda *_: None)


def report(*params):
    return cli.run(PROG, main, list(params))


class Page(html.parser.HTMLParser):
    """The elements, attributes and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.texts.append(data.strip())


@pytest.mark.slow
def test_tables_plots_and_page(write_run, capsys, monkeypatch):
    for seed, acc in ((1, 0.5), (2, 0.75)):
        write_run(f"marg-{seed}", {"acc": acc}, random_seed=seed)
    write_run("gs-1", {"acc": 0.25, "receiver_calls": 1.0}, mode="gs")
    assert report("runs", "--out=a/report", "--title=T & T") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "| exact marginalization (marg) | 2 | **0.625** ± 0.177 |" in out
    assert out.splitlines()[-1].endswith("a/report/index.html")
    files = {path.name for path in pathlib.Path("a/report").iterdir()}
    names = {f"signal_game-acc-{axis}.{suffix}" for axis in ("epochs", "calls", "seconds") for suffix in ("png", "pdf")}
    assert files == {"index.html", "runs.csv", "signal_game.md", "signal_game.tex", "signal_game.csv", *names}
    for name in names:
        begins = {"png": b"\x89PNG", "pdf": b"%PDF"}[name[-3:]]
        assert pathlib.Path("a/report", name).read_bytes().startswith(begins)
    shown = Page(pathlib.Path("a/report/index.html").read_text(encoding="utf-8"))
    assert shown.tags.count("figure") == 3
    for each in ("T & T", "0.625", "± 0.177", "Gumbel-Softmax (gs)", "3 runs of 2 settings.", "batches_per_epoch"):
        assert each in shown.texts, each
    assert any("no plot of support" in each for each in shown.texts)
    with open("a/report/runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["random_seed"], row["acc"]) for row in rows] == [("1", "0.25"), ("1", "0.5"), ("2", "0.75")]
    monkeypatch.setattr(plots, "save", lambda *_: None)
    assert report("runs", "--out=a/report") == 0  # replaces it


@pytest.mark.usefixtures("_no_pictures")
def test_the_page_needs_nothing_else(write_run):
    write_run("a")
    assert report("runs") == 0
    text = pathlib.Path("report/index.html").read_text(encoding="utf-8")
    addresses = re.findall(r'(?:src|href)="([^"]*)"|url\(([^)]*)\)', text)
    assert all(address.startswith("#") for pair in addresses for address in pair if address)
    assert not re.search(r"@import|<script|<link|<img", text)
    assert "default-src 'none'" in text


EVIL = '</td></pre></style><script>alert(1)</script>" onload="alert(2)\' {{ 7 * 191 }} {% raw %}'


@pytest.mark.usefixtures("_no_pictures")
def test_what_is_in_a_folder_stays_text(write_run, capsys):
    write_run("b<script>alert(3)<", normalizer=EVIL, random_seed=EVIL)
    write_run("<img src=x>", results=None, **{EVIL: 1})
    write_run("c", normalizer="sparsemax", mode=EVIL)
    assert report("runs", f"--title={EVIL}") == 0
    shown = Page(pathlib.Path("report/index.html").read_text(encoding="utf-8"))
    assert not {"script", "img"} & set(shown.tags)
    assert not [name for name, _ in shown.attributes if name.startswith("on")]
    assert "1337" not in "".join(shown.texts)
    assert any(EVIL in text for text in shown.texts)
    err = capsys.readouterr().err
    assert "<img src=x>" in err


@pytest.mark.usefixtures("_no_pictures")
def test_what_no_run_of_the_zoo_has_is_no_reason_to_fail(write_run, tmp_path):
    write_run("zero", game_size=0)
    write_run("text", game_size="many", **{"half \ud800": "\udfff", "line\nbreak": "\x1b[31m"})
    write_run("large", game_size=10**400, n_epochs="x", random_seed=None)
    folder = write_run("metrics", {"acc": "high", "loss": [1], "x" * 3000: 1.0})
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "mode": 3, "acc": 0.5}\n{"epoch": 1}\n')
    (folder / "costs.jsonl").write_text('{"epoch": 1, "seconds": "x", "examples": null}\n')
    with contextlib.suppress(OSError):  # where names of files are characters
        os.rename(write_run("name"), os.fsencode(tmp_path / "runs") + b"/na\xff\xfe")
    assert report("runs") == 0
    pathlib.Path("report/index.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("_no_pictures")
def test_damaged_runs_are_named_and_left_out(write_run, capsys):
    write_run("good", {"acc": 0.5})
    write_run("unfinished", results=None, random_seed=2)
    write_run("nan", {"acc": float("nan")}, random_seed=3)
    assert report("runs") == 0
    out, err = capsys.readouterr()
    assert "| exact marginalization (marg) | 1 | 0.500 |" in out
    assert [line.split(" is left out")[0] for line in err.splitlines()] == [
        f"egg_sparse.report: runs/{name}" for name in ("nan", "unfinished")
    ]
    shown = Page(pathlib.Path("report/index.html").read_text(encoding="utf-8"))
    assert "2 of 3 runs are not in any mean:" in shown.texts
    with open("report/runs.csv", newline="") as file:
        assert [bool(row["fault"]) for row in csv.DictReader(file)] == [False, True, True]


@pytest.mark.usefixtures("_no_pictures")
def test_experiments_have_a_section_each(write_run):
    write_run("a")
    write_run("b", {"negative_elbo": 90.0}, topksparse=10, nll_samples=3)
    folder = write_run("c")
    (folder / "opts.json").write_text(json.dumps({"mode": "mine", "random_seed": 1}))
    assert report("runs") == 0
    shown = Page(pathlib.Path("report/index.html").read_text(encoding="utf-8"))
    for title in ("Signal game", "Other runs"):
        assert title in shown.texts


@pytest.mark.usefixtures("_no_pictures")
def test_columns_and_rows_that_are_asked_for(write_run, capsys):
    write_run("a", {"extra": 3.0}, lr=0.1)
    write_run("b", {"extra": 5.0}, lr=0.2)
    assert report("runs", "--by", "game_size", "--metrics", "extra", "acc", "--band=range") == 0
    out = capsys.readouterr().out
    assert "| setting | seeds | extra | success, greedy |" in out
    assert "| game_size 16 | 1 | 4.000 ± 1.414 | 0.500 ± 0.000 |" in out
    assert "lowest to the highest" in pathlib.Path("report/index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (["nowhere"], ("FOLDER", "nowhere")),
        (["empty"], ("FOLDER", "no runs", "empty")),
        (["runs", "--by", "temp"], ("--by", "temp", "game_size")),
        (["runs", "--metrics", "topsim"], ("--metrics", "topsim", "acc_expected")),
        (["runs", "--out=full"], ("--out", "full")),
        (["runs", "--out=full/notes.txt"], ("notes.txt",)),
        (["runs/unfinished"], ("every run is left out", "results.json")),
        (["runs", "--out="], ("--out", "path")),
    ],
)
@pytest.mark.usefixtures("_no_pictures")
def test_a_mistake_is_one_sentence(params, words, write_run, tmp_path, capsys):
    write_run("a")
    write_run("unfinished", results=None)
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    assert report(*params) != 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert all(word in last for word in words), last
    assert "error: " in last
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]
    assert not (tmp_path / "report").exists()


@pytest.mark.usefixtures("_no_pictures")
def test_the_command_on_the_page_is_that_of_the_run(write_run):
    """All options of a run, which the command gives again."""
    options = ["--mode=marg", "--n_epochs=1", "--batches_per_epoch=2", "--batch_size=8", "--vocab_size=20", "--lr=0.01"]
    opts = train.parse_options([*options, "--normalizer=1.25", "--random_seed=5", "--no_cuda", "--keep=7"])
    run = runs.read(write_run("run", **run_folder.saved_options(opts)))
    assert run.fault is None
    (line,) = page.command(run.experiment, group([run])[0]).splitlines()
    python, m, module, *arguments = shlex.split(line)
    assert (python, m, module) == ("python", "-m", "egg_sparse.zoo.signal_game")
    assert "--hidden_size=128" not in arguments
    again = vars(train.parse_options([*arguments, "--no_cuda"]))
    differ = {name for name, value in run.options.items() if again[name] != value}
    assert differ <= {"keep", "distributed_port"}
    assert report("runs") == 0
    assert line in Page(pathlib.Path("report/index.html").read_text(encoding="utf-8")).texts


@pytest.mark.parametrize("out", ["a_file", "a_file/within"])
def test_a_folder_that_cannot_be_made_is_named(write_run, capsys, out, tmp_path):
    write_run("marg-1")
    (tmp_path / "a_file").touch()
    assert report("runs", f"--out={out}") == 1
    error = capsys.readouterr().err
    assert f"--out: the folder {out} cannot be made or read" in error
    assert "Errno" not in error


def test_a_number_of_many_digits_is_shortened(write_run):
    folder = write_run("marg-1", {"acc": 10**400})
    assert runs.read(folder).fault == f"its result acc is {'1' + 26 * '0'}..., which is not finite"
