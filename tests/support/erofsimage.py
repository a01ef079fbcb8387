"""Whole devices for tests: layers in, metadata followed by the tars out, and what they must read back as."""

from __future__ import annotations

import stat

from gateway.erofs.tarstream import TarWalker
from gateway.erofs.toc import Toc, TocWriter, read_toc
from gateway.erofs.writer import LayerToc, Metadata, build
from tests.support.erofsreader import Node
from tests.support.unpacked import Member


def toc_of(tar: bytes, chunk: int = 1 << 20) -> Toc:
    encoded = bytearray()
    writer = TocWriter(encoded.extend)
    walker = TarWalker(writer.add)
    for at in range(0, len(tar), chunk):
        walker.feed(tar[at : at + chunk])
    writer.finish(walker.finish())
    return read_toc(bytes(encoded))


def metadata_of(tars: list[bytes]) -> Metadata:
    tocs = [toc_of(tar) for tar in tars]
    return build([LayerToc(toc, toc.tar_size) for toc in tocs])


def device_of(tars: list[bytes]) -> bytes:
    metadata = metadata_of(tars)
    device = bytearray(metadata.device_size)
    device[: len(metadata.data)] = metadata.data
    for tar, offset in zip(tars, metadata.layer_offsets, strict=True):
        device[offset : offset + len(tar)] = tar
    return bytes(device)


def seen(tree: dict[bytes, Node]) -> dict[bytes, tuple]:
    """A tree that was read, as plain tuples."""
    names: dict[int, list[bytes]] = {}
    for path, node in tree.items():
        names.setdefault(id(node), []).append(path)
    return {
        path: (
            node.mode,
            node.uid,
            node.gid,
            node.mtime_ns,
            node.content() if stat.S_ISREG(node.mode) else b"",
            node.target or b"",
            node.rdev or (0, 0),
            node.xattrs,
            node.nlink,
            sorted(names[id(node)]),
        )
        for path, node in tree.items()
    }


def expected(tree: dict[bytes, Member]) -> dict[bytes, tuple]:
    """The model's tree in the same form."""
    names: dict[int, list[bytes]] = {}
    for path, member in tree.items():
        names.setdefault(id(member), []).append(path)
    children: dict[bytes, int] = dict.fromkeys(tree, 0)
    for path, member in tree.items():
        if path and member.kind == stat.S_IFDIR:
            children[path.rpartition(b"/")[0]] += 1
    return {
        path: (
            member.kind | (0o777 if member.kind == stat.S_IFLNK else member.permissions),
            member.uid,
            member.gid,
            member.mtime_ns,
            member.content,
            member.target if member.kind == stat.S_IFLNK else b"",
            member.rdev if member.kind in (stat.S_IFCHR, stat.S_IFBLK) else (0, 0),
            member.xattrs,
            2 + children[path] if member.kind == stat.S_IFDIR else len(names[id(member)]),
            sorted(names[id(member)]),
        )
        for path, member in tree.items()
    }
