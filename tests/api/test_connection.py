"""What happens on a client's connection: heads travel with their bodies, and late ones are not waited for."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from contextlib import asynccontextmanager

import pytest
import uvicorn
import uvloop

from gateway.api import connection
from gateway.api.connection import ADMISSION, Connection, JoiningTransport
from gateway.spans.flights import Admission
from tests.support.gateway import Gateway

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


class Wire:
    """A transport that remembers each call."""

    def __init__(self):
        self.calls = []

    def write(self, data):
        self.calls.append(bytes(data))

    def writelines(self, pieces):
        self.calls.append([bytes(piece) for piece in pieces])

    def close(self):
        self.calls.append("close")

    def is_closing(self):
        return "close" in self.calls

    def get_extra_info(self, name):
        return name


@pytest.fixture
def wire():
    return Wire()


@pytest.fixture
async def transport(wire):
    return JoiningTransport(wire, asyncio.get_running_loop())


async def test_a_head_leaves_together_with_the_first_bytes_of_its_body(transport, wire):
    transport.write(HEAD)
    transport.write(memoryview(b"body"))
    transport.write(b"more")
    await asyncio.sleep(0)
    assert wire.calls == [[HEAD, b"body"], b"more"]


async def test_a_head_whose_body_takes_time_leaves_at_the_next_turn(transport, wire):
    transport.write(HEAD)
    assert wire.calls == []
    await asyncio.sleep(0)
    transport.write(b"body")
    assert wire.calls == [HEAD, b"body"]


async def test_closing_sends_what_was_kept(transport, wire):
    transport.write(HEAD)
    transport.close()
    await asyncio.sleep(0)
    assert wire.calls == [HEAD, "close"]
    assert transport.is_closing()


async def test_a_body_that_looks_like_a_head_stays_in_its_place(transport, wire):
    for piece in (HEAD, b"a", b"HTTP/1.1 b", b"c", b"HTTP/1.1 d"):
        transport.write(piece)
    await asyncio.sleep(0)
    flat = [call if isinstance(call, bytes) else b"".join(call) for call in wire.calls]
    assert b"".join(flat) == HEAD + b"aHTTP/1.1 bcHTTP/1.1 d"


async def test_everything_else_is_the_real_transport_s(transport):
    assert transport.get_extra_info("peername") == "peername"


async def answer(scope, receive, send):
    if scope["path"] == "/slow":
        await asyncio.sleep(0.8)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def listening(app, admission):
    """A server of ``app`` on a free port of loopback."""
    config = uvicorn.Config(
        app, port=0, http=Connection, ws="none", lifespan="off", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    server.lifespan.state[ADMISSION] = admission
    await server.startup()
    yield server.servers[0].sockets[0].getsockname()[1]
    await server.shutdown()


@pytest.fixture
async def port(monkeypatch):
    """A server that grants heads half a second."""
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.5)
    async with listening(answer, Admission(1 << 30)) as port:
        yield port


@pytest.mark.parametrize("beginning", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
async def test_a_head_that_does_not_arrive_in_time_ends_the_connection(port, beginning):
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(beginning)
        assert await reader.read() == b""
        writer.close()


async def test_a_late_head_of_a_second_request_ends_the_connection_too(port):
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HT")
        assert (await reader.read()).endswith(b"\r\n\r\nok")
        writer.close()


async def test_an_answer_may_take_longer_than_a_head(port):
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for path in (b"/slow", b"/", b"/slow"):
            writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK")
            assert await reader.readexactly(2) == b"ok"
        writer.close()


PIECE = bytes(8 << 20)


class Large:
    """Answers in two large pieces, of which the second waits until the first was taken."""

    def __init__(self):
        self.written, self.lost = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope, receive, send):
        length = b"%d" % (2 * len(PIECE))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": memoryview(PIECE), "more_body": True})
        self.written.set()
        await send({"type": "http.response.body", "body": PIECE})
        while (await receive())["type"] != "http.disconnect":
            pass
        self.lost.set()


async def reads_late(*, ever):
    """What waits for a client that does not read, and after it has read (or gone)."""
    admission, app = Admission(1 << 30), Large()
    async with listening(app, admission) as port, asyncio.timeout(30):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await app.written.wait()
        waiting = admission.sending_bytes
        if ever:
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(2 * len(PIECE)) == 2 * PIECE
            writer.close()
        else:
            writer.transport.abort()
        await app.lost.wait()
        # An answer that the transport took whole is complete before its client is known to be gone.
        while admission.sending_bytes:
            await asyncio.sleep(0.001)
        return waiting, admission.sending_bytes


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("ever", [True, False], ids=["reads late", "goes away"])
def test_what_a_client_does_not_read_counts_until_it_is_read_or_the_client_is_gone(loop, ever):
    with asyncio.Runner(loop_factory=loop) as runner:
        waiting, afterwards = runner.run(reads_late(ever=ever))
    # The kernel's buffers take some of it. asyncio up to 3.13 does not look at its buffer after writelines(), so that
    # the second piece is taken too before it says that the client is slow.
    assert 0 < waiting <= 2 * len(PIECE)
    assert afterwards == 0


def test_a_client_that_reads_is_not_counted_at_all():
    async def reads():
        async with listening(answer, None) as port, asyncio.timeout(30):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readuntil(b"ok")).endswith(b"ok")
            writer.close()

    asyncio.run(reads())


def sending_bytes(gateway):
    return int(
        re.search(r"^blockgate_sending_bytes (\d+)", gateway.http.get("/metrics").text, re.MULTILINE)[1]
    )


def until(gateway, condition):
    """Look again and again until the bytes that wait for clients are as wanted."""
    deadline = time.monotonic() + 30
    while not condition(sending_bytes(gateway)):
        assert time.monotonic() < deadline


def test_a_gateway_counts_clients_that_do_not_read_in_its_budget(tmp_path, images):
    with Gateway(tmp_path, oci_roots=[images.parent]) as gateway:
        body = {"source": {"image": f"oci:{images}:image"}, "layout": "tar", "layer": {"index": 0}}
        assert gateway.register("base", body)["state"] == "ready"
        assert sending_bytes(gateway) == 0
        with socket.create_connection(("127.0.0.1", gateway.port)) as client:
            # More than the kernel's buffers take.
            client.sendall(b"GET /v1/devices/base/data HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
            until(gateway, lambda waiting: waiting > 0)
        until(gateway, lambda waiting: waiting == 0)
        assert "Traceback" not in gateway.log


async def test_the_request_that_is_answered_hears_that_its_client_is_gone_though_others_wait_behind_it():
    begun, heard = asyncio.Event(), []

    async def app(scope, receive, _send):
        begun.set()
        message = await receive()
        while message["type"] != "http.disconnect":
            message = await receive()
        heard.append(scope["path"])

    async with listening(app, Admission(1 << 30)) as port, asyncio.timeout(30):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /first HTTP/1.1\r\nHost: x\r\n\r\nGET /second HTTP/1.1\r\nHost: x\r\n\r\n")
        await begun.wait()
        writer.transport.abort()
        while not heard:
            await asyncio.sleep(0)
    assert heard == ["/first"]
