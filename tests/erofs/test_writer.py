"""What the writer promises beyond a readable tree: sizes, places, order and limits."""

from __future__ import annotations

import stat
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.erofs import ondisk
from gateway.erofs.entry import Entry
from gateway.erofs.ondisk import ALIGN_BYTES
from gateway.erofs.reader import Image
from gateway.erofs.validate import validate
from gateway.erofs.writer import LayerToc, build
from gateway.errors import InvalidLayer
from tests.support.erofsimage import device_of, metadata_of, seen
from tests.support.erofsreader import read_tree
from tests.support.unpacked import Member, pack


def file(path: bytes, **more) -> Entry:
    return Entry(path, stat.S_IFREG, 0o644, **more)


def test_crc32c_is_castagnolis_without_the_final_inversion():
    assert ondisk.crc32c(b"123456789") ^ 0xFFFFFFFF == 0xE3069283


@given(st.integers(0, 0xFFF), st.integers(0, 0xFFFFF))
def test_device_numbers_survive(major, minor):
    assert ondisk.decode_rdev(ondisk.encode_rdev(major, minor)) == (major, minor)


def test_inodes_of_the_commonest_time_take_32_bytes():
    same = build([LayerToc([file(b"%04d" % n, mtime=7, mtime_nanoseconds=8) for n in range(8000)], 1024)])
    other = build([LayerToc([file(b"%04d" % n, mtime=n) for n in range(8000)], 1024)])
    assert 250_000 < len(other.data) - len(same.data) < 262_000
    assert Image(same.data).lookup(b"0500").mtime == 7
    assert Image(other.data).lookup(b"0500").mtime == 500


@pytest.mark.parametrize(
    ("change", "size"),
    [
        ({}, 32),
        ({"uid": 65535}, 32),
        ({"uid": 65536}, 64),
        ({"gid": 70000}, 64),
        ({"mtime": 1}, 64),
        ({"size": 1 << 32}, 64),
    ],
)
def test_the_compact_inode_serves_only_what_it_can_say(change, size):
    metadata = build(
        [LayerToc([file(b"x", offset=512, **change), *(file(b"y%d" % n) for n in range(9))], 1 << 33)]
    )
    image = Image(metadata.data)
    inode = image.lookup(b"x")
    assert inode.body - image.superblock.inode_offset(inode.nid) == size
    assert {
        "uid": inode.uid,
        "gid": inode.gid,
        "mtime": inode.mtime,
        "size": inode.size,
    }.items() >= change.items()


def test_metadata_and_tars_are_padded_to_4096_bytes_so_each_tar_begins_at_a_multiple():
    metadata = build(
        [LayerToc([file(b"a", size=1, offset=512)], 1500), LayerToc([file(b"b", size=1, offset=512)], 1)]
    )
    first, second = metadata.layer_offsets
    assert first == len(metadata.data)
    assert first % ALIGN_BYTES == 0
    assert second == first + ALIGN_BYTES
    assert metadata.device_size == second + ALIGN_BYTES
    image = Image(metadata.data)
    assert image.lookup(b"a").start == first + 512
    assert image.lookup(b"b").start == second + 512


def test_a_root_with_many_attributes_keeps_a_nid_of_16_bits():
    attributes = tuple((b"user.%d" % n, b"v" * 60_000) for n in range(4))
    root = Entry(b"./", stat.S_IFDIR, 0o755, xattrs=attributes)
    metadata = build([LayerToc([file(b"x"), root], 1024)])
    superblock = validate(metadata.data, metadata.device_size)
    assert superblock.root_nid == 48
    tree = read_tree(lambda offset, length: bytes(metadata.data[offset : offset + length]))
    assert tree[b""].xattrs == dict(attributes)


def test_attributes_that_linux_has_no_namespace_for_are_left_out():
    names = {
        b"com.apple.provenance": b"x",
        b"user.": b"x",
        b"system.posix_acl_accessory": b"x",
        b"user.kept": b"1",
    }
    device = device_of([pack([Member(b"f", xattrs=names)])])
    assert seen(read_tree(lambda offset, length: device[offset : offset + length]))[b"f"][7] == {
        b"user.kept": b"1"
    }


def test_a_device_that_block_numbers_cannot_reach_is_refused():
    with pytest.raises(InvalidLayer, match="2199023251456 can be addressed"):
        build([LayerToc([], 1 << 41)])
    assert build([LayerToc([], (1 << 41) - 8192)]).device_size < 1 << 41


def test_an_image_without_layers_is_an_empty_root():
    metadata = build([])
    assert next(Image(metadata.data).walk())[1].mode == stat.S_IFDIR | 0o755
    assert (metadata.files, metadata.directories) == (0, 1)


def test_directory_blocks_are_full_and_sorted():
    names = [b"%03d" % n + b"x" * (n % 250) for n in range(300)]
    device = device_of([pack([Member(name) for name in reversed(names)])])
    image = Image(device)
    root = image.inode(image.superblock.root_nid)
    assert [name for name, _, _ in image.entries(root)] == sorted([*names, b".", b".."])
    content = image.content(root)
    for start in range(0, len(content) - 512, 512):
        (first,) = struct.unpack_from("<H", content, start + 8)
        following = struct.unpack_from("<H", content, start + 512 + 8)[0]
        block = content[start : start + 512].rstrip(b"\0")
        name = next(
            name for name, _, _ in image.entries(root) if content[start + 512 + following :].startswith(name)
        )
        assert first % 12 == 0
        assert len(block) + 12 + len(name) > 512, "another entry would have fitted"


def test_times_before_1970_and_beyond_32_bits_survive():
    metadata = build([LayerToc([file(b"old", mtime=-(2**40)), file(b"new", mtime=2**40)], 1024)])
    image = Image(metadata.data)
    assert (image.lookup(b"old").mtime, image.lookup(b"new").mtime) == (-(2**40), 2**40)
    everything_old = Image(build([LayerToc([file(b"%d" % n, mtime=-5) for n in range(5)], 1024)]).data)
    assert everything_old.superblock.epoch == 2**64 - 5
    assert everything_old.lookup(b"3").mtime == -5


def test_metadata_counts_what_it_holds():
    layers = [
        Member(b"f", content=b"12345"),
        Member(b"h", 0, target=b"f"),
        Member(b"d/g", content=b"1"),
        Member(b"s", stat.S_IFLNK, target=b"f"),
        Member(b"p", stat.S_IFIFO),
    ]
    metadata = metadata_of([pack(layers)])
    counts = (
        metadata.files,
        metadata.directories,
        metadata.symlinks,
        metadata.specials,
        metadata.content_bytes,
    )
    assert counts == (2, 2, 1, 1, 6)
