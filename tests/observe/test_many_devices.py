"""A gateway of many devices is watched at a bounded cost."""

import threading
import uuid

import pytest
import sqlalchemy as sa

from gateway.observe import collect, observation
from gateway.recipes.records import Failure
from gateway.recipes.states import Event
from tests.support.inprocess import running

DEVICES = 150
AT_ONCE = 32
SHOWN = 100


@pytest.fixture
async def gateway(tmp_path, images, monkeypatch):
    # What is told to other workers is told by the tests.
    monkeypatch.setattr(observation, "_BEAT_SECONDS", 3600)
    async with running(tmp_path, images, workers=2, span_size=65536) as gateway:
        await gateway.layer("base")
        services = gateway.services
        engine = sa.create_engine(services.settings.catalog_url)
        with engine.begin() as connection:
            devices = sa.Table("devices", sa.MetaData(), autoload_with=connection)
            (row,) = connection.execute(sa.select(devices)).mappings()
            copies = [
                {**row, "name": f"copy-{number:03}", "uid": uuid.uuid4().hex} for number in range(DEVICES - 1)
            ]
            connection.execute(sa.insert(devices), copies)
        engine.dispose()
        services.catalog.generation.advance()
        yield gateway


async def stats(gateway):
    gateway.worker.stats.forget()
    return (await gateway.client.get("/v1/stats")).json()


def told(gateway):
    return {path.name for path in (gateway.services.data.run).glob("*.reads")}


async def test_the_statistics_list_the_first_devices_and_count_all(gateway):
    shown = await stats(gateway)
    assert (shown["devices_total"], len(shown["devices"])) == (DEVICES, SHOWN)
    assert shown["devices"][0]["name"] == "base"


async def test_devices_in_quarantine_are_named_though_they_are_far_behind(gateway):
    catalog = gateway.services.catalog
    for number in range(DEVICES - 6, DEVICES - 1):
        record = await catalog.get(f"copy-{number:03}")
        assert await catalog.end(record, Event.REFUTED, Failure("span_mismatch", "wrong"))
    assert (await stats(gateway))["status"] == {
        "level": "trouble",
        "reason": "5 devices quarantined (copy-144, copy-145, copy-146 and 2 more)",
    }


async def test_other_workers_are_told_of_a_bounded_number_of_devices_at_a_time_and_at_last_of_all(gateway):
    for number in range(2 * AT_ONCE):
        await gateway.services.shelf.get(f"copy-{number:03}")
    maps = gateway.worker.observation._maps
    counts = []
    for _ in range(3):
        await maps.tell()
        counts.append(len(told(gateway)))
    assert counts == [AT_ONCE, 2 * AT_ONCE, 2 * AT_ONCE]


async def test_other_workers_are_told_first_of_what_was_read(gateway):
    for number in range(2 * AT_ONCE):
        await gateway.services.shelf.get(f"copy-{number:03}")
    maps = gateway.worker.observation._maps
    await maps.tell()
    await maps.tell()
    for path in gateway.services.data.run.glob("*.reads"):
        path.unlink()
    answer = await gateway.client.get("/v1/devices/copy-040/data", headers={"range": "bytes=0-9"})
    assert answer.status_code == 206
    await maps.tell()
    # The read opened an index too, of which the device's map now says something; the others are told of once more.
    sizes = {path.stat().st_size for path in gateway.services.data.run.glob("*.reads")}
    assert len(sizes) == 2
    assert len(told(gateway)) == AT_ONCE


async def test_the_kernel_is_asked_and_numbers_are_written_on_a_thread(gateway, monkeypatch):
    loop, seen = threading.get_ident(), []
    asked, publish = collect.process_numbers, gateway.worker.observation._workers.publish

    def noted(numbers):
        seen.append(threading.get_ident())
        asked(numbers)

    def published(snapshot):
        seen.append(threading.get_ident())
        publish(snapshot)

    monkeypatch.setattr(collect, "process_numbers", noted)
    monkeypatch.setattr(gateway.worker.observation._workers, "publish", published)
    assert (await gateway.client.get("/metrics")).status_code == 200
    assert len(seen) >= 2
    assert loop not in seen
