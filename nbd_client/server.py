"""Sockets on one side, a source on the other, the protocol between them.

Invariants: a reply's header is sent only when its whole payload is in hand, so that an error can always be
told; every request is answered exactly once; what a connection may have in flight is bounded in bytes and in
requests, by not reading from its socket; nothing that a client sends ends anything but its own connection.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import stat
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Protocol, cast

from blockgate.reader import Bytes
from nbd_client.errors import BlockgateError, InvalidOption, RangeNotSatisfiable, ServerStopped
from nbd_client.protocol.constants import Errno
from nbd_client.protocol.handshake import Close, Enter, Export, Handshake, Send
from nbd_client.protocol.transmission import (
    Answer,
    Disconnect,
    Event,
    Prefetch,
    Read,
    Transmission,
    Violation,
    reply_header,
)
from nbd_client.reader import HotReader

log = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_SECONDS = 15.0
MAX_CONNECTIONS = 256
MAX_IN_FLIGHT_BYTES = 32 << 20  # per connection; a single request may be as long (MAX_PAYLOAD_BYTES)
MAX_IN_FLIGHT_REQUESTS = 256
_QUEUE_HIGH = 256
_WRITE_HIGH_BYTES = 4 << 20

# Upper bounds of durations in seconds: a gateway's memory, its disk, a registry, trouble.
WAIT_BOUNDS = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
)

_ERRNOS: tuple[tuple[type[BlockgateError], Errno], ...] = (
    (RangeNotSatisfiable, Errno.EINVAL),
    (ServerStopped, Errno.ESHUTDOWN),
    (BlockgateError, Errno.EIO),
)


def errno_of(error: BlockgateError) -> Errno:
    """What an error is called on the wire."""
    return next(number for kind, number in _ERRNOS if isinstance(error, kind))


class ServedReader(HotReader, Protocol):
    """What the server reads from: a ``HotReader`` that can be told what will be read."""

    def prefetch(self, start: int, end: int) -> None:
        """Bring ``[start, end)`` near; errors are dropped."""
        ...


@dataclass(slots=True)
class Counters:
    """What a server did so far."""

    reads: int = 0
    read_bytes: int = 0
    errors: int = 0
    connections: int = 0
    hits: int = 0  # reads whose bytes were at hand
    waits: list[int] = field(default_factory=lambda: [0] * (len(WAIT_BOUNDS) + 1))  # the others, by duration
    wait_seconds: float = 0.0

    def waited(self, seconds: float) -> None:
        """A read had to wait, whatever came of it."""
        self.waits[bisect_left(WAIT_BOUNDS, seconds)] += 1
        self.wait_seconds += seconds


class Session(asyncio.Protocol):
    """One NBD connection. Without a handshake it begins in the transmission phase (the kernel's sockets)."""

    def __init__(self, reader: ServedReader, handshake: Handshake | None, counters: Counters) -> None:
        self._reader = reader
        self._handshake = handshake
        self._counters = counters
        self._transmission = Transmission(reader.size)
        self._queue: deque[Event] = deque()
        self._in_flight_bytes = 0
        self._in_flight_requests = 0
        self._transport: asyncio.Transport | None = None
        self._write_paused = False
        self._read_paused = False
        self._finishing = False
        self._handshake_timer: asyncio.TimerHandle | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet; from now on the handshake's clock runs."""
        # Not isinstance: uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        self._counters.connections += 1
        if self._handshake is not None:
            loop = asyncio.get_running_loop()
            self._handshake_timer = loop.call_later(HANDSHAKE_TIMEOUT_SECONDS, self._handshake_overdue)
            self._transport.write(self._handshake.greeting())

    def data_received(self, data: bytes) -> None:
        """Decode, and begin what may begin."""
        if self._handshake is not None:
            self._negotiate(data)
        elif not self._finishing:
            self._queue += self._transmission.receive(data)
            self._pump()

    def pause_writing(self) -> None:
        """The peer reads slowly: begin nothing."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """The peer caught up."""
        self._write_paused = False
        self._pump()

    def eof_received(self) -> bool:
        """The peer is gone: close."""
        return False

    def connection_lost(self, _exc: Exception | None) -> None:
        """Nobody is left to answer."""
        self._transport = None
        self._finishing = True
        self._queue.clear()
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
        if not self.closed.done():
            self.closed.set_result(None)

    # What the server calls.

    def finish(self) -> None:
        """Take no more requests; close when all that arrived is answered."""
        if self._handshake is not None:
            self._close()
            return
        self._finishing = True
        if self._transport is not None and not self._transport.is_closing() and not self._read_paused:
            self._read_paused = True
            self._transport.pause_reading()
        self._pump()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    # Inside.

    def _negotiate(self, data: bytes) -> None:
        assert self._handshake is not None  # noqa: S101  the caller looked
        for event in self._handshake.receive(data):
            if isinstance(event, Send):
                self._write(event.data)
            elif isinstance(event, Enter):
                self._handshake = None
                if self._handshake_timer is not None:
                    self._handshake_timer.cancel()
                self.data_received(event.leftover)
            elif isinstance(event, Close):
                log.debug("handshake ended: %s", event.reason)
                self._close()

    def _handshake_overdue(self) -> None:
        if self._handshake is not None:
            log.info("a client did not finish its handshake within %g seconds", HANDSHAKE_TIMEOUT_SECONDS)
            self.abort()

    def _pump(self) -> None:
        """Begin what may begin, in order; stop reading from the socket while anything has to wait."""
        queue = self._queue
        while queue and not self._write_paused and self._may_begin(queue[0]):
            self._begin(queue.popleft())
        transport = self._transport
        if self._finishing:
            if not queue and not self._in_flight_requests:
                self._close()
            return
        if transport is None or transport.is_closing():
            return
        should_pause = bool(queue) and (
            len(queue) > _QUEUE_HIGH or self._write_paused or bool(self._in_flight_requests)
        )
        if should_pause != self._read_paused:
            self._read_paused = should_pause
            if should_pause:
                transport.pause_reading()
            else:
                transport.resume_reading()

    def _may_begin(self, event: Event) -> bool:
        if not self._in_flight_requests or not isinstance(event, Read):
            return True
        return (
            self._in_flight_bytes + event.length <= MAX_IN_FLIGHT_BYTES
            and self._in_flight_requests < MAX_IN_FLIGHT_REQUESTS
        )

    def _begin(self, event: Event) -> None:
        if isinstance(event, Read):
            self._begin_read(event)
        elif isinstance(event, Answer):
            self._write(reply_header(event.cookie, event.error))
        elif isinstance(event, Prefetch):
            # A hint: answered at once, and limited, for it must not push out what is being read.
            self._reader.prefetch(
                event.offset, min(event.offset + event.length, event.offset + _WRITE_HIGH_BYTES)
            )
            self._write(reply_header(event.cookie))
        elif isinstance(event, Disconnect):
            self.finish()
        elif isinstance(event, Violation):
            log.warning("a client broke the protocol: %s", event.reason)
            self.finish()

    def _begin_read(self, request: Read) -> None:
        try:
            data = self._reader.peek(request.offset, request.length)
        except BlockgateError as error:
            self._fail(request, error)
            return
        if data is not None:
            self._counters.hits += 1
            self._deliver(request, data)
            return
        self._in_flight_bytes += request.length
        self._in_flight_requests += 1
        arrived = partial(self._arrived, request, monotonic())
        self._reader.start(request.offset, request.length).add_done_callback(arrived)

    def _arrived(self, request: Read, began: float, read: asyncio.Future[Bytes]) -> None:
        self._counters.waited(monotonic() - began)
        self._in_flight_bytes -= request.length
        self._in_flight_requests -= 1
        error = asyncio.CancelledError() if read.cancelled() else read.exception()
        if error is None:
            self._deliver(request, read.result())
        elif isinstance(error, BlockgateError):
            self._fail(request, error)
        elif isinstance(error, asyncio.CancelledError):
            self._fail(request, ServerStopped("the source was closed"))
        else:
            # A defect of ours: the client still gets its answer, and nothing else is lost.
            log.error("reading %d+%d failed unexpectedly", request.offset, request.length, exc_info=error)
            self._fail(request, BlockgateError("unexpected failure"))
        if self._queue or self._finishing:
            self._pump()

    def _deliver(self, request: Read, data: Bytes) -> None:
        if len(data) != request.length:
            log.error("%d bytes for a read of %d", len(data), request.length)
            self._write(reply_header(request.cookie, Errno.EIO))
            return
        self._counters.reads += 1
        self._counters.read_bytes += request.length
        if self._transport is not None:
            self._transport.writelines((reply_header(request.cookie), data))

    def _fail(self, request: Read, error: BlockgateError) -> None:
        self._counters.errors += 1
        log.warning("read %d+%d failed: %s", request.offset, request.length, error)
        self._write(reply_header(request.cookie, errno_of(error)))

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _close(self) -> None:
        self._finishing = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()  # after everything written was sent


class NbdServer:
    """Serves one export on any number of sockets. Owned by one event loop."""

    def __init__(self, reader: ServedReader, *, name: str = "", description: str = "") -> None:
        self._reader = reader
        self._export = Export(reader.size, name, description)
        self._sessions: set[Session] = set()
        self._listeners: list[asyncio.Server] = []
        self._unix_paths: list[tuple[Path, int]] = []
        self.counters = Counters()

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return len(self._sessions)

    async def listen_unix(self, path: Path) -> None:
        """Listen on ``path``. A socket that nobody listens on is replaced, anything else is not.

        Raises ``InvalidOption``.
        """
        clear_stale_socket(path)
        loop = asyncio.get_running_loop()
        try:
            listener = await loop.create_unix_server(self._accept, str(path))
        except OSError as error:
            raise InvalidOption(f"cannot listen on {path}: {error.strerror or error}") from error
        self._listeners.append(listener)
        self._unix_paths.append((path, _inode(path)))

    async def listen_tcp(self, host: str, port: int) -> int:
        """Listen on ``host``; port 0 takes a free one. Returns the port. Raises ``InvalidOption``."""
        loop = asyncio.get_running_loop()
        try:
            listener = await loop.create_server(self._accept, host, port)
        except OSError as error:
            raise InvalidOption(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        self._listeners.append(listener)
        bound: int = listener.sockets[0].getsockname()[1]
        return bound

    async def serve_connected(self, connection: socket.socket) -> Session:
        """Serve a socket that is past the handshake, as the kernel's are. Takes the socket over."""
        loop = asyncio.get_running_loop()
        connection.setblocking(False)
        _, session = await loop.connect_accepted_socket(lambda: self._session(None), connection)
        return session

    async def aclose(self, grace_seconds: float = 5.0) -> None:
        """Stop listening, answer what is in flight, at most for ``grace_seconds``, close everything."""
        for listener in self._listeners:
            listener.close()
        for path, inode in self._unix_paths:
            if _inode(path) == inode:  # another server may have taken the path over
                path.unlink(missing_ok=True)
        open_sessions = list(self._sessions)
        for session in open_sessions:
            session.finish()
        if open_sessions:
            await asyncio.wait([session.closed for session in open_sessions], timeout=grace_seconds)
        for session in list(self._sessions):
            session.abort()
        await asyncio.sleep(0)

    def _accept(self) -> asyncio.Protocol:
        if len(self._sessions) >= MAX_CONNECTIONS:
            log.warning("more than %d connections: one was turned away", MAX_CONNECTIONS)
            return _TurnedAway()
        return self._session(Handshake(self._export))

    def _session(self, handshake: Handshake | None) -> Session:
        session = Session(self._reader, handshake, self.counters)
        self._sessions.add(session)
        session.closed.add_done_callback(lambda _: self._sessions.discard(session))
        return session


class _TurnedAway(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def clear_stale_socket(path: Path) -> None:
    """Remove a socket that nobody listens on. Raises ``InvalidOption`` when it is anything else."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise InvalidOption(f"{path} exists and is not a socket; it is left alone")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        result = probe.connect_ex(str(path))
    if result != errno.ECONNREFUSED:
        raise InvalidOption(f"{path} is in use by another server")
    path.unlink(missing_ok=True)


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0
