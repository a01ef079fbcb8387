"""Attach, reattach and detach one device through netlink, with the waiting that each of them needs."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from nbd_client.errors import DeviceBusy, KernelError
from nbd_client.kernel.netlink import ConnectRequest, NbdNetlink
from nbd_client.kernel.sysfs import Sysfs, device_path
from nbd_client.server import Session

BLOCK_BYTES = 512  # EROFS with 512-byte blocks does not mount on a device with larger ones
_BUSY_TRIES = 50
_SETTLE_TRIES = 200
_PAUSE_SECONDS = 0.05
_RECONFIGURE_TRIES = 40

Serve = Callable[[socket.socket], Awaitable[Session]]
"""Serves our end of a socket pair; the other end is the kernel's."""


class Attachment(Protocol):
    """Operations on the kernel's side of a device, whichever way they reach the driver."""

    async def attach(self, serve: Serve, *, size: int, backend: str, index: int | None) -> int:
        """Make a device of ``size`` bytes; return its index."""
        ...

    async def reattach(self, serve: Serve, *, backend: str, index: int) -> None:
        """Give a parked device new sockets."""
        ...

    async def detach(self, index: int) -> None:
        """Take the device down."""
        ...


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. Each of the ladder is shorter than the next: one read 60 < kernel's request < parked device."""

    request: int = 90
    dead_connection: int = 300


class KernelAttachment:
    """Through netlink; ``connections`` sockets serve each device."""

    def __init__(
        self,
        netlink: NbdNetlink,
        sysfs: Sysfs,
        *,
        timeouts: Timeouts | None = None,
        connections: int = 1,
    ) -> None:
        self._netlink = netlink
        self._sysfs = sysfs
        self._timeouts = timeouts or Timeouts()
        self._connections = connections
        self._calls = asyncio.Lock()  # the netlink socket carries one call at a time

    async def attach(self, serve: Serve, *, size: int, backend: str, index: int | None) -> int:
        """Make a device of ``size`` bytes; return its index. Raises ``KernelError``.

        Something may hold the device open for a moment (udev looks at every one of them): busy is tried again.
        """
        for attempt in range(_BUSY_TRIES):
            ours, theirs = _socket_pairs(self._connections)
            sessions = [await serve(end) for end in ours]
            request = ConnectRequest(
                size=size,
                block_size=BLOCK_BYTES,
                timeout_seconds=self._timeouts.request,
                dead_conn_timeout_seconds=self._timeouts.dead_connection,
                backend=backend,
                socket_fds=tuple(end.fileno() for end in theirs),
                index=index,
            )
            try:
                async with self._calls:
                    attached = await asyncio.to_thread(self._netlink.connect, request)
            except DeviceBusy:
                _abort(sessions)
                if attempt == _BUSY_TRIES - 1 or self._owned(index):
                    raise
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            except BaseException:
                _abort(sessions)
                raise
            finally:
                _close(theirs)
            await self._settle(attached, size)
            return attached
        raise AssertionError  # the loop returns or raises

    async def reattach(self, serve: Serve, *, backend: str, index: int) -> None:
        """Give a parked device new sockets. Raises ``KernelError`` when it took none.

        The kernel says yes even when it had no dead socket to replace: then closing its end makes ours end,
        and since it may only be about to notice the death, that is tried again.
        """
        for _ in range(_RECONFIGURE_TRIES):
            ours, theirs = _socket_pairs(self._connections)
            sessions = [await serve(end) for end in ours]
            try:
                fds = [end.fileno() for end in theirs]
                async with self._calls:
                    await asyncio.to_thread(self._netlink.reconfigure, index, backend, fds)
            except BaseException:
                _abort(sessions)
                raise
            finally:
                _close(theirs)
            closed = [session.closed for session in sessions]
            done, _ = await asyncio.wait(closed, timeout=_PAUSE_SECONDS, return_when=asyncio.ALL_COMPLETED)
            if len(done) < len(closed):
                return
        raise KernelError(f"{device_path(index)} did not take a new connection: another process serves it")

    async def detach(self, index: int) -> None:
        """Take the device down and wait until the kernel let go of it. Raises ``KernelError``."""
        async with self._calls:
            await asyncio.to_thread(self._netlink.disconnect, index)
        for _ in range(_SETTLE_TRIES):
            state = self._sysfs.state(index)
            if state is None or not state.in_use:
                return
            await asyncio.sleep(_PAUSE_SECONDS)
        raise DeviceBusy(f"{device_path(index)} was disconnected, but something still holds it open")

    def _owned(self, index: int | None) -> bool:
        state = self._sysfs.state(index) if index is not None else None
        return state is not None and state.in_use

    async def _settle(self, index: int, size: int) -> None:
        for _ in range(_SETTLE_TRIES):
            state = self._sysfs.state(index)
            if state is not None and state.size == size:
                await asyncio.to_thread(self._sysfs.tune, index, request_kib=1024, readahead_kib=4096)
                return
            await asyncio.sleep(_PAUSE_SECONDS)
        await self.detach(index)
        raise KernelError(f"{device_path(index)} did not get its size of {size} bytes")


def _socket_pairs(count: int) -> tuple[list[socket.socket], list[socket.socket]]:
    """Stream sockets, close-on-exec: a child that inherited an end would keep a dead connection alive."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(count)]
    return [ours for ours, _ in pairs], [theirs for _, theirs in pairs]


def _close(ends: list[socket.socket]) -> None:
    for end in ends:
        end.close()


def _abort(sessions: list[Session]) -> None:
    for session in sessions:
        session.abort()
