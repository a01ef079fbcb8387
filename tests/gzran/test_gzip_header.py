import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import CorruptStream
from gateway.gzran.gzip import MAX_HEADER_BYTES, gzip_header_length
from tests.support.gzip_streams import FEXTRA, FNAME, PATIENT, gzip_header, headers


@PATIENT
@given(header=headers, rest=st.binary(max_size=50))
def test_the_length_is_found_whatever_the_optional_fields_are(header, rest):
    assert gzip_header_length(header + rest) == len(header)


@PATIENT
@given(header=headers)
def test_a_prefix_of_a_header_asks_for_more(header):
    for cut in range(len(header)):
        assert gzip_header_length(memoryview(header)[:cut]) is None


def test_what_the_standard_library_writes_is_read():
    blob = gzip.compress(b"x")
    assert zlib.decompress(blob[gzip_header_length(blob) : -8], -15) == b"x"


@pytest.mark.parametrize("wrong", [b"\x1f\x8c\x08", b"PK\x03\x04", b"\x00", b"\x1f\x8b\x07"])
def test_another_magic_number_or_method_is_refused(wrong):
    with pytest.raises(CorruptStream, match="not a gzip member"):
        gzip_header_length(wrong + bytes(20))


def test_reserved_flags_are_refused():
    with pytest.raises(CorruptStream, match="reserved flags"):
        gzip_header_length(b"\x1f\x8b\x08\x20" + bytes(20))


def test_a_wrong_header_crc_is_refused():
    header = bytearray(gzip_header(name=b"layer.tar", header_crc=True))
    header[12] ^= 1
    with pytest.raises(CorruptStream, match="CRC16"):
        gzip_header_length(bytes(header))


def test_a_name_without_an_end_is_refused_at_the_cap():
    endless = bytes([0x1F, 0x8B, 8, FNAME]) + b"\1" * (2 * MAX_HEADER_BYTES)
    assert gzip_header_length(endless[: MAX_HEADER_BYTES - 1]) is None
    with pytest.raises(CorruptStream, match="longer than"):
        gzip_header_length(endless)


def test_the_largest_extra_field_fits():
    header = gzip_header(extra=bytes(65535))
    assert header[3] == FEXTRA
    assert gzip_header_length(header) == 10 + 2 + 65535
