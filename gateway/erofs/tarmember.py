"""One member's header block and its extensions into an ``Entry``.

Like ``tarheader``, everything here raises ``ValueError`` with the bare reason; the walker adds member and
offset.
"""

from __future__ import annotations

import stat
from typing import Final

from gateway.erofs import tarheader
from gateway.erofs.entry import HARD_LINK, MAX_BYTES, PATH_MAX, Entry, shown
from gateway.erofs.ondisk import NAME_MAX

_KINDS: Final = {
    b"0": stat.S_IFREG,
    b"\0": stat.S_IFREG,
    b"7": stat.S_IFREG,
    b"S": stat.S_IFREG,
    b"1": HARD_LINK,
    b"2": stat.S_IFLNK,
    b"3": stat.S_IFCHR,
    b"4": stat.S_IFBLK,
    b"5": stat.S_IFDIR,
    b"6": stat.S_IFIFO,
}
_LINKS: Final = (HARD_LINK, stat.S_IFLNK)
_DEVICES: Final = (stat.S_IFCHR, stat.S_IFBLK)
_XATTR: Final = b"SCHILY.xattr."
_ID_MAX: Final = 0xFFFFFFFE  # the last 32-bit number means "no id"
_TIME_MAX: Final = 1 << 62
_XATTR_VALUE_MAX: Final = 0xFFFF
_XATTRS_MAX: Final = 0x3FFFF  # an EROFS inode counts them in 16 bits of 4 bytes each
_MAJOR_MAX: Final = 0xFFF
_MINOR_MAX: Final = 0xFFFFF

Pax = dict[bytes, bytes]


def member_path(block: bytes, long_name: bytes | None, pax: Pax) -> bytes:
    """The member's name: PAX before GNU before the header's own fields."""
    return pax.get(b"GNU.sparse.name") or pax.get(b"path") or long_name or _short_name(block)


def decode(block: bytes, path: bytes, long_target: bytes | None, pax: Pax, offset: int) -> tuple[Entry, int]:
    """The member whose header is ``block``, and how many bytes of payload follow the header.

    Of a sparse member it is the header alone: its size is what the tar holds of it. ``offset`` is where the
    payload starts in the tar. ``pax`` are the global and local records, merged.
    """
    flag = block[156:157]
    kind = _KINDS.get(flag)
    if kind is None:
        raise ValueError(f"members of type {flag!r} are not read")
    size = tarheader.number(block[124:136])
    if pax.get(b"size"):
        size = tarheader.decimal(pax[b"size"])
    # v7 had no other way to say directory than a slash at the end; all later types are what they say.
    if flag == b"\0" and path.endswith(b"/"):
        kind = stat.S_IFDIR
    # Only regular files have a payload: like GNU tar and Go's reader, ignore the size of all others.
    payload = size if kind == stat.S_IFREG else 0
    if not 0 <= payload <= MAX_BYTES:
        raise ValueError(f"a size of {payload} bytes (0 to {MAX_BYTES} are possible)")
    size = payload
    target = b""
    if kind in _LINKS:
        target = pax.get(b"linkpath") or long_target or tarheader.cut(block[157:257])
        if not target:
            raise ValueError("a link without a target")
    _check_names(path, target)
    uid, gid = _owner(block, pax)
    mtime, nanoseconds = _time(block, pax)
    major, minor = _device_number(block) if kind in _DEVICES else (0, 0)
    entry = Entry(
        path,
        kind,
        # A symbolic link has this mode on Linux, whatever its header says.
        0o777 if kind == stat.S_IFLNK else tarheader.number(block[100:108]) & 0o7777,
        uid,
        gid,
        mtime,
        nanoseconds,
        size,
        offset if size else 0,
        target,
        major,
        minor,
        _xattrs(pax) if pax else (),
    )
    return entry, payload


def _short_name(block: bytes) -> bytes:
    """The name from the header's own fields, with ustar's prefix."""
    name = tarheader.cut(block[:100])
    if not block[345]:
        return name
    magic = block[257:263]
    if magic == tarheader.POSIX_MAGIC:
        return tarheader.cut(block[345:500]) + b"/" + name
    if magic == tarheader.GNU_MAGIC:
        # The old GNU format has the access time here. A prefix, which some writers put, is no number.
        try:
            tarheader.number(block[345:357])
        except ValueError as error:
            raise ValueError("a GNU header has a name prefix, which the format does not know") from error
    return name


def _check_names(path: bytes, target: bytes) -> None:
    if not path:
        raise ValueError("the name is empty")
    if len(path) > PATH_MAX or len(target) > PATH_MAX:
        raise ValueError(f"a name of more than {PATH_MAX} bytes")
    if b"\0" in path or b"\0" in target:
        raise ValueError("a name contains a NUL byte")


def _owner(block: bytes, pax: Pax) -> tuple[int, int]:
    uid = tarheader.decimal(pax[b"uid"]) if pax.get(b"uid") else tarheader.number(block[108:116])
    gid = tarheader.decimal(pax[b"gid"]) if pax.get(b"gid") else tarheader.number(block[116:124])
    if not (0 <= uid <= _ID_MAX and 0 <= gid <= _ID_MAX):
        raise ValueError(f"owner {uid}:{gid} is out of range")
    return uid, gid


def _time(block: bytes, pax: Pax) -> tuple[int, int]:
    if pax.get(b"mtime"):
        seconds, nanoseconds = tarheader.timestamp(pax[b"mtime"])
    else:
        seconds, nanoseconds = tarheader.number(block[136:148]), 0
    if not -_TIME_MAX < seconds < _TIME_MAX:
        raise ValueError(f"modification time {seconds} is out of range")
    return seconds, nanoseconds


def _device_number(block: bytes) -> tuple[int, int]:
    major, minor = tarheader.number(block[329:337]), tarheader.number(block[337:345])
    if not (0 <= major <= _MAJOR_MAX and 0 <= minor <= _MINOR_MAX):
        raise ValueError(f"device number {major}:{minor} is out of range")
    return major, minor


def _xattrs(pax: Pax) -> tuple[tuple[bytes, bytes], ...]:
    found: dict[bytes, bytes] = {}
    for keyword, value in pax.items():
        if keyword.startswith(_XATTR):
            name = keyword[len(_XATTR) :]
            if b"%" in name:  # GNU tar escapes the two bytes that a keyword cannot hold
                name = name.replace(b"%3D", b"=").replace(b"%25", b"%")
            if not 0 < len(name) <= NAME_MAX or len(value) > _XATTR_VALUE_MAX or b"\0" in name:
                raise ValueError(f"extended attribute {shown(name)} cannot be stored")
            found[name] = value
    if sum(len(name) + len(value) + 8 for name, value in found.items()) > _XATTRS_MAX:
        raise ValueError(f"extended attributes of more than {_XATTRS_MAX} bytes")
    return tuple(sorted(found.items()))
