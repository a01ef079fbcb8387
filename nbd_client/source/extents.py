"""Which parts of a device are in memory: an ordered map of extents that never overlap. PURE.

Not fixed chunks: a random 4 KiB read costs 4 KiB of upstream and of memory, a sequential one is kept in the
megabytes that it was fetched in, and a read inside of one extent is answered with a slice of it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from typing import Generic, TypeVar

Pending = TypeVar("Pending")

# What one extent costs besides its bytes (objects, map, order), measured roughly; small extents count it.
OVERHEAD_BYTES = 512


class Extent(Generic[Pending]):
    """Bytes ``[start, end)``: ready when ``data`` is set, else on their way with ``pending``."""

    __slots__ = ("data", "end", "pending", "start")

    def __init__(self, start: int, end: int, pending: Pending | None = None) -> None:
        self.start = start
        self.end = end
        self.data: memoryview | None = None
        self.pending = pending


class ExtentMap(Generic[Pending]):
    """Extents by offset, the ready ones within ``budget_bytes``, least recently used evicted first."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._used_bytes = 0
        self._starts: list[int] = []
        self._by_start: dict[int, Extent[Pending]] = {}
        self._ready: OrderedDict[int, Extent[Pending]] = OrderedDict()

    @property
    def used_bytes(self) -> int:
        """What the ready extents cost; never above the budget."""
        return self._used_bytes

    def __len__(self) -> int:
        return len(self._starts)

    def find(self, start: int, end: int) -> memoryview | None:
        """The bytes ``[start, end)`` if one ready extent holds them all."""
        extent = self._ready.get(start)
        if extent is None:
            index = bisect_right(self._starts, start) - 1
            if index < 0:
                return None
            extent = self._by_start[self._starts[index]]
        data = extent.data
        if data is None or end > extent.end:
            return None
        self._ready.move_to_end(extent.start)
        return data[start - extent.start : end - extent.start]

    def overlapping(self, start: int, end: int) -> list[Extent[Pending]]:
        """The extents that share a byte with ``[start, end)``, in order."""
        low = bisect_right(self._starts, start)
        if low and self._by_start[self._starts[low - 1]].end > start:
            low -= 1
        high = bisect_left(self._starts, end, low)
        return [self._by_start[first] for first in self._starts[low:high]]

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of ``[start, end)`` that no extent covers, in order."""
        gaps: list[tuple[int, int]] = []
        position = start
        for extent in self.overlapping(start, end):
            if extent.start > position:
                gaps.append((position, extent.start))
            position = extent.end
        if position < end:
            gaps.append((position, end))
        return gaps

    def add(self, extent: Extent[Pending]) -> bool:
        """Put a pending extent into a gap; False, and nothing done, when it overlaps another or is empty."""
        starts = self._starts
        index = bisect_left(starts, extent.start)
        if extent.start >= extent.end or (index < len(starts) and starts[index] < extent.end):
            return False
        if index and self._by_start[starts[index - 1]].end > extent.start:
            return False
        starts.insert(index, extent.start)
        self._by_start[extent.start] = extent
        return True

    def complete(self, extent: Extent[Pending], data: memoryview) -> None:
        """The extent's bytes are there. Evicts others, or it, until the budget holds."""
        extent.data = data
        extent.pending = None
        if self._by_start.get(extent.start) is not extent:
            return  # cleared meanwhile; whoever awaits it has it in hand
        self._ready[extent.start] = extent
        self._used_bytes += _cost(extent)
        while self._used_bytes > self._budget_bytes:
            _, oldest = self._ready.popitem(last=False)
            self._forget(oldest)

    def remove(self, extent: Extent[Pending]) -> None:
        """The extent's bytes will not come."""
        if self._by_start.get(extent.start) is extent and extent.data is None:
            self._delete(extent)

    def clear(self) -> None:
        """Forget every ready extent."""
        for extent in self._ready.values():
            self._forget(extent)
        self._ready.clear()

    def _forget(self, extent: Extent[Pending]) -> None:
        self._used_bytes -= _cost(extent)
        self._delete(extent)

    def _delete(self, extent: Extent[Pending]) -> None:
        del self._by_start[extent.start]
        del self._starts[bisect_left(self._starts, extent.start)]


def _cost(extent: Extent[Pending]) -> int:
    return extent.end - extent.start + OVERHEAD_BYTES
