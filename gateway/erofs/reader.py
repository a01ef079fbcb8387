"""A small reader of EROFS images without compression: find a file, list a directory, say where its bytes are.

It reads through a callable, so an image may be a buffer, a file or a device behind ranges. Layouts: flat,
flat with inline tail, chunk-based. Every rule that reading depends on is checked and ``InvalidMetadata``
names it; whether the image as a whole is sound is ``validate``'s to say.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from gateway.erofs.ondisk import (
    CHUNK_BASED,
    CHUNK_BITS_MASK,
    CHUNK_INDEX,
    CHUNK_INDEXES,
    COMPACT_INODE,
    DIRENT,
    EXTENDED_INODE,
    FLAT_INLINE,
    FLAT_PLAIN,
    NO_BLOCK,
    SUPERBLOCK_OFFSET,
    SUPERBLOCK_SIZE,
    TARGET_MAX,
    XATTR_HEADER,
    decode_rdev,
)
from gateway.erofs.superblock import Superblock, head_size, parse
from gateway.errors import InvalidMetadata

ReadAt = Callable[[int, int], bytes | bytearray | memoryview]
"""``read(offset, length)`` in bytes: exactly ``length``, or fewer at the image's end."""

DIRECTORY_MAX: Final = 1 << 30
"""Bytes of one directory that are read: some twenty million names."""

_WALK_PATH_MAX: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Inode:
    """One inode.

    ``start`` is the byte in the device where its data begins when that lies in one piece, else None.
    ``address`` is the raw field (start block, device number or chunk format), ``body`` the byte after the
    inode and its ``xattr_bytes`` of attributes: the inline tail or the chunk table.
    """

    nid: int
    layout: int
    mode: int
    uid: int
    gid: int
    mtime: int
    mtime_nanoseconds: int
    size: int
    links: int
    address: int
    body: int
    xattr_bytes: int
    start: int | None

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def device(self) -> tuple[int, int]:
        """Major and minor of a device node."""
        return decode_rdev(self.address)


class Image:
    """An EROFS image. ``read`` is a buffer or a ``ReadAt``; ``device_size`` (bytes) bounds it when known."""

    def __init__(self, read: ReadAt | bytes | bytearray | memoryview, device_size: int | None = None) -> None:
        if callable(read):
            self._read = read
        else:
            view = memoryview(read)
            self._read = lambda offset, length: view[offset : offset + length]
        head = self._read(0, head_size(self._read(0, SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE)))
        self.superblock: Superblock = parse(head, device_size)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes of the image."""
        data = bytes(self._read(offset, length))
        if len(data) != length:
            raise InvalidMetadata(f"EROFS: bytes {offset}+{length} are outside of the image")
        return data

    def inode(self, nid: int) -> Inode:
        superblock = self.superblock
        at = superblock.inode_offset(nid)
        raw = self.read(at, COMPACT_INODE.size)
        form = raw[0] | raw[1] << 8
        layout = form >> 1 & 7
        if form >> 4 or layout not in (FLAT_PLAIN, FLAT_INLINE, CHUNK_BASED):
            raise InvalidMetadata(f"EROFS inode {nid}: format {form:#x} is not known here")
        # Chunk-based inodes need no feature bit: mkfs.erofs 1.8 sets none in tar mode, the kernel wants none.
        if form & 1:
            raw += self.read(at + len(raw), EXTENDED_INODE.size - len(raw))
            fields = EXTENDED_INODE.unpack(raw)
            _, count, mode, _, size, address, _, uid, gid, mtime, nanoseconds, links = fields
        else:
            _, count, mode, links, size, delta, address, _, uid, gid, _ = COMPACT_INODE.unpack(raw)
            mtime, nanoseconds = superblock.epoch + delta, superblock.epoch_nanoseconds
        if mtime >> 63:
            mtime -= 1 << 64
        xattr_bytes = XATTR_HEADER.size + 4 * (count - 1) if count else 0
        body = at + len(raw) + xattr_bytes
        if layout == CHUNK_BASED:
            # Chunk indexes (8 bytes) are aligned to their size, block numbers (4 bytes) are by nature.
            width = CHUNK_INDEX.size if address & CHUNK_INDEXES else 4
            body = -(-body // width) * width
        start = None
        block_size = superblock.block_size
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            if layout == FLAT_PLAIN or (layout == FLAT_INLINE and size % block_size == 0):
                start = address * block_size if size else None
            elif layout == FLAT_INLINE and size < block_size:
                start = body
        return Inode(
            nid, layout, mode, uid, gid, mtime, nanoseconds, size, links, address, body, xattr_bytes, start
        )

    def inode_end(self, inode: Inode) -> int:
        """The byte after the inode proper, where its extended attributes begin."""
        at = self.superblock.inode_offset(inode.nid)
        extended = self.read(at, 1)[0] & 1
        return at + (EXTENDED_INODE.size if extended else COMPACT_INODE.size)

    def extents(self, inode: Inode) -> Iterator[tuple[int, int, int | None]]:
        """Pieces of the data in order: (offset in the file, length, offset in the device; None is a hole)."""
        block_size = self.superblock.block_size
        size = inode.size
        if inode.layout == CHUNK_BASED:
            yield from self._chunks(inode)
            return
        tail = size % block_size if inode.layout == FLAT_INLINE else 0
        if size - tail:
            yield 0, size - tail, inode.address * block_size
        if tail:
            yield size - tail, tail, inode.body

    def _chunks(self, inode: Inode) -> Iterator[tuple[int, int, int | None]]:
        form = inode.address
        if form & ~(CHUNK_BITS_MASK | CHUNK_INDEXES):
            raise InvalidMetadata(f"EROFS inode {inode.nid}: chunk format {form:#x} is not known here")
        block_size = self.superblock.block_size
        chunk = block_size << (form & CHUNK_BITS_MASK)
        width = CHUNK_INDEX.size if form & CHUNK_INDEXES else 4
        devices = self.superblock.devices
        for number, offset in enumerate(range(0, inode.size, chunk)):
            length = min(chunk, inode.size - offset)
            raw = self.read(inode.body + number * width, width)
            if form & CHUNK_INDEXES:
                _, device, block = CHUNK_INDEX.unpack(raw)
            else:
                device, block = 0, int.from_bytes(raw, "little")
            if block == NO_BLOCK:
                yield offset, length, None
                continue
            if device > len(devices):
                raise InvalidMetadata(
                    f"EROFS inode {inode.nid}: chunk {number} is in device {device}, which is none"
                )
            if device:
                slot = devices[device - 1]
                if block + -(-length // block_size) > slot.blocks:
                    raise InvalidMetadata(
                        f"EROFS inode {inode.nid}: chunk {number} ends outside of its device"
                    )
                block += slot.uniaddr
            yield offset, length, block * block_size

    def content(self, inode: Inode, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of a file, directory or symbolic link; holes are zeros."""
        end = inode.size if length is None else min(inode.size, offset + length)
        pieces = []
        for start, size, place in self.extents(inode):
            first, last = max(start, offset), min(start + size, end)
            if first < last:
                count = last - first
                pieces.append(bytes(count) if place is None else self.read(place + first - start, count))
        return b"".join(pieces)

    def target(self, inode: Inode) -> bytes:
        """What a symbolic link points to."""
        if not 0 < inode.size <= TARGET_MAX:
            raise InvalidMetadata(f"EROFS inode {inode.nid}: a symbolic link of {inode.size} bytes")
        return self.content(inode)

    def entries(self, directory: Inode) -> Iterator[tuple[bytes, int, int]]:
        """(name, nid, file type) of a directory, ``.`` and ``..`` among them."""
        if directory.size > DIRECTORY_MAX:
            raise InvalidMetadata(f"EROFS inode {directory.nid}: a directory of {directory.size} bytes")
        content = self.content(directory)
        block_size = self.superblock.block_size
        for start in range(0, len(content), block_size):
            yield from parse_block(content[start : start + block_size], directory.nid)

    def lookup(self, path: bytes) -> Inode | None:
        """The inode at ``path`` (symbolic links are not followed), or None."""
        inode = self.inode(self.superblock.root_nid)
        for part in path.split(b"/"):
            if not part:
                continue
            if not inode.is_directory:
                return None
            nid = next((nid for name, nid, _ in self.entries(inode) if name == part), None)
            if nid is None:
                return None
            inode = self.inode(nid)
        return inode

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """Every path (without a leading slash; the root is empty) with its inode, parents first.

        Paths of more than 64 KiB are refused: no layer has such, and their sum grows with the square of the
        depth.
        """
        root = self.inode(self.superblock.root_nid)
        seen = {root.nid}
        pending = [(b"", root)]
        while pending:
            path, inode = pending.pop()
            if len(path) > _WALK_PATH_MAX:
                raise InvalidMetadata(f"EROFS inode {inode.nid}: a path of {len(path)} bytes")
            yield path, inode
            if not inode.is_directory:
                continue
            below = []
            for name, nid, _ in self.entries(inode):
                if name in (b".", b".."):
                    continue
                child = self.inode(nid)
                if child.is_directory:
                    if nid in seen:
                        raise InvalidMetadata(f"EROFS inode {nid}: a directory that is in two places")
                    seen.add(nid)
                below.append((path + b"/" + name if path else name, child))
            pending += reversed(below)


def parse_block(block: bytes, nid: int) -> Iterator[tuple[bytes, int, int]]:
    """The entries of one directory block of the inode ``nid``."""
    where = f"EROFS inode {nid}: a directory block"
    if len(block) < DIRENT.size:
        raise InvalidMetadata(f"{where} of {len(block)} bytes")
    first = int.from_bytes(block[8:10], "little")
    if not first or first % DIRENT.size or first >= len(block):
        raise InvalidMetadata(f"{where} whose first name is at byte {first}")
    position = first
    for at in range(0, first, DIRENT.size):
        child, begin, kind, _ = DIRENT.unpack_from(block, at)
        if begin != position:
            raise InvalidMetadata(f"{where} whose names do not follow each other")
        if at + DIRENT.size < first:
            position = int.from_bytes(block[at + 20 : at + 22], "little")
        else:
            position = block.find(0, begin)
            position = len(block) if position < 0 else position
        if not begin < position <= len(block):
            raise InvalidMetadata(f"{where} with a name of {position - begin} bytes")
        yield block[begin:position], child, kind
