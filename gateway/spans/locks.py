"""One fetch per span across processes: advisory byte locks on one file.

Each span is a byte of the file; whoever holds its lock fetches. The locks are of the "open file description" kind
(fcntl(2), F_OFD_SETLK): the kernel releases them when their holder dies, so nothing is left behind by kill -9, and
closing another descriptor of the same file does not release them, as classic POSIX locks would be.
Inside of one process all holders share a description and never exclude each other: there the store's table of
fetches in flight does.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.layers.key import SpanKey

# struct flock of 64-bit Linux: l_type, l_whence, padding, l_start, l_len, l_pid (must be 0), padding.
_FLOCK = struct.Struct("hh4xqqi4x")
_FIRST_WAIT_SECONDS = 0.001
_LONGEST_WAIT_SECONDS = 0.02


class SpanLocks:
    """Locks named by span keys, shared by all processes that open the same file."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        """Release everything."""
        os.close(self._fd)

    @asynccontextmanager
    async def hold(self, key: SpanKey) -> AsyncIterator[bool]:
        """Hold the key's lock; yields whether another process had it first (so that its result may be there)."""
        name = f"{key.blob} {key.cut} {key.span}".encode()
        # Two keys that share a byte wait for each other needlessly once in 2**62: harmless.
        start = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") >> 2
        waited = False
        pause = _FIRST_WAIT_SECONDS
        while not self._set(fcntl.F_WRLCK, start):
            waited = True
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_WAIT_SECONDS)
        try:
            yield waited
        finally:
            self._set(fcntl.F_UNLCK, start)

    def _set(self, kind: int, start: int) -> bool:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, 1, 0))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            if error.errno != errno.ENOLCK:
                raise
            # A kernel that has no lock to give costs a second fetch, and no read.
        return True
