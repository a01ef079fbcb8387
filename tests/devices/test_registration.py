"""Registration: faults that can pass are waited out, others are written down; what is interrupted goes on."""

from __future__ import annotations

import asyncio
import errno
import os
import time

import pytest
import sqlalchemy as sa

from gateway import errors
from gateway.catalog.upkeep import release_leases
from gateway.devices import registrar as registrar_module
from gateway.devices.shelf import check_serving
from gateway.layers import folder as folder_module
from gateway.recipes import faults
from gateway.recipes.faults import DOUBTFUL_ATTEMPTS
from gateway.recipes.spec import DeviceSpec
from tests.devices.rig import BLOB, GZIP, SPEC, TAR, Rig, finish, reach, ready
from tests.support import gzips
from tests.support.layers import MemoryBlob, content, failure, sha256
from tests.support.zinfo_tables import build as build_table
from tests.support.zinfo_tables import encode


@pytest.fixture
async def rig(tmp_path, catalog, executor):
    rig = Rig(tmp_path, catalog, executor)
    yield rig
    await rig.aclose()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(faults, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(faults, "LONGEST_WAIT_SECONDS", 0.005)
    monkeypatch.setattr(registrar_module, "LONGEST_WAIT_SECONDS", 0.005)
    monkeypatch.setattr(registrar_module, "_WATCH_SECONDS", 0.005)


@pytest.fixture
def long_waits(monkeypatch):
    monkeypatch.setattr(faults, "FIRST_WAIT_SECONDS", 3600)
    monkeypatch.setattr(faults, "LONGEST_WAIT_SECONDS", 3600)
    monkeypatch.setattr(registrar_module, "LONGEST_WAIT_SECONDS", 3600)


def waiting(record):
    return record.progress is not None and record.progress.phase == "waiting"


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
    assert rig.leftovers() == []
    assert registrar.outcomes == {"ready": 1}


async def test_two_devices_of_one_layer_take_one_pass(rig):
    registrar = rig.registrar()
    await rig.add(registrar, "one")
    await rig.add(registrar, "two")
    await finish(registrar)
    assert {(await rig.catalog.get(n)).state for n in ("one", "two")} == {"ready"}
    assert rig.blob.streams == 1


FINAL = [errors.ImageNotFound, errors.PlatformNotFound, errors.PathNotAllowed, errors.InvalidReference]
DOUBTFUL = [
    errors.RegistryUnauthorized,
    errors.ManifestMismatch,
    errors.InvalidManifest,
    errors.AddressRefused,
    errors.BlobNotFound,
]
PASSING = [errors.RegistryUnreachable, errors.RegistryTimeout, errors.RegistryOverloaded, errors.StorageError]


@pytest.mark.parametrize(
    ("kind", "tries"), [(kind, 1) for kind in FINAL] + [(kind, DOUBTFUL_ATTEMPTS) for kind in DOUBTFUL]
)
async def test_what_cannot_pass_is_written_down_and_can_be_tried_again(rig, kind, tries):
    rig.source.error = failure(kind, "the reason")
    registrar = rig.registrar()
    first = await rig.add(registrar)
    await finish(registrar)
    record = await rig.catalog.get("one")
    assert rig.source.resolved == tries
    assert record.state == "failed"
    assert (record.failure.code, record.failure.detail) == (kind.code, "the reason")
    assert record.progress is None
    assert registrar.outcomes == {"failed": 1}
    with pytest.raises(errors.DeviceFailed, match="the reason"):
        await rig.shelf.get("one")
    rig.source.error = None
    again = await rig.add(registrar)
    assert again.uid == first.uid
    await finish(registrar)
    assert (await rig.catalog.get("one")).state == "ready"


@pytest.mark.parametrize("kind", PASSING)
async def test_what_can_pass_is_waited_out_however_often_it_comes(rig, kind):
    rig.source.error = failure(kind, "the reason")
    registrar = rig.registrar()
    await rig.add(registrar)
    record = await reach(
        rig, lambda record: waiting(record) and record.progress.attempt > DOUBTFUL_ATTEMPTS + 1
    )
    assert (record.state, record.failure) == ("indexing", None)
    assert (record.progress.error.code, record.progress.error.detail) == (kind.code, "the reason")
    assert abs(record.progress.retry_at - time.time()) < 60
    with pytest.raises(errors.DeviceNotReady, match="the reason"):
        check_serving(record)
    rig.source.error = None
    await finish(registrar)
    record = await rig.catalog.get("one")
    assert (record.state, record.progress) == ("ready", None)


@pytest.mark.parametrize("kind", [errors.RegistryTimeout, errors.TruncatedBody, errors.BlobNotFound])
async def test_what_breaks_off_in_mid_pass_leaves_nothing_and_is_tried_again(
    rig, long_waits, monkeypatch, kind
):
    del long_waits
    rig.blob.error, rig.blob.error_at = failure(kind, "broke off"), len(BLOB) // 2
    registrar = rig.registrar()
    await rig.add(registrar)
    record = await reach(rig, waiting)
    assert record.progress.error.code == kind.code
    assert (rig.attempts(), rig.leftovers()) == ([], [])
    await registrar.aclose()
    rig.blob.error = None
    second = rig.registrar()
    await second.start()
    await finish(second)
    assert (await rig.catalog.get("one")).state == "ready"


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
        record = await reach(rig, waiting)
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


@pytest.mark.parametrize("at", [len(BLOB) // 2, len(BLOB) - 5])
async def test_bytes_changed_on_the_way_every_time_fail_and_leave_nothing(rig, at):
    rig.blob.flipped = at
    registrar = rig.registrar()
    await rig.add(registrar)
    await finish(registrar)
    record = await rig.catalog.get("one")
    assert (record.state, record.failure.code) == ("failed", "blob_digest_mismatch")
    assert rig.blob.streams == DOUBTFUL_ATTEMPTS
    assert (rig.attempts(), rig.leftovers()) == ([], [])
    assert registrar.integrity_failures == {"blob_digest_mismatch": 1}
    rig.blob.flipped = None
    await rig.add(registrar)
    await finish(registrar)
    assert (await rig.catalog.get("one")).state == "ready"


async def test_a_bit_that_flips_once_costs_one_more_pass(rig, monkeypatch):
    real = MemoryBlob.stream

    def stream(self, start=0):
        self.flipped = None if self.streams else 77
        return real(self, start)

    monkeypatch.setattr(MemoryBlob, "stream", stream)
    await ready(rig)
    assert rig.blob.streams == 2


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


async def test_one_registration_at_a_time_however_often_others_look(rig):
    """Locks of two descriptions of one file stand for two processes."""
    rig.blob.gate = asyncio.Event()
    first, second = rig.registrar(), rig.registrar()
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


async def test_a_device_deleted_elsewhere_is_no_longer_worked_on(rig, open_catalog):
    rig.blob.gate = asyncio.Event()
    registrar = rig.registrar()
    await registrar.start()
    await rig.add(registrar)
    await reach(rig, lambda _: rig.blob.streams)
    await open_catalog().delete("one")
    await finish(registrar)
    assert registrar._tasks == {}
    assert (rig.attempts(), rig.leftovers()) == ([], [])


async def test_a_name_that_is_another_devices_after_a_wait_is_not_worked_on(rig, open_catalog):
    """Its lease is not held by who worked for the first one."""
    other = open_catalog()
    rig.source.error = failure(errors.RegistryTimeout)
    registrar = rig.registrar()
    real = rig.catalog.get

    async def get(name):
        rig.catalog.get = real
        before = await real(name)

        async def again(name):
            rig.catalog.get = real
            await other.delete(name)
            await other.create(name, DeviceSpec.model_validate(SPEC))
            return await real(name)

        rig.catalog.get = again
        return before

    rig.catalog.get = get
    first = await rig.add(registrar)
    await finish(registrar)
    rig.catalog.get = real
    assert rig.source.resolved == 1
    second = await rig.catalog.get("one")
    assert second.uid != first.uid
    assert (second.state, second.progress) == ("indexing", None)


async def test_work_that_a_dead_worker_left_is_taken_over(rig, monkeypatch, open_catalog, database):
    monkeypatch.setattr(registrar_module, "_RESUME_SECONDS", 0.01)
    dead = open_catalog()
    record, _ = await dead.create("one", DeviceSpec.model_validate(SPEC))
    assert await dead.leases.claim(f"device {record.uid}") is not None
    registrar = rig.registrar()
    await registrar.start()
    await finish(registrar)
    assert (await rig.catalog.get("one")).state == "indexing"
    release_leases(database, dead.leases._owner)
    await reach(rig, lambda record: record.state == "ready")


async def test_losing_the_lease_ends_the_work_quietly_and_another_goes_on(rig):
    rig.blob.gate = asyncio.Event()
    registrar = rig.registrar()
    record = await rig.add(registrar)
    await reach(rig, lambda _: rig.blob.streams)
    rig.catalog.leases._pause = 0.01
    (task,) = registrar._tasks.values()
    task.cancel()
    await finish(registrar)
    registrar.begin(record)
    await reach(rig, lambda _: rig.blob.streams == 2)

    def take(connection):
        connection.execute(sa.text("UPDATE leases SET owner = 'somebody', token = token + 1, until = 0"))

    await rig.catalog._database.write(take)
    await finish(registrar)
    record = await rig.catalog.get("one")
    assert (record.state, record.failure) == ("indexing", None)
    rig.catalog.leases._pause = 5
    rig.blob.gate.set()
    second = rig.registrar()
    await second.start()
    await finish(second)
    assert (await rig.catalog.get("one")).state == "ready"


async def test_a_device_that_is_asked_for_again_while_its_failure_is_written_down_is_tried_at_once(rig):
    rig.source.error = failure(errors.ImageNotFound)
    registrar = rig.registrar()
    real = rig.catalog.end

    async def end(record, event, why):
        done = await real(record, event, why)
        rig.source.error = None
        await rig.add(registrar)
        return done

    rig.catalog.end = end
    await rig.add(registrar)
    await reach(rig, lambda record: record.state == "ready")
    assert rig.source.resolved == 2


async def test_nothing_begins_while_the_gateway_stops(rig):
    rig.blob.gate = asyncio.Event()
    registrar = rig.registrar()
    record = await rig.add(registrar)
    await reach(rig, lambda _: rig.blob.streams)
    registrar.begin(record)
    await registrar.aclose()
    assert registrar._tasks == {}


# What is lost is made again


async def test_those_who_miss_an_index_share_one_restoration(rig):
    record = await ready(rig)
    (folder,) = rig.attempts()
    folder.rename(rig.folder / "away")
    registrar = rig.registrar()
    key = record.recipe.keys[0]
    first = registrar.restore(record, key)
    assert registrar.restore(record, key) is first
    await first.task
    assert rig.blob.streams == 2
    assert registrar._restorations == {}
    assert await rig.catalog.get("one") == record


async def test_a_restoration_waits_out_what_can_pass_and_says_what_it_met(rig):
    record = await ready(rig)
    (folder,) = rig.attempts()
    folder.rename(rig.folder / "away")
    rig.blob.error = failure(errors.RegistryUnreachable, "down")
    restoration = rig.main.restore(record, record.recipe.keys[0])
    async with asyncio.timeout(20):
        while restoration.error is None:
            await asyncio.sleep(0.002)
    assert restoration.error.code == "registry_unreachable"
    rig.blob.error = None
    await asyncio.wait_for(restoration.task, 20)


async def test_an_index_that_is_lost_delays_its_reader_until_it_is_there_again(rig):
    await ready(rig)
    (folder,) = rig.attempts()
    folder.rename(rig.folder / "away")
    device = await rig.shelf.get("one")
    assert bytes(await device.read(0, device.size)) == TAR
    assert (await rig.catalog.get("one")).state == "ready"


async def test_a_reader_waits_a_bounded_time_for_a_lost_index(rig, monkeypatch):
    monkeypatch.setattr("gateway.devices.shelf._PATIENCE_SECONDS", 0.05)
    await ready(rig)
    (folder,) = rig.attempts()
    folder.rename(rig.folder / "away")
    rig.blob.error = failure(errors.RegistryUnreachable, "down")
    device = await rig.shelf.get("one")
    with pytest.raises(errors.IndexBeingMade, match="down") as met:
        await device.read(0, 10)
    assert met.value.retry_after_seconds
    assert rig.shelf.trouble()["one"].code == "index_being_made"
    rig.blob.error = None


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
    assert not [path for path in rig.attempts() if "unproven" in path.parent.name]


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
    assert rig.disk.used_bytes == 0
    gate.set()
    await finish(registrar)
    proven = await rig.shelf.get("one")
    assert proven is not device
    assert (proven.proven, device.proven) == (True, False)
    assert device.etag.startswith(proven.etag[:-1] + "-unproven-")
    assert await rig.shelf.get_content(device.etag.strip('"')) is proven
    assert bytes(await device.read(0, device.size)) == TAR, "reads that are under way go on"
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


async def test_what_is_cleared_up_after_a_proof_is_not_cut_short_by_the_feed(rig, supplied):
    registrar = rig.registrar()
    real = rig.catalog.remove_index

    async def remove(key):
        await registrar._follow()
        await asyncio.sleep(0)
        return await real(key)

    rig.catalog.remove_index = remove
    await rig.add(registrar, zinfo=supplied, verify="background")
    await finish(registrar)
    assert (await rig.catalog.get("one")).verification == "verified"
    assert [path for path in rig.attempts() if "unproven" in path.parent.name] == []


async def test_a_table_that_is_not_here_refutes_nothing(rig, supplied, monkeypatch):
    """Another replica may prove what this one was given the table for."""
    real, tries = MemoryBlob.stream, 0

    def stream(self, start=0):
        nonlocal tries
        tries += 1
        if tries == 1:
            path.rename(rig.folder / "away")
            raise failure(errors.RegistryTimeout)
        return real(self, start)

    path = await rig.artifacts.verified(supplied)
    monkeypatch.setattr(MemoryBlob, "stream", stream)
    registrar = rig.registrar()
    await rig.add(registrar, zinfo=supplied, verify="background")
    record = await reach(rig, lambda r: waiting(r) and r.progress.error.code == "artifact_not_found")
    assert (record.state, record.verification) == ("ready", "verifying")
    (rig.folder / "away").rename(path)
    await finish(registrar)
    assert (await rig.catalog.get("one")).verification == "verified"


async def test_a_proof_whose_index_is_lost_before_it_counts_is_made_again(rig, supplied):
    real, calls = rig.catalog.prove, []

    async def prove(record, keys):
        calls.append(keys)
        if len(calls) == 1:
            row = await rig.catalog.index_row(keys[0])
            await rig.catalog.drop_index(keys[0], row.attempt)
        return await real(record, keys)

    rig.catalog.prove = prove
    registrar = rig.registrar()
    await rig.add(registrar, zinfo=supplied, verify="background")
    await finish(registrar)
    assert (await rig.catalog.get("one")).verification == "verified"
    assert len(calls) == 2


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
    for verify in ("before", "background"):
        await rig.add(registrar, verify, zinfo=zinfo, verify=verify)
    await finish(registrar)
    for verify in ("before", "background"):
        record = await rig.catalog.get(verify)
        assert (record.state, record.failure.code) == ("failed", "invalid_zinfo"), "it is remembered"


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
