"""Answers that are no HTTP, or bend it: always an error of the tree, never one of a library, never wrong bytes."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from gateway.errors import UpstreamError
from gateway.registry.blob import MinimumRate
from gateway.registry.reference import parse_reference
from gateway.registry.retry import RetryPolicy
from gateway.registry.source import Descriptor
from tests.registry.conftest import build_registries

OK = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-9/100\r\n"
ANSWERS = {
    "nothing": b"",
    "garbage": b"\x00\xff\x00garbage\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "half a header": OK,
    "no status": b"HTTP/1.1\r\n\r\n",
    "odd status": b"HTTP/1.1 99999 Odd\r\n\r\n",
    "status that is no number": b"HTTP/1.1 OK OK\r\n\r\n",
    "endless header": OK + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
    "many headers": OK + b"X: y\r\n" * 100_000 + b"\r\n",
    "header without a colon": OK + b"Content-Length 10\r\n\r\n0123456789",
    "two lengths": OK + b"Content-Length: 10\r\nContent-Length: 5\r\n\r\n0123456789",
    "length and chunks": OK
    + b"Content-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "negative length": OK + b"Content-Length: -10\r\n\r\n0123456789",
    "length that is no number": OK + b"Content-Length: ten\r\n\r\n0123456789",
    "bad chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n0123456789\r\n0\r\n\r\n",
    "chunks without an end": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n",
    "short body": OK + b"Content-Length: 10\r\n\r\n01234",
    "short body until the end of the connection": OK + b"Connection: close\r\n\r\n01234",
    "long body until the end of the connection": OK + b"Connection: close\r\n\r\n" + b"x" * 100,
    "no body": b"HTTP/1.1 204 No Content\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "other protocol by upgrade": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "two labels": OK + b"Content-Range: bytes 5-14/100\r\nContent-Length: 10\r\n\r\n0123456789",
    "location that is no URL": b"HTTP/1.1 307 Go\r\nLocation: http://[::1\r\nContent-Length: 0\r\n\r\n",
    "location with a line break": b"HTTP/1.1 307 Go\r\nLocation: http://x\x0b/\r\nContent-Length: 0\r\n\r\n",
    "challenge of bytes": b"HTTP/1.1 401 No\r\nWWW-Authenticate: \xff\xfe=\xff\r\nContent-Length: 0\r\n\r\n",
}


@contextlib.asynccontextmanager
async def answering(answer: bytes):
    """A server that sends the same bytes to everybody and closes; gives its ``host:port``."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield f"127.0.0.1:{port}"
    finally:
        server.close()
        await server.wait_closed()


async def read_ten_bytes(answer: bytes) -> bytes:
    registries = build_registries(
        policy=RetryPolicy(attempts=1, stream_attempts=1), minimum_rate=MinimumRate(window_seconds=5)
    )
    try:
        async with answering(answer) as host:
            reference = parse_reference(f"{host}/a/b")
            source = registries.source(insecure=True)
            blob = await source.open_blob(reference, Descriptor("", f"sha256:{'0' * 64}", 100))
            return bytes(await blob.read(0, 10))
    finally:
        await registries.aclose()


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
async def test_a_bent_answer_is_an_upstream_error(answer):
    with pytest.raises(UpstreamError, match=r"127\.0\.0\.1"):
        await read_ten_bytes(answer)


async def test_random_damage_to_a_good_answer_gives_an_error_or_ten_bytes():
    rng = random.Random(11)
    good = OK + b"Content-Length: 10\r\n\r\n0123456789"
    assert await read_ten_bytes(good) == b"0123456789"
    for _ in range(60):
        damaged = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        with contextlib.suppress(UpstreamError):
            assert len(await read_ten_bytes(bytes(damaged))) == 10


def test_the_retry_loop_has_defaults_that_fit_the_deadline():
    policy = RetryPolicy()
    assert policy.attempt_seconds * 2 <= policy.deadline_seconds
