from __future__ import annotations

import errno
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd_client.errors import DeviceBusy, KernelError, KernelUnsupported
from nbd_client.kernel.netlink import (
    Attribute,
    ConnectRequest,
    NbdNetlink,
    attribute,
    encode_connect,
    encode_reconfigure,
    parse_attributes,
)

REQUEST = ConnectRequest(
    size=1 << 40,
    block_size=512,
    timeout_seconds=90,
    dead_conn_timeout_seconds=300,
    backend="me",
    socket_fds=(7, 8),
)


def test_connect_carries_what_the_kernel_reads():
    found = dict(parse_attributes(encode_connect(REQUEST)))
    assert Attribute.INDEX not in found
    assert struct.unpack("=Q", found[Attribute.SIZE_BYTES]) == (1 << 40,)
    assert struct.unpack("=Q", found[Attribute.BLOCK_SIZE_BYTES]) == (512,)
    assert struct.unpack("=Q", found[Attribute.TIMEOUT]) == (90,)
    assert struct.unpack("=Q", found[Attribute.SERVER_FLAGS]) == (1 | 2 | 256,)
    assert struct.unpack("=Q", found[Attribute.DEAD_CONN_TIMEOUT]) == (300,)
    assert found[Attribute.BACKEND_IDENTIFIER] == b"me\0"
    items = [payload for _, payload in parse_attributes(found[Attribute.SOCKETS])]
    assert [dict(parse_attributes(item))[1] for item in items] == [struct.pack("=I", 7), struct.pack("=I", 8)]


def test_the_bytes_of_a_reconfigure_are_the_documented_ones():
    assert encode_reconfigure(3, "ab", [9]) == (
        struct.pack("=HHI", 8, 1, 3)
        + struct.pack("=HH3sx", 7, 10, b"ab\0")
        + struct.pack("=HHHHHHI", 16, 0x8007, 12, 0x8001, 8, 1, 9)
    )


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=30))))
def test_attributes_come_back_as_they_were_written(pairs):
    assert list(parse_attributes(b"".join(attribute(kind, payload) for kind, payload in pairs))) == pairs


@given(st.binary(max_size=80))
def test_garbage_from_the_kernel_is_an_error_of_ours(garbage):
    with suppress(KernelError):
        list(parse_attributes(garbage))


class FakeSocket:
    """Answers each request with the given error number, after the given attributes."""

    def __init__(self, number: int, *answers: bytes) -> None:
        self.number, self.answers, self.sequence = number, answers, 0

    def send(self, data: bytes) -> None:
        self.sequence = struct.unpack_from("=IHHII", data)[3]

    def recv(self, _size: int) -> bytes:
        messages = [(33, struct.pack("=BBH", 1, 1, 0) + answer) for answer in self.answers]
        messages.append((2, struct.pack("=i", -self.number) + bytes(16)))
        return b"".join(
            struct.pack("=IHHII", 16 + len(payload), kind, 0, self.sequence, 0)
            + payload
            + bytes(-len(payload) % 4)
            for kind, payload in messages
        )


def test_the_index_of_a_new_device_is_returned():
    netlink = NbdNetlink(FakeSocket(0, attribute(Attribute.INDEX, struct.pack("=I", 4))))
    assert netlink.connect(REQUEST) == 4


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.EBUSY, DeviceBusy), (errno.EPERM, KernelUnsupported), (errno.EINVAL, KernelError)],
)
def test_what_the_kernel_refuses_has_a_name(number, error):
    with pytest.raises(error):
        NbdNetlink(FakeSocket(number)).disconnect(0)


def test_an_answer_without_an_index_is_an_error():
    with pytest.raises(KernelError):
        NbdNetlink(FakeSocket(0)).connect(REQUEST)
