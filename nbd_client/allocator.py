"""What glibc's malloc does with buffers of a MiB that come and go a thousand times a second.

By default it hands such memory back to the kernel and takes it again, cleared page by page: up to a fifth of the
CPU time of a sequential read. So it is told to keep it, and told when nobody reads any more. Elsewhere than on
glibc this does nothing.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 128 << 20
_LARGEST_BYTES = 64 << 20


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def keep_large_buffers() -> None:
    """From now on, freed buffers stay with the process."""
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def give_back() -> None:
    """Return what is free to the kernel. Takes milliseconds: for idle moments."""
    malloc_trim = getattr(_libc(), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
