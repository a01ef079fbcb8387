"""The one read interface of the node. Readers stack: http, retry, cache, readahead, and the server on top.

Each layer adds one property and knows nothing of the one above.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from nbd_client.errors import OutOfRange

Bytes = bytes | memoryview


class Reader(Protocol):
    """Random access to ``size`` bytes."""

    @property
    def size(self) -> int:
        """Length in bytes; never changes."""
        ...

    async def read(self, offset: int, length: int) -> Bytes:
        """Return exactly ``length`` bytes from ``offset``, or raise a ``NodeError``.

        What is returned is never written to again: it may be handed to a socket without a copy.
        """
        ...

    async def aclose(self) -> None:
        """Release what the reader holds. Reading afterwards is an error of the caller."""
        ...


class HotReader(Reader, Protocol):
    """A reader that may have bytes at hand."""

    def peek(self, offset: int, length: int) -> Bytes | None:
        """Return what ``read`` would if that needs no waiting, else None. Bounds are the caller's."""
        ...

    def start(self, offset: int, length: int) -> asyncio.Future[Bytes]:
        """Begin what ``read`` does. Others may wait for the same future: never cancel it."""
        ...


def check_bounds(offset: int, length: int, size: int) -> None:
    """Raise ``OutOfRange`` unless ``[offset, offset + length)`` lies in ``[0, size)``."""
    if offset < 0 or length < 0 or offset + length > size:
        raise OutOfRange(f"bytes {offset}+{length} are outside of the device's 0..{size}")
