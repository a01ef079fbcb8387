"""Other people's NBD clients read what a URL holds, through ``blockgate-nbd serve``."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.programs import blockgate_nbd, program, run, serving
from tests.support.rangeserver import RangeServer, range_server

pytestmark = pytest.mark.real

CONTENT = random.Random(21).randbytes((8 << 20) + 1536)


class Served(NamedTuple):
    server: RangeServer
    path: Path
    process: asyncio.subprocess.Process


@pytest.fixture
async def export(tmp_path):
    """A range server, and the path of the NBD socket that serves its content."""
    async with range_server(CONTENT) as server:
        path = tmp_path / "nbd.sock"
        async with serving(server.url, "--unix", path, "--export-name", "disk") as process:
            yield Served(server, path, process)


def uri(path: Path) -> str:
    return f"nbd+unix:///?socket={path}"


async def test_nbdinfo_sees_size_flags_and_block_sizes(export):
    path = export.path
    done = await run(program("nbdinfo", "libnbd-bin"), "--json", uri(path))
    assert done.status == 0, done.err
    info = json.loads(done.out)
    assert info["protocol"] == "newstyle-fixed"
    described = info["exports"][0]
    assert described["export-size"] == len(CONTENT)
    assert described["is_read_only"]
    assert described["can_multi_conn"]
    assert described["can_cache"]
    assert not described["can_trim"]
    assert (described["block_size_minimum"], described["block_size_maximum"]) == (1, 32 << 20)


async def test_nbdinfo_lists_the_export(export):
    path = export.path
    done = await run(program("nbdinfo", "libnbd-bin"), "--list", uri(path))
    assert done.status == 0, done.err
    assert 'export="disk"' in done.out


@pytest.mark.parametrize("flags", [(), ("--synchronous",), ("--connections=4", "--requests=64")])
async def test_nbdcopy_copies_every_byte(export, tmp_path, flags):
    path = export.path
    done = await run(program("nbdcopy", "libnbd-bin"), *flags, uri(path), tmp_path / "copy")
    assert done.status == 0, done.err
    assert (tmp_path / "copy").read_bytes() == CONTENT


NBDSH = """
size = h.get_size()
assert h.is_read_only() and h.can_multi_conn() and h.can_cache()
digest = __import__("hashlib").sha256()
for offset in range(0, size, 1000003):
    digest.update(h.pread(min(1000003, size - offset), offset))
h.cache(65536, 0)
h.flush()
h.set_strict_mode(0)  # send what the library itself would refuse
import errno
def number(call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        return errno.errorcode[error.errnum]
print(digest.hexdigest(), number(h.pread, 2, size - 1), number(h.pwrite, bytes(4096), 0), number(h.trim, 512, 0),
      number(h.zero, 512, 0), len(h.pread(512, 0)))
"""


async def test_nbdsh_reads_and_is_refused_where_it_should_be(export):
    path = export.path
    nbdsh = program("nbdsh", "libnbd-bin and python3-libnbd")
    env = {"PATH": "/usr/bin"}
    if (await run("/usr/bin/python3", "-c", "import nbd", env=env)).status:
        pytest.skip("nbdsh cannot work without python3-libnbd")
    done = await run(nbdsh, "-u", uri(path), "-c", NBDSH, env=env)
    assert done.status == 0, done.err
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert done.out.split() == [digest, "EINVAL", "EPERM", "EPERM", "EPERM", "512"]


async def test_qemu_img_sees_and_converts_it(export, tmp_path):
    path = export.path
    qemu_img = program("qemu-img", "qemu-utils")
    info = await run(qemu_img, "info", "--output=json", uri(path))
    assert info.status == 0, info.err
    assert json.loads(info.out)["virtual-size"] == len(CONTENT)
    done = await run(qemu_img, "convert", "-f", "raw", "-O", "raw", uri(path), tmp_path / "copy")
    assert done.status == 0, done.err
    assert (tmp_path / "copy").read_bytes() == CONTENT


async def test_qemu_io_reads_a_pattern_at_odd_offsets(tmp_path):
    content = b"\xab" * (1 << 20) + b"\xcd" * (1 << 20)
    async with range_server(content) as server, serving(server.url, "--unix", tmp_path / "s"):
        done = await run(
            program("qemu-io", "qemu-utils"),
            *("-r", "-f", "raw", "-c", "read -P 0xab 12345 54321", "-c", "read -P 0xcd 1M 1M"),
            uri(tmp_path / "s"),
        )
    assert done.status == 0, done.err
    assert "Pattern verification failed" not in done.out + done.err
    assert done.out.count("read ") == 2


@pytest.mark.parametrize("pattern", ["randread", "read"])
async def test_fio_reads_with_sixteen_requests_in_flight(export, tmp_path, pattern):
    path = export.path
    done = await run(
        program("fio", "fio"),
        *("--name=job", "--ioengine=nbd", f"--uri={uri(path)}", f"--rw={pattern}", "--bs=4k"),
        *("--iodepth=16", "--size=4M", "--output-format=json"),
        seconds=60,
    )
    assert done.status == 0, done.out + done.err
    job = json.loads(done.out[done.out.index("{") :])["jobs"][0]
    assert job["error"] == 0
    assert job["read"]["total_ios"] == 1024


async def test_nbdfuse_shows_it_as_a_file(export, tmp_path):
    path = export.path
    nbdfuse, fusermount = program("nbdfuse", "libnbd-bin"), program("fusermount3", "fuse3")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse cannot be opened here")
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    disk = mountpoint / "disk"
    process = await asyncio.create_subprocess_exec(nbdfuse, "-r", disk, "--unix", path)
    try:
        async with asyncio.timeout(20):
            while not await asyncio.to_thread(disk.exists):
                await asyncio.sleep(0.02)
        assert await asyncio.to_thread(disk.read_bytes) == CONTENT
    finally:
        await run(fusermount, "-u", mountpoint)
        await asyncio.wait_for(process.wait(), 20)


async def test_nbd_client_lists_the_export(tmp_path):
    nbd_client = program("nbd-client", "nbd-client")
    tcp = ("--tcp", "127.0.0.1:0", "--export-name", "disk")
    async with range_server(CONTENT) as server, serving(server.url, *tcp) as process:
        port = process.seen[-1].split()[-1]
        done = await run(nbd_client, "-l", "127.0.0.1", port)
    assert "disk" in done.out.split(), done.out + done.err


async def test_a_failing_source_is_an_input_output_error_for_the_reader_never_other_bytes(export, tmp_path):
    server, path, process = export

    def gone(request, answer):
        answer.status, answer.body, answer.fields = 410, b"", {}

    server.faults.append(gone)
    done = await run(program("nbdcopy", "libnbd-bin"), uri(path), tmp_path / "copy")
    assert done.status != 0
    assert "Input/output error" in done.err
    assert any("410" in line for line in process.seen)


async def test_sigterm_ends_it_cleanly_and_removes_the_socket(export):
    path, process = export.path, export.process
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 10) == 0
    assert not path.exists()
    assert not any("Traceback" in line for line in process.seen)


@pytest.mark.parametrize(
    ("argv", "status", "text"),
    [
        (("serve", "http://127.0.0.1:1/x", "--unix", "{tmp}/s"), 1, "cannot connect to 127.0.0.1:1"),
        (("serve", "ftp://127.0.0.1/x", "--unix", "{tmp}/s"), 2, "only http"),
        (("serve", "http://127.0.0.1:1/x"), 2, "--unix PATH or --tcp"),
        (("serve", "http://127.0.0.1:1/x", "--tcp", "localhost"), 2, "127.0.0.1:10809"),
        (("serve",), 2, "Missing argument"),
        (("no-such-command",), 2, "No such command"),
    ],
)
async def test_failures_and_wrong_usage_have_their_exit_status(tmp_path, argv, status, text):
    done = await blockgate_nbd(*(word.format(tmp=tmp_path) for word in argv))
    assert done.status == status
    assert text in " ".join(done.err.split())
    assert "Traceback" not in done.err
