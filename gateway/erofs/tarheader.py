"""Fields of a tar header block and the records of a PAX header: bytes in, values out.

Sources: POSIX.1-2017 pax (ustar interchange format, extended header), GNU tar's manual (base-256 numbers, old
GNU format). Every function raises ``ValueError`` saying what is wrong; the walker knows where and in which
member.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

HEADER: Final = 512
POSIX_MAGIC: Final = b"ustar\0"
GNU_MAGIC: Final = b"ustar "
_BASE_256: Final = 0x80
_BASE_256_NEGATIVE: Final = 0x40
_NEWLINE: Final = 0x0A


def cut(field: bytes) -> bytes:
    """A text field up to its NUL, if it has one."""
    end = field.find(0)
    return field if end < 0 else field[:end]


@lru_cache(maxsize=4096)
def number(field: bytes) -> int:
    """An octal or base-256 field. Spaces and NULs around octal digits mean nothing; an empty field is 0.

    Modes, owners and times repeat from member to member, hence the cache.
    """
    if field[0] & _BASE_256:
        # The first bit is the marker, the second the sign of a two's complement number.
        if field[0] & _BASE_256_NEGATIVE:
            return int.from_bytes(field, "big", signed=True)
        return int.from_bytes(bytes((field[0] & ~_BASE_256,)) + field[1:], "big")
    digits = cut(field.strip(b" \0"))
    if not digits:
        return 0
    if not digits.isdigit():
        raise ValueError(f"{digits!r} is not an octal number")
    return int(digits, 8)


def verify_checksum(block: bytes) -> None:
    """Compare the header's checksum with its bytes, as unsigned or (old implementations) as signed ones."""
    expected = number(block[148:156])
    total = sum(block) - sum(block[148:156]) + 8 * 0x20
    if total == expected:
        return
    high = sum(byte >> 7 for byte in block[:148] + block[156:])
    if total - 256 * high != expected:
        raise ValueError(f"header checksum is {expected}, its bytes give {total}")


def decimal(text: bytes) -> int:
    """A PAX record's whole number, which has no sign."""
    if not text.isdigit():
        raise ValueError(f"{text[:40]!r} is not a decimal number")
    if len(text) > 20:  # noqa: PLR2004 - as many digits as 2**64 has
        raise ValueError(f"a number of {len(text)} digits is too large")
    return int(text)


def timestamp(text: bytes) -> tuple[int, int]:
    """A PAX time (``[-]seconds[.fraction]``) as seconds and 0..999,999,999 nanoseconds, rounded down."""
    negative = text.startswith(b"-")
    whole, _, fraction = text[negative:].partition(b".")
    if fraction and not fraction.isdigit():
        raise ValueError(f"{text[:40]!r} is not a time")
    seconds = decimal(whole)
    nanoseconds = int(fraction[:9].ljust(9, b"0"))
    if not negative:
        return seconds, nanoseconds
    if fraction[9:].strip(b"0"):
        nanoseconds += 1
    return divmod(-(seconds * 1_000_000_000 + nanoseconds), 1_000_000_000)


def pax_records(payload: bytes) -> dict[bytes, bytes]:
    r"""The ``length keyword=value\n`` records of an extended header. Later records win."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(payload):
        space = payload.find(b" ", at, at + 8)
        digits = payload[at:space] if space > 0 else b""
        if not digits.isdigit():
            raise ValueError("an extended header's record has no length")
        end = at + int(digits)
        if not space < end <= len(payload) or payload[end - 1] != _NEWLINE:
            raise ValueError("an extended header's record has a wrong length")
        keyword, equals, value = payload[space + 1 : end - 1].partition(b"=")
        if not equals or not keyword:
            raise ValueError("an extended header's record has no keyword")
        records[keyword] = value
        at = end
    return records
