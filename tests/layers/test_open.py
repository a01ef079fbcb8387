"""Open indexes: once for each key, as long as somebody holds it; what is damaged is dropped and is absent then."""

from __future__ import annotations

import asyncio
import gc

import pytest

from gateway.errors import IndexAbsent, IndexDamaged, NewerFormat, StorageError
from gateway.gzran.zinfo import Checkpoint
from gateway.layers.folder import FolderStore
from gateway.layers.index import SPANS, IndexFacts
from gateway.layers.key import LayerKey
from gateway.layers.open import OpenIndexes
from gateway.layers.table import Span, SpanTable
from tests.support.layers import failure

KEY = LayerKey("sha256:" + "ab" * 32, "gzip-65536-v2")
TABLE = SpanTable.of([Span(10, 20, 0, 100, 0, b"i" * 32, b"o" * 32)])
FACTS = IndexFacts(
    blob=KEY.blob,
    blob_size=20,
    codec="gzip",
    cut=KEY.cut,
    span_size=65536,
    size=100,
    sha256="sha256:" + "cd" * 32,
    files={},
)


class Rows:
    """The catalog's side."""

    def __init__(self):
        self.rows = {}
        self.asked = 0
        self.error: StorageError | None = None

    async def index_row(self, key):
        self.asked += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return self.rows.get(key)

    async def drop_index(self, key, attempt):
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        if key in self.rows and self.rows[key].attempt == attempt:
            del self.rows[key]


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "tmp").mkdir()
    return FolderStore(tmp_path / "layers", tmp_path / "tmp")


@pytest.fixture
def rows():
    return Rows()


@pytest.fixture
async def indexes(folders, rows):
    return OpenIndexes(folders, rows)


async def make(folders, rows):
    async with folders.draft(KEY) as draft:
        draft.begin_checkpoints(65536)
        draft.checkpoint(Checkpoint(10, 0, 0), bytes(32768))
        draft.complete(FACTS, TABLE.records, b"")
        rows.rows[KEY] = await draft.publish()
    return folders._path(KEY, rows.rows[KEY].attempt)


async def test_a_key_that_no_pass_has_ended_for_is_absent(indexes):
    with pytest.raises(IndexAbsent, match="has no index"):
        await indexes.open(KEY)
    assert len(indexes) == 0


async def test_an_index_is_opened_once_however_many_want_it_at_once(indexes, folders, rows):
    await make(folders, rows)
    found = await asyncio.gather(*(indexes.open(KEY) for _ in range(20)))
    assert {id(each) for each in found} == {id(found[0])}
    assert rows.asked == 1
    assert await indexes.open(KEY) is found[0]
    assert (rows.asked, len(indexes)) == (1, 1)


async def test_it_closes_when_nobody_holds_it(indexes, folders, rows):
    await make(folders, rows)
    index = await indexes.open(KEY)
    assert len(indexes) == 1
    del index
    async with asyncio.timeout(20):
        while len(indexes):  # the thread that opened it may still let go of it
            gc.collect()
            await asyncio.sleep(0)
    await indexes.open(KEY)
    assert rows.asked == 2


async def test_one_that_is_cancelled_while_it_opens_disturbs_nobody(indexes, folders, rows):
    await make(folders, rows)
    first, second = (asyncio.create_task(indexes.open(KEY)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert (await asyncio.wait_for(second, 20)).key == KEY


async def test_a_damaged_one_is_dropped_and_is_absent(indexes, folders, rows):
    folder = await make(folders, rows)
    (folder / SPANS).write_bytes(b"")
    with pytest.raises(IndexAbsent, match="it is dropped"):
        await indexes.open(KEY)
    assert not folder.exists()
    assert rows.rows == {}


async def test_one_that_turns_out_to_be_damaged_is_dropped_and_its_holders_go_on(indexes, folders, rows):
    folder = await make(folders, rows)
    index = await indexes.open(KEY)
    await indexes.drop(index)
    assert not folder.exists()
    assert rows.rows == {}
    assert index.table.count == 1
    with pytest.raises(IndexAbsent):
        await indexes.open(KEY)
    await make(folders, rows)
    again = await indexes.open(KEY)
    assert again is not index
    # Who is late drops nothing of the new one.
    await indexes.drop(index)
    assert await indexes.open(KEY) is again


async def test_an_equal_copy_that_is_damaged_is_removed_so_that_the_next_row_is_not_dropped_for_it(
    indexes, folders, rows
):
    folder = await make(folders, rows)
    mine = rows.rows[KEY]
    rows.rows[KEY] = mine.model_copy(update={"attempt": "of another replica"})
    (folder / SPANS).write_bytes(b"")
    with pytest.raises(IndexAbsent):
        await indexes.open(KEY)
    theirs = rows.rows[KEY] = mine.model_copy(update={"attempt": "of another replica again"})
    with pytest.raises(IndexAbsent):
        await indexes.open(KEY)
    assert rows.rows == {KEY: theirs}


async def test_one_whose_copy_is_gone_is_forgotten_and_looked_for_anew(indexes, folders, rows):
    await make(folders, rows)
    index = await indexes.open(KEY)
    indexes.forget(index)
    again = await indexes.open(KEY)
    assert again is not index
    # Forgetting what has been exchanged already changes nothing.
    indexes.forget(index)
    assert await indexes.open(KEY) is again


async def test_a_copy_that_is_not_here_leaves_the_row_to_other_replicas(indexes, folders, rows):
    folder = await make(folders, rows)
    row = rows.rows[KEY]
    await folders.drop(KEY, row.attempt)
    assert not folder.exists()
    with pytest.raises(IndexAbsent):
        await indexes.open(KEY)
    assert rows.rows == {KEY: row}


async def test_where_store_or_catalog_do_not_answer_nothing_is_concluded(indexes, folders, rows, monkeypatch):
    folder = await make(folders, rows)

    async def fail(_key, _row):
        raise failure(StorageError)

    with monkeypatch.context() as broken:
        broken.setattr(folders, "open", fail)
        with pytest.raises(StorageError) as met:
            await indexes.open(KEY)
        assert type(met.value) is StorageError
    rows.error = failure(StorageError)
    with pytest.raises(StorageError) as met:
        await indexes.open(KEY)
    assert type(met.value) is StorageError
    rows.error = None
    assert folder.exists()
    assert (await indexes.open(KEY)).key == KEY


async def test_while_the_catalog_does_not_answer_nothing_is_removed(indexes, folders, rows):
    folder = await make(folders, rows)
    index = await indexes.open(KEY)
    rows.error = failure(StorageError)
    with pytest.raises(StorageError):
        await indexes.drop(index)
    assert folder.exists()


async def test_an_index_of_a_later_version_is_kept(indexes, folders, rows, monkeypatch):
    folder = await make(folders, rows)

    async def fail(_key, _row):
        raise failure(NewerFormat)

    monkeypatch.setattr(folders, "open", fail)
    with pytest.raises(NewerFormat):
        await indexes.open(KEY)
    assert folder.exists()
    assert KEY in rows.rows


def test_damage_and_absence_are_storage_errors():
    """Who knows no better treats them as faults that can pass."""
    assert issubclass(IndexAbsent, StorageError)
    assert issubclass(IndexDamaged, StorageError)
