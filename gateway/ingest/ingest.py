"""Running passes: the download, the thread, one pass per layer at a time, progress."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from blockgate.reader import Blob, Bytes
from gateway.errors import BlobMismatch, DiffIdMismatch, StorageError
from gateway.gzran.zinfo import ZinfoTable
from gateway.ingest.folder import LayerFolders
from gateway.ingest.layer_pass import LayerPass, Promise
from gateway.spans.index import Kind, LayerIndex, index_id

_FEED_BYTES = 1 << 18
_LOCK_POLL_SECONDS = 0.2
# Each pass keeps two threads busy and a few MiB; more at a time would be no faster.
_PASSES = 2

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


class Ingest:
    """Indexes layers, each once however many devices want it at the same moment."""

    def __init__(self, folders: LayerFolders, executor: ThreadPoolExecutor, *, span_size: int) -> None:
        self.folders = folders
        self.span_size = span_size
        self._executor = executor
        self._passes = asyncio.Semaphore(_PASSES)

    def find(self, blob: str, kind: Kind, supplied_digest: str | None = None) -> LayerIndex | None:
        """The finished index of a layer, if there is one. A damaged one counts as none."""
        name = index_id(kind, self.span_size, supplied_digest)
        try:
            return LayerIndex.open(self.folders.path(blob, name))
        except StorageError:
            return None

    async def index(
        self,
        blob: Blob,
        promise: Promise,
        kind: Kind,
        *,
        supplied: ZinfoTable | None = None,
        supplied_digest: str | None = None,
        progress: Progress,
    ) -> LayerIndex:
        """Return the layer's index, making it in a pass over ``blob`` when there is none yet.

        Raises what the source raises, ``IntegrityError``, ``InvalidLayer``, ``InvalidZinfo`` or ``StorageError``.
        """
        name = index_id(kind, self.span_size, supplied_digest)
        async with self._turn(promise.digest, name):
            found = self.find(promise.digest, kind, supplied_digest)
            if found is None:
                try:
                    await self._pass(blob, promise, kind, name, supplied, supplied_digest, progress)
                except OSError as error:
                    raise StorageError(
                        f"the index of {promise.digest} cannot be written: {error.strerror}"
                    ) from error
                found = LayerIndex.open(self.folders.path(promise.digest, name))
        progress(promise.size, promise.size)
        if found is None:
            raise StorageError(f"the index of {promise.digest} disappeared while it was being written")
        _keep(promise, found)
        return found

    async def _pass(
        self,
        blob: Blob,
        promise: Promise,
        kind: Kind,
        name: str,
        supplied: ZinfoTable | None,
        supplied_digest: str | None,
        progress: Progress,
    ) -> None:
        loop = asyncio.get_running_loop()
        with self.folders.begin(promise.digest, name) as folder:
            work = LayerPass(
                promise,
                kind,
                self.span_size,
                folder,
                supplied=supplied,
                supplied_digest=supplied_digest,
            )
            running: asyncio.Future[object] | None = None
            try:
                done = 0
                async for piece in _gather(blob.stream()):
                    # While one piece is worked on, the next one arrives.
                    if running is not None:
                        await _result(running)
                    running = loop.run_in_executor(self._executor, work.feed, piece)
                    done += len(piece)
                    progress(done, promise.size)
                if running is not None:
                    await _result(running)
                running = loop.run_in_executor(self._executor, work.finish)
                await _result(running)
            finally:
                # A thread is not cancelled with who waits for it: it ends before its files are closed and removed.
                cancelled = running is not None and await _outlasted(running)
                cancelled |= await _outlasted(loop.run_in_executor(self._executor, work.close))
                if cancelled:
                    raise asyncio.CancelledError

    @asynccontextmanager
    async def _turn(self, blob: str, name: str) -> AsyncIterator[None]:
        """Only one pass per layer at a time, in this process and in others, and only a few passes in all."""
        while True:
            lock = self.folders.try_lock(blob, name)
            if lock is not None:
                break
            await asyncio.sleep(_LOCK_POLL_SECONDS)  # the holder may be another process
        with lock:
            async with self._passes:
                yield


def _keep(promise: Promise, found: LayerIndex) -> None:
    """An index that was there already has to be what this image promises too: another one's may say something else."""
    facts = found.facts
    if facts.blob_size != promise.size:
        found.close()
        raise BlobMismatch(f"the blob has {facts.blob_size} bytes, its descriptor says {promise.size}")
    if promise.diff_id is not None and facts.sha256 != promise.diff_id:
        found.close()
        raise DiffIdMismatch(
            f"the decompressed layer's digest is {facts.sha256}, the image's configuration says {promise.diff_id}"
        )


async def _result(running: asyncio.Future[object]) -> None:
    """Wait for a thread's work; cancelling the caller leaves the work alone."""
    await asyncio.wait([running])
    running.result()


async def _outlasted(running: asyncio.Future[object]) -> bool:
    """Wait for a thread's work, whatever its outcome; returns whether the caller was cancelled meanwhile."""
    cancelled = False
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError:
            cancelled = True
    if not running.cancelled():
        running.exception()  # whoever wanted the outcome has it
    return cancelled


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
