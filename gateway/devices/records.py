"""What the catalog remembers of a device."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from gateway.devices.segments import Segment
from gateway.devices.spec import DeviceSpec

State = Literal["indexing", "ready", "failed", "degraded", "quarantined"]
Verification = Literal["verified", "verifying", "unverified"]

SERVING: frozenset[State] = frozenset({"ready", "degraded"})


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a registration is: bytes of the phase."""

    phase: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a device is not as it should be."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """The image a device was made of. ``config`` is the image's configuration as JSON text."""

    reference: str
    digest: str
    platform: str
    config: str
    layers: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """One row of the catalog. ``uid`` tells apart devices that had the same name one after the other."""

    name: str
    uid: str
    spec: DeviceSpec
    state: State
    verification: Verification
    created_at: datetime
    size: int | None = None
    etag: str | None = None
    segments: list[Segment] = field(default_factory=list)
    image: ImageFacts | None = None
    progress: Progress | None = None
    failure: Failure | None = None
    contents: dict[str, Any] | None = None
    """Counts of a filesystem: files, directories, bytes."""
