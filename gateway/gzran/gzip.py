"""The header of a gzip member (RFC 1952 section 2.3). PURE."""

from __future__ import annotations

import zlib

from gateway.errors import CorruptStream

#: Longest header that is read. FEXTRA takes 64 KiB at most; FNAME and FCOMMENT have no limit of their own.
MAX_HEADER_BYTES = 128 * 1024
#: CRC-32 and ISIZE behind a member's deflate stream.
TRAILER_BYTES = 8

_FIXED_BYTES = 10
_FHCRC, _FEXTRA, _FNAME, _FCOMMENT, _RESERVED = 0x02, 0x04, 0x08, 0x10, 0xE0


def gzip_header_length(prefix: bytes | memoryview) -> int | None:
    """Length in bytes of the gzip header that ``prefix`` begins with.

    Returns ``None`` when ``prefix`` ends inside of the header. Raises ``CorruptStream`` when it is no
    gzip header, or one longer than ``MAX_HEADER_BYTES``.
    """
    head = bytes(prefix[:MAX_HEADER_BYTES])
    if not b"\x1f\x8b\x08".startswith(head[:3]):
        raise CorruptStream(f"not a gzip member: it begins with {head[:3].hex(' ')}, not 1f 8b 08")
    if len(head) < _FIXED_BYTES:
        return None
    end = _optional_fields_end(head, head[3])
    if end is None and len(prefix) >= MAX_HEADER_BYTES:
        raise CorruptStream(f"the gzip header is longer than {MAX_HEADER_BYTES} bytes")
    return end


def _optional_fields_end(head: bytes, flags: int) -> int | None:
    if flags & _RESERVED:
        raise CorruptStream(f"reserved flags are set in the gzip header: {flags:#04x}")
    end = _FIXED_BYTES
    if flags & _FEXTRA:
        if len(head) < end + 2:
            return None
        end += 2 + int.from_bytes(head[end : end + 2], "little")
    for flag in (_FNAME, _FCOMMENT):
        if flags & flag:
            terminator = head.find(0, end)
            if terminator < 0:
                return None
            end = terminator + 1
    if flags & _FHCRC:
        stored = head[end : end + 2]
        if len(stored) == 2 and int.from_bytes(stored, "little") != zlib.crc32(head[:end]) & 0xFFFF:  # noqa: PLR2004 - CRC16
            raise CorruptStream("the gzip header's CRC16 does not match")
        end += 2
    return end if end <= len(head) else None
