"""Open devices by name, each opened once and dropped when the catalog changes it."""

from __future__ import annotations

import asyncio
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import structlog

from gateway.artifacts import Artifacts, LocalBlob
from gateway.devices import provisional
from gateway.devices.catalog import Catalog
from gateway.devices.device import Device
from gateway.devices.images import ImageAccess, Sources
from gateway.devices.records import SERVING, DeviceRecord, Failure
from gateway.devices.segments import Segment
from gateway.errors import (
    BlockgateError,
    DeviceFailed,
    DeviceNotReady,
    DeviceQuarantined,
    IndexDamaged,
    RegistryUnreachable,
    StorageError,
)
from gateway.ingest.folder import LayerFolders
from gateway.spans.index import LayerIndex
from gateway.spans.layer import SpanLayer
from gateway.spans.memory import MemoryTier
from gateway.spans.store import Origin, SpanStore

_PROVISIONAL_MEMORY_BYTES = 64 << 20

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Open:
    device: Device
    record: DeviceRecord
    generation: int
    indexes: list[LayerIndex]


class Shelf:
    """Gives out devices that can be read. One event loop."""

    def __init__(
        self,
        catalog: Catalog,
        store: SpanStore,
        folders: LayerFolders,
        artifacts: Artifacts,
        sources: Sources,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._folders = folders
        self._artifacts = artifacts
        self._sources = sources
        self._open: dict[str, _Open] = {}
        self._opening: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.on_reindex: Callable[[DeviceRecord], None] = lambda _record: None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: list[dict[Origin, int]] = []
        self._closed: Counter[Origin] = Counter()

    def peek(self, name: str) -> Device | None:
        """The device if it is open and nothing has changed; never waits."""
        held = self._open.get(name)
        if held is not None and held.generation == self._catalog.generation.value():
            return held.device
        return None

    async def get(self, name: str) -> Device:
        """The device, opened if need be.

        Raises ``DeviceNotFound``, ``DeviceNotReady``, ``DeviceFailed``, ``DeviceQuarantined`` or ``StorageError``.
        """
        device = self.peek(name)
        if device is not None:
            return device
        async with self._opening.setdefault(name, asyncio.Lock()):
            generation = self._catalog.generation.value()
            try:
                record = await self._catalog.get(name)
                _check_serving(record)
            except BlockgateError:
                self._drop(name)
                raise
            held = self._open.get(name)
            if held is not None and _same_bytes(held.record, record) and all(i.current for i in held.indexes):
                held.generation, held.record = generation, record
                _share_health(record, held.device.layers)
                return held.device
            self._drop(name)
            try:
                device, indexes = await self._make(record)
            except IndexDamaged:
                await self._reindex(record)
                raise
            self._open[name] = _Open(device, record, generation, indexes)
            return device

    def opened(self) -> list[Device]:
        """All devices that are open in this process."""
        return [held.device for held in self._open.values()]

    def served(self) -> Counter[Origin]:
        """Bytes that all devices gave out since the start, those no longer open included."""
        total = Counter(self._closed)
        for served in (*self._closing, *(held.device.served for held in self._open.values())):
            total.update(served)
        return total

    async def aclose(self) -> None:
        """Close everything."""
        for name in list(self._open):
            self._drop(name)
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _make(self, record: DeviceRecord) -> tuple[Device, list[LayerIndex]]:
        assert record.image is not None  # noqa: S101 - a device that serves has one
        access = ImageAccess(self._sources, record.spec.source)
        descriptors = {
            layer.descriptor.digest: layer.descriptor for layer in access.recall(record.image).layers
        }
        layers: list[SpanLayer | None] = []
        indexes: list[LayerIndex] = []
        for segment in record.segments:
            if segment.kind == "zero" or segment.digest is None:
                layers.append(None)
                continue
            index, proven = await asyncio.to_thread(self._index, segment, record)
            indexes.append(index)
            local = segment.kind == "metadata"
            source = (
                LocalBlob(self._artifacts.find(segment.digest))
                if local
                else access.blob(descriptors[segment.digest])
            )
            layer = SpanLayer(
                segment.digest,
                index.index_id,
                index.table,
                index.windows,
                source,
                local=local,
                provisional_memory=None if proven else MemoryTier(_PROVISIONAL_MEMORY_BYTES),
            )
            layer.on_health = partial(self._health, record, layers, layer)
            layers.append(layer)
        _share_health(record, layers)
        return Device(record.name, record.segments, layers, self._store), indexes

    def _index(self, segment: Segment, record: DeviceRecord) -> tuple[LayerIndex, bool]:
        assert segment.digest is not None  # noqa: S101 - not a zero segment
        assert segment.index_id is not None  # noqa: S101
        try:
            return self._open_index(segment.digest, segment.index_id, record)
        except IndexDamaged as error:
            self._folders.discard(segment.digest, segment.index_id)
            raise IndexDamaged(f"{error.detail}; it is being made again", retry_after_seconds=2) from error

    def _open_index(self, digest: str, index_id: str, record: DeviceRecord) -> tuple[LayerIndex, bool]:
        index = LayerIndex.open(self._folders.path(digest, index_id))
        if index is not None:
            return index, True
        if record.verification == "verifying" and record.spec.zinfo is not None:
            index = LayerIndex.open(self._folders.path(digest, provisional.name_of(record.spec.zinfo)))
            if index is not None:
                return index, False
        raise IndexDamaged(f"the index of layer {digest} is missing from the data folder")

    def _drop(self, name: str) -> None:
        held = self._open.pop(name, None)
        if held is not None:
            # Reads that are under way finish: a blob closes when nobody reads it. They still count, so the sum is taken
            # when the last of them has let go of the device.
            served = held.device.served
            self._closing.append(served)
            weakref.finalize(held.device, self._settle, served).atexit = False
            self._spawn(held.device.aclose())

    def _settle(self, served: dict[Origin, int]) -> None:
        self._closing = [other for other in self._closing if other is not served]
        self._closed.update(served)

    def _health(
        self,
        record: DeviceRecord,
        layers: list[SpanLayer | None],
        layer: SpanLayer,
        error: BlockgateError | None,
    ) -> None:
        """A layer's source began or ceased to fail: say so in the catalog, if it is more than a passing trouble."""
        if isinstance(error, IndexDamaged):
            self._folders.discard(layer.blob, layer.index_id)
            self._spawn(self._reindex(record))
            return
        if error is not None and error.retryable:
            return
        if error is None and any(one and one.error and not one.error.retryable for one in layers):
            return  # another layer of the device fails still
        self._spawn(self._set_health(record, error))

    async def _set_health(self, record: DeviceRecord, error: BlockgateError | None) -> None:
        failure = None if error is None else Failure(error.code, error.detail)
        before, after = ("degraded", "ready") if error is None else ("ready", "degraded")
        try:
            if await self._catalog.update(
                record, only_from=frozenset({before}), state=after, failure=failure
            ):
                log.warning("health", device=record.name, state=after, code=failure.code if failure else None)
        except StorageError as trouble:
            log.warning("catalog", device=record.name, error=trouble.detail)

    async def _reindex(self, record: DeviceRecord) -> None:
        """What lies in the data folder is not what was written there: register the device once more."""
        log.error("local index damaged", device=record.name)
        try:
            changed = await self._catalog.update(
                record, only_from=SERVING, state="indexing", progress=None, failure=None
            )
        except StorageError as trouble:
            log.warning("catalog", device=record.name, error=trouble.detail)
            return
        if changed:
            self.on_reindex(record)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _share_health(record: DeviceRecord, layers: Sequence[SpanLayer | None]) -> None:
    """Take over what the catalog says of the sources: another process found it out, or this one before it was restarted.

    Where it says degraded and nothing fails here, the next success is news; where it says ready, the next failure is.
    """
    remote = [layer for layer in layers if layer is not None and not layer.local]
    if record.state != "degraded":
        for layer in remote:
            if layer.error is not None and not layer.error.retryable:
                layer.error = None
    elif not any(layer.error for layer in remote):
        for layer in remote:
            layer.error = RegistryUnreachable(record.failure.detail if record.failure else "not known")


def _check_serving(record: DeviceRecord) -> None:
    if record.state in SERVING:
        return
    reason = record.failure.detail if record.failure else "no reason was recorded"
    if record.state == "indexing":
        raise DeviceNotReady(f"device {record.name!r} is still being indexed", retry_after_seconds=2)
    if record.state == "failed":
        raise DeviceFailed(f"registration of device {record.name!r} failed: {reason}")
    raise DeviceQuarantined(f"device {record.name!r} is quarantined: {reason}")


def _same_bytes(one: DeviceRecord, other: DeviceRecord) -> bool:
    return one.uid == other.uid and one.segments == other.segments and one.verification == other.verification
