"""Layers in, the EROFS metadata of their hybrid device out.

The device, in blocks of 512 bytes: superblock; inodes (``layout``); data of directories and long symbolic
links; then the tars, one after the other. Metadata and tars are padded with zeros to multiples of 4096 bytes
(``ALIGN_BYTES``), so each begins at one. Regular files are flat: their start block
is their payload's place in a tar. No device table is needed to read that, nor an incompatible feature. Sparse
files alone are chunk-based: a table of block numbers follows the inode.

No clock and no random number goes in: the same layers give the same bytes, and the UUID is made of those
bytes.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.erofs import xattrs
from gateway.erofs.chunks import chunk_bits, chunk_table
from gateway.erofs.entry import MAX_BYTES, Entry
from gateway.erofs.layout import Layout, Node, blocks, directory_content, fits_inline
from gateway.erofs.ondisk import (
    ALIGN_BYTES,
    BLOCK,
    BLOCK_BITS,
    CHUNK_BASED,
    COMPACT_INODE,
    COMPAT_CHECKSUM,
    COMPAT_MTIME,
    EXTENDED_INODE,
    FLAT_INLINE,
    FLAT_PLAIN,
    INCOMPAT_CHUNKED_FILE,
    INODE_ALIGN,
    MAGIC,
    NO_BLOCK,
    SUPERBLOCK,
    SUPERBLOCK_OFFSET,
    aligned,
    superblock_checksum,
)
from gateway.erofs.tree import MEMORY_LIMIT, Directory, Inode, Tree
from gateway.errors import InvalidLayer

_U64: Final = 1 << 64


@dataclass(frozen=True, slots=True)
class LayerToc:
    """One layer: its members in order (read once), and the size of its decompressed tar in bytes."""

    entries: Iterable[Entry]
    tar_size: int


@dataclass(frozen=True, slots=True)
class Metadata:
    """A finished image. ``data`` is the metadata, padded to a multiple of 4096 bytes.

    ``layer_offsets`` are where each tar starts in the device and ``device_size`` where the last one ends,
    padded, in bytes. ``files`` counts regular files (a hard link once), ``specials`` device nodes and fifos,
    and ``content_bytes`` sums the sizes of the files.
    """

    data: bytearray
    layer_offsets: tuple[int, ...]
    device_size: int
    uuid: bytes
    files: int
    directories: int
    symlinks: int
    specials: int
    content_bytes: int
    block_size: int = BLOCK


def build(layers: Sequence[LayerToc], *, memory_limit_bytes: int = MEMORY_LIMIT) -> Metadata:
    """Apply ``layers``, base first, and write their metadata.

    Memory is about half a kilobyte a file and bounded by ``memory_limit_bytes`` (the result aside). Raises
    ``InvalidLayer`` for what cannot be applied or represented, naming the layer and the entry.
    """
    tree = Tree(memory_limit_bytes)
    for index, layer in enumerate(layers):
        tree.apply(index, layer.entries)
    return write(tree, [layer.tar_size for layer in layers])


def write(tree: Tree, tar_sizes: Sequence[int]) -> Metadata:
    """The metadata of ``tree``, whose payloads lie in tars of ``tar_sizes`` bytes. A tree serves once."""
    layout = Layout(tree.root)
    inode_blocks = blocks(layout.end)
    metadata_size = aligned((inode_blocks + layout.data_blocks) * BLOCK)
    offsets = []
    device_size = metadata_size
    for size in tar_sizes:
        offsets.append(device_size)
        device_size += aligned(size)
    if device_size >= MAX_BYTES:
        limit = MAX_BYTES - ALIGN_BYTES
        raise InvalidLayer(f"the device would have {device_size} bytes; {limit} can be addressed")
    data = bytearray(metadata_size)
    _Filler(layout, data, inode_blocks, [offset // BLOCK for offset in offsets]).fill()
    uuid = _seal(data, layout, device_size // BLOCK)
    kinds = layout.kinds
    return Metadata(
        data,
        tuple(offsets),
        device_size,
        uuid,
        kinds[stat.S_IFREG],
        kinds[stat.S_IFDIR],
        kinds[stat.S_IFLNK],
        kinds[stat.S_IFCHR] + kinds[stat.S_IFBLK] + kinds[stat.S_IFIFO],
        layout.content_bytes,
    )


class _Filler:
    """Writes the planned inodes and their data into one buffer."""

    def __init__(self, layout: Layout, data: bytearray, data_block: int, layer_blocks: list[int]) -> None:
        self._layout = layout
        self._data = data
        self._data_block = data_block
        self._layer_blocks = layer_blocks

    def fill(self) -> None:
        for number, node in enumerate(self._layout.order, 1):
            if isinstance(node, Directory):
                self._with_data(node, number, directory_content(node))
            elif stat.S_ISLNK(node.mode):
                self._with_data(node, number, node.target)
            elif node.pieces:
                self._sparse(node, number)
            elif stat.S_ISREG(node.mode):
                start = (
                    self._layer_blocks[node.layer] + (node.offset >> BLOCK_BITS) if node.size else NO_BLOCK
                )
                self._inode(node, number, FLAT_PLAIN, node.size, start)
            else:
                self._inode(node, number, FLAT_PLAIN, 0, node.rdev)

    def _with_data(self, node: Node, number: int, content: bytes) -> None:
        length = len(content)
        tail = length % BLOCK
        at = node.nid * INODE_ALIGN
        size = self._layout.inode_size(node, length) + xattrs.encoded_size(node.xattrs)
        inline = tail > 0 and fits_inline(at, size + tail)
        whole = length - tail if inline else length
        start = NO_BLOCK
        if whole:
            start = self._data_block
            self._data_block += blocks(whole)
            self._data[start * BLOCK : start * BLOCK + whole] = content[:whole]
        if inline:
            self._data[at + size : at + size + tail] = content[whole:]
        self._inode(node, number, FLAT_INLINE if inline else FLAT_PLAIN, length, start)

    def _sparse(self, node: Inode, number: int) -> None:
        start = self._layer_blocks[node.layer] + (node.offset >> BLOCK_BITS)
        table = chunk_table(node.size, node.pieces, start)
        at = node.nid * INODE_ALIGN + self._layout.inode_size(node, 0) + xattrs.encoded_size(node.xattrs)
        self._data[at : at + len(table)] = table
        self._inode(node, number, CHUNK_BASED, node.size, chunk_bits(node.size, node.pieces))

    def _inode(self, node: Node, number: int, layout: int, size: int, address: int) -> None:
        at = node.nid * INODE_ALIGN
        attributes = xattrs.encode(node.xattrs)
        count = xattrs.count_field(attributes)
        inode_size = self._layout.inode_size(node, size)
        owner = node.uid, node.gid
        if inode_size == COMPACT_INODE.size:
            head = layout << 1, count, node.mode, node.links
            COMPACT_INODE.pack_into(self._data, at, *head, size, 0, address, number, *owner, 0)
        else:
            head = layout << 1 | 1, count, node.mode, 0
            time = node.mtime % _U64, node.mtime_nanoseconds
            EXTENDED_INODE.pack_into(self._data, at, *head, size, address, number, *owner, *time, node.links)
        if attributes:
            at += inode_size
            self._data[at : at + len(attributes)] = attributes


def _seal(data: bytearray, layout: Layout, device_blocks: int) -> bytes:
    """Write the superblock; returns the UUID."""
    epoch, nanoseconds = layout.epoch
    features = COMPAT_CHECKSUM | COMPAT_MTIME
    inodes = len(layout.order)

    def superblock(uuid: bytes) -> None:
        head = MAGIC, 0, features, BLOCK_BITS, 0, layout.root.nid, inodes, epoch % _U64, nanoseconds
        places = device_blocks, 0, 0
        incompatible_and_rest = INCOMPAT_CHUNKED_FILE if layout.sparse else 0, 0, 0, 0, 0, 0
        SUPERBLOCK.pack_into(data, SUPERBLOCK_OFFSET, *head, *places, uuid, bytes(16), *incompatible_and_rest)

    superblock(bytes(16))
    uuid = bytearray(hashlib.sha256(data).digest()[:16])
    # RFC 9562: version 8 (made of what its maker likes), variant 10.
    uuid[6] = uuid[6] & 0x0F | 0x80
    uuid[8] = uuid[8] & 0x3F | 0x80
    superblock(bytes(uuid))
    checksum = superblock_checksum(data, BLOCK)
    data[SUPERBLOCK_OFFSET + 4 : SUPERBLOCK_OFFSET + 8] = checksum.to_bytes(4, "little")
    return bytes(uuid)
