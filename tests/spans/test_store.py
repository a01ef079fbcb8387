"""The span store: one fetch per span, verified before anybody sees it, whoever is cancelled and whatever fails."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import (
    BlobNotFound,
    ChainMismatch,
    IntegrityError,
    Overloaded,
    RegistryTimeout,
    RegistryUnreachable,
    SpanMismatch,
)
from gateway.layers.table import UNKNOWN, SpanTable
from gateway.spans import disk
from gateway.spans.disk import DiskTier
from gateway.spans.locks import SpanLocks
from gateway.spans.memory import MemoryTier
from gateway.spans.store import Origin, SpanStore
from tests.support import gzip_streams, gzips
from tests.support.layers import MemoryBlob, content, failure, index_blob, layer_of

DATA = content(700_000)
BLOB = gzips.member(DATA)


@pytest.fixture(scope="module")
def executor():
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return index_blob(tmp_path_factory.mktemp("index"), BLOB, "gzip")


@pytest.fixture
def source():
    return MemoryBlob(BLOB)


@pytest.fixture
def layer(index, source):
    return layer_of(index, source)


class Stores:
    """Makes stores that share a folder, as workers do."""

    def __init__(self, folder, executor):
        self.folder, self.executor = folder, executor
        self.made = []

    def __call__(self, *, memory=64 << 20, disk=64 << 20, **options):
        locks = SpanLocks(self.folder / "locks")
        store = SpanStore(
            MemoryTier(memory), DiskTier(self.folder / "cache", disk), locks, self.executor, **options
        )
        self.made.append((store, locks))
        return store


@pytest.fixture
async def stores(tmp_path, executor):
    made = Stores(tmp_path, executor)
    yield made
    for store, locks in made.made:
        await store.aclose()
        locks.close()


@pytest.fixture
async def store(stores):
    return stores()


def truth(layer, number):
    start, stop = layer.table.bounds(number)
    return DATA[start:stop]


async def settle(store):
    """Wait for what the store still does behind its readers' backs."""
    if store._tasks:
        await asyncio.wait(store._tasks, timeout=20)


async def test_a_span_comes_from_upstream_then_from_memory(store, layer, source):
    assert await store.read(layer, 1) == (truth(layer, 1), Origin.UPSTREAM)
    assert await store.read(layer, 1) == (truth(layer, 1), Origin.MEMORY)
    assert store.peek(layer, 1) == truth(layer, 1)
    assert len(source.reads) == 1
    assert (store.counts.fetches, store.counts.memory_hits) == (1, 2)


async def test_every_span_is_right(store, layer):
    found = [(await store.read(layer, i))[0] for i in range(layer.table.count)]
    assert b"".join(map(bytes, found)) == DATA


async def test_another_worker_and_the_next_start_find_it_on_disk(stores, index, layer):
    first = stores()
    await first.read(layer, 2)
    await settle(first)
    second_source = MemoryBlob(BLOB)
    second = stores()
    other = layer_of(index, second_source)
    assert await second.read(other, 2) == (truth(layer, 2), Origin.DISK)
    assert await second.read(other, 2) == (truth(layer, 2), Origin.MEMORY)
    assert second_source.reads == []
    assert second.counts.disk_hits == 1


async def test_what_another_worker_wrote_between_the_look_and_the_lock_is_not_fetched_again(
    stores, index, layer, monkeypatch
):
    first, second = stores(), stores()
    second.disk.sharers = 2
    second_source = MemoryBlob(BLOB)
    looked = second.disk.read
    looks = []

    def look(key, sha256):
        found = looked(key, sha256)
        looks.append(found)
        return found

    hold = second._locks.hold

    @contextlib.asynccontextmanager
    async def hold_late(key):
        # The first worker begins after the second one's look, and is done before its lock.
        await first.read(layer, 2)
        await settle(first)
        async with hold(key) as waited:
            assert not waited
            yield waited

    monkeypatch.setattr(second.disk, "read", look)
    monkeypatch.setattr(second._locks, "hold", hold_late)
    assert await second.read(layer_of(index, second_source), 2) == (truth(layer, 2), Origin.DISK)
    assert looks == [None, truth(layer, 2)]
    assert second_source.reads == []


async def test_a_damaged_disk_file_is_fetched_again_and_replaced(stores, layer, source):
    first = stores()
    await first.read(layer, 2)
    await settle(first)
    path = first.disk._path(layer.key(2))
    broken = bytearray(path.read_bytes())
    broken[1000] ^= 1
    path.write_bytes(broken)
    second = stores()
    assert await second.read(layer, 2) == (truth(layer, 2), Origin.UPSTREAM)
    await settle(second)
    assert second.disk.corrupt == 1
    third = stores()
    assert (await third.read(layer, 2))[1] is Origin.DISK
    assert len(source.reads) == 2


async def test_a_thousand_readers_cause_one_fetch(store, layer, source):
    source.gate = asyncio.Event()
    readers = [asyncio.create_task(store.read(layer, 1)) for _ in range(1000)]
    await asyncio.sleep(0)
    assert store.flying(layer.blob, layer.index_id) == {1}
    source.gate.set()
    found = await asyncio.gather(*readers)
    assert {bytes(data) for data, _ in found} == {truth(layer, 1)}
    assert len(source.reads) == 1
    assert store.counts.coalesced == 999


async def test_a_cancelled_leader_does_not_disturb_its_followers(store, layer, source):
    source.gate = asyncio.Event()
    leader = asyncio.create_task(store.read(layer, 1))
    await asyncio.sleep(0)
    followers = [asyncio.create_task(store.read(layer, 1)) for _ in range(3)]
    await asyncio.sleep(0)
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    source.gate.set()
    assert {bytes(data) for data, _ in await asyncio.gather(*followers)} == {truth(layer, 1)}
    assert len(source.reads) == 1


async def test_when_all_readers_are_cancelled_the_fetch_is_finished_for_the_next_one(store, layer, source):
    source.gate = asyncio.Event()
    readers = [asyncio.create_task(store.read(layer, 1)) for _ in range(3)]
    await asyncio.sleep(0)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    source.gate.set()
    await settle(store)
    assert await store.read(layer, 1) == (truth(layer, 1), Origin.MEMORY)


async def test_an_error_that_nobody_waits_for_any_more_makes_no_noise(store, layer, source):
    noise = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
    source.gate = asyncio.Event()
    source.error = failure(BlobNotFound)
    reader = asyncio.create_task(store.read(layer, 1))
    await asyncio.sleep(0)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    source.gate.set()
    await settle(store)
    del reader
    gc.collect()
    await asyncio.sleep(0)
    assert noise == []
    assert store.counts.failures == {"blob_not_found": 1}


async def test_all_readers_get_the_error_and_the_next_one_asks_again(store, layer, source):
    source.error = failure(RegistryTimeout)
    found = await asyncio.gather(*(store.read(layer, 1) for _ in range(5)), return_exceptions=True)
    assert {type(error) for error in found} == {RegistryTimeout}
    assert len(source.reads) == 1
    source.error = None
    assert await store.read(layer, 1) == (truth(layer, 1), Origin.UPSTREAM)


async def test_an_unexpected_error_reaches_the_readers_too(store, layer, source):
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    source.error = RuntimeError("a defect")
    with pytest.raises(RuntimeError, match="a defect"):
        await store.read(layer, 1)
    assert store.flying_bytes == 0
    source.error = None
    assert (await store.read(layer, 1))[0] == truth(layer, 1)


async def test_wrong_bytes_are_neither_given_out_nor_kept(store, stores, layer, source):
    span = layer.table.span(1)
    source.flipped = span.in_start + 100
    with pytest.raises(SpanMismatch):
        await store.read(layer, 1)
    await settle(store)
    assert store.peek(layer, 1) is None
    assert store.disk.spans_of(layer.blob, layer.index_id) == set()
    source.flipped = None
    assert (await store.read(layer, 1))[0] == truth(layer, 1)


async def test_a_full_disk_changes_nothing_for_readers(store, layer, monkeypatch):
    def writev(_fd, _pieces):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "writev", writev)
    # The pause ends with time, and a busy machine takes its time.
    monkeypatch.setattr(disk, "time", SimpleNamespace(monotonic=lambda: 100.0, time=time.time))
    for number in range(layer.table.count):
        assert (await store.read(layer, number))[0] == truth(layer, number)
    await settle(store)
    # One, and those that were under way when it failed.
    assert list(store.disk.write_errors) == ["ENOSPC"]
    assert store.disk.write_errors["ENOSPC"] < layer.table.count
    assert store.disk.bypassed


async def test_too_much_in_flight_is_shed_before_upstream_is_touched(stores, layer, source):
    store = stores(flying_limit_bytes=layer.table.span(0).out_length)
    source.gate = asyncio.Event()
    readers = [asyncio.create_task(store.read(layer, i)) for i in (0, 1)]
    await source.asked(2)
    with pytest.raises(Overloaded) as shed:
        await store.read(layer, 2)
    assert shed.value.retry_after_seconds
    assert len(source.reads) == 2
    assert store.counts.shed == 1
    # Who wants what is being fetched already costs nothing more, and is not refused.
    joined = asyncio.create_task(store.read(layer, 1))
    await asyncio.sleep(0)
    source.gate.set()
    assert (await joined)[0] == truth(layer, 1)
    await asyncio.gather(*readers)
    await settle(store)
    assert store.flying_bytes == 0
    assert (await store.read(layer, 2))[0] == truth(layer, 2)


async def test_the_patient_are_told_to_come_later_instead(stores, layer, source):
    store = stores(flying_limit_bytes=layer.table.span(0).out_length)
    source.gate = asyncio.Event()
    first = store.begin(layer, 0, patient=True)
    assert first is not None
    assert store.begin(layer, 1, patient=True) is None
    assert store.begin(layer, 0, patient=True) is first
    source.gate.set()
    assert (await asyncio.shield(first))[0] == truth(layer, 0)
    again = store.begin(layer, 0, patient=True)
    assert await again == (truth(layer, 0), Origin.MEMORY)


async def test_not_more_ranges_are_asked_for_at_once_than_allowed(stores, layer, source):
    store = stores(concurrent_fetches=2)
    await asyncio.gather(*(store.read(layer, i) for i in range(layer.table.count)))
    assert source.most_reading == 2


async def test_prefetching_is_limited_and_asks_for_nothing_twice(stores, layer, source):
    store = stores(concurrent_prefetches=3)
    source.gate = asyncio.Event()
    for number in range(layer.table.count):
        store.prefetch(layer, number)
    for number in range(layer.table.count):
        store.prefetch(layer, number)
    assert store.flying(layer.blob, layer.index_id) == {0, 1, 2}
    assert store.counts.prefetched == 3
    source.gate.set()
    await settle(store)
    # All of it landed: there is room again, but not for what is in memory.
    store.prefetch(layer, 0)
    assert store.flying(layer.blob, layer.index_id) == set()
    store.prefetch(layer, 3)
    assert store.flying(layer.blob, layer.index_id) == {3}
    await settle(store)


async def test_prefetching_leaves_room_for_those_who_wait(stores, layer, source):
    store = stores(flying_limit_bytes=200_000)
    source.gate = asyncio.Event()
    for number in range(layer.table.count):
        store.prefetch(layer, number)
    assert 100_000 < store.flying_bytes <= 200_000
    reader = asyncio.create_task(store.read(layer, 5))
    await asyncio.sleep(0)
    source.gate.set()
    assert (await reader)[0] == truth(layer, 5)


async def test_a_prefetch_that_fails_is_nobodys_business(store, layer, source):
    source.error = failure(RegistryUnreachable)
    store.prefetch(layer, 1)
    await settle(store)
    source.error = None
    assert (await store.read(layer, 1))[0] == truth(layer, 1)


async def test_drop_forgets_what_can_be_fetched_again(store, layer, source):
    await store.read(layer, 1)
    await settle(store)
    assert await store.drop() >= 2 * len(truth(layer, 1))
    assert store.memory.used_bytes == store.disk.used_bytes == 0
    assert (await store.read(layer, 1))[1] is Origin.UPSTREAM
    assert len(source.reads) == 2


async def test_closing_ends_readers_that_wait(store, layer, source):
    source.gate = asyncio.Event()
    reader = asyncio.create_task(store.read(layer, 1))
    await source.asked()
    await store.aclose()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(reader, 20)


async def test_closing_ends_a_fetch_that_has_not_begun_yet(store, layer):
    future = store.begin(layer, 1, patient=False)
    await store.aclose()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(future, 20)
    assert store.flying(layer.blob, layer.index_id) == set()
    assert store.flying_bytes == 0


async def test_one_worker_waits_for_what_another_one_fetches(stores, index, source):
    """Locks of two descriptions of one file stand for two processes."""
    first, second = stores(), stores()
    source.gate = asyncio.Event()
    leader = asyncio.create_task(first.read(layer_of(index, source), 1))
    await source.asked()
    late_source = MemoryBlob(BLOB)
    follower = asyncio.create_task(second.read(layer_of(index, late_source), 1))
    await asyncio.sleep(0.005)
    source.gate.set()
    await leader
    assert (await asyncio.wait_for(follower, 20))[1] is Origin.DISK
    assert late_source.reads == []


async def test_a_worker_whose_colleague_failed_fetches_itself(stores, index, source):
    first, second = stores(), stores()
    source.gate = asyncio.Event()
    source.error = failure(RegistryTimeout)
    leader = asyncio.create_task(first.read(layer_of(index, source), 1))
    await source.asked()
    follower = asyncio.create_task(second.read(layer_of(index, MemoryBlob(BLOB)), 1))
    await asyncio.sleep(0.005)
    source.gate.set()
    with pytest.raises(RegistryTimeout):
        await leader
    assert (await asyncio.wait_for(follower, 20))[1] is Origin.UPSTREAM


async def test_local_layers_are_not_copied_to_the_disk_tier(store, tmp_path):
    raw = content(200_000, 9)
    index = index_blob(tmp_path / "raw", raw, "raw")
    layer = layer_of(index, MemoryBlob(raw), local=True)
    assert await store.read(layer, 1) == (raw[65536:131072], Origin.LOCAL)
    await settle(store)
    assert store.disk.used_bytes == 0
    assert (await store.read(layer, 1))[1] is Origin.MEMORY


# Health


async def test_a_layer_says_when_its_source_begins_and_ceases_to_fail(store, layer, source):
    heard = []
    layer.on_health = lambda error: heard.append(None if error is None else error.code)
    await store.read(layer, 0)
    assert heard == []
    source.error = failure(BlobNotFound)
    for number in (1, 2):
        with pytest.raises(BlobNotFound):
            await store.read(layer, number)
    assert heard == ["blob_not_found"]
    source.error = None
    await store.read(layer, 1)
    await store.read(layer, 2)
    assert heard == ["blob_not_found", None]


async def test_a_passing_trouble_that_becomes_a_lasting_one_is_heard_of(store, layer, source):
    heard = []
    layer.on_health = lambda error: heard.append(None if error is None else error.code)
    for kind in (RegistryTimeout, RegistryTimeout, BlobNotFound, BlobNotFound):
        source.error = failure(kind)
        with pytest.raises(kind):
            await store.read(layer, 1)
    assert heard == ["registry_timeout", "blob_not_found"]


# Provisional layers: a supplied table that no pass has proven


class Windows:
    """The windows of an index, one of them damaged."""

    def __init__(self, index):
        self.windows = [bytearray(index.windows.window(i)) for i in range(index.table.count)]

    def window(self, number):
        return bytes(self.windows[number])


def provisional(index, source):
    table = SpanTable.of(
        index.table.span(i)._replace(in_sha256=UNKNOWN, out_sha256=UNKNOWN) for i in range(index.table.count)
    )
    layer = layer_of(index, source, provisional_memory=MemoryTier(8 << 20))
    layer.table, layer.windows = table, Windows(index)
    return layer


@pytest.fixture
def unproven(index, source):
    return provisional(index, source)


async def test_nothing_unproven_enters_a_cache_that_others_read(store, unproven):
    assert await store.read(unproven, 3) == (truth(unproven, 3), Origin.UPSTREAM)
    await settle(store)
    assert len(store.memory) == 0
    assert store.disk.used_bytes == 0
    assert await store.read(unproven, 3) == (truth(unproven, 3), Origin.MEMORY)


async def test_a_random_unproven_read_looks_at_the_span_before(store, unproven, source):
    await store.read(unproven, 3)
    assert sorted(offset for offset, _ in source.reads) == [unproven.table.span(i).in_start for i in (2, 3)]


async def test_a_sequential_unproven_reader_fetches_every_span_once(store, unproven, source):
    for number in range(unproven.table.count):
        assert (await store.read(unproven, number))[0] == truth(unproven, number)
    assert len(source.reads) == unproven.table.count


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 32767), bit=st.integers(0, 7))
async def test_a_flipped_window_bit_at_any_position_is_found(store, index, at, bit):
    layer = provisional(index, MemoryBlob(BLOB))
    layer.windows.windows[4][at] ^= 1 << bit
    with pytest.raises(IntegrityError):
        await store.read(layer, 4)
    assert len(layer.provisional_memory) == 0
    # The span before ends with something else than the window, too.
    with pytest.raises(ChainMismatch):
        await store.read(layer, 3)
    assert (await store.read(layer, 1))[0] == truth(layer, 1)


@pytest.mark.parametrize("at", [0, 1000, 16384, 32000, 32767])
async def test_behind_spans_shorter_than_a_window_all_of_the_window_is_checked(store, tmp_path, at):
    """The window of a checkpoint reaches over several spans before it."""
    data = content(120_000, 4)
    blob = gzip_streams.member(data, flush=zlib.Z_SYNC_FLUSH, flush_every=5_000)
    index = index_blob(tmp_path, blob, "gzip", span_size=4_000)
    assert index.table.span(12).out_length < 32768
    layer = provisional(index, MemoryBlob(blob))
    layer.windows.windows[12][at] ^= 0x20
    with pytest.raises(IntegrityError):
        await store.read(layer, 12)
    whole = provisional(index, MemoryBlob(blob))
    for number in (12, 3, 0, 13):
        start, stop = whole.table.bounds(number)
        assert (await store.read(whole, number))[0] == data[start:stop]


async def test_a_flipped_window_is_found_by_a_sequential_reader_of_short_spans_too(store, tmp_path):
    data = content(120_000, 4)
    blob = gzip_streams.member(data, flush=zlib.Z_SYNC_FLUSH, flush_every=5_000)
    index = index_blob(tmp_path, blob, "gzip", span_size=4_000)
    layer = provisional(index, MemoryBlob(blob))
    layer.windows.windows[12][16_000] ^= 0x20
    for number in range(12):
        start, stop = layer.table.bounds(number)
        assert (await store.read(layer, number))[0] == data[start:stop]
    with pytest.raises(IntegrityError):
        await store.read(layer, 12)


# The whole of it


FLAVOURS = ["zlib -6", "stored blocks", "members of 64 KiB", "full flush every 128 KiB", "empty member first"]


@pytest.fixture(scope="module")
def layers(tmp_path_factory):
    found = []
    for number, flavour in enumerate(FLAVOURS):
        data = content(300_000 + number * 777, number)
        blob = gzips.PURE[flavour](data)
        folder = tmp_path_factory.mktemp("layers")
        found.append((data, blob, index_blob(folder, blob, "gzip", span_size=65536 << (number % 2))))
    raw = content(150_001, 77)
    found.append((raw, raw, index_blob(tmp_path_factory.mktemp("layers"), raw, "raw")))
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_random_reads_of_random_layers_are_the_truth(stores, layers, data):
    store = stores(memory=data.draw(st.sampled_from([0, 200_000, 1 << 30])))
    for _ in range(data.draw(st.integers(1, 12))):
        wanted, blob, index = data.draw(st.sampled_from(layers))
        layer = layer_of(index, MemoryBlob(blob))
        number = layer.table.find(data.draw(st.integers(0, layer.size - 1)))
        start, stop = layer.table.bounds(number)
        found, _ = await store.read(layer, number)
        assert found == wanted[start:stop]
        if data.draw(st.booleans()):
            store.prefetch(layer, data.draw(st.integers(0, layer.table.count - 1)))
    await settle(store)
    assert store.flying_bytes == 0
