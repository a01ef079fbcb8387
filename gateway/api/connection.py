"""One client's connection under uvicorn: slow request heads end it, and an answer's head leaves together with its body."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10.0
_HEAD = b"HTTP/1.1 "


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP, closing connections whose request head does not arrive in time; uvicorn waits for ever.

    A head that comes in one packet, as nearly all do, costs no timer.
    """

    _timer: asyncio.TimerHandle | None = None
    _in_head = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected; its first request's head is due."""
        super().connection_made(JoiningTransport(transport, self.loop))  # type: ignore[arg-type]
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection ended, whoever ended it."""
        self._disarm()
        super().connection_lost(exc)

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
