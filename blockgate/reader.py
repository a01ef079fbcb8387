"""The one read interface. Everything that yields bytes at offsets implements it, and they stack.

A blob in a registry, a verified span store over it, and a whole device are all readers; each layer adds
one property (ranges, verification, an address space) and knows nothing of the one above.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from blockgate.errors import RangeNotSatisfiable

Bytes = bytes | memoryview


class Reader(Protocol):
    """Random access to ``size`` bytes."""

    @property
    def size(self) -> int:
        """Length in bytes; never changes."""
        ...

    async def read(self, offset: int, length: int) -> Bytes:
        """Return exactly ``length`` bytes from ``offset``, or raise a ``BlockgateError``.

        What is returned is never written to again: it may be handed to a socket without a copy.
        """
        ...

    async def aclose(self) -> None:
        """Release what the reader holds. Reading afterwards is an error of the caller."""
        ...


class Blob(Reader, Protocol):
    """A layer as it lies in its source: unverified, compressed as it is."""

    def stream(self, start: int = 0) -> AsyncIterator[Bytes]:
        """Yield the bytes from ``start`` to the end in order, in pieces of the source's choosing.

        A broken transfer is resumed inside; what cannot be resumed raises.
        """
        ...


def check_bounds(offset: int, length: int, size: int) -> None:
    """Raise ``RangeNotSatisfiable`` unless ``[offset, offset + length)`` lies in ``[0, size)``."""
    if offset < 0 or length < 0 or offset + length > size:
        raise RangeNotSatisfiable(f"bytes {offset}+{length} are outside of 0..{size}")
