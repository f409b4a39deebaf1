"""Means, spreads, the best of a column, and what has a meaning in Markdown, LaTeX and CSV."""

import csv
import io
import re
import statistics

import pytest

from egg_sparse.report import tables
from egg_sparse.report.experiments import EXPERIMENTS, OTHER, Column, columns_of
from egg_sparse.report.groups import group
from egg_sparse.report.runs import Run

UP, DOWN, COST = (
    Column("acc", "success", best="max"),
    Column("elbo", "ELBO", "nats", "min", 1),
    Column("calls", "calls", counts=True),
)


def table(columns, **modes):
    """A table with a row for each mode, of runs with these results."""
    runs = [
        Run(f"{mode}-{seed}", {"mode": mode, "random_seed": seed}, results)
        for mode, all_results in modes.items()
        for seed, results in enumerate(all_results)
    ]
    return tables.summarize("Title", group(runs), columns)


def rows(markdown):
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_means_and_standard_deviations():
    values = [0.5, 0.75, 0.875]
    found = table([UP], marg=[{"acc": value} for value in values], gs=[{"acc": 0.25}])
    mean, std = statistics.mean(values), statistics.stdev(values)
    assert rows(tables.to_markdown(found)) == [
        ["exact marginalization (marg)", "3", f"**{mean:.3f}** ± {std:.3f}"],
        ["Gumbel-Softmax (gs)", "1", "0.250"],
    ]
    (first, second) = csv.DictReader(io.StringIO(tables.to_csv(found)))
    assert float(first["acc_mean"]) == pytest.approx(mean)
    assert float(first["acc_std"]) == pytest.approx(std)
    assert (first["mode"], first["seeds"], first["acc_n"], second["acc_std"]) == ("marg", "3", "3", "")


@pytest.mark.parametrize(
    ("column", "values", "bold"),
    [
        (UP, (0.5, 0.6), (False, True)),
        (DOWN, (5.0, 6.0), (True, False)),
        (DOWN, (-5.0, -6.0), (False, True)),
        (COST, (5.0, 6.0), (False, False)),
        (UP, (0.5, 0.5), (False, False)),
        (UP, (0.50001, 0.50002, 0.1), (True, True, False)),  # a tie as it is shown
        (UP, (0.5, None, 0.4), (True, False, False)),
        (UP, (0.5, None), (False, False)),  # nothing to compare with
    ],
)
def test_the_best_of_a_column_is_bold(column, values, bold):
    modes = dict(zip(("marg", "sfe", "gs"), values, strict=False))
    found = table([column], **{mode: [{column.name: value}] for mode, value in modes.items()})
    assert [row[0].best for row in found.cells] == list(bold)
    latex = tables.to_latex(found, "x")
    assert latex.count(r"\textbf{") == sum(bold)


def test_missing_values():
    found = table([UP, COST], marg=[{"acc": 0.5, "calls": 2}, {"calls": 2}], gs=[{"acc": None}])
    assert rows(tables.to_markdown(found)) == [
        ["exact marginalization (marg)", "2", "0.500", "2"],
        ["Gumbel-Softmax (gs)", "1", "\N{EN DASH}", "\N{EN DASH}"],
    ]
    (note,) = found.notes
    assert "1 of 2 runs have no success" in note


def test_percent():
    found = table([Column("acc", "accuracy", "%", digits=1, scale=100)], marg=[{"acc": 0.5}, {"acc": 0.75}])
    assert found.header[-1] == "accuracy (%)"
    assert rows(tables.to_markdown(found))[0][-1] == "62.5 ± 17.7"
    assert next(csv.DictReader(io.StringIO(tables.to_csv(found))))["acc_mean"] == "0.625"


HOSTILE = 'a & b_c %d $e$ #f {g} ~h ^i \\j <b> |k| *l* `m` [n](o) é\n"p'


def test_latex_has_nothing_but_what_is_meant():
    text = tables.escape_latex(HOSTILE)
    plain = re.sub(r"\\(?:[&%$#_{}]|[a-z]+\{\})|\{[\[\]*]\}", "", text)
    assert not set(plain) & set('&%$#_{}~^\\<>[]*"\n')
    assert text.startswith(r"a \& b\_c \%d \$e\$ \#f \{g\}")
    found = table([UP, DOWN], **{HOSTILE: [{"acc": 0.5}], "gs": [{"acc": -0.1, "elbo": 1234.5}, {"acc": 0.1}]})
    latex = tables.to_latex(found, "label")
    body = latex[latex.index(r"\toprule") : latex.index(r"\bottomrule")]
    lines = [line for line in body.splitlines()[1:] if r"\midrule" not in line and line.strip()]
    assert len(lines) == 3
    for line in lines:
        assert line.endswith(r" \\")
        assert len(re.findall(r"(?<!\\)&", line)) == 3, "a cell for each column of {lrrr}"
        assert line.count("{") - line.count(r"\{") == line.count("}") - line.count(r"\}")
    assert r"\begin{tabular}{lrrr}" in latex
    for name in ("table", "tabular"):
        assert latex.count(rf"\begin{{{name}}}") == latex.count(rf"\end{{{name}}}") == 1
    assert r" $\pm$ " in latex
    assert latex.isascii()


def test_markdown_has_nothing_but_what_is_meant():
    text = tables.escape_markdown(HOSTILE)
    assert "\n" not in text
    assert "<" not in text
    for char in "*|`[]$~":
        assert not re.search(rf"(?<!\\){re.escape(char)}", text)
    assert tables.escape_markdown("gs_tau _x_") == r"gs_tau \_x\_"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1"])
def test_a_spreadsheet_finds_no_formula(text):
    (_, row) = csv.reader(io.StringIO(tables.csv_rows(["a"], [[text]])))
    assert row == [f"'{text}"]


def test_numbers_stay_numbers():
    assert tables.csv_rows(["a"], [[-1.5], [None], [True]]) == 'a\n-1.5\n""\nTrue\n'


def test_columns():
    signal = EXPERIMENTS[0]
    results = [{"acc": 0.5, "mode": "final", "support": 3.0, "extra": 1, "exact": True}]
    assert [column.name for column in columns_of(signal, results)] == ["acc", "support"]
    assert [column.name for column in columns_of(signal, results, ["extra", "acc"])] == ["extra", "acc"]
    assert [column.name for column in columns_of(OTHER, results)] == ["acc", "support", "extra"]
    with pytest.raises(ValueError, match=r"--metrics.*topsim.*acc, extra, support"):
        columns_of(signal, results, ["topsim"])


def test_spread():
    assert tables.spread([]) == "\N{EN DASH}"
    assert tables.spread([-0.5, -0.5]) == "\N{MINUS SIGN}0.500 ± 0.000"
    assert tables.spread([1234.5], 1) == "1,234.5"
