"""A registry on raw sockets that misbehaves on demand.

Real HTTP/1.1 on loopback, in the test's own event loop: an in-memory image behind the registry API, a second
listener as its storage host (for redirects to signed URLs), and faults that are switched while it runs::

    async with FaultRegistry() as registry:
        image = registry.add_image("team/app", [layer])
        registry.inject(truncate(after=100), times=2)
        ...
        assert registry.count(image.layers[0].digest) == 3

A fault is a function that changes the reply before it is sent. Every request is recorded with its Range.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import json
import re
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"

_REASONS = {
    200: "OK",
    206: "Partial Content",
    307: "Temporary Redirect",
    401: "Unauthorized",
    404: "Not Found",
}
_CLOSED_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


def digest_of(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


@dataclass(frozen=True)
class StoredBlob:
    digest: str
    size: int
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class StoredImage:
    """What ``add_image`` put there. ``layers`` are as stored (compressed), base first."""

    repository: str
    tag: str
    digest: str
    layers: tuple[StoredBlob, ...]
    config: StoredBlob


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    to_storage: bool

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return {key: values[0] for key, values in parse_qs(urlsplit(self.target).query).items()}

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


@dataclass
class Reply:
    """What will be sent. ``cut_after`` body bytes the connection ends as ``ending`` says."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    start: int = 0
    cut_after: int | None = None
    ending: Literal["close", "reset", "stall"] = "close"
    piece_bytes: int | None = None
    piece_seconds: float = 0.0
    chunked: bool = False


Fault = Callable[[Request, Reply], None]
Matching = Callable[[Request], bool]


def blob_requests(request: Request) -> bool:
    """Requests that carry layers' bytes: to the API's blobs or to the storage host."""
    return "/blobs/" in request.path or request.to_storage


def any_request(request: Request) -> bool:
    return True


def status(code: int, **headers: str) -> Fault:
    """Answer ``code``; headers' underscores become dashes (``retry_after="1"``)."""

    def fault(request: Request, reply: Reply) -> None:
        reply.status, reply.body = code, b'{"errors":[]}'
        reply.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    return fault


def truncate(after: int, *, chunked: bool = False) -> Fault:
    """End the connection cleanly after ``after`` bytes of the body, with the full length announced.

    ``chunked``: the short body looks complete instead, as no length was announced.
    """

    def fault(request: Request, reply: Reply) -> None:
        if chunked:
            reply.body, reply.chunked = reply.body[:after], True
        else:
            reply.cut_after, reply.ending = after, "close"

    return fault


def reset(after: int = 0) -> Fault:
    """Send a TCP RST after ``after`` bytes of the body."""

    def fault(request: Request, reply: Reply) -> None:
        reply.cut_after, reply.ending = after, "reset"

    return fault


def stall(after: int = 0) -> Fault:
    """Send ``after`` bytes of the body and then nothing, with the connection open."""

    def fault(request: Request, reply: Reply) -> None:
        reply.cut_after, reply.ending = after, "stall"

    return fault


def drip(piece_bytes: int = 1, piece_seconds: float = 0.02) -> Fault:
    """Send the body in small pieces with pauses."""

    def fault(request: Request, reply: Reply) -> None:
        reply.piece_bytes, reply.piece_seconds = piece_bytes, piece_seconds

    return fault


def ignore_range(request: Request, reply: Reply) -> None:
    """Answer 200 with the whole blob."""
    reply.status = 200
    reply.headers.pop("Content-Range", None)
    reply.headers["X-Whole"] = "1"


def wrong_content_range(request: Request, reply: Reply) -> None:
    """Send the right bytes under a wrong label."""
    if "Content-Range" in reply.headers:
        reply.headers["Content-Range"] = f"bytes {reply.start + 1}-{reply.start + len(reply.body)}/999999999"


def wrong_total(request: Request, reply: Reply) -> None:
    """Name another total length."""
    if "Content-Range" in reply.headers:
        reply.headers["Content-Range"] = reply.headers["Content-Range"].rpartition("/")[0] + "/7"


def other_range(request: Request, reply: Reply) -> None:
    """Send other bytes than asked for, honestly labelled and one byte short."""
    if "Content-Range" in reply.headers and len(reply.body) > 1:
        total = reply.headers["Content-Range"].rpartition("/")[2]
        reply.body = reply.body[1:]
        reply.headers["Content-Range"] = f"bytes {reply.start + 1}-{reply.start + len(reply.body)}/{total}"


def gzip_encoded(request: Request, reply: Reply) -> None:
    """Compress the body although identity was asked for."""
    reply.body = gzip.compress(reply.body)
    reply.headers["Content-Encoding"] = "gzip"


def multipart(request: Request, reply: Reply) -> None:
    """Answer one range as multipart/byteranges."""
    label = reply.headers.pop("Content-Range", "bytes 0-0/1")
    head = f"--B\r\nContent-Type: application/octet-stream\r\nContent-Range: {label}\r\n\r\n".encode()
    reply.body = head + reply.body + b"\r\n--B--\r\n"
    reply.headers["Content-Type"] = "multipart/byteranges; boundary=B"


def oversize(length: int) -> Fault:
    """Send ``length`` bytes as the body."""

    def fault(request: Request, reply: Reply) -> None:
        reply.body = b" " * length

    return fault


def corrupt(request: Request, reply: Reply) -> None:
    """Flip the body's first bit; lengths and labels stay right."""
    if reply.body:
        reply.body = bytes([reply.body[0] ^ 1]) + reply.body[1:]


@dataclass
class _Injected:
    fault: Fault
    left: int | None
    matching: Matching


class FaultRegistry:
    """See the module. ``host`` is the API's ``host:port``, ``storage_host`` that of signed URLs."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.latency_seconds = 0.0
        self.redirects = False
        self.credentials: tuple[str, str] | None = None
        self.identity_token: str | None = None
        self.scheme: Literal["anonymous", "basic", "bearer"] = "anonymous"
        self.token_lifetime_seconds: int | None = 300
        self.token_field = "token"
        self.stale_token_scheme: Literal["bearer", "basic"] = "bearer"
        self.realm: str | None = None
        self.token_requests = 0
        self._token_generation = 0
        self._signature_generation = 0
        self._blobs: dict[str, bytes] = {}
        self._manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self._faults: list[_Injected] = []
        self._arrival = asyncio.Event()
        self.connections_accepted = 0
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()
        self.host = self.storage_host = ""

    # --- content

    def add_blob(self, content: bytes) -> StoredBlob:
        digest = digest_of(content)
        self._blobs[digest] = content
        return StoredBlob(digest, len(content), content)

    def delete_blob(self, digest: str) -> None:
        del self._blobs[digest]

    def add_manifest(
        self, repository: str, document: object, media_type: str = MANIFEST_TYPE, *tags: str
    ) -> str:
        """Store a JSON document (or bytes, as they are) under its digest and ``tags``; gives the digest."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        digest = digest_of(body)
        for name in (digest, *tags):
            self._manifests[repository, name] = (media_type, body)
        return digest

    def add_image(
        self,
        repository: str,
        layers: Sequence[bytes],
        *,
        tag: str = "latest",
        diff_ids: Sequence[str] | None = None,
        platform: tuple[str, str, str] = ("linux", "amd64", ""),
        layer_type: str = LAYER_TYPE,
    ) -> StoredImage:
        """A whole image. Gzip layers' diff_ids are computed where none are given."""
        stored = tuple(self.add_blob(layer) for layer in layers)
        if diff_ids is None:
            diff_ids = [
                digest_of(gzip.decompress(layer) if layer[:2] == b"\x1f\x8b" else layer) for layer in layers
            ]
        os_name, architecture, variant = platform
        config_document = {
            "os": os_name,
            "architecture": architecture,
            **({"variant": variant} if variant else {}),
            "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        }
        config = self.add_blob(json.dumps(config_document).encode())
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": config.digest, "size": config.size},
            "layers": [
                {"mediaType": layer_type, "digest": blob.digest, "size": blob.size} for blob in stored
            ],
        }
        digest = self.add_manifest(repository, document, MANIFEST_TYPE, tag)
        return StoredImage(repository, tag, digest, stored, config)

    # --- faults

    def inject(self, fault: Fault, *, times: int | None = 1, matching: Matching = blob_requests) -> None:
        """Apply ``fault`` to the next ``times`` matching requests (None: until ``heal``)."""
        self._faults.append(_Injected(fault, times, matching))

    def heal(self) -> None:
        """Drop every fault."""
        self._faults.clear()

    def expire_tokens(self) -> None:
        """Tokens given out so far are refused from now on."""
        self._token_generation += 1

    def expire_signatures(self) -> None:
        """Signed URLs given out so far answer 403 from now on."""
        self._signature_generation += 1

    # --- what happened

    def count(self, part_of_path: str = "", *, ranges_only: bool = False) -> int:
        """Requests whose path holds ``part_of_path``."""
        return len(self.matching(part_of_path, ranges_only=ranges_only))

    def matching(self, part_of_path: str = "", *, ranges_only: bool = False) -> list[Request]:
        return [
            request
            for request in self.requests
            if part_of_path in request.path and (request.range is not None or not ranges_only)
        ]

    async def arrived(self, part_of_path: str = "", count: int = 1) -> None:
        """Wait until ``count`` requests with ``part_of_path`` have come in."""
        while self.count(part_of_path) < count:
            self._arrival.clear()
            await self._arrival.wait()

    # --- life

    async def __aenter__(self) -> Self:
        for to_storage in (False, True):
            server = await asyncio.start_server(self._handler(to_storage=to_storage), "127.0.0.1", 0)
            self._servers.append(server)
        self.host, self.storage_host = (
            f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in self._servers
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for server in self._servers:
            server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        for server in self._servers:
            await server.wait_closed()

    def _handler(self, *, to_storage: bool) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections_accepted += 1
            task = asyncio.ensure_future(self._serve(reader, writer, to_storage=to_storage))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

        return handle

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_storage: bool
    ) -> None:
        try:
            while (request := await _read_request(reader, to_storage=to_storage)) is not None:
                self.requests.append(request)
                self._arrival.set()
                if self.latency_seconds:
                    await asyncio.sleep(self.latency_seconds)
                if not await self._send(writer, request, self._reply(request)):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def _reply(self, request: Request) -> Reply:
        reply = self._storage_reply(request) if request.to_storage else self._api_reply(request)
        for injected in list(self._faults):
            if injected.left == 0 or not injected.matching(request):
                continue
            if injected.left is not None:
                injected.left -= 1
            injected.fault(request, reply)
            if reply.headers.pop("X-Whole", None):
                reply.body = self._blobs[unquote(request.path).rpartition("/")[2]]
            break
        return reply

    # --- the API

    def _api_reply(self, request: Request) -> Reply:
        if request.path == "/token":
            return self._token_reply(request)
        match = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/([^/]+)", unquote(request.path))
        if not match:
            return Reply(200 if request.path == "/v2/" else 404, {})
        repository, kind, name = match.groups()
        if refusal := self._refusal(request, repository):
            return refusal
        return (
            self._manifest_reply(repository, name) if kind == "manifests" else self._blob_reply(request, name)
        )

    def _manifest_reply(self, repository: str, name: str) -> Reply:
        if (repository, name) not in self._manifests:
            return Reply(
                404, {"Content-Type": "application/json"}, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}'
            )
        media_type, body = self._manifests[repository, name]
        return Reply(200, {"Content-Type": media_type, "Docker-Content-Digest": digest_of(body)}, body)

    def _blob_reply(self, request: Request, name: str) -> Reply:
        if name not in self._blobs:
            return Reply(404, {"Content-Type": "application/json"}, b'{"errors":[{"code":"BLOB_UNKNOWN"}]}')
        if self.redirects:
            url = (
                f"http://{self.storage_host}/storage/{name}?X-Amz-Signature=g{self._signature_generation}%2Fx"
            )
            return Reply(307, {"Location": url})
        return _ranged(request, self._blobs[name])

    def _storage_reply(self, request: Request) -> Reply:
        if "authorization" in request.headers:
            return Reply(400, {}, b"credentials reached the storage host")
        # Byte for byte, as strict signers compare: a client that writes the query anew is refused.
        if urlsplit(request.target).query != f"X-Amz-Signature=g{self._signature_generation}%2Fx":
            return Reply(403, {}, b"Request has expired")
        name = request.path.rpartition("/")[2]
        if name not in self._blobs:
            return Reply(404, {})
        return _ranged(request, self._blobs[name])

    def _refusal(self, request: Request, repository: str) -> Reply | None:
        given = request.headers.get("authorization", "")
        if self.scheme == "basic" and given != self._basic():
            return Reply(401, {"WWW-Authenticate": 'Basic realm="registry"'})
        if self.scheme == "bearer" and given != f"Bearer t{self._token_generation}":
            if given and self.stale_token_scheme == "basic":
                return Reply(401, {"WWW-Authenticate": 'Basic realm="registry"'})
            realm = f"http://{self.host}/token" if self.realm is None else self.realm
            scope = f"repository:{repository}:pull"
            value = f'Bearer realm="{realm}",service="fault,registry",scope="{scope}",error="invalid_token"'
            return Reply(401, {"WWW-Authenticate": value})
        return None

    def _token_reply(self, request: Request) -> Reply:
        self.token_requests += 1
        form = {key: values[0] for key, values in parse_qs(request.body.decode()).items()}
        if self.identity_token is not None:
            if request.method != "POST" or form.get("refresh_token") != self.identity_token:
                return Reply(401, {})
        elif self.credentials is not None and request.headers.get("authorization") != self._basic():
            return Reply(401, {})
        asked = form or request.query
        if asked.get("service") != "fault,registry" or not asked.get("scope", "").startswith("repository:"):
            return Reply(400, {})
        content: dict[str, object] = {self.token_field: f"t{self._token_generation}"}
        if self.token_lifetime_seconds is not None:
            content["expires_in"] = self.token_lifetime_seconds
        return Reply(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _basic(self) -> str:
        return "Basic " + base64.b64encode(":".join(self.credentials or ("", "")).encode()).decode()

    # --- the wire

    async def _send(self, writer: asyncio.StreamWriter, request: Request, reply: Reply) -> bool:
        """Send; False when the connection is at its end."""
        length = (
            {"Transfer-Encoding": "chunked"} if reply.chunked else {"Content-Length": str(len(reply.body))}
        )
        head = f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Status')}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in {**length, **reply.headers}.items())
        writer.write(f"{head}\r\n".encode())
        if request.method == "HEAD":
            await writer.drain()
            return True
        body = reply.body if reply.cut_after is None else reply.body[: reply.cut_after]
        if reply.chunked:
            body = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
        step = reply.piece_bytes or 1024 * 1024
        for position in range(0, len(body), step):
            writer.write(body[position : position + step])
            await writer.drain()
            if reply.piece_seconds:
                await asyncio.sleep(reply.piece_seconds)
        await writer.drain()
        if reply.cut_after is None:
            return True
        if reply.ending == "stall":
            await asyncio.Event().wait()
        if reply.ending == "reset":
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False


async def _read_request(reader: asyncio.StreamReader, *, to_storage: bool) -> Request | None:
    first = await reader.read(1)
    if first in {b"", b"\x16"}:  # the end, or a TLS handshake
        return None
    line = first + await reader.readline()
    method, target, _ = line.decode("latin-1").split()
    headers: dict[str, str] = {}
    while (line := await reader.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, target, headers, body, to_storage)


def _ranged(request: Request, blob: bytes) -> Reply:
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
    match = _CLOSED_RANGE.fullmatch(request.range or "")
    if not match:
        return Reply(200, headers, blob)
    start = int(match[1])
    stop = min(int(match[2]) + 1 if match[2] else len(blob), len(blob))
    if start >= stop:
        return Reply(416, {"Content-Range": f"bytes */{len(blob)}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(blob)}"
    return Reply(206, headers, blob[start:stop], start=start)
