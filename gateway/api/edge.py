"""What every request passes first, as one pure ASGI layer: limits, tokens, counting, a last net for errors, and the way.

The way is short for the bytes of a device: they are asked for thousands of times a second, so their endpoint is called from
here, and everything else by way of the framework.

uvicorn takes as many and as long header fields as a client cares to send; they are counted here. Roles: ``admin`` may do
everything, ``node`` may read devices and their bytes and report itself, ``metrics`` may read /metrics. Health and the
dashboard's and the reference's files, which hold nothing, need no token. Without any configured token there is nothing
to check.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from bisect import bisect_left
from collections.abc import Sequence
from typing import Protocol

import structlog
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blockgate.names import CONTENT_PATH, DATA_PATH
from gateway.api import problems
from gateway.config import TokenEntry
from gateway.errors import BlockgateError, Forbidden, HeadersTooLarge, Unauthenticated
from gateway.logs import REQUEST, RequestContext
from gateway.metrics import SECONDS_BOUNDS
from gateway.observe.requests import RequestCounts

_MAX_FIELDS = 100
_MAX_BYTES = 32768
_MAX_BODY_BYTES = 1 << 20
_UPLOADS = "/v1/artifacts/"
_OPEN = frozenset({"/livez", "/readyz", "/", "/docs", "/favicon.ico"})
_OPEN_FOLDER = "/dashboard/"
_READING = ("GET", "HEAD")
# Around the name in either route of device bytes; both end alike.
_NAME_BEGIN, _DATA_END = DATA_PATH.split("{name}")
_CONTENT_BEGIN = CONTENT_PATH.split("{etag}")[0]
# Of successful reads of device bytes, one in so many gets a line.
_SAMPLE = 128
_SERVER_ERROR = 500
_DEFECT = "an unexpected error; the gateway's log has the details"

log = structlog.get_logger(__name__)


class DataRoute(Protocol):
    """An ASGI application that can answer some requests for a device's bytes at once (``api/data.py``)."""

    def peek(self, scope: Scope, name: str, *, content: bool) -> list[Message] | None:
        """The answer's messages, if there is nothing to wait for."""
        ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        ...


class Edge:
    """Wraps the application; ``data`` answers what is asked of the bytes of devices, by name and by content.

    ``access_log`` writes a line per request (of device reads, one in 128).
    """

    def __init__(
        self,
        app: ASGIApp,
        data: DataRoute,
        counts: RequestCounts,
        *,
        tokens: Sequence[TokenEntry] = (),
        access_log: bool = False,
    ) -> None:
        self._app = app
        self._data = data
        self._counts = counts
        self._access_log = access_log
        self._reads = 0
        self._tokens = [(bytes.fromhex(token.sha256), token.role) for token in tokens]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        hot = self._hot(scope)
        if hot is None:
            await self._answer(scope, receive, send, began)
            return
        for message in hot:
            await send(message)
        # Histogram.observe without the call: this is paid for by each block that is read.
        seconds = time.perf_counter() - began
        ranges = self._counts.ranges
        ranges.buckets[bisect_left(SECONDS_BOUNDS, seconds)] += 1
        ranges.seconds += seconds

    def _hot(self, scope: Scope) -> list[Message] | None:
        """A read of device bytes that is allowed and can be answered from memory; ``None`` for anything else."""
        found = _device_read(scope)
        if found is None or self._access_log:
            return None
        try:
            _check_size(scope)
            if self._tokens:
                self._check_token(scope)
        except BlockgateError:
            return None
        return self._data.peek(scope, found[0], content=found[1])

    async def _answer(self, scope: Scope, receive: Receive, send: Send, began: float) -> None:
        request = RequestContext(scope["headers"])
        REQUEST.set(request)
        counts = self._counts
        counts.in_flight += 1

        async def watched(message: Message) -> None:
            if not request.status:  # the first message is the answer's head
                request.status = message["status"]
                if request.status >= _SERVER_ERROR:
                    # What a client complains about can be found in the log.
                    message["headers"] = [*message["headers"], (b"x-request-id", request.id.encode())]
            await send(message)

        try:
            await self._guard(scope, receive, watched, request)
        finally:
            seconds = time.perf_counter() - began
            counts.in_flight -= 1
            counts.finished(scope["method"], scope.get("endpoint"), request.status, seconds)
            if self._access_log or request.status >= _SERVER_ERROR:
                self._write(scope, request.status, seconds)

    async def _guard(self, scope: Scope, receive: Receive, send: Send, request: RequestContext) -> None:
        try:
            _check_size(scope)
            if self._tokens:
                self._check_token(scope)
            found = _device_read(scope)
            if found is None:
                # Uploads have a limit of their own, and are not held in memory.
                limited = receive if scope["path"].startswith(_UPLOADS) else _limit(receive)
                await self._app(scope, limited, send)
            else:
                scope["path_params"] = {"etag" if found[1] else "name": found[0]}
                scope["endpoint"] = self._data
                await self._data(scope, receive, send)
        except BlockgateError as error:
            if request.status:
                raise
            await answer(error, send)
        except Exception:
            if request.status:
                raise
            log.exception("request failed", method=scope["method"], path=scope["path"][:200])
            await answer(BlockgateError(_DEFECT), send)

    def _write(self, scope: Scope, status: int, seconds: float) -> None:
        path: str = scope["path"]
        sampled = {}
        if path.endswith("/data") and status < _SERVER_ERROR:
            self._reads += 1
            if self._reads % _SAMPLE != 1:
                return
            sampled = {"one_in": _SAMPLE}
        write = log.warning if status >= _SERVER_ERROR else log.debug
        write(
            "request",
            method=scope["method"],
            path=path[:200],
            status=status,
            seconds=round(seconds, 6),
            **sampled,
        )

    def _check_token(self, scope: Scope) -> None:
        path: str = scope["path"]
        if path in _OPEN or path.startswith(_OPEN_FOLDER):
            return
        role = self._role(scope)
        if role == "admin":
            return
        reading = scope["method"] in _READING
        if role == "node" and reading and path.startswith(("/v1/devices", _CONTENT_BEGIN)):
            return
        if role == "node" and scope["method"] == "POST" and path.startswith("/v1/nodes/"):
            return
        if role == "metrics" and reading and path == "/metrics":
            return
        raise Forbidden(f"a token of role {role} may not {scope['method']} {path[:200]}")

    def _role(self, scope: Scope) -> str:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, token = given.partition(b" ")
        if scheme.lower() != b"bearer" or not token:
            raise Unauthenticated("send a token: Authorization: Bearer …")
        digest = hashlib.sha256(token.strip()).digest()
        found = ""
        for known, role in self._tokens:
            # All are compared, so that the time taken tells nothing.
            if hmac.compare_digest(known, digest):
                found = role
        if not found:
            raise Unauthenticated("this token is not known here")
        return found


class Net:
    """The last net of what goes by way of the framework, whose own answers in plain text."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        request = REQUEST.get()
        try:
            await self._app(scope, receive, send)
        except Exception:
            if request is None or request.status:
                raise
            log.exception("request failed", method=scope["method"], path=scope["path"][:200])
            await answer(BlockgateError(_DEFECT), send)


async def answer(error: BlockgateError, send: Send, extra: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Send a problem document, with ``extra`` header fields."""
    status, headers, body = problems.render(error)
    headers += extra
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _device_read(scope: Scope) -> tuple[str, bool] | None:
    """The name of the device whose bytes are asked for, or the entity tag of the content, and whether it is that.

    ``None`` for any other request.
    """
    path: str = scope["path"]
    if not path.endswith(_DATA_END) or scope["method"] not in _READING:
        return None
    content = path.startswith(_CONTENT_BEGIN)
    if not content and not path.startswith(_NAME_BEGIN):
        return None
    name = path[len(_CONTENT_BEGIN if content else _NAME_BEGIN) : -len(_DATA_END)]
    return (name, content) if name and "/" not in name else None


def _check_size(scope: Scope) -> None:
    headers = scope["headers"]
    total = 0
    for name, value in headers:
        total += len(name) + len(value)
    if len(headers) > _MAX_FIELDS or total > _MAX_BYTES:
        raise HeadersTooLarge(
            f"at most {_MAX_FIELDS} header fields and {_MAX_BYTES} bytes of them are accepted"
        )


def _limit(receive: Receive) -> Receive:
    """``receive`` that raises once a body has become longer than any that is understood here."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > _MAX_BODY_BYTES:
            # FastAPI takes any other kind of exception for a body that cannot be parsed.
            raise HTTPException(413, f"a request body may have at most {_MAX_BODY_BYTES} bytes")
        return message

    return limited
