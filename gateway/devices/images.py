"""One device's image: the source that has it, and readers of its blobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from blockgate.reader import Blob, Bytes
from gateway.recipes.spec import SourceSpec
from gateway.registry.reference import Reference, parse_reference
from gateway.registry.source import Descriptor, Image, ImageSource


class Sources(Protocol):
    """Opens the source that a reference belongs to."""

    def open_source(self, reference: Reference, *, insecure: bool, credentials: str | None) -> ImageSource:
        """A source bound to how its registry is to be spoken to."""
        ...


class ImageAccess:
    """One device's image source. Raises ``InvalidReference`` for what is none."""

    def __init__(self, sources: Sources, source: SourceSpec) -> None:
        self.reference = parse_reference(source.image)
        self._platform = source.platform
        self._source = sources.open_source(
            self.reference, insecure=source.insecure, credentials=source.credentials
        )

    async def resolve(self) -> Image:
        """The image that the reference means now. Raises what the source raises."""
        return await self._source.resolve(self.reference, self._platform)

    def blob(self, descriptor: Descriptor) -> Blob:
        """A reader of one blob, opened when it is first read: cached bytes of a blob that is gone can still be served."""
        return LazyBlob(self._source, self.reference, descriptor)


class LazyBlob:
    """Opens a blob for its first read. Closing waits for reads that are under way; a late one opens and closes again."""

    def __init__(self, source: ImageSource, reference: Reference, descriptor: Descriptor) -> None:
        self._source = source
        self._reference = reference
        self._descriptor = descriptor
        self._opened: Blob | None = None
        self._opening = asyncio.Lock()
        self._readers = 0
        self._closing = False

    @property
    def size(self) -> int:
        """Bytes, as the descriptor says."""
        return self._descriptor.size

    async def read(self, offset: int, length: int) -> Bytes:
        """Exactly these bytes."""
        async with self._use() as blob:
            return await blob.read(offset, length)

    async def stream(self, start: int = 0) -> AsyncIterator[Bytes]:
        """All bytes from ``start``."""
        async with self._use() as blob:
            async for piece in blob.stream(start):
                yield piece

    async def aclose(self) -> None:
        """Close when nobody reads."""
        self._closing = True
        if self._readers == 0:
            await self._close()

    @asynccontextmanager
    async def _use(self) -> AsyncIterator[Blob]:
        self._readers += 1
        try:
            async with self._opening:
                if self._opened is None:
                    self._opened = await self._source.open_blob(self._reference, self._descriptor)
            yield self._opened
        finally:
            self._readers -= 1
            if self._closing and self._readers == 0:
                await self._close()

    async def _close(self) -> None:
        blob, self._opened = self._opened, None
        if blob is not None:
            await blob.aclose()
