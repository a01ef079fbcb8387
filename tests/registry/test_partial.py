from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockgate.ranges import range_header
from gateway.errors import RangeIgnored, RegistryProtocolError, WrongRange
from gateway.registry.partial import check_partial, check_whole


def check(status: int, start: int, stop: int, size: int, **headers: str) -> None:
    check_partial(
        status,
        {name.replace("_", "-"): value for name, value in headers.items()},
        start,
        stop,
        size=size,
        where="host/repo",
    )


@given(st.integers(0, 2**40), st.integers(1, 2**30), st.integers(0, 2**30))
def test_an_honest_answer_is_accepted(start, length, after):
    stop, size = start + length, start + length + after
    assert range_header(start, stop) == f"bytes={start}-{stop - 1}"
    check(
        206, start, stop, size, content_range=f"bytes {start}-{stop - 1}/{size}", content_length=str(length)
    )
    check(206, start, stop, size, content_range=f"bytes {start}-{stop - 1}/*")


@given(st.integers(0, 1000), st.integers(0, 1000), st.one_of(st.integers(0, 1000), st.just("*")))
def test_no_label_but_the_right_one_is_accepted(first, last, total):
    with contextlib.suppress(WrongRange):
        check(206, 100, 200, 1000, content_range=f"bytes {first}-{last}/{total}")
        assert (first, last) == (100, 199)
        assert total in {1000, "*"}


@given(st.text(max_size=40))
def test_any_other_label_is_a_wrong_range(text):
    with pytest.raises(WrongRange):
        check(206, 5, 9, 20, content_range=text)


@pytest.mark.parametrize(
    ("status", "headers", "error"),
    [
        (200, {"content_length": "20"}, RangeIgnored),
        (206, {}, WrongRange),
        (206, {"content_type": "multipart/byteranges; boundary=x"}, WrongRange),
        (206, {"content_range": "bytes 5-8/20", "content_length": "3"}, WrongRange),
        (206, {"content_range": "bytes 5-8/20", "content_encoding": "gzip"}, RegistryProtocolError),
        (206, {"content_range": "bytes 5-8/20, bytes 5-8/20"}, WrongRange),
        (416, {"content_range": "bytes */4"}, RegistryProtocolError),
        (204, {}, RegistryProtocolError),
    ],
)
def test_each_lie_has_its_error(status, headers, error):
    with pytest.raises(error, match="host/repo"):
        check(status, 5, 9, 20, **headers)


def test_a_whole_blob_is_a_200_of_the_right_length():
    check_whole(200, {"content-length": "20"}, 20, "x")
    check_whole(200, {}, 20, "x")
    with pytest.raises(WrongRange):
        check_whole(200, {"content-length": "21"}, 20, "x")
    with pytest.raises(RegistryProtocolError):
        check_whole(206, {}, 20, "x")
    with pytest.raises(RegistryProtocolError):
        check_whole(200, {"content-encoding": "br"}, 20, "x")


def test_a_registry_s_text_is_escaped_and_cut_in_errors():
    with pytest.raises(WrongRange) as caught:
        check(206, 5, 9, 20, content_range="\x1b[31m" + "x" * 10_000)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 300
