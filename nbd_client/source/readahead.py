"""Fetch what a sequential reader will ask for, before it does.

The decisions are :class:`Streams` (PURE). A read that begins where an earlier one ended makes a stream, read
ahead by twice its length; each further one doubles that, up to several MiB in flight, in pieces that begin and
end at round offsets. Reads that continue nothing cause nothing, so random reads cost exactly what they need;
two that happen to be neighbours cost a few KiB once, because a stream that is not continued soon is forgotten.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from blockgate.reader import Bytes, check_bounds
from nbd_client.source.cache import CacheReader

_CANDIDATES = 32
_STREAMS = 8
_FORGOTTEN_AFTER_READS = 256
_OVERTAKING_READS = 16  # requests of one reader that may be in flight, and so overtake each other
_MAX_OVERTAKING_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class ReadaheadPolicy:
    """Bytes: how far one stream is read ahead at most, all streams together, and the pieces that are fetched."""

    window_bytes: int = 8 << 20
    total_bytes: int = 16 << 20
    piece_bytes: int = 1 << 20


@dataclass(slots=True)
class _Stream:
    expected: int  # where the next read should begin
    ahead: int  # everything below was asked for
    window: int
    seen: int = 0  # number of the read that continued it last


class Streams:
    """Recognises sequential readers of a device of ``size`` bytes."""

    def __init__(self, size: int, policy: ReadaheadPolicy) -> None:
        self._size = size
        self._policy = policy
        self._candidates: OrderedDict[int, None] = OrderedDict()  # where recent lone reads ended
        self._streams: list[_Stream] = []  # least recently used first
        self._reads = 0

    def observe(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Take note of a read; return the ranges to fetch now, in order."""
        self._reads += 1
        end = offset + length
        stream = self._stream_of(offset, length)
        if stream is None:
            if offset not in self._candidates:
                self._candidates[end] = None
                if len(self._candidates) > _CANDIDATES:
                    self._candidates.popitem(last=False)
                return []
            del self._candidates[offset]
            stream = _Stream(offset, end, length)
        else:
            self._streams.remove(stream)
        self._streams.append(stream)
        if offset == stream.expected:
            stream.window = min(2 * stream.window, self._policy.window_bytes)
        stream.expected = max(stream.expected, end)
        stream.ahead = max(stream.ahead, stream.expected)
        stream.seen = self._reads
        return self._advance(stream, length)

    def _stream_of(self, offset: int, length: int) -> _Stream | None:
        """The stream that a read belongs to, if only near its head; those long out of use are dropped."""
        streams = self._streams
        while streams and (len(streams) > _STREAMS or self._reads - streams[0].seen > _FORGOTTEN_AFTER_READS):
            del streams[0]
        slack = min(_OVERTAKING_READS * length, _MAX_OVERTAKING_BYTES)
        for stream in reversed(streams):
            if -slack <= offset - stream.expected <= slack:
                return stream
        return None

    def _advance(self, stream: _Stream, length: int) -> list[tuple[int, int]]:
        share = self._policy.total_bytes // len(self._streams)  # a total of 0: no readahead
        limit = min(stream.expected + min(stream.window, share), self._size)
        piece = max(min(self._policy.piece_bytes, stream.window // 2), length, 1)
        ranges: list[tuple[int, int]] = []
        while stream.ahead < limit:
            end = min(stream.ahead - stream.ahead % piece + piece, self._size)
            if end > limit:
                break  # a whole piece later, instead of many small ones now
            ranges.append((stream.ahead, end))
            stream.ahead = end
        return ranges


class ReadaheadReader:
    """A ``HotReader`` over a cache: the cache holds what was fetched ahead."""

    def __init__(self, cache: CacheReader, policy: ReadaheadPolicy | None = None) -> None:
        self._cache = cache
        self._streams = Streams(cache.size, policy or ReadaheadPolicy())
        self._prefetch = cache.prefetch

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._cache.size

    def peek(self, offset: int, length: int) -> Bytes | None:
        """The bytes, if they are at hand in one piece."""
        found = self._cache.peek(offset, length)
        if found is not None:
            for start, end in self._streams.observe(offset, length):
                self._prefetch(start, end)
        return found

    def start(self, offset: int, length: int) -> asyncio.Future[Bytes]:
        """Begin a read, and what should be fetched ahead of the next one: what is needed now goes first."""
        wanted = self._cache.start(offset, length)
        for start, end in self._streams.observe(offset, length):
            self._prefetch(start, end)
        return wanted

    async def read(self, offset: int, length: int) -> Bytes:
        """Return ``length`` bytes from ``offset``. Raises what the cache raises."""
        check_bounds(offset, length, self.size)
        found = self.peek(offset, length)
        return found if found is not None else await asyncio.shield(self.start(offset, length))

    def prefetch(self, start: int, end: int) -> None:
        """Begin to fetch ``[start, end)``."""
        self._prefetch(start, end)

    async def aclose(self) -> None:
        """Close the cache and what lies below."""
        await self._cache.aclose()
