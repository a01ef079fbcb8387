"""Layer folders: all or nothing, whatever happens in between."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.errors import StorageError
from gateway.gzran.zinfo import Checkpoint
from gateway.layers.folder import LayerFolders, spans_digest
from gateway.layers.index import SPANS, LayerFacts, LayerIndex
from gateway.layers.table import Span, SpanTable

BLOB = "sha256:" + "ab" * 32
TABLE = SpanTable.of([Span(10, 20, 0, 100, 0, b"i" * 32, b"o" * 32)])
FACTS = LayerFacts(
    blob=BLOB,
    blob_size=20,
    kind="gzip",
    span_size=65536,
    size=100,
    sha256="sha256:" + "cd" * 32,
    spans_sha256=spans_digest(TABLE),
)


@pytest.fixture
def folders(tmp_path):
    return LayerFolders(tmp_path / "layers")


def write(folders, facts=FACTS):
    with folders.begin(BLOB, "gzip-65536-v1") as folder:
        folder.begin_checkpoints(65536)
        folder.checkpoint(Checkpoint(10, 0, 0), bytes(32768))
        folder.commit(facts, TABLE)


def entries(folders):
    return sorted(path.name for path in folders.root.glob("*/*"))


def test_a_committed_folder_opens(folders):
    write(folders)
    index = LayerIndex.open(folders.path(BLOB, "gzip-65536-v1"))
    assert index.facts == FACTS
    assert index.windows.window(0) == bytes(32768)
    assert entries(folders) == ["gzip-65536-v1"]


def test_leaving_without_commit_leaves_nothing(folders):
    with folders.begin(BLOB, "gzip-65536-v1") as folder:
        folder.begin_checkpoints(65536)
    assert entries(folders) == []


def test_an_error_leaves_nothing_and_travels(folders):
    with pytest.raises(RuntimeError, match="stop"), folders.begin(BLOB, "x"):
        raise RuntimeError("stop")
    assert entries(folders) == []


def test_a_damaged_folder_is_replaced(folders):
    write(folders)
    path = folders.path(BLOB, "gzip-65536-v1")
    (path / SPANS).write_bytes(b"broken")
    (path / "stray").write_bytes(b"")
    write(folders)
    assert LayerIndex.open(path).table.records == TABLE.records
    assert not (path / "stray").exists()
    assert entries(folders) == ["gzip-65536-v1"]


def test_a_process_that_is_killed_leaves_nothing_that_counts_and_is_swept_up_after(folders):
    script = (
        "import os, sys, signal\nfrom pathlib import Path\nfrom gateway.layers.folder import LayerFolders\n"
        f"folder = LayerFolders(Path(sys.argv[1])).begin({BLOB!r}, 'gzip-65536-v1').__enter__()\n"
        "folder.begin_checkpoints(65536)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(folders.root)], check=False)
    assert ended.returncode == -9
    assert len(entries(folders)) == 1
    assert LayerIndex.open(folders.path(BLOB, "gzip-65536-v1")) is None
    assert folders.sweep() == 1
    assert entries(folders) == []


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_disk_that_fails_in_the_commit_is_a_storage_error_and_leaves_nothing(folders, monkeypatch, call):
    def fail(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "rename")), fail)
    with pytest.raises(StorageError, match="No space left"):
        write(folders)
    assert entries(folders) == []


def test_checkpoints_that_a_full_disk_refuses_leave_nothing(folders):
    folder = folders.begin(BLOB, "gzip-65536-v1")
    with pytest.raises(StorageError, match="No space left"), folder:
        folder._zinfo.close()
        folder._zinfo = Path("/dev/full").open("wb")  # noqa: SIM115 - the folder closes it
        folder.begin_checkpoints(65536)
        folder.commit(FACTS, TABLE)
    assert entries(folders) == []


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    folders = LayerFolders(tmp_path / "file")
    with pytest.raises(StorageError):
        folders.begin(BLOB, "x")
    with pytest.raises(StorageError):
        folders.try_lock(BLOB, "x")


def test_one_at_a_time_has_the_lock(folders):
    first = folders.try_lock(BLOB, "x")
    assert first is not None
    with first:
        assert folders.try_lock(BLOB, "x") is None
        other = folders.try_lock(BLOB, "y")
        assert other is not None
        with other:
            pass
    again = folders.try_lock(BLOB, "x")
    assert again is not None
    with again:
        pass
    assert entries(folders) == []
