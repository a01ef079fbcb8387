from __future__ import annotations

import asyncio
import gc
import random
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from blockgate import errors as shared_errors
from blockgate.reader import check_bounds
from nbd_client import errors
from nbd_client import server as server_module
from nbd_client.errors import BlockgateError, InvalidOption, RangeNotSatisfiable, SourceTimeout, leaves
from nbd_client.protocol.constants import Command, Errno
from nbd_client.server import NbdServer, errno_of
from tests.support.nbdclient import nbd_client, open_socket
from tests.support.nbdclientside import encode_request

CONTENT = random.Random(9).randbytes(3 << 20)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that no event tells; bounded."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


class Memory:
    """A reader whose reads wait at a gate when their offset is marked cold, and fail when marked broken."""

    size = len(CONTENT)

    def __init__(self) -> None:
        self.cold: set[int] = set()
        self.broken: dict[int, Exception] = {}
        self.gate = asyncio.Event()
        self.prefetched = []
        self.waiting = 0

    def peek(self, offset, length):
        if offset in self.cold or offset in self.broken:
            return None
        return memoryview(CONTENT)[offset : offset + length]

    async def read(self, offset, length):
        if offset in self.broken:
            raise self.broken[offset]
        self.waiting += 1
        await self.gate.wait()
        return memoryview(CONTENT)[offset : offset + length]

    def start(self, offset, length):
        return asyncio.ensure_future(self.read(offset, length))

    def prefetch(self, start, end):
        self.prefetched.append((start, end))

    async def aclose(self):
        pass


@pytest.fixture
async def memory():
    return Memory()


@pytest.fixture
async def served(memory, tmp_path):
    server = NbdServer(memory, name="disk")
    path = tmp_path / "nbd.sock"
    await server.listen_unix(path)
    yield server, path
    await server.aclose(grace_seconds=0.1)


async def test_size_flags_and_bytes_are_exact(served):
    _, path = served
    async with nbd_client(path) as client:
        assert client.size == len(CONTENT)
        for offset, length in ((0, 1), (1, 511), (len(CONTENT) - 1, 1), (0, len(CONTENT))):
            reply = await client.read(offset, length)
            assert reply.error == 0
            assert reply.payload == CONTENT[offset : offset + length]


async def test_tcp_serves_as_well(memory):
    server = NbdServer(memory)
    port = await server.listen_tcp("127.0.0.1", 0)
    async with nbd_client(port=port, name="") as client:
        assert (await client.read(5, 5)).payload == CONTENT[5:10]
    await server.aclose()


async def test_replies_overtake_a_read_that_takes_long(served, memory):
    _, path = served
    memory.cold.add(0)
    async with nbd_client(path) as client:
        slow = client.send(Command.READ, 0, 4096)
        assert (await client.read(4096, 4096)).payload == CONTENT[4096:8192]
        assert not slow.done()
        memory.gate.set()
        assert (await asyncio.wait_for(slow, 10)).payload == CONTENT[:4096]


async def test_a_failed_read_is_an_error_without_payload_and_the_next_one_works(served, memory, caplog):
    _, path = served
    memory.broken[0] = SourceTimeout("late")
    memory.broken[512] = ValueError("a defect")
    async with nbd_client(path) as client:
        for offset in (0, 512):
            reply = await client.read(offset, 512)
            assert (reply.error, reply.payload) == (Errno.EIO, b"")
        assert (await client.read(1024, 512)).payload == CONTENT[1024:1536]
    assert "late" in caplog.text


async def test_writes_are_refused_and_their_payload_is_consumed(served):
    _, path = served
    async with nbd_client(path) as client:
        write = await client.ask(Command.WRITE, 0, 1 << 20, payload=bytes(1 << 20))
        assert write.error == Errno.EPERM
        for command in (Command.TRIM, Command.WRITE_ZEROES):
            assert (await client.ask(command, 0, 512)).error == Errno.EPERM
        assert (await client.ask(Command.FLUSH)).error == 0
        assert (await client.read(0, 16)).payload == CONTENT[:16]


async def test_a_cache_request_prefetches(served, memory):
    _, path = served
    async with nbd_client(path) as client:
        assert (await client.ask(Command.CACHE, 4096, 8192)).error == 0
    assert memory.prefetched == [(4096, 12288)]


async def test_reads_out_of_range_are_invalid(served):
    _, path = served
    async with nbd_client(path) as client:
        for offset, length in ((len(CONTENT), 1), (len(CONTENT) - 1, 2), (2**64 - 1, 1), (0, 0)):
            assert (await client.read(offset, length)).error == Errno.EINVAL


async def test_disc_closes_after_what_is_in_flight_is_answered(served, memory):
    _, path = served
    memory.cold.add(0)
    async with nbd_client(path) as client:
        slow = client.send(Command.READ, 0, 4096)
        client.send(Command.DISC).cancel()
        await client.writer.drain()
        memory.gate.set()
        assert (await asyncio.wait_for(slow, 10)).payload == CONTENT[:4096]
        await client.closed()


async def test_many_connections_read_at_the_same_time(served):
    _, path = served

    async def one(seed: int) -> None:
        rng = random.Random(seed)
        async with nbd_client(path) as client:
            for _ in range(20):
                offset = rng.randrange(len(CONTENT) - 70_000)
                assert (await client.read(offset, 65_536)).payload == CONTENT[offset : offset + 65_536]

    await asyncio.gather(*(one(seed) for seed in range(20)))


async def test_garbage_costs_only_its_own_connection(served):
    server, path = served
    rng = random.Random(4)
    async with nbd_client(path) as good:
        for n in range(30):
            reader, writer = await open_socket(path)
            if n % 2:
                writer.write(b"\0\0\0\3IHAVEOPT\0\0\0\1\0\0\0\0")  # into the transmission phase
            writer.write(rng.randbytes(200))
            writer.write_eof()
            await asyncio.wait_for(reader.read(), 10)
            writer.close()
        assert (await good.read(0, 16)).payload == CONTENT[:16]
    assert server.counters.connections == 31


async def test_half_a_message_then_silence_does_not_hang_others_and_is_cut_off(served, leap):
    server, path = served
    reader, writer = await open_socket(path)
    writer.write(b"\0\0")
    await until(lambda: server.counters.connections == 1)
    async with nbd_client(path) as client:
        assert (await client.read(0, 16)).payload == CONTENT[:16]
    leap(server_module.HANDSHAKE_TIMEOUT_SECONDS)
    assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"NBDMAGIC")
    writer.close()


async def test_a_client_that_never_reads_is_held_back_not_buffered_for(served, memory):
    """Asks for far more than it takes; the server stops reading its requests and stays within bounds."""
    server, path = served
    async with nbd_client(path) as client:
        client.reader._transport.pause_reading()
        replies = [client.send(Command.READ, 0, len(CONTENT)) for _ in range(400)]
        await until(lambda: server.counters.reads > 0)
        async with nbd_client(path) as other:
            for _ in range(50):
                assert (await other.read(0, 16)).payload == CONTENT[:16]
        assert server.counters.reads - 50 < 20
        client.reader._transport.resume_reading()
        assert len(await asyncio.wait_for(asyncio.gather(*replies), 60)) == 400


async def test_what_is_in_flight_is_bounded_in_bytes(served, memory, monkeypatch):
    _, path = served
    monkeypatch.setattr(server_module, "MAX_IN_FLIGHT_BYTES", 10_000)
    memory.cold.update(range(0, 100_000, 1000))
    async with nbd_client(path) as client:
        replies = [client.send(Command.READ, n * 1000, 1000) for n in range(100)]
        hot = client.send(Command.READ, 100_001, 10)
        await until(lambda: memory.waiting >= 10)
        assert memory.waiting == 10
        memory.gate.set()
        done = await asyncio.wait_for(asyncio.gather(*replies, hot), 20)
    assert [reply.payload for reply in done[:-1]] == [CONTENT[n * 1000 : n * 1000 + 1000] for n in range(100)]


async def test_a_client_that_goes_away_while_it_waits_leaves_nothing_behind(served, memory):
    server, path = served
    memory.cold.add(0)
    async with nbd_client(path) as client:
        client.send(Command.READ, 0, 4096).add_done_callback(lambda f: f.exception())
        await until(lambda: memory.waiting > 0)
    await until(lambda: not server.connections)
    memory.gate.set()
    async with nbd_client(path) as client:
        assert (await client.read(0, 16)).payload == CONTENT[:16]


async def test_stopping_answers_what_is_in_flight(memory, tmp_path):
    server, path = NbdServer(memory), tmp_path / "s"
    await server.listen_unix(path)
    memory.cold.add(0)
    async with nbd_client(path) as client:
        slow = client.send(Command.READ, 0, 4096)
        await until(lambda: memory.waiting > 0)
        stopping = asyncio.create_task(server.aclose())
        await asyncio.sleep(0)
        memory.gate.set()
        assert (await asyncio.wait_for(slow, 10)).payload == CONTENT[:4096]
        await client.closed()
        await stopping
    assert not path.exists()


async def test_a_socket_past_the_handshake_is_served_at_once(memory):
    server = NbdServer(memory)
    ours, theirs = socket.socketpair()
    session = await server.serve_connected(ours)
    reader, writer = await asyncio.open_connection(sock=theirs)
    writer.write(encode_request(Command.READ, 7, 10, 20))
    assert (await asyncio.wait_for(reader.readexactly(36), 10))[16:] == CONTENT[10:30]
    writer.write(encode_request(Command.DISC, 8))
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
    await session.closed
    await server.aclose()


async def test_a_stale_socket_is_replaced_anything_else_is_left_alone(memory, tmp_path):
    stale = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as leftover:
        leftover.bind(str(stale))
    server = NbdServer(memory)
    await server.listen_unix(stale)
    second = NbdServer(memory)
    with pytest.raises(InvalidOption, match="in use"):
        await second.listen_unix(stale)
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InvalidOption, match="not a socket"):
        await second.listen_unix(tmp_path / "file")
    with pytest.raises(InvalidOption, match="cannot listen"):
        await second.listen_unix(tmp_path / "missing" / "s")
    with pytest.raises(InvalidOption, match="cannot listen"):
        await second.listen_tcp("192.0.2.1", 1)
    await server.aclose()
    assert (tmp_path / "file").read_text() == "precious"


async def test_too_many_connections_are_turned_away(served, monkeypatch):
    _, path = served
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 1)
    async with nbd_client(path):
        with pytest.raises((EOFError, ConnectionError)):
            async with nbd_client(path):
                pass


async def test_no_file_descriptor_leaks(memory, tmp_path):
    async def cycle() -> int:
        server = NbdServer(memory)
        await server.listen_unix(tmp_path / "s")
        async with nbd_client(tmp_path / "s") as client:
            await client.read(0, 512)
        await server.aclose()
        for _ in range(3):
            await asyncio.sleep(0)
        return len(list(Path("/proc/self/fd").iterdir()))  # noqa: ASYNC240

    gc.collect()  # what earlier tests left may close its descriptors at any time
    first = await cycle()
    assert max([await cycle() for _ in range(5)]) <= first


def own_leaves():
    """Leaves that the node can meet: other tests of this process may have loaded the gateway's."""
    return [leaf for leaf in leaves() if leaf.__module__ in {"nbd_client.errors", "blockgate.errors"}]


def test_every_error_of_the_node_is_drawn_in_the_tree():
    drawn = f"{errors.__doc__}{shared_errors.__doc__}"
    assert len(own_leaves()) > 10
    assert all(leaf.__name__ in drawn for leaf in own_leaves())


def test_every_error_has_a_number_on_the_wire_and_a_code_of_its_own():
    codes = [leaf.code for leaf in own_leaves()]
    assert len(codes) == len(set(codes))
    for leaf in own_leaves():
        error = leaf("x", received=0) if leaf.code == "source_truncated" else leaf("x")
        assert errno_of(error) in {Errno.EIO, Errno.EINVAL, Errno.ESHUTDOWN}
    assert errno_of(BlockgateError("x")) == Errno.EIO


async def test_a_read_outside_of_the_device_is_einval_whichever_layer_notices():
    with pytest.raises(RangeNotSatisfiable) as caught:
        check_bounds(512, 1, 512)
    assert errno_of(caught.value) == Errno.EINVAL
