from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd_client.protocol import constants as c
from tests.support.nbdclientside import ClientHandshake, ServerProtocolError

GREETING = b"NBDMAGICIHAVEOPT\x00\x03"


def option_reply(kind: int, payload: bytes = b"", option: int = c.Option.GO) -> bytes:
    return struct.pack(">QIII", c.OPTION_REPLY_MAGIC, option, kind, len(payload)) + payload


@pytest.mark.parametrize(
    "stream",
    [
        b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\x00\x00",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"NBDMAGICIHAVEOPT\x00\x00",
        GREETING + option_reply(c.OptionReply.ERR_UNKNOWN, b"no"),
        GREETING + option_reply(c.OptionReply.ACK),
        GREETING + option_reply(c.OptionReply.INFO, b"\0"),
        GREETING + option_reply(c.OptionReply.INFO, b"\0\0short"),
        GREETING + option_reply(c.OptionReply.ACK, option=c.Option.LIST),
        GREETING + struct.pack(">QIII", c.OPTION_REPLY_MAGIC, c.Option.GO, 3, 1 << 30),
        GREETING + bytes(20),
    ],
)
def test_a_server_that_breaks_the_rules_is_refused(stream):
    with pytest.raises(ServerProtocolError):
        ClientHandshake().receive(stream)


def test_a_server_without_no_zeroes_is_not_asked_for_it():
    sent = ClientHandshake().receive(b"NBDMAGICIHAVEOPT\x00\x01")
    assert sent[:4] == b"\0\0\0\x01"


@given(st.binary(max_size=200))
def test_garbage_is_an_error_of_the_server_or_nothing(garbage):
    for stream in (garbage, GREETING + garbage):
        client = ClientHandshake()
        try:
            client.receive(stream)
        except ServerProtocolError:
            continue
        assert client.result is None
