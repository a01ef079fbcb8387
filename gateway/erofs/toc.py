r"""A layer's table of contents: what is left of a tar once its payload is passed over.

File format, little-endian::

    8 bytes   magic and version, b"BGTOC\0\0\1"
    records   one per member, in the tar's order: fixed part, path, target, extended attributes,
              pieces
    trailer   members u64, tar size u64, CRC-32 of everything before it u32, 4 bytes b"COT\1"

A record's fixed part (48 bytes): st_mode u16, extended attributes u16, path length u16, target length u16,
uid u32, gid u32, mtime i64, mtime nanoseconds u32, size u64, payload offset in 512-byte blocks u32, device
number u32, pieces u32. Each attribute: name length u16, value length u32, name, value. Each piece of a sparse
file: offset u64, length u64. The same members give the same bytes everywhere.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Final

from gateway.erofs.entry import KINDS, Entry
from gateway.erofs.ondisk import BLOCK, decode_rdev, encode_rdev
from gateway.errors import StorageError

MAGIC: Final = b"BGTOC\0\0\1"
_END: Final = b"COT\1"
_RECORD: Final = struct.Struct("<HHHHIIqIQIII")
_PIECE: Final = struct.Struct("<QQ")
_XATTR: Final = struct.Struct("<HI")
_NUMBERS: Final = struct.Struct("<QQ")
_CHECK: Final = struct.Struct("<I4s")
_TRAILER_SIZE: Final = _NUMBERS.size + _CHECK.size
_WRITE_BYTES: Final = 1 << 18


class TocWriter:
    """Encodes members as they come: ``add`` is a sink for a ``TarWalker``.

    ``write`` receives the file's bytes in order, in pieces of about 256 KiB.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._pending = bytearray(MAGIC)
        self._crc = 0
        self.members = 0

    def add(self, entry: Entry) -> None:
        pending = self._pending
        rdev = encode_rdev(entry.major, entry.minor) if entry.major or entry.minor else 0
        pending += _RECORD.pack(
            entry.kind | entry.permissions,
            len(entry.xattrs),
            len(entry.path),
            len(entry.target),
            entry.uid,
            entry.gid,
            entry.mtime,
            entry.mtime_nanoseconds,
            entry.size,
            entry.offset // BLOCK,
            rdev,
            len(entry.pieces),
        )
        pending += entry.path
        pending += entry.target
        for name, value in entry.xattrs:
            pending += _XATTR.pack(len(name), len(value))
            pending += name
            pending += value
        for piece in entry.pieces:
            pending += _PIECE.pack(*piece)
        self.members += 1
        if len(pending) >= _WRITE_BYTES:
            self._flush()

    def finish(self, tar_size: int) -> None:
        """Write the trailer. ``tar_size`` is the decompressed tar's length in bytes."""
        self._flush()
        numbers = _NUMBERS.pack(self.members, tar_size)
        self._write(numbers + _CHECK.pack(zlib.crc32(numbers, self._crc), _END))

    def _flush(self) -> None:
        piece = bytes(self._pending)
        self._pending.clear()
        self._crc = zlib.crc32(piece, self._crc)
        self._write(piece)


class Toc:
    """A decoded table of contents: iterate it (as often as needed) for its entries, which are decoded lazily.

    ``tar_size`` is the decompressed tar's length in bytes, ``len()`` the number of members.
    """

    def __init__(self, buffer: bytes | memoryview, members: int, tar_size: int) -> None:
        self._buffer = buffer
        self._members = members
        self.tar_size = tar_size

    def __len__(self) -> int:
        return self._members

    def __iter__(self) -> Iterator[Entry]:
        buffer = self._buffer
        at = len(MAGIC)
        unpack = _RECORD.unpack_from
        for _ in range(self._members):
            fields = unpack(buffer, at)
            mode, attributes, path_length, target_length, uid, gid, mtime, nsec, size, block, rdev, count = (
                fields
            )
            at += _RECORD.size
            path = bytes(buffer[at : at + path_length])
            at += path_length
            target = bytes(buffer[at : at + target_length]) if target_length else b""
            at += target_length
            xattrs = []
            for _ in range(attributes):
                name_length, value_length = _XATTR.unpack_from(buffer, at)
                at += _XATTR.size
                middle = at + name_length
                xattrs.append((bytes(buffer[at:middle]), bytes(buffer[middle : middle + value_length])))
                at = middle + value_length
            pieces = []
            for _ in range(count):
                pieces.append(_PIECE.unpack_from(buffer, at))
                at += _PIECE.size
            major, minor = decode_rdev(rdev) if rdev else (0, 0)
            kind = stat.S_IFMT(mode)
            if kind not in KINDS:
                raise StorageError(f"table of contents: member type {kind:#o} is unknown")
            permissions = stat.S_IMODE(mode)
            head = path, kind, permissions, uid, gid, mtime, nsec, size, block * BLOCK, target, major, minor
            yield Entry(*head, tuple(xattrs), tuple(pieces))
        if at != len(buffer) - _TRAILER_SIZE:
            raise StorageError(f"table of contents: members end at byte {at} instead of at the trailer")


def read_toc(buffer: bytes | memoryview) -> Toc:
    """Open an encoded table of contents. ``StorageError`` when it is damaged or of another version."""
    if len(buffer) < len(MAGIC) + _TRAILER_SIZE or bytes(buffer[: len(MAGIC)]) != MAGIC:
        raise StorageError("not a table of contents of this version; register the device again")
    body = len(buffer) - _TRAILER_SIZE
    members, tar_size = _NUMBERS.unpack_from(buffer, body)
    checked = body + _NUMBERS.size
    crc, end = _CHECK.unpack_from(buffer, checked)
    if end != _END or zlib.crc32(memoryview(buffer)[:checked]) != crc:
        raise StorageError("a table of contents is damaged; register the device again")
    return Toc(buffer, members, tar_size)
