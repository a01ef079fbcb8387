import gzip
import hashlib

import pytest

from tests.support import gzips

# Text and noise, more than two of the largest members and flush distances.
DATA = b"".join(b"%d\n" % n for n in range(200_000)) + hashlib.shake_128(b"noise").digest(1 << 20)


@pytest.mark.parametrize(
    "flavour",
    [*gzips.PURE, *(pytest.param(name, marks=pytest.mark.real) for name in gzips.PROGRAMS)],
)
@pytest.mark.parametrize("data", [b"", b"a", DATA], ids=["empty", "one byte", "megabytes"])
def test_every_flavour_is_gzip_of_the_data(flavour: str, data: bytes) -> None:
    assert gzip.decompress(gzips.FLAVOURS[flavour](data)) == data


def test_a_member_holds_its_header_fields_in_order() -> None:
    blob = gzips.member(b"x", extra=gzips.EXTRA_OF_18_BYTES, name=b"n", comment=b"c", header_crc=True)
    assert blob[:4] == b"\x1f\x8b\x08\x1e"
    assert blob[10:34] == b"\x12\x00" + gzips.EXTRA_OF_18_BYTES + b"n\0c\0"


def test_members_are_as_many_as_their_size_tells() -> None:
    blob = gzips.members(bytes(250), 100)
    assert blob == gzips.member(bytes(100)) * 2 + gzips.member(bytes(50))


def test_the_30_byte_header_is_30_bytes_long() -> None:
    with_extra = gzips.member(b"x", extra=gzips.EXTRA_OF_18_BYTES)
    assert with_extra[30:] == gzips.member(b"x")[10:]
