"""The device as an HTTP resource: ``GET`` and ``HEAD`` with Range, by its name and by its content.

``/v1/content/{etag}/data`` is immutable and may be kept for ever; ``/v1/devices/{name}/data`` names it in Content-Location.

A raw ASGI endpoint: this is the one hot path, and each framework layer costs more than finding the bytes. What is in
memory is answered without leaving the event loop, the commonest request of all without a coroutine of its own. For the rest
the status goes out only after the first span is read and verified; a failure after that ends the connection short of its
Content-Length, never with padding.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

import structlog
from starlette.types import Message, Receive, Scope, Send

from blockgate.names import content_path
from blockgate.ranges import Range, Verdict, content_range, evaluate, parse_range, unsatisfied_range
from blockgate.reader import Bytes
from gateway.api.edge import answer
from gateway.devices.device import Device
from gateway.devices.shelf import Shelf
from gateway.errors import BlockgateError, InvalidRequest, PreconditionFailed, RangeNotSatisfiable
from gateway.observe.requests import RequestCounts

# What is answered at once from memory; more than this goes out piece by piece.
_ONE_GO_BYTES = 8 << 20
_EXPOSED = b"Accept-Ranges, Blockgate-Verification, Content-Length, Content-Location, Content-Range, ETag"

log = structlog.get_logger(__name__)

Headers = list[tuple[bytes, bytes]]

_ONE_RANGE = re.compile(rb"bytes=([0-9]{1,19})-([0-9]{1,19})")
_WANTED = frozenset({b"range", b"if-range", b"if-match", b"if-none-match", b"origin"})


class _CutShort(Exception):
    """The answer had begun when its next part could not be had."""


class DataEndpoint:
    """ASGI application for both routes. ``shelf`` is set when the services have opened, before any request.

    ``scope["path_params"]`` holds the device's ``name``, or the content's ``etag`` without its quotes. A name can be
    given to other content, so that what was found by it has to be asked for anew; an entity tag cannot.
    """

    shelf: Shelf

    def __init__(self, counts: RequestCounts, *, private: bool, cors_origins: Sequence[str] = ()) -> None:
        self._counts = counts
        audience = b"private" if private else b"public"
        self._for_ever = audience + b", max-age=31536000, immutable, no-transform"
        self._origins = frozenset(origin.encode() for origin in cors_origins)

    def peek(self, scope: Scope, name: str, *, content: bool) -> list[Message] | None:
        """The whole answer to what nearly every request is: one closed range that lies in memory.

        ``None`` for any other, which goes the long way. Never waits, never raises.
        """
        wanted: bytes | None = None
        for field, value in scope["headers"]:
            if field in _WANTED:
                if field != b"range" or wanted is not None:
                    return None
                wanted = value
        if wanted is None or scope["method"] != "GET" or self._origins:
            return None
        match = _ONE_RANGE.fullmatch(wanted)
        device = self.shelf.peek_content(name) if content else self.shelf.peek(name)
        if match is None or device is None:
            return None
        start, stop = int(match[1]), int(match[2]) + 1
        if not start < stop <= min(device.size, start + _ONE_GO_BYTES):
            return None
        pieces = device.peek(start, stop)
        if pieces is None:
            return None
        device.expect(start, stop)
        headers = _part(self._common(device, name if content else ""), device, start, stop)
        answer: list[Message] = [{"type": "http.response.start", "status": 206, "headers": headers}]
        answer += [{"type": "http.response.body", "body": piece, "more_body": True} for piece in pieces]
        answer[-1]["more_body"] = False
        return answer

    def _common(self, device: Device, etag: str) -> Headers:
        """Fields of every answer of a device that was asked for by its name (``etag`` is empty) or by an entity tag."""
        fields = device.fields.get(etag)
        if fields is None:
            proven = device.proven
            if not proven:
                # Bytes that may turn out to be wrong stay in no cache.
                control = b"no-store, no-transform"
            elif etag:
                control = self._for_ever
            else:
                control = b"no-cache, no-transform"
            tag = f'"{etag}"' if etag else device.etag
            fields = device.fields[etag] = [
                (b"accept-ranges", b"bytes"),
                (b"cache-control", control),
                (b"blockgate-verification", b"verified" if proven else b"unverified"),
                (b"etag", tag.encode()),
            ]
            if not etag:
                fields.append((b"content-location", content_path(device.etag).encode()))
        return fields

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        # Also where there is no Origin: a cache must not give that answer to a page which sends one.
        cors: Headers = [(b"vary", b"Origin")] if self._origins else []
        device: Device | None = None
        try:
            fields = _fields(scope)
            origin = fields.get(b"origin")
            if origin is not None and origin in self._origins:
                cors += [
                    (b"access-control-allow-origin", origin),
                    (b"access-control-expose-headers", _EXPOSED),
                ]
            named: dict[str, str] = scope["path_params"]
            etag = named.get("etag", "")
            if etag:
                device = self.shelf.peek_content(etag) or await self.shelf.get_content(etag)
            else:
                device = self.shelf.peek(named["name"]) or await self.shelf.get(named["name"])
            common = [*self._common(device, etag), *cors]
            tag = f'"{etag}"' if etag else device.etag
            await _serve(device, tag, scope["method"], fields, common, receive, send)
        except _CutShort:
            self._counts.cut_short += 1
        except RangeNotSatisfiable as error:
            if device is not None:
                cors.append((b"content-range", unsatisfied_range(device.size).encode()))
            await answer(error, send, cors)
        except BlockgateError as error:
            await answer(error, send, cors)


async def _serve(
    device: Device,
    etag: str,
    method: str,
    fields: dict[bytes, bytes],
    common: Headers,
    receive: Receive,
    send: Send,
) -> None:
    verdict = Verdict.SEND
    if len(fields) > (b"range" in fields) + (b"origin" in fields):
        verdict = evaluate(
            etag,
            if_match=_text(fields.get(b"if-match")),
            if_none_match=_text(fields.get(b"if-none-match")),
            if_range=_text(fields.get(b"if-range")),
        )
    if verdict is Verdict.FAILED:
        raise PreconditionFailed(f"the device's entity tag is {etag}, which If-Match does not name")
    if verdict is Verdict.NOT_MODIFIED:
        await send({"type": "http.response.start", "status": 304, "headers": common})
        await send({"type": "http.response.body", "body": b""})
        return
    ranges = None
    if method == "GET" and verdict is Verdict.SEND and b"range" in fields:
        ranges = parse_range(fields[b"range"].decode("latin-1"), device.size)
    if method == "HEAD":
        await send({"type": "http.response.start", "status": 200, "headers": [*common, *_whole(device)]})
        await send({"type": "http.response.body", "body": b""})
    elif ranges is None:
        await _send_range(device, (0, device.size), 200, [*common, *_whole(device)], receive, send)
    elif len(ranges) == 1:
        await _send_range(device, ranges[0], 206, _part(common, device, *ranges[0]), receive, send)
    else:
        await _send_multipart(device, ranges, common, receive, send)


def _part(common: Headers, device: Device, start: int, stop: int) -> Headers:
    return [
        *common,
        (b"content-type", b"application/octet-stream"),
        (b"content-length", b"%d" % (stop - start)),
        (b"content-range", b"bytes %d-%d/%d" % (start, stop - 1, device.size)),
    ]


def _whole(device: Device) -> Headers:
    return [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % device.size)]


def _fields(scope: Scope) -> dict[bytes, bytes]:
    """The header fields that matter here. Raises ``InvalidRequest`` for a second Range."""
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in _WANTED:
            if name in found:
                if name == b"range":
                    raise InvalidRequest("a request may have one Range field only")
                value = found[name] + b", " + value  # noqa: PLW2901 - RFC 9110 section 5.3
            found[name] = value
    return found


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


async def _send_range(
    device: Device, span: Range, status: int, headers: Headers, receive: Receive, send: Send
) -> None:
    start, stop = span
    device.expect(start, stop)
    if stop - start <= _ONE_GO_BYTES:
        pieces = device.peek(start, stop)
        if pieces is not None:
            await send({"type": "http.response.start", "status": status, "headers": headers})
            last = max(0, len(pieces) - 1)
            for number, piece in enumerate(pieces or [b""]):
                await send({"type": "http.response.body", "body": piece, "more_body": number < last})
            return
    await _send_stream(device, device.stream(start, stop), stop - start, status, headers, receive, send)


async def _send_multipart(
    device: Device, ranges: list[Range], common: Headers, receive: Receive, send: Send
) -> None:
    """multipart/byteranges (RFC 9110 section 14.6); every length is known beforehand."""
    boundary = secrets.token_hex(16)
    heads = [
        f"\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\n"
        f"Content-Range: {content_range(start, stop, device.size)}\r\n\r\n".encode()
        for start, stop in ranges
    ]
    tail = f"\r\n--{boundary}--\r\n".encode()
    length = sum(map(len, heads)) + sum(stop - start for start, stop in ranges) + len(tail)
    headers = [
        *common,
        (b"content-type", f"multipart/byteranges; boundary={boundary}".encode()),
        (b"content-length", b"%d" % length),
    ]

    async def parts() -> AsyncIterator[Bytes]:
        for head, (start, stop) in zip(heads, ranges, strict=True):
            # The first bytes of a part are read before its head goes out: the status waits for them too.
            pieces = device.stream(start, stop)
            first = await anext(pieces)
            yield head
            yield first
            async for piece in pieces:
                yield piece
        yield tail

    await _send_stream(device, parts(), length, 206, headers, receive, send)


async def _send_stream(
    device: Device,
    pieces: AsyncIterator[Bytes],
    total: int,
    status: int,
    headers: Headers,
    receive: Receive,
    send: Send,
) -> None:
    """Send pieces as they come, ``total`` bytes; the status goes out when the first of them is there."""
    piece = await anext(pieces, b"")
    sent = 0
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        while True:
            sent += len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": sent < total})
            if sent >= total or gone.done():
                return
            piece = await anext(pieces)
    except BlockgateError as error:
        # The status is out: all that is left is to end the connection short of its Content-Length, which the server
        # does for an application that returns without completing its answer.
        log.error(
            "read failed after the answer began", device=device.name, code=error.code, error=error.detail
        )
        raise _CutShort from error
    finally:
        gone.cancel()
        close: Any = getattr(pieces, "aclose", None)
        if close is not None:
            with contextlib.suppress(RuntimeError):
                await close()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
