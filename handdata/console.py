"""Output of commands: errors in one line, progress on a terminal or as plain lines, short tables, JSON."""

import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.filesize import pick_unit_and_suffix
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from handdata.schemas import HandDataError
from handdata.schemas.errors import missing_package

_PLAIN_WIDTH = 140
"""Columns of output that is not a terminal; a terminal knows its own."""

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
"""Standard output, for results."""
err = Console(stderr=True, highlight=False, soft_wrap=True)
"""Standard error, for progress and errors, so that ``--json`` output stays clean."""

_PLAIN_INTERVAL_S = 10.0


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Print a handdata error as one line with a hint and exit with its code; a bug keeps its traceback."""
    try:
        yield
    except (HandDataError, ModuleNotFoundError) as raised:
        error = raised if isinstance(raised, HandDataError) else missing_package(raised)
        if error is None:
            raise
        line = " ".join(map(str.strip, error.message.splitlines()))  # other packages' errors may have several
        err.print(f"[bold red]error:[/] {escape(line)}", soft_wrap=True)
        if error.hint:
            err.print(f"[dim]hint: {escape(error.hint)}[/]", soft_wrap=True)
        sys.exit(error.exit_code)
    except MemoryError:
        err.print("[bold red]error:[/] out of memory")
        err.print("[dim]hint: close other programs, or use a machine with more memory[/]")
        sys.exit(1)


def escape(text: str) -> str:
    """Return text as it is, where rich would read parts in brackets as its own."""
    return text.replace("[", "\\[")


def byte_size(count: float) -> str:
    """Return a number of bytes as people read it: 312 bytes, 31.2 kB, 3.1 GB."""
    unit, suffix = pick_unit_and_suffix(int(count), ["bytes", "kB", "MB", "GB", "TB"], 1000)
    return f"{count / unit:,.1f} {suffix}" if unit > 1 else f"{count:.0f} bytes"


def say_next(*commands: str, **options: object) -> None:
    """Print the commands that come next, with the options that name what this command worked on.

    Args:
        commands: Commands without ``handdata``, each of which takes the options.
        options: Values of options by name, None for those that were not given.

    """
    given = "".join(f" --{name} {shlex.quote(str(value))}" for name, value in options.items() if value is not None)
    out.print("Next: " + escape(", ".join(f"handdata {command}{given}" for command in commands)))


class ProgressLine:
    """Show progress: a bar on a terminal and in a notebook that has ``ipywidgets``, a line every ten seconds elsewhere.

    Args:
        label: What is done.
        total: Number of units to do; None while it is not known.
        unit: Name of the units.

    """

    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done = 0
        self._started = self._printed = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if err.is_terminal or (err.is_jupyter and find_spec("ipywidgets")):
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=err,
            )

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=self._total, note=self._unit)
        else:
            total = f" {self._total:,} {self._unit}" if self._total is not None else ""
            err.print(f"{self._label}{total} ...")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def set(self, done: int, note: str = "", total: int | None = None) -> None:
        """Show how many units are done.

        Args:
            done: Number of finished units.
            note: Text behind the numbers.
            total: Number of units to do, where it has changed.

        """
        self._done = done
        if total is not None:
            self._total = total
        if self._bar:
            text = f"{self._unit} {note}".strip()
            self._bar.update(self._task, completed=done, total=self._total, note=text)
        elif time.monotonic() - self._printed > _PLAIN_INTERVAL_S:
            self._printed = time.monotonic()
            rate = done / max(time.monotonic() - self._started, 1e-9)
            share = f" of {self._total:,}" if self._total is not None else ""
            left = f", {duration((self._total - done) / rate)} left" if self._total is not None and rate else ""
            err.print(f"{self._label}: {done:,}{share} {self._unit}, {rate:.1f}/s{left} {note}".rstrip())

    def count(self, done: int, total: int | None) -> None:
        """Show how many of so many units are done, as tasks call back with."""
        self.set(done, total=total)

    def advance(self, units: int, note: str = "") -> None:
        """Show that more units are done."""
        self.set(self._done + units, note)


def print_table(title: str, rows: Mapping[str, object] | Sequence[Sequence[str]], header: Sequence[str] = ()) -> None:
    """Print a short table on standard output.

    Args:
        title: Title above the table.
        rows: Names and values, or rows of cells.
        header: Names of the columns; none for a table of names and values.

    """
    table = Table(title=title, title_justify="left", title_style="bold", show_header=bool(header))
    for position, name in enumerate(header or ("", "")):
        table.add_column(name, no_wrap=position == 0, overflow="fold")
    items = [(key, _text(value)) for key, value in rows.items()] if isinstance(rows, Mapping) else rows
    for row in items:
        table.add_row(*(escape(cell) for cell in row))
    out.print(table)


def say(line: str) -> None:
    """Print a line that the user should read, beside the progress."""
    err.print(escape(line), soft_wrap=True)


def say_connecting(address: str) -> None:
    """Print the address of the Ray cluster that a command is about to join."""
    err.print(f"connecting to the Ray cluster at {escape(address)} ...")


def print_json(document: Mapping[str, object]) -> None:
    """Print a document as one line of JSON on standard output."""
    sys.stdout.write(json.dumps(document) + "\n")


def _text(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def counted(counts: Mapping[str, int]) -> str:
    """Format counts by name: ``12 (image_missing 10, label_corrupt 2)``."""
    total = sum(counts.values())
    parts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return f"{total:,} ({parts})" if parts else "0"


def duration(seconds: float) -> str:
    """Format a time: ``42 s``, ``13 min``, ``5 h 20 min``, ``3 d 4 h``."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
