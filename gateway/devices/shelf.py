"""Open devices, each opened once in a process and dropped when the catalog changes it or nobody reads it.

Opening takes one row of the catalog and touches no file. A device is found by its name or by its content. Every
change of the catalog moves a counter in shared memory: as long as it stands still, a device that is open needs no
query; when it moves, the feed says which devices are concerned, and the others stay. While the catalog does not
answer, what is open is served as it is.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakValueDictionary

import structlog

from gateway.artifacts import Artifacts
from gateway.catalog.catalog import Catalog, answers_to
from gateway.devices.device import Device
from gateway.devices.images import ImageAccess, Sources
from gateway.devices.plan import unproven
from gateway.errors import (
    ArtifactDamaged,
    BlockgateError,
    DeviceFailed,
    DeviceNotReady,
    DeviceQuarantined,
    IndexAbsent,
    IndexBeingMade,
    IndexDamaged,
    NewerFormat,
    StorageError,
)
from gateway.layers.index import LayerIndex
from gateway.layers.key import LayerKey
from gateway.layers.open import OpenIndexes
from gateway.layers.proof import Chained, Proof, Proven
from gateway.recipes.recipe import LayerRecipe, Recipe
from gateway.recipes.records import DeviceRecord, Failure
from gateway.recipes.states import State, Verification
from gateway.registry.source import Descriptor
from gateway.spans.layer import Layer
from gateway.spans.memory import MemoryTier
from gateway.spans.store import SpanStore
from gateway.spans.tier import Origin

_UNPROVEN_MEMORY_BYTES = 64 << 20
_SWEEP_SECONDS = 60.0
_IDLE_SWEEPS = 5
# A read that needs an index that is being made again waits so long for it.
_PATIENCE_SECONDS = 10.0
_RETRY_AFTER_SECONDS = 5.0

log = structlog.get_logger(__name__)


class Restoring(Protocol):
    """An index that is being made again (``devices/registrar.py``)."""

    @property
    def task(self) -> asyncio.Task[None]:
        """Ends when it is there, or raises why it cannot be."""
        ...

    @property
    def error(self) -> BlockgateError | None:
        """What the last attempt met."""
        ...


Restore = Callable[[DeviceRecord, LayerKey], Restoring]


@dataclass(slots=True)
class _Open:
    device: Device
    record: DeviceRecord
    tags: tuple[str, ...]
    served: int = 0
    idle: int = 0


class Shelf:
    """Gives out devices that can be read. One event loop."""

    def __init__(
        self,
        catalog: Catalog,
        store: SpanStore,
        indexes: OpenIndexes,
        artifacts: Artifacts,
        sources: Sources,
        restore: Restore,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._indexes = indexes
        self._artifacts = artifacts
        self._sources = sources
        self._restore = restore
        # Those that may be given out without a look; one that the feed names is taken out of the first two.
        self._by_name: dict[str, _Open] = {}
        self._by_tag: dict[str, _Open] = {}
        self._by_uid: dict[str, _Open] = {}
        self._opening: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._following = asyncio.Lock()
        self._seen = -1
        self._cursor = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None
        self._closing: list[dict[Origin, int]] = []
        self._closed: Counter[Origin] = Counter()

    async def start(self) -> None:
        """Begin to follow the catalog, and to close what nobody reads."""
        self._cursor, _ = await self._catalog.changed(0)
        self._sweeper = asyncio.create_task(self._sweep_forever())

    def peek(self, name: str) -> Device | None:
        """The device of that name if it is open and nothing has changed; never waits."""
        held = self._by_name.get(name)
        if held is not None and self._seen == self._catalog.generation.value():
            return held.device
        return None

    def peek_content(self, etag: str) -> Device | None:
        """The same for a device that has the content ``etag`` (written without its quotes)."""
        held = self._by_tag.get(etag)
        if held is not None and self._seen == self._catalog.generation.value():
            return held.device
        return None

    async def get(self, name: str) -> Device:
        """The device, opened if need be.

        Raises ``DeviceNotFound``, ``DeviceNotReady``, ``DeviceFailed``, ``DeviceQuarantined``, ``NewerFormat`` or
        ``StorageError``.
        """
        return await self._get(name, lambda: self._by_name.get(name), lambda: self._catalog.get(name))

    async def get_content(self, etag: str) -> Device:
        """A device that has the content, opened if need be. Raises ``ContentNotFound`` or ``StorageError``."""
        return await self._get(
            etag, lambda: self._by_tag.get(etag), lambda: self._catalog.by_content(f'"{etag}"')
        )

    def opened(self) -> list[Device]:
        """All devices that are open in this process."""
        return [held.device for held in self._by_uid.values()]

    def trouble(self) -> dict[str, Failure]:
        """Why bytes of devices cannot be had now, by the devices' names, as far as this process knows."""
        found = {}
        for held in self._by_uid.values():
            for layer in held.device.layers:
                # Nearly always there is none: this is looked at for each list of devices.
                error = None if layer is None or layer.error is None else layer.trouble
                if error is not None:
                    found[held.record.name] = Failure(error.code, error.detail)
                    break
        return found

    def served(self) -> Counter[Origin]:
        """Bytes that all devices gave out since the start, those no longer open included."""
        total = Counter(self._closed)
        for served in (*self._closing, *(held.device.served for held in self._by_uid.values())):
            for origin, count in served.items():
                total[origin] += count
        return total

    async def aclose(self) -> None:
        """Close everything."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        for held in list(self._by_uid.values()):
            self._drop(held)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _get(
        self,
        where: str,
        known: Callable[[], _Open | None],
        look: Callable[[], Coroutine[Any, Any, DeviceRecord]],
    ) -> Device:
        try:
            await self._follow()
            held = known()
            if held is not None:
                return held.device
            async with self._opening.setdefault(where, asyncio.Lock()):
                held = known()
                return held.device if held is not None else self._use(await look())
        except StorageError as error:
            # The catalog is away. Content never changes, so what is open stays right.
            held = known()
            if held is None:
                raise
            log.warning("catalog", error=error.detail)
            return held.device
        except BlockgateError:
            # It is gone, or serves no more.
            for held in list(self._by_uid.values()):
                if where == held.record.name or where in held.tags:
                    self._drop(held)
            raise

    async def _follow(self) -> None:
        """Look which devices the latest changes concern."""
        while self._seen != self._catalog.generation.value():
            async with self._following:
                generation = self._catalog.generation.value()
                if self._seen == generation:
                    return
                self._cursor, uids = await self._catalog.changed(self._cursor)
                for held in list(self._by_uid.values()):
                    if uids is None or held.record.uid in uids:
                        self._hide(held)
                self._seen = generation

    def _use(self, record: DeviceRecord) -> Device:
        """The open device of a record that was just read."""
        held = self._by_uid.get(record.uid)
        if held is not None and not _same_bytes(held.record, record):
            self._drop(held)
            held = None
        if held is None:
            for other in list(self._by_uid.values()):
                if other.record.name == record.name and other.record.uid != record.uid:
                    self._drop(other)  # the name is another device's by now
        check_serving(record)
        if held is None:
            assert record.recipe is not None  # noqa: S101 - a device that serves has one
            held = self._by_uid[record.uid] = self._open(record, record.recipe)
        held.record = record
        self._by_name[record.name] = held
        for tag in held.tags:
            self._by_tag[tag] = held
        return held.device

    def _open(self, record: DeviceRecord, recipe: Recipe) -> _Open:
        proven = record.verification is Verification.VERIFIED
        access = ImageAccess(self._sources, record.spec.source)
        by_digest = {layer.digest: layer for layer in recipe.layers}
        keeper = _Keeper(self._indexes, record, self._restore)
        layers: list[Layer | None] = []
        for segment in recipe.segments:
            if segment.kind == "zero" or segment.digest is None or segment.cut is None:
                layers.append(None)
            elif segment.kind == "metadata" and recipe.metadata is not None:
                blob = self._artifacts.blob(recipe.metadata.digest, recipe.metadata.size)
                key = recipe.metadata.key
                layers.append(Layer(key, blob, Origin.LOCAL, Proven(), self._store.memory, (), keeper))
            else:
                layers.append(self._remote(access, by_digest[segment.digest], keeper, proven=proven))
        device = Device(record.name, record.etag or "", recipe.segments, layers, self._store, proven=proven)
        tags = [tag for tag in (record.etag, record.unproven_etag) if tag and answers_to(record, tag)]
        return _Open(device, record, tuple(dict.fromkeys(tag.strip('"') for tag in tags)))

    def _remote(self, access: ImageAccess, layer: LayerRecipe, keeper: _Keeper, *, proven: bool) -> Layer:
        source = access.blob(Descriptor(layer.media_type, layer.digest, layer.size))
        if proven:
            proof: Proof = Proven()
            return Layer(
                layer.key, source, Origin.UPSTREAM, proof, self._store.memory, self._store.shared, keeper
            )
        # Nothing unproven may enter a cache that others read.
        memory = MemoryTier(_UNPROVEN_MEMORY_BYTES)
        proof = Chained(f"layer {layer.digest[:19]}…")
        return Layer(unproven(layer.key), source, Origin.UPSTREAM, proof, memory, (), keeper)

    def _hide(self, held: _Open) -> None:
        """Give a device out no more without a look; its next reader finds it if it is still the same."""
        if self._by_name.get(held.record.name) is held:
            del self._by_name[held.record.name]
        for tag in held.tags:
            if self._by_tag.get(tag) is held:
                del self._by_tag[tag]

    def _drop(self, held: _Open) -> None:
        self._hide(held)
        del self._by_uid[held.record.uid]
        # Reads that are under way finish: a blob closes when nobody reads it. They still count, so the sum is taken
        # when the last of them has let go of the device.
        served = held.device.served
        self._closing.append(served)
        weakref.finalize(held.device, self._settle, served).atexit = False
        self._spawn(held.device.aclose())

    def _settle(self, served: dict[Origin, int]) -> None:
        self._closing = [other for other in self._closing if other is not served]
        self._closed.update(served)

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self.sweep()

    def sweep(self) -> None:
        """Close devices that gave out nothing for several sweeps."""
        for held in list(self._by_uid.values()):
            served = sum(held.device.served.values())
            held.idle = held.idle + 1 if served == held.served else 0
            held.served = served
            if held.idle >= _IDLE_SWEEPS:
                self._drop(held)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Keeper:
    """Opens indexes for the layers of one device; what is absent or damaged is made again by the device's recipe."""

    def __init__(self, indexes: OpenIndexes, record: DeviceRecord, restore: Restore) -> None:
        self._indexes = indexes
        self._record = record
        self._restore = restore

    async def open(self, layer: Layer) -> LayerIndex:
        """As ``spans.layer.Keeper``."""
        try:
            return await self._indexes.open(layer.key)
        except IndexAbsent:
            return await self._mend(layer)

    async def heal(self, layer: Layer, index: LayerIndex, error: BlockgateError) -> LayerIndex:
        """As ``spans.layer.Keeper``."""
        if isinstance(error, IndexDamaged):
            log.error("local index damaged", device=self._record.name, error=error.detail)
            await self._indexes.drop(index)
        elif isinstance(error, ArtifactDamaged):
            log.error("local metadata damaged", device=self._record.name, error=error.detail)
            return await self._mend(layer)
        else:
            self._indexes.forget(index)
        return await self.open(layer)

    async def _mend(self, layer: Layer) -> LayerIndex:
        restoring = self._restore(self._record, layer.key)
        done, _ = await asyncio.wait([restoring.task], timeout=_PATIENCE_SECONDS)
        met = restoring.error
        if done and not restoring.task.cancelled():
            try:
                restoring.task.result()
                return await self._indexes.open(layer.key)
            except BlockgateError as error:
                met = error
        why = "" if met is None else f"; the last attempt met: {met.detail}"
        raise IndexBeingMade(
            f"{layer.where}: what it is read by was lost or damaged here and is being made again{why}",
            retry_after_seconds=_RETRY_AFTER_SECONDS,
        )


def check_serving(record: DeviceRecord) -> None:
    """Raise unless the device's bytes are served: the error says why not."""
    if record.newer is not None and record.recipe is None:
        raise NewerFormat(f"device {record.name!r} cannot be used by this version: {record.newer}")
    if record.state is State.READY:
        return
    reason = record.failure.detail if record.failure else "no reason was recorded"
    if record.state is State.INDEXING:
        waiting = record.progress.error if record.progress else None
        why = f"; it waits: {waiting.detail}" if waiting else ""
        raise DeviceNotReady(f"device {record.name!r} is still being indexed{why}", retry_after_seconds=2)
    if record.state is State.FAILED:
        raise DeviceFailed(f"registration of device {record.name!r} failed: {reason}")
    raise DeviceQuarantined(f"device {record.name!r} is quarantined: {reason}")


def _same_bytes(one: DeviceRecord, other: DeviceRecord) -> bool:
    return one.recipe == other.recipe and one.verification is other.verification
