"""The tar walker against Python's tarfile and GNU tar, and against archives that mean harm."""

from __future__ import annotations

import io
import shutil
import stat
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.erofs.entry import HARD_LINK, Entry
from gateway.erofs.tarstream import RECORD_LIMIT, TarWalker
from gateway.errors import InvalidLayer
from tests.support.tarblocks import END, header, padded, pax, record
from tests.support.unpacked import Member, pack

KIND = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.CONTTYPE: stat.S_IFREG,
    tarfile.LNKTYPE: HARD_LINK,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}


def walk(tar: bytes, chunk: int | None = None) -> list[Entry]:
    entries: list[Entry] = []
    walker = TarWalker(entries.append)
    for at in range(0, len(tar), chunk or len(tar) or 1):
        walker.feed(memoryview(tar)[at : at + (chunk or len(tar))])
    assert walker.finish() == len(tar)
    return entries


def by_tarfile(tar: bytes) -> list[tuple]:
    with tarfile.open(fileobj=io.BytesIO(tar), encoding="utf-8", errors="surrogateescape") as archive:
        return [
            (
                info.name.encode("utf-8", "surrogateescape"),
                KIND[info.type],
                0o777 if info.issym() else info.mode & 0o7777,
                info.uid,
                info.gid,
                int(info.mtime // 1),
                info.size if info.isreg() else 0,
                info.offset_data if info.isreg() and info.size else 0,
                info.linkname.encode("utf-8", "surrogateescape") if info.islnk() or info.issym() else b"",
                (info.devmajor, info.devminor) if info.isdev() and not info.isfifo() else (0, 0),
            )
            for info in archive
        ]


def by_walker(tar: bytes) -> list[tuple]:
    return [
        (
            entry.path.rstrip(b"/"),
            entry.kind,
            entry.permissions,
            entry.uid,
            entry.gid,
            entry.mtime,
            entry.size,
            entry.offset,
            entry.target,
            (entry.major, entry.minor),
        )
        for entry in walk(tar)
    ]


TEXT = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=180
)


@st.composite
def infos(draw) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo("x" + draw(TEXT).strip("/"))
    info.type = draw(st.sampled_from(list(KIND)))
    content = b""
    if info.isreg():
        content = draw(st.binary(max_size=3)) * draw(st.sampled_from([1, 170, 171, 512]))
        info.size = len(content)
    if info.islnk() or info.issym():
        info.linkname = "x" + draw(TEXT)
    info.mode = draw(st.integers(0, 0o7777))
    info.uid = draw(st.integers(0, 0o7777777))
    info.gid = draw(st.integers(0, 2**32 - 2))
    info.mtime = draw(st.integers(0, 2**34))
    if info.ischr() or info.isblk():
        info.devmajor, info.devminor = draw(st.integers(0, 0xFFF)), draw(st.integers(0, 0xFFFFF))
    return info, content


@given(st.lists(infos(), max_size=8), st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
@settings(max_examples=80, deadline=None)
def test_the_walker_reads_what_tarfile_reads(members, form):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    assert by_walker(out.getvalue()) == by_tarfile(out.getvalue())


@given(st.binary(max_size=3000))
def test_no_bytes_at_all_raise_anything_but_a_refusal(noise):
    try:
        walk(noise)
    except InvalidLayer as error:
        assert "tar" in str(error)  # noqa: PT017 - not raising is allowed too


@given(st.data())
@settings(max_examples=200)
def test_a_damaged_archive_is_refused_or_read_but_never_crashes(data):
    tar = bytearray(
        pax(record(b"path", b"a/b"), record(b"mtime", b"1.5")) + header(size=5) + padded(b"hello") + END
    )
    for _ in range(data.draw(st.integers(1, 4))):
        tar[data.draw(st.integers(0, len(tar) - 1))] = data.draw(st.integers(0, 255))
    try:
        for entry in walk(bytes(tar)):
            assert 0 <= entry.offset + entry.size <= len(tar)
    except InvalidLayer as error:
        assert "byte " in str(error)  # noqa: PT017 - not raising is allowed too


def test_byte_by_byte_is_the_same_as_at_once():
    tar = pack([Member(b"d/" + b"n" * 200, content=b"x" * 700, mtime_ns=5), Member(b"e", content=b"")])
    assert walk(tar, 1) == walk(tar)


@pytest.mark.real
@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_archives_of_gnu_tar_read_like_with_tarfile(tmp_path, form):
    if shutil.which("tar") is None:
        pytest.skip("tar is missing")
    root = tmp_path / "root"
    (root / ("long" * 20) / ("er" * 15)).mkdir(parents=True) if form in (
        "gnu",
        "posix",
        "oldgnu",
        "ustar",
    ) else root.mkdir()
    (root / "file").write_bytes(b"f" * 513)
    (root / "empty").touch()
    (root / "hard").hardlink_to(root / "file")
    (root / "sym").symlink_to("file")
    if form in ("gnu", "posix", "oldgnu"):
        (root / ("x" * 200)).write_bytes(b"long name")
        (root / "sym2").symlink_to("y" * 200)
    out = tmp_path / "out.tar"
    subprocess.run(["tar", "-C", str(root), f"--format={form}", "-cf", str(out), "."], check=True, timeout=60)
    assert by_walker(out.read_bytes()) == by_tarfile(out.read_bytes())


def test_offsets_point_at_the_payload():
    tar = pack(
        [
            Member(b"a", content=b"first"),
            Member(b"b" * 150, content=b"second" * 200),
            Member(b"c", content=b""),
        ]
    )
    found = {entry.path: tar[entry.offset : entry.offset + entry.size] for entry in walk(tar)}
    assert found == {b"a": b"first", b"b" * 150: b"second" * 200, b"c": b""}


def test_pax_records_override_the_header():
    tar = (
        pax(
            record(b"path", b"real/name"),
            record(b"size", b"5"),
            record(b"uid", b"3000000"),
            record(b"gid", b"4294967294"),
            record(b"mtime", b"1700000000.123456789999"),
            record(b"SCHILY.xattr.user.b", b"\x00=\n"),
            record(b"SCHILY.xattr.user.a", b""),
            record(b"SCHILY.xattr.user.%3D%25", b"escaped"),
            record(b"comment", b"of no interest"),
        )
        + header(size=3)
        + padded(b"hello")
        + END
    )
    assert walk(tar) == [
        Entry(
            b"real/name",
            stat.S_IFREG,
            0o644,
            3_000_000,
            4_294_967_294,
            1_700_000_000,
            123_456_789,
            5,
            1536,
            xattrs=((b"user.=%", b"escaped"), (b"user.a", b""), (b"user.b", b"\x00=\n")),
        )
    ]


def test_global_records_hold_until_changed_and_local_ones_win():
    tar = (
        pax(record(b"uid", b"7"), record(b"gid", b"8"), flag=b"g")
        + header(b"one")
        + pax(record(b"uid", b"9"))
        + header(b"two")
        + pax(record(b"gid", b""), flag=b"g")
        + header(b"three")
        + END
    )
    assert [(entry.path, entry.uid, entry.gid) for entry in walk(tar)] == [
        (b"one", 7, 8),
        (b"two", 9, 8),
        (b"three", 7, 0),
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b"-0.25", (-1, 750_000_000)),
        (b"-1.5", (-2, 500_000_000)),
        (b"-1", (-1, 0)),
        (b"0.000000001", (0, 1)),
        (b"7.", (7, 0)),
    ],
)
def test_times_round_down(text, wanted):
    (entry,) = walk(pax(record(b"mtime", text)) + header() + END)
    assert (entry.mtime, entry.mtime_nanoseconds) == wanted


def test_old_names_and_numbers():
    tar = (
        header(b"dir/", flag=b"\0", magic=b"", at345=b"garbage of v7")
        + header(b"spaces", at100=b"   644 \0", at108=b"     0\0 ")
        + header(b"base256", at136=b"\xff" * 11 + b"\xfb", at108=b"\x80\0\0\0\0\x2d\xc6\xc0")
        + header(b"tail", at345=b"the/prefix")
        + header(b"gnu", magic=b"ustar  \0", at345=b"14371573652\0")
        + header(b"dir-with-size", flag=b"5", size=4096)
        + END
    )
    entries = walk(tar)
    assert [entry.path for entry in entries] == [
        b"dir/",
        b"spaces",
        b"base256",
        b"the/prefix/tail",
        b"gnu",
        b"dir-with-size",
    ]
    assert entries[0].kind == stat.S_IFDIR
    assert entries[1].permissions == 0o644
    assert (entries[2].mtime, entries[2].uid) == (-5, 3_000_000)


def test_a_directory_of_v7_has_no_payload_so_its_size_swallows_no_member():
    """As in libarchive's test_compat_tar_directory_1.tar; GNU tar, Go and umoci keep the member that follows."""
    entries = walk(header(b"dir1/", flag=b"\0", magic=b"", size=1) + header(b"dir1/file1") + END)
    assert [(entry.path, entry.kind, entry.size) for entry in entries] == [
        (b"dir1/", stat.S_IFDIR, 0),
        (b"dir1/file1", stat.S_IFREG, 0),
    ]


@pytest.mark.parametrize("flag", [b"0", b"7"])
def test_a_slash_makes_no_directory_of_a_type_that_came_after_v7(flag):
    tar = header(b"d/", flag=flag, size=3) + padded(b"abc") + header(b"next") + END
    entries = walk(tar)
    assert [(entry.path, entry.kind, entry.size) for entry in entries] == [
        (b"d/", stat.S_IFREG, 3),
        (b"next", stat.S_IFREG, 0),
    ]


def test_signed_checksums_of_old_writers_are_accepted():
    block = bytearray(header(b"\xff\xfe"))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(byte - 256 if byte > 127 else byte for byte in block)
    assert [entry.path for entry in walk(bytes(block) + END)] == [b"\xff\xfe"]


def test_what_follows_two_zero_blocks_is_padding():
    assert walk(header() + END + b"anything" * 1000)[0].path == b"name"


@pytest.mark.parametrize("ending", [b"", bytes(512), bytes(1024), bytes(10240)])
def test_an_archive_may_end_with_or_without_zero_blocks(ending):
    assert len(walk(header(size=4) + padded(b"data") + ending)) == 1


def test_padding_may_be_missing_at_the_end():
    assert len(walk(header(size=4) + b"data")) == 1


HOSTILE = {
    "checksum": (b"x" + header()[1:] + END, "no tar header at byte 0: header checksum is"),
    "checksum after a member": (header(b"good") + b"x" + header()[1:], "at byte 512 after 'good'"),
    "negative size": (header(at124=b"\xff" * 12) + END, "a size of -1 bytes"),
    "huge size": (header(at124=b"\x80" + b"\xff" * 11) + END, "a size of [0-9]+ bytes"),
    "huge pax size": (pax(record(b"size", b"9" * 19)) + header() + END, "a size of 9+ bytes"),
    "absurd pax size": (pax(record(b"size", b"9" * 5000)) + header() + END, "digits is too large"),
    "negative pax size": (pax(record(b"size", b"-1")) + header() + END, "not a decimal number"),
    "no octal": (header(at124=b"12x45678901\0") + END, "not an octal number"),
    "octal with underscore": (header(at124=b"1_0\0\0\0\0\0\0\0\0\0") + END, "not an octal number"),
    "octal nine": (header(at124=b"00000000009\0") + END, "invalid literal"),
    "truncated header": (header()[:300], "ends inside of a header"),
    "truncated payload": (
        header(b"cut", size=1000) + bytes(999),
        "'cut' .header at byte 0.: .*inside of its payload",
    ),
    "truncated record": (pax(record(b"path", b"p"))[:600], "ends inside of its payload"),
    "dangling pax": (pax(record(b"path", b"p")), "ends after an extension header"),
    "dangling long name": (
        header(flag=b"L", size=3) + padded(b"abc") + END,
        "ends after an extension header",
    ),
    "lone zero block": (header() + bytes(512) + header() + END, "lone zero block"),
    "multi-volume": (header(b"rest", flag=b"M") + END, "members of type b'M' are not read"),
    "record without length": (pax(b"path=x\n") + header() + END, "no length"),
    "record past the end": (pax(b"99 path=x\n") + header() + END, "wrong length"),
    "record of no length": (pax(b"0 path=x\n") + header() + END, "wrong length"),
    "record without newline": (pax(b"9 path=xy") + header() + END, "wrong length"),
    "record without keyword": (pax(record(b"", b"x")) + header() + END, "no keyword"),
    "NUL in a pax path": (pax(record(b"path", b"a\0b")) + header() + END, "NUL byte"),
    "bad time": (pax(record(b"mtime", b"1.-5")) + header() + END, "not a time"),
    "empty time": (pax(record(b"mtime", b".5")) + header() + END, "not a decimal"),
    "far time": (pax(record(b"mtime", b"9" * 20)) + header() + END, "modification time"),
    "uid -1": (pax(record(b"uid", b"4294967295")) + header() + END, "owner"),
    "negative uid": (header(at108=b"\xff" * 8) + END, "owner"),
    "no name": (header(b"") + END, "the name is empty"),
    "long path": (
        header(flag=b"L", size=5000) + padded(b"n" * 5000) + header() + END,
        "more than 4095 bytes",
    ),
    "huge long name": (header(flag=b"L", size=RECORD_LIMIT + 1), "extension header of 1048577 bytes"),
    "empty pax": (header(flag=b"x", size=0) + header(), "extension header of 0 bytes"),
    "link to nothing": (header(flag=b"2") + END, "without a target"),
    "device number": (header(flag=b"3", at329=b"7777777\0") + END, "device number"),
    "prefix in a GNU header": (header(magic=b"ustar  \0", at345=b"usr/lib") + END, "name prefix"),
    "long xattr": (pax(record(b"SCHILY.xattr.user.x", b"x" * 65536)) + header() + END, "cannot be stored"),
    "xattr name": (
        pax(record(b"SCHILY.xattr.user." + b"x" * 300, b"x")) + header() + END,
        "cannot be stored",
    ),
    "many xattrs": (
        pax(*(record(b"SCHILY.xattr.user.%d" % n, b"x" * 60000) for n in range(5))) + header() + END,
        "extended attributes of more",
    ),
    "many globals": (
        b"".join(pax(record(b"k%d" % n, b"x" * 30_000), flag=b"g") for n in range(3)) + header() + END,
        "global headers of more",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_are_refused_by_name(case):
    tar, reason = HOSTILE[case]
    with pytest.raises(InvalidLayer, match=reason):
        walk(tar)
    with pytest.raises(InvalidLayer, match=reason):
        walk(tar, 7 if len(tar) < 10_000 else 4999)


def test_names_in_errors_are_printable_and_capped():
    with pytest.raises(InvalidLayer) as caught:
        walk(header(flag=b"L", size=4000) + padded(b"\x1b[31m\xff\n" * 571) + header(flag=b"M") + END)
    text = str(caught.value)
    assert text.isprintable()
    assert "3997 bytes" in text
    assert len(text) < 1500
