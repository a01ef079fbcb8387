"""The libraries that can inflate a raw deflate stream behind a dictionary, as one interface."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable
from typing import Any, Protocol

Buffer = bytes | memoryview

try:
    # Its type stubs declare the error class as an instance, so its types are not used.
    _igzip: Any = importlib.import_module("isal.igzip_lib")
except ImportError:  # no build for this processor
    _igzip = None

#: What the backends raise on a broken stream.
ERRORS: tuple[type[Exception], ...] = (zlib.error, *((_igzip.IsalError,) if _igzip else ()))


class Inflater(Protocol):
    """Raw inflate of one deflate stream."""

    @property
    def eof(self) -> bool:
        """Whether the final block has ended."""
        ...

    @property
    def unused_data(self) -> bytes:
        """What was fed behind the final block."""
        ...

    def decompress(self, data: Buffer, max_length: int, /) -> bytes:
        """Return as much as ``data`` yields, at most ``max_length`` bytes (above 0)."""
        ...


#: Makes an inflater whose history is the given window (empty: none).
Backend = Callable[[Buffer], Inflater]


def igzip(window: Buffer) -> Inflater:
    """Intel's libisal: twice as fast as zlib."""
    inflater: Inflater = _igzip.IgzipDecompressor(_igzip.DECOMP_DEFLATE, zlib.MAX_WBITS, window)
    return inflater


def stdlib(window: Buffer) -> Inflater:
    """Python's own zlib."""
    if window:
        return zlib.decompressobj(-zlib.MAX_WBITS, zdict=window)
    return zlib.decompressobj(-zlib.MAX_WBITS)


#: The fastest one that is there.
DEFAULT: Backend = igzip if _igzip else stdlib
