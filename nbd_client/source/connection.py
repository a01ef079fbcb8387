"""One HTTP/1.1 connection that reads bodies straight into the caller's memory.

httpx costs about a millisecond of CPU per request, which is more than everything else that a block read
takes; so the block path has a client of its own, with just what a block read needs: one GET at a time, a
body of known length. The head arrives in a buffer of the connection; as soon as it is judged, the transport
receives into the target itself.

::

    IDLE ──fetch──▶ HEAD ──judge──▶ BODY ──all bytes──▶ IDLE, or CLOSED when the server wants no more
    end of stream, reset, overdue, a refused answer, bytes that nobody asked for ──▶ CLOSED
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum, auto
from typing import cast

from nbd_client.errors import (
    SourceProtocolError,
    SourceTimeout,
    SourceUnreachable,
    TruncatedBody,
)
from nbd_client.source.response import MAX_HEAD_BYTES, Head, HeadParser

# Short, so that little of a large body lands in it and has to be copied out.
_HEAD_BUFFER_BYTES = 8 << 10
_CONTINUE_STATUSES = range(100, 200)

Judge = Callable[[Head], int]
"""Says how many bytes of the body to take into the target (exactly the body's length), or raises."""


class _State(Enum):
    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    CLOSED = auto()


class StaleConnection(Exception):
    """The server had closed a kept connection before it saw the request: ask again on a fresh one at once."""


class Connection(asyncio.BufferedProtocol):
    """A connection that is in use by one caller at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._state = _State.IDLE
        self._transport: asyncio.Transport | None = None
        self._head = bytearray(_HEAD_BUFFER_BYTES)
        self._head_view = memoryview(self._head)
        self._head_filled = 0
        self._target = memoryview(b"")
        self._filled = 0
        self._expected = 0
        self._keep_alive = True
        self._judge: Judge | None = None
        self._waiter: asyncio.Future[int] | None = None
        self._deadline = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._parser = HeadParser()
        self.requests = 0

    @property
    def usable(self) -> bool:
        """Whether another request may be sent."""
        return self._state is _State.IDLE and self._transport is not None

    async def fetch(self, request: bytes, judge: Judge, target: memoryview, deadline: float) -> int:
        """Send ``request``; fill a prefix of ``target`` with the body; return how many bytes.

        ``deadline`` is a time of the loop's clock. Raises ``SourceError``, ``StaleConnection`` or
        what ``judge`` raised; the connection is closed then.
        """
        transport = self._transport
        if transport is None or self._state is not _State.IDLE:
            raise StaleConnection("the connection was closed between two requests")
        self._state = _State.HEAD
        self._head_filled = 0
        self._target, self._filled, self._judge = target, 0, judge
        self._waiter = self._loop.create_future()
        self._deadline = deadline
        if self._watch is None:
            # One timer that looks at the deadline of the day, instead of one per request.
            self._watch = self._loop.call_at(deadline, self._look_at_deadline)
        transport.write(request)
        try:
            return await self._waiter
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self.requests += 1
            self._waiter = self._judge = None
            self._target = memoryview(b"")

    def close(self) -> None:
        """Close now; whoever waits is told that the connection is gone."""
        self._fail(SourceUnreachable("the connection was closed"))

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready for a request."""
        # Not isinstance: uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Where the next bytes go: the target, once the head is judged."""
        if self._state is _State.BODY:
            return self._target[self._filled : self._expected]
        if self._state is _State.HEAD:
            return self._head_view[self._head_filled :]
        return self._head_view  # never empty: whatever arrives now ends the connection

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes arrived."""
        if self._state is _State.BODY:
            self._filled += nbytes
            if self._filled == self._expected:
                self._finish()
        elif self._state is _State.HEAD:
            self._head_filled += nbytes
            self._read_head()
        else:
            self._fail(SourceProtocolError("the server sent bytes that nobody asked for"))

    def eof_received(self) -> bool:
        """The server closed."""
        self._fail(self._broken())
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection broke."""
        self._fail(self._broken(exc))

    # Inside.

    def _broken(self, exc: Exception | None = None) -> Exception:
        if self._state is _State.BODY:
            text = f"the body ended after {self._filled} of {self._expected} bytes"
            return TruncatedBody(text, received=self._filled)
        if self.requests and not self._head_filled:
            return StaleConnection("the server closed a kept connection")
        reason = f" ({exc})" if exc else ""
        return SourceUnreachable(f"the server closed the connection without an answer{reason}")

    def _read_head(self) -> None:
        try:
            while True:
                end = self._head.find(b"\r\n\r\n", 0, self._head_filled)
                if end < 0:
                    self._grow_head()
                    return
                head = self._parser.parse(bytes(self._head_view[:end]))
                surplus = self._head_filled - end - 4
                if head.status not in _CONTINUE_STATUSES:
                    break
                self._head[:surplus] = self._head[end + 4 : self._head_filled]
                self._head_filled = surplus
            assert self._judge is not None  # noqa: S101  set with the state
            expected = self._judge(head)
        except Exception as error:  # noqa: BLE001  whatever the judge raised is for the caller
            self._fail(error)
            return
        if not 0 < expected <= len(self._target) or surplus > expected:
            self._fail(SourceProtocolError("the server sent more bytes than it announced"))
            return
        self._keep_alive = head.keep_alive
        self._target[:surplus] = self._head_view[end + 4 : end + 4 + surplus]
        self._filled, self._expected = surplus, expected
        self._state = _State.BODY
        if surplus == expected:
            self._finish()

    def _grow_head(self) -> None:
        if self._head_filled < len(self._head):
            return
        if len(self._head) >= MAX_HEAD_BYTES:
            raise SourceProtocolError(f"the answer's head is longer than {MAX_HEAD_BYTES} bytes")
        # A view is exported to the transport at most during its receive call: a new buffer, not a resize.
        self._head = self._head + bytearray(len(self._head))
        self._head_view = memoryview(self._head)

    def _finish(self) -> None:
        self._state = _State.IDLE
        waiter = self._waiter
        if not self._keep_alive:
            self._shut()
        if waiter is not None and not waiter.done():
            waiter.set_result(self._filled)

    def _fail(self, error: Exception) -> None:
        if self._state is _State.CLOSED:
            return
        waiter = self._waiter
        self._shut()
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)

    def _shut(self) -> None:
        self._state = _State.CLOSED
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def _look_at_deadline(self) -> None:
        self._watch = None
        if self._state not in {_State.HEAD, _State.BODY}:
            return
        if self._loop.time() < self._deadline:
            self._watch = self._loop.call_at(self._deadline, self._look_at_deadline)
            return
        if self._filled:
            text = f"the body stalled after {self._filled} of {self._expected} bytes"
            self._fail(TruncatedBody(text, received=self._filled))
        else:
            self._fail(SourceTimeout("no answer within the time for one attempt"))
