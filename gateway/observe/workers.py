"""What workers tell each other: each keeps a snapshot of its numbers in a file that all can read.

::

    run/<pid>-<start>.json              numbers, timeline, devices and events of one worker
    run/<pid>-<start>.<device>.reads    reads and state of each span of one open device (spanmap.py)
    run/ended.json                      the counters of workers that ended, added up

Whoever is asked publishes its own snapshot first and adds up all of them. So no counter that was shown once is smaller when
another worker is asked next. A gateway of one worker writes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from blockgate import durable
from gateway.locks import held
from gateway.metrics import Numbers

_FRESH_SECONDS = 15.0
_ENDED = "ended.json"


class DeviceNumbers(BaseModel):
    """One open device of a worker. ``served`` is bytes by origin."""

    etag: str
    served: dict[str, int]
    fetched_bytes: int
    error: tuple[str, str] | None = None


class Event(BaseModel):
    """Something that happened: when (Unix time), how bad, and the log's words for it."""

    at: float
    level: str
    text: str
    device: str | None = None


class Snapshot(BaseModel):
    """What a worker publishes. ``published`` is the machine's monotonic clock, which all its processes share."""

    published: float = 0.0
    numbers: dict[str, Any]
    rows: list[tuple[int, list[int]]] = []
    devices: dict[str, DeviceNumbers] = {}
    events: list[Event] = []
    memory_spans: int = 0

    @property
    def alive(self) -> bool:
        """Whether its worker still says something."""
        return time.monotonic() - self.published < _FRESH_SECONDS


class Workers:
    """The files. All methods but the constructor block a little and run on a thread."""

    def __init__(self, folder: Path, *, shared: bool) -> None:
        self.folder = folder
        self.shared = shared
        self.name = f"{os.getpid()}-{time.monotonic_ns()}"
        folder.mkdir(parents=True, exist_ok=True)

    def publish(self, snapshot: Snapshot) -> None:
        """Replace this worker's snapshot. Raises ``OSError`` when the disk does not take it."""
        snapshot.published = time.monotonic()
        if self.shared:
            self._replace(f"{self.name}.json", snapshot.model_dump_json().encode())

    def publish_reads(self, device: str, content: bytes) -> None:
        """Replace what this worker says about the spans of a device (``device`` is a file name)."""
        if self.shared:
            self._replace(f"{self.name}.{device}.reads", content)

    def others(self) -> list[Snapshot]:
        """The other workers' snapshots, of those that ended too (their counters stay)."""
        if not self.shared:
            return []
        found = []
        with held(self.folder / "lock", shared=True):
            for path in self.folder.glob("*.json"):
                if path.stem != self.name:
                    with contextlib.suppress(OSError, ValueError):
                        found.append(Snapshot.model_validate_json(path.read_bytes()))
        return found

    def others_reads(self, device: str) -> list[tuple[bytes, bool]]:
        """What the other workers say about the spans of a device, and whether they are alive."""
        found: list[tuple[bytes, bool]] = []
        if self.shared:
            for path in self.folder.glob(f"*.{device}.reads"):
                worker = path.name.partition(".")[0]
                if worker != self.name:
                    with contextlib.suppress(OSError):
                        found.append((path.read_bytes(), _runs(worker)))
        return found

    def fold(self) -> None:
        """Add up the snapshots of workers that ended into one, so that restarts do not pile up files."""
        if not self.shared:
            return
        with held(self.folder / "lock"):
            gone = [path for path in self.folder.glob("*-*.json") if not _runs(path.stem)]
            if not gone:
                return
            total = Numbers()
            for path in (self.folder / _ENDED, *gone):
                with contextlib.suppress(OSError, ValueError, KeyError):
                    total.absorb(Numbers.load(json.loads(path.read_bytes())["numbers"]), alive=False)
            self._replace(_ENDED, Snapshot(numbers=total.dump()).model_dump_json().encode())
            for path in gone:
                path.unlink(missing_ok=True)
                for reads in self.folder.glob(f"{path.stem}.*.reads"):
                    reads.unlink(missing_ok=True)

    def _replace(self, name: str, content: bytes) -> None:
        durable.replace(self.folder / name, content, sync=False)


def _runs(worker: str) -> bool:
    return Path(f"/proc/{worker.partition('-')[0]}").exists()
