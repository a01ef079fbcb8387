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
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.devices.device import Device
from gateway.errors import (
    ArtifactDamaged,
    BlobNotFound,
    ChainMismatch,
    IndexAbsent,
    IndexBeingMade,
    IndexDamaged,
    IntegrityError,
    Overloaded,
    RegistryTimeout,
    RegistryUnreachable,
    SpanMismatch,
)
from gateway.gzran.zinfo import HEADER_BYTES, RECORD_BYTES
from gateway.layers.codec import GZIP, IDENTITY
from gateway.layers.index import CHECKPOINTS, FileWindows, LayerIndex
from gateway.layers.proof import Chained
from gateway.layers.table import UNKNOWN, SpanTable
from gateway.recipes.segments import Segment
from gateway.spans import disk
from gateway.spans import store as module
from gateway.spans.disk import DiskTier, SpanFiles
from gateway.spans.flights import Admission
from gateway.spans.layer import Layer
from gateway.spans.locks import SpanLocks
from gateway.spans.memory import MemoryTier
from gateway.spans.store import SpanStore
from gateway.spans.tier import Origin
from tests.support import gzip_streams, gzips
from tests.support.layers import MemoryBlob, StillKeeper, content, failure, index_blob, layer_of

DATA = content(700_000)
BLOB = gzips.member(DATA)


@pytest.fixture(scope="module")
def executor():
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return asyncio.run(index_blob(tmp_path_factory.mktemp("index"), BLOB, GZIP))


@pytest.fixture
def source():
    return MemoryBlob(BLOB)


@pytest.fixture
def layer(index, source, store):
    return layer_of(index, source, store)


class Stores:
    """Makes stores that share a folder, as workers do."""

    def __init__(self, folder, executor):
        self.folder, self.executor = folder, executor
        self.made = []

    def __call__(self, *, memory=64 << 20, disk=64 << 20, limit=256 << 20, tiers=1, **options):
        locks = SpanLocks(self.folder / "locks")
        shared = tuple(
            DiskTier(SpanFiles(self.folder / f"cache{number}", disk), locks, self.executor)
            for number in range(tiers)
        )
        store = SpanStore(MemoryTier(memory), shared, Admission(limit), self.executor, **options)
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


def disk_of(store):
    return store.shared[0].files


async def read(store, layer, number):
    """A span as a reader has it: bytes, and where they came from."""
    flight = store.begin(layer, number, ahead=False)
    try:
        return await asyncio.shield(flight.future)
    finally:
        flight.release()


def truth(layer, number):
    start, stop = layer.index.table.bounds(number)
    return DATA[start:stop]


async def settle(store):
    """Wait for what the store still does behind its readers' backs."""
    if store._tasks:
        await asyncio.wait(store._tasks, timeout=20)


async def test_a_span_comes_from_upstream_then_from_memory(store, layer, source):
    assert await read(store, layer, 1) == (truth(layer, 1), Origin.UPSTREAM)
    assert await read(store, layer, 1) == (truth(layer, 1), Origin.MEMORY)
    assert store.peek(layer, 1) == truth(layer, 1)
    assert len(source.reads) == 1
    assert (store.counts.fetches, store.counts.memory_hits) == (1, 2)


async def test_every_span_is_right(store, layer):
    found = [(await read(store, layer, i))[0] for i in range(layer.index.table.count)]
    assert b"".join(map(bytes, found)) == DATA


async def test_another_worker_and_the_next_start_find_it_on_disk(stores, index, source):
    first = stores()
    layer = layer_of(index, source, first)
    await read(first, layer, 2)
    await settle(first)
    second_source = MemoryBlob(BLOB)
    second = stores()
    other = layer_of(index, second_source, second)
    assert await read(second, other, 2) == (truth(layer, 2), Origin.DISK)
    assert await read(second, other, 2) == (truth(layer, 2), Origin.MEMORY)
    assert second_source.reads == []
    assert second.counts.disk_hits == 1


async def test_what_another_worker_wrote_between_the_look_and_the_lock_is_not_fetched_again(
    stores, index, source, monkeypatch
):
    first, second = stores(), stores()
    layer = layer_of(index, source, first)
    second_source = MemoryBlob(BLOB)
    looked = disk_of(second).read
    looks = []

    def look(key, sha256):
        found = looked(key, sha256)
        looks.append(found)
        return found

    (tier,) = second.shared
    hold = tier._locks.hold

    @contextlib.asynccontextmanager
    async def hold_late(key):
        # The first worker begins after the second one's look, and is done before its lock.
        await read(first, layer, 2)
        await settle(first)
        async with hold(key) as waited:
            assert not waited
            yield waited

    monkeypatch.setattr(disk_of(second), "read", look)
    monkeypatch.setattr(tier._locks, "hold", hold_late)
    assert await read(second, layer_of(index, second_source, second), 2) == (truth(layer, 2), Origin.DISK)
    assert looks == [None, truth(layer, 2)]
    assert second_source.reads == []


async def test_a_damaged_disk_file_is_fetched_again_and_replaced(stores, index, source):
    first, second, third = stores(), stores(), stores()
    layers = [layer_of(index, source, store) for store in (first, second, third)]
    await read(first, layers[0], 2)
    await settle(first)
    path = disk_of(first)._path(layers[0].span_key(2))
    broken = bytearray(path.read_bytes())
    broken[1000] ^= 1
    path.write_bytes(broken)
    assert await read(second, layers[1], 2) == (truth(layers[1], 2), Origin.UPSTREAM)
    await settle(second)
    assert disk_of(second).corrupt == 1
    assert (await read(third, layers[2], 2))[1] is Origin.DISK
    assert len(source.reads) == 2


async def test_a_thousand_readers_cause_one_fetch(store, layer, source):
    source.gate = asyncio.Event()
    readers = [asyncio.create_task(read(store, layer, 1)) for _ in range(1000)]
    await asyncio.sleep(0)
    assert store.flights.of(layer.key) == {1}
    source.gate.set()
    found = await asyncio.gather(*readers)
    assert {bytes(data) for data, _ in found} == {truth(layer, 1)}
    assert len(source.reads) == 1
    assert store.counts.coalesced == 999


async def test_a_cancelled_leader_does_not_disturb_its_followers(store, layer, source):
    source.gate = asyncio.Event()
    leader = asyncio.create_task(read(store, layer, 1))
    await asyncio.sleep(0)
    followers = [asyncio.create_task(read(store, layer, 1)) for _ in range(3)]
    await asyncio.sleep(0)
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    source.gate.set()
    assert {bytes(data) for data, _ in await asyncio.gather(*followers)} == {truth(layer, 1)}
    assert len(source.reads) == 1


async def test_when_all_readers_are_cancelled_the_fetch_is_finished_for_the_next_one(store, layer, source):
    source.gate = asyncio.Event()
    readers = [asyncio.create_task(read(store, layer, 1)) for _ in range(3)]
    await asyncio.sleep(0)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    source.gate.set()
    await settle(store)
    assert await read(store, layer, 1) == (truth(layer, 1), Origin.MEMORY)


async def test_an_error_that_nobody_waits_for_any_more_makes_no_noise(store, layer, source):
    noise = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
    source.gate = asyncio.Event()
    source.error = failure(BlobNotFound)
    reader = asyncio.create_task(read(store, layer, 1))
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
    found = await asyncio.gather(*(read(store, layer, 1) for _ in range(5)), return_exceptions=True)
    assert {type(error) for error in found} == {RegistryTimeout}
    assert len(source.reads) == 1
    source.error = None
    assert await read(store, layer, 1) == (truth(layer, 1), Origin.UPSTREAM)


async def test_an_unexpected_error_reaches_the_readers_too(store, layer, source):
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    source.error = RuntimeError("a defect")
    with pytest.raises(RuntimeError, match="a defect"):
        await read(store, layer, 1)
    assert store.admission.used_bytes == 0
    source.error = None
    assert (await read(store, layer, 1))[0] == truth(layer, 1)


async def test_wrong_bytes_are_neither_given_out_nor_kept(store, stores, layer, source):
    span = layer.index.table.span(1)
    source.flipped = span.in_start + 100
    with pytest.raises(SpanMismatch):
        await read(store, layer, 1)
    await settle(store)
    assert store.peek(layer, 1) is None
    assert disk_of(store).held(layer.key) == set()
    source.flipped = None
    assert (await read(store, layer, 1))[0] == truth(layer, 1)


async def test_a_full_disk_changes_nothing_for_readers(store, layer, monkeypatch):
    def writev(_fd, _pieces):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "writev", writev)
    # The pause ends with time, and a busy machine takes its time.
    monkeypatch.setattr(disk, "time", SimpleNamespace(monotonic=lambda: 100.0, time=time.time))
    for number in range(layer.index.table.count):
        assert (await read(store, layer, number))[0] == truth(layer, number)
    await settle(store)
    # One, and those that were under way when it failed.
    assert list(disk_of(store).errors) == ["ENOSPC"]
    assert disk_of(store).errors["ENOSPC"] < layer.index.table.count
    assert disk_of(store).bypassed


async def test_too_much_in_flight_is_shed_before_upstream_is_touched(stores, index, source):
    store = stores(limit=index.table.span(0).out_length)
    layer = layer_of(index, source, store)
    source.gate = asyncio.Event()
    readers = [asyncio.create_task(read(store, layer, i)) for i in (0, 1)]
    await source.asked(2)
    with pytest.raises(Overloaded) as shed:
        await read(store, layer, 2)
    assert shed.value.retry_after_seconds
    assert len(source.reads) == 2
    assert store.counts.shed == 1
    # Who wants what is being fetched already costs nothing more, and is not refused.
    joined = asyncio.create_task(read(store, layer, 1))
    await asyncio.sleep(0)
    source.gate.set()
    assert (await joined)[0] == truth(layer, 1)
    await asyncio.gather(*readers)
    await settle(store)
    assert store.admission.used_bytes == 0
    assert (await read(store, layer, 2))[0] == truth(layer, 2)


async def test_ahead_of_a_reader_nothing_is_begun_where_room_is_scarce(stores, index, source):
    store = stores(limit=index.table.span(0).out_length)
    layer = layer_of(index, source, store)
    source.gate = asyncio.Event()
    first = store.begin(layer, 0, ahead=True)
    assert first is not None
    assert store.begin(layer, 1, ahead=True) is None
    assert store.counts.shed == 0
    # What is under way costs no room; neither does what is in memory.
    assert store.begin(layer, 0, ahead=True) is first
    first.release()
    source.gate.set()
    assert (await asyncio.shield(first.future))[0] == truth(layer, 0)
    store.admission.sending_bytes = 2 * store.admission.limit_bytes
    first.release()
    again = store.begin(layer, 0, ahead=True)
    assert await again.future == (truth(layer, 0), Origin.MEMORY)
    again.release()
    assert store.admission.fetching_bytes == 0


async def test_who_waits_for_room_goes_on_when_there_is_some(stores, index, source):
    store = stores(limit=1)
    store.admission.sending_bytes = 2
    waiting = asyncio.create_task(store.wait_for_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    store.admission.sending_bytes = 0
    await asyncio.wait_for(waiting, 20)
    assert store.counts.shed == 0


async def test_who_waits_for_room_too_long_is_told_to_come_later(stores, leap):
    store = stores(limit=1)
    store.admission.sending_bytes = 2
    waiting = asyncio.create_task(store.wait_for_room())
    await asyncio.sleep(0)
    leap(11)
    with pytest.raises(Overloaded) as shed:
        await asyncio.wait_for(waiting, 20)
    assert shed.value.retry_after_seconds
    assert store.counts.shed == 1


async def test_streams_that_hold_the_whole_budget_do_not_wait_for_each_other(stores, index, source):
    """Each holds a piece while its client takes it; none waits for room while it holds one."""
    store = stores(limit=2 * index.table.span(0).out_length)
    layer = layer_of(index, source, store)

    async def whole():
        segment = Segment(kind="gzip", offset=0, length=len(DATA), digest=index.key.blob, cut=index.key.cut)
        device = Device("device", '"tag"', [segment], [layer], store)
        taken = b""
        async for piece in device.stream(0, len(DATA)):
            taken += bytes(piece)
            await asyncio.sleep(0)
        return taken

    async def patient():
        while True:
            try:
                return await whole()
            except Overloaded:
                await asyncio.sleep(0)

    streams = [asyncio.create_task(patient()) for _ in range(8)]
    found = await asyncio.wait_for(asyncio.gather(*streams), 60)
    assert set(found) == {DATA}
    await settle(store)
    assert store.admission.used_bytes == 0


async def test_not_more_ranges_are_asked_for_at_once_than_allowed(stores, index, source):
    store = stores(concurrent_fetches=2)
    layer = layer_of(index, source, store)
    await asyncio.gather(*(read(store, layer, i) for i in range(index.table.count)))
    assert source.most_reading == 2


async def test_prefetching_is_limited_and_asks_for_nothing_twice(stores, index, source):
    store = stores(concurrent_prefetches=3)
    layer = layer_of(index, source, store)
    source.gate = asyncio.Event()
    for number in range(index.table.count):
        store.prefetch(layer, number)
    for number in range(index.table.count):
        store.prefetch(layer, number)
    assert store.flights.of(layer.key) == {0, 1, 2}
    assert store.counts.prefetched == 3
    source.gate.set()
    await settle(store)
    # All of it landed: there is room again, but not for what is in memory.
    store.prefetch(layer, 0)
    assert store.flights.of(layer.key) == set()
    store.prefetch(layer, 3)
    assert store.flights.of(layer.key) == {3}
    await settle(store)


async def test_prefetching_leaves_room_for_those_who_wait(stores, index, source):
    store = stores(limit=200_000)
    layer = layer_of(index, source, store)
    source.gate = asyncio.Event()
    for number in range(index.table.count):
        store.prefetch(layer, number)
    assert 100_000 < store.admission.used_bytes <= 200_000
    reader = asyncio.create_task(read(store, layer, 5))
    await asyncio.sleep(0)
    source.gate.set()
    assert (await reader)[0] == truth(layer, 5)


def prefetched(store):
    counts = store.counts
    return counts.prefetched, counts.prefetched_used, counts.prefetched_wasted


async def test_what_was_read_ahead_counts_as_used_once(store, layer):
    store.prefetch(layer, 1)
    await settle(store)
    assert prefetched(store) == (1, 0, 0)
    for _ in range(3):
        await read(store, layer, 1)
    assert prefetched(store) == (1, 1, 0)
    await store.drop()
    assert prefetched(store) == (1, 1, 0)


async def test_what_is_asked_for_on_its_way_counts_as_used(store, layer, source):
    source.gate = asyncio.Event()
    store.prefetch(layer, 1)
    reader = asyncio.create_task(read(store, layer, 1))
    await asyncio.sleep(0)
    source.gate.set()
    await reader
    assert prefetched(store) == (1, 1, 0)


async def test_what_was_read_ahead_and_dropped_counts_as_wasted(store, layer):
    store.prefetch(layer, 1)
    await settle(store)
    await store.drop()
    await read(store, layer, 1)
    assert prefetched(store) == (1, 0, 1)


@pytest.mark.parametrize("memory", [0, 1000])
async def test_what_was_read_ahead_and_memory_cannot_hold_counts_as_wasted(stores, index, source, memory):
    store = stores(memory=memory)
    layer = layer_of(index, source, store)
    store.prefetch(layer, 1)
    await settle(store)
    assert prefetched(store) == (1, 0, 1)
    await read(store, layer, 1)
    assert prefetched(store) == (1, 0, 1)


async def test_what_left_the_memory_of_an_unproven_layer_unread_counts_as_wasted(store, index, source):
    layer = provisional(index, source)
    layer.tiers = (MemoryTier(8 << 20),)
    store.prefetch(layer, 1)
    await settle(store)
    await layer.memory.drop()
    await read(store, layer, 1)
    assert prefetched(store) == (1, 0, 1)


async def test_nothing_is_remembered_of_a_span_that_was_had(store, layer):
    """One that stayed as wanted would hide whether it is read ahead for nothing later."""
    first = store.begin(layer, 1, ahead=False)
    await asyncio.shield(first.future)
    second = store.begin(layer, 1, ahead=False)
    assert second is first
    first.release()
    second.release()
    assert store._states == {}


async def test_what_is_remembered_has_a_bound(store, layer, source, monkeypatch):
    monkeypatch.setattr(module, "_MAX_REMEMBERED", 3)
    source.error = failure(RegistryTimeout)
    for number in range(5):
        with pytest.raises(RegistryTimeout):
            await read(store, layer, number)
    assert store.failed(layer.key) == {2, 3, 4}


async def test_a_span_that_could_not_be_had_is_told_until_it_is_had(store, layer, source):
    source.error = failure(RegistryTimeout)
    with pytest.raises(RegistryTimeout):
        await read(store, layer, 1)
    assert store.failed(layer.key) == {1}
    source.error = None
    await read(store, layer, 1)
    assert store.failed(layer.key) == set()


async def test_a_prefetch_that_fails_is_nobodys_business(store, layer, source):
    source.error = failure(RegistryUnreachable)
    store.prefetch(layer, 1)
    await settle(store)
    source.error = None
    assert (await read(store, layer, 1))[0] == truth(layer, 1)


async def test_drop_forgets_what_can_be_fetched_again(store, layer, source):
    await read(store, layer, 1)
    await settle(store)
    assert await store.drop() >= 2 * len(truth(layer, 1))
    assert store.memory.used_bytes == disk_of(store).used_bytes == 0
    assert (await read(store, layer, 1))[1] is Origin.UPSTREAM
    assert len(source.reads) == 2


async def test_drop_right_after_a_cold_read_leaves_nothing_on_disk(store, layer):
    for attempt in range(60):
        await read(store, layer, attempt % layer.index.table.count)
        await store.drop()
        assert disk_of(store).held(layer.key) == set()
        assert disk_of(store).measure() == 0


async def test_what_is_read_while_all_is_dropped_brings_nothing_back(store, layer):
    await read(store, layer, 1)
    await settle(store)
    (tier,) = store.shared
    drop = tier.drop

    async def drop_slowly():
        await read(store, layer, 1)
        freed = await drop()
        await read(store, layer, 1)
        return freed

    tier.drop = drop_slowly
    await store.drop()
    await settle(store)
    assert len(store.memory) == 0
    assert disk_of(store).held(layer.key) == set()


async def test_closing_ends_readers_that_wait(store, layer, source):
    source.gate = asyncio.Event()
    reader = asyncio.create_task(read(store, layer, 1))
    await source.asked()
    await store.aclose()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(reader, 20)


async def test_closing_ends_a_fetch_that_has_not_begun_yet(store, layer):
    flight = store.begin(layer, 1, ahead=False)
    await store.aclose()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(flight.future, 20)
    flight.release()
    assert store.flights.of(layer.key) == set()
    assert store.admission.used_bytes == 0


async def test_one_worker_waits_for_what_another_one_fetches(stores, index, source):
    """Locks of two descriptions of one file stand for two processes."""
    first, second = stores(), stores()
    source.gate = asyncio.Event()
    leader = asyncio.create_task(read(first, layer_of(index, source, first), 1))
    await source.asked()
    late_source = MemoryBlob(BLOB)
    follower = asyncio.create_task(read(second, layer_of(index, late_source, second), 1))
    await asyncio.sleep(0.005)
    source.gate.set()
    await leader
    assert (await asyncio.wait_for(follower, 20))[1] is Origin.DISK
    assert late_source.reads == []


async def test_a_worker_whose_colleague_failed_fetches_itself(stores, index, source):
    first, second = stores(), stores()
    source.gate = asyncio.Event()
    source.error = failure(RegistryTimeout)
    leader = asyncio.create_task(read(first, layer_of(index, source, first), 1))
    await source.asked()
    follower = asyncio.create_task(read(second, layer_of(index, MemoryBlob(BLOB), second), 1))
    await asyncio.sleep(0.005)
    source.gate.set()
    with pytest.raises(RegistryTimeout):
        await leader
    assert (await asyncio.wait_for(follower, 20))[1] is Origin.UPSTREAM


async def test_local_layers_are_not_copied_to_the_disk_tier(store, tmp_path):
    raw = content(200_000, 9)
    index = await index_blob(tmp_path / "raw", raw, IDENTITY)
    layer = layer_of(index, MemoryBlob(raw), store, local=True)
    assert await read(store, layer, 1) == (raw[65536:131072], Origin.LOCAL)
    await settle(store)
    assert disk_of(store).used_bytes == 0
    assert (await read(store, layer, 1))[1] is Origin.MEMORY


# Tiers


@pytest.mark.parametrize("tiers", [0, 1, 2])
async def test_any_number_of_shared_tiers_will_do(stores, index, source, tiers):
    store = stores(tiers=tiers)
    layer = layer_of(index, source, store)
    for number in (1, 2, 1):
        assert (await read(store, layer, number))[0] == truth(layer, number)
    await settle(store)
    assert len(source.reads) == 2
    assert [tier.held(layer.key) for tier in store.shared] == [{1, 2}] * tiers
    await store.memory.drop()
    assert (await read(store, layer, 1))[1] is (Origin.DISK if tiers else Origin.UPSTREAM)


async def test_a_span_from_a_far_tier_is_kept_in_all_nearer_ones(stores, index, source):
    store = stores(tiers=2)
    layer = layer_of(index, source, store)
    await read(store, layer, 1)
    await settle(store)
    near, far = store.shared
    await near.drop()
    await store.memory.drop()
    assert (await read(store, layer, 1))[1] is Origin.DISK
    await settle(store)
    assert near.held(layer.key) == far.held(layer.key) == {1}
    assert (await read(store, layer, 1))[1] is Origin.MEMORY
    assert len(source.reads) == 1


# Health


async def test_a_layer_knows_how_its_last_fetch_ended(store, layer, source):
    await read(store, layer, 0)
    assert layer.trouble is None
    for kind in (RegistryTimeout, BlobNotFound):
        source.error = failure(kind)
        with pytest.raises(kind):
            await read(store, layer, 1)
        assert layer.trouble is source.error
    source.error = None
    await read(store, layer, 1)
    assert layer.trouble is None
    assert store.counts.failures == {"registry_timeout": 1, "blob_not_found": 1}


# Healing


class MendingKeeper:
    """Mends what is damaged by ``mend``, as often as it is asked."""

    def __init__(self, index, mend):
        self.index, self.mend = index, mend
        self.met = []

    async def open(self, _layer):
        return self.index

    async def heal(self, _layer, _index, error):
        self.met.append(error)
        self.index = self.mend()
        return self.index


@pytest.fixture
def broken(index):
    """An index whose windows are gone."""
    windows = FileWindows(Path("/nowhere/at/all"))
    return LayerIndex(index.key, index.row, index.facts, index.table, windows)


async def test_a_read_that_meets_a_lost_index_is_tried_again_when_it_is_mended(store, index, broken, source):
    keeper = MendingKeeper(broken, lambda: index)
    layer = layer_of(broken, source, store, keeper=keeper)
    assert await read(store, layer, 3) == (truth(layer, 3), Origin.UPSTREAM)
    assert [type(error) for error in keeper.met] == [IndexAbsent]
    assert layer.index is index
    assert (await read(store, layer, 4))[0] == truth(layer, 4)
    assert len(keeper.met) == 1


async def test_a_damaged_window_is_mended_too(store, tmp_path, source):
    index, other = await index_blob(tmp_path / "a", BLOB, GZIP), await index_blob(tmp_path / "b", BLOB, GZIP)
    (path,) = (tmp_path / "a").rglob(CHECKPOINTS)
    path.write_bytes(bytes(path.stat().st_size))
    keeper = MendingKeeper(index, lambda: other)
    layer = layer_of(index, source, store, keeper=keeper)
    assert (await read(store, layer, 3))[0] == truth(layer, 3)
    assert [type(error) for error in keeper.met] == [IndexDamaged]


async def test_a_read_is_tried_again_once_and_no_more(store, index, broken, source):
    keeper = MendingKeeper(
        broken,
        lambda: LayerIndex(index.key, index.row, index.facts, index.table, FileWindows(Path("/nowhere"))),
    )
    layer = layer_of(broken, source, store, keeper=keeper)
    with pytest.raises(IndexAbsent):
        await read(store, layer, 3)
    assert len(keeper.met) == 1
    assert len(source.reads) == 2
    assert store.admission.used_bytes == 0


async def test_what_cannot_be_mended_in_time_is_an_error_of_that_read(store, index, broken, source):
    def fail():
        raise failure(IndexBeingMade)

    layer = layer_of(broken, source, store, keeper=MendingKeeper(broken, fail))
    with pytest.raises(IndexBeingMade):
        await read(store, layer, 3)
    assert layer.index is broken


async def test_wrong_bytes_of_a_local_file_are_damage_and_mended(store, tmp_path):
    raw = content(200_000, 9)
    index = await index_blob(tmp_path, raw, IDENTITY)
    source = MemoryBlob(raw)
    source.flipped = 70_000

    def mend():
        source.flipped = None
        return index

    keeper = MendingKeeper(index, mend)
    layer = layer_of(index, source, store, local=True, keeper=keeper)
    assert await read(store, layer, 1) == (raw[65536:131072], Origin.LOCAL)
    assert [type(error) for error in keeper.met] == [ArtifactDamaged]
    assert store.counts.fetches == 0


async def test_wrong_bytes_of_a_registry_are_not_mended(store, layer, source):
    source.flipped = layer.index.table.span(1).in_start + 1
    with pytest.raises(SpanMismatch):
        await read(store, layer, 1)
    assert layer._keeper.met == []


# Provisional layers: a supplied table that no pass has proven


class Windows:
    """The windows of an index, to be damaged."""

    def __init__(self, index):
        self.windows = [bytearray(index.window(i)) for i in range(index.table.count)]

    def read(self, offset, length):
        number = (offset - HEADER_BYTES) // RECORD_BYTES
        return bytes(self.windows[number][:length])


def provisional(index, source):
    table = SpanTable.of(
        index.table.span(i)._replace(in_sha256=UNKNOWN, out_sha256=UNKNOWN) for i in range(index.table.count)
    )
    unproven = LayerIndex(index.key, index.row, index.facts, table, Windows(index))
    memory = MemoryTier(8 << 20)
    proof = Chained("the layer")
    layer = Layer(index.key, source, Origin.UPSTREAM, proof, memory, (), StillKeeper(unproven))
    layer._use(unproven)
    return layer


def window_of(layer, number):
    return layer.index._windows.windows[number]


@pytest.fixture
def unproven(index, source):
    return provisional(index, source)


async def test_nothing_unproven_enters_a_cache_that_others_read(store, unproven):
    assert await read(store, unproven, 3) == (truth(unproven, 3), Origin.UPSTREAM)
    await settle(store)
    assert len(store.memory) == 0
    assert disk_of(store).used_bytes == 0
    assert await read(store, unproven, 3) == (truth(unproven, 3), Origin.MEMORY)


async def test_a_random_unproven_read_looks_at_the_span_before(store, unproven, source):
    await read(store, unproven, 3)
    assert sorted(at for at, _ in source.reads) == [unproven.index.table.span(i).in_start for i in (2, 3)]


async def test_a_sequential_unproven_reader_fetches_every_span_once(store, unproven, source):
    for number in range(unproven.index.table.count):
        assert (await read(store, unproven, number))[0] == truth(unproven, number)
    assert len(source.reads) == unproven.index.table.count


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 32767), bit=st.integers(0, 7))
async def test_a_flipped_window_bit_at_any_position_is_found(store, index, at, bit):
    layer = provisional(index, MemoryBlob(BLOB))
    window_of(layer, 4)[at] ^= 1 << bit
    with pytest.raises(IntegrityError):
        await read(store, layer, 4)
    assert len(layer.memory) == 0
    # The span before ends with something else than the window, too.
    with pytest.raises(ChainMismatch):
        await read(store, layer, 3)
    assert (await read(store, layer, 1))[0] == truth(layer, 1)


@pytest.mark.parametrize("confirmed_by", [3, 4], ids=["the span before", "its own first read"])
async def test_a_window_that_is_damaged_after_it_was_confirmed_is_found(store, unproven, confirmed_by):
    await read(store, unproven, confirmed_by)
    await unproven.memory.drop()
    window = window_of(unproven, 4)
    window[:] = bytes(byte ^ 0x20 for byte in window)
    with pytest.raises(IndexDamaged):
        await read(store, unproven, 4)


@pytest.mark.parametrize("at", [0, 1000, 16384, 32000, 32767])
async def test_behind_spans_shorter_than_a_window_all_of_the_window_is_checked(store, tmp_path, at):
    """The window of a checkpoint reaches over several spans before it."""
    data = content(120_000, 4)
    blob = gzip_streams.member(data, flush=zlib.Z_SYNC_FLUSH, flush_every=5_000)
    index = await index_blob(tmp_path, blob, GZIP, span_size=4_000)
    assert index.table.span(12).out_length < 32768
    layer = provisional(index, MemoryBlob(blob))
    window_of(layer, 12)[at] ^= 0x20
    with pytest.raises(IntegrityError):
        await read(store, layer, 12)
    whole = provisional(index, MemoryBlob(blob))
    for number in (12, 3, 0, 13):
        start, stop = whole.index.table.bounds(number)
        assert (await read(store, whole, number))[0] == data[start:stop]


async def test_a_flipped_window_is_found_by_a_sequential_reader_of_short_spans_too(store, tmp_path):
    data = content(120_000, 4)
    blob = gzip_streams.member(data, flush=zlib.Z_SYNC_FLUSH, flush_every=5_000)
    index = await index_blob(tmp_path, blob, GZIP, span_size=4_000)
    layer = provisional(index, MemoryBlob(blob))
    window_of(layer, 12)[16_000] ^= 0x20
    for number in range(12):
        start, stop = layer.index.table.bounds(number)
        assert (await read(store, layer, number))[0] == data[start:stop]
    with pytest.raises(IntegrityError):
        await read(store, layer, 12)


# The whole of it


FLAVOURS = ["zlib -6", "stored blocks", "members of 64 KiB", "full flush every 128 KiB", "empty member first"]


async def make_layers(tmp_path_factory):
    found = []
    for number, flavour in enumerate(FLAVOURS):
        data = content(300_000 + number * 777, number)
        blob = gzips.PURE[flavour](data)
        folder = tmp_path_factory.mktemp("layers")
        found.append((data, blob, await index_blob(folder, blob, GZIP, span_size=65536 << (number % 2))))
    raw = content(150_001, 77)
    found.append((raw, raw, await index_blob(tmp_path_factory.mktemp("layers"), raw, IDENTITY)))
    return found


@pytest.fixture(scope="module")
def layers(tmp_path_factory):
    return asyncio.run(make_layers(tmp_path_factory))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_random_reads_of_random_layers_are_the_truth(stores, layers, data):
    store = stores(memory=data.draw(st.sampled_from([0, 200_000, 1 << 30])))
    for _ in range(data.draw(st.integers(1, 12))):
        wanted, blob, index = data.draw(st.sampled_from(layers))
        layer = layer_of(index, MemoryBlob(blob), store)
        number = index.table.find(data.draw(st.integers(0, index.table.size - 1)))
        start, stop = layer.index.table.bounds(number)
        found, _ = await read(store, layer, number)
        assert found == wanted[start:stop]
        if data.draw(st.booleans()):
            store.prefetch(layer, data.draw(st.integers(0, layer.index.table.count - 1)))
    await settle(store)
    assert store.admission.used_bytes == 0
