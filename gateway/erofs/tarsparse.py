"""Sparse members: where the pieces of a file with holes lie that a tar holds back to back.

Dialects: old GNU (type ``S``: map in the header and in blocks that follow it), PAX 0.1 (``GNU.sparse.map``)
and PAX 1.0 (map at the start of the payload). Sources: GNU tar's manual, "Storing Sparse Files". PAX 0.0, of
unreleased tar versions, and star's own are refused.

A device can only show what is aligned: a hole begins and ends at a multiple of 512 bytes of the file, or the
member is refused. ``ValueError`` has the reason.
"""

from __future__ import annotations

from typing import Final

from gateway.erofs import tarheader
from gateway.erofs.entry import MAX_BYTES
from gateway.erofs.ondisk import BLOCK

PIECES_MAX: Final = 1 << 16
"""Pieces of one file."""

_PAIR: Final = 24
_OLD_GNU_MAP: Final = range(386, 386 + 4 * _PAIR, _PAIR)
_EXTENSION_MAP: Final = range(0, 21 * _PAIR, _PAIR)
_REFUSED: Final = (b"GNU.sparse.offset", b"GNU.sparse.numbytes", b"SCHILY.realsize")
_NUMBER_LINE_MAX: Final = 21  # digits of 2**64 and a newline

Pieces = tuple[tuple[int, int], ...]
"""(offset in the file, length) in order, in bytes."""


class SparseMap:
    """Collects one member's map. While ``wants_block``, the next 512 bytes of the tar belong to it.

    ``in_payload`` says whether those count as payload.
    """

    def __init__(self, block: bytes, pax: dict[bytes, bytes]) -> None:
        self.in_payload = False
        self.wants_block = False
        self._pieces: list[tuple[int, int]] = []
        self._text = bytearray()
        self._lines = 0
        self._count: int | None = None
        if block[156:157] == b"S":
            self.size = tarheader.number(block[483:495])
            self._pairs(block, _OLD_GNU_MAP)
            self.wants_block = block[482] != 0
        elif b"GNU.sparse.map" in pax:
            self.size = tarheader.decimal(pax.get(b"GNU.sparse.size", b""))
            numbers = [tarheader.decimal(number) for number in pax[b"GNU.sparse.map"].split(b",")]
            self._pieces = list(zip(numbers[::2], numbers[1::2], strict=True))
        elif pax.get(b"GNU.sparse.major") == b"1" and pax.get(b"GNU.sparse.minor") == b"0":
            self.size = tarheader.decimal(pax.get(b"GNU.sparse.realsize", b""))
            self.in_payload = self.wants_block = True
        else:
            raise ValueError("a sparse file of a dialect that is not read; pack the layer without --sparse")

    def feed(self, block: bytes) -> None:
        """Take the next block of the map."""
        if not self.in_payload:
            self._pairs(block, _EXTENSION_MAP)
            self.wants_block = block[504] != 0
            return
        self._text += block
        self._lines += block.count(b"\n")
        if self._count is None:
            first, newline, _ = block.partition(b"\n")
            if not newline:
                raise ValueError("its sparse map has no count")
            self._count = tarheader.decimal(first)
            if self._count > PIECES_MAX:
                raise ValueError(f"a sparse file of {self._count} pieces (at most {PIECES_MAX})")
        if self._lines > 2 * self._count:
            lines = bytes(self._text).split(b"\n", 2 * self._count + 1)
            numbers = [tarheader.decimal(line) for line in lines[1 : 2 * self._count + 1]]
            self._pieces = list(zip(numbers[::2], numbers[1::2], strict=True))
            self.wants_block = False
        elif len(self._text) > (2 * self._count + 1) * _NUMBER_LINE_MAX:
            raise ValueError(f"its sparse map has no end after {self._count} pieces")

    def finish(self, stored: int) -> Pieces:
        """The checked map of a member of which ``stored`` bytes of data lie in the tar. Never empty."""
        if not 0 <= self.size <= MAX_BYTES:
            raise ValueError(f"a size of {self.size} bytes (0 to {MAX_BYTES} are possible)")
        end = total = 0
        for offset, length in self._pieces:
            if offset < end or length < 0 or offset + length > self.size:
                raise ValueError("its sparse map has pieces outside of the file or over each other")
            end = offset + length
            total += length
            if length and (offset % BLOCK or (length % BLOCK and end != self.size)):
                raise ValueError(f"a sparse file with a hole that is not aligned to {BLOCK} bytes")
        if total != stored:
            raise ValueError(f"its sparse map has {total} bytes, its payload {stored}")
        pieces = tuple((offset, length) for offset, length in self._pieces if length)
        return pieces or ((self.size, 0),)

    def _pairs(self, block: bytes, places: range) -> None:
        for at in places:
            if not block[at]:
                return
            self._pieces.append(
                (tarheader.number(block[at : at + 12]), tarheader.number(block[at + 12 : at + 24]))
            )
        if len(self._pieces) > PIECES_MAX:
            raise ValueError(f"a sparse file of {len(self._pieces)} pieces (at most {PIECES_MAX})")


def is_sparse(block: bytes, pax: dict[bytes, bytes]) -> bool:
    """Whether the member is a sparse file. ``ValueError`` for a dialect that is not read."""
    if any(keyword in pax for keyword in _REFUSED):
        raise ValueError("a sparse file of a dialect that is not read; pack the layer without --sparse")
    return block[156:157] == b"S" or b"GNU.sparse.map" in pax or b"GNU.sparse.major" in pax
