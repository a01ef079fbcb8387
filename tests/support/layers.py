"""Layers for tests: blobs in memory whose faults are switched on and off, and indexes made of them by the real pass."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import io
import random
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

from gateway.errors import BlockgateError
from gateway.gzran.zinfo import ZinfoTable
from gateway.ingest.folder import LayerFolders
from gateway.ingest.layer_pass import LayerPass, Promise
from gateway.spans.index import Kind, LayerIndex, index_id
from gateway.spans.layer import SpanLayer
from gateway.spans.memory import MemoryTier


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class MemoryBlob:
    """A ``Blob`` over bytes that remembers what was read.

    ``error`` is raised by every read while it is set; ``flipped`` inverts one bit of that byte; reads wait for ``gate``
    when there is one. ``stream`` yields ``chunk`` bytes at a time and raises ``error`` at ``error_at``.
    """

    def __init__(self, data: bytes, *, chunk: int = 1 << 16) -> None:
        self.data = data
        self.size = len(data)
        self.chunk = chunk
        self.reads: list[tuple[int, int]] = []
        self.streams = 0
        self.error: BaseException | None = None
        self.error_at = 0
        self.flipped: int | None = None
        self.gate: asyncio.Event | None = None
        self.reading = 0
        self.most_reading = 0
        self.closed = 0
        self._came = asyncio.Event()

    async def read(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        self._came.set()
        self.reading += 1
        self.most_reading = max(self.most_reading, self.reading)
        try:
            if self.gate is not None:
                await self.gate.wait()
            await asyncio.sleep(0)
            if self.error is not None:
                raise self.error
            return self._bytes(offset, offset + length)
        finally:
            self.reading -= 1

    async def asked(self, times: int = 1) -> None:
        """Wait until that many reads have begun."""
        while len(self.reads) < times:
            self._came.clear()
            await asyncio.wait_for(self._came.wait(), 20)

    async def stream(self, start: int = 0) -> AsyncIterator[bytes]:
        self.streams += 1
        for at in range(start, len(self.data), self.chunk):
            if self.error is not None and at + self.chunk > self.error_at:
                raise self.error
            if self.gate is not None:
                await self.gate.wait()
            yield self._bytes(at, min(at + self.chunk, len(self.data)))

    async def aclose(self) -> None:
        self.closed += 1

    def _bytes(self, start: int, stop: int) -> bytes:
        piece = bytearray(self.data[start:stop])
        if self.flipped is not None and start <= self.flipped < stop:
            piece[self.flipped - start] ^= 1
        return bytes(piece)


@functools.cache
def content(length: int, seed: int = 0) -> bytes:
    """Compressible bytes, the same for the same seed."""
    source = random.Random(seed)
    words = [source.randbytes(source.randint(3, 12)) for _ in range(300)]
    out = bytearray()
    while len(out) < length:
        out += source.choice(words) if source.random() < 0.9 else source.randbytes(source.randint(1, 40))
    return bytes(out[:length])


def tar_of(files: dict[str, bytes]) -> bytes:
    """A tar of regular files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def feed(work: LayerPass, blob: bytes, chunk: int = 1 << 16) -> None:
    for at in range(0, len(blob), chunk):
        work.feed(blob[at : at + chunk])


def index_blob(
    folder: Path,
    blob: bytes,
    kind: Kind,
    *,
    span_size: int = 65536,
    chunk: int = 1 << 16,
    diff_id: str | None = None,
    supplied: ZinfoTable | None = None,
    supplied_digest: str | None = None,
) -> LayerIndex:
    """Index a blob by a real pass."""
    folders = LayerFolders(folder)
    name = index_id(kind, span_size, supplied_digest)
    with folders.begin(sha256(blob), name) as writer:
        promise = Promise(sha256(blob), len(blob), diff_id)
        work = LayerPass(promise, kind, span_size, writer, supplied=supplied, supplied_digest=supplied_digest)
        try:
            feed(work, blob, chunk)
            work.finish()
        finally:
            work.close()
    index = LayerIndex.open(folders.path(sha256(blob), name))
    assert index is not None
    return index


def layer_of(
    index: LayerIndex,
    source: MemoryBlob,
    *,
    local: bool = False,
    provisional_memory: MemoryTier | None = None,
) -> SpanLayer:
    """What the span store reads."""
    return SpanLayer(
        index.facts.blob,
        index.index_id,
        index.table,
        index.windows,
        source,
        local=local,
        provisional_memory=provisional_memory,
    )


def failure(kind: type[BlockgateError], text: str = "as the test wants it") -> BlockgateError:
    return kind(text)
