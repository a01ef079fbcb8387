"""What commands print: JSON for programs, tables for people, progress on a terminal and plain lines elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

_KIB = 1024


def fail(text: str) -> None:
    """An error for a person."""
    print(f"error: {text}", file=sys.stderr)


def dump(value: Any) -> None:
    """JSON on standard output."""
    print(json.dumps(value, indent=2))


def table(columns: list[str], rows: list[list[str]]) -> None:
    """A table on standard output; tab-separated when that is no terminal."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row))
        return
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*row)
    Console().print(shown, markup=False)


def human(size: int | None) -> str:
    """A size in binary units."""
    if size is None:
        return "-"
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= _KIB and len(units) > 1:
        value /= _KIB
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


class Report(Protocol):
    """Takes progress."""

    def __call__(self, phase: str, done: int, total: int) -> None:
        """``done`` of ``total`` bytes of ``phase``; a total of 0 is not known."""
        ...


@contextmanager
def progress() -> Iterator[Report]:
    """A progress bar on a terminal, plain lines for each phase and each tenth elsewhere; on standard error."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def report(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total or None)
            bar.update(tasks[phase], completed=done, total=total or None)

        yield report


class _Lines:
    def __init__(self) -> None:
        self._last: tuple[str, int] | None = None

    def __call__(self, phase: str, done: int, total: int) -> None:
        tenth = done * 10 // total if total else 0
        if self._last is not None and (phase, tenth) == self._last:
            return
        self._last = (phase, tenth)
        text = f"{phase}: {human(done)} of {human(total)} ({tenth * 10} %)" if total else phase
        print(text, file=sys.stderr, flush=True)
