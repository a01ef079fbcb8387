"""Making layer indexes: each exactly once, however many devices, workers and replicas want it at the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from blockgate.reader import Blob, Bytes
from gateway.catalog.catalog import Catalog
from gateway.catalog.leases import HeldLease
from gateway.errors import BlobMismatch, DiffIdMismatch, IndexAbsent, IndexDamaged, LeaseLost, StorageError
from gateway.ingest.layer_pass import Cutting, LayerPass, Promise
from gateway.layers.index import IndexFacts, IndexRow, LayerIndex
from gateway.layers.key import LayerKey
from gateway.layers.open import OpenIndexes
from gateway.layers.store import Draft, LayerStore

_FEED_BYTES = 1 << 18
# Each pass keeps two threads busy and a few MiB; more at a time would be no faster.
_PASSES = 2
# An index may be dropped between its pass and the look at it. A disk that damages each one is waited for elsewhere.
_TRIES = 3

OnProgress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


class Ingest:
    """Finds or makes the index of a layer.

    The way: is there one? → the layer's lease (one maker among all replicas) → is there one now? → a pass over the
    blob → the attempt gets its name in the store → the catalog makes it the one that counts. Dying anywhere on it
    leaves an attempt that nothing refers to, which the next start removes.
    """

    def __init__(
        self,
        store: LayerStore,
        catalog: Catalog,
        opened: OpenIndexes,
        executor: ThreadPoolExecutor,
        *,
        span_size: int,
    ) -> None:
        self.span_size = span_size
        self._store = store
        self._catalog = catalog
        self._opened = opened
        self._executor = executor
        self._passes = asyncio.Semaphore(_PASSES)

    async def find(self, key: LayerKey) -> IndexFacts | None:
        """Facts of the index, if it can be read by; a damaged one is dropped and counts as none. Raises ``StorageError``."""
        try:
            return (await self._opened.open(key)).facts
        except IndexAbsent:
            return None

    async def index(self, blob: Blob, promise: Promise, cutting: Cutting, progress: OnProgress) -> IndexFacts:
        """Facts of the layer's index, which is made in a pass over ``blob`` when there is none yet.

        Raises what the source raises, ``IntegrityError``, ``InvalidLayer``, ``InvalidZinfo`` or ``StorageError``.
        """
        key = LayerKey(promise.digest, cutting.cut)
        found = await self.find(key)
        for _ in range(_TRIES):
            if found is not None:
                break
            async with self._catalog.lease(f"layer {key}") as lease:
                found = await self.find(key)
                if found is None:
                    async with self._passes:
                        await self._make(key, blob, promise, cutting, progress, lease)
                    found = await self.find(key)
        if found is None:
            raise StorageError(f"the index of {promise.digest} is lost or damaged as soon as it is made")
        progress(promise.size, promise.size)
        _keep(promise, found)
        return found

    async def put(
        self, key: LayerKey, facts: IndexFacts, spans: bytes, fill: Callable[[Draft], None]
    ) -> None:
        """Store an index that needs no pass; ``fill`` writes its checkpoints. A table that is not proven, for example."""
        async with self._catalog.lease(f"layer {key}") as lease, self._store.draft(key) as draft:
            await asyncio.to_thread(fill, draft)
            await asyncio.to_thread(draft.complete, facts, spans, b"")
            await self._commit(key, await draft.publish(), lease)

    async def open(self, key: LayerKey) -> LayerIndex:
        """The open index. Raises ``IndexAbsent`` or ``StorageError``."""
        return await self._opened.open(key)

    async def contents(self, index: LayerIndex) -> Path:
        """The table of contents of an open index, verified.

        A damaged copy is dropped, so that the next attempt makes another. Raises ``IndexDamaged`` or ``StorageError``.
        """
        try:
            return await self._store.contents(index)
        except IndexDamaged:
            await self._opened.drop(index)
            raise

    async def remove(self, key: LayerKey, attempt: str) -> None:
        """Remove what is stored of an index that the catalog has forgotten."""
        await self._store.drop(key, attempt)

    async def _make(
        self,
        key: LayerKey,
        blob: Blob,
        promise: Promise,
        cutting: Cutting,
        progress: OnProgress,
        lease: HeldLease,
    ) -> None:
        try:
            async with self._store.draft(key) as draft:
                work = await self._begin(promise, cutting, draft)
                try:
                    await self._pass(work, blob, promise, progress)
                finally:
                    # A thread is not cancelled with who waits for it: it ends before its files are removed.
                    await _outlasted(self._start(work.close))
                await self._commit(key, await draft.publish(), lease)
        except OSError as error:
            raise StorageError(
                f"the index of {promise.digest} cannot be written: {error.strerror}"
            ) from error

    async def _commit(self, key: LayerKey, row: IndexRow, lease: HeldLease) -> None:
        try:
            before = await self._catalog.commit_index(key, row, lease)
        except LeaseLost:
            await self._store.drop(key, row.attempt)
            raise
        if before is not None and before.attempt != row.attempt:
            await self._store.drop(key, before.attempt)

    async def _pass(self, work: LayerPass, blob: Blob, promise: Promise, progress: OnProgress) -> None:
        running: asyncio.Future[None] | None = None
        done = 0
        try:
            async for piece in _gather(blob.stream()):
                # While one piece is worked on, the next one arrives.
                if running is not None:
                    await _result(running)
                running = self._start(partial(work.feed, piece))
                done += len(piece)
                progress(done, promise.size)
            if running is not None:
                await _result(running)
            running = self._start(work.finish)
            await _result(running)
        finally:
            if running is not None:
                await _outlasted(running)

    def _start(self, call: Callable[[], None]) -> asyncio.Future[None]:
        return asyncio.get_running_loop().run_in_executor(self._executor, call)

    async def _begin(self, promise: Promise, cutting: Cutting, draft: Draft) -> LayerPass:
        """A pass; it opens files and has a thread, so one that nobody waits for any more is closed here."""
        loop = asyncio.get_running_loop()
        starting = loop.run_in_executor(self._executor, LayerPass, promise, cutting, draft)
        try:
            await asyncio.wait([starting])
        except asyncio.CancelledError:
            try:
                await _outlasted(starting)
            finally:
                if starting.exception() is None:
                    await _outlasted(self._start(starting.result().close))
            raise
        return starting.result()


def _keep(promise: Promise, facts: IndexFacts) -> None:
    """An index that was there already has to be what this image promises too: another one's may say something else."""
    if facts.blob_size != promise.size:
        raise BlobMismatch(f"the blob has {facts.blob_size} bytes, its descriptor says {promise.size}")
    if promise.diff_id is not None and facts.sha256 and facts.sha256 != promise.diff_id:
        raise DiffIdMismatch(
            f"the decompressed layer's digest is {facts.sha256}, the image's configuration says {promise.diff_id}"
        )


async def _result(running: asyncio.Future[None]) -> None:
    """Wait for a thread's work; cancelling the caller leaves the work alone."""
    await asyncio.wait([running])
    running.result()


async def _outlasted(running: asyncio.Future[Any]) -> None:
    """Wait for a thread's work, whatever its outcome. A cancellation that comes meanwhile is raised afterwards."""
    cancelled = False
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError:
            cancelled = True
    if not running.cancelled():
        running.exception()  # whoever wanted the outcome has it
    if cancelled:
        raise asyncio.CancelledError


async def _gather(stream: AsyncIterator[Bytes]) -> AsyncIterator[bytes]:
    """Pieces of at least ``_FEED_BYTES`` (but for the last): fewer changes between threads."""
    held = bytearray()
    async for piece in stream:
        held += piece
        if len(held) >= _FEED_BYTES:
            yield bytes(held)
            held = bytearray()
    if held:
        yield bytes(held)
