"""Indexes in folders: whole or not there, and absent, damaged and unavailable are three things."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from blockgate import durable
from gateway.errors import IndexAbsent, IndexDamaged, StorageError
from gateway.gzran.zinfo import HEADER_BYTES, RECORD_BYTES, Checkpoint
from gateway.layers.codec import GZIP
from gateway.layers.folder import FolderStore
from gateway.layers.index import CHECKPOINTS, FACTS, LEAVES, SPANS, TOC, IndexFacts
from gateway.layers.key import LayerKey, cut_name
from gateway.layers.table import Span, SpanTable
from tests.support import gzips
from tests.support.layers import content, index_blob, tar_of

BLOB = "sha256:" + "ab" * 32
KEY = LayerKey(BLOB, "gzip-65536-v2")
TABLE = SpanTable.of([Span(10, 20, 0, 100, 0, b"i" * 32, b"o" * 32)])
FACTS_OF_BLOB = IndexFacts(
    blob=BLOB,
    blob_size=20,
    codec="gzip",
    cut=KEY.cut,
    span_size=65536,
    size=100,
    sha256="sha256:" + "cd" * 32,
    files={},
)
WINDOW = bytes(range(256)) * 128


@pytest.fixture
def root(tmp_path):
    return tmp_path / "layers"


@pytest.fixture
def scratch(tmp_path):
    path = tmp_path / "tmp"
    path.mkdir()
    return path


@pytest.fixture
def store(root, scratch):
    return FolderStore(root, scratch)


def fill(draft):
    draft.contents_path.write_bytes(b"contents")
    draft.begin_checkpoints(65536)
    draft.checkpoint(Checkpoint(10, 0, 0), WINDOW)
    draft.complete(FACTS_OF_BLOB, TABLE.records, b"leaves")


async def make(store):
    async with store.draft(KEY) as draft:
        fill(draft)
        return await draft.publish()


def entries(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.glob("*/*/*"))


def place(root, row):
    return root / ("ab" * 32) / KEY.cut / row.attempt


# Making one


async def test_what_is_published_opens(store, root, scratch):
    row = await make(store)
    index = await store.open(KEY, row)
    assert index.facts.model_copy(update={"files": {}}) == FACTS_OF_BLOB
    assert set(index.facts.files) == {CHECKPOINTS, LEAVES, SPANS, TOC}
    assert index.table.records == TABLE.records
    assert index.window(0) == WINDOW
    assert (await store.contents(index)).read_bytes() == b"contents"
    assert entries(root) == [f"{'ab' * 32}/{KEY.cut}/{row.attempt}"]
    assert list(scratch.iterdir()) == []
    assert row.bytes == sum(path.stat().st_size for path in place(root, row).iterdir())


async def test_the_head_of_the_checkpoints_says_how_many_there_are(store, root):
    row = await make(store)
    data = (place(root, row) / CHECKPOINTS).read_bytes()
    assert int.from_bytes(data[:4], "little") == 1
    assert len(data) == HEADER_BYTES + RECORD_BYTES


async def test_leaving_a_draft_removes_it(store, root, scratch):
    async with store.draft(KEY) as draft:
        draft.begin_checkpoints(65536)
        assert len(list(scratch.iterdir())) == 1
    assert list(scratch.iterdir()) == []
    assert not root.exists()


async def test_an_error_in_a_draft_leaves_nothing_and_travels(store, root, scratch):
    with pytest.raises(RuntimeError, match="stop"):
        async with store.draft(KEY) as draft:
            fill(draft)
            raise RuntimeError("stop")
    assert list(scratch.iterdir()) == []
    assert not root.exists()


async def test_two_attempts_never_meet(store, root):
    first, second = await make(store), await make(store)
    assert first.attempt != second.attempt
    assert first.sha256 == second.sha256
    assert len(entries(root)) == 2
    await store.drop(KEY, first.attempt)
    assert (await store.open(KEY, second)).table.count == 1


@pytest.mark.parametrize("call", ["fsync", "rename"])
async def test_a_disk_that_fails_as_a_draft_is_published_is_a_storage_error(
    store, root, scratch, monkeypatch, call
):
    def fail(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageError, match="No space left"):
        async with store.draft(KEY) as draft:
            fill(draft)
            monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "rename")), fail)
            await draft.publish()
    assert list(scratch.iterdir()) == []
    assert entries(root) == []


def full_disk():
    return Path("/dev/full").open("wb")


async def test_checkpoints_that_a_full_disk_refuses_leave_nothing(store, root, scratch):
    with pytest.raises(OSError, match="No space left"):
        async with store.draft(KEY) as draft:
            draft._windows = full_disk()
            draft.checkpoint(Checkpoint(10, 0, 0), WINDOW)
            draft.complete(FACTS_OF_BLOB, TABLE.records, b"")
    assert list(scratch.iterdir()) == []
    assert not root.exists()


async def test_a_draft_that_cannot_be_made_is_a_storage_error(root, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be made"):
        async with FolderStore(root, tmp_path / "file").draft(KEY):
            raise AssertionError


def test_a_process_that_is_killed_leaves_nothing_that_counts_and_is_swept_up_after(root, scratch):
    script = (
        "import os, sys, signal\nfrom pathlib import Path\nfrom gateway.layers.folder import FolderDraft\n"
        "from gateway.layers.key import LayerKey\n"
        f"draft = FolderDraft(Path(sys.argv[2]), Path(sys.argv[1]), LayerKey({BLOB!r}, {KEY.cut!r}))\n"
        "draft.begin_checkpoints(65536)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(root), str(scratch)], check=False)
    assert ended.returncode == -9
    assert not root.exists()
    assert durable.sweep(scratch) == 1
    assert list(scratch.iterdir()) == []


# Absent, damaged, unavailable


def removed(path):
    path.unlink()


def emptied(path):
    path.write_bytes(b"")


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def a_directory(path):
    path.unlink()
    path.mkdir()


def a_fifo(path):
    path.unlink()
    os.mkfifo(path)


async def test_an_attempt_that_is_not_here_is_absent(store, root):
    row = await make(store)
    with pytest.raises(IndexAbsent):
        await store.open(KEY._replace(cut="other"), row)
    await store.drop(KEY, row.attempt)
    with pytest.raises(IndexAbsent):
        await store.open(KEY, row)


@pytest.mark.parametrize("change", [removed, emptied, cut, flipped, a_directory, a_fifo])
@pytest.mark.parametrize("name", [FACTS, SPANS])
async def test_a_small_file_that_is_not_what_was_written_is_damage(store, root, name, change):
    row = await make(store)
    change(place(root, row) / name)
    with pytest.raises(IndexDamaged):
        await store.open(KEY, row)


@pytest.mark.parametrize("change", [removed, emptied, cut, a_directory, a_fifo])
async def test_checkpoints_that_are_lost_or_cut_are_found_before_a_read_needs_them(store, root, change):
    """Else an index would open, fail its reads as absent, and open again for ever."""
    row = await make(store)
    change(place(root, row) / CHECKPOINTS)
    with pytest.raises(IndexDamaged):
        await store.open(KEY, row)


@pytest.mark.parametrize("change", [emptied, cut, a_directory, a_fifo])
async def test_a_window_that_cannot_be_whole_is_damage(store, root, change):
    row = await make(store)
    index = await store.open(KEY, row)
    change(place(root, row) / CHECKPOINTS)
    with pytest.raises(IndexDamaged):
        index.window(0)


async def test_a_window_whose_file_is_gone_is_absent(store, root):
    row = await make(store)
    index = await store.open(KEY, row)
    shutil.rmtree(place(root, row))
    with pytest.raises(IndexAbsent):
        index.window(0)


@pytest.mark.parametrize("change", [removed, emptied, cut, flipped, a_directory])
async def test_contents_that_are_not_what_was_written_are_damage(store, root, change):
    row = await make(store)
    index = await store.open(KEY, row)
    change(place(root, row) / TOC)
    with pytest.raises(IndexDamaged):
        await store.contents(index)


async def test_an_index_of_what_is_no_tar_has_no_contents(tmp_path, root, scratch):
    index = await index_blob(tmp_path, gzips.member(content(5000)), GZIP)
    with pytest.raises(IndexDamaged, match="no table of contents"):
        await FolderStore(root, scratch).contents(index)


async def test_a_file_in_the_place_of_the_folder_is_damage_and_can_be_dropped(store, root):
    row = await make(store)
    shutil.rmtree(place(root, row))
    place(root, row).write_bytes(b"")
    with pytest.raises(IndexDamaged):
        await store.open(KEY, row)
    await store.drop(KEY, row.attempt)
    assert not place(root, row).exists()


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOMEM])
@pytest.mark.parametrize("call", ["open", "pread"])
async def test_what_keeps_a_file_from_being_read_is_neither_absence_nor_damage(
    store, root, monkeypatch, call, number
):
    row = await make(store)
    index = await store.open(KEY, row)

    def fail(*_args):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as broken:
        broken.setattr(os, call, fail)
        for work in (lambda: store._open(KEY, row), lambda: index.window(0)):
            with pytest.raises(StorageError) as met:
                work()
            assert type(met.value) is StorageError
    assert (await store.open(KEY, row)).window(0) == WINDOW


@contextmanager
def no_descriptor_left():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_without_a_descriptor_nothing_is_concluded_and_nothing_removed(store, root):
    row = await make(store)
    index = await store.open(KEY, row)
    other = row.model_copy(update={"attempt": "of another replica"})
    before = entries(root)
    for work in (
        lambda: store._open(KEY, row),
        lambda: store._open(KEY, other),
        lambda: store._contents(index),
        lambda: index.window(0),
    ):
        with no_descriptor_left(), pytest.raises(StorageError) as met:
            work()
        assert type(met.value) is StorageError
    assert entries(root) == before
    assert (await store.open(KEY, other)).window(0) == WINDOW


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
async def test_a_folder_that_cannot_be_looked_at_is_not_absent(store, monkeypatch, number):
    row = await make(store)

    def fail(*_args, **_options):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as broken:
        broken.setattr(Path, "stat", fail)
        with pytest.raises(StorageError) as met:
            store._open(KEY, row)
    assert type(met.value) is StorageError


# Equal copies, dropping, sweeping


async def test_an_equal_copy_of_another_attempt_is_found(store, root):
    mine = await make(store)
    theirs = mine.model_copy(update={"attempt": "0" * 32})
    index = await store.open(KEY, theirs)
    assert index.row == theirs
    assert index.window(0) == WINDOW
    assert (await store.contents(index)).parent.name == mine.attempt


async def test_an_attempt_that_is_not_equal_is_not_taken(store):
    mine = await make(store)
    theirs = mine.model_copy(update={"attempt": "0" * 32, "sha256": "1" * 64})
    with pytest.raises(IndexAbsent):
        await store.open(KEY, theirs)


async def test_dropping_copies_removes_what_would_be_taken_for_the_attempt(store, root):
    """Else a damaged copy here would be dropped in the catalog again and again, for all replicas."""
    mine = await make(store)
    theirs = mine.model_copy(update={"attempt": "0" * 32})
    flipped(place(root, mine) / SPANS)
    with pytest.raises(IndexDamaged):
        await store.open(KEY, theirs)
    await store.drop_copies(KEY, theirs)
    with pytest.raises(IndexAbsent):
        await store.open(KEY, theirs)


async def test_dropping_copies_leaves_what_is_not_equal(store, root):
    mine = await make(store)
    theirs = mine.model_copy(update={"attempt": "0" * 32, "sha256": "1" * 64})
    await store.drop_copies(KEY, theirs)
    assert (await store.open(KEY, mine)).window(0) == WINDOW


async def test_dropping_the_last_attempt_leaves_no_empty_folder(store, root):
    first, second = await make(store), await make(store)
    await store.drop(KEY, first.attempt)
    assert place(root, second).exists()
    await store.drop(KEY, second.attempt)
    assert list(root.iterdir()) == []
    await store.drop(KEY, second.attempt)


async def test_a_sweep_keeps_what_counts_and_its_equals(store, root):
    old, counts = await make(store), await make(store)
    flipped(place(root, old) / FACTS)
    equal = await make(store)
    stray = root / ("cd" * 32) / KEY.cut / "attempt"
    stray.mkdir(parents=True)
    (stray / FACTS).write_bytes(b"{}")
    assert store.sweep({KEY: counts}) == 2
    assert [Path(entry).name for entry in entries(root)] == sorted([counts.attempt, equal.attempt])
    assert store.sweep({}) == 2
    assert entries(root) == []


async def test_a_sweep_keeps_what_it_cannot_read(store, root, monkeypatch):
    mine = await make(store)
    theirs = mine.model_copy(update={"attempt": "0" * 32})

    def fail(*_args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(os, "pread", fail)
        assert store.sweep({KEY: theirs}) == 0
    assert (await store.open(KEY, theirs)).window(0) == WINDOW


def test_there_may_be_nothing_to_sweep(store):
    assert store.sweep({}) == 0


async def test_an_index_of_a_real_layer_opens_with_its_contents(tmp_path, root, scratch):
    blob = gzips.member(tar_of({"a": content(100_000)}))
    made = await index_blob(tmp_path, blob, GZIP)
    assert made.key.cut == cut_name("gzip", 65536)
    index = await FolderStore(root, scratch).open(made.key, made.row)
    assert (await FolderStore(root, scratch).contents(index)).stat().st_size > 0
