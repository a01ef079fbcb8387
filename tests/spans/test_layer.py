"""A layer of one device: opened when it is read, mended once for all that met the same damage."""

from __future__ import annotations

import asyncio
import gc
from types import SimpleNamespace

import pytest

from gateway.errors import BlobNotFound, IndexBeingMade, IndexDamaged, RegistryTimeout
from gateway.layers.codec import GZIP
from gateway.layers.index import LayerIndex
from gateway.layers.proof import Proven
from gateway.spans import layer as module
from gateway.spans.layer import Layer
from gateway.spans.memory import MemoryTier
from gateway.spans.tier import Origin
from tests.support import gzips
from tests.support.layers import MemoryBlob, content, failure, index_blob

BLOB = gzips.member(content(200_000))


class GatedKeeper:
    """Answers when its gate opens; one answer for each time it is asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.gate = asyncio.Event()
        self.asked = 0

    async def open(self, _layer):
        self.asked += 1
        await self.gate.wait()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def heal(self, layer, _index, _error):
        return await self.open(layer)


@pytest.fixture
async def index(tmp_path):
    return await index_blob(tmp_path, BLOB, GZIP)


@pytest.fixture
def another(index):
    return LayerIndex(index.key, index.row, index.facts, index.table, index._windows)


def layer_by(keeper, index):
    memory = MemoryTier(1 << 20)
    return Layer(index.key, MemoryBlob(BLOB), Origin.UPSTREAM, Proven(), memory, (), keeper)


async def begun(*tasks):
    """Let tasks come to where they wait."""
    for _ in range(5):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


async def test_a_layer_is_opened_once_however_many_read_it(index):
    keeper = GatedKeeper(index)
    layer = layer_by(keeper, index)
    assert layer.index is None
    readers = [asyncio.create_task(layer.open()) for _ in range(10)]
    await begun(*readers)
    keeper.gate.set()
    assert {id(found) for found in await asyncio.gather(*readers)} == {id(index)}
    assert await layer.open() is index
    assert keeper.asked == 1
    assert len(layer.reads) == index.table.count


async def test_all_who_wait_share_one_failure_and_the_next_one_asks_again(index):
    """Waiting in turn, the tenth would wait ten times as long as the first."""
    keeper = GatedKeeper(failure(IndexBeingMade), index)
    layer = layer_by(keeper, index)
    readers = [asyncio.create_task(layer.open()) for _ in range(10)]
    await begun(*readers)
    keeper.gate.set()
    found = await asyncio.gather(*readers, return_exceptions=True)
    assert {type(each) for each in found} == {IndexBeingMade}
    assert keeper.asked == 1
    assert await layer.open() is index


async def test_what_many_reads_find_damaged_is_mended_once(index, another):
    keeper = GatedKeeper(another)
    layer = layer_by(keeper, index)
    layer._use(index)
    reads = [asyncio.create_task(layer.heal(index, failure(IndexDamaged))) for _ in range(10)]
    await begun(*reads)
    # Others go on with what is in memory.
    assert await layer.open() is index
    keeper.gate.set()
    assert {id(found) for found in await asyncio.gather(*reads)} == {id(another)}
    assert keeper.asked == 1
    # One that comes late with the old one has the new one at once.
    assert await layer.heal(index, failure(IndexDamaged)) is another
    assert keeper.asked == 1


async def test_a_mending_that_fails_fails_once_for_all_and_keeps_the_old_index(index, another):
    keeper = GatedKeeper(failure(IndexBeingMade), another)
    layer = layer_by(keeper, index)
    layer._use(index)
    reads = [asyncio.create_task(layer.heal(index, failure(IndexDamaged))) for _ in range(10)]
    await begun(*reads)
    keeper.gate.set()
    found = await asyncio.gather(*reads, return_exceptions=True)
    assert {type(each) for each in found} == {IndexBeingMade}
    assert (keeper.asked, layer.index) == (1, index)
    assert await layer.heal(index, failure(IndexDamaged)) is another


async def test_a_reader_that_is_cancelled_leaves_the_work_to_another(index):
    keeper = GatedKeeper(index)
    layer = layer_by(keeper, index)
    leader, follower, third = (asyncio.create_task(layer.open()) for _ in range(3))
    await begun(leader, follower, third)
    leader.cancel()
    await asyncio.gather(leader, return_exceptions=True)
    await begun(follower, third)
    assert keeper.asked == 2
    follower.cancel()
    await asyncio.gather(follower, return_exceptions=True)
    keeper.gate.set()
    assert await asyncio.wait_for(third, 20) is index


async def test_a_follower_that_is_cancelled_disturbs_nobody(index):
    keeper = GatedKeeper(index)
    layer = layer_by(keeper, index)
    leader, follower = (asyncio.create_task(layer.open()) for _ in range(2))
    await begun(leader, follower)
    follower.cancel()
    await asyncio.gather(follower, return_exceptions=True)
    keeper.gate.set()
    assert await asyncio.wait_for(leader, 20) is index
    assert keeper.asked == 1


async def test_a_failure_that_only_one_met_makes_no_noise(index):
    noise = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
    keeper = GatedKeeper(failure(IndexBeingMade))
    layer = layer_by(keeper, index)
    keeper.gate.set()
    with pytest.raises(IndexBeingMade):
        await layer.open()
    gc.collect()
    await asyncio.sleep(0)
    assert noise == []


async def test_an_index_that_is_exchanged_keeps_the_counts_of_reads(index, another):
    layer = layer_by(GatedKeeper(), index)
    layer._use(index)
    layer.reads[1] += 5
    layer._use(another)
    assert layer.reads[1] == 5


async def test_a_fault_that_may_have_passed_is_believed_for_a_minute(index, monkeypatch):
    now = SimpleNamespace(monotonic=lambda: now.at, at=1000.0)
    monkeypatch.setattr(module, "time", now)
    layer = layer_by(GatedKeeper(), index)
    assert layer.trouble is None
    passing, lasting = failure(RegistryTimeout), failure(BlobNotFound)
    layer.note(passing)
    assert layer.trouble is passing
    now.at += 59
    assert layer.trouble is passing
    now.at += 2
    assert layer.trouble is None
    layer.note(lasting)
    now.at += 10_000
    assert layer.trouble is lasting
    layer.note(None)
    assert layer.trouble is None
