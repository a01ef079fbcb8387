"""The one place that builds HTTP clients.

Requests go out, headers and raw pieces come back, and errors are of this project's tree. Two pools stand
behind one object. The *trusted* one reaches whatever the configured registries and mirrors resolve to; the
*guarded* one reaches only what ``guard`` permits, and everything that a registry names goes through it. They
share no connection: else a redirect could ride on a connection that another registry's configuration had
opened.

No environment is trusted (proxies, netrc), no redirect is followed, no cookie is kept, nothing is
decompressed: httpx's transports are used without its client, which does all that (and takes longer to decide not to
than it takes to send a range).
"""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import Any, NamedTuple, cast

import aiohttp
import httpx
import yarl
from aiohttp.resolver import ThreadedResolver
from httpx_aiohttp import AiohttpTransport
from httpx_aiohttp.transport import AiohttpResponseStream

from gateway.errors import (
    AddressRefused,
    RegistryProtocolError,
    RegistryTimeout,
    RegistryUnreachable,
    TruncatedBody,
    UpstreamError,
)
from gateway.registry.guard import AllowList, GuardedResolver, canonical_host, literal_address, refusal

# httpx logs the URL of every request at INFO; a signed one is a secret.
logging.getLogger("httpx").setLevel(logging.WARNING)

_DEFAULT_PORTS = {"http": 80, "https": 443}
# Names (in ASCII) and addresses; no IPv6 scope, as an interface of this machine is nobody else's business.
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
_PIECE_BYTES = 256 * 1024
_HEADERS = {"User-Agent": "blockgate", "Accept": "*/*", "Accept-Encoding": "identity"}
# A body at most this long is read to its end when it is not wanted, so that the connection can serve again.
_DRAIN_BYTES = 16 * 1024


class Origin(NamedTuple):
    """Whom a request goes to. Equal origins may share credentials."""

    scheme: str
    host: str
    port: int


def origin_of(url: httpx.URL) -> Origin:
    """Scheme, host and port of ``url``. Raises ``AddressRefused`` unless it is http or https."""
    if not _HOST.fullmatch(url.host):
        raise AddressRefused(f"a registry named {url.host[:100]!r}, which is not a host")
    if url.scheme not in _DEFAULT_PORTS:
        raise AddressRefused(
            f"a registry named a URL of scheme {url.scheme[:20]!r}; only http and https are followed"
        )
    return Origin(url.scheme, canonical_host(url.host), url.port or _DEFAULT_PORTS[url.scheme])


class Answer:
    """A response whose body has not been read yet. Close it, whatever happens."""

    def __init__(self, response: httpx.Response, host: str) -> None:
        self._response = response
        self.host = host
        self.status = response.status_code
        self.headers = response.headers
        self.received_bytes = 0

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it is on the wire, without decompression, in pieces of at most 256 KiB."""
        try:
            async for piece in self._response.aiter_raw():
                self.received_bytes += len(piece)
                yield piece
        except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
            raise _translate(error, self.host, body=True) from None

    async def body(self, limit_bytes: int) -> bytes | None:
        """The whole body, or None as soon as it proves to be longer than ``limit_bytes``."""
        body = bytearray()
        async for piece in self.pieces():
            if len(body) + len(piece) > limit_bytes:
                return None
            body += piece
        return bytes(body)

    async def discard(self) -> None:
        """Close, keeping the connection usable where the rest of the body is short."""
        try:
            length = self.headers.get("content-length", "")
            if length.isascii() and length.isdigit() and len(length) <= 5 and int(length) <= _DRAIN_BYTES:  # noqa: PLR2004
                await self.body(_DRAIN_BYTES)
        except UpstreamError:
            pass  # the answer was not wanted anyway
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Release the connection; one with an unread body is cut off, not drained."""
        await self._response.aclose()


class Transport:
    """Sends requests. Seconds bound single steps (connect, one read); deadlines are the callers'."""

    def __init__(
        self,
        *,
        allowed: AllowList,
        connect_seconds: float = 5.0,
        read_seconds: float = 30.0,
        max_connections: int = 100,
        keepalive_seconds: float = 30.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._allowed = allowed
        context = tls or _system_tls()
        timeout = httpx.Timeout(read_seconds, connect=connect_seconds, pool=read_seconds)
        self._extensions = {"timeout": timeout.as_dict()}

        def client(resolver: GuardedResolver | None) -> _ExactTransport:
            def session() -> aiohttp.ClientSession:
                connector = aiohttp.TCPConnector(
                    limit=max_connections, keepalive_timeout=keepalive_seconds, ssl=context, resolver=resolver
                )
                return aiohttp.ClientSession(
                    connector=connector,
                    cookie_jar=aiohttp.DummyCookieJar(),
                    read_bufsize=_PIECE_BYTES,
                    trust_env=False,
                )

            return _ExactTransport(session, context)

        self._build = client
        self._trusted: _ExactTransport | None = None
        self._guarded: _ExactTransport | None = None

    async def open(
        self,
        method: str,
        url: httpx.URL,
        *,
        trusted: bool,
        headers: dict[str, str] | None = None,
        form: dict[str, str] | None = None,
    ) -> Answer:
        """Send one request and return when the answer's header is there.

        ``trusted`` says that the URL's origin is a configured registry; everything else is checked by
        address. Raises ``AddressRefused``, ``RegistryUnreachable``, ``RegistryTimeout`` or
        ``RegistryProtocolError``.
        """
        origin = origin_of(url)
        host = f"{origin.host}:{origin.port}"
        transport = self._transport(origin, trusted=trusted)
        try:
            request = httpx.Request(
                method, url, headers=_HEADERS | (headers or {}), data=form, extensions=self._extensions
            )
            response = await transport.handle_async_request(request)
            response.request = request
            # Else httpx tries encodings each time that a field is looked up.
            response.headers.encoding = "iso-8859-1"
        except (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, OSError, ValueError) as error:
            raise _translate(error, host, body=False) from None
        return Answer(response, host)

    def _transport(self, origin: Origin, *, trusted: bool) -> _ExactTransport:
        if trusted:
            self._trusted = self._trusted or self._build(None)
            return self._trusted
        # A literal address never reaches a resolver, so it is judged here.
        address = literal_address(origin.host)
        if address is not None and not self._allowed.permits(origin.host, origin.port, address):
            raise refusal(origin.host, origin.port)
        self._guarded = self._guarded or self._build(GuardedResolver(self._allowed, ThreadedResolver()))
        return self._guarded

    async def aclose(self) -> None:
        for transport in (self._trusted, self._guarded):
            if transport is not None:
                await transport.aclose()


class _ExactTransport(AiohttpTransport):
    """The aiohttp transport, with URLs sent exactly as they are and bodies in fewer, larger pieces.

    Left to itself aiohttp writes a query anew (``%2F`` becomes ``/``), which breaks signatures over the text
    of a URL. Each piece costs a trip through five iterators, so that 16 KiB each would double the cost of a
    range.
    """

    def __init__(self, build: Callable[[], aiohttp.ClientSession], context: ssl.SSLContext) -> None:
        super().__init__(verify=context, trust_env=False)
        self._build = build
        self._session: aiohttp.ClientSession | None = None

    def get_client(self) -> aiohttp.ClientSession:
        """What the base class sends requests with: an object with ``request`` is all that it needs."""
        self._session = self._session or self._build()
        return cast(aiohttp.ClientSession, _ExactSession(self._session))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send ``request`` and return its response, the body unread."""
        response = await super().handle_async_request(request)
        if isinstance(response.stream, AiohttpResponseStream):
            response.stream.CHUNK_SIZE = _PIECE_BYTES
        return response

    async def aclose(self) -> None:
        """Close the session and its connections."""
        if self._session is not None:
            await self._session.close()


class _ExactSession:
    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    def request(self, *, method: str, url: str, **options: Any) -> Any:
        return self._session.request(method, yarl.URL(url, encoded=True), **options)


@cache  # loading some hundred authorities takes longer than a test
def _system_tls() -> ssl.SSLContext:
    """The system's certificate authorities, where private registries' own are installed, and certifi's."""
    context = httpx.create_ssl_context(trust_env=False)
    context.load_default_certs()
    return context


def _translate(error: Exception, host: str, *, body: bool) -> UpstreamError:
    """The error of this tree. It neither carries the library's text nor is chained to it: that holds signed URLs."""
    cause = error.__cause__ or error
    kind = type(cause).__name__
    if isinstance(cause, TimeoutError | httpx.TimeoutException):
        return RegistryTimeout(f"{host} did not answer in time ({kind})")
    if isinstance(cause, aiohttp.ClientPayloadError):
        return TruncatedBody(f"{host} ended a body early ({kind})")
    if isinstance(cause, aiohttp.ClientResponseError | httpx.RemoteProtocolError):
        return RegistryProtocolError(f"{host} sent something that is not HTTP ({kind})")
    if isinstance(cause, aiohttp.InvalidURL | httpx.InvalidURL | httpx.UnsupportedProtocol | ValueError):
        return RegistryProtocolError(f"{host}: a URL cannot be used ({kind})")
    if isinstance(cause, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return RegistryUnreachable(
            f"{host}: TLS failed ({kind}); is its certificate trusted, or is it plain HTTP?"
        )
    doing = "broke the connection in mid-body" if body else "cannot be reached, or closed the connection"
    return RegistryUnreachable(f"{host} {doing} ({kind})")
