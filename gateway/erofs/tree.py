"""Layers applied to each other: what an unpacker would have on disk after the last one, held in memory.

Layers come base first. ``.wh.NAME`` removes NAME and ``.wh..wh..opq`` empties its directory, both of what
*lower* layers put there, wherever in its own layer the whiteout stands (OCI image-spec, layer.md,
"Whiteouts"). A directory over a directory keeps the children and takes the new attributes; anything else
replaces. Hard links share an inode, also across layers.

Names are resolved inside of the image's root: entry names are cleaned lexically first (``a/../b`` is ``b``, a
leading ``/`` or ``..`` goes nowhere), then their parents are followed like in a chroot, symbolic links
included. Nothing can point out of the tree, for there is nothing outside of it.

About 0.5 KB of memory a file. Nothing here recurses, so depth is bounded by memory alone.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import Final

from gateway.erofs.chunks import chunk_table_size
from gateway.erofs.entry import HARD_LINK, PATH_MAX, Entry, shown
from gateway.erofs.ondisk import NAME_MAX, encode_rdev
from gateway.erofs.xattrs import Xattrs
from gateway.errors import InvalidLayer

WHITEOUT: Final = b".wh."
OPAQUE: Final = b".wh..wh..opq"
_AUFS: Final = b".wh..wh."
MAX_LINKS: Final = 40
MAX_LINKS_BYTES: Final = 2 * PATH_MAX
"""Symbolic links followed for one name (as many as in Linux), and the bytes of their targets together."""

MEMORY_LIMIT: Final = 3 << 30
"""Bytes that a tree may hold: some six million files."""

_FILE_COST: Final = 512
_DIRECTORY_COST: Final = 768
_NAME_COST: Final = 128


class Inode:
    """Everything but a directory.

    ``layer`` and ``offset`` say in which tar and at which byte of it the payload starts. ``target`` is a
    symbolic link's; ``rdev`` the encoded device number. ``nid``, ``links``: the writer's.
    """

    __slots__ = (
        "gid",
        "layer",
        "links",
        "mode",
        "mtime",
        "mtime_nanoseconds",
        "nid",
        "offset",
        "pieces",
        "rdev",
        "size",
        "target",
        "uid",
        "xattrs",
    )

    def __init__(self, entry: Entry, layer: int) -> None:
        self.mode = entry.kind | entry.permissions
        self.uid = entry.uid
        self.gid = entry.gid
        self.mtime = entry.mtime
        self.mtime_nanoseconds = entry.mtime_nanoseconds
        self.xattrs: Xattrs = entry.xattrs
        self.layer = layer
        self.offset = entry.offset
        self.size = entry.size
        self.pieces = entry.pieces
        self.target = entry.target
        self.rdev = encode_rdev(entry.major, entry.minor) if entry.major or entry.minor else 0
        self.nid = 0
        self.links = 0


class Directory:
    """A directory: its attributes and its children by name. The root (``parent`` None) is its own parent.

    ``fresh`` are the names that the layer ``fresh_layer`` put here (True) or only reached through (False):
    whiteouts of that layer do not remove them. ``pruned_layer`` is the last one that removed all others.
    """

    __slots__ = (
        "children",
        "fresh",
        "fresh_layer",
        "gid",
        "links",
        "mode",
        "mtime",
        "mtime_nanoseconds",
        "nid",
        "parent",
        "pruned_layer",
        "uid",
        "xattrs",
    )

    def __init__(self, parent: Directory | None) -> None:
        self.take_attributes(_MADE)
        self.parent = self if parent is None else parent
        self.children: dict[bytes, Inode | Directory] = {}
        self.fresh: dict[bytes, bool] = {}
        self.fresh_layer = -1
        self.pruned_layer = -1
        self.nid = 0
        self.links = 0

    def take_attributes(self, entry: Entry) -> None:
        """Become what a directory entry says, children aside."""
        self.mode = stat.S_IFDIR | entry.permissions
        self.uid = entry.uid
        self.gid = entry.gid
        self.mtime = entry.mtime
        self.mtime_nanoseconds = entry.mtime_nanoseconds
        self.xattrs: Xattrs = entry.xattrs

    def touch(self, name: bytes, layer: int, *, declared: bool) -> None:
        """Remember that ``layer`` put ``name`` here, or (not ``declared``) something below it."""
        if self.fresh_layer != layer:
            self.fresh_layer = layer
            self.fresh = {}
        if declared or name not in self.fresh:
            self.fresh[name] = declared

    def keep_fresh(self, name: bytes, layer: int) -> Directory | None:
        """Remove ``name`` unless ``layer`` put it here. Returns a directory that stays, to be cleaned below.

        A directory that the layer only reached through is made anew: its attributes were the hidden one's.
        """
        if self.fresh_layer != layer or name not in self.fresh:
            del self.children[name]
            return None
        child = self.children[name]
        if not isinstance(child, Directory):
            return None
        if not self.fresh[name]:
            child.take_attributes(_MADE)
        return child


_MADE: Final = Entry(b"", stat.S_IFDIR, 0o755)
"""Attributes of a directory that no layer describes: root's, at the epoch."""


class _RefusedError(Exception):
    """A reason to refuse an entry; ``Tree.apply`` adds which one it was."""


class Tree:
    """The image's root. ``apply`` layers, base first, then hand it to the writer.

    ``memory_limit_bytes`` bounds what the layers may make it hold, counted generously: a few hundred bytes of
    tar can describe thousands of directories, and compress a thousandfold.
    """

    def __init__(self, memory_limit_bytes: int = MEMORY_LIMIT) -> None:
        self.root = Directory(None)
        self._layer = 0
        self._lowest = True
        self._memory_limit = memory_limit_bytes
        self._memory_left = memory_limit_bytes
        # Members of one directory mostly follow each other: the last parent, while nothing was replaced.
        self._last_path: bytes | None = None
        self._last_parent = self.root

    def apply(self, layer_index: int, entries: Iterable[Entry]) -> None:
        """Unpack one layer over the ones before. ``layer_index`` counts from 0 and only grows.

        Raises ``InvalidLayer`` naming the layer and the entry; the tree is of no further use then.
        """
        self._layer = layer_index
        self._last_path = None
        for entry in entries:
            try:
                self._apply(entry)
            except _RefusedError as error:
                raise InvalidLayer(f"layer {layer_index}, entry {shown(entry.path)}: {error}") from error
        self._lowest = False

    def _apply(self, entry: Entry) -> None:
        head, _, name = entry.path.rpartition(b"/")
        if not name or name in (b".", b"..") or b".." in head:
            parts = _clean(entry.path)
            if not parts:
                self._apply_root(entry)
                return
            name = parts.pop()
            head = b"/".join(parts)
        if len(name) > NAME_MAX:
            raise _RefusedError(f"a name of {len(name)} bytes (at most {NAME_MAX})")
        if WHITEOUT in entry.path and self._whiteout(head, name):
            return
        if head == self._last_path:
            parent = self._last_parent
        else:
            parent = self._descend(head)
            self._last_path, self._last_parent = head, parent
        self._place(parent, name, entry)

    def _apply_root(self, entry: Entry) -> None:
        if entry.kind != stat.S_IFDIR:
            raise _RefusedError("the image's root can only be a directory")
        self.root.take_attributes(entry)

    def _place(self, parent: Directory, name: bytes, entry: Entry) -> None:
        children = parent.children
        before = children.get(name)
        self._touch(parent, name, declared=True)
        if entry.kind == stat.S_IFDIR:
            if not isinstance(before, Directory):
                if before is not None:
                    self._last_path = None
                before = self._make(parent, name)
            self._charge(sum(len(value) for _, value in entry.xattrs))
            before.take_attributes(entry)
            return
        if before is not None:
            self._last_path = None
        if entry.kind == HARD_LINK:
            self._charge(_NAME_COST)
            children[name] = self._link_target(parent, name, entry.target)
        else:
            self._charge(_FILE_COST + len(entry.target) + sum(len(value) for _, value in entry.xattrs))
            if entry.pieces:
                self._charge(_NAME_COST * len(entry.pieces) + chunk_table_size(entry.size, entry.pieces))
            children[name] = Inode(entry, self._layer)

    def _link_target(self, link_parent: Directory, link_name: bytes, target: bytes) -> Inode:
        parts = _clean(target)
        if not parts:
            raise _RefusedError("a hard link to a directory")
        name = parts.pop()
        parent = self._find(parts)
        if parent is link_parent and name == link_name:
            raise _RefusedError("a hard link to itself")
        inode = None if parent is None else parent.children.get(name)
        if inode is None:
            raise _RefusedError(f"a hard link to {shown(target)}, which does not exist")
        if isinstance(inode, Directory):
            raise _RefusedError("a hard link to a directory")
        return inode

    def _whiteout(self, head: bytes, name: bytes) -> bool:
        """Carry out a whiteout; False when the entry is none."""
        parts = _clean(head)
        if any(part.startswith(_AUFS) for part in parts) or (name.startswith(_AUFS) and name != OPAQUE):
            return True  # bookkeeping of AUFS, which no unpacker keeps
        if any(part.startswith(WHITEOUT) for part in parts):
            raise _RefusedError("a whiteout as parent directory")
        if not name.startswith(WHITEOUT):
            return False
        hidden = name[len(WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise _RefusedError("a whiteout that names nothing")
        if self._lowest:
            return True
        directory = self._find(parts)
        self._last_path = None
        if directory is None:
            return True
        if name == OPAQUE:
            self._prune(directory)
        elif hidden in directory.children:
            child = directory.keep_fresh(hidden, self._layer)
            if child is not None:
                self._prune(child)
        return True

    def _prune(self, top: Directory) -> None:
        """Remove everything below ``top`` that the current layer did not put there.

        Once for each directory and layer: whatever comes later in this layer is fresh.
        """
        pending = [top]
        while pending:
            directory = pending.pop()
            if directory.pruned_layer == self._layer:
                continue
            directory.pruned_layer = self._layer
            for name in list(directory.children):
                child = directory.keep_fresh(name, self._layer)
                if child is not None:
                    pending.append(child)

    def _descend(self, path: bytes) -> Directory:
        """The directory at ``path``; what is missing of it is made."""
        return self._resolve(_clean(path), make=True) or self.root

    def _find(self, parts: list[bytes]) -> Directory | None:
        """The directory at ``parts``, or None."""
        return self._resolve(parts, make=False)

    def _resolve(self, parts: list[bytes], *, make: bool) -> Directory | None:
        """Follow ``parts`` like a chroot would. What is missing is made, or else the result is None."""
        current = self.root
        pending = parts[::-1]
        followed: list[bytes] = []
        while pending:
            name = pending.pop()
            if name == b"..":
                current = current.parent
            if name in (b"", b".", b".."):
                continue
            child = current.children.get(name)
            if child is None and make:
                if pending and pending[-1] == b"..":
                    pending.pop()  # a link's way through a missing directory and back again
                    continue
                child = self._make(current, name)
            if isinstance(child, Directory):
                if make:
                    self._touch(current, name, declared=False)
                current = child
            elif child is not None and stat.S_ISLNK(child.mode):
                followed.append(child.target)
                _check_links(followed)
                current = self.root if child.target.startswith(b"/") else current
                pending += child.target.split(b"/")[::-1]
            elif make:
                raise _RefusedError(f"its parent {shown(name)} is not a directory")
            else:
                return None
        return current

    def _make(self, parent: Directory, name: bytes) -> Directory:
        if len(name) > NAME_MAX:
            raise _RefusedError(f"a directory name of {len(name)} bytes (at most {NAME_MAX})")
        if name.startswith(WHITEOUT):
            raise _RefusedError("a whiteout as parent directory")
        self._charge(_DIRECTORY_COST)
        made = parent.children[name] = Directory(parent)
        return made

    def _touch(self, parent: Directory, name: bytes, *, declared: bool) -> None:
        if not self._lowest:  # nothing lies below the lowest layer that its whiteouts could hide
            parent.touch(name, self._layer, declared=declared)

    def _charge(self, cost: int) -> None:
        self._memory_left -= cost
        if self._memory_left < 0:
            raise _RefusedError(f"the image's files take more than {self._memory_limit >> 20} MiB of memory")


def _check_links(followed: list[bytes]) -> None:
    if len(followed) > MAX_LINKS or sum(map(len, followed)) > MAX_LINKS_BYTES:
        raise _RefusedError(f"more than {MAX_LINKS} symbolic links, or long ones, on its way")


def _clean(path: bytes) -> list[bytes]:
    """Components of ``path`` without ``.`` and ``..``, which are resolved lexically and end at the root."""
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            if parts:
                parts.pop()
        elif part and part != b".":
            parts.append(part)
    return parts
