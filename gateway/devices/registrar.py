"""Who works for devices, and until when.

The registrar owns every task that makes something: registrations, proofs behind devices that are served, and
restorations of what was lost. A registration belongs to whoever holds the lease of its device; when that process dies
the lease runs out (or is released by the one that sweeps up after it), and whoever looks next goes on. A fault that
can pass is waited out and shown in the device's progress (``recipes/faults.py`` says which can). A restoration never
touches the device's row.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass

import structlog

from gateway.artifacts import Artifacts
from gateway.catalog.catalog import Catalog
from gateway.devices.parts import Parts
from gateway.devices.registration import Registration
from gateway.errors import (
    BlockgateError,
    DeviceNotFound,
    IntegrityError,
    InvalidLayer,
    InvalidZinfo,
    LeaseLost,
    StorageError,
)
from gateway.layers.key import LayerKey
from gateway.recipes.faults import LONGEST_WAIT_SECONDS, Fault, fault_of, wait_seconds
from gateway.recipes.records import DeviceRecord, Failure, Progress
from gateway.recipes.states import Event, target

_WATCH_SECONDS = 0.5
_RESUME_SECONDS = 10.0
_LOOK_SECONDS = 1.0

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Restoration:
    """An index that is being made again: ``error`` is what the last attempt met. The task ends with it, or raises."""

    task: asyncio.Task[None]
    error: BlockgateError | None = None


class Registrar:
    """Runs the work of one worker. One event loop."""

    def __init__(self, catalog: Catalog, parts: Parts, artifacts: Artifacts) -> None:
        self._catalog = catalog
        self._parts = parts
        self._artifacts = artifacts
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._again: dict[str, DeviceRecord] = {}
        self._closing = False
        self._restorations: dict[LayerKey, Restoration] = {}
        self._watcher: asyncio.Task[None] | None = None
        self._cursor = 0
        self._followed = -1
        self.outcomes: Counter[str] = Counter()
        """How registrations ended: ``ready``, ``failed``, ``quarantined``."""
        self.integrity_failures: Counter[str] = Counter()
        """By the error's code."""

    async def start(self) -> None:
        """Go on with what is unfinished, now and whenever another process leaves something behind."""
        self._followed = self._catalog.generation.value()
        self._cursor, _ = await self._catalog.changed(0)
        await self._resume()
        self._watcher = asyncio.create_task(self._watch())

    async def aclose(self) -> None:
        """Stop; unfinished work goes on after the next start."""
        self._closing = True
        restorations = [restoration.task for restoration in self._restorations.values()]
        watcher = [] if self._watcher is None else [self._watcher]
        tasks = [*watcher, *self._tasks.values(), *restorations]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def begin(self, record: DeviceRecord) -> None:
        """Register a device whose record was just made, or go on with an old one."""
        if record.uid in self._tasks:
            # It may be ending just now: a device that failed a moment ago is asked for again.
            self._again[record.uid] = record
        elif not self._closing:
            task = asyncio.create_task(self._own(record))
            self._tasks[record.uid] = task
            task.add_done_callback(lambda _: self._ended(record.uid))

    def _ended(self, uid: str) -> None:
        del self._tasks[uid]
        again = self._again.pop(uid, None)
        if again is not None:
            self.begin(again)

    async def cancel(self, record: DeviceRecord) -> None:
        """Stop working on a device that was deleted."""
        self._again.pop(record.uid, None)
        task = self._tasks.get(record.uid)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def restore(self, record: DeviceRecord, key: LayerKey) -> Restoration:
        """Have an index of a ready device made again; there is one restoration for all who want it."""
        restoration = self._restorations.get(key)
        if restoration is None:
            log.warning("index lost", device=record.name, layer=key.blob)
            task = asyncio.create_task(self._restore(record, key))
            task.add_done_callback(lambda done: None if done.cancelled() else done.exception())
            restoration = self._restorations[key] = Restoration(task)
            task.add_done_callback(lambda _: self._restorations.pop(key, None))
        return restoration

    async def _watch(self) -> None:
        """Follow the catalog: devices that were deleted elsewhere, and work that others left."""
        resumed = looked = time.monotonic()
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            now = time.monotonic()
            try:
                if now - looked >= _LOOK_SECONDS:
                    looked = now
                    await self._catalog.look(self._cursor)
                await self._follow()
                if now - resumed >= _RESUME_SECONDS:
                    resumed = now
                    await self._resume()
            except StorageError as error:
                log.warning("catalog", error=error.detail)

    async def _follow(self) -> None:
        generation = self._catalog.generation.value()
        if generation == self._followed:
            return
        cursor, uids = await self._catalog.changed(self._cursor)
        mine = set(self._tasks) if uids is None else uids & set(self._tasks)
        if mine:
            # One that is settled ends by itself: what it clears up afterwards is not to be cut short.
            for uid in mine - await self._catalog.present(mine):
                task = self._tasks.get(uid)
                if task is not None:
                    task.cancel()
        # Not before: what fails is looked at again.
        self._cursor, self._followed = cursor, generation

    async def _resume(self) -> None:
        for record in await self._catalog.unfinished():
            self.begin(record)

    async def _own(self, record: DeviceRecord) -> None:
        try:
            lease = await self._catalog.leases.claim(f"device {record.uid}")
            if lease is None:
                return  # another process works on it
            async with self._catalog.leases.keeping(lease):
                current = await self._catalog.get(record.name)
                # What was read before may be old: another process may have finished it.
                if current.uid == record.uid and current.unfinished:
                    await self._work(current)
        except DeviceNotFound:
            return
        except StorageError as error:
            # Without its lease, or without a catalog: whoever looks next goes on.
            log.warning("registration interrupted", device=record.name, error=error.detail)

    async def _work(self, record: DeviceRecord) -> None:
        """Attempts until one of them settles the device."""
        attempt = doubts = 0
        while True:
            work: Registration | None = None
            try:
                work = Registration(self._catalog, self._parts, self._artifacts, record)
                await work.run()
                self.outcomes["ready"] += 1
                return
            except LeaseLost:
                raise
            except Exception as error:  # noqa: BLE001 - a defect is a fault like others, and is shown
                attempt += 1
                doubts += fault_of(error) is Fault.DOUBTFUL
                serving = work is not None and work.serving
                wait = wait_seconds(error, attempt, doubts, random.random())  # noqa: S311 - jitter
                if wait is None and serving and not _refutes(error):
                    wait = LONGEST_WAIT_SECONDS  # what is served stays as it is until something is known
                if wait is None:
                    await self._settle(record, error, serving=serving)
                    return
                await self._show(record, error, attempt, wait)
                await asyncio.sleep(wait)
            current = await self._catalog.get(record.name)
            if current.uid != record.uid or not current.unfinished:
                return  # deleted or settled by somebody else; the name may be another device's by now
            record = current

    async def _settle(self, record: DeviceRecord, error: Exception, *, serving: bool) -> None:
        event = Event.REFUTED if serving else Event.GAVE_UP
        failure = _failure(error)
        if isinstance(error, IntegrityError):
            self.integrity_failures[error.code] += 1
        self.outcomes[target(event).value] += 1
        log.error(
            "registration",
            device=record.name,
            state=target(event).value,
            code=failure.code,
            error=failure.detail,
        )
        if serving and isinstance(error, InvalidZinfo):
            await self._remember(record, error)
        await self._catalog.end(record, event, failure)

    async def _remember(self, record: DeviceRecord, error: InvalidZinfo) -> None:
        current = await self._catalog.get(record.name)
        if (
            current.uid == record.uid
            and current.recipe is not None
            and current.recipe.unproven_zinfo is not None
        ):
            for layer in current.recipe.layers:
                await self._catalog.refute(current.recipe.unproven_zinfo, layer.digest, error.detail)

    async def _show(self, record: DeviceRecord, error: Exception, attempt: int, wait: float) -> None:
        failure = _failure(error)
        log.warning(
            "registration waits",
            device=record.name,
            code=failure.code,
            error=failure.detail,
            attempt=attempt,
            seconds=round(wait, 1),
        )
        progress = Progress("waiting", 0, 0, failure, attempt, time.time() + wait)
        try:
            await self._catalog.progress(record, progress)
        except StorageError as trouble:
            log.warning("catalog", device=record.name, error=trouble.detail)

    async def _restore(self, record: DeviceRecord, key: LayerKey) -> None:
        attempt = doubts = 0
        while True:
            try:
                await self._parts.restore(record, key)
                log.info("index made again", device=record.name, layer=key.blob)
                return
            except BlockgateError as error:
                attempt += 1
                doubts += fault_of(error) is Fault.DOUBTFUL
                wait = wait_seconds(error, attempt, doubts, random.random())  # noqa: S311 - jitter
                if wait is None:
                    raise
                if key in self._restorations:
                    self._restorations[key].error = error
                log.warning("restoration waits", device=record.name, code=error.code, error=error.detail)
                await asyncio.sleep(wait)


def _refutes(error: Exception) -> bool:
    """Whether an error of a proof says that what is served is wrong; a table that is not here says nothing of it."""
    return fault_of(error) is Fault.FINAL and isinstance(error, IntegrityError | InvalidLayer | InvalidZinfo)


def _failure(error: Exception) -> Failure:
    if isinstance(error, BlockgateError):
        return Failure(error.code, error.detail)
    log.error("registration", exc_info=error)
    return Failure(
        "internal", "an unexpected error; the gateway's log has the details under this device's name"
    )
