"""The table of contents as an artifact: what goes in comes out, damage is noticed."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.erofs.entry import KINDS, Entry
from gateway.erofs.toc import TocWriter, read_toc
from gateway.errors import StorageError

NAMES = st.binary(min_size=1, max_size=300)
ENTRIES = st.builds(
    Entry,
    pieces=st.lists(st.tuples(st.integers(0, 2**41), st.integers(0, 2**41)), max_size=3).map(tuple),
    path=NAMES,
    kind=st.sampled_from(sorted(KINDS)),
    permissions=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 2),
    gid=st.integers(0, 2**32 - 2),
    mtime=st.integers(-(2**62), 2**62),
    mtime_nanoseconds=st.integers(0, 999_999_999),
    size=st.integers(0, 2**41),
    offset=st.integers(0, 2**32 - 1).map(lambda block: block * 512),
    target=st.binary(max_size=300),
    major=st.integers(0, 0xFFF),
    minor=st.integers(0, 0xFFFFF),
    xattrs=st.dictionaries(
        NAMES.filter(lambda name: len(name) < 256), st.binary(max_size=70_000 // 100), max_size=3
    ).map(lambda found: tuple(sorted(found.items()))),
)


def encode(entries: list[Entry], tar_size: int = 0) -> bytes:
    out = bytearray()
    writer = TocWriter(out.extend)
    for entry in entries:
        writer.add(entry)
    writer.finish(tar_size)
    return bytes(out)


@given(st.lists(ENTRIES, max_size=20), st.integers(0, 2**41))
def test_what_goes_in_comes_out(entries, tar_size):
    encoded = encode(entries, tar_size)
    for buffer in (encoded, memoryview(encoded)):
        toc = read_toc(buffer)
        assert list(toc) == entries
        assert list(toc) == entries  # a second time too
        assert (len(toc), toc.tar_size) == (len(entries), tar_size)
    assert encode(entries, tar_size) == encoded


@given(st.lists(ENTRIES, min_size=1, max_size=5), st.data())
def test_any_flipped_byte_is_noticed(entries, data):
    encoded = bytearray(encode(entries))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(StorageError, match="register the device again"):
        read_toc(bytes(encoded))


@pytest.mark.parametrize("length", [0, 7, 8, 31, 60])
def test_a_cut_file_is_noticed(length):
    with pytest.raises(StorageError):
        read_toc(encode([Entry(b"x", stat.S_IFREG, 0o644)] * 3)[:length])


def test_it_is_written_in_pieces():
    pieces = []
    writer = TocWriter(pieces.append)
    for n in range(20_000):
        writer.add(Entry(b"directory/%d" % n, stat.S_IFREG, 0o644))
    writer.finish(1024)
    assert len(pieces) > 3
    assert max(map(len, pieces)) < 300_000
    assert len(read_toc(b"".join(pieces))) == 20_000
