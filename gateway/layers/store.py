"""Where layer indexes are kept: the interface, which a folder and an object store can both serve."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from gateway.gzran.zinfo import Checkpoint
from gateway.layers.index import IndexFacts, IndexRow, LayerIndex
from gateway.layers.key import LayerKey


class Draft(Protocol):
    """The files of one attempt while its pass runs. All but ``publish`` block and run on the pass' thread."""

    @property
    def contents_path(self) -> Path:
        """Where the table of contents is written, if there is to be one."""
        ...

    def begin_checkpoints(self, span_size: int) -> None:
        """The index will have windows; ``span_size`` goes into their file's head."""
        ...

    def checkpoint(self, checkpoint: Checkpoint, window: bytes) -> None:
        """Append one."""
        ...

    def complete(self, facts: IndexFacts, spans: bytes, leaves: bytes) -> None:
        """Write the rest. ``facts.files`` is filled in here."""
        ...

    async def publish(self) -> IndexRow:
        """Make the attempt readable under its name, durably. The catalog decides afterwards whether it counts."""
        ...


class LayerStore(Protocol):
    """Indexes by key and attempt. Immutable, so nothing is ever written again; all calls may be made at any time.

    Every call raises ``StorageError`` when the store does not answer. That never means that an index is not there.
    """

    async def open(self, key: LayerKey, row: IndexRow) -> LayerIndex:
        """Open one. Raises ``IndexAbsent`` where there is none, ``IndexDamaged`` where it is not what was written."""
        ...

    async def contents(self, index: LayerIndex) -> Path:
        """The index' table of contents as a local file, verified. Raises as ``open``."""
        ...

    def draft(self, key: LayerKey) -> AbstractAsyncContextManager[Draft]:
        """An attempt to make one. Leaving the context without ``publish`` removes what was written."""
        ...

    async def drop(self, key: LayerKey, attempt: str) -> None:
        """Remove one attempt, if it is there."""
        ...

    async def drop_copies(self, key: LayerKey, row: IndexRow) -> None:
        """Remove a damaged attempt and all that ``open`` would take for it."""
        ...
