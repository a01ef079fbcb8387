# ruff: noqa: ASYNC240, BLE001, PT017, PTH115, T201
"""Runs inside of the guest: devices of a real kernel, read from a real gateway. A plain program: a guest's seconds are long.

Every ``scenario_`` runs in order on one agent; a line per scenario says how it ended. What only a source with a will of its own
can show comes from a range server, while the gateway starts.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from nbd_client.control import ask, ensure_agent
from nbd_client.errors import DeviceBusy, DeviceUnknown, MountFailed
from nbd_client.kernel.ioctl import IoctlAttachment
from nbd_client.kernel.sysfs import Sysfs
from nbd_client.mount import mount_url, umount
from nbd_client.server import NbdServer
from nbd_client.source.stack import open_source
from tests.support.gateway import Gateway
from tests.support.processes import Process, http_answers, wait_until
from tests.support.rangeserver import RangeServer, range_server

IMAGE = Path("/run/share/image.erofs")
TREE = Path("/run/share/tree")
LAYOUT = Path("/run/share/layout")
RUN = Path("/run/blockgate-test")
HASTY = Path("/run/blockgate-test-hasty")
HASTY_SECONDS = 3
OUTAGE_SECONDS = 20
RESENT_SECONDS = 15
MOUNTPOINT = Path("/mnt/image")
# Emulated, a gateway's imports take longer than the outage. So the one that will follow makes them before, and waits here.
GATE = Path("/run/gate/open")
SITECUSTOMIZE = f"""
import os, sys, time
if "serve" in sys.orig_argv:
    import gateway.api.app, gateway.api.server
    while not os.path.exists("{GATE}"):
        time.sleep(0.05)
"""


@dataclass
class Sources:
    """The same tree twice: an EROFS image behind a range server, and two gzip layers behind a gateway."""

    server: RangeServer
    gateway: Gateway
    starting: asyncio.Task[None]
    tree: dict[str, str]
    serving: Process | None = None

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def device_url(self) -> str:
        return self.gateway.data_url("image")


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
    assert await asyncio.wait_for(process.wait(), 30) == 0, argv


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


def agent_pid(run_dir: Path = RUN) -> int:
    return int((run_dir / "agent.lock").read_text())


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
    async with asyncio.timeout(20):
        while stat.exists() and ") Z " not in stat.read_text():
            await asyncio.sleep(0.05)


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
        line = next(
            one for one in Path("/proc/self/mounts").read_text().splitlines() if str(MOUNTPOINT) in one
        )
        assert {"ro", "nosuid", "nodev"} <= set(line.split()[3].split(","))
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


async def scenario_idle_devices_cost_little_memory(sources: Sources) -> None:
    def resident_kib() -> int:
        status = Path(f"/proc/{agent_pid()}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])

    before = resident_kib()
    devices = [await nbd("attach", url=sources.url) for _ in range(8)]
    each = (resident_kib() - before) / len(devices)
    print(f"agent {before} KiB, {each:.0f} KiB per idle device")
    for device in devices:
        await nbd("detach", device=device)
    assert before < 60 * 1024
    assert each < 1024


async def scenario_a_gateway_starts_and_reads_an_image(sources: Sources) -> None:
    await sources.starting
    body = {"source": {"image": f"oci:{LAYOUT}:latest"}, "layout": "filesystem"}
    device = await asyncio.to_thread(sources.gateway.register, "image", body)
    assert device["state"] == "ready", device
    kinds = [segment["kind"] for segment in device["segments"]]
    assert (kinds[0], kinds.count("gzip")) == ("metadata", 2), kinds
    sources.serving = sources.gateway.running
    GATE.unlink()
    await asyncio.to_thread(sources.gateway.start)


async def scenario_attach_mount_read_all_detach(sources: Sources) -> None:
    device = await nbd("attach", url=sources.device_url)
    block = Path("/sys/block") / Path(device).name
    assert int((block / "size").read_text()) * 512 == sources.gateway.show("image")["size"]
    assert (block / "ro").read_text().strip() == "1"
    assert (block / "queue/logical_block_size").read_text().strip() == "512"
    assert int((block / "queue/max_sectors_kb").read_text()) >= 1024
    await mount(device)
    assert await asyncio.to_thread(digests, MOUNTPOINT) == sources.tree
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


async def reads_go_on_with_the_next_agent(sources: Sources, number: int) -> None:
    device = await nbd("attach", url=sources.device_url)
    # What the killed agent had taken and not answered, the driver sends again when its timer ends: shorter than 90 s here.
    (Path("/sys/block") / Path(device).name / "queue/io_timeout").write_text(str(RESENT_SECONDS * 1000))
    await mount(device)
    stop = threading.Event()
    reading = asyncio.create_task(asyncio.to_thread(read_until, stop))
    async with asyncio.timeout(30):
        while (await nbd("show", device=device))["reads"] < 50:
            await asyncio.sleep(0.05)
    await kill_agent(number)
    stop.set()
    await asyncio.sleep(1)
    assert not reading.done(), "nothing is left that could have answered"
    await nbd("recovered")
    assert await asyncio.wait_for(reading, 60 + RESENT_SECONDS) == sources.tree
    assert [one["state"] for one in await nbd("list")] == ["attached"]
    await run("umount", MOUNTPOINT)
    await nbd("detach", device=device)


async def scenario_reads_under_way_when_the_agent_is_killed_go_on_with_the_next(sources: Sources) -> None:
    await reads_go_on_with_the_next_agent(sources, signal.SIGKILL)


async def scenario_reads_under_way_when_the_agent_is_stopped_go_on_with_the_next(sources: Sources) -> None:
    await reads_go_on_with_the_next_agent(sources, signal.SIGTERM)


async def scenario_a_device_made_with_ioctl(sources: Sources) -> None:
    source = await open_source(sources.device_url)
    nbd_server = NbdServer(source)
    kernel = IoctlAttachment(Sysfs())
    index = await kernel.attach(nbd_server.serve_connected, size=source.size, backend="", index=None)
    assert (Path("/sys/block") / f"nbd{index}" / "ro").read_text().strip() == "1"
    await mount(f"/dev/nbd{index}")
    assert await asyncio.to_thread(digests, MOUNTPOINT) == sources.tree
    await run("umount", MOUNTPOINT)
    await kernel.detach(index)
    assert (Path("/sys/block") / f"nbd{index}" / "size").read_text().strip() == "0"
    await nbd_server.aclose()
    await source.aclose()


async def scenario_reads_wait_for_a_gateway_and_fail_where_they_may_not_wait(sources: Sources) -> None:
    """One outage seen twice: by an agent whose reads may wait a minute, and by one with a shorter time for them."""
    device = await nbd("attach", url=sources.device_url)
    os.environ["BLOCKGATE_NBD_READ_TIMEOUT_SECONDS"] = str(HASTY_SECONDS)
    try:
        hasty = await nbd("attach", run_dir=HASTY, url=sources.device_url)
    finally:
        del os.environ["BLOCKGATE_NBD_READ_TIMEOUT_SECONDS"]
    hasty_mountpoint = Path("/mnt/hasty")
    hasty_mountpoint.mkdir()
    await mount(device)
    await mount(hasty, hasty_mountpoint)
    sources.serving.kill()
    killed = time.monotonic()
    drop_caches()
    reading = asyncio.create_task(asyncio.to_thread(digests, MOUNTPOINT))
    try:
        await asyncio.wait_for(asyncio.to_thread(digests, hasty_mountpoint), 10 * HASTY_SECONDS)
    except OSError as error:
        assert error.errno == errno.EIO, error
        print(f"an I/O error after {time.monotonic() - killed:.1f} s of {HASTY_SECONDS}")
    else:
        raise AssertionError("read from a gateway that is gone")
    await asyncio.sleep(max(0, killed + OUTAGE_SECONDS - time.monotonic()))
    assert not reading.done(), "nothing is left that could have answered"
    GATE.touch()
    ready = http_answers(f"{sources.gateway.url}/readyz")
    await asyncio.to_thread(wait_until, ready, what="the next gateway", seconds=60)
    print(f"the gateway was away for {time.monotonic() - killed:.1f} s")
    assert await asyncio.wait_for(reading, 60) == sources.tree
    assert await asyncio.to_thread(digests, hasty_mountpoint) == sources.tree, "not healed"
    assert (await nbd("show", device=device))["errors"] == 0
    await run("umount", MOUNTPOINT)
    await run("umount", hasty_mountpoint)
    await nbd("detach", device=device)
    await nbd("detach", run_dir=HASTY, device=hasty)


async def main() -> int:
    failures = 0
    MOUNTPOINT.mkdir()
    GATE.parent.mkdir()
    GATE.touch()
    (GATE.parent / "sitecustomize.py").write_text(SITECUSTOMIZE)
    env = {"PYTHONPATH": f"{GATE.parent}:{os.environ['PYTHONPATH']}"}
    gateway = Gateway(Path("/run/gateway"), oci_roots=[LAYOUT], env=env, start_seconds=120)
    starting = asyncio.create_task(asyncio.to_thread(gateway.start))
    async with range_server(IMAGE.read_bytes()) as server:
        sources = Sources(server, gateway, starting, digests(TREE))
        for name, scenario in list(globals().items()):
            if not name.startswith("scenario_"):
                continue
            began = time.monotonic()
            try:
                await asyncio.wait_for(scenario(sources), 140)
            except BaseException:  # the report is the point
                failures += 1
                traceback.print_exc(file=sys.stdout)
                print(f"FAILED {name}", flush=True)
            else:
                print(f"PASSED {name} in {time.monotonic() - began:.1f} s", flush=True)
    if failures:
        for folder in (RUN, HASTY):
            if folder.exists():
                print((folder / "agent.log").read_text())
        print(gateway.log)
    for folder in (RUN, HASTY):
        if folder.exists():
            os.kill(agent_pid(folder), signal.SIGTERM)
    if not failures:
        assert gateway.stop() == 0
    return failures


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
