"""What was read stays at hand, and what is on its way is fetched once, however many ask for it.

A reader that is cancelled never cancels a fetch: others may wait for it, and its bytes are worth keeping.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from blockgate.reader import Bytes, Reader, check_bounds
from nbd_client.errors import BlockgateError
from nbd_client.source.extents import Extent, ExtentMap

_MAX_FETCH_BYTES = 4 << 20  # longer gaps are fetched side by side

_Fetch = asyncio.Task[Bytes]


class CacheReader:
    """A ``HotReader`` over a ``Reader``, holding at most ``budget_bytes`` of what was read."""

    def __init__(self, inner: Reader, budget_bytes: int) -> None:
        self._inner = inner
        self._extents: ExtentMap[_Fetch] = ExtentMap(budget_bytes)
        self._fetches: dict[_Fetch, int] = {}  # what is awaited of the inner reader, in bytes
        self._budget_bytes = budget_bytes
        self._in_flight_bytes = 0
        self._size = inner.size

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._size

    @property
    def used_bytes(self) -> int:
        """Memory that the cache holds."""
        return self._extents.used_bytes

    def peek(self, offset: int, length: int) -> Bytes | None:
        """The bytes, if they are at hand in one piece."""
        return self._extents.find(offset, offset + length)

    def start(self, offset: int, length: int) -> asyncio.Future[Bytes]:
        """Begin a read. Nearly always nothing of it is here: then its fetch is all that there is to wait for."""
        if length <= _MAX_FETCH_BYTES:
            fetch = self._begin(Extent(offset, offset + length))
            if fetch is not None:
                return fetch
        return self._own(self.read(offset, length), 0)

    def prefetch(self, start: int, end: int) -> None:
        """Begin to fetch whatever of ``[start, end)`` is neither here nor on its way. Errors are dropped.

        So is the hint itself, when as much is on its way as the cache can hold.
        """
        if self._in_flight_bytes + end - start <= self._budget_bytes:
            self._fetch_missing(start, end)

    def _fetch_missing(self, start: int, end: int) -> None:
        for gap_start, gap_end in self._extents.gaps(start, min(end, self._size)):
            for piece in range(gap_start, gap_end, _MAX_FETCH_BYTES):
                self._begin(Extent(piece, min(piece + _MAX_FETCH_BYTES, gap_end)))

    async def read(self, offset: int, length: int) -> Bytes:
        """Return ``length`` bytes from ``offset``. Raises ``RangeNotSatisfiable`` or what the inner reader raised."""
        check_bounds(offset, length, self._size)
        if not length:
            return b""
        end = offset + length
        others = {extent.pending for extent in self._extents.overlapping(offset, end)}
        while True:
            self._fetch_missing(offset, end)
            extents = self._extents.overlapping(offset, end)
            try:
                return await self._assemble(offset, end, extents)
            except BlockgateError:
                # A fetch that somebody else began may have used up its time before this read came: once
                # more, on this read's own account.
                failed = {extent.pending for extent in extents if extent.data is None and _failed(extent)}
                if not failed & others:
                    raise
                others -= failed

    def clear(self) -> None:
        """Give the memory back."""
        self._extents.clear()

    async def aclose(self) -> None:
        """End every fetch, then close the inner reader."""
        for fetch in self._fetches:
            fetch.cancel()
        await asyncio.gather(*self._fetches, return_exceptions=True)
        self._extents.clear()
        await self._inner.aclose()

    async def _assemble(self, start: int, end: int, extents: list[Extent[_Fetch]]) -> Bytes:
        parts: list[memoryview] = []
        for extent in extents:
            data = extent.data
            if data is None:
                assert extent.pending is not None  # noqa: S101  one of the two always is
                data = memoryview(await asyncio.shield(extent.pending))
            parts.append(data[max(start - extent.start, 0) : end - extent.start])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _begin(self, extent: Extent[_Fetch]) -> _Fetch | None:
        if not self._extents.add(extent):
            return None
        extent.pending = fetch = self._own(self._fetch(extent), extent.end - extent.start)
        return fetch

    def _own(self, work: Coroutine[Any, Any, Bytes], awaited_bytes: int) -> _Fetch:
        task = asyncio.get_running_loop().create_task(work)
        self._fetches[task] = awaited_bytes
        self._in_flight_bytes += awaited_bytes
        task.add_done_callback(self._ended)
        return task

    def _ended(self, fetch: _Fetch) -> None:
        self._in_flight_bytes -= self._fetches.pop(fetch)
        if not fetch.cancelled():
            fetch.exception()  # those who wait have it; a prefetch's is nobody's business

    async def _fetch(self, extent: Extent[_Fetch]) -> Bytes:
        try:
            data = memoryview(await self._inner.read(extent.start, extent.end - extent.start))
        except BaseException:
            self._extents.remove(extent)
            raise
        self._extents.complete(extent, data)
        return data


def _failed(extent: Extent[_Fetch]) -> bool:
    fetch = extent.pending
    return fetch is not None and fetch.done() and (fetch.cancelled() or fetch.exception() is not None)
