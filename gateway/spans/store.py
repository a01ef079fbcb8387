"""The span store: one fetch per span, verified before anybody sees it, kept in the tiers of its layer.

The way of a miss: the flight of the span, if there is one (one fetch per span in this process) → the layer's slower
tiers → their lock (one fetch among all who share them) → those tiers again if somebody was first → one range from the
source, decoded and checked as the layer's proof asks → memory → readers → the slower tiers. Which tiers there are,
and what is checked, the layer says; the store knows no kinds of layers. Readers wait on a flight, never on the task
that fills it: cancelling one, the first included, disturbs nobody.

A read that meets a damaged or missing index has it mended (``Layer.heal`` waits a bounded time) and is tried once more.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from blockgate.reader import Bytes
from gateway.errors import (
    ArtifactDamaged,
    BlockgateError,
    IndexAbsent,
    IndexDamaged,
    Overloaded,
    SpanMismatch,
)
from gateway.layers.index import LayerIndex
from gateway.layers.key import SpanKey
from gateway.layers.verify import decode_span
from gateway.metrics import Histogram
from gateway.spans.flights import Admission, Flight, Flights
from gateway.spans.layer import Layer
from gateway.spans.memory import MemoryTier
from gateway.spans.states import SpanEvent, SpanState, after
from gateway.spans.tier import Origin, Tier

# A reader whose answer has begun waits so long for room before it is cut short.
_PATIENCE_SECONDS = 10.0
_ROOM_POLL_SECONDS = 0.02
_MAX_REMEMBERED = 1 << 16
_MENDABLE = (IndexDamaged, IndexAbsent, ArtifactDamaged)


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
    """Reads spans of any layer. Lives on one event loop; decoding goes to ``decoders``, best one thread per processor."""

    def __init__(
        self,
        memory: MemoryTier,
        shared: tuple[Tier, ...],
        admission: Admission,
        decoders: ThreadPoolExecutor,
        *,
        concurrent_fetches: int = 32,
        concurrent_prefetches: int = 16,
    ) -> None:
        self.memory = memory
        self.shared = shared
        """The tiers below memory, for layers whose spans others may find."""
        self.admission = admission
        self.counts = StoreCounts()
        self.flights = Flights(admission)
        self._decoders = decoders
        self._fetches = asyncio.Semaphore(concurrent_fetches)
        self._prefetches = 0
        self._prefetch_limit = concurrent_prefetches
        self._states: dict[SpanKey, SpanState] = {}
        self._tasks: dict[asyncio.Task[None], Flight] = {}
        memory.on_evict = lambda key: self._note(key, SpanEvent.EVICT)

    def peek(self, layer: Layer, number: int) -> Bytes | None:
        """The span if it is in memory: no waiting, no thread."""
        key = layer.span_key(number)
        data = layer.memory.peek(key)
        if data is not None:
            self.counts.memory_hits += 1
            if key in self._states:
                self._note(key, SpanEvent.WANT)
        return data

    def begin(self, layer: Layer, number: int, *, ahead: bool) -> Flight | None:
        """Begin to read a span of an open layer; the flight is held, release it.

        ``None`` when it is not needed next (``ahead``) and room is scarce. Raises ``Overloaded`` where there is no room for
        what is needed next, before upstream is touched.
        """
        key = layer.span_key(number)
        flight = self.flights.find(key)
        if flight is not None:
            if flight.future.done():
                self.counts.memory_hits += 1
            else:
                self.counts.memory_misses += 1
                self.counts.coalesced += 1
                self._note(key, SpanEvent.WANT)
            return flight.hold()
        length = _length(layer, number)
        data = self.peek(layer, number)
        if data is not None:
            flight = self.flights.begin(key, length).hold()
            flight.future.set_result((data, Origin.MEMORY))
            return flight
        if ahead and self.admission.scarce:
            return None
        self.counts.memory_misses += 1
        if self.admission.full:
            self.counts.shed += 1
            raise Overloaded(
                f"{self.admission.used_bytes >> 20} MiB are being fetched and sent already; try again shortly",
                retry_after_seconds=1,
            )
        self._note(key, SpanEvent.EVICT)
        self._note(key, SpanEvent.WANT)
        return self._start(layer, number, self.flights.begin(key, length).hold())

    async def wait_for_room(self) -> None:
        """Until something may begin again. Raises ``Overloaded`` when that takes too long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PATIENCE_SECONDS
        while self.admission.full:
            left = deadline - loop.time()
            if left <= 0:
                self.counts.shed += 1
                raise Overloaded("no room for more bytes in flight; try again shortly", retry_after_seconds=1)
            # What clients take off their connections makes room too, and nobody tells of that.
            await asyncio.sleep(_ROOM_POLL_SECONDS)

    def prefetch(self, layer: Layer, number: int) -> None:
        """Begin to fetch a span that will probably be asked for; does nothing when enough is under way."""
        key = layer.span_key(number)
        if (
            self._prefetches >= self._prefetch_limit
            or self.admission.scarce
            or key in layer.memory
            or self.flights.find(key) is not None
        ):
            return
        self._prefetches += 1
        self.counts.prefetched += 1
        self._note(key, SpanEvent.EVICT)
        self._note(key, SpanEvent.EXPECT)
        flight = self._start(layer, number, self.flights.begin(key, _length(layer, number)))

        def landed(_: object) -> None:
            self._prefetches -= 1

        flight.future.add_done_callback(landed)

    def states(self) -> list[tuple[SpanKey, SpanState]]:
        """How spans stand of which there is something to remember: a copy."""
        return list(self._states.items())

    async def drop(self) -> int:
        """Forget everything that can be fetched again, what is just being written included. Returns the bytes freed."""
        writing = [task for task, flight in self._tasks.items() if flight.future.done()]
        if writing:
            await asyncio.wait(writing)
        # The farthest first: what is read meanwhile would bring back what has been dropped nearer.
        return sum([await tier.drop() for tier in (*reversed(self.shared), self.memory)])

    async def aclose(self) -> None:
        """Stop all fetches."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _note(self, key: SpanKey, event: SpanEvent) -> None:
        before = self._states.get(key)
        now = after(before, event)
        if now is before:
            return
        if before in (SpanState.AHEAD, SpanState.UNUSED) and event is SpanEvent.WANT:
            self.counts.prefetched_used += 1
        elif (before is SpanState.UNUSED and event is SpanEvent.EVICT) or (
            before is SpanState.AHEAD and event is SpanEvent.FAIL
        ):
            self.counts.prefetched_wasted += 1
        if now is None:
            del self._states[key]
            return
        if len(self._states) >= _MAX_REMEMBERED and before is None:
            self._states.pop(next(iter(self._states)))
        self._states[key] = now

    def _start(self, layer: Layer, number: int, flight: Flight) -> Flight:
        task = asyncio.create_task(self._fill(layer, number, flight))
        self._tasks[task] = flight

        def ended(task: asyncio.Task[None]) -> None:
            del self._tasks[task]
            # A task that is cancelled before its first step never gets to its own clauses.
            if not flight.future.done():
                flight.future.cancel()
            self.flights.settle(flight)

        task.add_done_callback(ended)
        return flight

    async def _fill(self, layer: Layer, number: int, flight: Flight) -> None:
        try:
            index = await layer.open()
            try:
                await self._obtain(layer, index, number, flight)
            except _MENDABLE as error:
                await self._obtain(layer, await layer.heal(index, error), number, flight)
        except BlockgateError as error:
            layer.note(error)
            self.counts.failures[error.code] = self.counts.failures.get(error.code, 0) + 1
            self._fail(flight, error)
        except Exception as error:
            self._fail(flight, error)
            raise

    def _fail(self, flight: Flight, error: Exception) -> None:
        if not flight.future.done():
            self._note(flight.key, SpanEvent.FAIL)
            flight.future.set_exception(error)
            self.flights.settle(flight)

    def _land(self, layer: Layer, flight: Flight, data: Bytes, origin: Origin) -> None:
        layer.memory.keep(flight.key, data)
        flight.future.set_result((data, origin))
        self._note(flight.key, SpanEvent.LAND)
        if flight.key not in layer.memory:
            self._note(flight.key, SpanEvent.EVICT)  # it is larger than what memory may hold
        self.flights.settle(flight)

    async def _obtain(self, layer: Layer, index: LayerIndex, number: int, flight: Flight) -> None:
        """Land the flight with the span from the nearest place that has it, and keep it in all that are nearer."""
        key, sha256 = flight.key, index.table.span(number).out_sha256
        slower = layer.tiers[1:]
        if await self._from_tiers(layer, slower, flight, sha256):
            return
        async with layer.tiers[-1].alone(key) as look_again:
            if look_again and await self._from_tiers(layer, slower, flight, sha256):
                return
            data = await self._fetch(layer, index, number)
            self._land(layer, flight, data, layer.origin)
            # Still alone: whoever waits for that finds the span there.
            for tier in slower:
                await tier.put(key, data, sha256)

    async def _from_tiers(self, layer: Layer, tiers: tuple[Tier, ...], flight: Flight, sha256: bytes) -> bool:
        for number, tier in enumerate(tiers):
            data = await tier.get(flight.key, sha256)
            if data is not None:
                self.counts.disk_hits += 1
                self._land(layer, flight, data, tier.origin)
                for nearer in tiers[:number]:
                    await nearer.put(flight.key, data, sha256)
                return True
            self.counts.disk_misses += 1
        return False

    async def _fetch(self, layer: Layer, index: LayerIndex, number: int) -> Bytes:
        """The span from the layer's source, checked as its proof asks."""

        async def fetch(wanted: int) -> Bytes:
            held = None if wanted == number else layer.memory.peek(layer.span_key(wanted))
            return held if held is not None else await self._fetch_one(layer, index, wanted)

        data = await layer.proof.read(index, number, fetch)
        layer.note(None)
        return data

    async def _fetch_one(self, layer: Layer, index: LayerIndex, number: int) -> Bytes:
        """One range, decoded and checked as far as that is possible for it alone."""
        span = index.table.span(number)
        async with self._fetches:
            fetched = await layer.source.read(span.in_start, span.in_length)
        if layer.origin is Origin.UPSTREAM:
            self.counts.fetches += 1
            self.counts.fetched_bytes += span.in_length
            layer.fetched_bytes += span.in_length

        def decode() -> Bytes:
            window, following = index.window(number), index.next_window(number)
            return decode_span(
                index.codec, span, fetched, window, following, first=number == 0, where=layer.where
            )

        started = time.monotonic()
        try:
            data = await asyncio.get_running_loop().run_in_executor(self._decoders, decode)
        except SpanMismatch as error:
            if layer.origin is Origin.UPSTREAM:
                raise
            raise ArtifactDamaged(f"{layer.where}: its file in the data folder is damaged") from error
        self.counts.inflate.observe(time.monotonic() - started)
        return data


def _length(layer: Layer, number: int) -> int:
    """Decoded bytes of a span of an open layer."""
    assert layer.index is not None  # noqa: S101 - its spans are known
    start, stop = layer.index.table.bounds(number)
    return stop - start
