"""What an image must look like: layers described in plain terms, packed with ``tarfile``, and unpacked by a model.

The model is not written like the package's tree: it keeps a flat dictionary of paths, and carries out a layer's
whiteouts before all of its other members. It knows no symbolic links as parents and no ``..``.
"""

from __future__ import annotations

import io
import stat
import tarfile
from dataclasses import dataclass, field, replace

TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    0: tarfile.LNKTYPE,
}


class UnpackError(Exception):
    pass


@dataclass(eq=False)
class Member:
    path: bytes
    kind: int = stat.S_IFREG
    permissions: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    content: bytes = b""
    target: bytes = b""
    rdev: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


def pack(members: list[Member], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of ``members``. Times below a second, attributes and large ids need PAX."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for member in members:
            info = tarfile.TarInfo(member.path.decode("utf-8", "surrogateescape"))
            info.type = TYPES[member.kind]
            info.mode = member.permissions
            info.uid, info.gid = member.uid, member.gid
            info.mtime = member.mtime_ns // 10**9
            info.size = len(member.content)
            info.linkname = member.target.decode("utf-8", "surrogateescape")
            info.devmajor, info.devminor = member.rdev
            if form == tarfile.PAX_FORMAT:
                if member.mtime_ns % 10**9:
                    sign = "-" if member.mtime_ns < 0 else ""
                    whole, part = divmod(abs(member.mtime_ns), 10**9)
                    info.pax_headers["mtime"] = f"{sign}{whole}.{part:09}"
                for name, value in member.xattrs.items():
                    key = "SCHILY.xattr." + name.decode("utf-8", "surrogateescape")
                    info.pax_headers[key] = value.decode("utf-8", "surrogateescape")
            tar.addfile(info, io.BytesIO(member.content))
    return out.getvalue()


def unpack(layers: list[list[Member]]) -> dict[bytes, Member]:
    """Path to member after all layers; hard links are the same object. ``UnpackError`` where an unpacker fails."""
    tree: dict[bytes, Member] = {b"": Member(b"", stat.S_IFDIR, 0o755)}
    for members in layers:
        for member in members:
            head, _, name = member.path.rstrip(b"/").rpartition(b"/")
            if name == b".wh..wh..opq":
                below = head + b"/" if head else b""
                tree = {path: node for path, node in tree.items() if not path or not path.startswith(below)}
            elif name.startswith(b".wh."):
                remove(tree, (head + b"/" if head else b"") + name[4:])
        for member in members:
            if not member.path.rstrip(b"/").rpartition(b"/")[2].startswith(b".wh."):
                place(tree, member)
    return tree


def remove(tree: dict[bytes, Member], path: bytes) -> None:
    for other in [other for other in tree if other == path or other.startswith(path + b"/")]:
        del tree[other]


def place(tree: dict[bytes, Member], member: Member) -> None:
    path = member.path.rstrip(b"/")
    parts = path.split(b"/")
    for depth in range(1, len(parts)):
        parent = b"/".join(parts[:depth])
        if parent not in tree:
            tree[parent] = Member(parent, stat.S_IFDIR, 0o755)
        elif tree[parent].kind != stat.S_IFDIR:
            raise UnpackError(path)
    if member.kind == 0:
        source = tree.get(member.target)
        if source is None or source.kind == stat.S_IFDIR or member.target == path:
            raise UnpackError(path)
        remove(tree, path)
        tree[path] = source
        return
    keeps = member.kind == stat.S_IFDIR and path in tree and tree[path].kind == stat.S_IFDIR
    if not keeps:
        remove(tree, path)
    tree[path] = replace(member, path=path)
