# ruff: noqa: ASYNC240, BLE001, PT017, PTH115, T201
"""Runs inside of the guest: devices of a real kernel. A plain program, for a guest's seconds are long.

Every ``scenario_`` runs in order on one agent; a line per scenario says how it ended.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from nbd_client.control import ask, ensure_agent
from nbd_client.errors import DeviceBusy, DeviceUnknown, MountFailed
from nbd_client.kernel.ioctl import IoctlAttachment
from nbd_client.kernel.sysfs import Sysfs
from nbd_client.mount import mount_url, umount
from nbd_client.server import NbdServer
from nbd_client.source.stack import open_source
from tests.support.rangeserver import RangeServer, range_server

IMAGE = Path("/run/share/image.erofs")
TREE = Path("/run/share/tree")
RUN = Path("/run/blockgate-test")
MOUNTPOINT = Path("/mnt/image")


def call(command: str, **arguments):
    ensure_agent(RUN)
    return ask(RUN, command, **arguments)


async def nbd(command: str, **arguments):
    """Ask the agent, starting it when none runs; this process' range server goes on meanwhile."""
    return await asyncio.to_thread(call, command, **arguments)


async def refused(error: type[Exception], text: str, command: str, **arguments) -> None:
    try:
        await nbd(command, **arguments)
    except error as raised:
        assert text in str(raised), raised
    else:
        raise AssertionError(f"{command} was not refused")


async def run(*argv: object) -> None:
    process = await asyncio.create_subprocess_exec(*map(str, argv))
    assert await asyncio.wait_for(process.wait(), 30) == 0, argv


def digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(str(path.relative_to(folder)).encode())
        if path.is_symlink():
            found.update(os.readlink(path).encode())
        elif path.is_file():
            found.update(path.read_bytes())
    return found.hexdigest()


def agent_pid() -> int:
    return int((RUN / "agent.lock").read_text())


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


async def mount(device: str) -> None:
    MOUNTPOINT.mkdir(parents=True, exist_ok=True)
    await run("mount", "-t", "erofs", "-o", "ro", device, MOUNTPOINT)


async def kill_agent(number: int) -> None:
    pid = agent_pid()
    os.kill(pid, number)
    stat = Path(f"/proc/{pid}/stat")
    async with asyncio.timeout(20):
        while stat.exists() and ") Z " not in stat.read_text():
            await asyncio.sleep(0.05)


async def scenario_attach_mount_read_all_detach(server: RangeServer) -> None:
    device = await nbd("attach", url=server.url)
    block = Path("/sys/block") / Path(device).name
    assert int((block / "size").read_text()) * 512 == len(server.content)
    assert (block / "ro").read_text().strip() == "1"
    assert (block / "queue/logical_block_size").read_text().strip() == "512"
    assert int((block / "queue/max_sectors_kb").read_text()) >= 1024
    await mount(device)
    assert await asyncio.to_thread(digest, MOUNTPOINT) == digest(TREE)
    (listed,) = await nbd("list")
    assert (listed["device"], listed["state"], listed["mountpoint"]) == (device, "attached", str(MOUNTPOINT))
    await refused(DeviceBusy, "mounted on", "detach", device=device)
    status = Path(f"/proc/{agent_pid()}/status").read_text()
    print(next(line for line in status.splitlines() if line.startswith("VmRSS")))
    await run("umount", MOUNTPOINT)
    await nbd("detach", device=device)
    assert (block / "size").read_text().strip() == "0"
    assert not list(RUN.glob("*.device.json"))
    assert await nbd("list") == []


async def reads_wait_for_the_next_agent(server: RangeServer, number: int) -> None:
    device = await nbd("attach", url=server.url)
    await mount(device)
    await kill_agent(number)
    drop_caches()
    reading = asyncio.create_task(asyncio.to_thread(digest, MOUNTPOINT))
    await asyncio.sleep(0.5)
    assert not reading.done(), "nothing is left that could have answered"
    await nbd("recovered")
    assert await asyncio.wait_for(reading, 60) == digest(TREE)
    assert [one["state"] for one in await nbd("list")] == ["attached"]
    await run("umount", MOUNTPOINT)
    await nbd("detach", device=device)


async def scenario_reads_wait_after_kill_and_go_on_with_the_next_agent(server: RangeServer) -> None:
    await reads_wait_for_the_next_agent(server, signal.SIGKILL)


async def scenario_reads_wait_after_sigterm_and_go_on_with_the_next_agent(server: RangeServer) -> None:
    await reads_wait_for_the_next_agent(server, signal.SIGTERM)


async def scenario_a_source_that_refuses_is_an_io_error_never_other_bytes(server: RangeServer) -> None:
    device = await nbd("attach", url=server.url)

    def gone(request, answer):
        answer.status, answer.body, answer.fields = 410, b"", {}

    def read() -> bytes:
        with Path(device).open("rb") as disk:
            disk.seek(len(server.content) // 2)
            return disk.read(4096)

    server.faults.append(gone)
    try:
        data = await asyncio.to_thread(read)
    except OSError as error:
        assert error.strerror == "Input/output error"
    else:
        raise AssertionError(f"read {len(data)} bytes from nowhere")
    finally:
        server.faults.clear()
    await nbd("detach", device=device)


async def scenario_content_of_any_size_is_padded_with_zeros(_server: RangeServer) -> None:
    content = os.urandom(10_000)
    async with range_server(content) as odd:
        assert await nbd("attach", url=odd.url, device="/dev/nbd5") == "/dev/nbd5"
        assert await asyncio.to_thread(Path("/dev/nbd5").read_bytes) == content + bytes(10_240 - 10_000)
        await nbd("detach", device="/dev/nbd5")


async def scenario_two_devices_and_one_taken_twice(server: RangeServer) -> None:
    first, second = await nbd("attach", url=server.url), await nbd("attach", url=server.url)
    assert first != second
    await refused(DeviceBusy, "is attached to", "attach", url=server.url, device=first)
    for device in (first, second):
        await nbd("detach", device=device)
    await refused(DeviceUnknown, "not attached by this agent", "detach", device="/dev/nbd9")


async def scenario_mount_and_umount_through_the_kernel(server: RangeServer) -> None:
    def mount_read_umount() -> str:
        way = mount_url(server.url, MOUNTPOINT, via="auto", options=("noatime",), run_dir=RUN)
        assert way == "kernel"
        line = next(
            one for one in Path("/proc/self/mounts").read_text().splitlines() if str(MOUNTPOINT) in one
        )
        assert {"ro", "nosuid", "nodev"} <= set(line.split()[3].split(","))
        found = digest(MOUNTPOINT)
        umount(MOUNTPOINT, run_dir=RUN)
        return found

    assert await asyncio.to_thread(mount_read_umount) == digest(TREE)
    assert await nbd("list") == []
    async with range_server(os.urandom(65536)) as noise:
        try:
            await asyncio.to_thread(mount_url, noise.url, MOUNTPOINT, via="kernel", options=(), run_dir=RUN)
        except MountFailed as error:
            assert "EROFS" in str(error), error
        else:
            raise AssertionError("noise was mounted")
    assert await nbd("list") == []


async def scenario_a_device_made_with_ioctl(server: RangeServer) -> None:
    source = await open_source(server.url)
    nbd_server = NbdServer(source)
    kernel = IoctlAttachment(Sysfs())
    index = await kernel.attach(nbd_server.serve_connected, size=source.size, backend="", index=None)
    assert (Path("/sys/block") / f"nbd{index}" / "ro").read_text().strip() == "1"
    await mount(f"/dev/nbd{index}")
    assert await asyncio.to_thread(digest, MOUNTPOINT) == digest(TREE)
    await run("umount", MOUNTPOINT)
    await kernel.detach(index)
    assert (Path("/sys/block") / f"nbd{index}" / "size").read_text().strip() == "0"
    await nbd_server.aclose()
    await source.aclose()


async def scenario_idle_devices_cost_little_memory(server: RangeServer) -> None:
    def resident_kib() -> int:
        status = Path(f"/proc/{agent_pid()}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])

    before = resident_kib()
    devices = [await nbd("attach", url=server.url) for _ in range(8)]
    each = (resident_kib() - before) / len(devices)
    print(f"agent {before} KiB, {each:.0f} KiB per idle device")
    for device in devices:
        await nbd("detach", device=device)
    assert before < 60 * 1024
    assert each < 1024


async def main() -> int:
    failures = 0
    async with range_server(IMAGE.read_bytes()) as server:
        for name, scenario in list(globals().items()):
            if not name.startswith("scenario_"):
                continue
            began = time.monotonic()
            try:
                await asyncio.wait_for(scenario(server), 100)
            except BaseException:  # the report is the point
                failures += 1
                traceback.print_exc(file=sys.stdout)
                print(f"FAILED {name}", flush=True)
            else:
                print(f"PASSED {name} in {time.monotonic() - began:.1f} s", flush=True)
    if failures:
        print((RUN / "agent.log").read_text())
    os.kill(agent_pid(), signal.SIGTERM)
    return failures


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
