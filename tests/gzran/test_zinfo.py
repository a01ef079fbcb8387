import mmap
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidZinfo
from gateway.gzran import zinfo
from gateway.gzran.zinfo import Checkpoint
from tests.support import zinfo_tables
from tests.support.gzip_streams import PATIENT

WINDOW = bytes(range(256)) * 128
START = Checkpoint(10, 0, 0)


@st.composite
def point_lists(draw):
    points, in_offset, out_offset = [Checkpoint(draw(st.integers(0, 5000)), 0, 0)], 0, 0
    in_offset = points[0].in_offset
    for _ in range(draw(st.integers(0, 6))):
        in_offset += draw(st.integers(2, zinfo.MAX_SPAN_COMPRESSED_BYTES))
        out_offset += draw(st.integers(0, zinfo.MAX_SPAN_BYTES))
        points.append(Checkpoint(in_offset, out_offset, draw(st.integers(0, 7))))
    return points


def file_of(*points, version=2, span_size=1 << 20):
    return zinfo_tables.encode(((point, WINDOW) for point in points), span_size, version=version)


@PATIENT
@given(points=point_lists(), span_size=st.integers(0, 2**64 - 1), seed=st.binary(min_size=1, max_size=8))
def test_what_is_encoded_is_parsed_again(points, span_size, seed):
    window = (seed * zinfo.WINDOW_BYTES)[: zinfo.WINDOW_BYTES]
    windows = [zinfo.ZERO_WINDOW, *[window] * (len(points) - 1)]
    raw = zinfo_tables.encode(zip(points, windows, strict=True), span_size)
    table = zinfo.parse(raw, blob_size=None)
    assert (table.version, table.span_size, table.n) == (2, span_size, len(points))
    assert list(table) == points == [table.checkpoint(i) for i in range(table.n)]
    assert [table.window(i) for i in range(table.n)] == windows
    assert zinfo.encode(table) == raw


@PATIENT
@given(points=point_lists())
def test_version_1_is_the_same_table_without_its_first_record(points):
    raw = file_of(*points, version=1)
    table = zinfo.parse(raw, gzip_header_length=points[0].in_offset)
    assert table.version == 1
    assert list(table) == points
    assert all(table.window(i) == (WINDOW if i else zinfo.ZERO_WINDOW) for i in range(table.n))
    assert zinfo.encode(table)[zinfo.HEADER_BYTES + zinfo.RECORD_BYTES :] == raw[zinfo.HEADER_BYTES :]


def test_version_1_assumes_the_usual_header_when_the_blob_is_unknown():
    assert zinfo.parse(zinfo.header(1, 7)).checkpoint(0) == Checkpoint(10, 0, 0)


def test_version_1_takes_the_length_of_the_blobs_own_header():
    assert zinfo.parse(zinfo.header(1, 7), gzip_header_length=25).checkpoint(0) == Checkpoint(25, 0, 0)


def test_the_first_window_is_zeros_whatever_the_file_holds():
    assert zinfo.parse(file_of(START)).window(0) == bytes(32768)


def test_windows_are_not_copied(tmp_path):
    path = tmp_path / "layer.zinfo"
    path.write_bytes(file_of(START, Checkpoint(100, 200, 3)))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        table = zinfo.parse(memoryview(mapped))
        window = table.window(1)
        assert isinstance(window, memoryview)
        assert window == WINDOW
        with pytest.raises(BufferError):
            mapped.close()
        window.release()
        del table


def test_a_window_outside_of_the_table_is_an_index_error():
    table = zinfo.parse(file_of(START))
    for index in (-1, 1):
        with pytest.raises(IndexError):
            table.window(index)


def test_a_record_wants_a_whole_window():
    with pytest.raises(ValueError, match="32768"):
        zinfo.record(START, bytes(100))


def test_a_count_that_only_fits_in_32_bits_is_refused():
    """12 + 32785 * 226,636,981 is 17 modulo 2**32."""
    have = 226_636_981
    assert (12 + 32785 * have) % 2**32 == 17
    with pytest.raises(InvalidZinfo, match="226636981 checkpoints, allowed are 1 to 65536"):
        zinfo.parse(struct.pack("<IQ", have, 1 << 22) + bytes(5))


def test_a_file_of_another_length_is_refused():
    raw = file_of(START, Checkpoint(100, 200, 3))
    for wrong in (raw[:-1], raw + b"\0", raw[:17], raw[:12]):
        with pytest.raises(InvalidZinfo, match="2 checkpoints take 65582"):
            zinfo.parse(wrong)


def test_a_file_shorter_than_its_header_is_refused():
    for length in range(12):
        with pytest.raises(InvalidZinfo, match="its header alone takes 12"):
            zinfo.parse(bytes(length))


@pytest.mark.parametrize("have", [0, 65_537, 2**32 - 1])
def test_a_count_outside_of_the_limits_is_refused(have):
    with pytest.raises(InvalidZinfo, match="allowed are 1 to 65536"):
        zinfo.parse(zinfo.header(have, 1))


def test_tables_of_our_own_may_hold_more():
    raw = file_of(START, Checkpoint(100, 200, 0), Checkpoint(300, 400, 0))
    with pytest.raises(InvalidZinfo, match="allowed are 1 to 2"):
        zinfo.parse(raw, max_checkpoints=2)
    assert zinfo.parse(raw, max_checkpoints=3).n == 3


MIB = 1 << 20
BROKEN = {
    "out of the first checkpoint is 5, not 0": [Checkpoint(10, 5, 0)],
    "bits is 8": [START, Checkpoint(100, 200, 8)],
    "bits is 255": [START, Checkpoint(100, 200, 255)],
    "no byte comes before in 0": [Checkpoint(0, 0, 3)],
    "in 99 is before the previous one's 100": [START, Checkpoint(100, 200, 0), Checkpoint(99, 300, 0)],
    "out 199 is before the previous one's 200": [START, Checkpoint(100, 200, 0), Checkpoint(110, 199, 0)],
    "no later bit": [START, Checkpoint(100, 200, 0), Checkpoint(100, 200, 0)],
    "no later bit of": [START, Checkpoint(100, 200, 2), Checkpoint(100, 300, 3)],
    "holds 67108865 bytes": [START, Checkpoint(70000, 64 * MIB + 1, 0)],
    "compressed bytes": [START, Checkpoint(129 * MIB, 5, 0)],
    "is behind the end of the blob": [START, Checkpoint(500 * 1000 + 1, 5, 0)],
    "more than 1032 times the blob": [START, *(Checkpoint(100 * i, 60 * MIB * i, 0) for i in range(1, 10))],
    "in 18446744073709551615 is behind": [START, Checkpoint(2**64 - 1, 5, 0)],
    "out 18446744073709551615 is more than": [START, Checkpoint(11, 2**64 - 1, 0)],
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_named_with_its_checkpoint(rule):
    points = BROKEN[rule]
    blob_size = None if "compressed bytes" in rule else 500 * 1000
    with pytest.raises(InvalidZinfo, match=rule) as refused:
        zinfo.parse(file_of(*points), blob_size=blob_size)
    assert f"checkpoint {len(points) - 1}:" in str(refused.value)


def test_a_last_span_that_is_too_long_to_fetch_is_refused():
    with pytest.raises(InvalidZinfo, match="checkpoint 0: its span takes more than"):
        zinfo.parse(file_of(START), blob_size=1 << 40)


def test_version_1_counts_the_implied_checkpoint():
    raw = file_of(START, Checkpoint(100, 200, 0), Checkpoint(99, 300, 0), version=1)
    with pytest.raises(InvalidZinfo, match="checkpoint 2: in 99"):
        zinfo.parse(raw)


def test_equal_out_offsets_are_legal_when_an_empty_member_lies_between():
    points = [START, Checkpoint(30, 0, 0), Checkpoint(50, 0, 0), Checkpoint(90, 70, 1)]
    assert list(zinfo.parse(file_of(*points))) == points


@PATIENT
@given(raw=st.binary(max_size=64))
def test_arbitrary_bytes_are_refused_or_read_but_never_crash(raw):
    try:
        table = zinfo.parse(raw)
    except InvalidZinfo:
        return
    assert len(raw) == zinfo.HEADER_BYTES
    assert table.n == 1
