"""A readable device: segments over layers over the span store."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Generator, Sequence
from typing import NamedTuple

from blockgate.reader import Bytes, check_bounds
from gateway.devices.readahead import StreamTracker
from gateway.errors import Overloaded
from gateway.recipes.segments import Segment, SegmentMap
from gateway.spans.flights import Flight
from gateway.spans.layer import Layer
from gateway.spans.store import SpanStore
from gateway.spans.tier import Origin

_ZEROS = memoryview(bytes(1 << 16))
_READAHEAD_BYTES = 8 << 20
# Of one request, this much is fetched side by side.
_AHEAD_BYTES = 12 << 20
_AHEAD_SPANS = 12
# For the hot path: up to Python 3.11, looking a member up in its class runs Python code.
_MEMORY = Origin.MEMORY


class _Want(NamedTuple):
    """``[start, stop)`` of a span (or of zeros, when there is no layer)."""

    layer: Layer | None
    span: int
    start: int
    stop: int


class Device:
    """Immutable bytes with a size and an entity tag. Implements ``Reader``.

    ``layers`` runs parallel to ``segments``; ``None`` for zeros. Layers are opened when they are first read: one
    whose index is being made again delays reads of its own bytes and of no others. ``proven`` says whether a pass
    vouches for the bytes.
    """

    def __init__(
        self,
        name: str,
        etag: str,
        segments: Sequence[Segment],
        layers: Sequence[Layer | None],
        store: SpanStore,
        *,
        proven: bool = True,
    ) -> None:
        self.name = name
        self.etag = etag
        self.proven = proven
        self.layers = layers
        self.fields: dict[str, list[tuple[bytes, bytes]]] = {}
        """Header fields of its answers, which the HTTP face makes once (``api/data.py``)."""
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
        end = start
        for want in self._wants(start, stop):
            end += want.stop - want.start
            if want.layer is None:
                pieces.append(_ZEROS[: want.stop - want.start])
                continue
            data = self._store.peek(want.layer, want.span)
            if data is None:
                self._forget_reads(start, want)
                return None
            want.layer.reads[want.span] += 1
            pieces.append(memoryview(data)[want.start : want.stop])
        if end < stop:
            return None  # a layer is not open yet
        self.served[_MEMORY] += stop - start
        return pieces

    def _peek_one(self, start: int, stop: int) -> Bytes | None:
        """As ``peek`` for bytes of a single span; ``None`` also when they are of several, or zeros."""
        if start >= stop:
            return None
        number = self._map.find(start)
        layer = self.layers[number]
        if layer is None or layer.index is None:
            return None
        segment = self._map.segments[number]
        first = start - segment.offset
        length = stop - start
        span, begin, end = layer.index.table.locate(first)
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

        A piece counts as held until the next one is asked for. Raises at the first piece that cannot be had; what was
        yielded before is right.
        """
        check_bounds(start, stop - start, self.size)
        position = start
        wants = self._wants(start, stop)
        ahead: deque[tuple[_Want, Flight | None]] = deque()
        try:
            while position < stop:
                self._fill_up(wants, ahead, begun=position > start)
                if not ahead:
                    # Nothing could be begun: a layer is to be opened, or there was no room for its first span.
                    await self._prepare(position)
                    wants = self._wants(position, stop)
                    continue
                want, flight = ahead[0]
                position += want.stop - want.start
                if flight is None:
                    self.served[_MEMORY] += want.stop - want.start
                    yield _ZEROS[: want.stop - want.start]
                else:
                    assert want.layer is not None  # noqa: S101 - only zeros have no flight
                    data, origin = await asyncio.shield(flight.future)
                    self.served[origin] += want.stop - want.start
                    want.layer.reads[want.span] += 1
                    yield memoryview(data)[want.start : want.stop]
                    flight.release()
                ahead.popleft()
        finally:
            for _, flight in ahead:
                if flight is not None:
                    flight.release()

    def _fill_up(
        self, wants: Generator[_Want, None, None], ahead: deque[tuple[_Want, Flight | None]], *, begun: bool
    ) -> None:
        """Begin what comes next, up to what may be begun ahead; nothing where there is no room.

        Raises ``Overloaded`` for the first piece of an answer that has not ``begun``.
        """
        held = sum(flight.bytes for _, flight in ahead if flight is not None)
        while not ahead or (len(ahead) < _AHEAD_SPANS and held < _AHEAD_BYTES):
            want = next(wants, None)
            if want is None:
                return
            flight = None
            if want.layer is not None:
                try:
                    flight = self._store.begin(want.layer, want.span, ahead=bool(ahead))
                except Overloaded:
                    if not begun:
                        raise
                if flight is None:
                    # What would be begun behind a gap is held for nothing until the gap is filled.
                    wants.close()
                    return
                held += flight.bytes
            ahead.append((want, flight))

    async def _prepare(self, position: int) -> None:
        """Have the layer at ``position`` open, and room for one of its spans."""
        layer = self.layers[self._map.find(position)]
        if layer is not None:
            await layer.open()
        await self._store.wait_for_room()

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

    def _wants(self, start: int, stop: int) -> Generator[_Want, None, None]:
        """What makes up ``[start, stop)``, in order, up to the first layer that is not open."""
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
                if layer.index is None:
                    return
                table = layer.index.table
                position = start - segment.offset
                last = end - segment.offset
                span = table.find(position)
                while position < last:
                    first_byte, stop_byte = table.bounds(span)
                    if stop_byte > position:
                        upto = min(last, stop_byte)
                        yield _Want(layer, span, position - first_byte, upto - first_byte)
                        position = upto
                    span += 1
            start = end
            number += 1
