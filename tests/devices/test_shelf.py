"""The shelf: a device is opened once, changes are noticed by those they concern, and what is open outlasts the catalog."""

from __future__ import annotations

import asyncio
import gc

import pytest

from gateway import errors
from gateway.devices import shelf as shelf_module
from gateway.layers.index import LayerIndex
from gateway.recipes.records import Failure
from gateway.recipes.spec import DeviceSpec
from gateway.recipes.states import Event
from gateway.spans.tier import Origin
from tests.devices.rig import SPEC, TAR, Rig, finish, ready
from tests.support.layers import content, failure


@pytest.fixture
async def rig(tmp_path, catalog, executor):
    rig = Rig(tmp_path, catalog, executor)
    yield rig
    await rig.aclose()


async def settle(rig):
    if rig.shelf._tasks:
        await asyncio.wait(rig.shelf._tasks, timeout=20)


def etag(record):
    return record.etag.strip('"')


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


async def test_the_feed_costs_a_look_only_those_devices_that_changed(rig, monkeypatch):
    await ready(rig)
    device = await rig.shelf.get("one")
    looked = []
    real = rig.catalog.get

    async def get(name):
        looked.append(name)
        return await real(name)

    monkeypatch.setattr(rig.catalog, "get", get)
    await rig.catalog.create("two", DeviceSpec.model_validate(SPEC))
    assert await rig.shelf.get("one") is device
    assert rig.shelf.peek("one") is device
    assert looked == []


async def test_a_feed_that_does_not_reach_back_makes_all_be_looked_at(rig, monkeypatch):
    await ready(rig)
    device = await rig.shelf.get("one")

    async def changed(_cursor):
        return 10**6, None

    monkeypatch.setattr(rig.catalog, "changed", changed)
    rig.catalog.generation.advance()
    monkeypatch.setattr(rig.catalog, "get", rig.catalog.get)
    assert await rig.shelf.get("one") is device


async def test_a_device_that_was_registered_anew_is_another_one(rig):
    await ready(rig)
    device = await rig.shelf.get("one")
    await rig.catalog.delete("one")
    await ready(rig)
    assert await rig.shelf.get("one") is not device
    assert len(rig.shelf.opened()) == 1


async def test_a_name_that_was_reused_for_what_is_not_ready_is_no_longer_served(rig):
    record = await ready(rig)
    await rig.shelf.get("one")
    await rig.catalog.delete("one")
    await rig.catalog.create("one", DeviceSpec.model_validate(SPEC))
    with pytest.raises(errors.DeviceNotReady):
        await rig.shelf.get("one")
    with pytest.raises(errors.ContentNotFound):
        await rig.shelf.get_content(etag(record))
    assert rig.shelf.opened() == []


async def test_a_change_that_is_followed_while_a_device_is_looked_up_is_not_missed(rig, monkeypatch):
    """What was read before the change must not be given out after it."""
    await ready(rig)
    await ready(rig, "other")
    real = rig.catalog.get

    async def get(name):
        record = await real(name)
        if name == "one":
            monkeypatch.setattr(rig.catalog, "get", real)
            await rig.catalog.delete("one")
            await rig.shelf.get("other")  # follows the feed
        return record

    monkeypatch.setattr(rig.catalog, "get", get)
    with pytest.raises(errors.DeviceNotFound):
        await rig.shelf.get("one")
    assert rig.shelf.peek("one") is None


async def test_a_registration_that_failed_says_why(rig):
    record, _ = await rig.catalog.create("one", DeviceSpec.model_validate(SPEC))
    with pytest.raises(errors.DeviceNotReady):
        await rig.shelf.get("one")
    await rig.catalog.end(record, Event.GAVE_UP, Failure("code", "the reason"))
    with pytest.raises(errors.DeviceFailed, match="the reason"):
        await rig.shelf.get("one")


async def test_a_quarantined_device_is_given_out_no_more(rig):
    record = await ready(rig)
    await rig.shelf.get("one")
    await rig.catalog.end(record, Event.REFUTED, Failure("invalid_zinfo", "the reason"))
    with pytest.raises(errors.DeviceQuarantined, match="the reason"):
        await rig.shelf.get("one")
    with pytest.raises(errors.ContentNotFound):
        await rig.shelf.get_content(etag(record))
    assert rig.shelf.opened() == []


async def test_content_is_given_out_by_its_tag_whatever_its_devices_are_called(rig):
    record = await ready(rig)
    device = await rig.shelf.get_content(etag(record))
    assert await rig.shelf.get("one") is device
    assert rig.shelf.peek_content(etag(record)) is device
    await ready(rig, "two")
    await rig.catalog.delete("one")
    again = await rig.shelf.get_content(etag(record))
    assert again.name == "two"
    assert bytes(await again.read(0, again.size)) == TAR
    with pytest.raises(errors.ContentNotFound):
        await rig.shelf.get_content("0" * 40)


async def test_what_is_open_is_served_while_the_catalog_is_away(rig, monkeypatch):
    record = await ready(rig)
    device = await rig.shelf.get("one")

    async def away(*_args):
        raise errors.StorageError("the catalog does not answer")

    for method in ("get", "by_content", "changed"):
        monkeypatch.setattr(rig.catalog, method, away)
    rig.catalog.generation.advance()
    assert rig.shelf.peek("one") is None
    assert await rig.shelf.get("one") is device
    assert await rig.shelf.get_content(etag(record)) is device
    assert bytes(await device.read(0, 100)) == TAR[:100]
    with pytest.raises(errors.StorageError):
        await rig.shelf.get("two")


async def test_devices_that_nobody_reads_are_closed_and_opened_again(rig):
    await ready(rig)
    device = await rig.shelf.get("one")
    for _ in range(shelf_module._IDLE_SWEEPS):
        await device.read(0, 10)
        rig.shelf.sweep()
    assert rig.shelf.opened() == [device]
    for _ in range(shelf_module._IDLE_SWEEPS - 1):
        rig.shelf.sweep()
    assert rig.shelf.opened() == [device]
    rig.shelf.sweep()
    assert rig.shelf.opened() == []
    assert rig.shelf.peek("one") is None
    await settle(rig)
    assert rig.blob.closed
    again = await rig.shelf.get("one")
    assert again is not device
    assert bytes(await again.read(0, 100)) == TAR[:100]


async def test_bytes_of_closed_devices_count_on(rig):
    await ready(rig)
    device = await rig.shelf.get("one")
    await device.read(0, 100)
    await rig.catalog.delete("one")
    with pytest.raises(errors.DeviceNotFound):
        await rig.shelf.get("one")
    await settle(rig)
    assert rig.shelf.served()[Origin.UPSTREAM] == 100
    del device
    gc.collect()
    assert rig.shelf.served()[Origin.UPSTREAM] == 100


async def test_a_source_that_fails_is_trouble_until_it_is_back_and_changes_no_state(rig):
    await ready(rig)
    device = await rig.shelf.get("one")
    assert rig.shelf.trouble() == {}
    rig.blob.error = failure(errors.BlobNotFound, "gone")
    with pytest.raises(errors.BlobNotFound):
        await device.read(0, 10)
    assert rig.shelf.trouble() == {"one": Failure("blob_not_found", "gone")}
    assert (await rig.catalog.get("one")).state == "ready"
    rig.blob.error = None
    await device.read(0, 10)
    assert rig.shelf.trouble() == {}


async def test_trouble_of_a_device_that_is_gone_is_not_the_next_ones(rig):
    await ready(rig)
    device = await rig.shelf.get("one")
    rig.blob.error = failure(errors.BlobNotFound, "gone")
    with pytest.raises(errors.BlobNotFound):
        await device.read(0, 10)
    rig.blob.error = None
    await rig.catalog.delete("one")
    with pytest.raises(errors.DeviceNotFound):
        await rig.shelf.get("one")
    assert rig.shelf.trouble() == {}


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
    await settle(rig)
    got += b"".join([bytes(piece) async for piece in stream])
    assert got == raw


async def test_metadata_of_a_deleted_device_is_read_to_its_end(rig):
    await ready(rig, layout="filesystem", layer={"index": 0})
    device = await rig.shelf.get("one")
    metadata = device.segments[0]
    await rig.catalog.delete("one")
    with pytest.raises(errors.DeviceNotFound):
        await rig.shelf.get("one")
    await settle(rig)
    assert len(await device.read(0, metadata.length)) == metadata.length


async def test_generated_metadata_that_is_lost_is_made_again_by_its_reader(rig):
    record = await ready(rig, layout="filesystem", layer={"index": 0})
    device = await rig.shelf.get("one")
    metadata = record.recipe.metadata
    (await rig.artifacts.verified(metadata.digest)).unlink()
    assert len(await device.read(0, metadata.size)) == metadata.size
    await rig.artifacts.verified(metadata.digest)
    assert (await rig.catalog.get("one")).state == "ready"


async def test_one_that_a_later_version_wrote_is_not_served(rig):
    await ready(rig)
    record = await rig.catalog.get("one")
    later = "UPDATE devices SET recipe = '{\"format\": 99}'"
    await rig.catalog._write(lambda connection: connection.exec_driver_sql(later))
    assert record.recipe is not None
    with pytest.raises(errors.NewerFormat, match="format 99"):
        await rig.shelf.get("one")


async def test_devices_of_a_layer_share_its_open_index(rig):
    await ready(rig)
    await ready(rig, "two")
    devices = [await rig.shelf.get(name) for name in ("one", "two")]
    opened: list[LayerIndex] = [await device.layers[0].open() for device in devices]
    assert opened[0] is opened[1]
    registrar = rig.registrar()
    await finish(registrar)
