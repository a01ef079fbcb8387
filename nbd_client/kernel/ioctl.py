"""Attach through ioctl (linux/nbd.h), for kernels whose driver has no netlink interface (before 4.12).

The device lives as long as the thread that sits in NBD_DO_IT: when the agent dies, so does the device. There is
no way to give it a new socket, so reattaching is refused.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
import threading
from struct import pack

from nbd_client.errors import DeviceBusy, KernelError, KernelUnsupported
from nbd_client.kernel.attach import BLOCK_BYTES, Serve, Timeouts
from nbd_client.kernel.netlink import SERVER_FLAGS
from nbd_client.kernel.sysfs import Sysfs, device_path

log = logging.getLogger(__name__)

_SET_SOCK, _SET_BLKSIZE, _DO_IT, _CLEAR_SOCK = 0xAB00, 0xAB01, 0xAB03, 0xAB04
_SET_SIZE_BLOCKS, _DISCONNECT, _SET_TIMEOUT, _SET_FLAGS = 0xAB07, 0xAB08, 0xAB09, 0xAB0A
_BLKROSET = 0x125D
_SETTLE_TRIES = 200
_PAUSE_SECONDS = 0.05


class IoctlAttachment:
    """The same three operations as :class:`nbd_client.kernel.attach.KernelAttachment`."""

    def __init__(self, sysfs: Sysfs, *, timeouts: Timeouts | None = None) -> None:
        self._sysfs = sysfs
        self._timeouts = timeouts or Timeouts()
        self._devices: dict[int, tuple[int, threading.Thread]] = {}

    async def attach(self, serve: Serve, *, size: int, backend: str, index: int | None) -> int:
        """Make a device of ``size`` bytes; return its index. ``backend`` has no place here."""
        del backend
        index = self._free() if index is None else index
        try:
            device = os.open(device_path(index), os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise KernelUnsupported(f"cannot open {device_path(index)}: {error.strerror}") from error
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        session = await serve(ours)
        try:
            with theirs:
                self._prepare(device, theirs, size)
        except OSError as error:
            session.abort()
            os.close(device)
            raise DeviceBusy(f"{device_path(index)} does not take a client: {error.strerror}") from error
        thread = threading.Thread(target=_do_it, args=(device, index), name=f"nbd{index}", daemon=True)
        self._devices[index] = (device, thread)
        thread.start()
        await self._until(index, size)
        await asyncio.to_thread(self._sysfs.tune, index, request_kib=1024, readahead_kib=4096)
        return index

    async def reattach(self, serve: Serve, *, backend: str, index: int) -> None:
        """Refused: see the module."""
        del serve, backend
        raise KernelError(f"{device_path(index)}: a device that was made with ioctl cannot be reattached")

    async def detach(self, index: int) -> None:
        """Take the device down and wait until its thread ended."""
        device, thread = self._devices.pop(index)
        await asyncio.to_thread(fcntl.ioctl, device, _DISCONNECT)
        await asyncio.to_thread(thread.join, _SETTLE_TRIES * _PAUSE_SECONDS)
        fcntl.ioctl(device, _CLEAR_SOCK)
        os.close(device)

    def _prepare(self, device: int, kernels_end: socket.socket, size: int) -> None:
        """The order matters: sizes set before the socket are forgotten, flags must precede the start."""
        fcntl.ioctl(device, _SET_SOCK, kernels_end.fileno())
        try:
            fcntl.ioctl(device, _SET_BLKSIZE, BLOCK_BYTES)
            fcntl.ioctl(device, _SET_SIZE_BLOCKS, size // BLOCK_BYTES)
            fcntl.ioctl(device, _SET_TIMEOUT, self._timeouts.request)
            fcntl.ioctl(device, _SET_FLAGS, SERVER_FLAGS)
            fcntl.ioctl(device, _BLKROSET, pack("i", 1))
        except OSError:
            fcntl.ioctl(device, _CLEAR_SOCK)
            raise

    def _free(self) -> int:
        for state in self._sysfs.devices():
            if not state.in_use and not state.size and state.index not in self._devices:
                return state.index
        raise DeviceBusy("every NBD device is in use; there are more with: modprobe nbd nbds_max=64")

    async def _until(self, index: int, size: int) -> None:
        for _ in range(_SETTLE_TRIES):
            state = self._sysfs.state(index)
            if state is not None and state.size == size and state.pid is not None:
                return
            await asyncio.sleep(_PAUSE_SECONDS)
        raise KernelError(f"{device_path(index)} did not start")


def _do_it(device: int, index: int) -> None:
    """Blocks until the device is disconnected or its socket dies."""
    try:
        fcntl.ioctl(device, _DO_IT)
    except OSError as error:
        log.warning("%s ended: %s", device_path(index), error.strerror)
