"""The span store: one fetch per span, verified before anybody sees it, kept in memory and on disk.

The way of a miss: table of fetches in flight (one per span in this process) → disk → the span's lock (one fetch per span
among all workers) → disk again if another worker had it → one range from the source → digest → inflate → digest →
chain → memory → readers → disk. Readers wait on a future, never on the task that fills it: cancelling one, the first
included, disturbs nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import ParamSpec, TypeVar

from blockgate.reader import Bytes
from gateway.errors import (
    BlockgateError,
    IndexDamaged,
    IntegrityError,
    Overloaded,
    SpanMismatch,
    UpstreamError,
)
from gateway.gzran.zinfo import WINDOW_BYTES
from gateway.metrics import Histogram
from gateway.spans.decode import check_chain, decode
from gateway.spans.disk import DiskTier
from gateway.spans.layer import SpanLayer
from gateway.spans.locks import NoLocks, SpanLocks
from gateway.spans.memory import MemoryTier, SpanKey
from gateway.spans.table import Span

P = ParamSpec("P")
T = TypeVar("T")


class Origin(StrEnum):
    """Where a span came from at the moment it was asked for."""

    MEMORY = "memory"
    DISK = "disk"
    UPSTREAM = "upstream"
    LOCAL = "local"

    # That of Enum is Python code, and these are keys of what is counted for each read.
    __hash__ = str.__hash__


Found = tuple[Bytes, Origin]


@dataclass
class StoreCounts:
    """What the store has done since the process started; plain numbers, read when metrics are scraped."""

    memory_hits: int = 0
    memory_misses: int = 0
    disk_hits: int = 0
    disk_misses: int = 0
    fetches: int = 0
    fetched_bytes: int = 0
    """From upstream, compressed as it came; nothing of what lies on this machine."""
    coalesced: int = 0
    prefetched: int = 0
    prefetched_used: int = 0
    prefetched_wasted: int = 0
    shed: int = 0
    inflate: Histogram = field(default_factory=Histogram)
    failures: dict[str, int] = field(default_factory=dict)


class SpanStore:
    """Reads spans of any layer. Lives on one event loop; blocking work goes to ``executor``'s threads.

    Decoding goes to ``decoders``, if there are any: one thread per processor is best, and a slow disk must not hold it up.
    """

    def __init__(
        self,
        memory: MemoryTier,
        disk: DiskTier,
        locks: SpanLocks | NoLocks,
        executor: ThreadPoolExecutor,
        *,
        decoders: ThreadPoolExecutor | None = None,
        concurrent_fetches: int = 32,
        concurrent_prefetches: int = 16,
        flying_limit_bytes: int = 512 << 20,
    ) -> None:
        self.memory = memory
        self.disk = disk
        self.counts = StoreCounts()
        self._locks = locks
        self._executor = executor
        self._decoders = decoders or executor
        self._fetches = asyncio.Semaphore(concurrent_fetches)
        self._prefetch_limit = concurrent_prefetches
        self._prefetching = 0
        self.flying_bytes = 0
        self._flying_limit = flying_limit_bytes
        self._flying: dict[SpanKey, asyncio.Future[Found]] = {}
        # Spans read ahead that nobody has asked for yet.
        self._ahead: set[SpanKey] = set()
        memory.on_evict = self._evicted
        self._tasks: set[asyncio.Task[None]] = set()

    def peek(self, layer: SpanLayer, index: int) -> Bytes | None:
        """The span if it is in memory: no waiting, no thread."""
        memory = self.memory if layer.provisional_memory is None else layer.provisional_memory
        key = layer.key(index)
        data = memory.get(key)
        if data is not None:
            self.counts.memory_hits += 1
            if self._ahead and key in self._ahead:
                self._use_ahead(key)
        return data

    async def read(self, layer: SpanLayer, index: int, *, patient: bool = False) -> Found:
        """The verified bytes of a span, and where they came from.

        Raises what fetching or verifying raised, and ``Overloaded`` when too much is in flight; a ``patient`` caller
        (whose answer has begun) waits for room instead.
        """
        data = self.peek(layer, index)
        if data is not None:
            return data, Origin.MEMORY
        key = layer.key(index)
        while patient and key not in self._flying and self.flying_bytes > self._flying_limit:
            await asyncio.wait(self._flying.values(), return_when=asyncio.FIRST_COMPLETED)
        return await asyncio.shield(self._join(layer, key))

    def begin(self, layer: SpanLayer, index: int, *, patient: bool) -> asyncio.Future[Found] | None:
        """Begin to read a span; shield the future when awaiting it.

        ``None`` when it should be read later: too much is in flight, and the caller is ``patient``. Otherwise that
        raises ``Overloaded``, before upstream is touched.
        """
        data = self.peek(layer, index)
        if data is not None:
            future: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
            future.set_result((data, Origin.MEMORY))
            return future
        key = layer.key(index)
        if patient and key not in self._flying and self.flying_bytes > self._flying_limit // 2:
            return None
        return self._join(layer, key)

    def _join(self, layer: SpanLayer, key: SpanKey) -> asyncio.Future[Found]:
        self.counts.memory_misses += 1
        future = self._flying.get(key)
        if future is not None:
            self.counts.coalesced += 1
            if key in self._ahead:
                self._use_ahead(key)
            return future
        if self.flying_bytes > self._flying_limit:
            self.counts.shed += 1
            raise Overloaded(
                f"{self.flying_bytes >> 20} MiB are being fetched already; try again shortly",
                retry_after_seconds=1,
            )
        return self._start(layer, key)

    def prefetch(self, layer: SpanLayer, index: int) -> None:
        """Begin to fetch a span that will probably be asked for; does nothing when enough is under way."""
        key = layer.key(index)
        if self._prefetching >= self._prefetch_limit or key in self._flying or key in self.memory:
            return
        if self.flying_bytes > self._flying_limit // 2:
            return  # the rest is for those who wait
        if layer.provisional_memory is not None and key in layer.provisional_memory:
            return
        self._prefetching += 1
        self.counts.prefetched += 1
        self._ahead.add(key)

        def landed(future: asyncio.Future[Found]) -> None:
            self._prefetching -= 1
            if (future.cancelled() or future.exception() is not None) and key in self._ahead:
                self._evicted(key)

        self._start(layer, key).add_done_callback(landed)

    def _use_ahead(self, key: SpanKey) -> None:
        self._ahead.remove(key)
        self.counts.prefetched_used += 1

    def _evicted(self, key: SpanKey) -> None:
        if key in self._ahead:
            self._ahead.remove(key)
            self.counts.prefetched_wasted += 1

    def flying(self, blob: str, index_id: str) -> set[int]:
        """Numbers of the spans of a layer index that are being fetched."""
        return {key.span for key in self._flying if key.blob == blob and key.index_id == index_id}

    async def drop(self) -> int:
        """Forget everything that can be fetched again. Returns the bytes freed."""
        return self.memory.drop() + await self._run(self.disk.drop)

    async def aclose(self) -> None:
        """Stop all fetches."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, layer: SpanLayer, key: SpanKey) -> asyncio.Future[Found]:
        future: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        # Nobody may be left to take the outcome when all readers were cancelled: that is no error.
        future.add_done_callback(lambda done: None if done.cancelled() else done.exception())
        self._flying[key] = future
        self.flying_bytes += layer.table.span(key.span).out_length
        task = asyncio.create_task(self._fill(layer, key, future))
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            # A task that is cancelled before its first step never gets to its finally clause.
            self._landed(layer, key, future)

        task.add_done_callback(ended)
        return future

    def _landed(self, layer: SpanLayer, key: SpanKey, future: asyncio.Future[Found]) -> None:
        if self._flying.get(key) is future:
            del self._flying[key]
            self.flying_bytes -= layer.table.span(key.span).out_length
            if not future.done():
                future.cancel()

    async def _fill(self, layer: SpanLayer, key: SpanKey, future: asyncio.Future[Found]) -> None:
        try:
            span = layer.table.span(key.span)
            if layer.provisional_memory is not None:
                data = await self._fetch_provisional(layer, key.span, span)
                layer.provisional_memory.put(key, data)
                future.set_result((data, Origin.UPSTREAM))
                return
            if layer.local:
                data = await self._fetch(layer, key.span, span)
                self.memory.put(key, data)
                future.set_result((data, Origin.LOCAL))
                return
            if await self._from_disk(key, span, future):
                return
            async with self._locks.hold(key) as waited:
                # Also without having waited: between the look above and the lock, another worker may have done it all.
                if (waited or self.disk.sharers > 1) and await self._from_disk(key, span, future):
                    return
                data = await self._fetch(layer, key.span, span)
                self.memory.put(key, data)
                future.set_result((data, Origin.UPSTREAM))
                # Still under the lock: whoever waits for it finds the span on disk.
                await self._run(self.disk.write, key, data, span.out_sha256)
        except BlockgateError as error:
            self.counts.failures[error.code] = self.counts.failures.get(error.code, 0) + 1
            layer.failed.add(key.span)
            if not future.done():
                future.set_exception(error)
        except BaseException as error:
            if not future.done():
                if isinstance(error, asyncio.CancelledError):
                    future.cancel()
                else:
                    future.set_exception(error)
            raise
        finally:
            self._landed(layer, key, future)

    async def _from_disk(self, key: SpanKey, span: Span, future: asyncio.Future[Found]) -> bool:
        data = await self._run(self.disk.read, key, span.out_sha256)
        if data is None:
            self.counts.disk_misses += 1
            return False
        self.counts.disk_hits += 1
        self.memory.put(key, data)
        future.set_result((data, Origin.DISK))
        return True

    async def _fetch(self, layer: SpanLayer, index: int, span: Span) -> Bytes:
        """One range from the source, decoded and verified; tells the layer how its source is doing."""
        try:
            async with self._fetches:
                fetched = await layer.source.read(span.in_start, span.in_length)
            if not layer.local:
                self.counts.fetches += 1
                self.counts.fetched_bytes += span.in_length
                layer.fetched_bytes += span.in_length
            next_window = None if span.proven else layer.window(index + 1)
            started = time.monotonic()
            work = partial(
                decode,
                span,
                fetched,
                layer.window(index),
                next_window,
                first=index == 0,
                where=layer.where,
            )
            data = await asyncio.get_running_loop().run_in_executor(self._decoders, work)
            self.counts.inflate.observe(time.monotonic() - started)
        except SpanMismatch as error:
            if not layer.local:
                layer.note(error)
                raise
            damaged = IndexDamaged(
                f"{layer.where}: its file in the data folder is damaged; it is being made again"
            )
            layer.note(damaged)
            raise damaged from error
        except (UpstreamError, IntegrityError, IndexDamaged) as error:
            layer.note(error)
            raise
        layer.note(None)
        layer.failed.discard(index)
        return data

    async def _fetch_provisional(self, layer: SpanLayer, index: int, span: Span) -> Bytes:
        """Fetch a span whose checkpoint nobody has proven: its window must be how the spans before it end.

        That costs a second span per random read (more where spans are shorter than a window), while the pass runs; a
        sequential reader has it already.
        """
        if index and layer.windows is not None and index not in layer.confirmed_windows:
            *before, data = await asyncio.gather(
                *(self._provisional(layer, number) for number in _look_behind(layer, index)),
                self._fetch(layer, index, span),
            )
            check_chain(b"".join(before), layer.windows.window(index), layer.where)
        else:
            data = await self._fetch(layer, index, span)
        layer.confirmed_windows.add(index)
        if index == 0 or len(data) >= WINDOW_BYTES:
            layer.confirmed_windows.add(index + 1)
        return data

    async def _provisional(self, layer: SpanLayer, index: int) -> Bytes:
        """A span that is only looked at to check the next one's window."""
        memory = layer.provisional_memory
        held = None if memory is None else memory.get(layer.key(index))
        return held if held is not None else await self._fetch(layer, index, layer.table.span(index))

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: function(*args, **kwargs))


def _look_behind(layer: SpanLayer, index: int) -> list[int]:
    """Numbers of the spans that make up the window of checkpoint ``index``, in order."""
    found: list[int] = []
    length = 0
    while index and length < WINDOW_BYTES:
        index -= 1
        span = layer.table.span(index)
        if span.out_length:
            found.append(index)
            length += span.out_length
    return found[::-1]
