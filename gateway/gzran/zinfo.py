"""zinfo: the table of gzip checkpoints that erofs-utils and SOCI write. PURE codec.

Little-endian, packed, without a magic number::

    0               u32  have: number of checkpoints
    4               u64  span_size: uncompressed bytes asked for between checkpoints
    12 + 32785*i    u64  in: compressed offset of the first whole byte
                +8  u64  out: uncompressed offset
               +16  u8   bits 0..7: bits of byte in-1 that are still unused (its top bits)
               +17       window: the 32 KiB before out, oldest first

The length alone tells the version. Version 2 holds ``have`` records; version 1 leaves out the first one,
which stands right behind the gzip header. The first window means nothing: files exist in which it
is uninitialised memory, so it reads as zeros here and is written as zeros.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from typing import NamedTuple

from gateway.errors import InvalidZinfo

Buffer = bytes | bytearray | memoryview

WINDOW_BYTES = 32 * 1024
HEADER_BYTES = 12
RECORD_BYTES = 8 + 8 + 1 + WINDOW_BYTES
ZERO_WINDOW = bytes(WINDOW_BYTES)

#: Limits on a table that somebody hands in.
MAX_CHECKPOINTS = 65_536
MAX_SPAN_BYTES = 64 * 1024 * 1024
#: A span is fetched in one piece. Incompressible data grows by a thousandth; only endless empty blocks or
#: members come anywhere near twice the most that a span may hold.
MAX_SPAN_COMPRESSED_BYTES = 2 * MAX_SPAN_BYTES
#: Deflate cannot expand further: one bit each for a length and a distance code make 258 bytes.
MAX_EXPANSION = 1032
#: ``in`` of the checkpoint that version 1 leaves out, as long as the blob's header is unknown.
PLAIN_GZIP_HEADER_BYTES = 10

_HEADER = struct.Struct("<IQ")
_POSITION = struct.Struct("<QQB")
_RECORD = struct.Struct(f"<QQB{WINDOW_BYTES}x")
_MAX_BITS = 7


class Checkpoint(NamedTuple):
    """A place at which inflating can begin; its window is kept apart.

    ``in_offset``: compressed offset of the first whole byte. ``out_offset``: uncompressed offset.
    ``bits``: how many top bits of byte ``in_offset - 1`` come before it.
    """

    in_offset: int
    out_offset: int
    bits: int

    @property
    def bit_position(self) -> int:
        """Compressed offset in bits."""
        return self.in_offset * 8 - self.bits


class ZinfoTable:
    """Checkpoints as columns, and their windows where they lie in the file's buffer.

    Attributes: ``version`` (1 or 2), ``span_size`` (bytes), ``in_offsets`` and ``out_offsets``
    (``array('Q')``), ``bits`` (one byte each). Windows are not copied: the buffer has to outlive the table.
    """

    __slots__ = ("_records", "_unstored", "bits", "in_offsets", "out_offsets", "span_size", "version")

    def __init__(
        self,
        *,
        version: int,
        span_size: int,
        in_offsets: array[int],
        out_offsets: array[int],
        bits: bytes,
        records: memoryview,
    ) -> None:
        self.version = version
        self.span_size = span_size
        self.in_offsets = in_offsets
        self.out_offsets = out_offsets
        self.bits = bits
        self._records = records
        self._unstored = 1 if version == 1 else 0

    def __len__(self) -> int:
        return len(self.bits)

    @property
    def n(self) -> int:
        """Number of checkpoints, which is the number of spans."""
        return len(self.bits)

    def checkpoint(self, index: int) -> Checkpoint:
        """Checkpoint ``index`` (0-based)."""
        return Checkpoint(self.in_offsets[index], self.out_offsets[index], self.bits[index])

    def __iter__(self) -> Iterator[Checkpoint]:
        return map(Checkpoint, self.in_offsets, self.out_offsets, self.bits)

    def window(self, index: int) -> bytes | memoryview:
        """The 32,768 bytes before checkpoint ``index``, not copied; zeros for the first."""
        if not 0 <= index < len(self.bits):
            raise IndexError(index)
        if index == 0:
            return ZERO_WINDOW
        start = (index - self._unstored) * RECORD_BYTES + _POSITION.size
        return self._records[start : start + WINDOW_BYTES]


def parse(
    buffer: Buffer,
    *,
    gzip_header_length: int | None = None,
    blob_size: int | None = None,
    max_checkpoints: int = MAX_CHECKPOINTS,
    max_span_bytes: int = MAX_SPAN_BYTES,
) -> ZinfoTable:
    """Read a zinfo file, version 1 or 2, from any buffer (``bytes``, or a ``memoryview`` of an ``mmap``).

    ``gzip_header_length``: length of the blob's own first gzip header, which version 1 does not tell
    (``None``: unknown, the usual 10 bytes are assumed). ``blob_size``: length of the compressed blob
    (``None``: unknown, what depends on it is not checked). Raises ``InvalidZinfo`` naming the checkpoint
    and the rule that it breaks. A table that passes is well-formed, not proved: that takes a pass
    over the blob.
    """
    view = memoryview(buffer).cast("B")
    version, have, span_size = _read_header(view, max_checkpoints)
    in_offsets, out_offsets, bits = array("Q"), array("Q"), bytearray()
    if version == 1:
        in_offsets.append(PLAIN_GZIP_HEADER_BYTES if gzip_header_length is None else gzip_header_length)
        out_offsets.append(0)
        bits.append(0)
    records = view[HEADER_BYTES:]
    for in_offset, out_offset, unused in _RECORD.iter_unpack(records):
        in_offsets.append(in_offset)
        out_offsets.append(out_offset)
        bits.append(unused)
    if len(bits) != have:
        raise InvalidZinfo(f"zinfo holds {len(bits)} checkpoints and announces {have}")
    table = ZinfoTable(
        version=version,
        span_size=span_size,
        in_offsets=in_offsets,
        out_offsets=out_offsets,
        bits=bytes(bits),
        records=records,
    )
    _check(table, blob_size, max_span_bytes)
    return table


def _read_header(view: memoryview, max_checkpoints: int) -> tuple[int, int, int]:
    """Return (version, have, span_size); nothing is allocated before the length is known to fit."""
    if len(view) < HEADER_BYTES:
        raise InvalidZinfo(f"zinfo is {len(view)} bytes long, its header alone takes {HEADER_BYTES}")
    have, span_size = _HEADER.unpack_from(view)
    if not 1 <= have <= max_checkpoints:
        raise InvalidZinfo(f"zinfo announces {have} checkpoints, allowed are 1 to {max_checkpoints}")
    if len(view) == HEADER_BYTES + RECORD_BYTES * have:
        return 2, have, span_size
    if len(view) == HEADER_BYTES + RECORD_BYTES * (have - 1):
        return 1, have, span_size
    raise InvalidZinfo(
        f"zinfo is {len(view)} bytes long; {have} checkpoints take {HEADER_BYTES + RECORD_BYTES * have} "
        f"(version 2) or {HEADER_BYTES + RECORD_BYTES * (have - 1)} (version 1)"
    )


def _check(table: ZinfoTable, blob_size: int | None, max_span_bytes: int) -> None:
    previous: Checkpoint | None = None
    for index, point in enumerate(table):
        rule = _broken_alone(point, blob_size)
        if rule is None and previous is None and point.out_offset != 0:
            rule = f"out of the first checkpoint is {point.out_offset}, not 0"
        if rule is None and previous is not None:
            rule = _broken_behind(point, previous, max_span_bytes)
        if rule is not None:
            raise InvalidZinfo(f"zinfo checkpoint {index}: {rule}")
        previous = point
    if blob_size is not None and blob_size - table.in_offsets[-1] > MAX_SPAN_COMPRESSED_BYTES:
        raise InvalidZinfo(
            f"zinfo checkpoint {len(table) - 1}: its span takes more than {MAX_SPAN_COMPRESSED_BYTES} "
            "compressed bytes"
        )


def _broken_alone(point: Checkpoint, blob_size: int | None) -> str | None:
    """The rule that a checkpoint breaks by itself."""
    if point.bits > _MAX_BITS:
        return f"bits is {point.bits}, the most is {_MAX_BITS}"
    if point.bits and not point.in_offset:
        return f"bits is {point.bits}, but no byte comes before in 0"
    if blob_size is not None and point.in_offset > blob_size:
        return f"in {point.in_offset} is behind the end of the blob ({blob_size} bytes)"
    if blob_size is not None and point.out_offset > MAX_EXPANSION * blob_size:
        return f"out {point.out_offset} is more than {MAX_EXPANSION} times the blob ({blob_size} bytes)"
    return None


def _broken_behind(point: Checkpoint, previous: Checkpoint, max_span_bytes: int) -> str | None:
    """The rule that a checkpoint breaks by standing behind ``previous``."""
    span_bytes = point.out_offset - previous.out_offset
    if point.in_offset < previous.in_offset:
        return f"in {point.in_offset} is before the previous one's {previous.in_offset}, it must not decrease"
    if span_bytes < 0:
        return (
            f"out {point.out_offset} is before the previous one's {previous.out_offset}, it must not decrease"
        )
    if point.bit_position <= previous.bit_position:
        # Equal `out` is legal (an empty member or block lies between), but even that takes some bits.
        return f"in {point.in_offset}, bits {point.bits} is no later bit of the blob than the previous one"
    if span_bytes > max_span_bytes:
        return f"the span before it holds {span_bytes} bytes, the most is {max_span_bytes}"
    if point.in_offset - previous.in_offset > MAX_SPAN_COMPRESSED_BYTES:
        return f"the span before it takes more than {MAX_SPAN_COMPRESSED_BYTES} compressed bytes"
    return None


def header(have: int, span_size: int) -> bytes:
    """The 12 bytes at the head of a version 2 file; write them again when the last ``have`` is known."""
    return _HEADER.pack(have, span_size)


def record(checkpoint: Checkpoint, window: Buffer) -> bytes:
    """The 32,785 bytes of one checkpoint; ``window`` is 32,768 bytes."""
    if len(window) != WINDOW_BYTES:
        raise ValueError(f"a window has {WINDOW_BYTES} bytes, not {len(window)}")
    position = _POSITION.pack(checkpoint.in_offset, checkpoint.out_offset, checkpoint.bits)
    return b"".join((position, window))


def encode(table: ZinfoTable) -> bytes:
    """The whole table as a version 2 file."""
    records = (record(point, table.window(index)) for index, point in enumerate(table))
    return header(len(table), table.span_size) + b"".join(records)
