"""What a benchmark says: one row per number, against its target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One measured number. ``wanted`` begins with ``≥``, ``≤`` or ``=``, or is empty: nothing is wanted.

    ``detail`` says what it is made of.
    """

    target: int
    what: str
    measured: float
    wanted: str
    unit: str = "x"
    detail: str = ""

    @property
    def met(self) -> bool:
        """Whether the number is what the target wants, if it wants something."""
        bound = float(self.wanted[1:])
        return {"≥": self.measured >= bound, "≤": self.measured <= bound, "=": self.measured == bound}[
            self.wanted[0]
        ]


def show(rows: Sequence[Row], notes: Sequence[str]) -> None:
    table = Table(show_edge=False, pad_edge=False)
    for name in ("target", "what", "measured", "wanted", "", "made of"):
        table.add_column(name, justify="right" if name in ("measured", "wanted") else "left")
    for row in rows:
        number = f"{row.measured:g}" if row.measured == int(row.measured) else f"{row.measured:.2f}"
        verdict = "" if not row.wanted else "[green]met[/]" if row.met else "[red]missed[/]"
        wanted = f"{row.wanted} {row.unit}" if row.wanted else ""
        table.add_row(str(row.target), row.what, f"{number} {row.unit}", wanted, verdict, row.detail)
    console = Console(highlight=False, width=160, soft_wrap=True)
    console.print(table)
    console.print("\nWhat is unfair:")
    for note in notes:
        console.print(f"- {note}")


def in_turns(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Run each contender once per round, so that a busy machine slows all of them; returns their medians."""
    results: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            results[name].append(run())
    return {name: median(values) for name, values in results.items()}
