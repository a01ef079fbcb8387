import gzip
import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import CorruptStream, InvalidLayer, InvalidZinfo
from gateway.gzran import checkpoints, libz, zinfo
from gateway.gzran.checkpoints import CheckpointBuilder, Totals
from gateway.gzran.zinfo import Checkpoint
from tests.support import deflate_reference, zinfo_tables
from tests.support.gzip_streams import (
    PATIENT,
    BitWriter,
    deflate,
    gzip_blobs,
    gzip_header,
    member,
    members,
    text,
    trailer,
)

TEXT = text(300_000)
span_sizes = st.sampled_from((1, 300, 1000, 5000, 20_000, 1 << 20))


class CountingLibz:
    """libz, counting how often it is called."""

    def __init__(self):
        self._real, self.calls = libz.load(), 0

    def __getattr__(self, name):
        return getattr(self._real, name)

    def inflate(self, pointer, flush):
        self.calls += 1
        return self._real.inflate(pointer, flush)


# Placement


@settings(PATIENT, max_examples=120)
@given(example=gzip_blobs(), span_size=span_sizes, chunk=st.integers(1, 30_000))
def test_checkpoints_fall_where_a_decoder_without_zlib_puts_them(example, span_size, chunk):
    blob, plain = example
    truth = deflate_reference.decode(blob)
    built = zinfo_tables.build(blob, span_size, chunk=chunk)
    assert built.output == plain == truth.output
    assert built.points == truth.placed(span_size)
    assert built.windows == [truth.window(point.out_offset) for point in built.points]
    assert built.totals == Totals(len(blob), len(plain), len(truth.member_starts))


@settings(PATIENT, max_examples=30)
@given(example=gzip_blobs(), span_size=span_sizes)
def test_any_cutting_of_the_input_gives_the_same_checkpoints(example, span_size):
    blob, _ = example
    whole = zinfo_tables.build(blob, span_size)
    assert all(zinfo_tables.build(blob, span_size, chunk=chunk) == whole for chunk in (1, 2, 3, 1000))


@settings(PATIENT, max_examples=60)
@given(example=gzip_blobs(), span_size=span_sizes, output_bytes=st.integers(1, 60_000))
def test_the_size_of_the_output_buffer_changes_nothing(example, span_size, output_bytes):
    blob, _ = example
    whole = zinfo_tables.build(blob, span_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "_OUTPUT_BYTES", output_bytes)
        assert zinfo_tables.build(blob, span_size) == whole
        assert zinfo_tables.build(blob, chunk=700, expected=whole.table()) == whole


@pytest.mark.parametrize("span_size", [40_000, 65_536, 262_144])
@pytest.mark.parametrize("size", [65_536, 1 << 20])
def test_members_of_usual_sizes_get_checkpoints_by_distance_not_one_each(size, span_size):
    plain = text(2_500_000, seed=1)
    built = zinfo_tables.build(members(plain, size), span_size)
    assert built.output == plain
    distances = [b.out_offset - a.out_offset for a, b in zip(built.points, built.points[1:], strict=False)]
    assert all(span_size < distance <= span_size + 100_000 for distance in distances)
    assert built.totals.members == -(-len(plain) // size)


def test_the_window_is_what_precedes_in_the_whole_output_across_members():
    built = zinfo_tables.build(members(TEXT, 20_000), 50_000)
    for point, window in zip(built.points[1:], built.windows[1:], strict=True):
        assert window == TEXT[point.out_offset - 32768 : point.out_offset]
    assert built.windows[0] == zinfo.ZERO_WINDOW


def test_a_window_before_32_kib_stands_at_the_right_with_zeros_in_front():
    built = zinfo_tables.build(member(TEXT, mem_level=1), 1000)
    point, window = built.points[1], built.windows[1]
    assert 1000 < point.out_offset < 32768
    assert window == bytes(32768 - point.out_offset) + TEXT[: point.out_offset]


def test_an_empty_member_is_a_layer_with_one_checkpoint():
    built = zinfo_tables.build(gzip.compress(b""), 1 << 20)
    assert built.points == [Checkpoint(10, 0, 0)]
    assert built.totals.uncompressed_size == 0


def test_the_first_checkpoint_stands_behind_a_long_header():
    header = gzip_header(name=b"layer.tar", extra=bytes(500), comment=b"c" * 70, header_crc=True)
    built = zinfo_tables.build(member(TEXT, header=header), 1 << 20, chunk=7)
    assert built.points == [Checkpoint(len(header), 0, 0)]


def test_bytearrays_and_memoryviews_are_taken_like_bytes():
    blob, seen = gzip.compress(TEXT), bytearray()
    builder = CheckpointBuilder(1 << 20, seen.extend, lambda point, window: None)
    builder.feed(bytearray(blob[:100]))
    builder.feed(b"")
    builder.feed(memoryview(blob)[100:])
    assert builder.finish().uncompressed_size == len(TEXT)
    assert seen == TEXT


def test_output_is_handed_out_as_it_comes_not_at_the_end():
    blob, seen = gzip.compress(TEXT), bytearray()
    builder = CheckpointBuilder(1 << 20, seen.extend, lambda point, window: None)
    builder.feed(blob[: len(blob) // 2])
    assert len(seen) > len(TEXT) // 3
    assert seen == TEXT[: len(seen)]


def test_views_cannot_be_written_to():
    def on_output(view):
        assert view.readonly

    builder = CheckpointBuilder(1 << 20, on_output, lambda point, window: None)
    builder.feed(gzip.compress(TEXT))
    assert builder.finish().uncompressed_size == len(TEXT)


@pytest.mark.parametrize("span_size", [0, -1, zinfo.MAX_SPAN_BYTES + 1])
def test_a_span_size_that_cannot_be_kept_is_refused(span_size):
    with pytest.raises(ValueError, match="span size"):
        CheckpointBuilder(span_size, lambda view: None, lambda point, window: None)


def test_nothing_is_fed_after_the_end():
    builder = CheckpointBuilder(1 << 20, lambda view: None, lambda point, window: None)
    builder.feed(gzip.compress(b""))
    builder.finish()
    with pytest.raises(ValueError, match="complete"):
        builder.feed(b"\0")


# What breaks


@settings(PATIENT, max_examples=40)
@given(example=gzip_blobs(max_bytes=3000), data=st.data())
def test_a_truncated_stream_is_refused_or_ends_between_members(example, data):
    blob, plain = example
    cut = data.draw(st.integers(0, len(blob) - 1))
    starts = deflate_reference.decode(blob).member_starts
    try:
        built = zinfo_tables.build(blob[:cut], 1000)
    except CorruptStream:
        return
    assert built.totals.compressed_size == cut
    assert built.totals.members <= len(starts)
    assert built.output == gzip.decompress(blob[:cut])
    assert plain.startswith(built.output)


def test_truncation_at_every_byte_of_a_member_is_named():
    blob = member(text(300), header=gzip_header(name=b"n", extra=b"ab", header_crc=True))
    for cut in range(len(blob)):
        with pytest.raises(CorruptStream, match=f"ends at byte {cut} inside of member 0"):
            zinfo_tables.build(blob[:cut])


def test_a_flipped_bit_anywhere_is_never_taken_for_the_truth():
    plain = text(400)
    blob = member(plain, strategy=zlib.Z_FIXED)
    without_effect = []
    for position in range(10, len(blob)):
        for bit in range(8):
            flipped = bytearray(blob)
            flipped[position] ^= 1 << bit
            try:
                built = zinfo_tables.build(bytes(flipped))
            except CorruptStream:
                continue
            assert built.output == plain
            without_effect.append(position)
    # Only the bits that fill up the deflate stream's last byte mean nothing.
    assert set(without_effect) <= {len(blob) - 9}
    assert len(without_effect) < 8


@pytest.mark.parametrize(
    ("position", "reason"), [(-8, "incorrect data check"), (-4, "incorrect length check")]
)
def test_each_members_crc_and_length_are_proved(position, reason):
    bad = bytearray(member(text(5000)))
    bad[position] ^= 1
    blob = member(b"first") + bytes(bad) + member(b"last")
    with pytest.raises(CorruptStream, match=f"member 1 is corrupt near byte .*{reason}"):
        zinfo_tables.build(blob)


@pytest.mark.parametrize("chunk", [1, 3, 1 << 16])
def test_zeros_behind_the_last_member_are_legal(chunk):
    blob = gzip.compress(TEXT)
    built = zinfo_tables.build(blob + bytes(10_240), chunk=chunk)
    assert built.output == TEXT
    assert built.totals == Totals(len(blob) + 10_240, len(TEXT), 1)


@pytest.mark.parametrize("chunk", [1, 3, 1 << 16])
def test_anything_else_behind_the_last_member_is_refused_by_its_offset(chunk):
    blob = gzip.compress(b"layer")
    with pytest.raises(
        CorruptStream, match=f"member 1 is corrupt near byte {len(blob) + 2}: incorrect header"
    ):
        zinfo_tables.build(blob + b"garbage", chunk=chunk)
    with pytest.raises(CorruptStream, match=f"byte {len(blob) + 4} is 0x1f: only zeros"):
        zinfo_tables.build(blob + bytes(4) + blob, chunk=chunk)


def test_a_stream_that_is_no_gzip_is_refused():
    for blob in (zlib.compress(TEXT), TEXT, bytes(100), b"\x28\xb5\x2f\xfd" + bytes(50)):
        with pytest.raises(CorruptStream, match="member 0 is corrupt near byte"):
            zinfo_tables.build(blob)


def test_an_empty_blob_is_refused():
    with pytest.raises(CorruptStream, match="ends at byte 0"):
        zinfo_tables.build(b"")


# Hostile streams


def test_a_block_that_outgrows_a_span_is_refused(monkeypatch):
    monkeypatch.setattr(checkpoints, "MAX_SPAN_BYTES", 300_000)
    with pytest.raises(InvalidLayer, match="more than 300000 bytes follow on the checkpoint at out 0"):
        zinfo_tables.build(gzip.compress(bytes(20_000_000)), 100_000)


def test_compressed_bytes_without_output_do_not_grow_a_span_forever(monkeypatch):
    monkeypatch.setattr(checkpoints, "MAX_SPAN_COMPRESSED_BYTES", 50_000)
    empty = gzip.compress(b"")
    for blob in (empty * 5000, empty + bytes(100_000)):
        with pytest.raises(InvalidLayer, match="more than 50000 compressed bytes follow on"):
            zinfo_tables.build(blob, 1000, chunk=1000)


@pytest.mark.parametrize("before", [0, 500, 1000, 1001])
def test_empty_blocks_by_the_ten_thousands_cost_no_call_each(monkeypatch, before):
    """Wherever they stand: at the start, inside of a span, exactly at its end, and right behind that."""
    plain = text(3000)
    stream = deflate(plain[:before], flush=zlib.Z_FULL_FLUSH, flush_every=3000)[:-2] if before else b""
    blocks = BitWriter()
    for _ in range(20_000):
        blocks.empty_block()
    blob = gzip_header() + stream + blocks.to_bytes() + deflate(plain[before:]) + trailer(plain)
    counting = CountingLibz()
    monkeypatch.setattr(libz, "load", lambda: counting)
    built = zinfo_tables.build(blob, 1000)
    assert built.output == plain
    assert counting.calls < 50
    assert built.points == deflate_reference.decode(blob).placed(1000)


# A table that somebody handed in


@settings(PATIENT, max_examples=40)
@given(example=gzip_blobs(max_bytes=6000), data=st.data(), chunk=st.integers(1, 20_000))
def test_any_choice_of_true_boundaries_is_proved(example, data, chunk):
    blob, plain = example
    truth = deflate_reference.decode(blob)
    chosen = truth.starts[:1] + [start for start in truth.starts[1:] if data.draw(st.booleans())]
    windows = [truth.window(point.out_offset) for point in chosen]
    table = zinfo_tables.table(zip(chosen, windows, strict=True))
    built = zinfo_tables.build(blob, chunk=chunk, expected=table)
    assert built.output == plain
    assert built.points == chosen
    assert built.windows == windows


def test_a_checkpoint_at_every_member_start_is_proved_as_erofs_utils_writes_it():
    blob = member(b"") * 3 + members(TEXT, 50_000) + member(b"") + member(text(10))
    starts = deflate_reference.decode(blob).member_starts
    built = zinfo_tables.build(blob, expected=zinfo_tables.table((p, zinfo.ZERO_WINDOW) for p in starts))
    assert built.points == starts
    assert [p.out_offset for p in starts][:4] == [0, 0, 0, 0]


def test_the_true_window_is_handed_over_for_comparison_not_the_tables():
    blob = member(TEXT)
    truth = zinfo_tables.build(blob, 50_000)
    lies = zinfo_tables.table((p, b"\xee" * 32768) for p in truth.points)
    assert zinfo_tables.build(blob, expected=lies).windows == truth.windows


@settings(PATIENT, max_examples=60)
@given(
    field=st.sampled_from(("in", "out", "bits")),
    delta=st.sampled_from((-1, 1, 7, 300)),
    which=st.integers(0, 4),
)
def test_a_checkpoint_that_is_no_boundary_is_named(field, delta, which):
    blob = member(TEXT)
    truth = zinfo_tables.build(blob, 30_000)
    points = list(truth.points)
    assert len(points) > 4
    in_offset, out_offset, bits = points[which]
    points[which] = Checkpoint(
        in_offset + delta * (field == "in"),
        out_offset + delta * (field == "out"),
        (bits + delta * (field == "bits")) % 8,
    )
    if points[which] == truth.points[which] or points[0].out_offset:
        return
    table = zinfo_tables.table((p, zinfo.ZERO_WINDOW) for p in points)
    with pytest.raises(
        InvalidZinfo, match=f"checkpoint {which}: no deflate block starts at in {points[which].in_offset}"
    ):
        zinfo_tables.build(blob, expected=table)


def test_the_end_of_a_members_last_block_is_no_place_to_start():
    first = member(text(5000))
    blob = first + member(text(500))
    lie = Checkpoint(len(first) - 8, 5000, 0)
    table = zinfo_tables.table((p, zinfo.ZERO_WINDOW) for p in (Checkpoint(10, 0, 0), lie))
    with pytest.raises(InvalidZinfo, match="checkpoint 1: no deflate block starts"):
        zinfo_tables.build(blob, expected=table)


def test_a_table_of_a_longer_layer_is_refused_at_the_end():
    longer, shorter = members(TEXT, 50_000), members(TEXT[:100_000], 50_000)
    table = zinfo_tables.build(longer, 40_000).table()
    with pytest.raises(
        InvalidZinfo, match=r"checkpoint 2: no deflate block starts at .*the stream ends at in"
    ):
        zinfo_tables.build(shorter, expected=table)


def test_the_zinfo_of_another_layer_is_refused():
    table = zinfo_tables.build(member(text(300_000, seed=9)), 50_000).table()
    with pytest.raises(InvalidZinfo, match="checkpoint 1: no deflate block starts"):
        zinfo_tables.build(member(TEXT), expected=table)


def test_a_table_that_stops_too_early_is_refused(monkeypatch):
    monkeypatch.setattr(checkpoints, "MAX_SPAN_BYTES", 100_000)
    table = zinfo_tables.build(member(TEXT[:60_000]), 50_000).table()
    first_only = zinfo_tables.table([(table.checkpoint(0), zinfo.ZERO_WINDOW)])
    with pytest.raises(InvalidZinfo, match="checkpoint 0 is too early to be the last"):
        zinfo_tables.build(member(TEXT), expected=first_only)


def test_version_1_is_proved_with_the_blobs_own_header_only():
    header = gzip_header(name=b"layer.tar")
    blob = member(TEXT, header=header)
    built = zinfo_tables.build(blob, 50_000)
    raw = zinfo_tables.encode(zip(built.points, built.windows, strict=True), version=1)
    right = zinfo.parse(raw, gzip_header_length=len(header), blob_size=len(blob))
    assert zinfo_tables.build(blob, expected=right).points == built.points
    with pytest.raises(InvalidZinfo, match="checkpoint 0: no deflate block starts at in 10"):
        zinfo_tables.build(blob, expected=zinfo.parse(raw))


def test_random_bytes_behind_a_true_header_never_escape_as_another_error():
    source = random.Random(5)
    for _ in range(300):
        with pytest.raises(CorruptStream):
            zinfo_tables.build(gzip_header() + source.randbytes(source.randint(0, 400)), 1)
