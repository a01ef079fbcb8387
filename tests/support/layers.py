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
from gateway.ingest.layer_pass import Cutting, LayerPass, Promise
from gateway.layers.codec import Codec
from gateway.layers.folder import FolderStore
from gateway.layers.index import LayerIndex
from gateway.layers.key import LayerKey, cut_name
from gateway.layers.proof import Chained, Proven
from gateway.spans.layer import Keeper, Layer
from gateway.spans.store import SpanStore
from gateway.spans.tier import Origin


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


async def index_blob(
    folder: Path,
    blob: bytes,
    codec: Codec,
    *,
    span_size: int = 65536,
    chunk: int = 1 << 16,
    diff_id: str | None = None,
    supplied: ZinfoTable | None = None,
    supplied_digest: str | None = None,
) -> LayerIndex:
    """Index a blob by a real pass, in ``folder``."""
    scratch = folder / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    store = FolderStore(folder / "layers", scratch)
    key = LayerKey(sha256(blob), cut_name(codec.name, span_size, supplied_digest))
    cutting = Cutting(codec, key.cut, span_size, supplied, supplied_digest)
    async with store.draft(key) as draft:
        work = LayerPass(Promise(key.blob, len(blob), diff_id), cutting, draft)
        try:
            feed(work, blob, chunk)
            work.finish()
        finally:
            work.close()
        row = await draft.publish()
    return await store.open(key, row)


class StillKeeper:
    """Gives out one index; nothing that is lost can be made again."""

    def __init__(self, index: LayerIndex) -> None:
        self.index = index
        self.met: list[BlockgateError] = []

    async def open(self, layer: Layer) -> LayerIndex:
        return self.index

    async def heal(self, layer: Layer, index: LayerIndex, error: BlockgateError) -> LayerIndex:
        self.met.append(error)
        raise error


def layer_of(
    index: LayerIndex,
    source: MemoryBlob,
    store: SpanStore,
    *,
    local: bool = False,
    proven: bool = True,
    keeper: Keeper | None = None,
) -> Layer:
    """An open layer that ``store`` reads, as the shelf makes them."""
    layer = Layer(
        index.key,
        source,
        Origin.LOCAL if local else Origin.UPSTREAM,
        Proven() if proven else Chained(f"layer {index.key.blob[:19]}…"),
        store.memory if proven else store.unproven,
        store.shared if proven and not local else (),
        keeper or StillKeeper(index),
    )
    layer._use(index)
    return layer


def failure(kind: type[BlockgateError], text: str = "as the test wants it") -> BlockgateError:
    return kind(text)
