"""Runs of the checkpoint builder, and the tables that come out of them."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.gzran import zinfo
from gateway.gzran.checkpoints import CheckpointBuilder, Totals


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
