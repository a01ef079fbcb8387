"""Judge a whole EROFS image that somebody supplied, before a kernel has to.

One bounded walk from the root: every inode once, every directory block, every extent and attribute. Work is
linear in the size of the metadata: inodes may not overlap (or a chunk table could be counted again for each
of a million inodes), directories may not either.
"""

from __future__ import annotations

import stat

from gateway.erofs.ondisk import (
    CHUNK_BASED,
    CHUNK_BITS_MASK,
    CHUNK_INDEX,
    CHUNK_INDEXES,
    FILE_TYPE,
    FLAT_INLINE,
    NAME_MAX,
    XATTR_ENTRY,
    XATTR_HEADER,
)
from gateway.erofs.reader import Image, Inode
from gateway.erofs.superblock import Superblock
from gateway.errors import InvalidMetadata

_XATTR_INDEXES = frozenset((1, 2, 3, 4, 6))


def validate(buffer: bytes | bytearray | memoryview, device_size: int) -> Superblock:
    """Check the metadata in ``buffer`` from the superblock to the leaves.

    It is the start of a device of ``device_size`` bytes. Without a device table it must say that very size: files are
    then found by where layers lie, and metadata for another arrangement of them (version 0.1 aligned layers to 512
    bytes) would show other bytes as theirs. No alignment makes a layer's place smaller, so two arrangements of the same
    layers have the same size only if they are the same. Returns the superblock; ``InvalidMetadata`` names
    the inode and the rule it breaks.
    """
    walk = _Walk(buffer, device_size)
    walk.run()
    return walk.image.superblock


class _Walk:
    def __init__(self, buffer: bytes | bytearray | memoryview, device_size: int) -> None:
        self.image = Image(buffer, device_size)
        self._buffer = memoryview(buffer)
        self._device_size = device_size
        self._inode_budget = len(buffer)
        self._directory_budget = len(buffer)
        self._kinds: dict[int, int] = {}
        # The head was parsed by itself; what depends on the metadata's full length is checked here.
        slots = self.image.superblock.devices
        if slots and min(slot.uniaddr for slot in slots) * self.image.superblock.block_size < len(buffer):
            raise InvalidMetadata(f"EROFS device table: a slot overlaps the {len(buffer)} bytes of metadata")
        said = self.image.superblock.device_size
        if not slots and said != device_size:
            raise InvalidMetadata(
                f"EROFS superblock: it is of a device of {said} bytes, this one has {device_size}: the metadata is of "
                "other layers, or places them otherwise (each begins at a multiple of 4096 bytes)"
            )

    def run(self) -> None:
        image = self.image
        root = self._visit(image.superblock.root_nid)
        if not root.is_directory:
            raise InvalidMetadata(f"EROFS inode {root.nid}: the root is no directory")
        pending = [(root, root.nid)]
        while pending:
            directory, parent = pending.pop()
            pending += [(child, directory.nid) for child in self._directory(directory, parent)]

    def _directory(self, directory: Inode, parent: int) -> list[Inode]:
        """Check a directory's names and its children. Returns those that are directories."""
        where = f"EROFS inode {directory.nid}: directory"
        self._directory_budget -= directory.size
        if self._directory_budget < 0:
            raise InvalidMetadata(f"{where} of {directory.size} bytes overlaps another")
        previous = b""
        dots = {b".": directory.nid, b"..": parent}
        below = []
        for name, nid, kind in self.image.entries(directory):
            _check_name(name, previous, where)
            previous = name
            if name in dots:
                if dots.pop(name) != nid or kind != FILE_TYPE[stat.S_IFDIR]:
                    raise InvalidMetadata(f"{where} has a wrong {name.decode()!r}")
                continue
            if nid not in self._kinds:
                inode = self._visit(nid)
                if inode.is_directory:
                    below.append(inode)
            elif self._kinds[nid] == stat.S_IFDIR:
                raise InvalidMetadata(f"EROFS inode {nid}: a directory that is in two places")
            if FILE_TYPE[self._kinds[nid]] != kind:
                raise InvalidMetadata(f"{where} gives inode {nid} the type {kind}")
        if dots:
            raise InvalidMetadata(f"{where} lacks '.' or '..'")
        return below

    def _visit(self, nid: int) -> Inode:
        inode = self.image.inode(nid)
        where = f"EROFS inode {nid}:"
        kind = stat.S_IFMT(inode.mode)
        if kind not in FILE_TYPE:
            raise InvalidMetadata(f"{where} mode {inode.mode:#o} has no file type")
        if inode.mtime_nanoseconds >= 1_000_000_000:  # noqa: PLR2004 - nanoseconds of a second
            raise InvalidMetadata(f"{where} {inode.mtime_nanoseconds} nanoseconds in a second")
        self._kinds[nid] = kind
        end = inode.body + self._body_size(inode, kind)
        begin = self.image.superblock.inode_offset(nid)
        if end > len(self._buffer):
            raise InvalidMetadata(f"{where} bytes {begin}..{end} reach past the metadata's end")
        self._inode_budget -= end - begin
        if self._inode_budget < 0:
            raise InvalidMetadata(f"{where} inodes overlap each other")
        self._xattrs(inode)
        if kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            self._data(inode, kind)
        return inode

    def _body_size(self, inode: Inode, kind: int) -> int:
        """Bytes of the inline tail or chunk table."""
        block_size = self.image.superblock.block_size
        if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            return 0
        if inode.layout == CHUNK_BASED:
            chunk = block_size << (inode.address & CHUNK_BITS_MASK)
            return -(-inode.size // chunk) * (CHUNK_INDEX.size if inode.address & CHUNK_INDEXES else 4)
        if inode.layout == FLAT_INLINE:
            tail = inode.size % block_size
            if tail and inode.body // block_size != (inode.body + tail - 1) // block_size:
                raise InvalidMetadata(f"EROFS inode {inode.nid}: its inline tail crosses a block")
            return tail
        return 0

    def _data(self, inode: Inode, kind: int) -> None:
        where = f"EROFS inode {inode.nid}:"
        limit = self._device_size
        if kind != stat.S_IFREG:
            # The kernel follows these while mounting and looking up: they may not lie in a layer's bytes.
            limit = len(self._buffer)
            if inode.layout == CHUNK_BASED:
                raise InvalidMetadata(f"{where} only regular files are chunk-based")
            if not inode.size:
                raise InvalidMetadata(f"{where} an empty directory or symbolic link")
        for offset, length, place in self.image.extents(inode):
            if place is not None and place + length > limit:
                raise InvalidMetadata(f"{where} its bytes {offset}+{length} lie outside of the device")
        if kind == stat.S_IFLNK and b"\0" in self.image.target(inode):
            raise InvalidMetadata(f"{where} a symbolic link with a NUL byte in its target")

    def _xattrs(self, inode: Inode) -> None:
        if not inode.xattr_bytes:
            return
        where = f"EROFS inode {inode.nid}: extended attributes"
        at = self.image.inode_end(inode)
        end = at + inode.xattr_bytes
        _, shared = XATTR_HEADER.unpack_from(self._buffer, at)
        at += XATTR_HEADER.size
        if at + 4 * shared > end:
            raise InvalidMetadata(f"{where}: {shared} shared ones do not fit")
        superblock = self.image.superblock
        for _ in range(shared):
            number = int.from_bytes(self._buffer[at : at + 4], "little")
            place = superblock.xattr_block * superblock.block_size + 4 * number
            self._xattr(place, len(self._buffer), where)
            at += 4
        while at < end:
            at = self._xattr(at, end, where)

    def _xattr(self, at: int, end: int, where: str) -> int:
        """Check one entry; returns where the next one begins."""
        if at + XATTR_ENTRY.size > end:
            raise InvalidMetadata(f"{where}: one begins past the end")
        name_length, index, value_length = XATTR_ENTRY.unpack_from(self._buffer, at)
        # Where mkfs.erofs strips overlayfs' attributes while merging, it leaves zeros, which mean nothing.
        if index not in _XATTR_INDEXES and (index or name_length or value_length):
            raise InvalidMetadata(f"{where}: name prefix {index} is not known here")
        at += -(-(XATTR_ENTRY.size + name_length + value_length) // 4) * 4
        if at > end:
            raise InvalidMetadata(f"{where}: one reaches past the end")
        return at


def _check_name(name: bytes, previous: bytes, where: str) -> None:
    if len(name) > NAME_MAX or b"/" in name or b"\0" in name:
        raise InvalidMetadata(f"{where} has an impossible name")
    if name <= previous:
        raise InvalidMetadata(f"{where} has names that are not sorted")
