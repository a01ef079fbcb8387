"""How a device comes to be: resolve → index each layer → metadata → segments → ready (or failed, saying why).

A registration belongs to the process that holds its lock. When that process dies the kernel drops the lock, and whoever
looks next goes on: finished layer indexes are found, an unfinished pass begins again.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from gateway.artifacts import Artifacts, LocalBlob
from gateway.devices import provisional
from gateway.devices.catalog import Catalog
from gateway.devices.images import Chosen, ImageAccess, Sources, compression
from gateway.devices.records import SERVING, DeviceRecord, Failure, ImageFacts, Progress
from gateway.devices.segments import Piece, Segment, Slot, concatenate, identity, padded, place, total
from gateway.erofs import superblock, validate
from gateway.errors import (
    BlockgateError,
    DeviceNotFound,
    IntegrityError,
    InvalidLayer,
    InvalidZinfo,
    StorageError,
    UpstreamError,
)
from gateway.ingest.ingest import Ingest
from gateway.ingest.layer_pass import Promise
from gateway.ingest.metadata import BuiltMetadata, build_in_process
from gateway.locks import try_lock
from gateway.registry.source import Layer
from gateway.spans.index import TOC, LayerIndex, index_id

_REPORT_SECONDS = 0.5
_RESUME_SECONDS = 10.0
_PROOF_RETRY_SECONDS = 30.0

log = structlog.get_logger(__name__)


class Registrar:
    """Runs registrations as tasks that it owns."""

    def __init__(
        self, catalog: Catalog, ingest: Ingest, artifacts: Artifacts, sources: Sources, locks: Path
    ) -> None:
        self._catalog = catalog
        self._ingest = ingest
        self._artifacts = artifacts
        self._sources = sources
        self._locks = locks
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._watch: asyncio.Task[None] | None = None
        self.outcomes: Counter[str] = Counter()
        """How registrations ended: ``ready``, ``failed``, ``quarantined``."""
        self.integrity_failures: Counter[str] = Counter()
        """By the error's code."""
        locks.mkdir(parents=True, exist_ok=True)

    async def start(self) -> None:
        """Go on with what is unfinished, now and whenever another process leaves something behind."""
        await self._resume()
        self._watch = asyncio.create_task(self._resume_forever())

    async def aclose(self) -> None:
        """Stop; unfinished registrations go on after the next start."""
        tasks = [task for task in (self._watch, *self._tasks.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def begin(self, record: DeviceRecord) -> None:
        """Register a device whose record was just made, or go on with an old one."""
        if record.uid not in self._tasks:
            task = asyncio.create_task(self._own(record))
            self._tasks[record.uid] = task
            task.add_done_callback(lambda _: self._tasks.pop(record.uid, None))

    async def cancel(self, record: DeviceRecord) -> None:
        """Stop working on a device that was deleted."""
        task = self._tasks.get(record.uid)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _resume_forever(self) -> None:
        while True:
            await asyncio.sleep(_RESUME_SECONDS)
            try:
                await self._resume()
            except StorageError as error:
                log.warning("catalog", error=error.detail)

    async def _resume(self) -> None:
        for record in await self._catalog.all():
            if _unfinished(record):
                self.begin(record)

    async def _own(self, record: DeviceRecord) -> None:
        lock = try_lock(self._locks / f"{record.uid}.registration")
        if lock is None:
            return
        with lock:
            try:
                current = await self._catalog.get(record.name)
            except DeviceNotFound:
                return
            # What was read before may be old: another process may have finished it.
            if current.uid == record.uid and _unfinished(current):
                await self._run(current)

    async def _run(self, record: DeviceRecord) -> None:
        work = _Registration(self._catalog, self._ingest, self._artifacts, self._sources, record)
        try:
            if record.state == "indexing":
                await work.run()
            else:
                await work.prove()
            self.outcomes["ready"] += 1
        except BlockgateError as error:
            # What was proven wrong while it was being served is worse than a registration that failed.
            quarantine = work.serving and isinstance(error, IntegrityError | InvalidZinfo | InvalidLayer)
            state = "quarantined" if quarantine else "failed"
            self.outcomes[state] += 1
            if isinstance(error, IntegrityError):
                self.integrity_failures[error.code] += 1
            log.error("registration", device=record.name, state=state, code=error.code, error=error.detail)
            await self._fail(record, state, Failure(error.code, error.detail))
        except Exception:
            self.outcomes["failed"] += 1
            log.exception("registration", device=record.name)
            detail = "an unexpected error; the gateway's log has the details under this device's name"
            await self._fail(record, "failed", Failure("internal", detail))

    async def _fail(self, record: DeviceRecord, state: str, failure: Failure) -> None:
        try:
            await self._catalog.update(
                record, state=state, failure=failure, progress=None, verification="unverified"
            )
        except StorageError as error:
            log.error("catalog", device=record.name, error=error.detail)


def _unfinished(record: DeviceRecord) -> bool:
    return record.state == "indexing" or (record.state in SERVING and record.verification == "verifying")


class _Registration:
    """One device's way."""

    def __init__(
        self, catalog: Catalog, ingest: Ingest, artifacts: Artifacts, sources: Sources, record: DeviceRecord
    ) -> None:
        self._catalog = catalog
        self._ingest = ingest
        self._artifacts = artifacts
        self._record = record
        self._spec = record.spec
        self._access = ImageAccess(sources, record.spec.source)
        self._reported = 0.0
        self._done_before = 0
        self._total = 0
        self._reports: set[asyncio.Task[bool]] = set()
        self.serving = record.state in SERVING

    async def run(self) -> None:
        """From nothing to ready."""
        await self._report(Progress("resolving", 0, 0))
        chosen = await self._access.choose(self._spec)
        self._total = sum(layer.descriptor.size for layer in chosen.layers)
        if self._spec.zinfo is not None and self._spec.verify == "background":
            await self._serve_provisionally(chosen)
            await self.prove(chosen)
            return
        indexes = await self._index_layers(chosen)
        segments, contents = await self._arrange(chosen, indexes)
        await self._ready(chosen, segments, contents, "verified")

    async def prove(self, chosen: Chosen | None = None) -> None:
        """The pass behind a device that is already being served; a registry that is down or a full disk only delays it."""
        if chosen is None:
            assert self._record.image is not None  # noqa: S101 - a device that serves has one
            chosen = self._access.recall(self._record.image)
        self._total = sum(layer.descriptor.size for layer in chosen.layers)
        while True:
            try:
                await self._index_layers(chosen)
                break
            except (UpstreamError, StorageError) as error:
                log.warning("proof delayed", device=self._record.name, code=error.code, error=error.detail)
                await asyncio.sleep(_PROOF_RETRY_SECONDS)
        await self._settle_reports()
        await self._catalog.update(self._record, verification="verified", progress=None)
        provisional.remove(self._ingest.folders, chosen.layers[0].descriptor.digest, self._spec.zinfo)

    async def _serve_provisionally(self, chosen: Chosen) -> None:
        (layer,) = chosen.layers
        assert self._spec.zinfo is not None  # noqa: S101 - run() looked
        blob = self._access.blob(layer.descriptor)
        try:
            table = provisional.load(self._artifacts, self._spec.zinfo, layer.descriptor.size)
            index = await provisional.build(
                self._ingest.folders,
                blob,
                layer.descriptor.digest,
                layer.descriptor.size,
                table,
                self._spec.zinfo,
            )
        finally:
            await blob.aclose()
        try:
            segments, contents = await self._arrange(chosen, [index])
        finally:
            index.close()
        # The proven index will lie under the supplied zinfo's own name.
        name = index_id("gzip", self._ingest.span_size, self._spec.zinfo)
        segments = [replace(s, index_id=name) if s.index_id == index.index_id else s for s in segments]
        await self._ready(chosen, segments, contents, "verifying")
        self.serving = True

    async def _index_layers(self, chosen: Chosen) -> list[LayerIndex]:
        indexes = []
        self._done_before = 0
        for layer in chosen.layers:
            indexes.append(await self._index_layer(layer))
            self._done_before += layer.descriptor.size
        for index in indexes:
            index.close()
        return indexes

    async def _index_layer(self, layer: Layer) -> LayerIndex:
        descriptor = layer.descriptor
        blob = self._access.blob(descriptor)
        try:
            kind = "raw" if self._spec.layout == "raw" else await compression(blob, descriptor)
            supplied = None
            if self._spec.zinfo is not None:
                if kind != "gzip":
                    raise InvalidZinfo(f"layer {descriptor.digest} is not gzip and has no use for a zinfo")
                # A v1 table needs the length of the blob's own gzip header.
                header = await provisional.gzip_header(blob)
                supplied = provisional.load(self._artifacts, self._spec.zinfo, descriptor.size, header)
            return await self._ingest.index(
                blob,
                Promise(descriptor.digest, descriptor.size, None if kind == "raw" else layer.diff_id),
                kind,
                supplied=supplied,
                supplied_digest=self._spec.zinfo,
                progress=self._progress,
            )
        except InvalidLayer as error:
            raise InvalidLayer(f"layer {descriptor.digest}: {error.detail}") from error
        except IntegrityError as error:
            raise type(error)(f"layer {descriptor.digest}: {error.detail}") from error
        finally:
            await blob.aclose()

    async def _arrange(
        self, chosen: Chosen, indexes: Sequence[LayerIndex]
    ) -> tuple[list[Segment], dict[str, int] | None]:
        """The device's address space."""
        pieces = [Piece(i.facts.kind, i.facts.size, i.facts.blob, i.index_id) for i in indexes]
        if self._spec.layout != "filesystem":
            return concatenate(pieces), None
        if self._spec.metadata is not None:
            return await self._with_supplied_metadata(self._spec.metadata, pieces), None
        for layer, index in zip(chosen.layers, indexes, strict=True):
            if index.facts.toc_error is not None or index.facts.kind == "raw":
                raise InvalidLayer(
                    f"layer {layer.descriptor.digest} cannot be shown as a file system: {index.facts.toc_error}; "
                    "layouts tar and raw can still serve it"
                )
        await self._report(Progress("metadata", 0, 0))
        digest, built = await self._generate([index.folder / TOC for index in indexes])
        metadata = await self._metadata_piece(digest)
        segments = concatenate([metadata, *pieces])
        starts = {s.offset for s in segments if s.kind != "zero"}
        wanted = {o for o, p in zip(built.layer_offsets, pieces, strict=True) if p.size}
        if not wanted <= starts:
            raise StorageError(
                "the metadata places layers elsewhere than the device does; this is a defect of blockgate"
            )
        return segments, built.counts()

    async def _generate(self, tocs: Sequence[Path]) -> tuple[str, BuiltMetadata]:
        output = self._artifacts.scratch()
        try:
            built = await build_in_process(tocs, output)
            return await asyncio.to_thread(self._artifacts.adopt, output), built
        finally:
            output.unlink(missing_ok=True)

    async def _with_supplied_metadata(self, digest: str, pieces: Sequence[Piece]) -> list[Segment]:
        data = await asyncio.to_thread(self._artifacts.find(digest).read_bytes)
        parsed = superblock.parse(data)
        metadata = await self._metadata_piece(digest)
        if parsed.devices:
            slots = [
                Slot(s.uniaddr * parsed.block_size, s.blocks * parsed.block_size) for s in parsed.devices
            ]
            segments = place(metadata, slots, pieces)
        else:
            segments = concatenate([metadata, *pieces])
        await asyncio.to_thread(validate.validate, data, padded(total(segments)))
        return segments

    async def _metadata_piece(self, digest: str) -> Piece:
        """Metadata is cut and digested like a layer, so that it is verified like one whenever it is read."""
        blob = LocalBlob(self._artifacts.find(digest))
        try:
            index = await self._ingest.index(
                blob, Promise(digest, blob.size), "raw", progress=lambda _done, _all: None
            )
        finally:
            await blob.aclose()
        index.close()
        return Piece("metadata", index.facts.size, digest, index.index_id)

    async def _ready(
        self, chosen: Chosen, segments: list[Segment], contents: dict[str, int] | None, verification: str
    ) -> None:
        image: ImageFacts = chosen.facts()
        await self._settle_reports()
        await self._catalog.update(
            self._record,
            state="ready",
            verification=verification,
            size=total(segments),
            etag=identity(segments),
            segments_=segments,
            image=image,
            progress=None,
            failure=None,
            contents=contents,
        )
        log.info("ready", device=self._record.name, image=image.reference, bytes=total(segments))

    def _progress(self, done: int, _total: int) -> None:
        now = time.monotonic()
        if now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            phase = "verifying" if self.serving else "indexing"
            task = asyncio.create_task(self._report(Progress(phase, self._done_before + done, self._total)))
            self._reports.add(task)
            task.add_done_callback(self._reports.discard)

    async def _report(self, progress: Progress) -> bool:
        try:
            return await self._catalog.update(self._record, progress=progress)
        except StorageError as error:
            log.warning("catalog", device=self._record.name, error=error.detail)
            return True

    async def _settle_reports(self) -> None:
        if self._reports:
            await asyncio.wait(self._reports)
