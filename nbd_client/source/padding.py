"""A device's size is a multiple of its block size: content that is not is continued with zeros."""

from __future__ import annotations

import asyncio

from blockgate.reader import Bytes, check_bounds
from nbd_client.source.stack import Source


class PaddedSource:
    """What the server reads a device from: ``source``, then zeros up to a multiple of ``block_bytes``."""

    def __init__(self, source: Source, block_bytes: int) -> None:
        self._source = source
        self._size = -(-source.size // block_bytes) * block_bytes

    @property
    def size(self) -> int:
        """Length in bytes, with the padding."""
        return self._size

    def peek(self, offset: int, length: int) -> Bytes | None:
        """The bytes, if they are at hand in one piece."""
        return self._source.peek(offset, length) if offset + length <= self._source.size else None

    def start(self, offset: int, length: int) -> asyncio.Future[Bytes]:
        """Begin a read."""
        if offset + length <= self._source.size:
            return self._source.start(offset, length)
        return asyncio.get_running_loop().create_task(self.read(offset, length))

    def prefetch(self, start: int, end: int) -> None:
        """Begin to fetch ``[start, end)``."""
        self._source.prefetch(start, min(end, self._source.size))

    async def read(self, offset: int, length: int) -> Bytes:
        """Return ``length`` bytes from ``offset``. Raises what the source raises."""
        check_bounds(offset, length, self._size)
        there = max(min(length, self._source.size - offset), 0)
        data = await self._source.read(offset, there) if there else b""
        return data if there == length else bytes(data) + bytes(length - there)

    async def aclose(self) -> None:
        """Close the source."""
        await self._source.aclose()
