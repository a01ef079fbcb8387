"""A tree in, the EROFS metadata of its hybrid device out.

Layout of the device, in blocks of 512 bytes: superblock; inodes, each followed by its extended attributes and, when
it fits, by the tail of its data (directories, symbolic links); data blocks of directories and long symbolic links; then
the tars, one after the other, each padded to a block. Regular files are flat: their start block is their payload's
place in a tar. No device table and no incompatible feature is needed to read that.

Three passes. *Place* walks the tree from the root, gives every inode its nid and counts data blocks. Now the size of
the metadata is known, hence where each tar starts. *Fill* writes every inode into one preallocated buffer. *Seal*
derives the UUID from the bytes themselves and adds the checksum. No clock and no random number: the same layers
give the same bytes.
"""

from __future__ import annotations

import hashlib
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.erofs.entry import MAX_BYTES, Entry
from gateway.erofs.ondisk import (
    BLOCK,
    BLOCK_BITS,
    COMPACT_INODE,
    COMPAT_CHECKSUM,
    COMPAT_MTIME,
    DIRENT,
    EXTENDED_INODE,
    FILE_TYPE,
    FLAT_INLINE,
    FLAT_PLAIN,
    INODE_ALIGN,
    MAGIC,
    NO_BLOCK,
    SUPERBLOCK,
    SUPERBLOCK_OFFSET,
    XATTR_ENTRY,
    XATTR_HEADER,
    XATTR_PREFIXES,
    superblock_checksum,
)
from gateway.erofs.tree import Directory, Inode, Tree, Xattrs
from gateway.errors import InvalidLayer

_FIRST_INODE: Final = SUPERBLOCK_OFFSET + BLOCK
_U16: Final = 0xFFFF
_U32: Final = 0xFFFFFFFF
_Node = Inode | Directory


@dataclass(frozen=True, slots=True)
class LayerToc:
    """One layer: its members in order, and the size of its decompressed tar in bytes."""

    entries: Iterable[Entry]
    tar_size: int


@dataclass(frozen=True, slots=True)
class Metadata:
    """A finished image. ``data`` is the metadata, a whole number of blocks of 512 bytes.

    ``layer_offsets`` are where each tar starts in the device and ``device_size`` where it ends, both in bytes.
    ``files`` counts regular files (a hard link once), ``bytes`` their contents.
    """

    data: bytearray
    layer_offsets: tuple[int, ...]
    device_size: int
    uuid: bytes
    files: int
    directories: int
    symlinks: int
    specials: int
    bytes: int

    @property
    def block_size(self) -> int:
        """Bytes per block."""
        return BLOCK


def build(layers: Sequence[LayerToc]) -> Metadata:
    """Apply ``layers``, base first, and write their metadata.

    Raises ``InvalidLayer`` for what cannot be applied or represented, naming the layer and the entry.
    """
    tree = Tree()
    for index, layer in enumerate(layers):
        tree.apply(index, layer.entries)
    return write(tree, [layer.tar_size for layer in layers])


def write(tree: Tree, tar_sizes: Sequence[int]) -> Metadata:
    """The metadata of ``tree``, whose payloads lie in tars of ``tar_sizes`` bytes. The tree is used up."""
    plan = _Plan(tree.root)
    inode_blocks = _blocks(plan.end)
    metadata_size = (inode_blocks + plan.data_blocks) * BLOCK
    offsets = []
    device_size = metadata_size
    for size in tar_sizes:
        offsets.append(device_size)
        device_size += _blocks(size) * BLOCK
    if device_size >= MAX_BYTES:
        raise InvalidLayer(
            f"the device would have {device_size} bytes; block numbers reach {MAX_BYTES - BLOCK}"
        )
    data = bytearray(metadata_size)
    _Fill(plan, data, inode_blocks, [offset // BLOCK for offset in offsets]).run()
    uuid = _seal(data, plan, device_size // BLOCK)
    return Metadata(
        data,
        tuple(offsets),
        device_size,
        uuid,
        plan.kinds[stat.S_IFREG],
        plan.kinds[stat.S_IFDIR],
        plan.kinds[stat.S_IFLNK],
        plan.kinds[stat.S_IFCHR] + plan.kinds[stat.S_IFBLK] + plan.kinds[stat.S_IFIFO],
        plan.content_bytes,
    )


def _blocks(size: int) -> int:
    return -(-size // BLOCK)


class _Plan:
    """Where everything goes: nids, link counts, the epoch, and the number of data blocks."""

    def __init__(self, root: Directory) -> None:
        self.root = root
        self.kinds: Counter[int] = Counter()
        self.content_bytes = 0
        self.data_blocks = 0
        self.order: list[_Node] = []
        self.end = _FIRST_INODE
        self._count(root)
        self.epoch = self._epoch()
        for node in self.order:
            self._place(node)

    def _count(self, root: Directory) -> None:
        """Put every inode in order: a directory's children side by side, so that listing it reads few blocks."""
        root.links = 2
        self.order.append(root)
        pending = [root]
        while pending:
            directory = pending.pop()
            children = directory.children = dict(sorted(directory.children.items()))
            below = []
            for child in children.values():
                if isinstance(child, Directory):
                    child.links = 2
                    directory.links += 1
                    below.append(child)
                    self.order.append(child)
                else:
                    child.links += 1
                    if child.links == 1:
                        self.order.append(child)
            pending += reversed(below)

    def _epoch(self) -> tuple[int, int]:
        """The commonest time: inodes that have it need only 32 bytes. Of equally common ones the earliest."""
        times = Counter((node.mtime, node.mtime_nanoseconds) for node in self.order)
        most = max(times.values())
        return min(time for time, count in times.items() if count == most)

    def _place(self, node: _Node) -> None:
        kind = stat.S_IFMT(node.mode)
        self.kinds[kind] += 1
        if isinstance(node, Directory):
            length = _directory_size(node)
        elif kind == stat.S_IFLNK:
            length = len(node.target)
        else:
            length = 0
            self.content_bytes += node.size
        size = self.inode_size(node, length)
        at = self.end
        if at % BLOCK + size > BLOCK:
            at += -at % BLOCK  # an inode stays inside of its block
        size += _xattr_size(node.xattrs) if node.xattrs else 0
        tail = length % BLOCK
        if tail:
            if not _fits_inline(at, size + tail) and size + tail <= BLOCK:
                at += -at % BLOCK
            if not _fits_inline(at, size + tail):
                tail = 0
        node.nid = at // INODE_ALIGN
        self.end = -(-(at + size + tail) // INODE_ALIGN) * INODE_ALIGN
        self.data_blocks += length // BLOCK if tail else _blocks(length)

    def inode_size(self, node: _Node, length: int) -> int:
        """32 when the compact inode can say everything, else 64."""
        size = length or (node.size if isinstance(node, Inode) else 0)
        compact = (
            (node.mtime, node.mtime_nanoseconds) == self.epoch
            and node.uid <= _U16
            and node.gid <= _U16
            and node.links <= _U16
            and size <= _U32
        )
        return COMPACT_INODE.size if compact else EXTENDED_INODE.size


def _fits_inline(at: int, size: int) -> bool:
    """Whether ``size`` bytes of inode, attributes and tail at ``at`` lie in one block.

    The tail alone has to, for directories; the kernel's fast way to read a symbolic link wants all of it.
    """
    return at % BLOCK + size <= BLOCK


def _directory_blocks(directory: Directory) -> Iterator[list[bytes]]:
    """Names of each 512-byte block: sorted bytewise, ``.`` and ``..`` among them, as many as fit."""
    names: list[bytes] = []
    used = 0
    for name in sorted([*directory.children, b".", b".."]):
        need = DIRENT.size + len(name)
        if used + need > BLOCK:
            yield names
            names, used = [], 0
        names.append(name)
        used += need
    yield names


def _directory_size(directory: Directory) -> int:
    size = used = 0
    for name in sorted([*directory.children, b".", b".."]):
        need = DIRENT.size + len(name)
        if used + need > BLOCK:
            size += BLOCK
            used = 0
        used += need
    return size + used


def _xattr_items(xattrs: Xattrs) -> Iterator[tuple[int, bytes, bytes]]:
    """(index, rest of the name, value). Names outside of Linux' namespaces are left out, as no unpacker on Linux
    can set them either.
    """
    for name, value in xattrs:
        for prefix, index in XATTR_PREFIXES:
            rest = name[len(prefix) :]
            if name.startswith(prefix) and bool(rest) == prefix.endswith(b"."):
                yield index, rest, value


def _xattr_size(xattrs: Xattrs) -> int:
    size = sum(
        -(-(XATTR_ENTRY.size + len(rest) + len(value)) // 4) * 4 for _, rest, value in _xattr_items(xattrs)
    )
    return size + XATTR_HEADER.size if size else 0


class _Fill:
    """Writes the planned inodes and directories into the buffer."""

    def __init__(self, plan: _Plan, data: bytearray, first_data_block: int, layer_blocks: list[int]) -> None:
        self._plan = plan
        self._data = data
        self._next_block = first_data_block
        self._layer_blocks = layer_blocks

    def run(self) -> None:
        for number, node in enumerate(self._plan.order, 1):
            if isinstance(node, Directory):
                self._with_data(node, number, self._directory(node))
            elif stat.S_ISLNK(node.mode):
                self._with_data(node, number, node.target)
            elif stat.S_ISREG(node.mode):
                block = NO_BLOCK
                if node.size:
                    block = self._layer_blocks[node.layer] + (node.offset >> BLOCK_BITS)
                self._inode(node, number, FLAT_PLAIN, node.size, block)
            else:
                self._inode(node, number, FLAT_PLAIN, 0, node.rdev)

    def _with_data(self, node: _Node, number: int, content: bytes) -> None:
        length = len(content)
        tail = length % BLOCK
        size = self._plan.inode_size(node, length) + (_xattr_size(node.xattrs) if node.xattrs else 0)
        first = node.nid * INODE_ALIGN + size
        inline = bool(tail) and _fits_inline(node.nid * INODE_ALIGN, size + tail)
        whole = length // BLOCK if inline else _blocks(length)
        block = NO_BLOCK
        if whole:
            block = self._next_block
            self._next_block += whole
            full = min(length, whole * BLOCK)
            self._data[block * BLOCK : block * BLOCK + full] = content[:full]
        self._inode(node, number, FLAT_INLINE if inline else FLAT_PLAIN, length, block)
        if inline:
            self._data[first : first + tail] = content[length - tail :]

    def _inode(self, node: _Node, number: int, layout: int, size: int, address: int) -> None:
        at = node.nid * INODE_ALIGN
        xattrs = _encode_xattrs(node.xattrs) if node.xattrs else b""
        count = (len(xattrs) - XATTR_HEADER.size) // 4 + 1 if xattrs else 0
        if self._plan.inode_size(node, size) == COMPACT_INODE.size:
            COMPACT_INODE.pack_into(
                self._data,
                at,
                layout << 1,
                count,
                node.mode,
                node.links,
                size,
                0,
                address,
                number,
                node.uid,
                node.gid,
                0,
            )
            at += COMPACT_INODE.size
        else:
            EXTENDED_INODE.pack_into(
                self._data,
                at,
                layout << 1 | 1,
                count,
                node.mode,
                0,
                size,
                address,
                number,
                node.uid,
                node.gid,
                node.mtime % (1 << 64),
                node.mtime_nanoseconds,
                node.links,
            )
            at += EXTENDED_INODE.size
        if xattrs:
            self._data[at : at + len(xattrs)] = xattrs

    def _directory(self, directory: Directory) -> bytes:
        content = bytearray()
        children = directory.children
        for names in _directory_blocks(directory):
            if content:
                content += bytes(-len(content) % BLOCK)
            position = len(names) * DIRENT.size
            for name in names:
                child: _Node
                if name == b".":
                    child = directory
                elif name == b"..":
                    child = directory.parent or directory
                else:
                    child = children[name]
                content += DIRENT.pack(child.nid, position, FILE_TYPE[child.mode & 0o170000], 0)
                position += len(name)
            content += b"".join(names)
        return bytes(content)


def _encode_xattrs(xattrs: Xattrs) -> bytes:
    body = bytearray()
    for index, rest, value in _xattr_items(xattrs):
        body += XATTR_ENTRY.pack(len(rest), index, len(value))
        body += rest
        body += value
        body += bytes(-len(body) % 4)
    return XATTR_HEADER.pack(0, 0) + body if body else b""


def _seal(data: bytearray, plan: _Plan, blocks: int) -> bytes:
    epoch, nanoseconds = plan.epoch

    def superblock(uuid: bytes) -> None:
        SUPERBLOCK.pack_into(
            data,
            SUPERBLOCK_OFFSET,
            MAGIC,
            0,
            COMPAT_CHECKSUM | COMPAT_MTIME,
            BLOCK_BITS,
            0,
            plan.root.nid,
            len(plan.order),
            epoch % (1 << 64),
            nanoseconds,
            blocks,
            0,
            0,
            uuid,
            bytes(16),
            0,
            0,
            0,
            0,
            0,
            0,
        )

    superblock(bytes(16))
    uuid = bytearray(hashlib.sha256(data).digest()[:16])
    uuid[6] = uuid[6] & 0x0F | 0x80  # version 8 (RFC 9562): made of what its maker likes, here the content
    uuid[8] = uuid[8] & 0x3F | 0x80
    superblock(bytes(uuid))
    data[SUPERBLOCK_OFFSET + 4 : SUPERBLOCK_OFFSET + 8] = superblock_checksum(data, BLOCK).to_bytes(
        4, "little"
    )
    return bytes(uuid)
