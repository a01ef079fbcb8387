"""A readable device: segments over layers over the span store."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import NamedTuple

from blockgate.reader import Bytes, check_bounds
from gateway.devices.readahead import StreamTracker
from gateway.devices.segments import Segment, SegmentMap, identity
from gateway.spans.layer import SpanLayer
from gateway.spans.store import Found, Origin, SpanStore

_ZEROS = memoryview(bytes(1 << 16))
_READAHEAD_BYTES = 8 << 20
# Of one request, this much is fetched side by side.
_AHEAD_BYTES = 12 << 20
_AHEAD_SPANS = 12
# For the hot path: up to Python 3.11, looking a member up in its class runs Python code.
_MEMORY = Origin.MEMORY


class _Want(NamedTuple):
    """``[start, stop)`` of a span (or of zeros, when there is no layer)."""

    layer: SpanLayer | None
    span: int
    start: int
    stop: int


class Device:
    """Immutable bytes with a size and an entity tag. Implements ``Reader``.

    ``layers`` runs parallel to ``segments``; ``None`` for zeros.
    """

    def __init__(
        self, name: str, segments: Sequence[Segment], layers: Sequence[SpanLayer | None], store: SpanStore
    ) -> None:
        self.name = name
        self.etag = identity(segments)
        self.layers = layers
        self.served: dict[Origin, int] = dict.fromkeys(Origin, 0)
        self._map = SegmentMap(segments)
        self.size = self._map.size
        """Bytes."""
        self._store = store
        self._streams = StreamTracker(_READAHEAD_BYTES)

    @property
    def segments(self) -> list[Segment]:
        """The address space."""
        return self._map.segments

    def peek(self, start: int, stop: int) -> list[Bytes] | None:
        """The bytes of ``[start, stop)`` in pieces when all of them are in memory; never waits."""
        piece = self._peek_one(start, stop)
        if piece is not None:
            return [piece]
        pieces: list[Bytes] = []
        for want in self._wants(start, stop):
            if want.layer is None:
                pieces.append(_ZEROS[: want.stop - want.start])
                continue
            data = self._store.peek(want.layer, want.span)
            if data is None:
                self._forget_reads(start, want)
                return None
            want.layer.reads[want.span] += 1
            pieces.append(memoryview(data)[want.start : want.stop])
        self.served[_MEMORY] += stop - start
        return pieces

    def _peek_one(self, start: int, stop: int) -> Bytes | None:
        """As ``peek`` for bytes of a single span; ``None`` also when they are of several, or zeros."""
        if start >= stop:
            return None
        number = self._map.find(start)
        layer = self.layers[number]
        if layer is None:
            return None
        segment = self._map.segments[number]
        first = start - segment.offset
        length = stop - start
        span, begin, end = layer.table.locate(first)
        if first + length > min(end, segment.length):
            return None
        data = self._store.peek(layer, span)
        if data is None:
            return None
        layer.reads[span] += 1
        self.served[_MEMORY] += length
        return memoryview(data)[first - begin : first - begin + length]

    def expect(self, start: int, stop: int) -> None:
        """A request for ``[start, stop)`` is being answered: read ahead of it if it belongs to a stream.

        Not past the segment's end: a mount that reads metadata in order is not about to read the first layer.
        """
        ahead = self._streams.note(start, stop)
        if not ahead:
            return
        segment = self._map.segments[self._map.find(stop - 1)]
        for want in self._wants(stop, min(stop + ahead, segment.offset + segment.length)):
            if want.layer is not None:
                self._store.prefetch(want.layer, want.span)

    async def stream(self, start: int, stop: int) -> AsyncIterator[Bytes]:
        """The bytes of ``[start, stop)`` in order and in pieces, fetched side by side a little ahead of the reader.

        Raises at the first piece that cannot be had; what was yielded before is right.
        """
        check_bounds(start, stop - start, self.size)
        wants = self._wants(start, stop)
        ahead: deque[tuple[_Want, asyncio.Future[Found] | None]] = deque()
        ahead_bytes = 0
        more = True
        while True:
            while more and (not ahead or (len(ahead) < _AHEAD_SPANS and ahead_bytes < _AHEAD_BYTES)):
                want = next(wants, None)
                if want is None:
                    more = False
                    break
                future = None
                if want.layer is not None:
                    # Only the piece that is needed next may be refused for overload.
                    future = self._store.begin(want.layer, want.span, patient=bool(ahead))
                    ahead_bytes += want.layer.table.span(want.span).out_length
                ahead.append((want, future))
            if not ahead:
                return
            want, future = ahead.popleft()
            if want.layer is None:
                self.served[_MEMORY] += want.stop - want.start
                yield _ZEROS[: want.stop - want.start]
                continue
            ahead_bytes -= want.layer.table.span(want.span).out_length
            if future is None:
                data, origin = await self._store.read(want.layer, want.span, patient=True)
            else:
                data, origin = await asyncio.shield(future)
            self.served[origin] += want.stop - want.start
            want.layer.reads[want.span] += 1
            yield memoryview(data)[want.start : want.stop]

    async def read(self, offset: int, length: int) -> Bytes:
        """Exactly ``length`` bytes in one piece."""
        check_bounds(offset, length, self.size)
        pieces = self.peek(offset, offset + length)
        if pieces is None:
            pieces = [piece async for piece in self.stream(offset, offset + length)]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def aclose(self) -> None:
        """Close what the layers read from."""
        for layer in self.layers:
            if layer is not None:
                await layer.source.aclose()

    def _forget_reads(self, start: int, missing: _Want) -> None:
        """The reads before ``missing`` were counted, but all will be read once more."""
        for want in self._wants(start, self.size):
            if want.layer is missing.layer and want.span == missing.span:
                return
            if want.layer is not None:
                want.layer.reads[want.span] -= 1

    def _wants(self, start: int, stop: int) -> Iterator[_Want]:
        if start >= stop:
            return
        number = self._map.find(start)
        while start < stop:
            segment, layer = self._map.segments[number], self.layers[number]
            end = min(stop, segment.offset + segment.length)
            if layer is None:
                for begin in range(start, end, len(_ZEROS)):
                    yield _Want(None, 0, 0, min(len(_ZEROS), end - begin))
            else:
                position = start - segment.offset
                last = end - segment.offset
                span = layer.table.find(position)
                while position < last:
                    first_byte, stop_byte = layer.table.bounds(span)
                    if stop_byte > position:
                        upto = min(last, stop_byte)
                        yield _Want(layer, span, position - first_byte, upto - first_byte)
                        position = upto
                    span += 1
            start = end
            number += 1
