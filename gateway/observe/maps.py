"""The maps of devices, of all workers: where each span is, and how often it was read.

What this process holds is copied on the event loop, which takes as long as copying some lists, and sorted out on a thread.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gateway.devices.device import Device
from gateway.layers.key import LayerKey, SpanKey
from gateway.observe import spanmap
from gateway.observe.spanmap import Cell, Held, LayerSpans
from gateway.observe.workers import Workers
from gateway.services import Services
from gateway.spans.layer import Layer
from gateway.spans.states import SpanState
from gateway.spans.store import SpanStore

# So many devices are told to the other workers at a time, those first that were read since they were told last.
_AT_ONCE = 32

_Told = tuple[int, int, int]


class Maps:
    """Of one worker. Lives on its event loop."""

    def __init__(self, services: Services, workers: Workers) -> None:
        self._services = services
        self._workers = workers
        self._told: dict[str, _Told] = {}

    async def cells(self, device: Device) -> list[Cell]:
        """The cells of a device's address space. Raises what opening its indexes raises."""
        for layer in _layers(device):
            await layer.open()
        look = _Look.at(self._services.store)
        return await asyncio.to_thread(self._cells, device, look)

    async def tell(self) -> None:
        """Tell the other workers about the spans of devices of which something may have changed, a bounded number."""
        store = self._services.store
        moved = store.counts.fetches + store.memory.evicted + store.admission.fetching_bytes
        opened = {device.name: device for device in self._services.shelf.opened()}
        self._told = {name: told for name, told in self._told.items() if name in opened}
        found = []
        for name, device in opened.items():
            told, now = self._told.get(name, (0, 0, -1)), (id(device), sum(device.served.values()), moved)
            if told != now:
                found.append((told[:2] == now[:2], name, now))
        chosen = sorted(found, key=lambda each: each[0])[:_AT_ONCE]
        devices = [opened[name] for _, name, _ in chosen]
        done = await asyncio.to_thread(self._tell, devices, _Look.at(store))
        for _, name, now in chosen:
            # Put at the end, so that the next ones come first where there are too many.
            self._told.pop(name, None)
            if name in done:
                self._told[name] = now

    def _tell(self, devices: Sequence[Device], look: _Look) -> set[str]:
        """Returns the names of those that were told. On a thread."""
        places, done = look.sort(), set()
        for device in devices:
            try:
                content = spanmap.dump([places.of(layer) for layer in _layers(device)])
                self._workers.publish_reads(_file_name(device), content)
            except OSError:
                continue
            done.add(device.name)
        return done

    def _cells(self, device: Device, look: _Look) -> list[Cell]:
        places, layers = look.sort(), list(_layers(device))
        mine = [places.of(layer) for layer in layers]
        counts = [len(spans.reads) for spans in mine]
        for content, alive in self._workers.others_reads(_file_name(device)):
            for own, other in zip(mine, spanmap.load(content, counts) or [], strict=False):
                own.add(other, alive=alive)
        for layer, spans in zip(layers, mine, strict=True):
            for tier in layer.tiers[1:]:
                _mark(spans, tier.held(layer.key), Held.DISK)
        rest = iter(mine)
        return spanmap.cells(
            device.segments,
            [None if layer is None or layer.index is None else layer.index.table for layer in device.layers],
            [None if layer is None else next(rest) for layer in device.layers],
        )


@dataclass(frozen=True)
class _Look:
    """What a process held at one moment, as it lay there."""

    memory: list[SpanKey]
    fetching: list[SpanKey]
    states: list[tuple[SpanKey, SpanState]]

    @classmethod
    def at(cls, store: SpanStore) -> _Look:
        """Copy it. On the event loop."""
        memory = store.memory.keys() + store.unproven.keys()
        return cls(memory, store.flights.under_way(), store.states())

    def sort(self) -> _Places:
        """By layer. On any thread."""
        return _Places(
            _by_layer(self.memory),
            _by_layer(self.fetching),
            _by_layer(key for key, state in self.states if state is SpanState.FAILED),
        )


@dataclass(frozen=True)
class _Places:
    memory: dict[LayerKey, set[int]]
    fetching: dict[LayerKey, set[int]]
    failed: dict[LayerKey, set[int]]

    def of(self, layer: Layer) -> LayerSpans:
        """Reads and state of each span in this process; the disk tier is left out, it belongs to all."""
        reads = layer.reads[:]
        spans = LayerSpans(reads, bytearray(len(reads)))
        in_memory = self.memory.get(layer.key, set())
        _mark(spans, in_memory, Held.MEMORY)
        _mark(spans, self.fetching.get(layer.key, set()) - in_memory, Held.FETCHING)
        _mark(spans, self.failed.get(layer.key, set()), Held.FAILED)
        return spans


def _mark(spans: LayerSpans, numbers: Iterable[int], flag: Held) -> None:
    for number in numbers:
        if number < len(spans.held):
            spans.held[number] |= flag


def _by_layer(keys: Iterable[SpanKey]) -> dict[LayerKey, set[int]]:
    found: dict[LayerKey, set[int]] = {}
    for key in keys:
        found.setdefault(LayerKey(key.blob, key.cut), set()).add(key.span)
    return found


def _layers(device: Device) -> Iterator[Layer]:
    """The layers of a device's segments; zeros have none."""
    return (layer for layer in device.layers if layer is not None)


def _file_name(device: Device) -> str:
    return hashlib.sha256(f"{device.name} {device.etag}".encode()).hexdigest()[:24]
