from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd_client.protocol import constants as c
from nbd_client.protocol.transmission import (
    Answer,
    Disconnect,
    Prefetch,
    Read,
    Transmission,
    Violation,
    reply_header,
)
from tests.support.chunks import cuts
from tests.support.nbdclientside import Reply, ReplyDecoder, ServerProtocolError, encode_request

SIZE = 1 << 20
COOKIE = 0xFEEDFACECAFEBEEF


def receive(data: bytes, size: int = SIZE):
    return Transmission(size).receive(data)


def test_a_read_carries_cookie_offset_and_length():
    assert receive(encode_request(c.Command.READ, COOKIE, 512, 4096)) == [Read(COOKIE, 512, 4096)]


def test_a_cache_request_is_a_prefetch():
    assert receive(encode_request(c.Command.CACHE, COOKIE, 0, SIZE)) == [Prefetch(COOKIE, 0, SIZE)]


def test_a_flush_has_nothing_to_do():
    assert receive(encode_request(c.Command.FLUSH, COOKIE)) == [Answer(COOKIE, 0)]


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 0), (SIZE, 1), (SIZE - 1, 2), (2**64 - 1, 1), (2**64 - 512, 2**32 - 1), (0, (32 << 20) + 1)],
)
def test_ranges_that_cannot_be_are_invalid(offset, length):
    request = encode_request(c.Command.READ, COOKIE, offset, length)
    assert receive(request, 64 << 20 if offset == 0 else SIZE) == [Answer(COOKIE, c.Errno.EINVAL)]


@pytest.mark.parametrize("command", [c.Command.READ, c.Command.CACHE, c.Command.FLUSH])
def test_flags_that_were_not_negotiated_are_invalid(command):
    length = 0 if command == c.Command.FLUSH else 512
    assert receive(encode_request(command, COOKIE, 0, length, flags=4)) == [Answer(COOKIE, c.Errno.EINVAL)]


@pytest.mark.parametrize("command", [c.Command.TRIM, c.Command.WRITE_ZEROES])
def test_what_would_modify_is_refused(command):
    assert receive(encode_request(command, COOKIE, 0, 512)) == [Answer(COOKIE, c.Errno.EPERM)]


def test_a_write_is_refused_only_after_its_payload_so_that_the_next_request_is_found():
    transmission = Transmission(SIZE)
    write = encode_request(c.Command.WRITE, 1, 0, 4096)
    following = encode_request(c.Command.READ, 2, 0, 512)
    assert transmission.receive(write + bytes(4095)) == []
    assert transmission.receive(b"\0" + following) == [Answer(1, c.Errno.EPERM), Read(2, 0, 512)]


def test_an_empty_write_is_refused_at_once():
    assert receive(encode_request(c.Command.WRITE, 1, 0, 0)) == [Answer(1, c.Errno.EPERM)]


def test_a_write_that_is_too_long_ends_the_connection():
    (event,) = receive(encode_request(c.Command.WRITE, 1, 0, (32 << 20) + 1))
    assert isinstance(event, Violation)


@pytest.mark.parametrize("command", [c.Command.BLOCK_STATUS, c.Command.RESIZE, 9, 0xFFFF])
def test_unknown_commands_are_invalid_and_the_connection_lives(command):
    data = encode_request(command, 1, 0, 512) + encode_request(c.Command.READ, 2, 0, 1)
    assert receive(data) == [Answer(1, c.Errno.EINVAL), Read(2, 0, 1)]


def test_nothing_is_read_after_a_disconnect():
    data = encode_request(c.Command.DISC, 1) + encode_request(c.Command.READ, 2, 0, 1)
    assert receive(data) == [Disconnect()]


def test_bad_magic_ends_the_connection():
    transmission = Transmission(SIZE)
    (event,) = transmission.receive(b"\0" * 28)
    assert isinstance(event, Violation)
    assert transmission.receive(encode_request(c.Command.READ, 2, 0, 1)) == []


REQUESTS = st.lists(
    st.one_of(
        st.builds(
            encode_request,
            st.sampled_from([0, 3, 4, 5, 6, 7, 99]),
            st.integers(0, 2**64 - 1),
            st.integers(0, 2**64 - 1) | st.integers(0, SIZE),
            st.integers(0, 2**32 - 1) | st.integers(0, SIZE),
            st.sampled_from([0, 0, 1]),
        ),
        st.integers(0, 300).map(lambda n: encode_request(c.Command.WRITE, n, 0, n) + bytes(n)),
        st.just(encode_request(c.Command.DISC, 1)),
    ),
    max_size=8,
).map(b"".join)


@given(st.data(), REQUESTS, st.binary(max_size=30))
def test_any_cutting_gives_the_same_events(data, requests, tail):
    stream = requests + tail
    transmission = Transmission(SIZE)
    pieces = [event for piece in data.draw(cuts(stream)) for event in transmission.receive(piece)]
    assert pieces == receive(stream)


@given(REQUESTS)
def test_every_range_handed_out_lies_in_the_export(requests):
    for event in receive(requests):
        if isinstance(event, Read | Prefetch):
            assert 0 <= event.offset < event.offset + event.length <= SIZE


@given(st.binary(max_size=200))
def test_garbage_never_raises(garbage):
    receive(garbage)
    receive(struct.pack(">I", c.REQUEST_MAGIC) + garbage)


ANSWERS = st.lists(st.tuples(st.sampled_from([0, 0, 5, 22]), st.binary(max_size=64)), max_size=8)


@given(st.data(), ANSWERS)
def test_replies_come_back_as_they_were_sent_however_they_are_cut(data, answers):
    decoder, stream, sent = ReplyDecoder(), b"", []
    for cookie, (error, payload) in enumerate(answers):
        decoder.expect(cookie, len(payload))
        body = b"" if error else payload
        stream += reply_header(cookie, error) + body
        sent.append(Reply(cookie, error, body))
    assert [reply for piece in data.draw(cuts(stream)) for reply in decoder.receive(piece)] == sent
    assert decoder.outstanding == 0


@pytest.mark.parametrize("data", [b"\0" * 16, reply_header(7)])
def test_the_client_refuses_replies_that_make_no_sense(data):
    with pytest.raises(ServerProtocolError):
        ReplyDecoder().receive(data)
