"""Shows how the runs of a sweep stand: a live table on a terminal, else a line per change."""

from __future__ import annotations

import os
import pathlib
import textwrap
import time
from collections.abc import Sequence
from typing import Any

from egg_sparse.sweep.watch import DONE, FAILED, RUNNING, STATES, STOPPED, WAITING, Status
from egg_sparse.zoo.cli import require

SHOWN = ("acc", "acc_train", "acc_unseen", "negative_elbo", "bits_per_dimension", "loss", "support")
"""The metrics that are shown, the first three of them that a run has."""

ERROR_WIDTH = 100
"""The longest error in the table; the lines after it have the whole error."""

_COLORS = {RUNNING: "cyan", DONE: "green", FAILED: "bold red", STOPPED: "yellow", WAITING: "dim"}
_FIRST = (RUNNING, FAILED, STOPPED, DONE, WAITING)


def metrics_of(status: Status) -> str:
    """The newest metrics of a run, in a few words."""
    values = {name: status.metrics[name] for name in SHOWN if isinstance(status.metrics.get(name), (int, float))}
    return "  ".join(f"{name} {value:.4g}" for name, value in list(values.items())[:3])


def epochs_of(status: Status) -> str:
    """The last epoch of a run and the number of epochs."""
    total = status.run.options.get("n_epochs")
    epoch = total if status.state == DONE else status.metrics.get("epoch")
    return "" if epoch is None else f"{epoch}/{total}" if total is not None else str(epoch)


def time_of(status: Status, now: float) -> str:
    """How long a run took, or has taken so far."""
    seconds = status.seconds
    if seconds is None and status.state == RUNNING and status.started is not None:
        seconds = max(0.0, now - status.started)
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def path_of(path: pathlib.Path) -> str:
    """A path, from the current folder where that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)


def counts(statuses: Sequence[Status]) -> dict[str, int]:
    """The number of runs in each state, without the states that none is in."""
    number = {state: sum(status.state == state for status in statuses) for state in STATES}
    return {state: count for state, count in number.items() if count}


def notes_of(status: Status, width: int | None = None) -> str:
    """What else there is to say of a run, its error in at most ``width`` characters."""
    if status.state == FAILED:
        error = status.error or "no error was named"
        error = error if width is None else textwrap.shorten(error, width, placeholder=" ...")
        return f"{error} (log: {path_of(status.log)})"
    if status.state == DONE and status.before:
        return "done before"
    return "by another sweep" if status.elsewhere else ""


class Lines:
    """A line for each run whose state has changed."""

    def __init__(self) -> None:
        self.states: dict[pathlib.Path, str] = {}

    def show(self, statuses: Sequence[Status]) -> None:
        """Prints what has changed since the last call."""
        for status in statuses:
            if self.states.get(status.folder, WAITING) != status.state:
                self.states[status.folder] = status.state
                said = [status.state.ljust(8) + status.folder.name]
                if status.state == DONE:
                    said.append(metrics_of(status))
                if status.state != RUNNING:
                    said.append(time_of(status, time.time()))
                said.append(notes_of(status))
                print("  ".join(each for each in said if each), flush=True)

    def close(self) -> None:
        """Ends the display."""


class Table:
    """A table that stays in its place on the terminal.

    Args:
        title: the sweep's name.
        console: the terminal, a ``rich.console.Console``; that of standard output if None.
    """

    def __init__(self, title: str, console: Any = None) -> None:
        self.title = title
        self.console = console or require("rich.console", "rich").Console()
        self.live = require("rich.live", "rich").Live(console=self.console, auto_refresh=False)
        self.live.start()

    def show(self, statuses: Sequence[Status]) -> None:
        """Draws the table anew."""
        self.live.update(self.draw(statuses, max(3, self.console.height - 6)), refresh=True)

    def draw(self, statuses: Sequence[Status], height: int) -> Any:
        """The table, with at most ``height`` runs: first those that run or have failed."""
        now = time.time()
        said = ", ".join(f"{count} {state}" for state, count in counts(statuses).items())
        table = require("rich.table", "rich").Table(title=f"{self.title}: {said}", title_justify="left", expand=False)
        for name, options in (
            ("run", {"overflow": "fold"}),
            ("state", {}),
            ("epoch", {"justify": "right"}),
            ("metrics", {"overflow": "fold"}),
            ("time", {"justify": "right"}),
        ):
            table.add_column(name, **options)
        escape = require("rich.markup", "rich").escape
        order = sorted(range(len(statuses)), key=lambda index: _FIRST.index(statuses[index].state))
        kept = set(order[:height] if len(statuses) > height else order)
        for index, status in enumerate(statuses):
            if index in kept:
                metrics = (
                    notes_of(status, ERROR_WIDTH)
                    if status.state == FAILED
                    else "  ".join(each for each in (metrics_of(status), notes_of(status)) if each)
                )
                state = f"[{_COLORS[status.state]}]{status.state}[/]"
                cells = escape(status.folder.name), state, epochs_of(status), escape(metrics), time_of(status, now)
                table.add_row(*cells)
        if len(kept) < len(statuses):
            table.caption = f"and {len(statuses) - len(kept)} more"
        return table

    def close(self) -> None:
        """Ends the display; the table stays."""
        self.live.stop()
