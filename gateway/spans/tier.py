"""A cache tier, as the span store sees all of them."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from typing import Protocol

from blockgate.reader import Bytes
from gateway.layers.key import LayerKey, SpanKey


class Origin(StrEnum):
    """Where a span was at the moment it was asked for."""

    MEMORY = "memory"
    DISK = "disk"
    UPSTREAM = "upstream"
    LOCAL = "local"

    # That of Enum is Python code, and these are keys of what is counted for each read.
    __hash__ = str.__hash__


class Tier(Protocol):
    """Verified spans by key. What a tier cannot keep or give is a miss, never an error."""

    @property
    def origin(self) -> Origin:
        """What spans found here are counted as."""
        ...

    async def get(self, key: SpanKey, sha256: bytes) -> Bytes | None:
        """The span, if it is here and whole; ``sha256`` is the digest that it has to have."""
        ...

    async def put(self, key: SpanKey, data: Bytes, sha256: bytes) -> None:
        """Keep a span."""
        ...

    async def drop(self) -> int:
        """Forget all spans. Returns the bytes freed."""
        ...

    def alone(self, key: SpanKey) -> AbstractAsyncContextManager[bool]:
        """Be the only one among those who share the tier to fetch this span; yields whether to look here once more first."""
        ...

    def held(self, layer: LayerKey) -> set[int]:
        """Numbers of the spans of a layer that are here. A tier that lies on a disk blocks."""
        ...

    @property
    def used_bytes(self) -> int:
        """How much is kept."""
        ...
