"""The table of contents is written while the bytes come by, or there is a reason why there is none."""

from __future__ import annotations

import pytest

from gateway.erofs.toc import read_toc
from gateway.layers.contents import Walk
from tests.support.layers import content, tar_of

TAR = tar_of({"one": content(3000), "two/three": b"", "four": content(1000, 1)})


def walk(path, data, chunk):
    walk = Walk(path)
    for at in range(0, len(data), chunk):
        walk.feed(memoryview(data[at : at + chunk]))
    try:
        return walk.finish()
    finally:
        walk.close()


@pytest.mark.parametrize("chunk", [1, 511, 512, 1 << 20])
def test_a_tar_in_any_pieces_has_the_same_contents(tmp_path, chunk):
    path = tmp_path / "toc"
    assert walk(path, TAR, chunk) is None
    assert [entry.path for entry in read_toc(path.read_bytes())] == [b"one", b"two/three", b"four"]


@pytest.mark.parametrize(
    "data", [content(5000), TAR[:700], TAR[:512] + content(5000)], ids=["no tar", "cut short", "broken"]
)
def test_what_is_no_tar_has_a_reason_and_no_file(tmp_path, data):
    path = tmp_path / "toc"
    assert walk(path, data, 512)
    assert not path.exists()


def test_a_walk_that_is_left_closes_its_file(tmp_path):
    walk = Walk(tmp_path / "toc")
    walk.feed(memoryview(TAR[:100]))
    walk.close()
    assert walk._file.closed
