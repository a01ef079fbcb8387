"""Metadata that somebody hands in: what is read from it, and what is refused by which rule."""

from __future__ import annotations

import base64
import os
import stat
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.erofs import ondisk
from gateway.erofs.reader import Image
from gateway.erofs.superblock import DeviceSlot, parse
from gateway.erofs.validate import validate
from gateway.errors import InvalidMetadata
from tests.support.erofsimage import device_of, expected, metadata_of, seen
from tests.support.erofsreader import Volume, read_tree
from tests.support.unpacked import Member, pack, unpack

DIR, LNK = stat.S_IFDIR, stat.S_IFLNK
LAYER = [
    Member(b"d/", DIR, 0o755, mtime_ns=5),
    Member(b"d/file", content=b"x" * 600, xattrs={b"user.a": b"value"}),
    Member(b"d/sub/", DIR, 0o700),
    Member(b"link", LNK, 0o777, target=b"d/file"),
    *[Member(b"many/%03d" % n, content=b"y") for n in range(60)],
]
TAR = pack(LAYER)
BUILT = metadata_of([TAR])
SIZE = BUILT.device_size


def reseal(image: bytearray) -> bytearray:
    """Give the superblock the checksum of its bytes as they are now."""
    image[1028:1032] = ondisk.superblock_checksum(
        image, 1 << image[1036] if image[1036] < 13 else 512
    ).to_bytes(4, "little")
    return image


def changed(at: int, value: bytes) -> bytearray:
    image = bytearray(BUILT.data)
    image[at : at + len(value)] = value
    return reseal(image)


def u16(value: int) -> bytes:
    return struct.pack("<H", value)


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def with_slots(*slots: tuple[int, int], table: int = 10, count: int | None = None) -> bytearray:
    """The built image, said to have a device table at slot ``table`` with (blocks, uniaddr) entries."""
    image = bytearray(BUILT.data) + bytearray(2048)
    image[1060:1064] = u32(len(image) // 512)
    image[1104:1108] = u32(8)
    image[1110:1114] = u16(len(slots) if count is None else count) + u16(table)
    for index, (blocks, uniaddr) in enumerate(slots):
        at = (table + index) * 128
        image[at : at + 128] = bytes(128)
        ondisk.DEVICE_SLOT.pack_into(
            image, at, b"tag", blocks & 0xFFFFFFFF, uniaddr & 0xFFFFFFFF, blocks >> 32, uniaddr >> 32
        )
    return reseal(image)


def test_what_was_built_is_valid_and_described():
    superblock = parse(BUILT.data, SIZE)
    assert superblock.block_size == BUILT.block_size == 512
    assert superblock.devices == ()
    assert superblock.uuid == BUILT.uuid
    assert superblock.device_size == superblock.blocks * 512 == SIZE
    assert superblock.inodes == BUILT.files + BUILT.directories + BUILT.symlinks + BUILT.specials
    assert (BUILT.files, BUILT.directories, BUILT.symlinks, BUILT.specials) == (61, 4, 1, 0)
    assert BUILT.content_bytes == 660
    assert validate(BUILT.data, SIZE) == superblock


def test_device_slots_are_read_and_their_end_is_the_device():
    first = len(BUILT.data) // 512 + 4
    superblock = parse(with_slots((100, first), (7, first + 128)))
    assert superblock.devices == (DeviceSlot(b"tag", 100, first), DeviceSlot(b"tag", 7, first + 128))
    assert superblock.total_blocks == first + 135
    assert superblock.device_size == (first + 135) * 512


END = len(BUILT.data) // 512 + 4
BROKEN = {
    "magic": (changed(1024, b"\0"), "magic"),
    "block size": (changed(1036, b"\x0d"), "blocks of 2\\^13"),
    "block size 256": (changed(1036, b"\x08"), "blocks of 2\\^8"),
    "unknown feature": (changed(1104, u32(0x80)), "incompatible features 0x80"),
    "compression": (changed(1108, u16(1)), "compression"),
    "large directory blocks": (changed(1114, b"\x01"), "compression or multi-block directories"),
    "checksum": (BUILT.data[:1100] + b"\xff" + BUILT.data[1101:], "checksum"),
    "nanoseconds": (changed(1056, u32(10**9)), "nanoseconds"),
    "cut": (BUILT.data[:1100], "cannot hold one"),
    "cut block": (BUILT.data[:1300], "ends inside of its block"),
    "device larger than told": (changed(1060, u32(SIZE // 512 + 1)), "in a device of"),
    "root outside": (changed(1064, u32(0x7FFFFFFF)), "root inode"),
    "devices without feature": (changed(1110, u16(1)), "without the device table's feature bit"),
    "table in the superblock": (with_slots(table=8, count=1), "inside of the superblock"),
    "table past the end": (with_slots((9, END), count=60000), "reach past the metadata's end"),
    "slot overlaps metadata": (with_slots((9, 3)), "overlaps what lies before"),
    "slots overlap": (with_slots((9, END), (9, END + 8)), "slot 1 .* overlaps"),
    "slots overlap in any order": (with_slots((9, END + 8), (9, END)), "slot 0 .* overlaps"),
    "slot without a place": (with_slots((9, 0)), "has no place"),
    "empty slot": (with_slots((0, END)), "is empty"),
    "slot far outside": (with_slots((1 << 40, END)), "in a device of"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_superblock_is_refused_by_rule(case):
    image, rule = BROKEN[case]
    with pytest.raises(InvalidMetadata, match=rule):
        parse(image, SIZE)
    with pytest.raises(InvalidMetadata):
        validate(image, SIZE)


def test_metadata_longer_than_its_place_is_refused():
    image = with_slots((SIZE // 512, END))
    size = END * 512 + SIZE
    assert validate(image, size).devices
    with pytest.raises(InvalidMetadata, match=r"overlaps the [0-9]+ bytes of metadata"):
        validate(image + bytes(512), size)


def test_a_table_of_two_hundred_devices_is_found_wherever_it_lies():
    image = bytearray(BUILT.data) + bytes(200 * 128)
    table = len(BUILT.data) // 128
    image[1060:1064] = u32(len(image) // 512)
    image[1104:1108] = u32(8)
    image[1110:1114] = u16(200) + u16(table)
    for index in range(200):
        place = (table + index) * 128
        ondisk.DEVICE_SLOT.pack_into(image, place, b"%d" % index, 10, len(image) // 512 + 10 * index, 0, 0)
    devices = Image(reseal(image)).superblock.devices
    assert [slot.tag for slot in devices] == [b"%d" % index for index in range(200)]
    assert parse(image).devices == devices


def place(path: bytes) -> int:
    """Byte of the inode at ``path`` in the built metadata."""
    inode = Image(BUILT.data).lookup(path)
    assert inode is not None
    return inode.nid * 32


def data_of(path: bytes) -> int:
    volume = Volume(lambda offset, length: bytes(BUILT.data[offset : offset + length]))
    return volume.node(place(path) // 32).pieces[0][1] or 0


MANY = data_of(b"many")
DEEP = {
    "unknown layout": (place(b"d/file"), u16(1 | 1 << 1), "format"),
    "unknown format bits": (place(b"d/file"), u16(0x41), "format"),
    "no file type": (place(b"d/file") + 4, u16(0o644), "has no file type"),
    "type of a name": (place(b"d/file") + 4, u16(stat.S_IFLNK | 0o777), "lie outside of the device"),
    "file past the end": (place(b"d/file") + 16, u32(0x7FFFFFF0), "lie outside of the device"),
    "huge file": (place(b"d/file") + 8, u32(0xFFFFFFFF), "lie outside of the device"),
    "attributes past the end": (
        place(b"d/file") + 2,
        u16(0xFFFF),
        "reach past the metadata's end|one begins|name prefix",
    ),
    "attribute prefix": (
        place(b"d/file") + 64 + 13 if BUILT.data[place(b"d/file")] & 1 else place(b"d/file") + 45,
        b"\x05",
        "name prefix 5",
    ),
    "shared attributes": (
        place(b"d/file") + (68 if BUILT.data[place(b"d/file")] & 1 else 36),
        b"\xff",
        "shared ones do not fit",
    ),
    "name offsets": (MANY + 8, u16(0), "first name is at byte 0"),
    "odd name offset": (MANY + 8, u16(13), "first name is at byte 13"),
    "names out of order": (MANY + 20, u16(5), "name of|do not follow"),
    "child outside": (MANY + 24, struct.pack("<Q", 2**40), "outside of the image"),
    "child of another type": (MANY + 34, b"\x02", "the type 2"),
    "dot elsewhere": (MANY, struct.pack("<Q", 48), "wrong '.'"),
}


@pytest.mark.parametrize("case", DEEP)
def test_a_broken_inode_or_directory_is_refused_by_rule(case):
    at, value, rule = DEEP[case]
    with pytest.raises(InvalidMetadata, match=rule):
        validate(changed(at, value), SIZE)


def test_a_directory_in_two_places_is_refused():
    image = bytearray(BUILT.data)
    root = Image(BUILT.data).inode(48)
    content = Image(BUILT.data).content(root)
    entries = {name: index for index, (name, _, _) in enumerate(Image(BUILT.data).entries(root))}
    place_of_many = (root.start or 0) + 12 * entries[b"many"]
    image[place_of_many : place_of_many + 8] = content[12 * entries[b"d"] :][:8]
    with pytest.raises(InvalidMetadata, match="in two places"):
        validate(reseal(image), SIZE)


def test_a_directory_that_contains_its_parent_is_refused():
    image = bytearray(BUILT.data)
    reader = Image(BUILT.data)
    directory = reader.lookup(b"d")
    assert directory is not None
    names = [name for name, _, _ in reader.entries(directory)]
    at = (directory.start or 0) + 12 * names.index(b"sub")
    image[at : at + 8] = struct.pack("<Q", directory.nid)
    with pytest.raises(InvalidMetadata, match="in two places"):
        validate(reseal(image), SIZE)
    with pytest.raises(InvalidMetadata, match="in two places"):
        list(Image(image).walk())


OLD_LAYERS = [
    [Member(b"d/", DIR, 0o755), Member(b"d/one", content=b"1" * 700)],
    [Member(b"two", content=b"2" * 513)],
]
# What version 0.1 wrote for OLD_LAYERS (two tars of 10,240 bytes), compressed.
OLD_METADATA = zlib.decompress(
    base64.b85decode(
        b"c-muN7zLwX6pU2x=;7A~ujfo#%M4_5G8izhU{Rxk#NMClm+tna?``+<?q_RrX4Q{|;Lrx3_<rli%wP`X{|5p_BzXfk%>-u~0"
        b"@=n;wlR=x24$NtFf!=r>7|sE=cAd=#Gr*_J`<ApFmqIp%vS}nVeV0fn3<oKirWuM8W|ZFp@vEVF*6qVJy3ZzsGCLs1ONcj$R"
        b"#B"
    )
)


def test_metadata_of_version_01_is_refused_where_layers_are_aligned_to_4096_bytes():
    """Its files would be read where no layer has them any more."""
    tars = [pack(layer) for layer in OLD_LAYERS]
    old_size = len(OLD_METADATA) + sum(map(len, tars))
    assert validate(OLD_METADATA, old_size).devices == (), "it is good metadata, of another arrangement"
    size = metadata_of(tars).device_size
    for around in (len(OLD_METADATA) + sum(map(ondisk.aligned, map(len, tars))), size):
        with pytest.raises(InvalidMetadata, match=f"of a device of {old_size} bytes, this one has {around}"):
            validate(OLD_METADATA, around)


def test_metadata_without_a_device_table_is_of_a_device_of_its_own_size_alone():
    for size in (SIZE - ondisk.ALIGN_BYTES, SIZE + ondisk.ALIGN_BYTES):
        with pytest.raises(InvalidMetadata, match="a device of"):
            validate(BUILT.data, size)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_no_damage_makes_validation_crash_or_a_walk_run_away(data):
    image = bytearray(BUILT.data)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(1024, len(image) - 1))
        image[at] = data.draw(st.integers(0, 255))
    reseal(image)
    try:
        validate(image, SIZE)
    except InvalidMetadata as error:
        assert str(error).startswith("EROFS")  # noqa: PT017 - not raising is allowed too
        return
    device = bytes(image) + bytes(SIZE - len(image))
    for _, inode in Image(device, SIZE).walk():  # what passed can be read
        if stat.S_ISREG(inode.mode):
            Image(device, SIZE).content(inode, 0, 4096)


@given(st.binary(max_size=4096))
def test_noise_is_refused(noise):
    with pytest.raises(InvalidMetadata):
        validate(noise, 1 << 20)


def test_lookup_finds_what_is_there_and_nothing_else():
    image = Image(device_of([TAR]))
    assert image.lookup(b"/d/file").size == 600
    assert image.lookup(b"") == image.lookup(b"/")
    assert image.lookup(b"d/file/x") is None
    assert image.lookup(b"nothing") is None
    link = image.lookup(b"link")
    assert image.target(link) == b"d/file"


@pytest.fixture
def mkfs():
    """Recent mkfs.erofs, as a function that runs it."""
    program = Path(os.environ.get("EROFS_UTILS", ".test-cache/erofs-utils")) / "bin" / "mkfs.erofs"
    if not program.exists():
        pytest.skip("erofs-utils >= 1.7 is missing: scripts/fetch-erofs-utils.sh .test-cache/erofs-utils")

    def run(*arguments: object) -> None:
        made = subprocess.run(
            [program, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
        )
        assert made.returncode == 0, made.stderr

    return run


def placed(metadata: bytes, tars: list[bytes]) -> bytes:
    """The device: metadata, and of each tar as much as its slot says where it says."""
    superblock = parse(metadata)
    device = bytearray(superblock.device_size)
    device[: len(metadata)] = metadata
    for slot, tar in zip(superblock.devices, tars, strict=True):
        assert slot.blocks * 512 <= len(tar)
        device[slot.uniaddr * 512 : (slot.uniaddr + slot.blocks) * 512] = tar[: slot.blocks * 512]
    return bytes(device)


def both_readers(device: bytes, made_by_mkfs: set[bytes]) -> dict[bytes, tuple]:
    """What the independent reader sees; the package's reader sees the same contents.

    mkfs.erofs gives ``made_by_mkfs``, directories without an entry of their own, the time of the build.
    """
    tree = read_tree(lambda offset, length: device[offset : offset + length])
    image = Image(device)
    assert {path: image.content(inode) for path, inode in image.walk() if stat.S_ISREG(inode.mode)} == {
        path: node.content() for path, node in tree.items() if stat.S_ISREG(node.mode)
    }
    return {path: attributes for path, attributes in seen(tree).items() if path not in made_by_mkfs}


@pytest.mark.real
def test_metadata_of_mkfs_erofs_is_placed_by_its_device_table_and_reads_the_same(tmp_path, mkfs):
    """mkfs.erofs --tar=i writes chunk-based inodes and a device table; the files are the same as in ours."""
    layer = [member for member in LAYER if not member.xattrs]
    layer += [Member(b"big", content=os.urandom(50_001)), Member(b"empty", content=b"")]
    layer += [Member(b"shared%d" % n, content=b"s", xattrs={b"user.shared": b"v" * 40}) for n in range(8)]
    tar = pack(layer)
    (tmp_path / "layer.tar").write_bytes(tar)
    mkfs("--tar=i", "-Eforce-inode-extended", tmp_path / "meta", tmp_path / "layer.tar")
    metadata = (tmp_path / "meta").read_bytes()
    device = placed(metadata, [tar])
    assert validate(metadata, len(device)) == parse(metadata)
    made = {b"", b"many"}
    wanted = expected(unpack([layer]))
    assert both_readers(device, made) == {path: wanted[path] for path in wanted if path not in made}
    with pytest.raises(InvalidMetadata, match="in a device of"):
        validate(metadata, len(device) - 512)


@pytest.mark.real
def test_merged_metadata_of_mkfs_erofs_has_a_slot_for_each_layer(tmp_path, mkfs):
    layers = [
        [Member(b"d/", DIR, 0o755), Member(b"d/one", content=b"1" * 700), Member(b"d/two", content=b"2")],
        [Member(b"d/", DIR, 0o700), Member(b"d/.wh.one"), Member(b"d/three", content=b"3" * 513)],
    ]
    tars = [pack(layer) for layer in layers]
    for index, tar in enumerate(tars):
        (tmp_path / f"{index}.tar").write_bytes(tar)
        mkfs(
            "--tar=i",
            "--aufs",
            "-Eforce-inode-extended",
            tmp_path / f"{index}.meta",
            tmp_path / f"{index}.tar",
        )
    mkfs("--ovlfs-strip=1", tmp_path / "merged", tmp_path / "0.meta", tmp_path / "1.meta")
    metadata = (tmp_path / "merged").read_bytes()
    device = placed(metadata, tars)
    superblock = validate(metadata, len(device))
    assert len(superblock.devices) == 2
    found = both_readers(device, {b""})
    wanted = expected(unpack(layers))
    assert found == {path: wanted[path] for path in wanted if path}
