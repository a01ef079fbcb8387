"""Random stacks of layers, written as tars, turned into devices, read back by an independent reader."""

from __future__ import annotations

import stat
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from gateway.erofs.reader import Image
from gateway.erofs.validate import validate
from gateway.errors import InvalidLayer
from tests.support.erofsimage import device_of, expected, metadata_of, seen, toc_of
from tests.support.erofsreader import read_tree
from tests.support.unpacked import Member, UnpackError, pack, unpack

NAMES = st.sampled_from([b"a", b"b", b"c", b"-x", b"\xc3\xa9", b"\xff\xfe.bin", b"n" * 200, b".hidden", b"A"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
IDS = st.sampled_from([0, 1000, 65535, 65536, 3_000_000])
TIMES = st.sampled_from(
    [0, 1_700_000_000 * 10**9, 1_700_000_000 * 10**9 + 123_456_789, -1_500_000_000, 2**33 * 10**9]
)
SIZES = st.sampled_from([0, 1, 511, 512, 513, 4095, 4096, 4097])
XATTRS = st.dictionaries(
    st.sampled_from(
        [b"user.a", b"user.long", b"security.capability", b"trusted.t", b"system.posix_acl_access"]
    ),
    st.sampled_from([b"", b"1", b"\x01\x00\x00\x02\xff", b"v" * 600]),
    max_size=2,
)


@st.composite
def members(draw) -> Member:  # noqa: PLR0911
    path = draw(PATHS)
    kind = draw(st.sampled_from(["file", "file", "dir", "dir", "link", "hard", "node", "whiteout", "opaque"]))
    attributes = {
        "permissions": draw(st.sampled_from([0o644, 0o4755, 0o1777, 0o2711, 0])),
        "uid": draw(IDS),
        "gid": draw(IDS),
        "mtime_ns": draw(TIMES),
        "xattrs": draw(XATTRS),
    }
    head, _, name = path.rpartition(b"/")
    prefix = head + b"/" if head else b""
    match kind:
        case "file":
            return Member(
                path,
                stat.S_IFREG,
                content=draw(st.binary(min_size=1, max_size=4)) * draw(SIZES),
                **attributes,
            )
        case "dir":
            return Member(path, stat.S_IFDIR, **attributes)
        case "link":
            target = draw(st.sampled_from([b"a", b"/etc/passwd", b"../x", b"t" * 480, b"t" * 3000]))
            return Member(path, stat.S_IFLNK, target=target, **attributes)
        case "hard":
            return Member(path, 0, target=draw(PATHS))
        case "node":
            which = draw(st.sampled_from([stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO]))
            rdev = draw(st.sampled_from([(1, 3), (8, 256), (259, 70000), (0, 0)]))
            return Member(path, which, rdev=rdev, **attributes)
        case "whiteout":
            return Member(prefix + b".wh." + name)
        case _:
            return Member(prefix + b".wh..wh..opq")


def is_whiteout(member: Member) -> bool:
    return member.path.rpartition(b"/")[2].startswith(b".wh.")


LAYERS = st.lists(st.lists(members(), max_size=12), min_size=1, max_size=4)


def whiteouts_first(layer: list[Member]) -> list[Member]:
    return sorted(layer, key=lambda member: not is_whiteout(member))


def parents_are_directories(layer: list[Member]) -> bool:
    """The model follows no symbolic links, so leave out layers that reach through one."""
    links = {member.path for member in layer if member.kind == stat.S_IFLNK}
    return not any(path.startswith(link + b"/") for link in links for path in (m.path for m in layer))


@given(LAYERS)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
def test_a_stack_of_layers_reads_back_as_an_unpacker_would_have_left_it(layers):
    layers = [whiteouts_first(layer) for layer in layers]
    assume(parents_are_directories([member for layer in layers for member in layer]))
    tars = [pack(layer) for layer in layers]
    try:
        wanted = unpack(layers)
    except UnpackError:
        event("refused")
        with pytest.raises(InvalidLayer, match=r"layer .*, entry"):
            device_of(tars)
        return
    event("unpacked")
    device = device_of(tars)
    tree = read_tree(lambda offset, length: device[offset : offset + length])
    assert seen(tree) == expected(wanted)
    metadata = metadata_of(tars)
    assert validate(metadata.data, metadata.device_size).device_size == metadata.device_size
    image = Image(device)
    for path, inode in image.walk():
        assert image.lookup(path) == inode
        assert (inode.mode, inode.uid, inode.size) == (tree[path].mode, tree[path].uid, tree[path].size)
        if stat.S_ISREG(inode.mode):
            assert image.content(inode) == tree[path].content()
            assert device[inode.start or 0 :][: inode.size] == tree[path].content()


@given(LAYERS, st.randoms(use_true_random=False))
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
def test_a_whiteout_means_the_same_wherever_it_stands_in_its_layer(layers, random):
    assume(parents_are_directories([member for layer in layers for member in layer]))
    first = [whiteouts_first(layer) for layer in layers]
    moved = []
    for layer in layers:
        others = [member for member in layer if not is_whiteout(member)]
        for member in layer:
            if is_whiteout(member):
                others.insert(random.randint(0, len(others)), member)
        moved.append(others)
    # A hidden file or hard link target may stand in the way of what comes before its whiteout: that is refused.
    images = []
    for stack in (first, moved):
        with suppress(InvalidLayer):
            device = device_of([pack(layer) for layer in stack])
            images.append(read_tree(lambda offset, length, device=device: device[offset : offset + length]))
    assume(len(images) == 2)
    hard_links = any(member.kind == 0 for layer in layers for member in layer)
    if not hard_links:
        assert seen(images[0]) == seen(images[1])


@given(LAYERS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_same_layers_give_the_same_bytes_and_other_layers_another_uuid(layers):
    tars = [pack(layer) for layer in layers]
    with suppress(InvalidLayer):
        once, again = metadata_of(tars), metadata_of(tars)
        assert once.data == again.data
        assert once.uuid == again.uuid
        more = metadata_of([*tars, pack([Member(b"zz", content=b"!")])])
        assert more.uuid != once.uuid


@given(st.lists(members(), max_size=15), st.integers(1, 2000))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_chunks_of_any_size_give_the_same_table_of_contents(layer, chunk):
    tar = pack(layer)
    whole = toc_of(tar)
    pieces = toc_of(tar, chunk)
    assert list(whole) == list(pieces)
    assert whole.tar_size == pieces.tar_size == len(tar)
    assert len(whole) == len(layer)
