from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd_client.protocol import constants as c
from nbd_client.protocol.handshake import (
    MAX_OPTION_BYTES,
    MAX_OPTIONS,
    MAX_SKIPPED_BYTES,
    Close,
    Enter,
    Export,
    Handshake,
    Send,
)
from tests.support.chunks import cuts
from tests.support.nbdclientside import ClientHandshake, encode_info_request, encode_option

EXPORT = Export(12345, "disk", "a disk")
FLAGS = struct.pack(">I", 3)


def run(data: bytes, export: Export = EXPORT):
    """The events for ``data`` after the client's flags."""
    return Handshake(export).receive(FLAGS + data)


def replies(events):
    """(option, type, payload) of every Send that is an option reply."""
    found = []
    for event in events:
        if isinstance(event, Send):
            magic, option, kind, length = struct.unpack_from(">QIII", event.data)
            assert magic == c.OPTION_REPLY_MAGIC
            assert len(event.data) == 20 + length
            found.append((option, kind, event.data[20:]))
    return found


def test_the_greeting_offers_fixed_newstyle_without_zeroes():
    assert Handshake(EXPORT).greeting() == b"NBDMAGICIHAVEOPT\x00\x03"


@pytest.mark.parametrize("name", ["", "disk"])
def test_go_tells_size_and_flags_and_enters_with_what_is_left(name):
    events = run(encode_option(c.Option.GO, encode_info_request(name)) + b"rest")
    assert replies(events) == [
        (c.Option.GO, c.OptionReply.INFO, struct.pack(">HQH", 0, 12345, 0x507)),
        (c.Option.GO, c.OptionReply.ACK, b""),
    ]
    assert events[-1] == Enter(b"rest")


def test_info_tells_what_is_asked_for_and_stays_in_the_handshake():
    wanted = (c.InfoType.BLOCK_SIZE, c.InfoType.NAME, c.InfoType.DESCRIPTION, 77)
    events = run(encode_option(c.Option.INFO, encode_info_request("", wanted)))
    facts = [payload for _, kind, payload in replies(events) if kind == c.OptionReply.INFO]
    assert facts[1:] == [
        b"\x00\x01disk",
        b"\x00\x02a disk",
        struct.pack(">HIII", 3, 1, 4096, 32 << 20),
    ]
    assert not any(isinstance(event, Enter | Close) for event in events)


def test_an_unknown_export_is_refused_and_another_may_be_tried():
    events = run(
        encode_option(c.Option.GO, encode_info_request("nope"))
        + encode_option(c.Option.GO, encode_info_request("disk"))
    )
    assert replies(events)[0][1] == c.OptionReply.ERR_UNKNOWN
    assert events[-1] == Enter(b"")


@pytest.mark.parametrize(("flags", "zeroes"), [(1, 124), (3, 0)])
def test_export_name_answers_with_zeroes_unless_the_client_declined_them(flags, zeroes):
    data = struct.pack(">I", flags) + encode_option(c.Option.EXPORT_NAME, b"disk") + b"x"
    sent, entered = Handshake(EXPORT).receive(data)
    assert sent.data == struct.pack(">QH", 12345, EXPORT.flags) + bytes(zeroes)
    assert entered == Enter(b"x")


def test_export_name_of_an_unknown_export_closes_without_a_word():
    (closed,) = run(encode_option(c.Option.EXPORT_NAME, b"nope"))
    assert isinstance(closed, Close)


def test_list_names_the_one_export():
    events = run(encode_option(c.Option.LIST))
    assert replies(events) == [
        (c.Option.LIST, c.OptionReply.SERVER, b"\x00\x00\x00\x04diska disk"),
        (c.Option.LIST, c.OptionReply.ACK, b""),
    ]


def test_list_with_data_is_invalid():
    assert replies(run(encode_option(c.Option.LIST, b"x")))[0][1] == c.OptionReply.ERR_INVALID


def test_abort_is_acknowledged_then_closed():
    events = run(encode_option(c.Option.ABORT) + encode_option(c.Option.LIST))
    assert replies(events) == [(c.Option.ABORT, c.OptionReply.ACK, b"")]
    assert isinstance(events[-1], Close)


@pytest.mark.parametrize(
    "option",
    [
        c.Option.STARTTLS,
        c.Option.STRUCTURED_REPLY,
        c.Option.SET_META_CONTEXT,
        c.Option.LIST_META_CONTEXT,
        4,
        999,
    ],
)
def test_what_is_not_offered_is_declined(option):
    events = run(encode_option(option, b"whatever") + encode_option(c.Option.GO, encode_info_request("")))
    assert replies(events)[0] == (option, c.OptionReply.ERR_UNSUP, b"")
    assert events[-1] == Enter(b"")


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x00",
        struct.pack(">I", 5) + b"disk" + b"\0\0",
        struct.pack(">I", 0) + b"\0\x02\0\x03",
        struct.pack(">I", 0xFFFFFFFF) + b"\0\0",
        encode_info_request("disk") + b"x",
    ],
)
def test_a_malformed_go_is_invalid_and_the_next_one_works(payload):
    events = run(encode_option(c.Option.GO, payload) + encode_option(c.Option.GO, encode_info_request("")))
    assert replies(events)[0][1] == c.OptionReply.ERR_INVALID
    assert events[-1] == Enter(b"")


def test_an_oversized_option_is_thrown_away_and_answered():
    events = run(
        encode_option(c.Option.GO, bytes(MAX_OPTION_BYTES + 1))
        + encode_option(c.Option.GO, encode_info_request(""))
    )
    assert replies(events)[0][:2] == (c.Option.GO, c.OptionReply.ERR_TOO_BIG)
    assert events[-1] == Enter(b"")


def test_an_absurd_option_closes_before_its_payload():
    (closed,) = run(struct.pack(">QII", c.OPTION_MAGIC, c.Option.GO, MAX_SKIPPED_BYTES + 1))
    assert isinstance(closed, Close)


def test_a_flood_of_options_ends_the_connection():
    events = run(encode_option(c.Option.LIST) * 1000)
    assert isinstance(events[-1], Close)
    assert len(replies(events)) == 2 * MAX_OPTIONS


def test_bad_option_magic_closes():
    (closed,) = run(b"GET / HTTP/1.1\r\n")
    assert isinstance(closed, Close)


def test_unknown_client_flags_close():
    (closed,) = Handshake(EXPORT).receive(struct.pack(">I", 0x80))
    assert isinstance(closed, Close)


def test_nothing_is_taken_after_the_end():
    handshake = Handshake(EXPORT)
    handshake.receive(FLAGS + encode_option(c.Option.ABORT))
    assert handshake.receive(encode_option(c.Option.LIST)) == []


OPTIONS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                encode_option(c.Option.LIST),
                encode_option(c.Option.INFO, encode_info_request("disk", (3, 1))),
                encode_option(c.Option.GO, encode_info_request("nope")),
                encode_option(c.Option.STARTTLS),
                encode_option(c.Option.INFO, bytes(5000)),
                encode_option(c.Option.ABORT),
            ]
        ),
        st.binary(max_size=40),
    ),
    max_size=6,
).map(b"".join)


def coarse(events):
    """Events with what is left over joined to the end: pieces may arrive after the machine is done."""
    return [event if not isinstance(event, Enter) else Enter(b"") for event in events]


@given(st.data(), OPTIONS)
def test_any_cutting_gives_the_same_events(data, options):
    stream = FLAGS + options + encode_option(c.Option.GO, encode_info_request(""))
    whole = Handshake(EXPORT).receive(stream)
    handshake = Handshake(EXPORT)
    pieces = [event for piece in data.draw(cuts(stream)) for event in handshake.receive(piece)]
    assert coarse(pieces) == coarse(whole)


@given(st.binary(max_size=300))
def test_garbage_never_raises(garbage):
    Handshake(EXPORT).receive(garbage)
    Handshake(EXPORT).receive(FLAGS + garbage)
    Handshake(EXPORT).receive(FLAGS + struct.pack(">Q", c.OPTION_MAGIC) + garbage)


@given(st.data(), st.integers(0, 2**64 - 1))
def test_our_client_and_our_server_agree_however_the_bytes_are_cut(data, size):
    server, client = Handshake(Export(size)), ClientHandshake()
    to_client, events = server.greeting(), []
    while client.result is None:
        to_server = b"".join(client.receive(piece) for piece in data.draw(cuts(to_client)))
        answers = [event for piece in data.draw(cuts(to_server)) for event in server.receive(piece)]
        to_client = b"".join(event.data for event in answers if isinstance(event, Send))
        events += answers
    assert client.result.size == size
    assert client.result.flags == Export(size).flags
    assert client.result.block_sizes == (1, 4096, 32 << 20)
    assert events[-1] == Enter(b"")
