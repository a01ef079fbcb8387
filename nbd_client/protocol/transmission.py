"""The server's side of the transmission phase, simple replies only (proto.md, "Transmission"). PURE.

The export is read-only, so three things can be asked for: bytes (``Read``), a hint that bytes will be asked
for (``Prefetch``), and the end (``Disconnect``). Everything else is already answered here (``Answer``).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from nbd_client.protocol import constants as c

_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
REQUEST_BYTES = _REQUEST.size
REPLY_BYTES = _REPLY.size


class Read(NamedTuple):
    """Send ``length`` bytes from ``offset`` under ``cookie``; the range lies in the export."""

    cookie: int
    offset: int
    length: int


class Prefetch(NamedTuple):
    """Bring these bytes near (CMD_CACHE), then answer; the range lies in the export."""

    cookie: int
    offset: int
    length: int


class Answer(NamedTuple):
    """Send a reply without payload."""

    cookie: int
    error: int


class Disconnect(NamedTuple):
    """The client is done: finish what is in flight, then close."""


class Violation(NamedTuple):
    """The stream makes no sense any more: close at once. ``reason`` is for the log."""

    reason: str


Event = Read | Prefetch | Answer | Disconnect | Violation


def reply_header(cookie: int, error: int = 0) -> bytes:
    """A simple reply: 16 bytes, followed by the payload if and only if a READ succeeded."""
    return _REPLY.pack(c.SIMPLE_REPLY_MAGIC, error, cookie)


class Transmission:
    """Decode requests for a read-only export of ``size`` bytes.

    After ``Disconnect`` or ``Violation`` whatever else arrives is ignored.
    """

    def __init__(self, size: int, *, max_payload_bytes: int = c.MAX_PAYLOAD_BYTES) -> None:
        self._size = size
        self._max_payload_bytes = max_payload_bytes
        self._partial = bytearray()  # less than one request header
        self._skip_bytes = 0  # payload of a refused WRITE that is still to come
        self._skip_cookie = 0
        self._done = False

    def receive(self, data: bytes | memoryview) -> list[Event]:
        """Take what arrived; return the events it completes, in order."""
        events: list[Event] = []
        if self._done:
            return events
        if self._partial:
            data = bytes(self._partial) + data
            self._partial.clear()
        position, end = 0, len(data)
        while not self._done:
            if self._skip_bytes:
                dropped = min(self._skip_bytes, end - position)
                position += dropped
                self._skip_bytes -= dropped
                if self._skip_bytes:
                    break
                # Only now: a client that is still writing its payload may not be reading yet.
                events.append(Answer(self._skip_cookie, c.Errno.EPERM))
            if end - position < REQUEST_BYTES:
                self._partial += data[position:]
                break
            event = self._decode(_REQUEST.unpack_from(data, position))
            position += REQUEST_BYTES
            if event is not None:
                events.append(event)
        return events

    def _decode(self, request: tuple[int, int, int, int, int, int]) -> Event | None:
        magic, flags, command, cookie, offset, length = request
        if magic != c.REQUEST_MAGIC:
            return self._violated(f"bad request magic {magic:#x}")
        if command == c.Command.READ:  # nearly every request: not worth a look into the table
            return self._read(cookie, flags, offset, length)
        return _HANDLERS.get(command, Transmission._unknown)(self, cookie, flags, offset, length)

    def _read(self, cookie: int, flags: int, offset: int, length: int) -> Event:
        error = self._refusal(flags, offset, length, self._max_payload_bytes)
        return Answer(cookie, error) if error else Read(cookie, offset, length)

    def _cache(self, cookie: int, flags: int, offset: int, length: int) -> Event:
        error = self._refusal(flags, offset, length, self._size)
        return Answer(cookie, error) if error else Prefetch(cookie, offset, length)

    def _flush(self, cookie: int, flags: int, offset: int, length: int) -> Event:
        """Nothing is ever dirty."""
        return Answer(cookie, c.Errno.EINVAL if flags or offset or length else c.Errno.OK)

    def _disconnect(self, _cookie: int, _flags: int, _offset: int, _length: int) -> Event:
        self._done = True
        return Disconnect()

    def _write(self, cookie: int, _flags: int, _offset: int, length: int) -> Event | None:
        if length > self._max_payload_bytes:
            return self._violated(f"a WRITE of {length} bytes")
        if not length:
            return Answer(cookie, c.Errno.EPERM)
        self._skip_bytes, self._skip_cookie = length, cookie
        return None

    def _modify(self, cookie: int, _flags: int, _offset: int, _length: int) -> Event:
        return Answer(cookie, c.Errno.EPERM)

    def _unknown(self, cookie: int, _flags: int, _offset: int, _length: int) -> Event:
        return Answer(cookie, c.Errno.EINVAL)

    def _refusal(self, flags: int, offset: int, length: int, limit: int) -> int:
        # "Request types": flags that were not negotiated, empty and oversized requests are all EINVAL.
        if flags or not 0 < length <= limit or offset + length > self._size:
            return c.Errno.EINVAL
        return c.Errno.OK

    def _violated(self, reason: str) -> Violation:
        self._done = True
        return Violation(reason)


_Handler = Callable[[Transmission, int, int, int, int], Event | None]

_HANDLERS: dict[int, _Handler] = {
    c.Command.WRITE: Transmission._write,  # noqa: SLF001  the table belongs to the class
    c.Command.DISC: Transmission._disconnect,  # noqa: SLF001
    c.Command.FLUSH: Transmission._flush,  # noqa: SLF001
    c.Command.TRIM: Transmission._modify,  # noqa: SLF001
    c.Command.CACHE: Transmission._cache,  # noqa: SLF001
    c.Command.WRITE_ZEROES: Transmission._modify,  # noqa: SLF001
}
