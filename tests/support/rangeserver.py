"""A small range server with faults that can be switched on while it runs. Plain asyncio, HTTP/1.1, keep-alive."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

_RANGE = re.compile(rb"bytes=(\d+)-(\d*)")


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked for: the range half-open, None without a Range field."""

    path: str
    fields: dict[bytes, bytes]
    start: int
    end: int
    ranged: bool


@dataclass(slots=True)
class Answer:
    """What will be sent; a fault changes it. ``send_bytes`` less than the body cuts the connection there."""

    status: int
    fields: dict[str, str]
    body: bytes
    send_bytes: int | None = None
    delay_seconds: float = 0.0
    stall_after_bytes: int | None = None
    stall_seconds: float = 0.0
    close: bool = False
    raw_head: bytes | None = None


Fault = Callable[[Request, Answer], None]


@dataclass(slots=True)
class RangeServer:
    content: bytes
    etag: str | None = '"v1"'
    last_modified: str | None = None
    delay_seconds: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    bytes_sent: int = 0
    connections: int = 0
    port: int = 0
    unix_path: Path | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        if self.unix_path is not None:
            return f"http+unix://{quote(str(self.unix_path), safe='')}/blob"
        return f"http://127.0.0.1:{self.port}/blob"

    @property
    def count(self) -> int:
        return len(self.requests)

    def drop_connections(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while True:
                raw = await reader.readuntil(b"\r\n\r\n")
                request = self._parse(raw)
                self.requests.append(request)
                answer = self._answer(request)
                for fault in self.faults:
                    fault(request, answer)
                if not await self._send(writer, answer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    def _parse(self, raw: bytes) -> Request:
        line, *lines = raw[:-4].split(b"\r\n")
        fields = {k.lower(): v.strip() for k, _, v in (one.partition(b":") for one in lines)}
        matched = _RANGE.fullmatch(fields.get(b"range", b""))
        if matched is None:
            return Request(line.split()[1].decode(), fields, 0, len(self.content), ranged=False)
        end = int(matched[2]) + 1 if matched[2] else len(self.content)
        return Request(
            line.split()[1].decode(), fields, int(matched[1]), min(end, len(self.content)), ranged=True
        )

    def _answer(self, request: Request) -> Answer:
        fields = {"Accept-Ranges": "bytes"}
        if self.etag is not None:
            fields["ETag"] = self.etag
        if self.last_modified is not None:
            fields["Last-Modified"] = self.last_modified
        wanted = request.fields.get(b"if-match")
        if wanted is not None and (self.etag is None or wanted.decode() != self.etag):
            return Answer(412, {}, b"")
        if not request.ranged:
            return Answer(200, fields, self.content)
        total = len(self.content)
        if request.start >= total:
            return Answer(416, {"Content-Range": f"bytes */{total}"}, b"")
        fields["Content-Range"] = f"bytes {request.start}-{request.end - 1}/{total}"
        return Answer(206, fields, self.content[request.start : request.end])

    async def _send(self, writer: asyncio.StreamWriter, answer: Answer) -> bool:
        delay = self.delay_seconds + answer.delay_seconds
        if delay:
            await asyncio.sleep(delay)
        answer.fields.setdefault("Content-Length", str(len(answer.body)))
        head = f"HTTP/1.1 {answer.status} X\r\n" + "".join(f"{k}: {v}\r\n" for k, v in answer.fields.items())
        writer.write(answer.raw_head if answer.raw_head is not None else head.encode("latin-1") + b"\r\n")
        body = memoryview(answer.body)
        if answer.send_bytes is not None:
            body = body[: answer.send_bytes]
        if answer.stall_after_bytes is not None:
            writer.write(body[: answer.stall_after_bytes])
            await writer.drain()
            await asyncio.sleep(answer.stall_seconds)
            body = body[answer.stall_after_bytes :]
        writer.write(body)
        await writer.drain()
        self.bytes_sent += len(body)
        return answer.send_bytes is None and not answer.close


@asynccontextmanager
async def range_server(content: bytes, *, unix_path: Path | None = None, **settings):
    server = RangeServer(content, unix_path=unix_path, **settings)
    if unix_path is not None:
        listener = await asyncio.start_unix_server(server.handle, str(unix_path))
    else:
        listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
        server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        server.drop_connections()
        await asyncio.sleep(0)
