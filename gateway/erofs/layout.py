"""Where everything goes in the metadata: nids, link counts, the epoch, directory blocks.

Inodes lie one after the other in the order of a walk from the root, a directory's children side by side, so
that listing it reads few blocks. An inode never crosses a block; a directory or symbolic link whose last
piece fits into the inode's block has it there (*inline tail*), all other data goes to blocks of its own
behind the inodes.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterator
from typing import Final

from gateway.erofs import xattrs
from gateway.erofs.chunks import chunk_table_size
from gateway.erofs.ondisk import (
    BLOCK,
    COMPACT_INODE,
    DIRENT,
    EXTENDED_INODE,
    FILE_TYPE,
    INODE_ALIGN,
    SUPERBLOCK_OFFSET,
)
from gateway.erofs.tree import Directory, Inode

Node = Inode | Directory
_FIRST_INODE: Final = SUPERBLOCK_OFFSET + BLOCK
_U16: Final = 0xFFFF
_U32: Final = 0xFFFFFFFF


def blocks(size: int) -> int:
    """Blocks that ``size`` bytes take."""
    return -(-size // BLOCK)


def fits_inline(at: int, size: int) -> bool:
    """Whether ``size`` bytes of inode, attributes and tail at ``at`` lie in one block.

    The tail alone has to, for directories; the kernel's fast way to read a symbolic link wants all of it.
    """
    return at % BLOCK + size <= BLOCK


class Layout:
    """The plan. Making it numbers the tree's inodes (``nid``), counts their ``links`` and sorts all children.

    ``order`` are the inodes as they lie, ``end`` the byte after the last one, ``data_blocks`` how many blocks
    the rest takes. ``kinds`` counts inodes by ``stat.S_IF*``, ``content_bytes`` sums regular files. ``epoch``
    is the commonest (mtime, nanoseconds). ``sparse`` says whether a file has holes.
    """

    def __init__(self, root: Directory) -> None:
        self.root = root
        self.kinds: Counter[int] = Counter()
        self.content_bytes = 0
        self.data_blocks = 0
        self.sparse = False
        self.end = _FIRST_INODE
        self.order = list(_ordered(root))
        self.epoch = _commonest_time(self.order)
        for node in self.order:
            self._place(node)

    def _place(self, node: Node) -> None:
        kind = stat.S_IFMT(node.mode)
        self.kinds[kind] += 1
        length = 0
        if isinstance(node, Directory):
            length = directory_size(node)
        elif kind == stat.S_IFLNK:
            length = len(node.target)
        else:
            self.content_bytes += node.size
        size = self.inode_size(node, length)
        at = self.end
        if at % BLOCK + size > BLOCK:
            at += -at % BLOCK
        size += xattrs.encoded_size(node.xattrs)
        if isinstance(node, Inode) and node.pieces:
            size += chunk_table_size(node.size, node.pieces)
            self.sparse = True
        tail = length % BLOCK
        if tail and not fits_inline(at, size + tail):
            if size + tail <= BLOCK:
                at += -at % BLOCK
            else:
                tail = 0
        node.nid = at // INODE_ALIGN
        at += size + tail
        self.end = at + -at % INODE_ALIGN
        self.data_blocks += length // BLOCK if tail else blocks(length)

    def inode_size(self, node: Node, length: int) -> int:
        """Bytes of the inode alone: 32 when the compact form can say everything, else 64.

        ``length`` is the size of a directory's or symbolic link's data.
        """
        size = length or (node.size if isinstance(node, Inode) else 0)
        compact = (
            (node.mtime, node.mtime_nanoseconds) == self.epoch
            and node.uid <= _U16
            and node.gid <= _U16
            and node.links <= _U16
            and size <= _U32
        )
        return COMPACT_INODE.size if compact else EXTENDED_INODE.size


def _ordered(root: Directory) -> Iterator[Node]:
    root.links = 2
    yield root
    pending = [root]
    while pending:
        directory = pending.pop()
        directory.children = dict(sorted(directory.children.items()))
        below = []
        for child in directory.children.values():
            if isinstance(child, Directory):
                child.links = 2
                directory.links += 1
                below.append(child)
                yield child
            else:
                child.links += 1
                if child.links == 1:
                    yield child
        pending += reversed(below)


def _commonest_time(order: list[Node]) -> tuple[int, int]:
    """Inodes that have it need only 32 bytes. Of equally common ones the earliest."""
    times = Counter((node.mtime, node.mtime_nanoseconds) for node in order)
    most = max(times.values())
    return min(time for time, count in times.items() if count == most)


def _directory_blocks(directory: Directory) -> Iterator[list[bytes]]:
    """Names of each block: sorted bytewise, ``.`` and ``..`` among them, as many as fit."""
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


def directory_size(directory: Directory) -> int:
    """Bytes of ``directory_content(directory)``, before the children have nids."""
    packed = list(_directory_blocks(directory))
    return (len(packed) - 1) * BLOCK + sum(DIRENT.size + len(name) for name in packed[-1])


def directory_content(directory: Directory) -> bytes:
    """A directory's data: each block on its own has entries first, then their names, then zeros."""
    content = bytearray()
    for names in _directory_blocks(directory):
        content += bytes(-len(content) % BLOCK)
        position = len(names) * DIRENT.size
        for name in names:
            child: Node
            if name == b".":
                child = directory
            elif name == b"..":
                child = directory.parent
            else:
                child = directory.children[name]
            content += DIRENT.pack(child.nid, position, FILE_TYPE[stat.S_IFMT(child.mode)], 0)
            position += len(name)
        content += b"".join(names)
    return bytes(content)
