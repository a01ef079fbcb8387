"""Kept connections to one endpoint: the last used first, at most ``limit`` at a time, waiters in order."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from functools import lru_cache

from nbd_client.errors import SourceTimeout, SourceUnreachable
from nbd_client.source.connection import Connection
from nbd_client.source.url import Endpoint


class ConnectionPool:
    """Hands out connections. Every :meth:`acquire` is paid back with one :meth:`release`."""

    def __init__(self, endpoint: Endpoint, *, limit: int, connect_timeout_seconds: float) -> None:
        self._endpoint = endpoint
        self._limit = limit
        self._connect_timeout_seconds = connect_timeout_seconds
        self._idle: list[Connection] = []
        self._in_use: set[Connection] = set()
        self._slots = limit
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._closed = False
        self.opened = 0

    def take(self) -> Connection | None:
        """What :meth:`acquire` would give, if that needs no waiting."""
        if not self._slots:
            return None
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                self._slots -= 1
                self._in_use.add(connection)
                return connection
        return None

    async def acquire(self, deadline: float, *, fresh: bool = False) -> Connection:
        """A usable connection before ``deadline`` (loop's clock); ``fresh``: one that was never used.

        Raises ``SourceUnreachable`` or ``SourceTimeout``.
        """
        loop = asyncio.get_running_loop()
        if self._slots:
            self._slots -= 1
        else:
            await self._wait_for_slot(loop, deadline)
        try:
            while self._idle and not fresh:
                connection = self._idle.pop()
                if connection.usable:
                    break
            else:
                connection = await self._connect(loop, deadline)
        except BaseException:
            self._free_slot()
            raise
        self._in_use.add(connection)
        return connection

    def release(self, connection: Connection) -> None:
        """Give a connection back, whatever became of it."""
        self._in_use.discard(connection)
        if connection.usable and not self._closed:
            self._idle.append(connection)
        else:
            connection.close()
        self._free_slot()

    def close(self) -> None:
        """Close every connection; requests in flight fail."""
        self._closed = True
        for connection in [*self._idle, *self._in_use]:
            connection.close()
        self._idle.clear()

    def trim(self) -> None:
        """Close the idle connections: nothing was asked for in a while."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _wait_for_slot(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout_at(deadline):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():
                self._free_slot()  # the slot came together with the end of the waiting
            if isinstance(error, TimeoutError):
                raise SourceTimeout(f"all {self._limit} connections stayed busy") from error
            raise

    def _free_slot(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._slots += 1

    async def _connect(self, loop: asyncio.AbstractEventLoop, deadline: float) -> Connection:
        if self._closed:
            raise SourceUnreachable("the source is closed")
        endpoint = self._endpoint
        context = tls_context() if endpoint.tls else None
        deadline = min(deadline, loop.time() + self._connect_timeout_seconds)
        try:
            async with asyncio.timeout_at(deadline):
                if endpoint.unix_path is not None:
                    _, connection = await loop.create_unix_connection(
                        lambda: Connection(loop), endpoint.unix_path
                    )
                else:
                    _, connection = await loop.create_connection(
                        lambda: Connection(loop), endpoint.host, endpoint.port, ssl=context
                    )
        except TimeoutError as error:
            raise SourceTimeout(f"{self._where()} did not accept a connection in time") from error
        except ssl.SSLCertVerificationError as error:
            raise SourceUnreachable(
                f"{self._where()}: certificate refused: {error.verify_message}; a private authority's "
                "certificate is named with SSL_CERT_FILE"
            ) from error
        except (OSError, ssl.SSLError, socket.gaierror) as error:
            raise SourceUnreachable(f"cannot connect to {self._where()}: {error}") from error
        self.opened += 1
        return connection

    def _where(self) -> str:
        return self._endpoint.unix_path or f"{self._endpoint.host}:{self._endpoint.port}"


@lru_cache(maxsize=1)
def tls_context() -> ssl.SSLContext:
    """Verifies against the system's certificates; SSL_CERT_FILE and SSL_CERT_DIR are heeded by OpenSSL."""
    return ssl.create_default_context()
