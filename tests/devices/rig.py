"""Everything of a worker below the API, over a fake image source."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from gateway import errors
from gateway.artifacts import Artifacts
from gateway.devices.parts import Parts
from gateway.devices.registrar import Registrar
from gateway.devices.shelf import Shelf
from gateway.ingest.ingest import Ingest
from gateway.layers.folder import FolderStore
from gateway.layers.open import OpenIndexes
from gateway.recipes.spec import DeviceSpec
from gateway.registry.source import Descriptor, Image, Layer
from gateway.spans.disk import DiskTier, SpanFiles
from gateway.spans.flights import Admission
from gateway.spans.locks import SpanLocks
from gateway.spans.memory import MemoryTier
from gateway.spans.store import SpanStore
from tests.support import gzips
from tests.support.layers import MemoryBlob, content, failure, sha256, tar_of

TAR = tar_of({"a/one": content(150_000, 1), "a/two": content(120_000, 2)})
BLOB = gzips.member(TAR)
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
SPEC = {"source": {"image": "registry.example/a/b:1"}, "layout": "tar", "layer": {"index": 0}}


@dataclass
class FakeSource:
    """An image source of blobs in memory; also the ``Sources`` that opens it."""

    blobs: dict[str, MemoryBlob] = field(default_factory=dict)
    error: BaseException | None = None
    gate: asyncio.Event | None = None
    layers: list[Layer] = field(default_factory=list)
    resolved: int = 0

    def add(self, data: bytes, diff_id: str | None = None, media_type: str = GZIP) -> MemoryBlob:
        blob = MemoryBlob(data)
        self.blobs[sha256(data)] = blob
        self.layers.append(Layer(Descriptor(media_type, sha256(data), len(data)), diff_id))
        return blob

    def open_source(self, _reference, *, insecure, credentials):
        assert (insecure, credentials) == (False, None)
        return self

    async def resolve(self, reference, platform):
        self.resolved += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return Image(str(reference), "sha256:" + "1" * 64, platform, b"{}", tuple(self.layers))

    async def open_blob(self, _reference, descriptor):
        if self.error is not None:
            raise self.error
        blob = self.blobs.get(descriptor.digest)
        if blob is None:
            raise failure(errors.BlobNotFound)
        return blob

    async def aclose(self):
        return None


class Rig:
    """One worker. ``another`` makes its registrar and shelf once more, as another worker of the folder has them."""

    def __init__(self, folder, catalog, executor):
        self.folder, self.catalog, self.executor = folder, catalog, executor
        self.source = FakeSource()
        self.blob = self.source.add(BLOB, sha256(TAR))
        (folder / "tmp").mkdir()
        (folder / "artifacts").mkdir()
        self.layers = folder / "layers"
        self.artifacts = Artifacts(folder / "artifacts", folder / "tmp", max_bytes=1 << 30)
        self.locks = SpanLocks(folder / "span-locks")
        self.disk = SpanFiles(folder / "cache", 64 << 20)
        self.store = SpanStore(
            MemoryTier(64 << 20),
            (DiskTier(self.disk, self.locks, executor),),
            Admission(1 << 30),
            executor,
        )
        self.registrars, self.shelves = [], []
        self.main = self.registrar()
        self.shelf = self.shelf_of(catalog)

    def ingest(self, catalog):
        store = FolderStore(self.layers, self.folder / "tmp")
        return Ingest(store, catalog, OpenIndexes(store, catalog), self.executor, span_size=65536)

    def registrar(self, catalog=None):
        catalog = catalog or self.catalog
        parts = Parts(self.ingest(catalog), self.artifacts, catalog, self.source)
        made = Registrar(catalog, parts, self.artifacts)
        self.registrars.append(made)
        return made

    def shelf_of(self, catalog):
        store = FolderStore(self.layers, self.folder / "tmp")
        indexes = OpenIndexes(store, catalog)
        made = Shelf(catalog, self.store, indexes, self.artifacts, self.source, self.main.restore)
        self.shelves.append(made)
        return made

    def attempts(self):
        """Folders of the indexes that are there."""
        return list(self.layers.glob("*/*/*"))

    def leftovers(self):
        """What was not completed."""
        return list((self.folder / "tmp").iterdir())

    async def add(self, registrar, name="one", **fields):
        record, _ = await self.catalog.create(name, DeviceSpec.model_validate({**SPEC, **fields}))
        registrar.begin(record)
        return record

    async def upload(self, data):
        async def body():
            yield data

        await self.artifacts.put(sha256(data), body())
        return sha256(data)

    async def aclose(self):
        for registrar in self.registrars:
            await registrar.aclose()
        await self.store.aclose()
        for shelf in self.shelves:
            await shelf.aclose()
        self.locks.close()


async def finish(registrar):
    tasks = list(registrar._tasks.values())
    if tasks:
        _, pending = await asyncio.wait(tasks, timeout=30)
        assert not pending


async def reach(rig, wanted, name="one"):
    """Wait until the catalog shows what is wanted."""
    async with asyncio.timeout(30):
        while not wanted(record := await rig.catalog.get(name)):
            await asyncio.sleep(0.002)
    return record


async def ready(rig, name="one", **fields):
    registrar = rig.registrar()
    await rig.add(registrar, name, **fields)
    await finish(registrar)
    record = await rig.catalog.get(name)
    assert record.state == "ready", record.failure
    return record
