"""The catalog on both databases: what was written is read, states change by their arrows only, every worker notices."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from gateway.catalog import changes
from gateway.catalog.catalog import Catalog
from gateway.catalog.generation import Generation
from gateway.errors import ContentNotFound, DeviceExists, DeviceNotFound, StorageError
from gateway.layers.key import LayerKey
from gateway.recipes.records import Failure, Progress
from gateway.recipes.states import Event, State, Verification
from tests.catalog.rows import FACTS, KEY, OTHER, SPEC, UNPROVEN, ZINFO, index, ready, recipe

REASON = Failure("code", "text")


async def names(catalog, **filters):
    page = await catalog.page(limit=1000, **filters)
    return [device.name for device in page.devices]


# A device begins


async def test_a_new_device_is_being_indexed(catalog):
    before = datetime.now(UTC)
    record, created = await catalog.create("one", SPEC)
    assert created
    assert (record.name, record.spec, record.state) == ("one", SPEC, "indexing")
    assert record.verification == "unverified"
    assert before <= record.created_at <= datetime.now(UTC)
    assert (record.recipe, record.etag, record.progress, record.failure) == (None, None, None, None)
    assert (record.contents, record.newer) == (None, None)
    assert await catalog.get("one") == record
    assert await catalog.unfinished() == [record]


async def test_the_same_spec_is_the_same_device(catalog):
    record, _ = await catalog.create("one", SPEC)
    assert await catalog.create("one", SPEC) == (record, False)


async def test_another_spec_needs_another_name(catalog):
    await catalog.create("one", SPEC)
    with pytest.raises(DeviceExists, match="'one'"):
        await catalog.create("one", OTHER)


async def test_a_failed_device_is_tried_again_by_the_same_spec(catalog):
    record, _ = await catalog.create("one", SPEC)
    assert await catalog.end(record, Event.GAVE_UP, REASON)
    assert (await catalog.get("one")).failure == REASON
    assert await catalog.unfinished() == []
    again, created = await catalog.create("one", SPEC)
    assert created
    assert (again.uid, again.state, again.failure) == (record.uid, "indexing", None)


async def test_a_failed_device_makes_room_for_another_spec(catalog):
    record, _ = await catalog.create("one", SPEC)
    await catalog.end(record, Event.GAVE_UP, REASON)
    cursor, _ = await catalog.changed(0)
    other, created = await catalog.create("one", OTHER)
    assert created
    assert (other.spec, other.state) == (OTHER, "indexing")
    assert other.uid != record.uid
    assert {record.uid, other.uid} <= (await catalog.changed(cursor))[1]


@pytest.mark.parametrize("name", ["none", "", "\x00", "a" * 500, "'; drop table devices; --"])
async def test_what_is_not_there_is_said_to_be_not_there(catalog, name):
    with pytest.raises(DeviceNotFound):
        await catalog.get(name)
    with pytest.raises(DeviceNotFound):
        await catalog.delete(name)
    assert await names(catalog) == []


# It becomes ready, or does not


async def test_what_was_published_is_read(catalog):
    record = await ready(catalog)
    assert (record.state, record.verification) == ("ready", "verified")
    assert record.recipe == recipe()
    assert (record.etag, record.contents, record.progress) == (recipe().etag, FACTS, None)
    assert await catalog.config(record) == '{"config": {}}'
    (shown,) = (await catalog.page(limit=1)).devices
    assert (shown.size, shown.etag, shown.manifest) == (100, recipe().etag, recipe().manifest)
    assert await catalog.unfinished() == []


async def test_sizes_beyond_32_bits_are_kept(catalog):
    await ready(catalog, made=recipe(size=1 << 50))
    assert (await catalog.page(limit=1)).devices[0].size == 1 << 50


@pytest.mark.parametrize("dropped", [False, True])
async def test_publishing_without_an_index_changes_nothing(catalog, dropped):
    if dropped:
        await index(catalog)
        await catalog.drop_index(KEY, "1")
    record, _ = await catalog.create("one", SPEC)
    arguments = {"verification": Verification.VERIFIED, "config": "{}", "contents": None}
    assert await catalog.publish(record, recipe(), [KEY], **arguments) == [KEY]
    assert await catalog.get("one") == record
    await index(catalog, attempt="2")
    assert await catalog.publish(record, recipe(), [KEY], **arguments) == []
    assert (await catalog.get("one")).contents is None


async def test_a_deleted_device_is_not_published(catalog):
    await index(catalog)
    record, _ = await catalog.create("one", SPEC)
    assert await catalog.delete("one") == record
    arguments = {"verification": Verification.VERIFIED, "config": "{}", "contents": None}
    assert await catalog.publish(record, recipe(), [KEY], **arguments) == []
    with pytest.raises(DeviceNotFound):
        await catalog.get("one")


async def test_nothing_reaches_a_later_device_of_the_same_name(catalog):
    first = await ready(catalog)
    await catalog.delete("one")
    second, created = await catalog.create("one", SPEC)
    assert created
    assert first.uid != second.uid
    assert not await catalog.end(first, Event.GAVE_UP, REASON)
    await catalog.prove(first, [KEY])
    await catalog.progress(first, Progress("indexing", 1, 2))
    assert await catalog.get("one") == second


async def in_state(catalog, state):
    if state is State.READY:
        return await ready(catalog)
    record, _ = await catalog.create("one", SPEC)
    if state is State.FAILED:
        await catalog.end(record, Event.GAVE_UP, REASON)
    elif state is State.QUARANTINED:
        await catalog.delete("one")
        record = await ready(catalog)
        await catalog.end(record, Event.REFUTED, REASON)
    return await catalog.get("one")


@pytest.mark.parametrize("event", [Event.GAVE_UP, Event.REFUTED])
@pytest.mark.parametrize("state", list(State))
async def test_a_registration_ends_a_device_by_an_arrow_only(catalog, state, event):
    record = await in_state(catalog, state)
    assert record.state is state
    arrows = {(State.INDEXING, Event.GAVE_UP): "failed", (State.READY, Event.REFUTED): "quarantined"}
    done = await catalog.end(record, event, Failure("other", "reason"))
    assert done == ((state, event) in arrows)
    after = await catalog.get("one")
    assert after.state == arrows.get((state, event), state)
    if done:
        assert (after.failure, after.verification) == (Failure("other", "reason"), "unverified")
    else:
        assert after == record


@pytest.mark.parametrize("state", [State.READY, State.FAILED, State.QUARANTINED])
async def test_only_a_device_that_is_being_indexed_is_published(catalog, state):
    record = await in_state(catalog, state)
    await index(catalog)
    arguments = {"verification": Verification.VERIFIED, "config": "{}", "contents": None}
    await catalog.publish(record, recipe(size=5), [KEY], **arguments)
    assert await catalog.get("one") == record


async def test_progress_is_shown_while_there_is_work_and_never_afterwards(catalog):
    record, _ = await catalog.create("one", SPEC)
    waiting = Progress("waiting", 0, 0, REASON, 3, 1234.5)
    await catalog.progress(record, waiting)
    assert (await catalog.get("one")).progress == waiting
    await catalog.end(record, Event.GAVE_UP, REASON)
    await catalog.progress(record, waiting)
    assert (await catalog.get("one")).progress is None


# Proof behind a device that is served


async def references(execute):
    return [tuple(row) for row in execute("SELECT blob, cut FROM device_layers")]


async def test_a_proof_moves_the_references(catalog, execute):
    unproven = recipe(zinfo=ZINFO)
    record = await ready(catalog, made=unproven, verification=Verification.VERIFYING, key=UNPROVEN)
    assert record.etag == record.unproven_etag != unproven.etag
    assert await catalog.unfinished() == [record]
    assert await catalog.remove_index(UNPROVEN) is None, "a device is read by it"
    await index(catalog, attempt="2")
    assert await catalog.prove(record, [KEY]) == []
    proven = await catalog.get("one")
    assert (proven.verification, proven.etag) == ("verified", unproven.etag)
    assert await references(execute) == [KEY]
    assert await catalog.remove_index(UNPROVEN) == "1"
    assert await catalog.remove_index(UNPROVEN) is None


async def test_a_proof_whose_index_went_missing_changes_nothing(catalog, execute):
    record = await ready(catalog, made=recipe(zinfo=ZINFO), verification=Verification.VERIFYING, key=UNPROVEN)
    assert await catalog.prove(record, [KEY]) == [KEY]
    assert await catalog.get("one") == record
    assert await references(execute) == [UNPROVEN]


async def test_a_late_proof_does_not_verify_what_was_refuted(catalog):
    record = await ready(catalog, made=recipe(zinfo=ZINFO), verification=Verification.VERIFYING, key=UNPROVEN)
    await index(catalog)
    await catalog.end(record, Event.REFUTED, REASON)
    await catalog.prove(record, [KEY])
    found = await catalog.get("one")
    assert (found.state, found.verification) == ("quarantined", "unverified")


async def test_content_is_found_by_the_tags_that_its_bytes_have_or_had(catalog):
    made = recipe(zinfo=ZINFO)
    record = await ready(catalog, made=made, verification=Verification.VERIFYING, key=UNPROVEN)
    assert (await catalog.by_content(record.unproven_etag)).uid == record.uid
    with pytest.raises(ContentNotFound):
        await catalog.by_content(made.etag)
    await index(catalog)
    await catalog.prove(record, [KEY])
    for etag in (made.etag, record.unproven_etag):
        assert (await catalog.by_content(etag)).uid == record.uid
    other = record.unproven_etag.replace("c", "d")
    with pytest.raises(ContentNotFound):
        await catalog.by_content(other)


@pytest.mark.parametrize("etag", ['""', '"\x00"', '"ä"', '"' + "x" * 5000 + '"', '"%"'])
async def test_content_that_nobody_has_is_not_found(catalog, etag):
    await ready(catalog)
    with pytest.raises(ContentNotFound):
        await catalog.by_content(etag)


async def test_content_of_a_quarantined_device_is_not_found(catalog):
    record = await ready(catalog)
    await catalog.end(record, Event.REFUTED, REASON)
    with pytest.raises(ContentNotFound):
        await catalog.by_content(recipe().etag)


# Deleting


async def test_deleting_takes_the_references_and_the_last_one_takes_the_configuration(catalog, execute):
    one, two = await ready(catalog), await ready(catalog, "two")
    other = await ready(catalog, "other", recipe(manifest="d"))
    assert await catalog.delete("one") == one
    assert await catalog.config(two) is not None
    await catalog.delete("two")
    assert await catalog.config(two) is None
    assert await catalog.config(other) is not None
    assert await catalog.remove_index(KEY) is None
    await catalog.delete("other")
    assert await references(execute) == []
    assert await catalog.remove_index(KEY) == "1"


async def test_devices_are_present_until_they_are_deleted(catalog):
    one = await ready(catalog)
    two, _ = await catalog.create("two", SPEC)
    assert await catalog.present({one.uid, two.uid, "0" * 32}) == {one.uid, two.uid}
    await catalog.delete("one")
    assert await catalog.present([one.uid, two.uid]) == {two.uid}
    assert await catalog.present([]) == set()


# Lists


async def test_pages_go_through_all_devices_by_name(catalog):
    for name in ("b", "a", "c", "d", "e"):
        await catalog.create(name, SPEC)
    seen, cursor = [], None
    while True:
        page = await catalog.page(limit=2, cursor=cursor)
        seen += [device.name for device in page.devices]
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == ["a", "b", "c", "d", "e"]


async def test_pages_are_filtered_by_state_and_by_part_of_the_name(catalog):
    await ready(catalog, "web-1")
    await catalog.create("web-2", SPEC)
    await catalog.create("db_1", SPEC)
    assert await names(catalog, state=State.READY) == ["web-1"]
    assert await names(catalog, name="web") == ["web-1", "web-2"]
    assert await names(catalog, name="_") == ["db_1"]
    assert await names(catalog, name="%") == []
    assert await names(catalog, name="web", state=State.INDEXING) == ["web-2"]


async def test_a_page_of_what_no_name_can_hold_is_empty(catalog):
    await catalog.create("one", SPEC)
    assert await names(catalog, name="\x00") == []


async def test_states_are_counted(catalog):
    await ready(catalog)
    await catalog.create("two", SPEC)
    await catalog.create("three", SPEC)
    assert await catalog.counts() == {"indexing": 2, "ready": 1, "failed": 0, "quarantined": 0}


# What was found out once


async def test_builds_and_refuted_tables_are_remembered_and_written_again(catalog, open_catalog):
    other = open_catalog()
    assert await catalog.build("a" * 64) is None
    assert await catalog.refuted(ZINFO, KEY.blob) is None
    for _ in range(3):
        await asyncio.gather(
            *(each.keep_build("a" * 64, "sha256:1", {"size": 5}) for each in (catalog, other) * 3),
            *(each.refute(ZINFO, KEY.blob, "why") for each in (catalog, other) * 3),
        )
    assert await other.build("a" * 64) == ("sha256:1", {"size": 5})
    assert await other.refuted(ZINFO, KEY.blob) == "why"


# Workers


async def test_every_worker_notices_a_change_but_not_mere_progress(catalog, open_catalog):
    other = open_catalog()
    seen = [other.generation.value()]
    record, _ = await catalog.create("one", SPEC)
    seen.append(other.generation.value())
    await catalog.progress(record, Progress("indexing", 1, 2))
    assert other.generation.value() == seen[-1]
    await catalog.end(record, Event.GAVE_UP, REASON)
    seen.append(other.generation.value())
    await catalog.delete("one")
    seen.append(other.generation.value())
    assert len(set(seen)) == 4


async def test_the_feed_names_what_changed_since(catalog):
    first, _ = await catalog.create("one", SPEC)
    cursor, uids = await catalog.changed(0)
    assert first.uid in uids
    assert (await catalog.changed(cursor))[0] == cursor
    second, _ = await catalog.create("two", SPEC)
    assert second.uid in (await catalog.changed(cursor))[1]


async def test_a_follower_that_is_too_far_behind_is_told_everything_changed(catalog, monkeypatch, execute):
    monkeypatch.setattr(changes, "_KEPT", 10)
    monkeypatch.setattr(changes, "_PRUNE_EVERY", 5)
    await catalog.create("d0", SPEC)
    behind, _ = await catalog.changed(0)
    for number in range(1, 11):
        await catalog.create(f"d{number}", SPEC)
    assert len((await catalog.changed(behind))[1]) >= 10
    await catalog.create("d11", SPEC)
    assert (await catalog.changed(behind))[1] is None
    ((kept,),) = execute("SELECT count(*) FROM changes")
    assert kept <= 15


async def test_another_host_is_told_of_a_change_that_was_committed_late(
    database, catalog, open_catalog, execute
):
    """Numbers are given out before they are committed: a lower one may appear after a higher one was seen."""
    away = open_catalog("another host's generation")
    if database.startswith("sqlite"):  # which one host uses: there is nobody to tell
        await catalog.create("one", SPEC)
        await away.look(0)
        assert away.generation.value() == 0
        return
    execute("INSERT INTO changes (seq, uid) VALUES (100, 'high')")
    cursor, _ = await away.changed(0)
    await away.look(cursor)
    before = away.generation.value()
    await away.look(cursor)
    assert away.generation.value() == before
    execute("INSERT INTO changes (seq, uid) VALUES (99, 'low')")
    await away.look(cursor)
    assert away.generation.value() != before
    assert "low" in (await away.changed(cursor))[1]


async def test_many_that_want_one_name_at_once_get_one_device(catalog, open_catalog):
    catalogs = [catalog, open_catalog(), open_catalog()]
    found = await asyncio.gather(*(catalogs[i % 3].create("one", SPEC) for i in range(12)))
    assert sum(created for _, created in found) == 1
    assert len({record.uid for record, _ in found}) == 1


async def test_many_names_at_once_are_all_kept(catalog, open_catalog):
    catalogs = [catalog, open_catalog()]
    await asyncio.gather(*(catalogs[i % 2].create(f"d{i:02}", SPEC) for i in range(24)))
    assert len(await names(catalog)) == 24


async def test_devices_of_one_image_that_are_published_and_deleted_at_once_keep_its_configuration(
    catalog, open_catalog
):
    other = open_catalog()
    await index(catalog)
    for turn in range(5):
        published = []
        records = [(await catalog.create(f"d{turn}-{n}", SPEC))[0] for n in range(6)]
        arguments = {"verification": Verification.VERIFIED, "config": "{}", "contents": None}
        published = await asyncio.gather(
            *(
                (catalog, other)[n % 2].publish(each, recipe(), [KEY], **arguments)
                for n, each in enumerate(records)
            )
        )
        assert published == [[]] * 6
        await asyncio.gather(*((catalog, other)[n % 2].delete(f"d{turn}-{n}") for n in range(5)))
        left = await catalog.get(f"d{turn}-5")
        assert await catalog.config(left) == "{}"
        await catalog.delete(left.name)
        assert await catalog.config(left) is None


async def test_an_index_that_is_removed_while_a_device_takes_it_is_kept_or_missing(catalog, open_catalog):
    other = open_catalog()
    arguments = {"verification": Verification.VERIFIED, "config": "{}", "contents": None}
    for turn in range(10):
        await index(catalog, attempt=str(turn))
        record, _ = await catalog.create(f"d{turn}", SPEC)
        missing, removed = await asyncio.gather(
            other.publish(record, recipe(), [KEY], **arguments), catalog.remove_index(KEY)
        )
        assert (missing == [KEY]) == (removed is not None)
        await catalog.delete(record.name)


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
    closing = asyncio.create_task(asyncio.to_thread(catalog.close))
    go.set()
    await closing
    assert ended == [1]
    assert catalog.generation.value() != before


async def test_a_database_that_does_not_answer_is_a_storage_error_without_sql(tmp_path):
    generation = Generation(tmp_path / "generation")
    catalog = Catalog(f"sqlite:///{tmp_path}/none/catalog.sqlite", generation, "me.")
    for call in (catalog.page(limit=1), catalog.get("a"), catalog.create("a", SPEC), catalog.check()):
        with pytest.raises(StorageError) as error:
            await call
        assert "SELECT" not in error.value.detail
        assert "INSERT" not in error.value.detail
    catalog.close()
    generation.close()


# Rows of a later version

LATER = [
    ("spec", '{"source": {"image": "x"}, "colour": "red"}'),
    ("spec", "[]"),
    ("recipe", '{"format": 2}'),
    ("recipe", "[1]"),
    ("recipe", '{"format": "two"}'),
]
SHOWN = [
    ("progress", '[1, "x"]'),
    ("progress", '{"phase": 7, "done": {}, "error": "text"}'),
    ("contents", "[5]"),
]


@pytest.mark.parametrize(("column", "text"), LATER)
async def test_a_row_of_a_later_version_says_so_and_stops_nobody(catalog, execute, column, text):
    await ready(catalog)
    await catalog.create("two", OTHER)
    execute(f"UPDATE devices SET {column} = :text WHERE name = 'one'", text=text)
    record = await catalog.get("one")
    assert record.newer
    assert record.failure.code == "newer_format"
    assert not record.unfinished
    assert await names(catalog) == ["one", "two"]
    with pytest.raises(DeviceExists):
        await catalog.create("one", OTHER)
    await catalog.delete("one")


@pytest.mark.parametrize(("column", "text"), SHOWN)
async def test_what_is_only_shown_is_left_out_where_it_cannot_be_understood(catalog, execute, column, text):
    whole = await ready(catalog)
    execute(f"UPDATE devices SET {column} = :text WHERE name = 'one'", text=text)
    assert replace(await catalog.get("one"), **{column: getattr(whole, column)}) == whole
    assert await names(catalog) == ["one"]


@pytest.mark.parametrize("column", ["state", "verification"])
async def test_a_state_of_a_later_version_is_worked_on_by_nobody(catalog, execute, column):
    await catalog.create("one", SPEC)
    execute(f"UPDATE devices SET {column} = 'dreaming'")
    record = await catalog.get("one")
    assert "dreaming" in record.newer
    assert await catalog.unfinished() == []
    assert not (await catalog.create("one", SPEC))[1]
    assert await names(catalog) == ["one"]


async def test_an_index_that_is_dropped_by_an_old_attempt_stays(catalog):
    await index(catalog, attempt="1")
    await index(catalog, attempt="2", sha256="6" * 64)
    await catalog.drop_index(KEY, "1")
    assert (await catalog.index_row(KEY)).attempt == "2"
    await catalog.drop_index(KEY, "2")
    assert await catalog.index_row(KEY) is None
    assert await catalog.index_row(LayerKey("no", "thing")) is None
