"""A push parser for one layer's decompressed tar: chunks of any size in, members with payload offsets out.

Theory of operation. The walker is always in one of four states: *header* (the next 512 bytes are a header),
*record* (collecting the payload of a header that describes the next one: GNU long names, PAX), *skip* (payload and
padding, which are counted and never looked at), *ended* (two zero blocks were seen; whatever follows is padding).
Memory is bounded by one header, one record of at most 1 MiB per kind, and the global PAX header.

Read: v7, ustar, GNU (long names, base-256), PAX (path, linkpath, size, uid, gid, mtime, SCHILY.xattr.*, global
headers). Refused by name: sparse members of every dialect (their holes cannot be mapped to contiguous payload),
multi-volume and unknown types, and whatever would have to be guessed at.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import Final

from gateway.erofs import tarheader
from gateway.erofs.entry import HARD_LINK, MAX_BYTES, PATH_MAX, Entry, shown
from gateway.erofs.ondisk import NAME_MAX
from gateway.erofs.tarheader import HEADER
from gateway.errors import InvalidLayer

RECORD_LIMIT: Final = 1 << 20
"""Bytes of one long name or PAX header, and of all global PAX records together."""

_KINDS: Final = {
    b"0": stat.S_IFREG,
    b"\0": stat.S_IFREG,
    b"7": stat.S_IFREG,
    b"1": HARD_LINK,
    b"2": stat.S_IFLNK,
    b"3": stat.S_IFCHR,
    b"4": stat.S_IFBLK,
    b"5": stat.S_IFDIR,
    b"6": stat.S_IFIFO,
}
_RECORDS: Final = frozenset((b"L", b"K", b"x", b"g"))
_ZERO_BLOCK: Final = bytes(HEADER)
_XATTR: Final = b"SCHILY.xattr."
_SPARSE: Final = (b"GNU.sparse.", b"SCHILY.realsize")
_ID_MAX: Final = 0xFFFFFFFE  # the last 32-bit number means "no id"
_TIME_MAX: Final = 1 << 62
_XATTR_VALUE_MAX: Final = 0xFFFF
_XATTRS_MAX: Final = 0x3FFFF  # an EROFS inode counts them in 16 bits of 4 bytes each
_MAJOR_MAX: Final = 0xFFF
_MINOR_MAX: Final = 0xFFFFF


class TarWalker:
    """Feed it a tar from its first byte; ``sink`` is called with each ``Entry`` as soon as its header is complete.

    ``InvalidLayer`` names the member and the offset of its header. A walker that raised is of no further use.
    """

    def __init__(self, sink: Callable[[Entry], object]) -> None:
        self._sink = sink
        self._position = 0
        self._skip = 0
        self._padding = 0
        self._partial = bytearray()
        self._record = bytearray()
        self._record_kind = b""
        self._record_size = 0
        self._record_left = 0
        self._header_offset = 0
        self._zero_blocks = 0
        self._ended = False
        self._name = b""
        self._long_name: bytes | None = None
        self._long_target: bytes | None = None
        self._local: dict[bytes, bytes] | None = None
        self._global: dict[bytes, bytes] = {}

    @property
    def position(self) -> int:
        """Bytes fed so far; after ``finish``, the size of the tar."""
        return self._position

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the tar, any number of them. Nothing of ``data`` is kept."""
        view = memoryview(data)
        length = len(view)
        start = self._position
        at = 0
        while at < length and not self._ended:
            if self._skip:
                step = min(self._skip, length - at)
                self._skip -= step
                at += step
            elif self._record_left:
                step = min(self._record_left, length - at)
                self._record += view[at : at + step]
                self._record_left -= step
                at += step
                if not self._record_left:
                    self._end_record()
            elif not self._partial and length - at >= HEADER:
                self._header_offset = start + at
                at += HEADER
                self._header(bytes(view[at - HEADER : at]))
            else:
                if not self._partial:
                    self._header_offset = start + at
                step = min(HEADER - len(self._partial), length - at)
                self._partial += view[at : at + step]
                at += step
                if len(self._partial) == HEADER:
                    block = bytes(self._partial)
                    self._partial.clear()
                    self._header(block)
        self._position = start + length

    def finish(self) -> int:
        """Say that the tar ends here. Returns its size in bytes; raises when it ends inside of a member."""
        if self._ended:
            return self._position
        if self._partial:
            self._header_offset = self._position - len(self._partial)
            raise self._refuse("the archive ends inside of a header")
        # The padding after the last payload may be missing: the device pads each tar to 512 bytes anyway.
        if self._record_left or self._skip > self._padding:
            raise self._refuse("the archive ends inside of its payload")
        if self._long_name is not None or self._long_target is not None or self._local is not None:
            raise self._refuse("the archive ends after an extension header")
        return self._position

    def _refuse(self, reason: str) -> InvalidLayer:
        name = shown(self._name) if self._name else "the first member"
        return InvalidLayer(f"tar member {name} (header at byte {self._header_offset}): {reason}")

    def _header(self, block: bytes) -> None:
        if block == _ZERO_BLOCK:
            self._zero_blocks += 1
            if self._zero_blocks == 2:  # noqa: PLR2004 - POSIX: two zero blocks end an archive
                if self._long_name is not None or self._long_target is not None or self._local is not None:
                    raise self._refuse("the archive ends after an extension header")
                self._ended = True
            return
        if self._zero_blocks:
            raise self._refuse("a lone zero block stands before more members")
        previous = self._name
        try:
            tarheader.verify_checksum(block)
        except ValueError as error:
            after = f" after {shown(previous)}" if previous else ""
            raise InvalidLayer(f"no tar header at byte {self._header_offset}{after}: {error}") from error
        self._name = self._long_name if self._long_name is not None else tarheader.cut(block[:100])
        kind = block[156:157]
        try:
            size = tarheader.number(block[124:136])
            if kind in _RECORDS:
                self._begin_record(kind, size)
            else:
                self._member(block, kind, size)
        except ValueError as error:
            raise self._refuse(str(error)) from error

    def _begin_record(self, kind: bytes, size: int) -> None:
        if not 0 < size <= RECORD_LIMIT:
            raise ValueError(f"an extension header of {size} bytes (1 to {RECORD_LIMIT} are read)")
        self._record_kind = kind
        # Records are padded like payloads; the padding is collected too and cut off at the end.
        self._record_size = size
        self._record_left = size + -size % HEADER

    def _end_record(self) -> None:
        payload = bytes(self._record[: self._record_size])
        self._record.clear()
        kind = self._record_kind
        try:
            if kind == b"L":
                self._long_name = tarheader.cut(payload)
            elif kind == b"K":
                self._long_target = tarheader.cut(payload)
            elif kind == b"x":
                self._local = tarheader.pax_records(payload)
            else:
                self._global |= tarheader.pax_records(payload)
                if sum(len(key) + len(value) for key, value in self._global.items()) > RECORD_LIMIT:
                    raise ValueError(f"global headers of more than {RECORD_LIMIT} bytes")
        except ValueError as error:
            raise self._refuse(str(error)) from error

    def _member(self, block: bytes, flag: bytes, size: int) -> None:
        path = self._long_name
        if path is None:
            path = _short_name(block)
        target = self._long_target if self._long_target is not None else tarheader.cut(block[157:257])
        mtime = tarheader.number(block[136:148])
        uid = tarheader.number(block[108:116])
        gid = tarheader.number(block[116:124])
        nanoseconds = 0
        xattrs: tuple[tuple[bytes, bytes], ...] = ()
        if self._local is not None or self._global:
            pax = {**self._global, **(self._local or {})}
            path = pax.get(b"path") or path
            self._name = path
            target = pax.get(b"linkpath") or target
            if b"\0" in path or b"\0" in target:
                raise ValueError("a name contains a NUL byte")
            for keyword in pax:
                if keyword.startswith(_SPARSE):
                    raise ValueError("a sparse file cannot be read in place; pack the layer without --sparse")
            if pax.get(b"size"):
                size = tarheader.decimal(pax[b"size"])
            if pax.get(b"uid"):
                uid = tarheader.decimal(pax[b"uid"])
            if pax.get(b"gid"):
                gid = tarheader.decimal(pax[b"gid"])
            if pax.get(b"mtime"):
                mtime, nanoseconds = tarheader.timestamp(pax[b"mtime"])
            xattrs = _xattrs(pax)
        self._name = path
        self._long_name = self._long_target = self._local = None

        kind = _KINDS.get(flag)
        if kind is None:
            if flag == b"S":
                raise ValueError("a sparse file cannot be read in place; pack the layer without --sparse")
            raise ValueError(f"members of type {flag!r} are not read")
        # A slash at the end of a regular file's name makes it a directory (v7 had no other way to say so).
        if kind == stat.S_IFREG and path.endswith(b"/"):
            kind = stat.S_IFDIR
            self._pass_over(size)
            size = 0
        _check(path, target, kind, uid, gid, mtime)
        major = minor = offset = 0
        if kind == stat.S_IFREG:
            offset = self._header_offset + HEADER if size else 0
            self._pass_over(size)
        else:
            # Only regular files have a payload: like Go's and Python's readers, ignore the size of all others.
            size = 0
            if kind in (stat.S_IFCHR, stat.S_IFBLK):
                major = tarheader.number(block[329:337])
                minor = tarheader.number(block[337:345])
                if not (0 <= major <= _MAJOR_MAX and 0 <= minor <= _MINOR_MAX):
                    raise ValueError(f"device number {major}:{minor} is out of range")
            if kind not in (HARD_LINK, stat.S_IFLNK):
                target = b""
        permissions = tarheader.number(block[100:108]) & 0o7777
        if kind == stat.S_IFREG or not target:
            target = b""
        self._sink(
            Entry(
                path,
                kind,
                permissions,
                uid,
                gid,
                mtime,
                nanoseconds,
                size,
                offset,
                target,
                major,
                minor,
                xattrs,
            )
        )

    def _pass_over(self, size: int) -> None:
        if not 0 <= size <= MAX_BYTES:
            raise ValueError(f"a size of {size} bytes (0 to {MAX_BYTES} are possible)")
        self._padding = -size % HEADER
        self._skip = size + self._padding


def _short_name(block: bytes) -> bytes:
    """The name from the header's own fields, with ustar's prefix."""
    name = tarheader.cut(block[:100])
    if not block[345]:
        return name
    magic = block[257:263]
    if magic == tarheader.POSIX_MAGIC:
        return tarheader.cut(block[345:500]) + b"/" + name
    if magic == tarheader.GNU_MAGIC:
        # The old GNU format has the access time here. Some writers put a prefix: not to be told apart safely
        # unless it is no number.
        try:
            tarheader.number(block[345:357])
        except ValueError as error:
            raise ValueError("a GNU header has a name prefix, which the format does not know") from error
    return name


def _xattrs(pax: dict[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
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


def _check(path: bytes, target: bytes, kind: int, uid: int, gid: int, mtime: int) -> None:
    if not path:
        raise ValueError("the name is empty")
    if len(path) > PATH_MAX or len(target) > PATH_MAX:
        raise ValueError(f"a name of more than {PATH_MAX} bytes")
    if kind in (HARD_LINK, stat.S_IFLNK) and not target:
        raise ValueError("a link without a target")
    if not (0 <= uid <= _ID_MAX and 0 <= gid <= _ID_MAX):
        raise ValueError(f"owner {uid}:{gid} is out of range")
    if not -_TIME_MAX < mtime < _TIME_MAX:
        raise ValueError(f"modification time {mtime} is out of range")
