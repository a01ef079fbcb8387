"""The span table of one layer: where each span lies, compressed and decompressed, and its digests.

A span is what is fetched, verified, decoded and cached as one. For gzip it runs from one checkpoint to the next;
for bytes that are served as they are (a plain tar, a raw blob) it is a fixed piece of the blob.

On disk the table is ``count`` records of 104 bytes, little-endian:

====== ==== ===========================================================
offset size field
====== ==== ===========================================================
0      8    ``in_start``: first byte to fetch (one before the checkpoint's ``in`` when ``bits > 0``)
8      8    ``in_stop``
16     8    ``out_start``
24     8    ``out_stop``
32     1    ``bits``
33     7    zero
40     32   sha256 of ``[in_start, in_stop)`` of the blob
72     32   sha256 of ``[out_start, out_stop)`` of the decoded layer
====== ==== ===========================================================
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

RECORD = struct.Struct("<QQQQB7x32s32s")
UNKNOWN = bytes(32)
"""Stands for a digest that no pass has computed yet."""


class Span(NamedTuple):
    """One span; offsets in bytes, half-open."""

    in_start: int
    in_stop: int
    out_start: int
    out_stop: int
    bits: int
    in_sha256: bytes
    out_sha256: bytes

    @property
    def in_length(self) -> int:
        """Bytes to fetch."""
        return self.in_stop - self.in_start

    @property
    def out_length(self) -> int:
        """Bytes after decoding."""
        return self.out_stop - self.out_start

    @property
    def proven(self) -> bool:
        """Whether a full pass has recorded its digests."""
        return self.out_sha256 != UNKNOWN

    def pack(self) -> bytes:
        """The span's record."""
        return RECORD.pack(*self)


class SpanTable:
    """All spans of a layer in order, contiguous from 0 to ``size`` decoded bytes."""

    def __init__(self, records: bytes) -> None:
        if len(records) % RECORD.size:
            raise ValueError(f"a span table of {len(records)} bytes is not a multiple of {RECORD.size}")
        self._records = records
        self.count = len(records) // RECORD.size
        self._out_starts = array("Q")
        expected = 0
        for row in RECORD.iter_unpack(records):
            if row[2] != expected or row[3] < row[2] or row[1] < row[0]:
                raise ValueError(f"span {len(self._out_starts)} does not follow its predecessor")
            self._out_starts.append(row[2])
            expected = row[3]
        self.size = expected

    @classmethod
    def of(cls, spans: Iterable[Span]) -> SpanTable:
        """A table of these spans."""
        return cls(b"".join(span.pack() for span in spans))

    @property
    def records(self) -> bytes:
        """The table as it lies on disk."""
        return self._records

    def span(self, index: int) -> Span:
        """Span ``index``, 0-based."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        return Span._make(RECORD.unpack_from(self._records, index * RECORD.size))

    def find(self, offset: int) -> int:
        """Index of the span that holds decoded byte ``offset``; of equal starts (empty spans) the last."""
        if not 0 <= offset < self.size:
            raise IndexError(offset)
        return bisect_right(self._out_starts, offset) - 1

    def locate(self, offset: int) -> tuple[int, int, int]:
        """``(index, out_start, out_stop)`` of the span that holds decoded byte ``offset``."""
        index = self.find(offset)
        stop = self._out_starts[index + 1] if index + 1 < self.count else self.size
        return index, self._out_starts[index], stop

    def bounds(self, index: int) -> tuple[int, int]:
        """``(out_start, out_stop)`` of a span, without unpacking the rest of it."""
        start = self._out_starts[index]
        stop = self._out_starts[index + 1] if index + 1 < self.count else self.size
        return start, stop
