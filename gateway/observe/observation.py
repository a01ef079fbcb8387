"""One worker's watch over itself, and the view over all of them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import structlog

from gateway.devices.device import Device
from gateway.errors import StorageError
from gateway.logs import recent_events
from gateway.metrics import REQUEST_SECONDS, REQUESTS, SECONDS_BOUNDS, Histogram, Numbers
from gateway.observe import collect, spanmap
from gateway.observe.nodes import NodeRecord, Nodes
from gateway.observe.requests import DATA_ROUTE, RequestCounts
from gateway.observe.spanmap import Cell, Held, LayerSpans
from gateway.observe.timeline import Timeline
from gateway.observe.workers import Event, Snapshot, Workers
from gateway.recipes.records import DeviceSummary, Failure, Progress
from gateway.recipes.states import State
from gateway.services import Services
from gateway.spans.tier import Origin

_BEAT_SECONDS = 1.0
_READS_BEATS = 2
_LAG_SECONDS = 0.25
_MEASURE_SECONDS = 15.0
_SERVER_ERROR = "5"
_SHOWN_DEVICES = 500

# Columns of the timeline: requests and errors of the data route, bytes by origin, latency buckets.
REQUESTS_COLUMN, ERRORS_COLUMN, ORIGIN_COLUMN = 0, 1, 2
BUCKETS_COLUMN = ORIGIN_COLUMN + len(Origin)
_WIDTH = BUCKETS_COLUMN + len(SECONDS_BOUNDS) + 1

log = structlog.get_logger(__name__)


@dataclass
class Overview:
    """All workers at one moment."""

    now: float
    """Unix time."""
    numbers: Numbers
    timeline: Timeline
    workers: list[Snapshot]
    """Of every worker, this one first; those that ended are among them."""
    events: list[Event]
    """Latest first."""
    counts: dict[State, int]
    devices: list[DeviceSummary] | None
    """The first of them by name; ``None`` when the catalog does not answer."""
    degraded: dict[str, Failure]
    nodes: list[NodeRecord]


class Observation:
    """Started with the services of a worker, closed before them."""

    def __init__(self, services: Services, requests: RequestCounts) -> None:
        run = services.settings.data_dir / "run"
        self.nodes = Nodes(run / "nodes")
        self._services = services
        self._requests = requests
        self._workers = Workers(run, shared=services.settings.workers > 1)
        self._lag = Histogram()
        self._timeline = Timeline(_WIDTH)
        self._measured_at = time.monotonic()
        self._published: dict[str, tuple[int, ...]] = {}
        self._elsewhere: dict[str, Failure] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to watch."""
        await asyncio.to_thread(self._workers.fold)
        self._note()
        self._tasks = [asyncio.create_task(self._beat()), asyncio.create_task(self._watch_loop())]

    async def aclose(self) -> None:
        """Stop, and leave the last numbers for those who stay."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._publish()

    def trouble(self) -> dict[str, Failure]:
        """Why bytes of devices cannot be had now, by name, as far as any worker has said."""
        return {**self._elsewhere, **self._services.shelf.trouble()}

    async def numbers(self) -> Numbers:
        """All metrics, of all workers."""
        return (await self._collect()).numbers

    async def overview(self) -> Overview:
        """Everything, of all workers."""
        found = await self._collect()
        with contextlib.suppress(StorageError):
            page = await self._services.catalog.page(limit=_SHOWN_DEVICES)
            found.devices = list(page.devices)
        return found

    async def _collect(self) -> Overview:
        mine = await self._publish()
        others = await asyncio.to_thread(self._workers.others)
        numbers = Numbers.load(mine.numbers)
        timeline = Timeline(_WIDTH)
        for worker in (mine, *others):
            timeline.absorb(worker.rows)
        for worker in others:
            numbers.absorb(Numbers.load(worker.numbers), alive=worker.alive)
        counts: dict[State, int] = {}
        under_way: list[Progress] = []
        with contextlib.suppress(StorageError):
            counts = await self._services.catalog.counts()
            unfinished = await self._services.catalog.unfinished()
            under_way = [record.progress for record in unfinished if record.progress is not None]
        nodes = await asyncio.to_thread(self.nodes.all)
        await self._measure_disk()
        self._elsewhere = _reported(others)
        degraded = self.trouble()
        collect.shared_numbers(
            self._services, numbers, counts, under_way, degraded=len(degraded), nodes=len(nodes)
        )
        events = sorted(
            (event for worker in (mine, *others) for event in worker.events),
            key=lambda event: event.at,
            reverse=True,
        )
        return Overview(
            time.time(), numbers, timeline, [mine, *others], events[:50], counts, None, degraded, nodes
        )

    async def map(self, device: Device) -> list[Cell]:
        """The cells of a device's address space."""
        for layer in collect.layers_of(device):
            await layer.open()
        mine = collect.device_spans(self._services, device)
        return await asyncio.to_thread(self._map, device, mine)

    def _map(self, device: Device, mine: list[LayerSpans]) -> list[Cell]:
        layers = list(collect.layers_of(device))
        counts = [len(layer.reads) for layer in layers]
        for content, alive in self._workers.others_reads(_file_name(device)):
            for own, other in zip(mine, spanmap.load(content, counts) or [], strict=False):
                own.add(other, alive=alive)
        for layer, spans in zip(layers, mine, strict=True):
            for tier in layer.tiers[1:]:
                for span in tier.held(layer.key):
                    if span < len(spans.held):
                        spans.held[span] |= Held.DISK
        rest = iter(mine)
        return spanmap.cells(
            device.segments,
            [None if layer is None or layer.index is None else layer.index.table for layer in device.layers],
            [None if layer is None else next(rest) for layer in device.layers],
        )

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            numbers=collect.worker_numbers(self._services, self._requests, self._lag).dump(),
            rows=list(self._timeline.rows.items()),
            devices={device.name: collect.device_numbers(device) for device in self._services.shelf.opened()},
            events=[Event.model_validate(event) for event in recent_events()],
        )

    def _note(self) -> None:
        self._timeline.note(time.time(), list(self._columns()))

    def _columns(self) -> Iterator[int]:
        requests = Numbers()
        self._requests.add_to(requests)
        data = {
            labels: int(count)
            for labels, count in requests.values.get(REQUESTS.name, {}).items()
            if labels[1] == DATA_ROUTE
        }
        yield sum(data.values())
        yield (
            sum(count for labels, count in data.items() if labels[2].startswith(_SERVER_ERROR))
            + self._requests.cut_short
        )
        yield from collect.served(self._services).values()
        histograms = requests.histograms.get(REQUEST_SECONDS.name, {})
        yield from histograms.get((DATA_ROUTE,), Histogram()).buckets

    async def _publish(self) -> Snapshot:
        self._note()
        snapshot = self._snapshot()
        try:
            await asyncio.to_thread(self._workers.publish, snapshot)
        except OSError as error:
            log.debug("numbers are not published", error=error.strerror)
        return snapshot

    async def _beat(self) -> None:
        beats = 0
        while True:
            await asyncio.sleep(_BEAT_SECONDS)
            beats += 1
            if not self._workers.shared:
                self._note()
                continue
            await self._publish()
            if beats % _READS_BEATS == 0:
                await self._publish_reads()

    async def _publish_reads(self) -> None:
        """Tell the other workers about the spans of those devices of which something has changed."""
        store = self._services.store
        for device in self._services.shelf.opened():
            state = (
                id(device),
                *device.served.values(),
                store.counts.fetches,
                store.memory.evicted,
                store.admission.fetching_bytes,
            )
            if self._published.get(device.name) != state:
                content = spanmap.dump(collect.device_spans(self._services, device))
                try:
                    await asyncio.to_thread(self._workers.publish_reads, _file_name(device), content)
                except OSError:
                    continue
                self._published[device.name] = state

    async def _watch_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LAG_SECONDS
            await asyncio.sleep(_LAG_SECONDS)
            self._lag.observe(max(0.0, loop.time() - due))

    async def _measure_disk(self) -> None:
        """Other workers write to the disk tier too: look how full it is, but not for each scrape."""
        if self._workers.shared and time.monotonic() - self._measured_at > _MEASURE_SECONDS:
            self._measured_at = time.monotonic()
            await asyncio.to_thread(self._services.disk.measure)


def _reported(others: list[Snapshot]) -> dict[str, Failure]:
    """What other workers that are alive say of devices whose bytes they could not have."""
    return {
        name: Failure(*numbers.error)
        for worker in others
        if worker.alive
        for name, numbers in worker.devices.items()
        if numbers.error is not None
    }


def _file_name(device: Device) -> str:
    return hashlib.sha256(f"{device.name} {device.etag}".encode()).hexdigest()[:24]
