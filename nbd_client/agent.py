"""The agent: one process per node that holds every device which was attached, and takes over after a crash.

``attach`` makes a source, a record, a socket pair and a kernel device, in this order; ``detach`` undoes it.
SIGTERM parks: connections are closed, devices and records stay, reads wait in the kernel until the next agent
brings new sockets (or ``dead_connection`` seconds have passed). After ``kill -9`` it is the same, unannounced.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nbd_client.allocator import give_back
from nbd_client.errors import (
    BlockgateError,
    DeviceBusy,
    DeviceUnknown,
    InvalidUrl,
    KernelError,
    SourceChanged,
)
from nbd_client.kernel.attach import BLOCK_BYTES, Attachment
from nbd_client.kernel.sysfs import Sysfs, device_path, index_of
from nbd_client.metrics import Served, State, numbers_of
from nbd_client.recovery import Record, Records, new_record
from nbd_client.report import Attached
from nbd_client.server import Counters, NbdServer
from nbd_client.source.padding import PaddedSource
from nbd_client.source.response import Pin
from nbd_client.source.stack import Source, open_source
from nbd_client.source.url import parse

log = logging.getLogger(__name__)

_REST_AFTER_SECONDS = 15.0
_REOPEN_FIRST_SECONDS, _REOPEN_LONGEST_SECONDS = 0.5, 10.0

Open = Callable[..., Awaitable[Source]]


@dataclass(slots=True)
class _Held:
    """One device. ``server`` is None while its source cannot be reopened after a restart."""

    record: Record
    source: Source | None = None
    server: NbdServer | None = None
    reopening: asyncio.Task[None] | None = None
    reads_seen: int = -1
    resting: bool = False

    @property
    def state(self) -> State:
        """Whether reads are answered, will be, or wait in vain until somebody does something."""
        if self.server is not None:
            return "connected"
        return "failed" if self.reopening is None or self.reopening.done() else "reconnecting"


class Agent:
    """Holds devices. Its methods are what the command line asks for; they raise ``BlockgateError``."""

    def __init__(
        self,
        records: Records,
        kernel: Callable[[], Attachment],
        sysfs: Sysfs,
        *,
        mounts: Path = Path("/proc/self/mounts"),
        open_url: Open = open_source,
    ) -> None:
        self._records = records
        self._kernel = kernel
        self._sysfs = sysfs
        self._mounts = mounts
        self._open = open_url
        self._held: dict[int, _Held] = {}
        self._exports: dict[Path, tuple[str, Source, NbdServer]] = {}

    async def attach(self, url: str, device: str | None = None) -> str:
        """Attach ``url``; return the device's path."""
        target = parse(url)
        if "?" in target.url:
            raise InvalidUrl(f"{target.shown}?...: a query may hold a signature, which must not be recorded")
        index = None if device is None else index_of(device)
        if index is not None and index in self._held:
            raise DeviceBusy(f"{device_path(index)} is attached to {self._held[index].record.url}")
        source = await self._open(target.url)
        record = new_record(target.url, source.pin)
        held = _Held(record)
        try:
            self._records.save(record)
            server = self._serve(held, source)
            index = await self._kernel().attach(
                server.serve_connected, size=_padded(source.size), backend=record.backend, index=index
            )
        except BaseException:
            self._records.remove(record)
            await source.aclose()
            raise
        held.record = replace(record, index=index)
        self._records.save(held.record)
        self._held[index] = held
        log.info("attached %s to %s, %d bytes", device_path(index), target.shown, source.size)
        return device_path(index)

    async def detach(self, device: str, *, force: bool = False) -> None:
        """Take the device down. A mounted one only with ``force``: all its I/O fails from then on."""
        index = index_of(device)
        held = self._find(index)
        mountpoint = self._mounted_on(index)
        if mountpoint is not None and not force:
            raise DeviceBusy(f"{device_path(index)} is mounted on {mountpoint}; unmount it first")
        await self._kernel().detach(index)
        del self._held[index]
        self._records.remove(held.record)
        await self._release(held)
        log.info("detached %s", device_path(index))

    async def reattach(self, device: str) -> None:
        """Give a device that is parked or held with a dead connection a new one."""
        held = self._find(index_of(device))
        await self._take_over(held)

    def list(self) -> list[dict[str, object]]:
        """What is held, for people and programs: the kernel's devices, then the sockets that FUSE mounts read from."""
        devices = [self._describe(index, held) for index, held in sorted(self._held.items())]
        exports = [
            {
                "device": str(path),
                "url": url,
                "size": source.size,
                "state": "exported",
                "mountpoint": None,
                **_counted(server, source),
            }
            for path, (url, source, server) in self._exports.items()
        ]
        return devices + exports

    def served(self) -> Sequence[Served]:
        """Devices and exports as metrics want them."""
        devices = [
            Served(
                device_path(index),
                held.state,
                held.server.counters if held.server is not None else Counters(),
                numbers_of(held.source),
            )
            for index, held in sorted(self._held.items())
        ]
        exports = [
            Served(str(path), "connected", server.counters, numbers_of(source))
            for path, (_, source, server) in self._exports.items()
        ]
        return devices + exports

    def attached(self) -> Sequence[Attached]:
        """Devices and exports as gateways want to hear of them. Raises ``OSError``."""
        devices = [
            (held.record.url, device_path(index), self._mounted_on(index), held.state, held.server)
            for index, held in sorted(self._held.items())
        ]
        exports = [
            (url, str(path), None, "connected", server) for path, (url, _, server) in self._exports.items()
        ]
        return [
            Attached(
                url,
                node_device,
                mountpoint,
                state,
                server.counters.read_bytes if server is not None else 0,
                server.counters.errors if server is not None else 0,
            )
            for url, node_device, mountpoint, state, server in [*devices, *exports]
        ]

    def show(self, device: str) -> dict[str, object]:
        """What is known of one device."""
        index = index_of(device)
        return self._describe(index, self._find(index))

    async def export(self, url: str, path: Path) -> int:
        """Serve ``url`` on a unix socket, without the kernel; return the size in bytes."""
        source = await self._open(url)
        server = NbdServer(source)
        try:
            await server.listen_unix(path)
        except BaseException:
            await source.aclose()
            raise
        self._exports[path] = (url, source, server)
        return source.size

    async def unexport(self, path: Path) -> None:
        """End an export."""
        found = self._exports.pop(path, None)
        if found is None:
            raise DeviceUnknown(f"{path} is not exported by this agent")
        _, source, server = found
        await server.aclose()
        await source.aclose()

    async def recover(self) -> None:
        """Take over every recorded device that the kernel still shows as ours; forget the others' records."""
        records, errors = self._records.load()
        for error in errors:
            log.error("%s", error)
        states = {state.backend: state for state in self._sysfs.devices() if state.in_use}
        for record in records:
            state = states.get(record.backend)
            if state is None or state.size != _padded(record.size):
                log.info("the device of %s is gone; its record is removed", record.url)
                self._records.remove(record)
                continue
            # The index may be missing: the agent died between the kernel's answer and the record.
            held = _Held(replace(record, index=state.index))
            self._held[state.index] = held
            held.reopening = asyncio.get_running_loop().create_task(self._reopen(held))

    async def wait_recovered(self) -> None:
        """Until every take-over succeeded or was given up."""
        pending = [held.reopening for held in self._held.values() if held.reopening is not None]
        await asyncio.gather(*pending, return_exceptions=True)

    async def rest_idle(self) -> None:
        """For ever: give back the memory of devices that nobody reads (the kernel has its own cache)."""
        while True:
            await asyncio.sleep(_REST_AFTER_SECONDS)
            rested = [held for held in self._held.values() if self._rests(held)]
            if rested:
                give_back()

    def _rests(self, held: _Held) -> bool:
        """Put a device to rest that was not read since the last look, once; say whether."""
        if held.server is None or held.source is None:
            return False
        reads = held.server.counters.reads
        idle = reads == held.reads_seen and not held.resting
        if idle:
            held.source.rest()
        held.resting = reads == held.reads_seen
        held.reads_seen = reads
        return idle

    async def park(self) -> None:
        """Answer what is in flight, close the connections, leave devices and records for the next agent."""
        for path in list(self._exports):
            await self.unexport(path)
        await asyncio.gather(*(self._release(held) for held in self._held.values()))

    # Inside.

    def _find(self, index: int) -> _Held:
        held = self._held.get(index)
        if held is None:
            raise DeviceUnknown(
                f"{device_path(index)} is not attached by this agent; see: blockgate-nbd list"
            )
        return held

    def _describe(self, index: int, held: _Held) -> dict[str, object]:
        return {
            "device": device_path(index),
            "url": held.record.url,
            "size": _padded(held.record.size),
            "state": "attached" if held.server is not None else "recovering",
            "mountpoint": self._mounted_on(index),
            **_counted(held.server, held.source),
        }

    def _serve(self, held: _Held, source: Source) -> NbdServer:
        held.source = source
        held.server = NbdServer(PaddedSource(source, BLOCK_BYTES))
        return held.server

    async def _release(self, held: _Held) -> None:
        if held.reopening is not None:
            held.reopening.cancel()
            await asyncio.gather(held.reopening, return_exceptions=True)
            held.reopening = None
        if held.server is not None:
            await held.server.aclose()
        if held.source is not None:
            await held.source.aclose()
        held.server = held.source = None

    async def _reopen(self, held: _Held) -> None:
        """The gateway may be away just now: reads wait in the kernel, so there is time to try again."""
        wait = _REOPEN_FIRST_SECONDS
        while True:
            try:
                await self._take_over(held)
            except (SourceChanged, KernelError) as error:
                log.error("%s is not taken over: %s", held.record.url, error)
                return
            except BlockgateError as error:
                log.warning("%s is not taken over yet: %s", held.record.url, error)
                await asyncio.sleep(wait)
                wait = min(2 * wait, _REOPEN_LONGEST_SECONDS)
            else:
                return

    async def _take_over(self, held: _Held) -> None:
        record = held.record
        assert record.index is not None  # noqa: S101  a held device has one
        source, server = held.source, held.server
        if source is None or server is None:
            pin: Pin = record.pin
            source = await self._open(record.url, pin=pin)
            server = NbdServer(PaddedSource(source, BLOCK_BYTES))
        try:
            await self._kernel().reattach(server.serve_connected, backend=record.backend, index=record.index)
        except BaseException:
            if held.source is None:
                await source.aclose()
            raise
        held.source, held.server = source, server
        self._records.save(record)
        log.info("took over %s", device_path(record.index))

    def _mounted_on(self, index: int) -> str | None:
        device = device_path(index)
        for line in self._mounts.read_text().splitlines():
            source, mountpoint, *_ = line.split(" ")
            if source == device:
                return mountpoint.encode().decode("unicode_escape")
        return None


def _counted(server: NbdServer | None, source: Source | None) -> dict[str, object]:
    counters = server.counters if server is not None else Counters()
    return {
        "reads": counters.reads,
        "read_bytes": counters.read_bytes,
        "errors": counters.errors,
        "http_requests": source.requests if source is not None else 0,
    }


def _padded(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES
