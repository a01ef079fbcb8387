"""Running passes: one per layer at a time, errors named, nothing left behind; metadata in its own process."""

from __future__ import annotations

import asyncio
import errno
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from gateway.errors import (
    BlobMismatch,
    CorruptStream,
    DiffIdMismatch,
    IndexAbsent,
    IndexDamaged,
    InvalidLayer,
    LeaseLost,
    RegistryTimeout,
    StorageError,
)
from gateway.ingest import metadata
from gateway.ingest.decompress import decompressed
from gateway.ingest.ingest import Ingest
from gateway.ingest.layer_pass import Cutting, LayerPass, Promise
from gateway.ingest.metadata import build_file, build_in_process
from gateway.layers.codec import GZIP, IDENTITY
from gateway.layers.folder import FolderDraft, FolderStore
from gateway.layers.index import SPANS, TOC, IndexFacts
from gateway.layers.key import LayerKey, cut_name
from gateway.layers.open import OpenIndexes
from tests.support import gzips
from tests.support.layers import MemoryBlob, content, failure, index_blob, sha256, tar_of

TAR = tar_of({"a": content(200_000, 1), "b": content(100, 2)})
BLOB = gzips.member(TAR)
PROMISE = Promise(sha256(BLOB), len(BLOB), sha256(TAR))
CUTTING = Cutting(GZIP, cut_name("gzip", 65536), 65536)
KEY = LayerKey(PROMISE.digest, CUTTING.cut)


@pytest.fixture(scope="module")
def executor():
    with ThreadPoolExecutor(4) as executor:
        yield executor


@pytest.fixture
def ingest(tmp_path, catalog, executor):
    (tmp_path / "tmp").mkdir()
    return another_ingest(tmp_path, catalog, executor)


def another_ingest(folder, catalog, executor):
    """As another worker of the same folder has it."""
    store = FolderStore(folder / "layers", folder / "tmp")
    return Ingest(store, catalog, OpenIndexes(store, catalog), executor, span_size=65536)


def quiet(_done, _total):
    return None


def make(ingest, blob, promise=PROMISE):
    return ingest.index(blob, promise, CUTTING, quiet)


def leftovers(folder):
    return [path for part in ("layers", "tmp") for path in (folder / part).rglob("*") if path.is_file()]


def attempt(folder):
    (found,) = (folder / "layers").glob("*/*/*")
    return found


async def test_progress_grows_to_the_whole_blob(ingest):
    seen = []
    facts = await ingest.index(
        MemoryBlob(BLOB, chunk=1000), PROMISE, CUTTING, lambda done, total: seen.append((done, total))
    )
    assert facts.size == len(TAR)
    assert seen == sorted(seen)
    assert seen[-1] == (len(BLOB), len(BLOB))


async def test_what_is_there_is_not_read_again(ingest):
    await make(ingest, MemoryBlob(BLOB))
    again = MemoryBlob(BLOB)
    await make(ingest, again)
    assert again.streams == 0
    assert (await ingest.find(KEY)).size == len(TAR)
    assert await ingest.find(LayerKey(KEY.blob, "identity-65536-v2")) is None


async def test_a_damaged_index_is_made_anew(ingest, tmp_path):
    await make(ingest, MemoryBlob(BLOB))
    before = attempt(tmp_path)
    (before / SPANS).write_bytes(b"")
    assert await ingest.find(KEY) is None
    assert (await make(ingest, MemoryBlob(BLOB))).size == len(TAR)
    assert attempt(tmp_path).name != before.name


async def test_those_who_want_the_same_layer_at_once_take_one_pass(
    ingest, tmp_path, open_catalog, executor, monkeypatch
):
    monkeypatch.setattr("gateway.catalog.leases._FIRST_POLL_SECONDS", 0.001)
    other = another_ingest(tmp_path, open_catalog(), executor)
    blobs = [MemoryBlob(BLOB) for _ in range(4)]
    found = await asyncio.gather(
        *(make(which, blob) for which, blob in zip((ingest, other), blobs, strict=False))
    )
    found += await asyncio.gather(*(make(ingest, blob) for blob in blobs[2:]))
    assert {facts.sha256 for facts in found} == {sha256(TAR)}
    assert sum(blob.streams for blob in blobs) == 1


@pytest.mark.parametrize(
    ("promise", "kind"),
    [
        (Promise("sha256:" + "0" * 64, len(BLOB)), BlobMismatch),
        (Promise(sha256(BLOB), len(BLOB) - 1), BlobMismatch),
        (Promise(sha256(BLOB), len(BLOB) + 1), BlobMismatch),
    ],
)
async def test_a_broken_promise_leaves_nothing(ingest, tmp_path, promise, kind):
    with pytest.raises(kind):
        await make(ingest, MemoryBlob(BLOB, chunk=1000), promise)
    assert leftovers(tmp_path) == []


async def test_a_source_that_breaks_off_leaves_nothing_and_the_next_try_succeeds(ingest, tmp_path):
    blob = MemoryBlob(BLOB, chunk=1000)
    blob.error, blob.error_at = failure(RegistryTimeout), len(BLOB) // 2
    with pytest.raises(RegistryTimeout):
        await make(ingest, blob)
    assert leftovers(tmp_path) == []
    blob.error = None
    assert (await make(ingest, blob)).size == len(TAR)


async def test_a_cancelled_pass_leaves_nothing_and_lets_the_next_one_in(ingest, tmp_path):
    blob = MemoryBlob(BLOB, chunk=1000)
    blob.gate = asyncio.Event()
    task = asyncio.create_task(make(ingest, blob))
    while not blob.streams:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert leftovers(tmp_path) == []
    blob.gate = None
    await asyncio.wait_for(make(ingest, blob), 20)


@pytest.mark.parametrize("method", ["feed", "finish", "close"])
async def test_a_pass_that_is_cancelled_while_a_thread_works_for_it_ends_after_the_thread(
    ingest, monkeypatch, method
):
    begun, go, done = threading.Event(), threading.Event(), []
    close = LayerPass.close

    def slow(self, *args):
        begun.set()
        assert go.wait(20)
        result = work(self, *args)
        done.append(method)
        return result

    def closing(self):
        close(self)
        done.append("closed")

    monkeypatch.setattr(LayerPass, "close", closing)
    work = getattr(LayerPass, method)
    monkeypatch.setattr(LayerPass, method, slow)
    task = asyncio.create_task(make(ingest, MemoryBlob(BLOB)))
    assert await asyncio.to_thread(begun.wait, 20)
    task.cancel()
    asyncio.get_running_loop().call_later(0.05, go.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == (["closed", "close"] if method == "close" else [method, "closed"])


async def test_a_pass_that_is_cancelled_while_it_begins_is_closed(ingest, tmp_path, monkeypatch):
    begun, go, closed = threading.Event(), threading.Event(), []
    start, close = LayerPass.__init__, LayerPass.close

    def slow(self, *args):
        begun.set()
        assert go.wait(20)
        start(self, *args)

    def closing(self):
        close(self)
        closed.append(self._lane._thread.is_alive())

    monkeypatch.setattr(LayerPass, "__init__", slow)
    monkeypatch.setattr(LayerPass, "close", closing)
    task = asyncio.create_task(make(ingest, MemoryBlob(BLOB)))
    assert await asyncio.to_thread(begun.wait, 20)
    task.cancel()
    asyncio.get_running_loop().call_soon(go.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed == [False]
    assert leftovers(tmp_path) == []


async def test_a_pass_that_cannot_begin_leaves_no_thread(ingest, tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(FolderDraft, "begin_checkpoints", full)
    with pytest.raises(StorageError, match="Too many"):
        await make(ingest, MemoryBlob(BLOB))
    assert [thread for thread in threading.enumerate() if thread.name == "digests"] == []
    assert leftovers(tmp_path) == []


# Metadata in a process of its own


async def toc_of(tmp_path, name, files):
    await index_blob(tmp_path / name, tar_of(files), IDENTITY)
    return attempt(tmp_path / name) / TOC


async def test_the_process_builds_what_this_one_builds(tmp_path):
    tocs = [
        await toc_of(tmp_path, "0", {"a": b"1", "b": b"2"}),
        await toc_of(tmp_path, "1", {"a": b"new", ".wh.b": b""}),
    ]
    there = await build_in_process(tocs, tmp_path / "there")
    here = build_file(tocs, tmp_path / "here")
    assert there == here
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
    assert here.files == 1
    assert here.size == (tmp_path / "here").stat().st_size


async def test_a_damaged_table_of_contents_is_a_storage_error(tmp_path):
    (tmp_path / "toc").write_bytes(b"no table")
    with pytest.raises(StorageError, match="not a table of contents"):
        await build_in_process([tmp_path / "toc"], tmp_path / "out")


async def test_a_missing_table_of_contents_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="No such file"):
        await build_in_process([tmp_path / "none"], tmp_path / "out")


async def test_a_layer_that_cannot_be_merged_is_named(tmp_path):
    tocs = [await toc_of(tmp_path, "0", {"a": b"file"}), await toc_of(tmp_path, "1", {"a/below": b"x"})]
    with pytest.raises(InvalidLayer) as here:
        build_file(tocs, tmp_path / "here")
    with pytest.raises(InvalidLayer) as there:
        await build_in_process(tocs, tmp_path / "out")
    assert there.value.detail == here.value.detail
    assert "a/below" in here.value.detail


async def test_a_process_that_dies_is_a_storage_error(tmp_path, monkeypatch):
    monkeypatch.setattr(metadata.sys, "executable", "/bin/false")
    with pytest.raises(StorageError, match="status 1"):
        await build_in_process([tmp_path / "toc"], tmp_path / "out")


async def test_a_cancelled_build_ends_its_process(tmp_path, monkeypatch):
    script = tmp_path / "slow"
    script.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    script.chmod(0o755)
    monkeypatch.setattr(metadata.sys, "executable", str(script))
    task = asyncio.create_task(build_in_process([tmp_path / "toc"], tmp_path / "out"))
    async with asyncio.timeout(20):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    pid = (tmp_path / "pid").read_text().strip()
    with pytest.raises(FileNotFoundError):
        open(f"/proc/{pid}/stat")  # noqa: ASYNC230, PTH123, SIM115


# Offline


@pytest.mark.parametrize("flavour", ["zlib -6", "members of 64 KiB", "empty member first", "trailing zeros"])
def test_a_local_layer_is_decompressed_whatever_its_flavour(tmp_path, flavour):
    path = tmp_path / "layer"
    path.write_bytes(gzips.PURE[flavour](TAR))
    pieces = list(decompressed(path))
    assert b"".join(piece for _, piece in pieces) == TAR
    assert pieces[-1][0] == path.stat().st_size


@pytest.mark.parametrize("data", [b"", b"\x1f", TAR], ids=["nothing", "one byte", "a tar"])
def test_what_is_not_gzip_is_taken_as_it_is(tmp_path, data):
    (tmp_path / "layer").write_bytes(data)
    assert b"".join(piece for _, piece in decompressed(tmp_path / "layer")) == data


@pytest.mark.parametrize(
    "data", [BLOB[:-4], BLOB[:100], b"\x1f\x8b" + bytes(30)], ids=["trailer", "data", "header"]
)
def test_a_broken_stream_is_said_to_be_broken(tmp_path, data):
    (tmp_path / "layer").write_bytes(data)
    with pytest.raises(CorruptStream):
        list(decompressed(tmp_path / "layer"))


async def test_an_index_that_is_there_is_held_against_what_this_image_promises(ingest):
    await make(ingest, MemoryBlob(BLOB))
    other = Promise(PROMISE.digest, PROMISE.size, sha256(b"something else"))
    with pytest.raises(DiffIdMismatch):
        await make(ingest, MemoryBlob(BLOB), other)
    longer = Promise(PROMISE.digest, PROMISE.size + 1, PROMISE.diff_id)
    with pytest.raises(BlobMismatch):
        await make(ingest, MemoryBlob(BLOB), longer)


# What happens to the index meanwhile


async def test_a_disk_that_damages_each_index_ends_in_an_error_and_not_in_passes_for_ever(
    ingest, tmp_path, monkeypatch
):
    async def damaged(key, row):
        raise IndexDamaged("as the test wants it")

    monkeypatch.setattr(ingest._store, "open", damaged)
    blob = MemoryBlob(BLOB)
    with pytest.raises(StorageError, match="as soon as it is made"):
        await make(ingest, blob)
    assert 1 <= blob.streams <= 3
    assert leftovers(tmp_path) == []


async def test_a_pass_that_loses_its_lease_ends_and_leaves_nothing(ingest, catalog, tmp_path, monkeypatch):
    monkeypatch.setattr(catalog.leases, "_pause", 0.01)
    blob = MemoryBlob(BLOB, chunk=1000)
    blob.gate = asyncio.Event()

    async def lost(statement, lease):
        return 0

    monkeypatch.setattr(catalog.leases, "_set", lost)
    with pytest.raises(LeaseLost):
        await asyncio.wait_for(make(ingest, blob), 20)
    assert leftovers(tmp_path) == []
    assert await catalog.index_row(KEY) is None


async def test_a_pass_that_comes_too_late_leaves_what_counts_and_removes_its_own(
    ingest, catalog, tmp_path, open_catalog, executor, monkeypatch
):
    """Its lease went to somebody else, who is ready by now."""
    other = another_ingest(tmp_path, open_catalog(), executor)
    commit, counting = catalog.commit_index, []

    async def late(key, row, lease):
        monkeypatch.setattr(catalog, "commit_index", commit)
        await catalog._database.write(
            lambda connection: connection.execute(sa.text("UPDATE leases SET until = 0"))
        )
        await make(other, MemoryBlob(BLOB))
        counting.append(await catalog.index_row(KEY))
        return await commit(key, row, lease)

    monkeypatch.setattr(catalog, "commit_index", late)
    with pytest.raises(LeaseLost):
        await make(ingest, MemoryBlob(BLOB))
    assert [await catalog.index_row(KEY)] == counting
    assert attempt(tmp_path).name == counting[0].attempt
    assert await ingest.find(KEY) is not None


@pytest.mark.parametrize("where", ["checkpoint", "complete"])
async def test_a_full_disk_is_a_storage_error_and_leaves_nothing(
    ingest, catalog, tmp_path, monkeypatch, where
):
    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(FolderDraft, where, full)
        with pytest.raises(StorageError, match="No space left"):
            await make(ingest, MemoryBlob(BLOB))
    assert leftovers(tmp_path) == []
    assert await catalog.index_row(KEY) is None
    assert (await make(ingest, MemoryBlob(BLOB))).size == len(TAR)


async def test_an_index_that_is_put_again_takes_the_place_of_the_one_before(ingest, catalog, tmp_path):
    facts = IndexFacts(
        blob=KEY.blob,
        blob_size=len(BLOB),
        codec="identity",
        cut="x",
        span_size=1,
        size=0,
        sha256="",
        files={},
    )
    key = LayerKey(KEY.blob, "x")
    for _ in range(2):
        await ingest.put(key, facts, b"", lambda draft: None)
        assert attempt(tmp_path).name == (await catalog.index_row(key)).attempt
        assert (await ingest.find(key)).size == 0


async def test_contents_that_were_damaged_are_said_to_be_and_dropped(ingest, catalog, tmp_path):
    await make(ingest, MemoryBlob(BLOB))
    index = await ingest.open(KEY)
    assert (await ingest.contents(index)).name == TOC
    (attempt(tmp_path) / TOC).write_bytes(b"other")
    with pytest.raises(IndexDamaged):
        await ingest.contents(index)
    assert await catalog.index_row(KEY) is None
    assert leftovers(tmp_path) == []
    with pytest.raises(IndexAbsent):
        await ingest.open(KEY)


async def test_passes_of_many_layers_are_made_two_at_a_time(ingest):
    blobs = []
    for number in range(4):
        data = content(10_000, 30 + number)
        blob = MemoryBlob(data)
        blob.gate = asyncio.Event()
        blobs.append(blob)
    cutting = Cutting(IDENTITY, cut_name("identity", 65536), 65536)
    work = [
        asyncio.create_task(ingest.index(blob, Promise(sha256(blob.data), blob.size), cutting, quiet))
        for blob in blobs
    ]
    async with asyncio.timeout(20):
        while ingest._passes.locked() is False or sum(blob.streams for blob in blobs) < 2:
            await asyncio.sleep(0.001)
    assert sum(blob.streams for blob in blobs) == 2
    for blob in blobs:
        blob.gate.set()
    assert [facts.size for facts in await asyncio.gather(*work)] == [10_000] * 4
