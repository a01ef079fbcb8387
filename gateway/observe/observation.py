"""One worker's watch over itself, and the view over all of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import structlog

from gateway.devices.device import Device
from gateway.errors import StorageError
from gateway.logs import recent_events
from gateway.metrics import REQUEST_SECONDS, REQUESTS, SECONDS_BOUNDS, Histogram, Numbers
from gateway.observe import collect
from gateway.observe.maps import Maps
from gateway.observe.nodes import NodeRecord, Nodes
from gateway.observe.requests import DATA_ROUTE, RequestCounts
from gateway.observe.spanmap import Cell
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
_SHOWN_DEVICES = 100
_NAMED_DEVICES = 3
_SHOWN_EVENTS = 50

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
    quarantined: list[str]
    """The first names of those."""
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
        self._maps = Maps(services, self._workers)
        self._publishing = asyncio.Lock()
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
        found, catalog = await self._collect(), self._services.catalog
        with contextlib.suppress(StorageError):
            page = await catalog.page(limit=_SHOWN_DEVICES)
            found.devices = list(page.devices)
            if found.counts.get(State.QUARANTINED):
                page = await catalog.page(limit=_NAMED_DEVICES, state=State.QUARANTINED)
                found.quarantined = [device.name for device in page.devices]
        return found

    async def _collect(self) -> Overview:
        mine = await self._publish()
        workers = await asyncio.to_thread(lambda: [mine, *self._workers.others()])
        numbers, timeline, events = await asyncio.to_thread(_together, workers)
        counts: dict[State, int] = {}
        under_way: list[Progress] = []
        with contextlib.suppress(StorageError):
            counts = await self._services.catalog.counts()
            unfinished = await self._services.catalog.unfinished()
            under_way = [record.progress for record in unfinished if record.progress is not None]
        nodes = await asyncio.to_thread(self.nodes.all)
        await self._measure_disk()
        self._elsewhere = _reported(workers[1:])
        degraded = self.trouble()
        collect.shared_numbers(
            self._services, numbers, counts, under_way, degraded=len(degraded), nodes=len(nodes)
        )
        return Overview(time.time(), numbers, timeline, workers, events, counts, None, [], degraded, nodes)

    async def map(self, device: Device) -> list[Cell]:
        """The cells of a device's address space."""
        return await self._maps.cells(device)

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
        # One after the other: an older snapshot must not take a newer one's place.
        async with self._publishing:
            return await self._publish_alone()

    async def _publish_alone(self) -> Snapshot:
        self._note()
        services = self._services
        numbers = collect.worker_numbers(services, self._requests, self._lag)
        rows = list(self._timeline.rows.items())
        opened, trouble = services.shelf.opened(), services.shelf.trouble()

        def work() -> Snapshot:
            collect.process_numbers(numbers)
            snapshot = Snapshot(
                numbers=numbers.dump(),
                rows=rows,
                devices=collect.device_numbers(opened, trouble),
                events=[Event.model_validate(event) for event in recent_events()],
            )
            try:
                self._workers.publish(snapshot)
            except OSError as error:
                log.debug("numbers are not published", error=error.strerror)
            return snapshot

        return await asyncio.to_thread(work)

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
                await self._maps.tell()

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


def _together(workers: list[Snapshot]) -> tuple[Numbers, Timeline, list[Event]]:
    """What all workers counted, the first of which lives; and the latest of what happened to any."""
    numbers, timeline = Numbers(), Timeline(_WIDTH)
    for worker in workers:
        numbers.absorb(Numbers.load(worker.numbers), alive=worker.alive)
        timeline.absorb(worker.rows)
    events = (event for worker in workers for event in worker.events)
    return numbers, timeline, sorted(events, key=lambda event: event.at, reverse=True)[:_SHOWN_EVENTS]


def _reported(others: list[Snapshot]) -> dict[str, Failure]:
    """What other workers that are alive say of devices whose bytes they could not have."""
    return {
        name: Failure(*numbers.error)
        for worker in others
        if worker.alive
        for name, numbers in worker.devices.items()
        if numbers.error is not None
    }
