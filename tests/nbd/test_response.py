from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd_client.errors import (
    BlockgateError,
    RangeIgnored,
    SourceChanged,
    SourceOverloaded,
    SourceProtocolError,
    SourceRefused,
    WrongRange,
)
from nbd_client.source.response import HeadParser, Pin, check_range, error_of, parse_head, pin_of

PIN = Pin(1000, b'"v1"', None)


def head(status: int = 206, **fields: str):
    base = {"ETag": '"v1"', "Content-Range": "bytes 100-199/1000", "Content-Length": "100"}
    base |= {name.replace("_", "-"): value for name, value in fields.items()}
    lines = [f"HTTP/1.1 {status} Some Reason", *(f"{k}: {v}" for k, v in base.items() if v)]
    return parse_head("\r\n".join(lines).encode())


def test_the_range_that_was_asked_for_is_accepted():
    assert check_range(head(), 100, 100, PIN) == 100


def test_a_shorter_range_from_the_same_start_is_accepted_as_a_prefix():
    assert check_range(head(Content_Range="bytes 100-149/1000", Content_Length="50"), 100, 100, PIN) == 50


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (WrongRange, {"Content_Range": "bytes 0-99/1000"}),
        (WrongRange, {"Content_Range": "bytes 101-200/1000"}),
        (WrongRange, {"Content_Range": "bytes 100-200/1000", "Content_Length": "101"}),
        (WrongRange, {"Content_Range": "bytes 100-199/*"}),
        (WrongRange, {"Content_Range": "bytes 100-1000/1000", "Content_Length": "901"}),
        (WrongRange, {"Content_Range": "bytes 199-100/1000"}),
        (WrongRange, {"Content_Range": "items 100-199/1000"}),
        (WrongRange, {"Content_Range": ""}),
        (WrongRange, {"Content_Range": "bytes 100-199/1000, bytes 0-1/1000"}),
        (WrongRange, {"Content_Length": "99"}),
        (SourceProtocolError, {"Content_Length": ""}),
        (SourceProtocolError, {"Content_Length": "+100"}),
        (SourceProtocolError, {"Transfer_Encoding": "chunked"}),
        (SourceProtocolError, {"Content_Encoding": "gzip"}),
        (SourceChanged, {"Content_Range": "bytes 100-199/1001"}),
        (SourceChanged, {"ETag": '"v2"'}),
        (SourceChanged, {"ETag": 'W/"v1"'}),
        (SourceChanged, {"ETag": ""}),
    ],
)
def test_any_doubt_is_an_error(error, fields):
    with pytest.raises(error):
        check_range(head(**fields), 100, 100, PIN)


def test_without_an_etag_last_modified_must_stay():
    pin = Pin(1000, None, b"Mon, 01 Jan 2024 00:00:00 GMT")
    assert check_range(head(ETag="", Last_Modified=pin.last_modified.decode()), 100, 100, pin) == 100
    with pytest.raises(SourceChanged):
        check_range(head(ETag="", Last_Modified="Tue, 02 Jan 2024 00:00:00 GMT"), 100, 100, pin)


def test_200_is_an_error_unless_the_range_is_the_whole_file():
    whole = head(200, Content_Length="1000", Content_Range="")
    assert check_range(whole, 0, 1000, PIN) == 1000
    with pytest.raises(RangeIgnored):
        check_range(whole, 0, 999, PIN)
    with pytest.raises(WrongRange):
        check_range(head(200, Content_Length="999", Content_Range=""), 0, 1000, PIN)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_statuses_that_may_pass_are_retryable(status):
    with pytest.raises(SourceOverloaded) as caught:
        check_range(head(status, Retry_After="7"), 100, 100, PIN)
    assert caught.value.retryable
    assert caught.value.retry_after_seconds == 7


@pytest.mark.parametrize("status", [204, 304, 400, 401, 403, 404, 410, 416, 501, 505])
def test_statuses_that_will_not_pass_are_not(status):
    with pytest.raises(SourceRefused) as caught:
        check_range(head(status), 100, 100, PIN)
    assert not caught.value.retryable


def test_412_means_that_the_content_changed():
    with pytest.raises(SourceChanged):
        check_range(head(412), 100, 100, PIN)


def test_the_first_answer_pins_size_and_validator():
    first = head(Content_Range="bytes 0-0/1000", Content_Length="1")
    assert pin_of(first) == PIN
    assert PIN.strong
    assert not Pin(1, b'W/"v1"', None).strong
    with pytest.raises(RangeIgnored):
        pin_of(head(200))
    with pytest.raises(WrongRange):
        pin_of(head())


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"ICY 200 OK",
        b"HTTP/2 200",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 206 OK\r\nno colon",
        b"HTTP/1.1 206 OK\r\nA: b\r\n folded",
        b"HTTP/1.1 206 OK\r\nA: b\nC: d",
        b"HTTP/1.1 206 OK\r\nA : b",
        b"HTTP/1.1 206 OK\r\nContent-Length: 1\r\nContent-Length: 1",
    ],
)
def test_malformed_heads_are_refused(raw):
    with pytest.raises(SourceProtocolError):
        parse_head(raw)


@pytest.mark.parametrize(
    ("raw", "keep"),
    [
        (b"HTTP/1.1 206 OK", True),
        (b"HTTP/1.1 206 OK\r\nConnection: Close", False),
        (b"HTTP/1.0 206 OK", False),
        (b"HTTP/1.0 206 OK\r\nConnection: keep-alive", True),
    ],
)
def test_whether_the_connection_stays(raw, keep):
    assert parse_head(raw).keep_alive is keep


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        (b"", None),
        (b"\r\nRetry-After: 3", 3),
        (b"\r\nRetry-After: 86400", 30),
        (b"\r\nRetry-After: Sun, 06 Nov 1994 08:49:47 GMT", 10),
        (b"\r\nRetry-After: Sun, 06 Nov 1994 08:49:00 GMT", 0),
        (b"\r\nRetry-After: soon", None),
    ],
)
def test_retry_after_is_read_by_the_servers_own_date(fields, seconds):
    head = parse_head(b"HTTP/1.1 503 No\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT" + fields)
    assert error_of(head).retry_after_seconds == seconds


HEADS = st.tuples(
    st.sampled_from(["HTTP/1.1 206 OK", "HTTP/1.1 503 No", "HTTP/2 206"]),
    st.sampled_from(["bytes 0-99/1000", "bytes 100-199/1000", "bytes 1-2/*", "x\rY: z", "x\nY: z", ""]),
    st.lists(
        st.sampled_from(["Content-Length: 100", 'ETag: "v1"', "Content-Range: bytes 5-6/7", "bad", "A: b"])
    ),
    st.lists(st.sampled_from(["Connection: close", "Content-Length: 100", "Content-Range:bytes 5-6/7", ""])),
).map(lambda t: "\r\n".join([t[0], *t[2], f"Content-Range: {t[1]}", *t[3]]).encode())


@given(st.lists(HEADS | st.binary(max_size=60), max_size=8))
def test_the_quick_parser_is_the_plain_parser(raws):
    parser = HeadParser()
    for raw in [variant for one in raws for variant in (one, one.replace(b"0-99/", b"100-199/"))]:
        try:
            expected = parse_head(raw)
        except SourceProtocolError:
            with pytest.raises(SourceProtocolError):
                parser.parse(raw)
        else:
            assert parser.parse(raw) == expected


@given(st.binary(max_size=200))
def test_any_bytes_are_a_head_or_an_error(raw):
    for candidate in (raw, b"HTTP/1.1 206 OK\r\n" + raw):
        try:
            parsed = parse_head(candidate)
            accepted = check_range(parsed, 100, 100, PIN)
        except BlockgateError:
            continue
        assert 0 < accepted <= 100


@given(
    start=st.integers(0, 1100),
    last=st.integers(0, 1100),
    total=st.integers(0, 1100),
    length=st.integers(0, 1100),
    asked=st.tuples(st.integers(0, 999), st.integers(1, 1000)),
)
def test_what_is_accepted_begins_where_it_was_asked_and_fits(start, last, total, length, asked):
    offset, count = asked
    answer = head(Content_Range=f"bytes {start}-{last}/{total}", Content_Length=str(length))
    try:
        accepted = check_range(answer, offset, count, PIN)
    except BlockgateError:
        return
    assert (start, total) == (offset, 1000)
    assert accepted == length == last - start + 1
    assert 0 < accepted <= count
