"""What tests of a device's life trust: the forged table lies as it is meant to, and a read is judged strictly."""

import zlib

from tests.support import gzips
from tests.support.life import SPAN_BYTES, Checkpoints, content, tar_of
from tests.support.zinfo_tables import build


def decoded(blob: bytes, table: Checkpoints, number: int) -> bytes:
    """A span as whoever trusts the table decodes it."""
    start, out, bits = table.points[number]
    end = table.points[number + 1][1] if number + 1 < len(table.points) else None
    tail = blob[start - 1 :] if bits else blob[start:]
    stream = (int.from_bytes(tail, "little") >> (8 - bits if bits else 0)).to_bytes(len(tail), "little")
    inflate = zlib.decompressobj(-zlib.MAX_WBITS, table.windows[number])
    return inflate.decompress(stream, end - out) if end is not None else inflate.decompress(stream)


def test_each_span_of_a_forged_table_ends_as_the_next_window_says_and_some_bytes_are_wrong() -> None:
    tar = tar_of({"usr/one": content(500_000, 7)})
    blob = gzips.member(tar)
    built = build(blob, SPAN_BYTES)
    points = tuple((point.in_offset, point.out_offset, point.bits) for point in built.points)
    true = Checkpoints(SPAN_BYTES, points, tuple(map(bytes, built.windows)))
    assert Checkpoints.parse(true.encode()) == true
    forged = true.forged(blob)
    assert len(forged.windows) == len(true.windows) > 3
    lie = [decoded(blob, forged, number) for number in range(1, len(points))]
    for number, span in enumerate(lie[:-1], start=1):
        before = forged.windows[number] + span
        assert before[-32768:] == forged.windows[number + 1], f"the chain breaks behind span {number}"
    begin = points[1][1]
    assert len(b"".join(lie)) == len(tar) - begin
    assert b"".join(lie) != tar[begin:]
    truth = b"".join(decoded(blob, true, number) for number in range(1, len(points)))
    assert truth == tar[begin:]
