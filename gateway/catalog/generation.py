"""A counter in shared memory that tells the workers of one data folder that the catalog changed."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

_BYTES = 8


class Generation:
    """A number that all processes of a data folder share; it grows with each change of the catalog.

    Looking at it costs a memory access, so that reading a device's bytes needs no query.
    """

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size < _BYTES:
                os.ftruncate(fd, _BYTES)
            self._map = mmap.mmap(fd, _BYTES)
            self._values = memoryview(self._map).cast("Q")
        finally:
            os.close(fd)

    def value(self) -> int:
        """The current number."""
        return self._values[0]

    def advance(self) -> None:
        """Tell everybody. Two simultaneous calls may count as one: any change of the number will do."""
        self._values[0] = (self.value() + 1) & 0xFFFFFFFFFFFFFFFF

    def close(self) -> None:
        """Unmap."""
        self._values.release()
        self._map.close()
