"""A gzip stream as it arrives → its bytes, its checkpoints, and the proof that it is intact.

libz does the work (through ctypes, without the GIL): in gzip mode, one member after the other, so that
it checks every CRC-32 and ISIZE itself. Output lands in one buffer::

    [ 32 KiB before it | output so far | free ]

Whatever stands 32 KiB in front of a position is that position's window, zeros included where less
output exists, so that taking a checkpoint is one copy.
"""

from __future__ import annotations

import ctypes
import enum
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from gateway.errors import CorruptStream
from gateway.gzran import libz
from gateway.gzran.placement import UNLIMITED, ByTable, EverySpan, Placement, Run
from gateway.gzran.zinfo import (
    MAX_SPAN_BYTES,
    MAX_SPAN_COMPRESSED_BYTES,
    WINDOW_BYTES,
    Checkpoint,
    ZinfoTable,
)

#: Output per call of libz. Fits the processor's cache together with what is done to it next.
_OUTPUT_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Totals:
    """What a whole gzip stream came to: bytes in, bytes out, number of members."""

    compressed_size: int
    uncompressed_size: int
    members: int


class _Where(enum.Enum):
    MEMBER = enum.auto()
    BETWEEN = enum.auto()
    PADDING = enum.auto()


class CheckpointBuilder:
    """Inflates a gzip stream once, from pieces of any size, and calls back.

    ``on_output(view)`` gets every decompressed byte in order; the view is valid during the call only.
    ``on_checkpoint(checkpoint, window)`` is called when exactly the bytes before ``checkpoint.out_offset``
    have been handed out; ``window`` is the 32,768 bytes before it (zeros for the first).
    With ``expected`` (a table that somebody handed in) checkpoints fall where it says instead of by
    ``span_size``, and each has to be a true block boundary; comparing windows is left to the caller.

    Synchronous and CPU-bound: run it on a thread. An exception from a callback leaves the builder unusable.
    """

    def __init__(
        self,
        span_size: int,
        on_output: Callable[[memoryview], object],
        on_checkpoint: Callable[[Checkpoint, bytes], object],
        expected: ZinfoTable | None = None,
    ) -> None:
        if not 1 <= span_size <= MAX_SPAN_BYTES and expected is None:
            raise ValueError(f"span size {span_size} is not in 1..{MAX_SPAN_BYTES} bytes")
        self._on_output = on_output
        self._on_checkpoint = on_checkpoint
        self._placement: Placement = EverySpan(span_size) if expected is None else ByTable(expected)
        self._last = Checkpoint(0, 0, 0)
        self._where = _Where.MEMBER
        self._members = 0
        self._in = 0

        self._buffer = bytearray(WINDOW_BYTES + _OUTPUT_BYTES)
        self._view = memoryview(self._buffer).toreadonly()
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
        self._handed_out = WINDOW_BYTES  # positions in the buffer
        self._filled = WINDOW_BYTES
        self._base = -WINDOW_BYTES  # uncompressed offset of the buffer's first byte

        self._libz = libz.load()
        self._stream = libz.ZStream()
        self._pointer = ctypes.pointer(self._stream)
        version = self._libz.zlibVersion()
        code = self._libz.inflateInit2_(self._pointer, libz.GZIP_WBITS, version, ctypes.sizeof(libz.ZStream))
        if code != libz.Z_OK:
            raise MemoryError(f"inflateInit2 failed with {code}")
        self._release = weakref.finalize(self, self._libz.inflateEnd, self._pointer)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next piece of the blob.

        Raises ``CorruptStream`` naming the compressed offset, ``InvalidZinfo`` naming the expected
        checkpoint that is none. A span that grows beyond its cap is ``InvalidLayer``: one deflate block is
        too large (``InvalidZinfo`` with ``expected``, whose last checkpoint is too early).
        """
        if not self._release.alive:
            raise ValueError("the stream was declared complete; it takes no more data")
        chunk = data if isinstance(data, bytes) else bytes(data)
        # Points into `chunk`, which this call keeps alive.
        address = ctypes.cast(ctypes.c_char_p(chunk), ctypes.c_void_p).value or 0
        position, end = 0, len(chunk)
        while position < end:
            if self._where is _Where.BETWEEN:
                self._enter(chunk[position])
            if self._where is _Where.PADDING:
                self._skip_padding(chunk, position)
                break
            position += self._inflate(address + position, min(end - position, UNLIMITED))
        self._hand_out()

    def finish(self) -> Totals:
        """Declare the blob complete and return its totals.

        Raises ``CorruptStream`` when it ends inside of a member, ``InvalidZinfo`` when an
        expected checkpoint was not met.
        """
        self._release()
        if self._where is _Where.MEMBER:
            raise CorruptStream(f"the gzip stream ends at byte {self._in} inside of member {self._members}")
        if isinstance(self._placement, ByTable) and not self._placement.complete:
            raise self._placement.refusal(f"the stream ends at in {self._in}, out {self._out}")
        return Totals(self._in, self._out, self._members)

    @property
    def _out(self) -> int:
        return self._base + self._filled

    def _inflate(self, address: int, available: int) -> int:
        """One call of libz; returns how many bytes of input it took."""
        if self._filled == len(self._buffer):
            self._turn()
        room = len(self._buffer) - self._filled
        run = self._placement.run(self._in, self._out)
        given_in, given_out = (
            (available, room)
            if run is None
            else (min(run.input_bytes, available), min(run.output_bytes, room))
        )
        stream = self._stream
        stream.next_in, stream.avail_in = address, given_in
        stream.next_out, stream.avail_out = self._address + self._filled, given_out
        code = self._libz.inflate(self._pointer, libz.Z_BLOCK if run is None else libz.Z_NO_FLUSH)
        taken: int = given_in - stream.avail_in
        self._in += taken
        self._filled += given_out - stream.avail_out
        if code == libz.Z_STREAM_END:
            self._members += 1
            self._where = _Where.BETWEEN
        elif code not in (libz.Z_OK, libz.Z_BUF_ERROR):
            reason = (stream.msg or b"").decode("ascii", "replace") or f"zlib error {code}"
            raise CorruptStream(f"gzip member {self._members} is corrupt near byte {self._in}: {reason}")
        else:
            self._stopped(run, stream)
        self._check_span()
        return taken

    def _stopped(self, run: Run | None, stream: libz.ZStream) -> None:
        """Neither the member's end nor an error: a boundary, a blocked run, or simply more to come."""
        if run is not None:
            if stream.avail_in and self._filled < len(self._buffer) and not stream.avail_out:
                self._placement.blocked()
        elif stream.data_type & libz.BLOCK_END and not stream.data_type & libz.LAST_BLOCK:
            boundary = Checkpoint(self._in, self._out, stream.data_type & libz.UNUSED_BITS)
            if self._placement.is_checkpoint(boundary):
                self._check_span()
                self._hand_out()
                self._last = boundary
                self._on_checkpoint(boundary, bytes(self._view[self._filled - WINDOW_BYTES : self._filled]))

    def _enter(self, first: int) -> None:
        """Behind a member: another one, or zeros to the end (as tapes and block devices leave them)."""
        if first == 0:
            self._where = _Where.PADDING
        else:
            self._libz.inflateReset(self._pointer)
            self._where = _Where.MEMBER

    def _skip_padding(self, chunk: bytes, position: int) -> None:
        rest = chunk[position:]
        zeros = len(rest) - len(rest.lstrip(b"\0"))
        self._in += zeros
        if zeros < len(rest):
            raise CorruptStream(f"byte {self._in} is {rest[zeros]:#04x}: only zeros may follow zero padding")
        self._check_span()

    def _check_span(self) -> None:
        if self._out - self._last.out_offset > MAX_SPAN_BYTES:
            raise self._placement.oversized(
                f"more than {MAX_SPAN_BYTES} bytes follow on the checkpoint at out {self._last.out_offset} "
                "without another one"
            )
        if self._in - self._last.in_offset > MAX_SPAN_COMPRESSED_BYTES:
            raise self._placement.oversized(
                f"more than {MAX_SPAN_COMPRESSED_BYTES} compressed bytes follow on the checkpoint at "
                f"in {self._last.in_offset} without another one"
            )

    def _hand_out(self) -> None:
        if self._handed_out < self._filled:
            self._on_output(self._view[self._handed_out : self._filled])
            self._handed_out = self._filled

    def _turn(self) -> None:
        """Full: keep the last 32 KiB as what comes before, and begin again behind them."""
        self._hand_out()
        ctypes.memmove(self._address, self._address + self._filled - WINDOW_BYTES, WINDOW_BYTES)
        self._base += self._filled - WINDOW_BYTES
        self._filled = self._handed_out = WINDOW_BYTES
