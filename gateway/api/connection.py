"""One client's connection under uvicorn: slow request heads end it, and an answer's head leaves together with its body.

What a client does not read waits in the transport's buffer, and holds the spans that it is made of. It counts in the
budget for which reads are admitted, so that many clients that do not read leave no room for what would be held for
further ones. Only transports that are paused are looked at: a client that reads costs nothing.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.spans.flights import Admission

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

ADMISSION = "admission"
"""Where the lifespan's state has the ``Admission`` that connections count in."""

HEAD_SECONDS = 10.0
_HEAD = b"HTTP/1.1 "


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP, closing connections whose request head does not arrive in time; uvicorn waits for ever.

    A head that comes in one packet, as nearly all do, costs no timer.
    """

    _timer: asyncio.TimerHandle | None = None
    _in_head = False
    _waiting_bytes = 0
    # uvicorn tells only the latest request that its client is gone; with pipelining that need not be the one being answered.
    _running: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected; its first request's head is due."""
        super().connection_made(JoiningTransport(transport, self.loop))  # type: ignore[arg-type]
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection ended, whoever ended it."""
        self._disarm()
        self._count(0)
        running = self._running
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The transport's buffer is full: the client reads slower than it is written to, or not at all."""
        self._count(self.transport.get_write_buffer_size())
        super().pause_writing()

    def resume_writing(self) -> None:
        """The buffer is nearly empty."""
        self._count(0)
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Parse; whatever is complete is begun."""
        super().data_received(data)
        if self._in_head and self._timer is None:
            self._arm()

    def on_message_begin(self) -> None:
        """Parser: a request begins."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Parser: its head is complete."""
        self._in_head = False
        if self._timer is not None:
            self._disarm()
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _count(self, waiting_bytes: int) -> None:
        if waiting_bytes != self._waiting_bytes:
            admission: Admission = self.app_state[ADMISSION]
            admission.sending_bytes += waiting_bytes - self._waiting_bytes
            self._waiting_bytes = waiting_bytes

    def _arm(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class JoiningTransport:
    """A transport that keeps an answer's head until its first bytes follow, or until the loop's next turn.

    Head and body then go out by one system call and, if they are short, in one packet. Order is never changed.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head: bytes | None = None
        self._write = transport.write
        self.is_closing = transport.is_closing

    def write(self, data: bytes | memoryview) -> None:
        """Send ``data`` behind everything that was written before."""
        if self._head is not None:
            head, self._head = self._head, None
            self._transport.writelines((head, data))
        elif isinstance(data, bytes) and data.startswith(_HEAD):
            self._head = data
            self._loop.call_soon(self._flush)
        else:
            self._write(data)

    def close(self) -> None:
        """Close when everything has been sent."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head is not None:
            head, self._head = self._head, None
            self._write(head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
