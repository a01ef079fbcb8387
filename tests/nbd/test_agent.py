"""The agent on a pretended kernel: what is held, recorded and taken over."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd_client.agent import Agent
from nbd_client.control import ask, serve_control
from nbd_client.errors import (
    AgentError,
    DeviceBusy,
    DeviceUnknown,
    InvalidOption,
    InvalidUrl,
    KernelError,
    RecordInvalid,
    SourceRefused,
)
from nbd_client.kernel.attach import KernelAttachment
from nbd_client.kernel.sysfs import Sysfs, index_of
from nbd_client.protocol.constants import Command
from nbd_client.recovery import Records, new_record, parse_record
from nbd_client.source.response import Pin
from tests.support.nbdclientside import ReplyDecoder, encode_request
from tests.support.rangeserver import range_server

CONTENT = random.Random(2).randbytes(100_000)


class PretendedKernel:
    """Keeps duplicates of the sockets it is given, as the kernel does, and shows a sysfs."""

    def __init__(self, root) -> None:
        self.root = root
        self.sockets: dict[int, list[socket.socket]] = {}
        self.busy = 0
        self.refusal: Exception | None = None
        for index in range(4):
            (root / f"nbd{index}" / "queue").mkdir(parents=True)
            self._show(index, 0, None)

    def _show(self, index, size, backend):
        folder = self.root / f"nbd{index}"
        (folder / "size").write_text(f"{size // 512}\n")
        if backend is None:
            (folder / "backend").unlink(missing_ok=True)
        else:
            (folder / "backend").write_text(backend + "\n")

    def backend(self, index):
        return (self.root / f"nbd{index}" / "backend").read_text().strip()

    def connect(self, request):
        if self.busy:
            self.busy -= 1
            raise DeviceBusy("busy")
        if self.refusal:
            raise self.refusal
        index = request.index if request.index is not None else min(set(range(4)) - set(self.sockets))
        self.sockets[index] = [socket.socket(fileno=_dup(fd)) for fd in request.socket_fds]
        self._show(index, request.size, request.backend)
        return index

    def reconfigure(self, index, backend, fds):
        assert backend == self.backend(index)
        if self.sockets[index]:
            return  # nothing was dead: says yes and takes nothing
        self.sockets[index] = [socket.socket(fileno=_dup(fd)) for fd in fds]

    def disconnect(self, index):
        for one in self.sockets.pop(index):
            one.close()
        self._show(index, 0, None)

    def lose_connections(self):
        for index, ends in self.sockets.items():
            for one in ends:
                one.close()
            self.sockets[index] = []

    def read(self, index, offset, length):
        """A blocking read through the device's first socket."""
        decoder = ReplyDecoder()
        decoder.expect(1, length)
        end = self.sockets[index][0]
        end.settimeout(20)
        end.sendall(encode_request(Command.READ, 1, offset, length))
        while not (replies := decoder.receive(end.recv(1 << 16))):
            pass
        return replies[0]


def _dup(fd: int) -> int:
    return socket.dup(fd)


@pytest.fixture
def kernel(tmp_path):
    pretended = PretendedKernel(tmp_path / "sys")
    yield pretended
    pretended.lose_connections()


@pytest.fixture
def make_agent(tmp_path, kernel):
    (tmp_path / "run").mkdir()
    (tmp_path / "mounts").write_text("proc /proc proc rw 0 0\n")

    def make() -> Agent:
        sysfs = Sysfs(tmp_path / "sys")
        attachment = KernelAttachment(kernel, sysfs)
        return Agent(Records(tmp_path / "run"), lambda: attachment, sysfs, mounts=tmp_path / "mounts")

    return make


@pytest.fixture
async def server():
    async with range_server(CONTENT) as running:
        yield running


async def test_a_device_shows_the_content_padded_to_its_blocks(make_agent, kernel, server):
    agent = make_agent()
    assert await agent.attach(server.url) == "/dev/nbd0"
    size = agent.list()[0]["size"]
    assert size == 100_352
    reply = await asyncio.to_thread(kernel.read, 0, 0, size)
    assert reply.payload == CONTENT + bytes(352)
    tail = await asyncio.to_thread(kernel.read, 0, size - 100, 100)
    assert tail.payload == bytes(100)
    await agent.detach("/dev/nbd0")
    assert agent.list() == []


async def test_a_busy_device_is_tried_again(make_agent, kernel, server):
    kernel.busy = 2
    agent = make_agent()
    assert await agent.attach(server.url, "/dev/nbd2") == "/dev/nbd2"
    await agent.detach("/dev/nbd2")


async def test_a_failed_attach_leaves_no_record(make_agent, kernel, server, tmp_path):
    kernel.refusal = KernelError("no")
    agent = make_agent()
    with pytest.raises(KernelError):
        await agent.attach(server.url)
    assert list((tmp_path / "run").iterdir()) == []


async def test_records_hold_no_secret_and_urls_with_a_query_are_refused(make_agent, server, tmp_path):
    agent = make_agent()
    with pytest.raises(InvalidUrl) as caught:
        await agent.attach(server.url + "?signature=hunter2")
    assert "hunter2" not in str(caught.value)
    await agent.attach(server.url)
    (path,) = (tmp_path / "run").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    record = json.loads(path.read_text())
    assert (record["version"], record["url"], record["index"], record["etag"]) == (1, server.url, 0, '"v1"')
    await agent.detach("/dev/nbd0")


async def test_a_mounted_device_is_detached_only_by_force(make_agent, server, tmp_path):
    agent = make_agent()
    await agent.attach(server.url)
    (tmp_path / "mounts").write_text("/dev/nbd0 /mnt/a\\040b erofs ro 0 0\n")
    with pytest.raises(DeviceBusy, match="/mnt/a"):
        await agent.detach("/dev/nbd0")
    await agent.detach("/dev/nbd0", force=True)


async def test_a_successor_takes_every_device_over(make_agent, kernel, server):
    first = make_agent()
    await first.attach(server.url)
    await first.attach(server.url)
    await first.park()
    kernel.lose_connections()
    second = make_agent()
    await second.recover()
    await second.wait_recovered()
    assert [one["state"] for one in second.list()] == ["attached"] * 2
    for index in range(2):
        assert (await asyncio.to_thread(kernel.read, index, 5, 100)).payload == CONTENT[5:105]
        await second.detach(f"/dev/nbd{index}")


async def test_a_successor_waits_for_a_source_that_is_away(make_agent, kernel, server):
    first = make_agent()
    await first.attach(server.url)
    await first.park()
    kernel.lose_connections()

    def away(request, answer):
        answer.status, answer.body, answer.fields = 503, b"", {}

    server.faults.append(away)
    second = make_agent()
    await second.recover()
    before = server.count
    async with asyncio.timeout(20):
        while server.count == before:
            await asyncio.sleep(0.01)
    assert second.list()[0]["state"] == "recovering"
    server.faults.clear()
    await second.wait_recovered()
    assert second.list()[0]["state"] == "attached"
    await second.detach("/dev/nbd0")


async def test_other_content_is_never_put_under_a_device(make_agent, kernel, server):
    first = make_agent()
    await first.attach(server.url)
    await first.park()
    kernel.lose_connections()
    server.etag = '"v2"'
    second = make_agent()
    await second.recover()
    await second.wait_recovered()
    assert second.list()[0]["state"] == "recovering"
    assert kernel.sockets[0] == []
    await second.park()


async def test_a_device_that_is_somebody_elses_by_now_is_left_alone(make_agent, kernel, server, tmp_path):
    first = make_agent()
    await first.attach(server.url)
    await first.park()
    kernel._show(0, 100_352, "somebody-else")
    second = make_agent()
    await second.recover()
    assert second.list() == []
    assert list((tmp_path / "run").iterdir()) == []


async def test_a_device_that_is_served_by_another_process_is_not_taken_over(make_agent, server, monkeypatch):
    monkeypatch.setattr("nbd_client.kernel.attach._RECONFIGURE_TRIES", 2)
    agent = make_agent()
    await agent.attach(server.url)
    with pytest.raises(KernelError, match="another process"):
        await agent.reattach("/dev/nbd0")
    await agent.detach("/dev/nbd0")


async def test_a_device_that_nobody_reads_gives_its_memory_back_once(make_agent, kernel, server):
    agent = make_agent()
    await agent.attach(server.url)
    held = agent._held[0]
    await asyncio.to_thread(kernel.read, 0, 0, 65_536)
    assert held.source.cached_bytes >= 65_536
    assert [agent._rests(held) for _ in range(4)] == [False, True, False, False]
    assert held.source.cached_bytes == 0
    assert (await asyncio.to_thread(kernel.read, 0, 0, 512)).payload == CONTENT[:512]
    assert [agent._rests(held) for _ in range(3)] == [False, True, False]
    await agent.detach("/dev/nbd0")


async def test_exports_come_and_go(make_agent, server, tmp_path):
    agent = make_agent()
    assert await agent.export(server.url, tmp_path / "s") == len(CONTENT)
    await agent.unexport(tmp_path / "s")
    with pytest.raises(DeviceUnknown):
        await agent.unexport(tmp_path / "s")


async def test_names_that_are_no_device_are_refused(make_agent):
    for name in ("/dev/sda", "nbd", "/dev/nbd99999", "nbd1p1"):
        with pytest.raises(InvalidOption):
            await make_agent().detach(name)
    assert index_of("nbd7") == index_of("/dev/nbd7") == 7


def test_a_record_that_cannot_be_understood_is_named_and_the_others_are_read(tmp_path):
    records = Records(tmp_path)
    good = new_record("http://h/", Pin(1, b'"x"', None))
    records.save(good)
    (tmp_path / "bad.device.json").write_text("{}")
    loaded, errors = records.load()
    assert loaded == [good]
    assert "bad.device.json" in str(errors[0])


@given(st.integers(0, 2**62), st.none() | st.binary(max_size=30), st.none() | st.binary(max_size=30))
def test_a_record_comes_back_as_it_was(size, etag, last_modified):
    record = new_record("http://h/", Pin(size, etag, last_modified))
    fields = {"version": 1} | {name: getattr(record, name) for name in record.__slots__}
    assert parse_record(json.dumps(fields).encode()) == record
    assert record.pin == Pin(size, etag, last_modified)


@given(
    st.binary(max_size=60)
    | st.dictionaries(st.text(max_size=8), st.integers()).map(lambda d: json.dumps(d).encode())
)
def test_anything_else_is_an_invalid_record(raw):
    with pytest.raises(RecordInvalid):
        parse_record(raw)


async def test_errors_of_the_agent_are_the_same_errors_for_the_command_line(tmp_path):
    async def refuse() -> object:
        raise SourceRefused("gone")

    async def defect() -> object:
        raise ValueError("secret details")

    async def echo(**arguments) -> object:
        return arguments

    control = await serve_control(tmp_path, {"refuse": refuse, "defect": defect, "echo": echo})
    assert await asyncio.to_thread(ask, tmp_path, "echo", a=1) == {"a": 1}
    with pytest.raises(SourceRefused, match="gone"):
        await asyncio.to_thread(ask, tmp_path, "refuse")
    with pytest.raises(AgentError) as caught:
        await asyncio.to_thread(ask, tmp_path, "defect")
    assert "secret" not in str(caught.value)
    with pytest.raises(AgentError, match="another version"):
        await asyncio.to_thread(ask, tmp_path, "no such command")
    control.close()
    assert threading.active_count() < 10


def test_no_agent_is_an_error_that_says_where(tmp_path):
    with pytest.raises(AgentError, match=str(tmp_path)):
        ask(tmp_path, "list")
