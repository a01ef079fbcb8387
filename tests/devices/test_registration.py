"""Registration: each failure is written down and can be undone; what is interrupted goes on; proofs are waited for."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from dataclasses import dataclass, field

import pytest

from gateway import errors
from gateway.artifacts import Artifacts
from gateway.devices import parts, shelf
from gateway.devices.parts import Parts
from gateway.devices.registrar import Registrar
from gateway.devices.shelf import Shelf
from gateway.ingest.ingest import Ingest
from gateway.layers import folder as folder_module
from gateway.layers.folder import FolderStore
from gateway.layers.open import OpenIndexes
from gateway.recipes import faults
from gateway.recipes.records import Failure
from gateway.recipes.spec import DeviceSpec
from gateway.recipes.states import Event, State
from gateway.registry.source import Descriptor, Image, Layer
from gateway.spans.disk import DiskTier, SpanFiles
from gateway.spans.flights import Admission
from gateway.spans.locks import SpanLocks
from gateway.spans.memory import MemoryTier
from gateway.spans.store import SpanStore
from tests.support import gzips
from tests.support.layers import MemoryBlob, content, failure, sha256, tar_of
from tests.support.zinfo_tables import build as build_table
from tests.support.zinfo_tables import encode

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
    """Everything below the API, with a fake source."""

    def __init__(self, folder, catalog, executor):
        self.folder, self.catalog, self.executor = folder, catalog, executor
        self.source = FakeSource()
        self.blob = self.source.add(BLOB, sha256(TAR))
        for name in ("layers", "artifacts", "tmp"):
            (folder / name).mkdir()
        self.layers = FolderStore(folder / "layers", folder / "tmp")
        self.artifacts = Artifacts(folder / "artifacts", folder / "tmp", max_bytes=1 << 30)
        self.indexes = OpenIndexes(self.layers, catalog)
        self.registrars = []
        self.locks = SpanLocks(folder / "span-locks")
        self.disk = SpanFiles(folder / "cache", 64 << 20)
        self.store = SpanStore(
            MemoryTier(64 << 20),
            (DiskTier(self.disk, self.locks, executor),),
            Admission(512 << 20),
            executor,
        )
        self.shelf = Shelf(
            catalog,
            self.store,
            self.indexes,
            self.artifacts,
            self.source,
            self._restore,
        )

    def _restore(self, record, key):
        return self.registrars[-1].restore(record, key)

    def registrar(self, catalog=None):
        catalog = catalog or self.catalog
        ingest = Ingest(self.layers, catalog, self.indexes, self.executor, span_size=65536)
        made = Registrar(catalog, Parts(ingest, self.artifacts, catalog, self.source), self.artifacts)
        self.registrars.append(made)
        return made

    async def add(self, registrar, name="one", **fields):
        record, _ = await self.catalog.create(name, DeviceSpec.model_validate({**SPEC, **fields}))
        registrar.begin(record)
        return record

    async def upload(self, data):
        async def body():
            yield data

        await self.artifacts.put(sha256(data), body())
        return sha256(data)

    def attempts(self):
        """Index folders that have a name."""
        return list((self.folder / "layers").glob("*/*/*"))

    async def aclose(self):
        for registrar in self.registrars:
            await registrar.aclose()
        await self.store.aclose()
        await self.shelf.aclose()
        self.locks.close()


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    """Faults are waited out at once."""
    monkeypatch.setattr(faults, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(faults, "LONGEST_WAIT_SECONDS", 0.01)


@pytest.fixture
async def rig(tmp_path, catalog, executor):
    rig = Rig(tmp_path, catalog, executor)
    yield rig
    await rig.aclose()


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


async def test_a_layer_becomes_a_ready_device(rig):
    registrar = rig.registrar()
    await rig.add(registrar)
    await finish(registrar)
    record = await rig.catalog.get("one")
    assert (record.state, record.verification, record.failure) == ("ready", "verified", None)
    assert record.progress is None
    assert record.recipe.size == len(TAR)
    assert record.recipe.layers[0].digest == sha256(BLOB)
    device = await rig.shelf.get("one")
    assert bytes(await device.read(0, device.size)) == TAR
    assert list((rig.folder / "tmp").iterdir()) == []


async def test_two_devices_of_one_layer_take_one_pass(rig):
    registrar = rig.registrar()
    await rig.add(registrar, "one")
    await rig.add(registrar, "two")
    await finish(registrar)
    assert {(await rig.catalog.get(n)).state for n in ("one", "two")} == {"ready"}
    assert rig.blob.streams == 1


PASSING = [errors.RegistryUnreachable, errors.RegistryOverloaded, errors.StorageError]
DOUBTFUL = [errors.RegistryUnauthorized, errors.ManifestMismatch, errors.AddressRefused]
FINAL = [errors.ImageNotFound, errors.PlatformNotFound, errors.PathNotAllowed]


@pytest.mark.parametrize("kind", FINAL + DOUBTFUL)
async def test_what_cannot_pass_is_written_down_and_tried_again_when_asked_for_again(rig, kind):
    rig.source.error = failure(kind, "the reason")
    registrar = rig.registrar()
    await rig.add(registrar)
    await finish(registrar)
    record = await rig.catalog.get("one")
    assert record.state == "failed"
    assert (record.failure.code, record.failure.detail) == (kind.code, "the reason")
    assert record.progress is None
    assert rig.source.resolved == (1 if kind in FINAL else faults.DOUBTFUL_ATTEMPTS)
    with pytest.raises(errors.DeviceFailed, match="the reason"):
        await rig.shelf.get("one")
    rig.source.error = None
    again = await rig.add(registrar)
    assert (again.uid, again.state, again.failure) == (record.uid, "indexing", None)
    await finish(registrar)
    assert (await rig.catalog.get("one")).state == "ready"


@pytest.mark.parametrize("kind", PASSING + DOUBTFUL)
async def test_what_can_pass_is_waited_out_and_shown(rig, kind, monkeypatch):
    rig.source.error = failure(kind, "the reason")
    registrar = rig.registrar()
    await rig.add(registrar)
    record = await reach(rig, lambda r: r.progress is not None and r.progress.phase == "waiting")
    assert record.state == "indexing"
    assert record.progress.error == Failure(kind.code, "the reason")
    assert record.progress.attempt >= 1
    assert record.progress.retry_at is not None
    rig.source.error = None
    await finish(registrar)
    record = await rig.catalog.get("one")
    assert (record.state, record.failure, record.progress) == ("ready", None, None)


async def test_a_passing_fault_is_waited_out_for_ever(rig):
    rig.source.error = failure(errors.RegistryUnreachable)
    registrar = rig.registrar()
    await rig.add(registrar)
    await reach(rig, lambda _: rig.source.resolved > 4 * faults.DOUBTFUL_ATTEMPTS)
    assert (await rig.catalog.get("one")).state == "indexing"


@pytest.mark.parametrize("kind", [errors.RegistryTimeout, errors.BlobNotFound, errors.TruncatedBody])
async def test_what_fails_in_mid_pass_leaves_nothing_and_is_tried_again(rig, kind):
    rig.blob.error, rig.blob.error_at = failure(kind, "broke off"), len(BLOB) // 2
    registrar = rig.registrar()
    await rig.add(registrar)
    await reach(rig, lambda r: r.progress is not None and r.progress.phase == "waiting")
    assert rig.attempts() == []
    rig.blob.error = None
    await finish(registrar)
    assert (await rig.catalog.get("one")).state == "ready"
    assert list((rig.folder / "tmp").iterdir()) == []


async def test_a_defect_is_written_down_without_its_text(rig):
    rig.source.error = RuntimeError("secret detail")
    registrar = rig.registrar()
    await rig.add(registrar)
    await finish(registrar)
    record = await rig.catalog.get("one")
    assert (record.state, record.failure.code) == ("failed", "internal")
    assert "secret" not in record.failure.detail


async def test_a_full_disk_is_waited_out(rig, monkeypatch):
    def full(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    registrar = rig.registrar()
    with monkeypatch.context() as patch:
        patch.setattr(folder_module.FolderDraft, "checkpoint", full)
        await rig.add(registrar)
        record = await reach(rig, lambda r: r.progress is not None and r.progress.phase == "waiting")
    assert record.progress.error.code == "storage"
    assert "No space left" in record.progress.error.detail
    await finish(registrar)
    assert (await rig.catalog.get("one")).state == "ready"


@pytest.mark.parametrize(
    ("data", "diff_id", "media_type", "code"),
    [
        (BLOB, "sha256:" + "0" * 64, GZIP, "diff_id_mismatch"),
        (BLOB[:-100], None, GZIP, "corrupt_stream"),
        (b"", None, GZIP, "corrupt_stream"),
        (b"no gzip" * 100, None, GZIP, "corrupt_stream"),
        (b"\x28\xb5\x2f\xfd" + bytes(20), None, "application/octet-stream", "unsupported_layer"),
    ],
    ids=["another diff_id", "cut short", "nothing", "no gzip", "zstd"],
)
async def test_a_layer_that_is_not_what_was_promised_fails(rig, data, diff_id, media_type, code):
    rig.source.layers.clear()
    rig.source.add(data, diff_id, media_type)
    registrar = rig.registrar()
    await rig.add(registrar)
    await finish(registrar)
    record = await rig.catalog.get("one")
    assert (record.state, record.failure.code) == ("failed", code)
    assert sha256(data) in record.failure.detail or code == "unsupported_layer"


async def test_bytes_changed_on_the_way_are_fetched_again(rig):
    """A flipped bit breaks the gzip stream, and is told from a broken layer by the blob's digest."""
    rig.blob.flipped = len(BLOB) // 2
    registrar = rig.registrar()
    await rig.add(registrar)
    record = await reach(rig, lambda r: r.progress is not None and r.progress.phase == "waiting")
    assert record.progress.error.code == "blob_digest_mismatch"
    rig.blob.flipped = None
    await finish(registrar)
    assert (await rig.catalog.get("one")).state == "ready"


async def test_a_layer_that_is_no_tar_serves_as_bytes_only(rig):
    data = content(100_000, 5)
    rig.source.layers.clear()
    rig.source.add(gzips.member(data), sha256(data))
    registrar = rig.registrar()
    await rig.add(registrar, "bytes")
    await rig.add(registrar, "tree", layout="filesystem")
    await finish(registrar)
    assert (await rig.catalog.get("bytes")).state == "ready"
    record = await rig.catalog.get("tree")
    assert (record.state, record.failure.code) == ("failed", "invalid_layer")
    assert "layouts tar and raw" in record.failure.detail


# Interruption


async def test_stopping_leaves_a_registration_for_the_next_start(rig):
    rig.blob.gate = asyncio.Event()
    first = rig.registrar()
    await rig.add(first)
    await reach(rig, lambda _: rig.blob.streams)
    await first.aclose()
    assert (await rig.catalog.get("one")).state == "indexing"
    rig.blob.gate.set()
    second = rig.registrar()
    await second.start()
    await finish(second)
    assert (await rig.catalog.get("one")).state == "ready"


async def test_a_deleted_device_is_no_longer_worked_on(rig):
    rig.blob.gate = asyncio.Event()
    registrar = rig.registrar()
    await rig.add(registrar)
    await reach(rig, lambda _: rig.blob.streams)
    record = await rig.catalog.delete("one")
    await registrar.cancel(record)
    assert registrar._tasks == {}
    await registrar.cancel(record)
    rig.blob.gate = None
    await rig.add(registrar)
    await finish(registrar)
    assert (await rig.catalog.get("one")).state == "ready"


async def test_one_registration_at_a_time_however_often_others_look(rig, open_catalog):
    rig.blob.gate = asyncio.Event()
    first, second = rig.registrar(), rig.registrar(open_catalog())
    record = await rig.add(first)
    await reach(rig, lambda _: rig.blob.streams)
    for _ in range(3):
        second.begin(record)
        await finish(second)
    assert rig.source.resolved == 1
    rig.blob.gate.set()
    await finish(first)
    assert (await rig.catalog.get("one")).state == "ready"


@pytest.mark.parametrize("error", [None, errors.ImageNotFound])
async def test_a_registration_that_another_process_just_finished_is_left_alone(rig, error):
    """What ``_resume`` read may be old when its turn comes."""
    rig.source.error = None if error is None else failure(error, "the reason")
    registrar = rig.registrar()
    old = await rig.add(registrar)
    await finish(registrar)
    finished = await rig.catalog.get("one")
    second = rig.registrar()
    second.begin(old)
    await finish(second)
    assert await rig.catalog.get("one") == finished
    assert rig.source.resolved == 1


# Proof behind a device that is being served already


@pytest.fixture
async def supplied(rig):
    table = build_table(BLOB, 65536)
    return await rig.upload(encode(zip(table.points, table.windows, strict=True), 65536))


async def test_a_background_proof_serves_at_once_and_ends_verified(rig, supplied):
    rig.blob.gate = None
    registrar = rig.registrar()
    await rig.add(registrar, zinfo=supplied, verify="background")
    await finish(registrar)
    record = await rig.catalog.get("one")
    assert (record.state, record.verification) == ("ready", "verified")
    device = await rig.shelf.get("one")
    assert bytes(await device.read(0, device.size)) == TAR
    assert [path for path in rig.attempts() if "unproven" in str(path)] == []


async def test_while_the_proof_is_under_way_bytes_are_served(rig, supplied, monkeypatch):
    gate = asyncio.Event()
    real = MemoryBlob.stream

    async def stream(self, start=0):
        await gate.wait()
        async for piece in real(self, start):
            yield piece

    monkeypatch.setattr(MemoryBlob, "stream", stream)
    registrar = rig.registrar()
    await rig.add(registrar, zinfo=supplied, verify="background")
    record = await reach(rig, lambda r: r.state == "ready")
    assert record.verification == "verifying"
    device = await rig.shelf.get("one")
    assert bytes(await device.read(0, device.size)) == TAR
    assert (device.proven, device.etag) == (False, record.unproven_etag)
    assert rig.disk.used_bytes == 0
    gate.set()
    await finish(registrar)
    proven = await rig.shelf.get("one")
    assert proven is not device
    assert (proven.proven, proven.etag) == (True, record.recipe.etag)
    assert await rig.shelf.get_content(device.etag.strip('"')) is proven
    assert bytes(await proven.read(0, 1000)) == TAR[:1000]


@pytest.mark.parametrize("kind", [errors.RegistryUnreachable, errors.BlobNotFound, errors.StorageError])
async def test_a_proof_waits_for_a_registry_or_a_disk_that_fails(rig, supplied, monkeypatch, kind):
    rig.blob.error, rig.blob.error_at = None, 0
    tries = 0
    real = MemoryBlob.stream

    async def stream(self, start=0):
        nonlocal tries
        tries += 1
        if tries < 4:
            raise failure(kind)
        async for piece in real(self, start):
            yield piece

    monkeypatch.setattr(MemoryBlob, "stream", stream)
    registrar = rig.registrar()
    await rig.add(registrar, zinfo=supplied, verify="background")
    await finish(registrar)
    record = await rig.catalog.get("one")
    assert (record.state, record.verification, record.failure) == ("ready", "verified", None)
    assert tries == 4


async def test_a_proof_that_was_interrupted_goes_on_after_the_next_start(rig, supplied, monkeypatch):
    async def down(self, start=0):
        raise failure(errors.RegistryUnreachable)
        yield b""

    first = rig.registrar()
    with monkeypatch.context() as patch:
        patch.setattr(MemoryBlob, "stream", down)
        await rig.add(first, zinfo=supplied, verify="background")
        await reach(rig, lambda r: r.verification == "verifying")
        await first.aclose()
    second = rig.registrar()
    await second.start()
    await finish(second)
    assert (await rig.catalog.get("one")).verification == "verified"


async def test_a_table_of_another_layer_is_refused(rig):
    other = gzips.member(content(270_000, 8))
    table = build_table(other, 65536)
    zinfo = await rig.upload(encode(zip(table.points, table.windows, strict=True), 65536))
    registrar = rig.registrar()
    for verify in ("before", "background"):
        await rig.add(registrar, verify, zinfo=zinfo, verify=verify)
    await finish(registrar)
    for verify in ("before", "background"):
        record = await rig.catalog.get(verify)
        assert record.state in ("failed", "quarantined")
        with pytest.raises((errors.DeviceFailed, errors.DeviceQuarantined)):
            await rig.shelf.get(verify)


async def test_content_that_contradicts_its_proof_is_quarantined(rig):
    """A window byte that no span refers to decodes rightly and is still a lie."""
    table = build_table(BLOB, 65536)
    windows = [bytearray(window) for window in table.windows]
    windows[2][5] ^= 0x41
    zinfo = await rig.upload(encode(zip(table.points, map(bytes, windows), strict=True), 65536))
    registrar = rig.registrar()
    await rig.add(registrar, zinfo=zinfo, verify="background")
    await finish(registrar)
    record = await rig.catalog.get("one")
    assert (record.state, record.failure.code) == ("quarantined", "invalid_zinfo")
    with pytest.raises(errors.DeviceQuarantined):
        await rig.shelf.get("one")
    await rig.add(registrar, "again", zinfo=zinfo, verify="background")
    await finish(registrar)
    record = await rig.catalog.get("again")
    assert (record.state, record.failure.code) == ("failed", "invalid_zinfo")
    assert "refuted" in record.failure.detail


async def test_what_a_pass_has_proven_is_preferred_to_a_table(rig, supplied):
    registrar = rig.registrar()
    await rig.add(registrar)
    await finish(registrar)
    streams = rig.blob.streams
    await rig.add(registrar, "two", zinfo=supplied, verify="background")
    await finish(registrar)
    record = await rig.catalog.get("two")
    assert (record.state, record.verification) == ("ready", "verified")
    assert record.etag == (await rig.catalog.get("one")).etag
    assert rig.blob.streams == streams


@pytest.mark.parametrize(
    "zinfo", [b"", b"x" * 11, b"\xff" * 100, encode([], 65536)], ids=["nothing", "short", "noise", "empty"]
)
async def test_a_broken_table_is_refused_by_name(rig, zinfo):
    digest = await rig.upload(zinfo)
    registrar = rig.registrar()
    for verify in ("before", "background"):
        await rig.add(registrar, verify, zinfo=digest, verify=verify)
    await finish(registrar)
    for verify in ("before", "background"):
        record = await rig.catalog.get(verify)
        assert (record.state, record.failure.code) == ("failed", "invalid_zinfo")


# The shelf


async def ready(rig, **fields):
    registrar = rig.registrar()
    await rig.add(registrar, **fields)
    await finish(registrar)
    assert (await rig.catalog.get("one")).state == "ready"


async def test_the_shelf_opens_a_device_once_and_notices_changes(rig):
    await ready(rig)
    assert rig.shelf.peek("one") is None
    device = await rig.shelf.get("one")
    assert rig.shelf.peek("one") is device
    assert rig.shelf.opened() == [device]
    await rig.catalog.create("two", DeviceSpec.model_validate(SPEC))
    assert rig.shelf.peek("one") is None
    assert await rig.shelf.get("one") is device
    await rig.catalog.delete("one")
    assert rig.shelf.peek("one") is None
    with pytest.raises(errors.DeviceNotFound):
        await rig.shelf.get("one")
    assert rig.shelf.opened() == []


async def test_a_device_that_was_registered_anew_is_another_one(rig):
    await ready(rig)
    device = await rig.shelf.get("one")
    await rig.catalog.delete("one")
    await ready(rig)
    assert await rig.shelf.get("one") is not device


async def test_only_devices_in_a_serving_state_are_given_out(rig):
    await ready(rig)
    record = await rig.catalog.get("one")
    await rig.shelf.get("one")
    assert await rig.catalog.end(record, Event.REFUTED, Failure("invalid_zinfo", "it lies"))
    with pytest.raises(errors.DeviceQuarantined, match="it lies"):
        await rig.shelf.get("one")


async def test_a_device_that_is_not_ready_says_what_it_waits_for(rig):
    rig.source.error = failure(errors.RegistryUnreachable, "nobody answers")
    registrar = rig.registrar()
    await rig.add(registrar)
    await reach(rig, lambda r: r.progress is not None and r.progress.phase == "waiting")
    with pytest.raises(errors.DeviceNotReady, match="nobody answers"):
        await rig.shelf.get("one")


@pytest.mark.parametrize("kind", [errors.BlobNotFound, errors.RegistryTimeout])
async def test_a_source_that_fails_is_a_matter_of_health_and_not_of_state(rig, kind):
    await ready(rig)
    device = await rig.shelf.get("one")
    before = await rig.catalog.get("one")
    rig.blob.error = failure(kind, "gone")
    with pytest.raises(kind):
        await device.read(0, 10)
    assert rig.shelf.trouble() == {"one": Failure(kind.code, "gone")}
    assert await rig.catalog.get("one") == before
    assert await rig.shelf.get("one") is device
    rig.blob.error = None
    await device.read(0, 10)
    assert rig.shelf.trouble() == {}


async def test_a_change_of_another_device_leaves_an_open_one_alone(rig):
    await ready(rig)
    device = await rig.shelf.get("one")
    await rig.catalog.create("two", DeviceSpec.model_validate(SPEC))
    asked = []
    real = rig.catalog.get

    async def counted(name):
        asked.append(name)
        return await real(name)

    rig.catalog.get = counted
    assert await rig.shelf.get("one") is device
    assert asked == []


async def test_a_catalog_that_is_away_costs_no_reader_of_an_open_device(rig, monkeypatch):
    await ready(rig)
    device = await rig.shelf.get("one")
    rig.catalog.generation.advance()

    async def away(*_args):
        raise failure(errors.StorageError, "away")

    monkeypatch.setattr(rig.catalog, "changed", away)
    assert await rig.shelf.get("one") is device
    with pytest.raises(errors.StorageError):
        await rig.shelf.get("two")


async def test_a_device_that_nobody_reads_is_closed_and_opened_again(rig):
    await ready(rig)
    device = await rig.shelf.get("one")
    await device.read(0, 10)
    for _ in range(6):
        rig.shelf.sweep()
    assert rig.shelf.opened() == []
    again = await rig.shelf.get("one")
    assert again is not device
    assert bytes(await again.read(0, again.size)) == TAR


async def test_a_read_that_is_under_way_when_its_device_is_deleted_is_finished(rig):
    raw = content(300_000, 6)
    rig.source.layers.clear()
    rig.source.add(raw, None, "application/octet-stream")
    await ready(rig, layout="raw")
    device = await rig.shelf.get("one")
    stream = device.stream(0, device.size)
    got = bytes(await anext(stream))
    await rig.catalog.delete("one")
    with pytest.raises(errors.DeviceNotFound):
        await rig.shelf.get("one")
    got += b"".join([bytes(piece) async for piece in stream])
    assert got[: len(raw)] == raw


async def test_an_index_that_is_gone_is_made_again_by_the_recipe_while_the_device_stays_ready(rig):
    await ready(rig)
    record = await rig.catalog.get("one")
    for path in rig.attempts():
        shutil.rmtree(path)
    rig.source.layers.clear()  # the tag shows something else by now
    device = await rig.shelf.get("one")
    assert bytes(await device.read(0, device.size)) == TAR
    assert await rig.catalog.get("one") == record
    assert len(rig.attempts()) == 1


@pytest.mark.parametrize("name", ["index.json", "spans.bin", "checkpoints.zinfo"])
async def test_an_index_that_is_damaged_is_made_again_with_the_same_content(rig, name):
    await ready(rig)
    record = await rig.catalog.get("one")
    before = (rig.attempts()[0] / name).read_bytes()
    path = rig.attempts()[0] / name
    path.write_bytes(bytes(reversed(before)))
    device = await rig.shelf.get("one")
    assert bytes(await device.read(0, device.size)) == TAR
    assert (rig.attempts()[0] / name).read_bytes() == before
    assert await rig.catalog.get("one") == record


async def test_a_read_waits_for_what_is_made_again_and_no_longer(rig, monkeypatch):
    await ready(rig)
    for path in rig.attempts():
        shutil.rmtree(path)
    monkeypatch.setattr(shelf, "_PATIENCE_SECONDS", 0.05)
    rig.blob.gate = asyncio.Event()
    device = await rig.shelf.get("one")
    with pytest.raises(errors.IndexBeingMade) as caught:
        await device.read(0, 10)
    assert caught.value.retry_after_seconds
    assert (await rig.catalog.get("one")).state is State.READY
    rig.blob.gate.set()
    async with asyncio.timeout(30):
        while rig.registrars[-1]._restorations:
            await asyncio.sleep(0.002)
    assert bytes(await device.read(0, 10)) == TAR[:10]


async def test_generated_metadata_that_is_gone_or_damaged_is_made_again(rig):
    await ready(rig, layout="filesystem", layer={"index": 0})
    record = await rig.catalog.get("one")
    metadata = record.recipe.metadata
    path = rig.folder / "artifacts" / metadata.digest.removeprefix("sha256:")
    truth = path.read_bytes()
    for harm in (
        path.unlink,
        lambda: path.write_bytes(truth[:-1]),
        lambda: path.write_bytes(bytes(len(truth))),
    ):
        harm()
        await rig.store.drop()
        device = await rig.shelf.get("one")
        assert bytes(await device.read(0, metadata.size)) == truth
        assert path.read_bytes() == truth
    assert await rig.catalog.get("one") == record


async def test_a_known_image_takes_no_second_build(rig, monkeypatch):
    await ready(rig, layout="filesystem", layer={"index": 0})

    async def never(*_args):
        raise AssertionError

    monkeypatch.setattr(parts, "build_in_process", never)
    registrar = rig.registrar()
    await rig.add(registrar, "two", layout="filesystem", layer={"index": 0})
    await finish(registrar)
    one, two = await rig.catalog.get("one"), await rig.catalog.get("two")
    assert (two.state, two.etag, two.contents) == ("ready", one.etag, one.contents)


async def test_metadata_of_a_deleted_device_is_read_to_its_end(rig):
    await ready(rig, layout="filesystem", layer={"index": 0})
    device = await rig.shelf.get("one")
    metadata = device.segments[0]
    await rig.catalog.delete("one")
    with pytest.raises(errors.DeviceNotFound):
        await rig.shelf.get("one")
    assert len(await device.read(0, metadata.length)) == metadata.length
