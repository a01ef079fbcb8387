"""One range of one URL per call. Nothing is retried here except a connection that had gone stale.

:class:`HttpSource` fills a *prefix* of what it is asked for, because a server may rightly send less
(RFC 9110 section 15.3.7); ``retry`` turns that into whole reads.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from math import inf
from typing import Self

from nbd_client import __version__
from nbd_client.errors import (
    BlockgateError,
    InvalidOption,
    SourceChanged,
    SourceProtocolError,
    SourceRefused,
    SourceUnreachable,
)
from nbd_client.source.connection import Judge, StaleConnection
from nbd_client.source.pool import ConnectionPool
from nbd_client.source.response import REDIRECTS, Head, Pin, check_range, named, pin_of, traced
from nbd_client.source.url import Target, parse

_MAX_REDIRECTS = 5
# A signed address that expired answers one of these; the address it came from may give a new one.
_EXPIRED = frozenset({401, 403, 404, 410})


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Connections at a time, and seconds for connecting and for one attempt."""

    connections: int = 64
    connect_timeout_seconds: float = 10.0
    attempt_timeout_seconds: float = 27.0


# What differs from one request to the next, behind a prefix that is made once: the end of a traceparent
# (https://www.w3.org/TR/trace-context/), whose trace id is 8 random bytes of the source and the request's number.
_VARYING = b"%016x-%016x-00\r\nRange: bytes=%d-%d\r\n\r\n"


class _Redirected(Exception):
    """Carries a Location."""


class _Expired(Exception):
    """Carries a refusal that may be due to the age of the address."""


class HttpSource:
    """Ranges of the content that ``url`` had when it was opened; other content is never mixed in.

    Reads go to where the server says that this content stays (Content-Location), or where it redirects to.
    """

    def __init__(self, target: Target, limits: HttpLimits, token: str | None = None) -> None:
        if token is not None and not (token.isascii() and token.isprintable()):
            raise InvalidOption("BLOCKGATE_TOKEN has characters that no token has")
        self._token = token
        self._origin = target
        self._target = target
        self._limits = limits
        self._pools: dict[object, ConnectionPool] = {}
        self._pin: Pin | None = None
        self._changed: str | None = None
        self._request_prefix = b""
        self._trace = secrets.token_hex(8)
        self.requests = 0

    @classmethod
    async def open(
        cls,
        url: str,
        limits: HttpLimits | None = None,
        *,
        pin: Pin | None = None,
        token: str | None = None,
    ) -> Self:
        """Ask for byte 0, to learn size and validator. With ``pin``, it must still be that content.

        ``token`` is a bearer token for the URL's own host and port: a redirect elsewhere does not get it.
        Raises ``InvalidUrl`` or ``SourceError``.
        """
        source = cls(parse(url), limits or HttpLimits(), token)
        try:
            await source.learn(pin)
        except BaseException:
            await source.aclose()
            raise
        return source

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.pin.size

    @property
    def pin(self) -> Pin:
        """What the content was when it was opened."""
        if self._pin is None:
            raise SourceProtocolError(f"{self.shown}: not opened")
        return self._pin

    @property
    def connections(self) -> int:
        """Connections opened so far."""
        return sum(pool.opened for pool in self._pools.values())

    @property
    def shown(self) -> str:
        """The URL as it may be printed."""
        return self._origin.shown

    async def learn(self, expected: Pin | None) -> None:
        """Pin the content, see :meth:`open`."""
        learned: list[Pin] = []
        content: list[Target | None] = []

        def judge(head: Head) -> int:
            _raise_redirect(head)
            learned.append(pin_of(head))
            content.append(self._target.beside(head.fields.get(b"content-location", b"").decode("latin-1")))
            return 1

        await self._ask(0, 1, memoryview(bytearray(1)), judge, inf)
        if expected is not None and learned[0] != expected:
            raise SourceChanged(f"{self.shown}: the content is not the one that was attached")
        self._pin = learned[0]
        # A name can be given to other content; where the server says under which address this content stays, that one
        # is asked from now on. A proxy may not know it: then it answers 404, and the way back is that of an address
        # that expired.
        self._aim(content[0] or self._target)

    async def read_into(self, offset: int, target: memoryview, deadline: float = inf) -> int:
        """Fill a prefix of ``target`` from ``offset``; return its length, at least 1.

        It ends by ``deadline`` (the loop's clock), or earlier when the time for one attempt is over.
        Raises ``SourceError``; a ``TruncatedBody`` tells how many bytes of the prefix are good all the same.
        """
        if self._changed is not None:
            raise SourceChanged(self._changed)
        length, pin = len(target), self.pin

        def judge(head: Head) -> int:
            if head.status in REDIRECTS:
                _raise_redirect(head)
            if head.status in _EXPIRED:
                raise _Expired(f"the server answered {head.status}")
            return check_range(head, offset, length, pin)

        try:
            return await self._ask(offset, length, target, judge, deadline)
        except SourceChanged as error:
            self._changed = error.detail
            raise

    async def aclose(self) -> None:
        """Close the connections."""
        for pool in self._pools.values():
            pool.close()
        # Transports close in the loop's next round; whoever closes the loop after this must not meet them.
        await asyncio.sleep(0)

    def trim(self) -> None:
        """Close the idle connections."""
        for pool in self._pools.values():
            pool.trim()

    async def _ask(self, offset: int, length: int, target: memoryview, judge: Judge, deadline: float) -> int:
        now = asyncio.get_running_loop().time()
        deadline = min(deadline, now + self._limits.attempt_timeout_seconds)
        for _ in range(_MAX_REDIRECTS + 1):
            at = self._target
            try:
                return await self._request(at, offset, length, target, judge, deadline)
            except _Redirected as redirect:
                try:
                    self._aim(at.redirected(str(redirect)))
                except BlockgateError as error:
                    raise named(SourceRefused(error.detail), self.shown) from None
            except _Expired as expired:
                if at is self._origin:
                    raise named(SourceRefused(str(expired)), self.shown) from None
                self._aim(self._origin)
            except BlockgateError as error:
                raise named(error, self.shown) from None
        raise SourceRefused(f"{self.shown}: more than {_MAX_REDIRECTS} redirects")

    def _aim(self, target: Target) -> None:
        self._target = target
        self._request_prefix = b""

    async def _request(
        self, at: Target, offset: int, length: int, target: memoryview, judge: Judge, deadline: float
    ) -> int:
        pool = self._pools.get(at.endpoint)
        if pool is None:
            pool = self._pools[at.endpoint] = ConnectionPool(
                at.endpoint,
                limit=self._limits.connections,
                connect_timeout_seconds=self._limits.connect_timeout_seconds,
            )
        prefix = self._encode(at)
        fresh = False
        while True:
            connection = None if fresh else pool.take()
            if connection is None:
                connection = await pool.acquire(deadline, fresh=fresh)
            self.requests = number = self.requests + 1
            request = prefix + _VARYING % (number, number, offset, offset + length - 1)
            try:
                return await connection.fetch(request, judge, target, deadline)
            except StaleConnection:
                if fresh:
                    raise SourceUnreachable("the server closes every connection at once") from None
                fresh = True
            except (BlockgateError, _Expired) as error:
                # Under this id the gateway's log has what happened on its side.
                trace_id = f"{self._trace}{number:016x}"
                raise (
                    traced(error, trace_id)
                    if isinstance(error, BlockgateError)
                    else _Expired(f"{error} (trace {trace_id})")
                ) from None
            finally:
                pool.release(connection)

    def _encode(self, at: Target) -> bytes:
        if not self._request_prefix:
            lines = [
                f"GET {at.path} HTTP/1.1",
                f"Host: {at.authority}",
                f"User-Agent: blockgate-nbd/{__version__}",
                "Accept: */*",
                "Accept-Encoding: identity",
            ]
            if self._token is not None and at.endpoint == self._origin.endpoint:
                lines.append(f"Authorization: Bearer {self._token}")
            if self._pin is not None and self._pin.strong and self._pin.etag is not None:
                lines.append(f"If-Match: {self._pin.etag.decode('latin-1')}")
            head = "".join(line + "\r\n" for line in lines)
            self._request_prefix = f"{head}traceparent: 00-{self._trace}".encode("latin-1")
        return self._request_prefix


def _raise_redirect(head: Head) -> None:
    if head.status in REDIRECTS:
        location = head.fields.get(b"location", b"").decode("latin-1")
        if not location:
            raise SourceProtocolError(f"a redirect ({head.status}) without a Location")
        raise _Redirected(location)
