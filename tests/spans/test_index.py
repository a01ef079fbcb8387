"""Layer index folders: opened when whole, refused when damaged."""

from __future__ import annotations

import pytest

from gateway.errors import IndexDamaged, StorageError
from gateway.layers.index import CHECKPOINTS, FACTS, SPANS, LayerIndex, index_id
from tests.support import gzips
from tests.support.layers import content, index_blob

BLOB = gzips.member(content(200_000))


@pytest.fixture
def folder(tmp_path):
    index = index_blob(tmp_path, BLOB, "gzip")
    index.close()
    return index.folder


def test_a_whole_folder_opens(folder):
    index = LayerIndex.open(folder)
    assert index.index_id == folder.name == index_id("gzip", 65536)
    assert index.table.size == index.facts.size == 200_000
    assert len(index.windows.window(1)) == 32768
    index.close()


def test_a_missing_folder_is_none(tmp_path):
    assert LayerIndex.open(tmp_path / "none") is None


@pytest.mark.parametrize("name", [FACTS, SPANS])
def test_a_folder_without_its_facts_or_spans_counts_as_none(folder, name):
    (folder / name).unlink()
    assert LayerIndex.open(folder) is None


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (FACTS, lambda _: b""),
        (FACTS, lambda _: b"{}"),
        (FACTS, lambda text: text[:-5]),
        (FACTS, lambda text: text.replace(b'"blob_size"', b'"blob_length"')),
        (SPANS, lambda _: b""),
        (SPANS, lambda data: data[:-104]),
        (SPANS, lambda data: data[:-1]),
        (SPANS, lambda data: bytes([data[0] ^ 1]) + data[1:]),
        (CHECKPOINTS, lambda _: b""),
        (CHECKPOINTS, lambda data: data[:-1]),
        (CHECKPOINTS, lambda data: data[: len(data) // 2]),
    ],
)
def test_a_damaged_folder_is_refused(folder, name, change):
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(IndexDamaged):
        LayerIndex.open(folder)


def test_a_folder_without_checkpoints_is_refused(folder):
    (folder / CHECKPOINTS).unlink()
    with pytest.raises(IndexDamaged):
        LayerIndex.open(folder)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        LayerIndex.open(tmp_path / "file")


def test_the_name_of_an_index_tells_how_it_is_cut():
    names = {
        index_id("gzip", 1 << 20),
        index_id("gzip", 1 << 22),
        index_id("raw", 1 << 20),
        index_id("tar", 1 << 20),
        index_id("gzip", 1 << 20, "sha256:" + "a" * 64),
        index_id("gzip", 1 << 20, "sha256:" + "b" * 64),
    }
    assert len(names) == 6
