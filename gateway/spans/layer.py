"""One layer as the span store sees it: how it is cut, where its bytes come from, and how far it is proven."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Protocol

from blockgate.reader import Bytes, Reader
from gateway.errors import BlockgateError
from gateway.spans.memory import MemoryTier, SpanKey
from gateway.spans.table import SpanTable


class WindowSource(Protocol):
    """Where the 32 KiB windows of the checkpoints are read."""

    def window(self, index: int) -> Bytes:
        """The window of checkpoint ``index``."""
        ...


class SpanLayer:
    """A layer whose spans the store reads.

    ``windows`` is ``None`` for layers that are stored as they are. A *local* one lies on this machine's disk already and is
    not copied to the disk tier. A *provisional* layer is one whose supplied checkpoints no
    pass has proven yet: it has a small memory of its own, since nothing unproven may enter a cache that others read.
    """

    def __init__(
        self,
        blob: str,
        index_id: str,
        table: SpanTable,
        windows: WindowSource | None,
        source: Reader,
        *,
        local: bool = False,
        provisional_memory: MemoryTier | None = None,
    ) -> None:
        self.blob = blob
        self.index_id = index_id
        self.table = table
        self.windows = windows
        self.source = source
        self.local = local
        self.provisional_memory = provisional_memory
        self.confirmed_windows: set[int] = set()
        # What is shown of the layer: how often each span was read, which could not be, what fetching cost.
        # 64 bits: a 32-bit counter of a busy span would overflow within days.
        self.reads = array("Q", bytes(8 * table.count))
        self.failed: set[int] = set()
        self.fetched_bytes = 0
        self.error: BlockgateError | None = None
        self.on_health: Callable[[BlockgateError | None], None] = _ignore

    @property
    def size(self) -> int:
        """Decoded bytes."""
        return self.table.size

    @property
    def where(self) -> str:
        """The layer's name in errors."""
        return f"layer {self.blob[:19]}…"

    def key(self, index: int) -> SpanKey:
        """Cache key of a span."""
        return SpanKey(self.blob, self.index_id, index)

    def window(self, index: int) -> Bytes | None:
        """Window of a checkpoint; ``None`` past the last one and where nothing is compressed."""
        if self.windows is None or index >= self.table.count:
            return None
        return self.windows.window(index)

    def note(self, error: BlockgateError | None) -> None:
        """Remember how the last fetch from the source ended, and tell whoever wants to know when its kind changes."""
        changed = type(error) is not type(self.error)
        self.error = error
        if changed:
            self.on_health(error)


def _ignore(_error: BlockgateError | None) -> None:
    return None
