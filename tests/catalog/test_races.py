"""Two that change the catalog at once: one waits for the other, and what the second finds is what the first left."""

from __future__ import annotations

import asyncio
import threading

import pytest
import sqlalchemy as sa

from gateway.catalog import indexes
from gateway.catalog.leases import Leases
from gateway.errors import DeviceNotFound, LeaseLost
from gateway.layers.key import LayerKey
from gateway.recipes.records import Failure
from gateway.recipes.states import Event, Verification
from tests.catalog.rows import KEY, OTHER, SPEC, index, recipe

OTHER_KEY = LayerKey(f"sha256:{'f' * 64}", KEY.cut)
PUBLISHED = {"verification": Verification.VERIFIED, "config": "{}", "contents": None}


async def blocked(database, execute):
    """Wait until a transaction waits for another one; SQLite lets the second one not even begin."""
    if database.startswith("postgresql"):
        async with asyncio.timeout(20):
            while not await asyncio.to_thread(execute, "SELECT 1 FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.005)


async def test_devices_of_the_same_layers_in_another_order_never_wait_for_each_other(catalog, open_catalog):
    other = open_catalog()
    for key in (KEY, OTHER_KEY):
        await index(catalog, key)
    for turn in range(10):
        one, two = [(await catalog.create(f"{name}-{turn}", SPEC))[0] for name in ("one", "two")]
        async with asyncio.timeout(20):
            missing = await asyncio.gather(
                catalog.publish(one, recipe(), [KEY, OTHER_KEY], **PUBLISHED),
                other.publish(two, recipe(), [OTHER_KEY, KEY], **PUBLISHED),
            )
        assert missing == [[], []]


async def test_a_device_that_is_deleted_while_it_is_published_leaves_nothing(
    catalog, open_catalog, database, execute, monkeypatch
):
    other = open_catalog()
    await index(catalog)
    record, _ = await catalog.create("one", SPEC)
    begun, go, refer = threading.Event(), threading.Event(), indexes.refer

    def slow(*args):
        begun.set()
        assert go.wait(20)
        return refer(*args)

    monkeypatch.setattr(indexes, "refer", slow)
    publishing = asyncio.create_task(catalog.publish(record, recipe(), [KEY], **PUBLISHED))
    assert await asyncio.to_thread(begun.wait, 20)
    deleting = asyncio.create_task(other.delete("one"))
    await blocked(database, execute)
    go.set()
    assert await publishing == []
    assert (await deleting).recipe == recipe()
    for table in ("devices", "device_layers", "image_configs"):
        assert execute(f"SELECT count(*) FROM {table}")[0][0] == 0


async def test_a_failed_device_that_is_deleted_while_it_is_tried_again_is_made_anew(
    catalog, open_catalog, database, execute, monkeypatch
):
    """Whoever asks for it gets a device, and is not told that there is none."""
    other = open_catalog()
    record, _ = await catalog.create("one", SPEC)
    await catalog.end(record, Event.GAVE_UP, Failure("code", "text"))
    begun, go, delete = threading.Event(), threading.Event(), sa.delete

    def slow(table):
        begun.set()
        assert go.wait(20)
        return delete(table)

    with monkeypatch.context() as patch:
        patch.setattr("gateway.catalog.catalog.sa.delete", slow)
        deleting = asyncio.create_task(other.delete("one"))
        assert await asyncio.to_thread(begun.wait, 20)
        creating = asyncio.create_task(catalog.create("one", SPEC))
        await blocked(database, execute)
        go.set()
        assert (await deleting).uid == record.uid
        again, created = await creating
    assert created
    assert again.uid != record.uid
    assert again.state == "indexing"


@pytest.mark.parametrize("specs", [(SPEC, SPEC), (SPEC, OTHER)], ids=["the same", "others"])
async def test_of_many_that_replace_a_failed_device_at_once_one_specification_wins(
    catalog, open_catalog, specs
):
    other = open_catalog()
    record, _ = await catalog.create("one", specs[0])
    await catalog.end(record, Event.GAVE_UP, Failure("code", "text"))
    calls = [(catalog, other)[n % 2].create("one", specs[n % 2]) for n in range(6)]
    found = await asyncio.gather(*calls, return_exceptions=True)
    devices = {each[0].uid for each in found if isinstance(each, tuple)}
    assert len(devices) == 1
    assert not [each for each in found if isinstance(each, DeviceNotFound)]
    assert (await catalog.get("one")).uid in devices


async def test_a_lease_whose_renewal_hangs_is_lost_in_time(catalog, monkeypatch):
    """A database that says nothing must not let its holder go on when others may have the lease."""
    leases = Leases(catalog._database, "me.", seconds=0.1)
    real = leases._set

    async def setting(statement, lease):
        if statement is leases._renew:
            await asyncio.Event().wait()
        return await real(statement, lease)

    monkeypatch.setattr(leases, "_set", setting)
    with pytest.raises(LeaseLost):
        async with asyncio.timeout(20), leases.hold("work"):
            await asyncio.Event().wait()
