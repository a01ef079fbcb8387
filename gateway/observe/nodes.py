"""What nodes report of themselves, kept for a while in files that all workers of the data folder see."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from blockgate import durable
from gateway.errors import Overloaded, StorageError

SILENT_SECONDS = 60.0
FORGET_SECONDS = 900.0
_MAX_NODES = 2000

_Text = Annotated[str, Field(max_length=500)]


class NodeDevice(BaseModel):
    """A block device on a node."""

    model_config = ConfigDict(extra="forbid")

    name: _Text = Field(description="The gateway's device")
    node_device: _Text | None = Field(None, description="/dev/nbdN, or a socket")
    mountpoint: _Text | None = None
    state: Literal["connected", "reconnecting", "failed"] = "connected"
    read_bytes: int = Field(0, ge=0, description="Read by the kernel since it was attached")
    errors: int = Field(0, ge=0, description="Reads that ended in an error since it was attached")


class NodeReport(BaseModel):
    """What a node sends every now and then."""

    model_config = ConfigDict(extra="forbid")

    version: Annotated[str, Field(max_length=50)] = Field("", description="The node client's version")
    devices: list[NodeDevice] = Field(default_factory=list, max_length=1000)


class NodeRecord(BaseModel):
    """A report as it is kept. ``reported_at`` is Unix time."""

    name: str
    reported_at: float
    report: NodeReport


class Nodes:
    """The files. All methods block a little and run on a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def report(self, name: str, report: NodeReport) -> None:
        """Keep a node's report in place of its last one. Raises ``Overloaded`` or ``StorageError``."""
        path = self._folder / f"{name}.json"
        # Counting files is quick; reading them all, to forget the silent ones, is for when there are too many.
        full = not path.exists() and sum(1 for _ in self._folder.glob("*.json")) >= _MAX_NODES
        if full and len(self.all()) >= _MAX_NODES:
            raise Overloaded(
                f"{_MAX_NODES} nodes report already; forgotten ones make room", retry_after_seconds=60
            )
        record = NodeRecord(name=name, reported_at=time.time(), report=report)
        try:
            durable.replace(path, record.model_dump_json().encode(), sync=False)
        except OSError as error:
            raise StorageError(f"the report of node {name!r} cannot be kept: {error.strerror}") from error

    def all(self) -> list[NodeRecord]:
        """Nodes by name that were heard of in the last quarter of an hour; older ones are forgotten."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            with contextlib.suppress(OSError, ValidationError):
                record = NodeRecord.model_validate_json(path.read_bytes())
                if time.time() - record.reported_at > FORGET_SECONDS:
                    path.unlink()
                else:
                    found.append(record)
        return found
