# ruff: noqa: ASYNC240, BLE001, PT017, PTH115, T201
"""Runs inside of the guest: devices of a real kernel, read from a real gateway. A plain program: a guest's seconds are long.

Every ``scenario_`` runs in order on one agent, up to the first that fails; a line per scenario says how it ended. The gateway runs outside of the guest, and
whoever started it kills it and starts it again when asked. What only a source with a will of its own can show comes from
a range server in this process.

Arguments: the URL of a device of the gateway's, its size in bytes, and the host and port where it is killed and
started.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nbd_client.control import ask, ensure_agent
from nbd_client.errors import BlockgateError, DeviceBusy, DeviceUnknown, MountFailed
from nbd_client.kernel.ioctl import IoctlAttachment
from nbd_client.kernel.sysfs import Sysfs
from nbd_client.mount import mount_url, umount
from nbd_client.server import NbdServer
from nbd_client.source.stack import open_source
from tests.support.rangeserver import RangeServer, range_server

IMAGE = Path("/run/share/image.erofs")
TREE = Path("/run/share/tree")
RUN = Path("/run/blockgate-test")
HASTY = Path("/run/blockgate-test-hasty")
HASTY_SECONDS = 3
OUTAGE_SECONDS = 20
IDLE_DEVICES = 100
# When the driver's timer ends, it sends again what a killed agent had taken and not answered: after 90 s by itself.
RESENT_MILLISECONDS = 5000
# For what takes moments on a machine with nothing else to do.
PATIENCE_SECONDS = 120
MOUNTPOINT = Path("/mnt/image")


@dataclass(frozen=True)
class Sources:
    """The same tree twice: an EROFS image behind a range server, and two gzip layers behind a gateway."""

    server: RangeServer
    tree: dict[str, str]
    device_url: str
    device_bytes: int
    control: tuple[str, int]

    @property
    def url(self) -> str:
        return self.server.url

    async def gateway(self, word: str) -> None:
        """Have the gateway killed or started, and wait until it was."""
        reader, writer = await asyncio.open_connection(*self.control)
        writer.write(f"{word}\n".encode())
        assert await reader.readline() == b"done\n", word
        writer.close()


def call(command: str, *, run_dir: Path = RUN, **arguments):
    ensure_agent(run_dir)
    return ask(run_dir, command, **arguments)


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
    assert await asyncio.wait_for(process.wait(), PATIENCE_SECONDS) == 0, argv


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not true():
            await asyncio.sleep(0.05)


def digests(folder: Path) -> dict[str, str]:
    """Every file's SHA-256 by its path; of a symbolic link, where it leads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


def agent_pid() -> int:
    return int((RUN / "agent.lock").read_text())


def resident_kib() -> int:
    status = Path(f"/proc/{agent_pid()}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def sysfs(device: str, name: str) -> Path:
    return Path("/sys/block") / Path(device).name / name


def mount_line(mountpoint: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return next(line.split() for line in lines if line.split()[1] == str(mountpoint))


def uptime() -> float:
    return float(Path("/proc/uptime").read_text().split()[0])


def kernel_log() -> str:
    return subprocess.run(["dmesg"], check=True, capture_output=True, text=True).stdout


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def read_until(stop: threading.Event) -> dict[str, str]:
    """Read everything, over and over; the last time begins after ``stop``."""
    while True:
        last = stop.is_set()
        drop_caches()
        found = digests(MOUNTPOINT)
        if last:
            return found


async def mount(device: str, mountpoint: Path = MOUNTPOINT) -> None:
    await run("mount", "-t", "erofs", "-o", "ro", device, mountpoint)


async def kill_agent(number: int) -> None:
    pid = agent_pid()
    os.kill(pid, number)
    stat = Path(f"/proc/{pid}/stat")
    await until(lambda: not stat.exists() or ") Z " in stat.read_text())


async def scenario_idle_devices_cost_little_memory(sources: Sources) -> None:
    assert await nbd("list") == []
    alone = resident_kib()
    attaching = (nbd("attach", url=sources.device_url) for _ in range(IDLE_DEVICES))
    devices = await asyncio.gather(*attaching)
    together = resident_kib()
    assert [one["device"] for one in await nbd("list")] == sorted(devices, key=lambda one: int(one[8:]))
    await asyncio.gather(*(nbd("detach", device=device) for device in devices))
    print(f"FIGURE agent with 0 devices: {alone} KiB")
    print(f"FIGURE agent with {IDLE_DEVICES} idle devices: {together} KiB")
    assert alone <= 60 * 1024
    assert together - alone <= IDLE_DEVICES * 1024


async def scenario_a_source_that_refuses_is_an_io_error_never_other_bytes(sources: Sources) -> None:
    device = await nbd("attach", url=sources.url)

    def gone(request, answer):
        answer.status, answer.body, answer.fields = 410, b"", {}

    def read() -> bytes:
        with Path(device).open("rb") as disk:
            disk.seek(len(sources.server.content) // 2)
            return disk.read(4096)

    sources.server.faults.append(gone)
    try:
        data = await asyncio.to_thread(read)
    except OSError as error:
        assert error.strerror == "Input/output error"
    else:
        raise AssertionError(f"read {len(data)} bytes from nowhere")
    finally:
        sources.server.faults.clear()
    await nbd("detach", device=device)


async def scenario_content_of_any_size_is_padded_with_zeros(_sources: Sources) -> None:
    content = os.urandom(10_000)
    async with range_server(content) as odd:
        assert await nbd("attach", url=odd.url, device="/dev/nbd5") == "/dev/nbd5"
        assert await asyncio.to_thread(Path("/dev/nbd5").read_bytes) == content + bytes(10_240 - 10_000)
        await nbd("detach", device="/dev/nbd5")


async def scenario_two_devices_and_one_taken_twice(sources: Sources) -> None:
    first, second = await nbd("attach", url=sources.url), await nbd("attach", url=sources.url)
    assert first != second
    await refused(DeviceBusy, "is attached to", "attach", url=sources.url, device=first)
    for device in (first, second):
        await nbd("detach", device=device)
    await refused(DeviceUnknown, "not attached by this agent", "detach", device="/dev/nbd9")


async def scenario_mount_and_umount_through_the_kernel(sources: Sources) -> None:
    def mount_read_umount() -> dict[str, str]:
        way = mount_url(sources.url, MOUNTPOINT, via="auto", options=("noatime",), run_dir=RUN)
        assert way == "kernel"
        assert {"ro", "nosuid", "nodev"} <= set(mount_line(MOUNTPOINT)[3].split(","))
        found = digests(MOUNTPOINT)
        umount(MOUNTPOINT, run_dir=RUN)
        return found

    assert await asyncio.to_thread(mount_read_umount) == sources.tree
    assert await nbd("list") == []
    async with range_server(os.urandom(65536)) as noise:
        try:
            await asyncio.to_thread(mount_url, noise.url, MOUNTPOINT, via="kernel", options=(), run_dir=RUN)
        except MountFailed as error:
            assert "EROFS" in str(error), error
        else:
            raise AssertionError("noise was mounted")
    assert await nbd("list") == []


async def scenario_attach_mount_read_all_detach(sources: Sources) -> None:
    device = await nbd("attach", url=sources.device_url)
    size = sysfs(device, "size")
    assert int(size.read_text()) * 512 == sources.device_bytes
    assert sysfs(device, "ro").read_text() == "1\n"
    assert sysfs(device, "queue/logical_block_size").read_text() == "512\n"
    assert int(sysfs(device, "queue/max_sectors_kb").read_text()) >= 1024
    assert int(sysfs(device, "queue/read_ahead_kb").read_text()) >= 4096
    await mount(device)
    assert await asyncio.to_thread(digests, MOUNTPOINT) == sources.tree
    (listed,) = await nbd("list")
    assert (listed["device"], listed["state"], listed["mountpoint"]) == (device, "attached", str(MOUNTPOINT))
    await refused(DeviceBusy, "mounted on", "detach", device=device)
    print(f"FIGURE agent after reading an image: {resident_kib()} KiB")
    await run("umount", MOUNTPOINT)
    await nbd("detach", device=device)
    assert size.read_text() == "0\n"
    assert not list(RUN.glob("*.device.json"))
    assert await nbd("list") == []


async def scenario_a_device_may_be_read_as_soon_as_it_has_a_size(sources: Sources) -> None:
    """As udev does. The agent sets the queue's limits then, for which the driver waits until all reads are answered."""
    device = "/dev/nbd7"

    def first_reader() -> bytes:
        while sysfs(device, "size").read_text() == "0\n":
            pass
        return Path(device).read_bytes()

    def slow(_request, answer):
        answer.delay_seconds = 1

    sources.server.faults.append(slow)
    reading = asyncio.create_task(asyncio.to_thread(first_reader))
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await nbd("attach", url=sources.url, device=device) == device
    sources.server.faults.clear()
    assert await asyncio.wait_for(reading, PATIENCE_SECONDS) == sources.server.content
    assert int(sysfs(device, "queue/max_sectors_kb").read_text()) >= 1024
    await nbd("detach", device=device)


async def scenario_mount_8_and_a_line_of_fstab(sources: Sources) -> None:
    by_hand, by_line = Path("/mnt/by-hand"), Path("/mnt/by-line")
    programs, etc = Path("/run/sbin"), Path("/run/etc")
    for folder in (by_hand, by_line, programs, etc):
        folder.mkdir()
    for name in ("mount.blockgate", "umount.blockgate"):
        (programs / name).symlink_to(Path(sysconfig.get_path("scripts")) / name)
    (etc / "fstab").write_text(f"{sources.device_url} {by_line} blockgate _netdev,nofail 0 0\n")
    # The guest's root is read-only.
    await run("mount", "-t", "overlay", "-o", f"lowerdir={programs}:/usr/sbin", "overlay", "/usr/sbin")
    await run("mount", "-t", "overlay", "-o", f"lowerdir={etc}:/etc", "overlay", "/etc")
    await asyncio.gather(
        run("mount", "-t", "blockgate", sources.device_url, by_hand),
        run("mount", by_line),
    )
    devices = set()
    for mountpoint in (by_hand, by_line):
        device, _, kind, options, *_ = mount_line(mountpoint)
        assert device.startswith("/dev/nbd")
        assert kind == "erofs"
        assert {"ro", "nosuid", "nodev"} <= set(options.split(","))
        devices.add(device)
        assert await asyncio.to_thread(digests, mountpoint) == sources.tree
    assert {one["device"] for one in await nbd("list")} == devices
    await asyncio.gather(run("umount", by_hand), run("umount", by_line))
    assert not by_hand.is_mount()
    assert not by_line.is_mount()
    assert await nbd("list") == []
    assert [sysfs(device, "size").read_text() for device in devices] == ["0\n", "0\n"]


async def scenario_a_device_whose_connection_the_driver_gave_up_is_reattached(sources: Sources) -> None:
    """The driver ends a connection on which an answer takes too long; what it asked for waits for the next one."""
    device = await nbd("attach", url=sources.url)
    await refused(BlockgateError, "another process serves it", "reattach", device=device)
    sysfs(device, "queue/io_timeout").write_text("1000")

    def slow(_request, answer):
        answer.delay_seconds = 10

    sources.server.faults.append(slow)
    reading = asyncio.create_task(asyncio.to_thread(Path(device).read_bytes))
    await until(lambda: f"{Path(device).name}: Connection timed out" in kernel_log())
    assert not reading.done()
    sources.server.faults.clear()
    sources.server.drop_connections()
    await nbd("reattach", device=device)
    assert await asyncio.wait_for(reading, PATIENCE_SECONDS) == sources.server.content
    await nbd("detach", device=device)


async def reads_go_on_with_the_next_agent(sources: Sources, number: int) -> None:
    device = await nbd("attach", url=sources.device_url)
    await mount(device)
    stop = threading.Event()
    reading = asyncio.create_task(asyncio.to_thread(read_until, stop))
    await answered(device, 50)
    timer = sysfs(device, "queue/io_timeout")
    before = timer.read_text()
    # The driver takes it when nothing is under way: so not while nobody answers, and not from this loop.
    await asyncio.to_thread(timer.write_text, str(RESENT_MILLISECONDS))
    await answered(device, 10)
    await kill_agent(number)
    stop.set()
    await asyncio.sleep(1)
    assert not reading.done(), "nothing is left that could have answered"
    await nbd("recovered")
    await asyncio.to_thread(timer.write_text, before)
    assert await asyncio.wait_for(reading, 2 * PATIENCE_SECONDS) == sources.tree
    assert [one["state"] for one in await nbd("list")] == ["attached"]
    await run("umount", MOUNTPOINT)
    await nbd("detach", device=device)


async def answered(device: str, more: int) -> None:
    """Wait until the agent answered that many more reads of the kernel's."""
    before = (await nbd("show", device=device))["reads"]
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await nbd("show", device=device))["reads"] < before + more:
            await asyncio.sleep(0.05)


async def scenario_reads_under_way_when_the_agent_is_killed_go_on_with_the_next(sources: Sources) -> None:
    await reads_go_on_with_the_next_agent(sources, signal.SIGKILL)


async def scenario_reads_under_way_when_the_agent_is_stopped_go_on_with_the_next(sources: Sources) -> None:
    await reads_go_on_with_the_next_agent(sources, signal.SIGTERM)


async def scenario_a_device_made_with_ioctl(sources: Sources) -> None:
    source = await open_source(sources.device_url)
    nbd_server = NbdServer(source)
    kernel = IoctlAttachment(Sysfs())
    index = await kernel.attach(nbd_server.serve_connected, size=source.size, backend="", index=None)
    device = f"/dev/nbd{index}"
    assert int(sysfs(device, "size").read_text()) * 512 == sources.device_bytes
    assert sysfs(device, "ro").read_text() == "1\n"
    assert sysfs(device, "queue/logical_block_size").read_text() == "512\n"
    await mount(device)
    assert await asyncio.to_thread(digests, MOUNTPOINT) == sources.tree
    await run("umount", MOUNTPOINT)
    await kernel.detach(index)
    assert sysfs(device, "size").read_text() == "0\n"
    await nbd_server.aclose()
    await source.aclose()


async def scenario_reads_wait_for_a_gateway_and_fail_where_they_may_not_wait(sources: Sources) -> None:
    """One outage seen twice: by an agent whose reads may wait a minute, and by one with a shorter time for them."""
    device = await nbd("attach", url=sources.device_url)
    hasty = await nbd("attach", run_dir=HASTY, url=sources.device_url)
    hasty_mountpoint = Path("/mnt/hasty")
    hasty_mountpoint.mkdir()
    await mount(device)
    await mount(hasty, hasty_mountpoint)
    await sources.gateway("kill")
    killed = time.monotonic()
    drop_caches()
    reading = asyncio.create_task(asyncio.to_thread(digests, MOUNTPOINT))
    try:
        await asyncio.wait_for(asyncio.to_thread(digests, hasty_mountpoint), PATIENCE_SECONDS)
    except OSError as error:
        assert error.errno == errno.EIO, error
        print(f"an I/O error after {time.monotonic() - killed:.1f} s of {HASTY_SECONDS}")
    else:
        raise AssertionError("read from a gateway that is gone")
    await asyncio.sleep(max(0, killed + OUTAGE_SECONDS - time.monotonic()))
    assert not reading.done(), "nothing is left that could have answered"
    await sources.gateway("start")
    print(f"the gateway was away for {time.monotonic() - killed:.1f} s")
    assert await asyncio.wait_for(reading, PATIENCE_SECONDS) == sources.tree
    assert await asyncio.to_thread(digests, hasty_mountpoint) == sources.tree, "not healed"
    assert (await nbd("show", device=device))["errors"] == 0
    await run("umount", MOUNTPOINT)
    await run("umount", hasty_mountpoint)
    await nbd("detach", device=device)
    await nbd("detach", run_dir=HASTY, device=hasty)


async def main(device_url: str, device_bytes: str, host: str, port: str) -> int:
    failed = False
    MOUNTPOINT.mkdir()
    os.environ["BLOCKGATE_NBD_RUN_DIR"] = str(RUN)
    # Started as systemd would, and in advance: an agent that has settings takes seconds to read them, emulated.
    argv = (sys.executable, "-m", "nbd_client.agent_main", "--run-dir", str(HASTY))
    env = os.environ | {"BLOCKGATE_NBD_READ_TIMEOUT_SECONDS": str(HASTY_SECONDS)}
    hasty = await asyncio.create_subprocess_exec(*argv, env=env)
    async with range_server(IMAGE.read_bytes()) as server:
        sources = Sources(server, digests(TREE), device_url, int(device_bytes), (host, int(port)))
        for name, scenario in list(globals().items()):
            if not name.startswith("scenario_"):
                continue
            began = time.monotonic()
            try:
                await asyncio.wait_for(scenario(sources), 300)
            except BaseException:  # the report is the point
                failed = True
                traceback.print_exc(file=sys.stdout)
                print(f"FAILED {name}", flush=True)
                break  # the others share its agent
            print(f"PASSED {name} in {time.monotonic() - began:.1f} s", flush=True)
    if failed:
        print((RUN / "agent.log").read_text())
        print(kernel_log())
    os.kill(agent_pid(), signal.SIGTERM)
    hasty.terminate()
    assert await hasty.wait() == 0
    return int(failed)


if __name__ == "__main__":
    print(f"began {uptime():.1f} s after the kernel")
    status = asyncio.run(main(*sys.argv[1:]))
    print(f"ended {uptime():.1f} s after the kernel", flush=True)
    sys.exit(status)
