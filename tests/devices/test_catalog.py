"""The catalog on SQLite: what was written is read, by every worker; PostgreSQL has its own tests."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from gateway.devices.catalog import Catalog, Generation, migrate, open_engine

from gateway.devices.tables import metadata
from gateway.errors import DeviceExists, DeviceNotFound, StorageError
from gateway.recipes.records import Failure, ImageFacts, Progress
from gateway.recipes.segments import Segment
from gateway.recipes.spec import DeviceSpec

SPEC = DeviceSpec.model_validate({"source": {"image": "oci:/x"}, "layer": {"index": 0}})
OTHER = DeviceSpec.model_validate({"source": {"image": "oci:/y"}})
SEGMENTS = [Segment("gzip", 0, 100, "sha256:aa", "gzip-1-v1"), Segment("zero", 100, 412)]
IMAGE = ImageFacts(
    "oci:/x", "sha256:bb", "linux/amd64", '{"config": {}}', [{"digest": "sha256:aa", "size": 5}]
)


async def test_a_new_device_is_being_indexed(catalog):
    before = datetime.now(UTC)
    record, created = await catalog.create("one", SPEC)
    assert created
    assert (record.name, record.spec, record.state, record.verification) == (
        "one",
        SPEC,
        "indexing",
        "unverified",
    )
    assert before <= record.created_at <= datetime.now(UTC)
    assert (record.size, record.etag, record.segments, record.image) == (None, None, [], None)
    assert (record.progress, record.failure, record.contents) == (None, None, None)
    assert await catalog.get("one") == record


async def test_the_same_spec_is_the_same_device(catalog):
    record, _ = await catalog.create("one", SPEC)
    assert await catalog.create("one", SPEC) == (record, False)


async def test_another_spec_needs_another_name(catalog):
    await catalog.create("one", SPEC)
    with pytest.raises(DeviceExists, match="'one'"):
        await catalog.create("one", OTHER)


async def test_what_was_updated_is_read(catalog):
    record, _ = await catalog.create("one", SPEC)
    contents = {"files": 1, "directories": 2, "symlinks": 0, "specials": 0, "bytes": 3}
    assert await catalog.update(
        record,
        state="ready",
        verification="verified",
        size=512,
        etag='"x"',
        segments_=SEGMENTS,
        image=IMAGE,
        progress=Progress("indexing", 1, 2),
        failure=Failure("code", "text"),
        contents=contents,
    )
    found = await catalog.get("one")
    assert (found.state, found.verification, found.size, found.etag) == ("ready", "verified", 512, '"x"')
    assert (found.segments, found.image, found.contents) == (SEGMENTS, IMAGE, contents)
    assert (found.progress, found.failure) == (Progress("indexing", 1, 2), Failure("code", "text"))
    assert await catalog.update(record, progress=None, failure=None, image=None)
    found = await catalog.get("one")
    assert (found.progress, found.failure, found.image) == (None, None, None)
    assert found.size == 512


async def test_sizes_beyond_32_bits_are_kept(catalog):
    record, _ = await catalog.create("one", SPEC)
    await catalog.update(record, size=1 << 50)
    assert (await catalog.get("one")).size == 1 << 50


async def test_devices_are_listed_by_name(catalog):
    for name in ("b", "a", "c"):
        await catalog.create(name, SPEC)
    assert [record.name for record in await catalog.all()] == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["none", "", "\x00", "a" * 500, "'; drop table devices; --"])
async def test_what_is_not_there_is_said_to_be_not_there(catalog, name):
    with pytest.raises(DeviceNotFound):
        await catalog.get(name)
    with pytest.raises(DeviceNotFound):
        await catalog.delete(name)
    assert await catalog.all() == []


async def test_a_deleted_device_is_gone_and_updates_of_it_do_nothing(catalog):
    record, _ = await catalog.create("one", SPEC)
    assert await catalog.delete("one") == record
    assert not await catalog.update(record, state="ready")
    with pytest.raises(DeviceNotFound):
        await catalog.get("one")


async def test_an_update_never_reaches_a_later_device_of_the_same_name(catalog):
    first, _ = await catalog.create("one", SPEC)
    await catalog.delete("one")
    second, created = await catalog.create("one", SPEC)
    assert created
    assert first.uid != second.uid
    assert not await catalog.update(first, state="ready")
    assert (await catalog.get("one")).state == "indexing"


async def test_only_from_changes_only_those_states(catalog):
    record, _ = await catalog.create("one", SPEC)
    assert not await catalog.update(record, only_from=frozenset({"ready"}), state="degraded")
    await catalog.update(record, state="ready")
    assert await catalog.update(record, only_from=frozenset({"ready"}), state="degraded")
    assert (await catalog.get("one")).state == "degraded"


async def test_every_worker_notices_a_change_but_not_mere_progress(catalog, open_catalog):
    other = open_catalog()
    seen = [other.generation.value()]
    record, _ = await catalog.create("one", SPEC)
    seen.append(other.generation.value())
    await catalog.update(record, progress=Progress("indexing", 1, 2))
    assert other.generation.value() == seen[-1]
    await catalog.update(record, state="ready")
    seen.append(other.generation.value())
    await catalog.delete("one")
    seen.append(other.generation.value())
    assert len(set(seen)) == 4


async def test_the_generation_wraps_instead_of_overflowing(tmp_path):
    (tmp_path / "generation").write_bytes(b"\xff" * 8)
    generation = Generation(tmp_path / "generation")
    generation.advance()
    assert generation.value() == 0
    generation.close()


async def test_many_that_want_one_name_at_once_get_one_device(catalog, open_catalog):
    catalogs = [catalog, open_catalog(), open_catalog()]
    found = await asyncio.gather(*(catalogs[i % 3].create("one", SPEC) for i in range(12)))
    assert sum(created for _, created in found) == 1
    assert len({record.uid for record, _ in found}) == 1


async def test_many_names_at_once_are_all_kept(catalog, open_catalog):
    catalogs = [catalog, open_catalog()]
    await asyncio.gather(*(catalogs[i % 2].create(f"d{i:02}", SPEC) for i in range(24)))
    assert len(await catalog.all()) == 24


async def test_creating_while_others_delete_ends_in_a_device(catalog, open_catalog):
    """The row that was in the way may be gone when it is looked at."""
    other = open_catalog()
    await catalog.create("one", OTHER)
    real = catalog.get

    async def get(name):
        catalog.get = real
        await other.delete(name)
        return await real(name)

    catalog.get = get
    record, created = await catalog.create("one", SPEC)
    assert created
    assert record.spec == SPEC


async def test_a_change_whose_caller_is_gone_is_told_and_closing_waits_for_it(catalog):
    begun, go, ended = threading.Event(), threading.Event(), []

    def slow(connection):
        begun.set()
        assert go.wait(20)
        ended.append(connection.execute(sa.select(1)).scalar())

    before = catalog.generation.value()
    caller = asyncio.create_task(catalog._write(slow))
    assert await asyncio.to_thread(begun.wait, 20)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    asyncio.get_running_loop().call_later(0.1, go.set)
    await asyncio.to_thread(catalog.close)
    assert ended == [1]
    assert catalog.generation.value() != before


async def test_a_database_that_does_not_answer_is_a_storage_error_without_sql(tmp_path, executor):
    generation = Generation(tmp_path / "generation")
    catalog = Catalog(f"sqlite:///{tmp_path}/none/catalog.sqlite", generation, executor)
    for call in (catalog.all(), catalog.get("a"), catalog.create("a", SPEC), catalog.check()):
        with pytest.raises(StorageError) as error:
            await call
        assert "SELECT" not in error.value.detail
        assert "INSERT" not in error.value.detail
    catalog.close()
    generation.close()


def test_a_catalog_that_cannot_be_migrated_is_a_storage_error(tmp_path):
    (tmp_path / "catalog.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError, match="catalog"):
        migrate(f"sqlite:///{tmp_path}/catalog.sqlite")


def test_migrations_give_the_tables_that_the_code_declares(tmp_path):
    url = f"sqlite:///{tmp_path}/catalog.sqlite"
    migrate(url)
    engine = open_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        found = {row[1] for row in connection.execute(sa.text("PRAGMA table_info(devices)"))}
    assert found == set(metadata.tables["devices"].columns.keys())
    engine.dispose()


async def test_migrating_again_keeps_devices(tmp_path, database, catalog):
    await catalog.create("one", SPEC)
    migrate(database)
    assert [record.name for record in await catalog.all()] == ["one"]
