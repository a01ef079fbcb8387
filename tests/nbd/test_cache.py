from __future__ import annotations

import asyncio
import random

import pytest

from blockgate.reader import check_bounds
from nbd_client.errors import RangeNotSatisfiable, SourceTimeout
from nbd_client.source.cache import CacheReader
from nbd_client.source.readahead import ReadaheadReader

CONTENT = random.Random(1).randbytes(1 << 20)


class Inner:
    """A reader that waits at a gate and may fail."""

    size = len(CONTENT)

    def __init__(self) -> None:
        self.asked = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failures = 0
        self.closed = False

    async def read(self, offset, length):
        check_bounds(offset, length, self.size)
        self.asked.append((offset, length))
        await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise SourceTimeout("late")
        return memoryview(CONTENT)[offset : offset + length]

    async def aclose(self):
        self.closed = True


async def test_what_was_read_is_not_fetched_again():
    inner = Inner()
    cache = CacheReader(inner, 1 << 20)
    for _ in range(3):
        assert await cache.read(100, 50) == CONTENT[100:150]
    assert inner.asked == [(100, 50)]
    assert cache.peek(110, 10) == CONTENT[110:120]


async def test_only_what_is_missing_is_fetched():
    inner = Inner()
    cache = CacheReader(inner, 1 << 20)
    await cache.read(100, 50)
    assert await cache.read(50, 200) == CONTENT[50:250]
    assert inner.asked[1:] == [(50, 50), (150, 100)]


async def test_a_thousand_readers_of_one_range_cause_one_fetch():
    inner = Inner()
    inner.gate.clear()
    cache = CacheReader(inner, 1 << 20)
    async with asyncio.TaskGroup() as group:
        reads = [group.create_task(cache.read(0, 4096)) for _ in range(1000)]
        await asyncio.sleep(0)
        inner.gate.set()
    assert all(read.result() == CONTENT[:4096] for read in reads)
    assert inner.asked == [(0, 4096)]


async def test_a_cancelled_reader_does_not_cancel_what_others_wait_for():
    inner = Inner()
    inner.gate.clear()
    cache = CacheReader(inner, 1 << 20)
    first = asyncio.create_task(cache.read(0, 4096))
    await asyncio.sleep(0)
    second = asyncio.create_task(cache.read(0, 4096))
    await asyncio.sleep(0)
    first.cancel()
    inner.gate.set()
    assert await second == CONTENT[:4096]
    assert inner.asked == [(0, 4096)]
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_failure_is_not_kept():
    inner = Inner()
    inner.failures = 1
    cache = CacheReader(inner, 1 << 20)
    with pytest.raises(SourceTimeout):
        await cache.read(0, 4096)
    assert await cache.read(0, 4096) == CONTENT[:4096]


async def test_who_joins_a_fetch_that_fails_asks_once_more_for_itself():
    inner = Inner()
    inner.gate.clear()
    inner.failures = 1
    cache = CacheReader(inner, 1 << 20)
    cache.prefetch(0, 4096)
    read = asyncio.create_task(cache.read(0, 4096))
    await asyncio.sleep(0)
    inner.gate.set()
    assert await read == CONTENT[:4096]
    assert inner.asked == [(0, 4096)] * 2


async def test_a_source_that_stays_broken_is_asked_a_bounded_number_of_times():
    inner = Inner()
    inner.gate.clear()
    inner.failures = 1000
    cache = CacheReader(inner, 1 << 20)
    cache.prefetch(0, 4096)
    read = asyncio.create_task(cache.read(0, 8192))
    await asyncio.sleep(0)
    inner.gate.set()
    with pytest.raises(SourceTimeout):
        await read
    assert len(inner.asked) <= 4


async def test_hints_are_dropped_when_as_much_is_on_its_way_as_the_cache_can_hold():
    inner = Inner()
    inner.gate.clear()
    cache = CacheReader(inner, 100_000)
    for offset in range(0, len(CONTENT), 10_000):
        cache.prefetch(offset, offset + 10_000)
    await asyncio.sleep(0)
    assert sum(length for _, length in inner.asked) == 100_000
    read = asyncio.create_task(cache.read(500_000, 200_000))
    await asyncio.sleep(0)
    inner.gate.set()
    assert await read == CONTENT[500_000:700_000], "what is needed is no hint"


async def test_random_reads_with_a_small_budget_are_right_and_within_it():
    inner = Inner()
    cache = CacheReader(inner, 100_000)
    reader = ReadaheadReader(cache)
    rng = random.Random(7)
    for _ in range(500):
        offset = rng.randrange(len(CONTENT))
        length = rng.randrange(1, min(40_000, len(CONTENT) - offset) + 1)
        found = reader.peek(offset, length)
        data = found if found is not None else await reader.read(offset, length)
        assert data == CONTENT[offset : offset + length]
        assert cache.used_bytes <= 100_000
    await reader.aclose()


async def test_a_sequential_reader_gets_right_bytes_ahead_of_time():
    inner = Inner()
    reader = ReadaheadReader(CacheReader(inner, 8 << 20))
    whole = bytearray()
    for offset in range(0, len(CONTENT), 16384):
        whole += await reader.read(offset, 16384)
    assert whole == CONTENT
    assert len(inner.asked) < 16
    assert sum(length for _, length in inner.asked) == len(CONTENT)
    await reader.aclose()


async def test_bounds_are_checked():
    cache = CacheReader(Inner(), 1 << 20)
    with pytest.raises(RangeNotSatisfiable):
        await cache.read(len(CONTENT), 1)
    assert await cache.read(0, 0) == b""


async def test_closing_ends_fetches_and_the_inner_reader():
    inner = Inner()
    inner.gate.clear()
    cache = CacheReader(inner, 1 << 20)
    read = asyncio.create_task(cache.read(0, 4096))
    await asyncio.sleep(0)
    await cache.aclose()
    assert inner.closed
    with pytest.raises(asyncio.CancelledError):
        await read
