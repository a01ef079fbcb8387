"""Sparse files: maps of GNU tar's dialects, and devices in which the holes are zeros."""

from __future__ import annotations

import io
import shutil
import stat
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.erofs.entry import Entry
from gateway.erofs.ondisk import aligned
from gateway.erofs.reader import Image
from gateway.erofs.tarsparse import PIECES_MAX
from gateway.erofs.tarstream import TarWalker
from gateway.erofs.validate import validate
from gateway.erofs.writer import LayerToc, build
from gateway.errors import InvalidLayer
from tests.support.erofsimage import device_of, metadata_of
from tests.support.erofsreader import read_tree
from tests.support.tarblocks import END, header, padded, pax, record


def walk(tar: bytes, chunk: int = 1 << 20) -> list[Entry]:
    entries: list[Entry] = []
    walker = TarWalker(entries.append)
    for at in range(0, len(tar), chunk):
        walker.feed(tar[at : at + chunk])
    walker.finish()
    return entries


def contents(device: bytes) -> dict[bytes, bytes]:
    tree = read_tree(lambda offset, length: device[offset : offset + length])
    return {path: node.content() for path, node in tree.items() if stat.S_ISREG(node.mode)}


def write_sparse(path, pieces: list[tuple[int, bytes]], size: int) -> None:
    with path.open("wb") as file:
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)
        file.truncate(size)


@pytest.mark.real
@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=oldgnu"],
        ["--format=posix", "--sparse-version=1.0"],
        ["--format=posix", "--sparse-version=0.1"],
    ],
    ids=["gnu", "oldgnu", "pax-1.0", "pax-0.1"],
)
def test_sparse_files_of_gnu_tar_read_back_whole(tmp_path, options):
    if shutil.which("tar") is None:
        pytest.skip("tar is missing")
    root = tmp_path / "root"
    root.mkdir()
    many = [(n * 65536, b"%04d" % n * 1024) for n in range(40)]  # more pieces than a header holds
    write_sparse(root / "hole-first", [(1 << 20, b"end" * 100)], (1 << 20) + 300)
    write_sparse(root / "hole-last", [(0, b"begin" * 1000)], 1 << 20)
    write_sparse(root / "many", many, 40 * 65536)
    write_sparse(root / ("only-hole" * 20), [], 3 << 20)
    (root / "solid").write_bytes(b"solid" * 1000)
    tar = tmp_path / "out.tar"
    subprocess.run(
        ["tar", "-C", str(root), "--sparse", *options, "-cf", str(tar), "."], check=True, timeout=60
    )
    data = tar.read_bytes()
    assert len(data) < 400_000
    entries = walk(data)
    assert entries == walk(data, 100)
    assert sum(bool(entry.pieces) for entry in entries) == 4
    device = device_of([data])
    assert contents(device) == {path.name.encode(): path.read_bytes() for path in root.iterdir()}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:  # which does not know the long names of 0.1
        assert [info.size for info in archive if info.isreg()] == [
            entry.size for entry in entries if entry.kind == stat.S_IFREG
        ]
    metadata = metadata_of([data])
    assert validate(metadata.data, metadata.device_size).feature_incompat == 4
    image = Image(device)
    assert image.content(image.lookup(b"many")) == (root / "many").read_bytes()


@st.composite
def sparse_files(draw) -> tuple[int, list[tuple[int, bytes]]]:
    unit = 512 << draw(st.integers(0, 4))
    offset = 0
    pieces = []
    for _ in range(draw(st.integers(0, 6))):
        offset += unit * draw(st.integers(0, 5))
        length = unit * draw(st.integers(1, 3))
        pieces.append((offset, draw(st.binary(min_size=1, max_size=3)) * length))
        pieces[-1] = (offset, pieces[-1][1][:length])
        offset += length
    if pieces and draw(st.booleans()):
        start, data = pieces.pop()
        data = data[: len(data) - draw(st.integers(0, 511))]
        return start + len(data), [*pieces, (start, data)]
    return offset + draw(st.integers(0, 2000)), pieces


@given(st.lists(sparse_files(), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_aligned_map_reads_back_as_the_file(files):
    entries, tar, wanted = [], bytearray(512), {}
    for number, (size, pieces) in enumerate(files):
        name = b"f%d" % number
        places = tuple((offset, len(data)) for offset, data in pieces) or ((size, 0),)
        entries.append(Entry(name, stat.S_IFREG, 0o644, size=size, offset=len(tar), pieces=places))
        whole = bytearray(size)
        for offset, data in pieces:
            whole[offset : offset + len(data)] = data
            tar += padded(data)
        wanted[name] = bytes(whole)
    metadata = build([LayerToc(entries, len(tar))])
    device = bytes(metadata.data) + bytes(tar).ljust(aligned(len(tar)), b"\0")
    assert contents(device) == wanted
    validate(metadata.data, len(device))
    image = Image(device)
    for path, whole in wanted.items():
        assert image.content(image.lookup(path)) == whole


def old_gnu(pairs: bytes, size: int, stored: int, **more: bytes) -> bytes:
    fields = {"at386": pairs, "at483": b"%011o\0" % size} | more
    return header(b"hole", flag=b"S", magic=b"ustar  \0", size=stored, **fields)


def pair(offset: int, length: int) -> bytes:
    return b"%011o\0%011o\0" % (offset, length)


def pax_sparse(pieces: bytes, size: int, stored: int = 0) -> bytes:
    map_record = record(b"GNU.sparse.map", pieces)
    return (
        pax(map_record, record(b"GNU.sparse.size", b"%d" % size))
        + header(b"hole", size=stored)
        + padded(bytes(stored))
    )


def version_1(text: bytes, size: int, stored: int) -> bytes:
    extended = pax(
        record(b"GNU.sparse.major", b"1"),
        record(b"GNU.sparse.minor", b"0"),
        record(b"GNU.sparse.name", b"hole"),
        record(b"GNU.sparse.realsize", b"%d" % size),
    )
    return extended + header(b"GNUSparseFile.0/hole", size=stored) + padded(text) + bytes(1 << 16)


REFUSED = {
    "unaligned hole": (old_gnu(pair(100, 512), 4096, 512) + bytes(512), "not aligned"),
    "unaligned end of a piece": (old_gnu(pair(0, 100), 4096, 100) + bytes(512), "not aligned"),
    "more stored than mapped": (
        old_gnu(pair(0, 512), 4096, 1024) + bytes(1024),
        "has 512 bytes, its payload 1024",
    ),
    "less stored than mapped": (
        old_gnu(pair(0, 1024), 4096, 512) + bytes(512),
        "has 1024 bytes, its payload 512",
    ),
    "piece outside": (old_gnu(pair(4096, 512), 4096, 512) + bytes(512), "outside of the file"),
    "pieces over each other": (old_gnu(pair(0, 1024) + pair(512, 512), 4096, 1536), "over each other"),
    "pieces out of order": (old_gnu(pair(1024, 512) + pair(0, 512), 4096, 1024), "over each other"),
    "negative piece": (old_gnu(b"\xff" * 24, 4096, 0), "outside of the file"),
    "huge": (old_gnu(b"", 1 << 32, 0, at483=b"\x80" + b"\xff" * 11), "a size of"),
    "truncated map": (old_gnu(pair(0, 512), 512, 512, at482=b"\1") + bytes(100), "inside of its payload"),
    "endless map": (
        old_gnu(pair(0, 512), 512, 512, at482=b"\1")
        + (pair(0, 512) * 21 + b"\1" + bytes(7)) * (PIECES_MAX // 21 + 2),
        "at most 65536",
    ),
    "odd pax map": (pax_sparse(b"0,512,1024", 4096), "shorter|zip"),
    "no pax map": (pax_sparse(b"", 4096) + END, "not a decimal"),
    "pax map of letters": (pax_sparse(b"a,b", 4096), "not a decimal"),
    "pax 0.0": (pax(record(b"GNU.sparse.offset", b"0")) + header(b"hole"), "dialect"),
    "star": (pax(record(b"SCHILY.realsize", b"9")) + header(b"hole"), "dialect"),
    "pax 2.0": (pax(record(b"GNU.sparse.major", b"2")) + header(b"hole"), "dialect"),
    "map without a count": (version_1(b"x" * 512, 512, 1024), "no count"),
    "map of letters": (version_1(b"1\nx\ny\n", 512, 1024), "not a decimal"),
    "map of too many pieces": (version_1(b"99999999\n", 512, 1024), "at most 65536"),
    "map longer than the payload": (version_1(b"3\n0\n", 512, 512), "no end after 3 pieces"),
    "map that never comes": (version_1(b"2000\n" + b"0\n" * 6000, 512, 512), "longer than its payload"),
    "sparse directory": (
        pax(record(b"GNU.sparse.map", b"0,0"), record(b"GNU.sparse.size", b"0"))
        + header(b"hole/", flag=b"\0"),
        "directory",
    ),
    "sparse link": (
        pax(record(b"GNU.sparse.map", b"0,0"), record(b"GNU.sparse.size", b"0"))
        + header(b"hole", flag=b"2", at157=b"x"),
        "not a regular file|directory",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_map_that_cannot_be_trusted_or_shown_is_refused_by_name(case):
    tar, reason = REFUSED[case]
    with pytest.raises(InvalidLayer, match=reason) as caught:
        walk(tar + END if case != "truncated map" else tar)
    assert "'hole" in str(caught.value) or case == "truncated map"


def test_a_scattered_giant_is_refused_before_its_table_is_made():
    pieces = ((512, 512), ((1 << 40), 512))
    giant = Entry(b"giant", stat.S_IFREG, 0o644, size=(1 << 40) + 512, offset=512, pieces=pieces)
    with pytest.raises(InvalidLayer, match="'giant': the image's files take more"):
        build([LayerToc([giant], 4096)])


def test_a_hole_of_a_tebibyte_takes_a_small_table():
    entry = Entry(b"hole", stat.S_IFREG, 0o644, size=1 << 40, pieces=((1 << 40, 0),))
    metadata = build([LayerToc([entry], 1024)])
    assert len(metadata.data) < 10_000
    validate(metadata.data, metadata.device_size)
