"""What the catalog remembers of a device."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gateway.recipes.recipe import Recipe, unproven_tag
from gateway.recipes.spec import DeviceSpec, Layout
from gateway.recipes.states import State, Verification


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a device is not as it should be."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a registration is: bytes of the phase.

    While a fault is waited out the phase is ``waiting``, ``error`` says what happened, ``attempt`` how often it was tried,
    and ``retry_at`` when it will be again (Unix time).
    """

    phase: str
    done: int = 0
    total: int = 0
    error: Failure | None = None
    attempt: int = 0
    retry_at: float | None = None


@dataclass(frozen=True, slots=True)
class DeviceSummary:
    """What lists show of a device."""

    name: str
    uid: str
    state: State
    verification: Verification
    layout: Layout
    created_at: datetime
    size: int | None
    etag: str | None
    image: str
    """The reference, as the registry names it once the device is ready."""
    manifest: str | None
    platform: str
    progress: Progress | None
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """One row of the catalog. ``uid`` tells apart devices that had the same name one after the other."""

    name: str
    uid: str
    spec: DeviceSpec
    state: State
    verification: Verification
    created_at: datetime
    recipe: Recipe | None = None
    progress: Progress | None = None
    failure: Failure | None = None
    contents: dict[str, Any] | None = None
    """Counts of a file system: files, directories, bytes."""
    newer: str | None = None
    """Why this version cannot work with the row, if a later one wrote it."""

    @property
    def etag(self) -> str | None:
        """The entity tag under which its bytes are served now."""
        if self.recipe is None:
            return None
        proven = self.verification is Verification.VERIFIED
        return self.recipe.etag if proven else self.unproven_etag or self.recipe.etag

    @property
    def unproven_etag(self) -> str | None:
        """The entity tag under which its bytes are or were served before they were proven; ``None`` if that never was so."""
        if self.recipe is None or self.recipe.unproven_zinfo is None:
            return None
        return unproven_tag(self.recipe.etag, self.recipe.unproven_zinfo)

    @property
    def unfinished(self) -> bool:
        """Whether work is to be done for it: to index it, or to prove what it is served by."""
        return self.newer is None and (
            self.state is State.INDEXING
            or (self.state is State.READY and self.verification is Verification.VERIFYING)
        )


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list; ``cursor`` asks for the next part, ``None`` at the end."""

    devices: tuple[DeviceSummary, ...]
    cursor: str | None
