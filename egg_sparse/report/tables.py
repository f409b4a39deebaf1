"""Tables of means over seeds, as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from egg_sparse.report.experiments import Column, is_number
from egg_sparse.report.groups import Group
from egg_sparse.report.runs import Run, row_of
from egg_sparse.zoo.cli import require

NONE, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Cell:
    """A mean over seeds.

    Args:
        mean: the mean; None where no run has the value.
        std: the sample standard deviation; None with fewer than two values.
        n: the number of values.
        column: the column.
        best: whether no other mean in the column is shown as a better number.
    """

    mean: float | None
    std: float | None
    n: int
    column: Column
    best: bool = False

    @property
    def mean_text(self) -> str:
        if self.mean is None:
            return NONE
        return number_text(self.mean, 0 if self._is_count else self.column.digits)

    @property
    def std_text(self) -> str:
        return "" if self.std is None or self._is_count else number_text(self.std, self.column.digits)

    @property
    def _is_count(self) -> bool:
        """Whether all runs have the same whole number of something."""
        return self.column.counts and not self.std and self.mean is not None and self.mean.is_integer()

    @property
    def spread_text(self) -> str:
        return f" ± {self.std_text}" if self.std_text else ""


@dataclass(frozen=True)
class Table:
    """The means of the settings of an experiment.

    Args:
        title: the name of the experiment.
        groups: the settings, a row each.
        columns: the columns.
        cells: the cells, row by row.
        notes: sentences on single cells.
    """

    title: str
    groups: Sequence[Group]
    columns: Sequence[Column]
    cells: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()

    @property
    def caption(self) -> str:
        several = any(cell.std is not None for row in self.cells for cell in row)
        what = "Mean and standard deviation over seeds" if several else "One run of each setting"
        bold = any(cell.best for row in self.cells for cell in row)
        return f"{what}.{' The best mean of a column is bold; costs have none.' if bold else ''}"

    @property
    def header(self) -> list[str]:
        return ["setting", "seeds", *(column.heading for column in self.columns)]


def number_text(value: float, digits: int) -> str:
    """A number with digits after the point, commas between thousands and a minus sign; zero has no sign.

    Example:
        >>> number_text(1234.5678, 2), number_text(-0.0001, 2)
        ('1,234.57', '0.00')
    """
    text = f"{value:,.{digits}f}"
    if not text.strip("-0,."):
        return text.removeprefix("-")
    return text.replace("-", MINUS)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard deviation of values: a dash for none, the value itself for one.

    Example:
        >>> spread([0.25, 0.75]), spread([0.5])
        ('0.500 ± 0.354', '0.500')
    """
    cell = _cell([*values], Column("", "", digits=digits))
    return cell.mean_text + cell.spread_text


def _cell(values: list[float], column: Column) -> Cell:
    series = require("pandas", "pandas").Series(values, dtype=float) * column.scale
    return Cell(
        float(series.mean()) if len(values) else None,
        float(series.std()) if len(values) > 1 else None,
        len(values),
        column,
    )


def summarize(title: str, groups: Sequence[Group], columns: Sequence[Column]) -> Table:
    """The table of means of the groups' whole runs.

    Raises:
        ImportError: pandas is not installed.
    """
    rows, notes = [], []
    for each in groups:
        row = []
        for column in columns:
            values = [run.results[column.name] for run in each.runs if is_number(run.results.get(column.name))]
            row.append(_cell(values, column))
            if 0 < len(values) < len(each.runs):
                missing = len(each.runs) - len(values)
                notes.append(
                    f"{each.title}: {missing} of {len(each.runs)} runs have no {column.title}; "
                    "the mean is that of the others."
                )
        rows.append(row)
    best = [_best([row[i] for row in rows]) for i in range(len(columns))]
    marked = [
        [
            Cell(cell.mean, cell.std, cell.n, cell.column, cell.mean_text == text)
            for cell, text in zip(row, best, strict=True)
        ]
        for row in rows
    ]
    return Table(title, groups, columns, marked, notes)


def _best(cells: Sequence[Cell]) -> str | None:
    """The text of the best mean in a column; None where nothing can be compared."""
    shown = {cell.mean_text: cell.mean for cell in cells if cell.mean is not None}
    if not cells or cells[0].column.best is None or sum(cell.mean is not None for cell in cells) < 2 or len(shown) < 2:
        return None
    choose = max if cells[0].column.best == "max" else min
    return choose(shown, key=lambda text: shown[text])


def markdown_rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts that are Markdown already.

    Example:
        >>> print(markdown_rows(["a", "b"], [["`1`", "2"]]))
        | a | b |
        | --- | --- |
        | `1` | 2 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines).replace("|  |", "| |").replace("|  |", "| |")


def to_markdown(table: Table) -> str:
    """The table as Markdown, with its caption and notes."""
    rows = [
        [
            escape_markdown(group.title),
            str(len(group.seeds)),
            *(
                f"**{cell.mean_text}**{cell.spread_text}" if cell.best else cell.mean_text + cell.spread_text
                for cell in row
            ),
        ]
        for group, row in zip(table.groups, table.cells, strict=True)
    ]
    body = markdown_rows([escape_markdown(text) for text in table.header], rows)
    notes = "".join(f"- {escape_markdown(note)}\n" for note in table.notes)
    return f"## {table.title}\n\n{table.caption}\n\n{body}\n" + (f"\n{notes}" if notes else "")


def escape_markdown(text: str) -> str:
    """A text in which no character has a meaning in Markdown or HTML, in one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"[\\`*\[\]|~$#]|(?<![^\W_])_|_(?![^\W_])", lambda found: f"\\{found[0]}", text)


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    '"': "''",
    "±": r"$\pm$",
    MINUS: "$-$",
    NONE: "--",
    "…": r"\ldots{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
    **{char: f"{{{char}}}" for char in "[]*"},  # which behind the end of a row would be its arguments
}


def escape_latex(text: str) -> str:
    """A text in which no character has a meaning in LaTeX, in one line; what is not ASCII becomes a question mark."""
    line = " ".join(text.split())
    return "".join(_LATEX.get(char, char if char.isascii() and char.isprintable() else "?") for char in line)


def to_latex(table: Table, label: str) -> str:
    """The table as LaTeX with the package booktabs.

    Args:
        table: the table.
        label: the name for ``\\ref``, behind "tab:".
    """

    def text(cell: Cell) -> str:
        mean = escape_latex(cell.mean_text)
        return (rf"\textbf{{{mean}}}" if cell.best else mean) + (rf" $\pm$ {cell.std_text}" if cell.std_text else "")

    rows = [
        " & ".join([escape_latex(group.title), str(len(group.seeds)), *map(text, row)])
        for group, row in zip(table.groups, table.cells, strict=True)
    ]
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{escape_latex(f'{table.title}. {table.caption}')}}}",
        rf"  \label{{tab:{label}}}",
        rf"  \begin{{tabular}}{{l{'r' * (len(table.columns) + 1)}}}",
        r"    \toprule",
        f"    {' & '.join(map(escape_latex, table.header))} \\\\",
        r"    \midrule",
        *(rf"    {row} \\" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """The table as CSV, with means, standard deviations and numbers of values in columns of their own, in full."""
    settings = list(dict.fromkeys(name for group in table.groups for name in group.settings))
    header = ["setting", *settings, "seeds"]
    header += [f"{column.name}_{part}" for column in table.columns for part in ("mean", "std", "n")]
    rows = []
    for group, cells in zip(table.groups, table.cells, strict=True):
        row: list[Any] = [group.title, *(group.settings.get(name) for name in settings), len(group.seeds)]
        for cell in cells:
            scale = cell.column.scale
            row += [None if value is None else value / scale for value in (cell.mean, cell.std)] + [cell.n]
        rows.append(row)
    return csv_rows(header, rows)


def csv_rows(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """CSV in which a spreadsheet finds no formulas: a text that looks like one has an apostrophe before it."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([[_plain(value) for value in row] for row in (header, *rows)])
    return file.getvalue()


def _plain(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def runs_csv(runs: Sequence[Run]) -> str:
    """CSV with a row for each run: its folder, fault, experiment, options and results."""
    rows = [row_of(run) for run in runs]
    header = list(dict.fromkeys(name for row in rows for name in row))
    return csv_rows(header, [[row.get(name) for name in header] for row in rows])
