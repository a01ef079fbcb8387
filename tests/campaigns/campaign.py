"""What the campaigns share: a table of what happened, a seed that is told, and a program's end that says whether bytes were wrong."""

import argparse
import os
import random
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.support.faultregistry import FaultRegistry
from tests.support.gateway import Gateway
from tests.support.threadedregistry import ThreadedRegistry

FULL = os.environ.get("CAMPAIGN") == "full"


@dataclass
class Table:
    """Counts by what was done, and problems, any of which is a failure."""

    seed: int
    rows: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{count:8}  {what}" for what, count in sorted(self.rows.items())]
        told = [f"{count} x {problem}" for problem, count in Counter(self.problems).most_common(20)]
        return "\n".join([f"seed {self.seed}", *lines, f"{len(self.problems):8}  problems", *told])

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Count what is done; what goes wrong in it is a problem, and the campaign goes on."""
        self.rows[what] += 1
        try:
            yield
        except (AssertionError, OSError, RuntimeError, LookupError, httpx.HTTPError, sqlite3.Error) as error:
            self.problems.append(f"{what}: {type(error).__name__}: {str(error)[:400]}")


Campaign = Callable[[Path, FaultRegistry, random.Random, Table, int], None]


def conduct(campaign: Campaign, folder: Path, size: int, seed: int) -> Table:
    """Run a campaign in a folder."""
    table = Table(seed)
    with ThreadedRegistry() as registry:
        campaign(folder, registry, random.Random(seed), table, size)
    return table


def main(campaign: Campaign, full_size: int) -> None:
    """The command: the full campaign; the end is 1 for any problem."""
    parser = argparse.ArgumentParser(description=campaign.__doc__)
    parser.add_argument("--size", type=int, default=full_size)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = conduct(campaign, Path(folder), chosen.size, chosen.seed)
    print(table)  # noqa: T201 - the campaign's result
    raise SystemExit(bool(table.problems))


def descriptors_of(gateway: Gateway) -> int:
    """Open descriptors of the serving process."""
    return len(list(Path(f"/proc/{gateway.running.pid}/fd").iterdir()))
