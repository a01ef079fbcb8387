"""A device's bytes: stream, peek and read agree with the truth at every seam."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.devices.device import Device
from gateway.errors import BlobNotFound, RangeNotSatisfiable, RegistryTimeout
from gateway.layers.codec import GZIP, IDENTITY
from gateway.recipes.segments import Piece, Segment, concatenate
from gateway.spans.disk import DiskTier, SpanFiles
from gateway.spans.flights import Admission
from gateway.spans.locks import SpanLocks
from gateway.spans.memory import MemoryTier
from gateway.spans.store import SpanStore
from gateway.spans.tier import Origin
from tests.support import gzips
from tests.support.layers import MemoryBlob, content, failure, index_blob, layer_of


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Decoded bytes, blob and index of layers of several kinds."""
    found = []
    for number, (size, flavour) in enumerate(
        [(200_000, "zlib -6"), (70_001, "members of 64 KiB"), (512, "zlib -1"), (65_536, "stored blocks")]
    ):
        data = content(size, number + 10)
        blob = gzips.PURE[flavour](data)
        found.append(("gzip", data, blob, asyncio.run(index_blob(tmp_path_factory.mktemp("i"), blob, GZIP))))
    for number, size in enumerate([1, 65_536, 150_000]):
        data = content(size, number + 20)
        found.append(
            ("raw", data, data, asyncio.run(index_blob(tmp_path_factory.mktemp("i"), data, IDENTITY)))
        )
    return found


@pytest.fixture(scope="module")
def executor():
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture
async def make_store(tmp_path, executor):
    locks = SpanLocks(tmp_path / "locks")
    stores = []

    def make(memory=64 << 20, **options):
        disk = DiskTier(SpanFiles(tmp_path / "cache", 64 << 20), locks, executor)
        store = SpanStore(MemoryTier(memory), (disk,), Admission(1 << 30), executor, **options)
        stores.append(store)
        return store

    yield make
    for store in stores:
        await store.aclose()
    locks.close()


def build(chosen, store, gaps=()):
    """A device of these layers with zeros between them, its truth and its sources."""
    segments, layers, truth, sources = [], [], b"", []
    for number, (kind, data, blob, index) in enumerate(chosen):
        gap = gaps[number] if number < len(gaps) else 0
        if gap:
            segments.append(Segment("zero", len(truth), gap))
            layers.append(None)
            truth += bytes(gap)
        for segment in concatenate([Piece(kind, len(data), index.facts.blob, index.key.cut)]):
            moved = Segment(segment.kind, len(truth), segment.length, segment.digest, segment.cut)
            segments.append(moved)
            if segment.kind == "zero":
                layers.append(None)
                truth += bytes(segment.length)
            else:
                sources.append(MemoryBlob(blob))
                layers.append(layer_of(index, sources[-1], store))
                truth += data
    return Device("device", '"tag"', segments, layers, store), truth, sources


async def streamed(device, start, stop):
    return b"".join([bytes(piece) async for piece in device.stream(start, stop)])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_any_range_of_any_device_is_the_truth(make_store, made, data):
    store = make_store(memory=data.draw(st.sampled_from([0, 150_000, 1 << 30])))
    chosen = data.draw(st.lists(st.sampled_from(made), min_size=1, max_size=4))
    gaps = data.draw(st.lists(st.sampled_from([0, 512, 65_536, 200_192]), max_size=4))
    device, truth, _ = build(chosen, store, gaps)
    assert device.size == len(truth)
    seams = [s.offset for s in device.segments] + [device.size]
    for _ in range(4):
        near = data.draw(st.sampled_from(seams))
        start = min(max(0, near + data.draw(st.integers(-70_000, 70_000))), device.size)
        stop = min(start + data.draw(st.sampled_from([0, 1, 512, 4096, 100_000, 1 << 20])), device.size)
        assert await streamed(device, start, stop) == truth[start:stop]
        assert bytes(await device.read(start, stop - start)) == truth[start:stop]
        pieces = device.peek(start, stop)
        if pieces is not None:
            assert b"".join(map(bytes, pieces)) == truth[start:stop]


async def test_every_seam_is_exact(make_store, made):
    device, truth, _ = build([made[0], made[4], made[2]], make_store(), [512, 0, 1024])
    for segment in device.segments:
        for seam in (segment.offset, segment.offset + segment.length):
            start, stop = max(0, seam - 3), min(device.size, seam + 3)
            assert await streamed(device, start, stop) == truth[start:stop]


async def test_peek_gives_nothing_while_a_part_is_missing_and_all_of_it_afterwards(make_store, made):
    device, truth, sources = build([made[0], made[1]], make_store())
    assert device.peek(0, device.size) is None
    await device.read(0, 100_000)
    assert device.peek(0, device.size) is None
    assert b"".join(map(bytes, device.peek(0, 100_000))) == truth[:100_000]
    await device.read(0, device.size)
    asked = sum(len(source.reads) for source in sources)
    assert b"".join(map(bytes, device.peek(0, device.size))) == truth
    assert sum(len(source.reads) for source in sources) == asked


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1), (1, 1 << 40)])
async def test_reading_outside_is_refused(make_store, made, offset, length):
    device, _, _ = build([made[0]], make_store())
    with pytest.raises(RangeNotSatisfiable):
        await device.read(offset, length)


async def test_a_stream_is_right_up_to_the_piece_that_fails(make_store, made):
    device, truth, sources = build([made[0], made[6]], make_store())
    sources[1].error = failure(BlobNotFound)
    got = b""
    with pytest.raises(BlobNotFound):
        async for piece in device.stream(0, device.size):
            got += piece
    assert got == truth[: len(got)]
    assert len(got) >= len(made[0][1])


async def test_a_long_answer_is_fetched_side_by_side_a_bounded_way_ahead(make_store, made):
    device, truth, sources = build([made[0], made[6]] * 4, make_store(memory=0, concurrent_fetches=64))
    for source in sources:
        source.gate = asyncio.Event()
    stream = device.stream(0, device.size)
    first = asyncio.create_task(anext(stream))
    await sources[0].asked()
    async with asyncio.timeout(20):
        while (begun := sum(len(source.reads) for source in sources)) < 2:
            await asyncio.sleep(0.001)
    assert begun <= 12
    for source in sources:
        source.gate.set()
    rest = [bytes(await first)] + [bytes(piece) async for piece in stream]
    assert b"".join(rest) == truth


async def test_a_reader_that_goes_away_in_mid_stream_leaves_no_noise(make_store, made):
    noise = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
    device, _, sources = build([made[0], made[6]], make_store())
    stream = device.stream(0, device.size)
    await anext(stream)
    sources[1].error = failure(RegistryTimeout)
    await stream.aclose()
    await asyncio.sleep(0.01)
    assert noise == []


async def test_a_random_reader_costs_exactly_what_it_asks_for(make_store, made):
    device, _, sources = build([made[0]], make_store())
    table = device.layers[0].index.table
    for start in (table.bounds(2)[0], 10, 100, 50, table.bounds(1)[0]):
        device.expect(start, start + 20)
        await device.read(start, 20)
    assert len(sources[0].reads) == 3
    assert len(sources[0].reads) == len(set(sources[0].reads))


async def test_a_sequential_reader_is_read_ahead_of(make_store, made):
    device, _, sources = build([made[0]], make_store())
    for start in range(0, 3 * 4096, 4096):
        device.expect(start, start + 4096)
        await device.read(start, 4096)
    await sources[0].asked(3)
    assert len(sources[0].reads) == device.layers[0].index.table.count


async def test_reading_ahead_ends_where_the_segment_ends(make_store, made):
    device, _, sources = build([made[2], made[0]], make_store())
    end = device.segments[0].length
    for start in range(0, end - 128, 128):
        device.expect(start, start + 128)
        await device.read(start, 128)
    assert len(sources[0].reads) == device.layers[0].index.table.count
    assert sources[1].reads == [], "whoever reads metadata in order is not about to read the layer behind it"
    device.expect(end - 128, end)
    device.expect(end, end + 4096)
    await sources[1].asked(1)


async def test_what_was_served_is_counted_by_where_it_came_from(make_store, made):
    device, _, _ = build([made[0]], make_store())
    await device.read(0, 100)
    await device.read(0, 50)
    assert device.served[Origin.UPSTREAM] == 100
    assert device.served[Origin.MEMORY] == 50


async def test_zeros_cost_nothing_and_are_zeros(make_store, made):
    device, _, sources = build([made[2]], make_store(), [1 << 20])
    pieces = device.peek(0, 1 << 20)
    assert b"".join(map(bytes, pieces)) == bytes(1 << 20)
    assert sources[0].reads == []


async def test_closing_closes_every_source_once(make_store, made):
    device, _, sources = build([made[0], made[1]], make_store())
    await device.aclose()
    assert [source.closed for source in sources] == [1, 1]
