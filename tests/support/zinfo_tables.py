"""Runs of the checkpoint builder, and the tables that come out of them."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.gzran import zinfo
from gateway.gzran.backends import Buffer
from gateway.gzran.checkpoints import CheckpointBuilder, Totals
from gateway.gzran.inflate import _prefix


@dataclass
class Built:
    output: bytes
    points: list[zinfo.Checkpoint]
    windows: list[bytes]
    totals: Totals

    def table(self, span_size=1):
        return table(zip(self.points, self.windows, strict=True), span_size)


def encode(points_and_windows, span_size=1, *, version=2):
    """A zinfo file."""
    records = [zinfo.record(*pair) for pair in points_and_windows]
    return zinfo.header(len(records), span_size) + b"".join(records[2 - version :])


def table(points_and_windows, span_size=1):
    return zinfo.parse(encode(points_and_windows, span_size))


def build(blob, span_size=1 << 20, *, chunk=1 << 16, expected=None):
    """Feed ``blob`` in pieces; the order of the callbacks is checked on the way."""
    output, points, windows = bytearray(), [], []

    def on_output(view):
        output.extend(view)

    def on_checkpoint(point, window):
        assert point.out_offset == len(output)
        points.append(point)
        windows.append(window)

    builder = CheckpointBuilder(span_size, on_output, on_checkpoint, expected)
    for start in range(0, len(blob), chunk):
        builder.feed(memoryview(blob)[start : start + chunk])
        assert not points or points[-1].out_offset <= len(output)
    totals = builder.finish()
    return Built(bytes(output), points, windows, totals)


def output_range(table: zinfo.ZinfoTable, index: int, uncompressed_size: int) -> tuple[int, int]:
    """Bytes of the uncompressed layer that span ``index`` holds; empty between equal ``out`` values."""
    following = index + 1
    end = table.out_offsets[following] if following < len(table) else uncompressed_size
    return table.out_offsets[index], end


def byte_aligned(compressed: Buffer, bits: int) -> bytes:
    """``compressed`` as a stream that any raw inflate reads from its first byte on (copies it)."""
    return _prefix(bits, compressed[0]) + bytes(compressed[1:]) if bits else bytes(compressed)
