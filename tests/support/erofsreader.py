"""Reads EROFS images for tests, written from the format's description and sharing no code with the package.

``read_tree(read)`` walks an image whose bytes ``read(offset, length)`` yields, and returns every path with its
attributes and a way to its content. Layouts: flat plain, flat with inline tail, chunk-based (holes and device table
included). Attributes: inline and shared.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from struct import unpack_from

ReadAt = Callable[[int, int], bytes]
PREFIX = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}
DIRENT_TYPE = {
    1: stat.S_IFREG,
    2: stat.S_IFDIR,
    3: stat.S_IFCHR,
    4: stat.S_IFBLK,
    5: stat.S_IFIFO,
    7: stat.S_IFLNK,
}


@dataclass
class Node:
    nid: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    nlink: int
    rdev: tuple[int, int] | None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    pieces: list[tuple[int, int | None]] = field(default_factory=list)
    """(length, byte in the device or None for a hole), in order."""
    target: bytes | None = None
    read: ReadAt = field(default=lambda _offset, _length: b"", repr=False)

    def content(self) -> bytes:
        return b"".join(bytes(n) if at is None else self.read(at, n) for n, at in self.pieces)


class Volume:
    def __init__(self, read: ReadAt) -> None:
        def exactly(offset: int, length: int) -> bytes:
            data = bytes(read(offset, length))
            assert len(data) == length, f"image ends before {offset}+{length}"
            return data

        self.read = exactly
        sb = exactly(1024, 128)
        assert unpack_from("<I", sb, 0)[0] == 0xE0F5E1E2
        self.bs = 1 << sb[12]
        (self.root,) = unpack_from("<H", sb, 14)
        self.inos, self.epoch, self.epoch_ns, self.blocks, self.meta, self.xattr = unpack_from(
            "<QQIIII", sb, 16
        )
        (self.incompat,) = unpack_from("<I", sb, 80)
        count, slot = unpack_from("<HH", sb, 86)
        self.slots = []
        for i in range(count):
            raw = exactly((slot + i) * 128, 128)
            lo_blocks, lo_addr, hi_blocks, hi_addr = unpack_from("<IIHH", raw, 64)
            self.slots.append((lo_blocks | hi_blocks << 32, lo_addr | hi_addr << 32))

    def node(self, nid: int) -> Node:
        start = self.meta * self.bs + 32 * nid
        raw = self.read(start, 32)
        form, icount, mode = unpack_from("<HHH", raw, 0)
        if form & 1:
            raw += self.read(start + 32, 32)
            (size,) = unpack_from("<Q", raw, 8)
            (u,) = unpack_from("<I", raw, 16)
            uid, gid, seconds, ns, nlink = unpack_from("<IIqII", raw, 24)
        else:
            nlink, size, _, u, _, uid, gid = unpack_from("<HIIIIHH", raw, 6)
            seconds, ns = self.epoch, self.epoch_ns
            if seconds >= 1 << 63:
                seconds -= 1 << 64
        at = start + len(raw)
        node = Node(nid, mode, uid, gid, seconds * 10**9 + ns, size, nlink, None, read=self.read)
        if icount:
            node.xattrs = self.xattrs(at, 12 + 4 * (icount - 1))
            at += 12 + 4 * (icount - 1)
        kind = stat.S_IFMT(mode)
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            node.rdev = ((u >> 8) & 0xFFF, (u & 0xFF) | ((u >> 12) & 0xFFF00))
        elif kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            node.pieces = self.pieces(form >> 1 & 7, size, u, at)
            if kind == stat.S_IFLNK:
                node.target = node.content()
        return node

    def pieces(self, layout: int, size: int, u: int, at: int) -> list[tuple[int, int | None]]:
        if layout == 0:
            return [(size, u * self.bs)] if size else []
        if layout == 2:
            tail = size % self.bs
            found: list[tuple[int, int | None]] = [(size - tail, u * self.bs)] if size - tail else []
            if tail:
                assert at // self.bs == (at + tail - 1) // self.bs, "an inline tail crosses a block"
                found.append((tail, at))
            return found
        assert layout == 4, f"layout {layout}"
        chunk = self.bs << (u & 31)
        found = []
        at += -at % (8 if u & 32 else 4)
        for index, offset in enumerate(range(0, size, chunk)):
            if u & 32:
                _, device, block = unpack_from("<HHI", self.read(at + 8 * index, 8))
            else:
                device, (block,) = 0, unpack_from("<I", self.read(at + 4 * index, 4))
            length = min(chunk, size - offset)
            if block == 0xFFFFFFFF:
                found.append((length, None))
            else:
                base = self.slots[device - 1][1] if device else 0
                found.append((length, (base + block) * self.bs))
        return found

    def xattrs(self, at: int, length: int) -> dict[bytes, bytes]:
        raw = self.read(at, length)
        shared = raw[4]
        found = {}
        for i in range(shared):
            (number,) = unpack_from("<I", raw, 12 + 4 * i)
            place = self.xattr * self.bs + 4 * number
            name_length, _, value_length = unpack_from("<BBH", self.read(place, 4))
            found |= self.one_xattr(self.read(place, 4 + name_length + value_length))[0]
        position = 12 + 4 * shared
        while position < length:
            one, used = self.one_xattr(raw[position:])
            found |= one
            position += used
        return found

    @staticmethod
    def one_xattr(raw: bytes) -> tuple[dict[bytes, bytes], int]:
        name_length, index, value_length = unpack_from("<BBH", raw)
        if raw[:4] == bytes(4):
            return {}, 4  # where mkfs.erofs stripped one
        name = PREFIX[index] + raw[4 : 4 + name_length]
        end = 4 + name_length + value_length
        return {name: raw[4 + name_length : end]}, end + -end % 4

    def listing(self, node: Node) -> list[tuple[bytes, int, int]]:
        content = node.content()
        found = []
        for start in range(0, len(content), self.bs):
            block = content[start : start + self.bs]
            (first,) = unpack_from("<H", block, 8)
            heads = [unpack_from("<QHB", block, 12 * i) for i in range(first // 12)]
            ends = [head[1] for head in heads[1:]]
            ends.append(len(block.rstrip(b"\0")))
            found += [
                (block[begin:end], nid, kind) for (nid, begin, kind), end in zip(heads, ends, strict=True)
            ]
        return found


def read_tree(read: ReadAt) -> dict[bytes, Node]:
    """Every path, ``b""`` for the root; hard links are one and the same ``Node``. Asserts what a directory must be."""
    volume = Volume(read)
    nodes: dict[int, Node] = {}
    found: dict[bytes, Node] = {}
    pending = [(b"", volume.root, volume.root, 2)]
    while pending:
        path, nid, parent, kind = pending.pop()
        if nid not in nodes:
            nodes[nid] = volume.node(nid)
        node = found[path] = nodes[nid]
        assert DIRENT_TYPE[kind] == stat.S_IFMT(node.mode), path
        if not stat.S_ISDIR(node.mode):
            continue
        names = volume.listing(node)
        assert [name for name, _, _ in names] == sorted({name for name, _, _ in names}), (
            f"{path!r} is not sorted"
        )
        dots = {name: at for name, at, _ in names if name in (b".", b"..")}
        assert dots == {b".": nid, b"..": parent}, path
        prefix = path + b"/" if path else b""
        pending += [(prefix + name, at, nid, what) for name, at, what in names if name not in (b".", b"..")]
    assert len(nodes) == volume.inos
    return found
