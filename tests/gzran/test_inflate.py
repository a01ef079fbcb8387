import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import CorruptStream
from gateway.gzran import backends, span
from gateway.gzran.inflate import _PREFIXES, inflate_span
from gateway.gzran.zinfo import ZERO_WINDOW, Checkpoint
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

BACKENDS = [backends.igzip, backends.stdlib]
both_backends = pytest.mark.parametrize("backend", BACKENDS)
TEXT = text(300_000)


def assert_every_span_is_the_truth(blob, plain, table, backend):
    for i in range(table.n):
        start, end = span.compressed_range(table, i, len(blob))
        first, last = zinfo_tables.output_range(table, i, len(plain))
        arguments = (table.bits[i], table.window(i), last - first)
        truth = plain[first:last]
        exact = memoryview(blob)[start:end]
        assert inflate_span(exact, *arguments, first=i == 0, exact=True, backend=backend) == truth
        assert inflate_span(blob[start : end + 99], *arguments, first=i == 0, backend=backend) == truth


@both_backends
@settings(PATIENT, max_examples=80)
@given(example=gzip_blobs(), span_size=st.sampled_from((1, 300, 1000, 5000, 1 << 20)))
def test_every_span_of_every_stream_inflates_to_the_truth(backend, example, span_size):
    blob, plain = example
    table = zinfo_tables.build(blob, span_size).table(span_size)
    assert_every_span_is_the_truth(blob, plain, table, backend)


@both_backends
@settings(PATIENT, max_examples=40)
@given(example=gzip_blobs(max_bytes=4000))
def test_every_block_boundary_of_a_stream_is_a_place_to_start(backend, example):
    blob, plain = example
    truth = deflate_reference.decode(blob)
    table = zinfo_tables.table((point, truth.window(point.out_offset)) for point in truth.starts)
    assert_every_span_is_the_truth(blob, plain, table, backend)


@both_backends
@pytest.mark.parametrize("size", [1, 65_536, 100_000])
def test_spans_go_on_across_members(backend, size):
    plain = TEXT[:3000] if size == 1 else TEXT
    blob = members(plain, size) + bytes(512)
    table = zinfo_tables.build(blob, len(plain) // 3).table()
    assert table.n == 3
    assert_every_span_is_the_truth(blob, plain, table, backend)


@both_backends
def test_spans_between_checkpoints_at_every_member_inflate_as_erofs_utils_writes_them(backend):
    blob = (
        member(b"") * 2 + members(TEXT, 50_000, header=gzip_header(name=b"n", header_crc=True)) + member(b"")
    )
    truth = deflate_reference.decode(blob)
    table = zinfo_tables.table((p, truth.window(p.out_offset)) for p in truth.member_starts)
    assert_every_span_is_the_truth(blob, TEXT, table, backend)


@both_backends
def test_a_whole_span_of_stored_blocks_and_one_of_long_matches_come_out(backend):
    for plain in (random.Random(3).randbytes(2 << 20), bytes(8 << 20)):
        blob = member(plain)
        table = zinfo_tables.build(blob, 1 << 20).table()
        assert_every_span_is_the_truth(blob, plain, table, backend)


# The prefix


@pytest.mark.parametrize("own_bits", range(1, 8))
def test_a_prefix_is_empty_blocks_of_the_right_number_of_bits(own_bits):
    """Decoded by the reference: nothing but empty non-final blocks, and then exactly at the bit."""
    prefix = _PREFIXES[own_bits]
    bits = len(prefix) * 8 - 8 + own_bits
    ending = BitWriter().put(int.from_bytes(prefix, "little"), bits)
    blob = gzip_header() + ending.empty_block(final=True).to_bytes() + trailer(b"")
    truth = deflate_reference.decode(blob)
    assert not truth.output
    last = truth.starts[-1]
    assert last.bit_position == 80 + bits
    assert bits % 8 == own_bits
    assert len(truth.starts) <= 5


@both_backends
@pytest.mark.parametrize("bits", range(8))
@pytest.mark.parametrize("before", [0, 0xFF])
@pytest.mark.parametrize("stored", [True, False])
def test_every_number_of_leftover_bits_is_served(backend, bits, before, stored):
    """Whatever the bits before are. A stored block is the case in which shifting the bytes goes wrong."""
    plain = text(500)
    own = -bits % 8
    stream = BitWriter().put(before & (1 << own) - 1, own)
    if stored:
        stream.put(1, 1).put(0, 2).align().put(len(plain), 16).put(len(plain) ^ 0xFFFF, 16)
        stream.put(int.from_bytes(plain, "little"), len(plain) * 8)
    else:
        raw = deflate(plain)
        stream.put(int.from_bytes(raw, "little"), len(raw) * 8)
    output = inflate_span(stream.to_bytes(), bits, b"", len(plain), exact=True, backend=backend)
    assert output == plain


def test_byte_aligned_input_is_read_by_plain_zlib():
    blob = member(TEXT)
    table = zinfo_tables.build(blob, 30_000).table()
    assert any(table.bits)
    for i in range(1, table.n):
        start, end = span.compressed_range(table, i, len(blob))
        whole = zinfo_tables.byte_aligned(blob[start:end], table.bits[i])
        first, last = zinfo_tables.output_range(table, i, len(TEXT))
        inflater = zlib.decompressobj(-15, zdict=bytes(table.window(i)))
        assert inflater.decompress(whole) == TEXT[first:last]


# What is refused


BLOB = member(TEXT)
TABLE = zinfo_tables.build(BLOB, 50_000).table()
START, END = span.compressed_range(TABLE, 1, len(BLOB))
FIRST, LAST = zinfo_tables.output_range(TABLE, 1, len(TEXT))


def inflate_second(backend, *, compressed=BLOB[START:END], length=LAST - FIRST, **how):
    return inflate_span(compressed, TABLE.bits[1], TABLE.window(1), length, backend=backend, **how)


@both_backends
def test_a_span_that_yields_less_is_refused(backend):
    with pytest.raises(CorruptStream, match=f"yields {LAST - FIRST} instead of {LAST - FIRST + 1} bytes"):
        inflate_second(backend, length=LAST - FIRST + 1)


@both_backends
def test_a_span_that_yields_more_is_refused_when_its_range_is_exact(backend):
    with pytest.raises(CorruptStream, match=f"yields more than {LAST - FIRST - 1} bytes"):
        inflate_second(backend, length=LAST - FIRST - 1, exact=True)
    assert inflate_second(backend, length=LAST - FIRST - 1) == TEXT[FIRST : LAST - 1]


@both_backends
def test_a_layer_that_goes_on_behind_the_last_span_is_refused(backend):
    blob = members(TEXT, 100_000)
    with pytest.raises(CorruptStream, match="yields more than 100000 bytes"):
        inflate_span(blob[10:], 0, b"", 100_000, exact=True, backend=backend)


@both_backends
@settings(PATIENT, max_examples=60)
@given(cut=st.integers(0, END - START - 5))
def test_a_truncated_span_is_refused(backend, cut):
    """Up to five bytes from its end: the last ones may hold nothing but the end of the block."""
    with pytest.raises(CorruptStream):
        inflate_second(backend, compressed=BLOB[START : START + cut])


@both_backends
def test_no_bytes_at_all_are_refused(backend):
    for bits in (0, 3):
        with pytest.raises(CorruptStream):
            inflate_span(b"", bits, b"", 1, backend=backend)


@both_backends
def test_a_block_of_the_reserved_type_is_refused(backend):
    with pytest.raises(CorruptStream, match="corrupt"):
        inflate_span(b"\x07" + bytes(50), 0, b"", 10, backend=backend)


@both_backends
def test_a_distance_beyond_the_history_of_the_first_span_is_refused(backend):
    with pytest.raises(CorruptStream):
        inflate_second(backend, first=True)


@both_backends
@settings(PATIENT, max_examples=100)
@given(raw=st.binary(max_size=300), bits=st.integers(0, 7), length=st.integers(0, 5000))
def test_arbitrary_bytes_come_out_at_the_right_length_or_are_refused(backend, raw, bits, length):
    try:
        output = inflate_span(raw, bits, ZERO_WINDOW, length, backend=backend)
    except CorruptStream:
        return
    assert len(output) == length


@both_backends
def test_garbage_between_members_is_refused_and_padding_ends_the_stream(backend):
    blob = member(TEXT[:1000])
    with pytest.raises(CorruptStream, match="not a gzip member"):
        inflate_span((blob + b"garbage")[10:], 0, b"", 2000, backend=backend)
    with pytest.raises(CorruptStream, match="yields 1000 instead of 2000"):
        inflate_span((blob + bytes(20))[10:], 0, b"", 2000, backend=backend)
    with pytest.raises(CorruptStream, match="yields 1000 instead of 2000"):
        inflate_span((blob + gzip_header(name=b"cut off"))[10:-3], 0, b"", 2000, backend=backend)


@both_backends
def test_an_empty_span_needs_nothing(backend):
    assert inflate_span(b"", 0, ZERO_WINDOW, 0, backend=backend) == b""


@both_backends
def test_bits_beyond_a_byte_are_refused(backend):
    with pytest.raises(CorruptStream, match="8 bits"):
        inflate_span(b"abc", 8, b"", 1, backend=backend)


class CountingBackend:
    """Counts the bytes that are fed to inflaters, and those copied out of them again."""

    def __init__(self):
        self.fed = 0

    def __call__(self, window):
        inflater, counting = backends.stdlib(window), self

        class Counted:
            eof = property(lambda self: inflater.eof)
            unused_data = property(lambda self: inflater.unused_data)

            def decompress(self, data, max_length, /):
                counting.fed += len(data)
                return inflater.decompress(data, max_length)

        return Counted()


def test_ten_thousand_members_are_not_each_fed_all_that_follows():
    plain, counting = text(10_000), CountingBackend()
    blob = members(plain, 1)
    assert inflate_span(blob[10:], 0, b"", len(plain), backend=counting) == plain
    assert counting.fed < len(blob) + 10_000 * 4096


def test_the_default_backend_is_the_fast_one():
    assert backends.DEFAULT is backends.igzip


def test_a_first_checkpoint_ignores_the_window_of_the_file():
    point = Checkpoint(10, 0, 0)
    output = inflate_span(BLOB[point.in_offset :], 0, b"\xee" * 32768, 1000, first=True)
    assert output == TEXT[:1000]
