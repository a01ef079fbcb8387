"""What the node adds to the one read interface: bytes that are at hand are had without waiting.

Readers stack: http, retry, cache, readahead, and the server on top. Each layer adds one property and knows nothing of
the one above.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from blockgate.reader import Bytes, Reader


class HotReader(Reader, Protocol):
    """A reader that may have bytes at hand."""

    def peek(self, offset: int, length: int) -> Bytes | None:
        """Return what ``read`` would if that needs no waiting, else None. Bounds are the caller's."""
        ...

    def start(self, offset: int, length: int) -> asyncio.Future[Bytes]:
        """Begin what ``read`` does. Others may wait for the same future: never cancel it."""
        ...
