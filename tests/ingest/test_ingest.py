"""Running passes: one per layer at a time, errors named, nothing left behind; metadata in its own process."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.errors import (
    BlobMismatch,
    CorruptStream,
    DiffIdMismatch,
    InvalidLayer,
    RegistryTimeout,
    StorageError,
)
from gateway.ingest import metadata
from gateway.ingest.decompress import decompressed
from gateway.ingest.ingest import Ingest
from gateway.ingest.layer_pass import LayerPass, Promise
from gateway.ingest.metadata import build_file, build_in_process
from gateway.layers.folder import LayerFolders
from gateway.layers.index import SPANS, TOC
from tests.support import gzips
from tests.support.layers import MemoryBlob, content, failure, index_blob, sha256, tar_of

TAR = tar_of({"a": content(200_000, 1), "b": content(100, 2)})
BLOB = gzips.member(TAR)
PROMISE = Promise(sha256(BLOB), len(BLOB), sha256(TAR))


@pytest.fixture(scope="module")
def executor():
    with ThreadPoolExecutor(4) as executor:
        yield executor


@pytest.fixture
def ingest(tmp_path, executor):
    return Ingest(LayerFolders(tmp_path / "layers"), executor, span_size=65536)


def leftovers(ingest):
    return [path.name for path in ingest.folders.root.glob("*/*") if not path.name.endswith(".lock")]


async def test_progress_grows_to_the_whole_blob(ingest):
    seen = []
    index = await ingest.index(
        MemoryBlob(BLOB, chunk=1000), PROMISE, "gzip", progress=lambda done, total: seen.append((done, total))
    )
    assert index.facts.size == len(TAR)
    assert seen == sorted(seen)
    assert seen[-1] == (len(BLOB), len(BLOB))


async def test_what_is_there_is_not_read_again(ingest):
    await ingest.index(MemoryBlob(BLOB), PROMISE, "gzip", progress=lambda *_: None)
    again = MemoryBlob(BLOB)
    await ingest.index(again, PROMISE, "gzip", progress=lambda *_: None)
    assert again.streams == 0
    assert ingest.find(PROMISE.digest, "gzip") is not None
    assert ingest.find(PROMISE.digest, "raw") is None


async def test_a_damaged_index_is_made_anew(ingest):
    index = await ingest.index(MemoryBlob(BLOB), PROMISE, "gzip", progress=lambda *_: None)
    (index.folder / SPANS).write_bytes(b"")
    assert ingest.find(PROMISE.digest, "gzip") is None
    index = await ingest.index(MemoryBlob(BLOB), PROMISE, "gzip", progress=lambda *_: None)
    assert index.table.size == len(TAR)


async def test_those_who_want_the_same_layer_at_once_take_one_pass(ingest, monkeypatch):
    monkeypatch.setattr("gateway.ingest.ingest._LOCK_POLL_SECONDS", 0.001)
    blobs = [MemoryBlob(BLOB) for _ in range(4)]
    found = await asyncio.gather(
        *(ingest.index(blob, PROMISE, "gzip", progress=lambda *_: None) for blob in blobs)
    )
    assert {index.facts.sha256 for index in found} == {sha256(TAR)}
    assert sum(blob.streams for blob in blobs) == 1


@pytest.mark.parametrize(
    ("promise", "kind"),
    [
        (Promise("sha256:" + "0" * 64, len(BLOB)), BlobMismatch),
        (Promise(sha256(BLOB), len(BLOB) - 1), BlobMismatch),
        (Promise(sha256(BLOB), len(BLOB) + 1), BlobMismatch),
    ],
)
async def test_a_broken_promise_leaves_nothing(ingest, promise, kind):
    with pytest.raises(kind):
        await ingest.index(MemoryBlob(BLOB, chunk=1000), promise, "gzip", progress=lambda *_: None)
    assert leftovers(ingest) == []


async def test_a_source_that_breaks_off_leaves_nothing_and_the_next_try_succeeds(ingest):
    blob = MemoryBlob(BLOB, chunk=1000)
    blob.error, blob.error_at = failure(RegistryTimeout), len(BLOB) // 2
    with pytest.raises(RegistryTimeout):
        await ingest.index(blob, PROMISE, "gzip", progress=lambda *_: None)
    assert leftovers(ingest) == []
    blob.error = None
    assert (await ingest.index(blob, PROMISE, "gzip", progress=lambda *_: None)).table.size == len(TAR)


async def test_a_cancelled_pass_leaves_nothing_and_lets_the_next_one_in(ingest):
    blob = MemoryBlob(BLOB, chunk=1000)
    blob.gate = asyncio.Event()
    task = asyncio.create_task(ingest.index(blob, PROMISE, "gzip", progress=lambda *_: None))
    while not blob.streams:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert leftovers(ingest) == []
    blob.gate = None
    await asyncio.wait_for(ingest.index(blob, PROMISE, "gzip", progress=lambda *_: None), 20)


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
    task = asyncio.create_task(ingest.index(MemoryBlob(BLOB), PROMISE, "gzip", progress=lambda *_: None))
    assert await asyncio.to_thread(begun.wait, 20)
    task.cancel()
    asyncio.get_running_loop().call_later(0.05, go.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == (["closed", "close"] if method == "close" else [method, "closed"])


# Metadata in a process of its own


def toc_of(tmp_path, name, files):
    index = index_blob(tmp_path / name, tar_of(files), "tar")
    return index.folder / TOC


async def test_the_process_builds_what_this_one_builds(tmp_path):
    tocs = [toc_of(tmp_path, "0", {"a": b"1", "b": b"2"}), toc_of(tmp_path, "1", {"a": b"new", ".wh.b": b""})]
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
    tocs = [toc_of(tmp_path, "0", {"a": b"file"}), toc_of(tmp_path, "1", {"a/below": b"x"})]
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
    quiet = {"progress": lambda *_: None}
    await ingest.index(MemoryBlob(BLOB), PROMISE, "gzip", **quiet)
    other = Promise(PROMISE.digest, PROMISE.size, sha256(b"something else"))
    with pytest.raises(DiffIdMismatch):
        await ingest.index(MemoryBlob(BLOB), other, "gzip", **quiet)
    longer = Promise(PROMISE.digest, PROMISE.size + 1, PROMISE.diff_id)
    with pytest.raises(BlobMismatch):
        await ingest.index(MemoryBlob(BLOB), longer, "gzip", **quiet)
