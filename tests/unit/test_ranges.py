"""Range and conditional rules of RFC 9110."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockgate import ranges
from blockgate.ranges import Verdict, content_range, evaluate, parse_content_range, parse_range, range_header
from gateway.errors import RangeNotSatisfiable

TAG = '"abc"'


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", [(0, 1)]),
        ("bytes=0-", [(0, 100)]),
        ("bytes=99-", [(99, 100)]),
        ("bytes=0-99", [(0, 100)]),
        ("bytes=0-100000", [(0, 100)]),
        ("bytes=-1", [(99, 100)]),
        ("bytes=-100", [(0, 100)]),
        ("bytes=-5000", [(0, 100)]),
        ("BYTES=1-2", [(1, 3)]),
        ("bytes= 1-2 , 5-6", [(1, 3), (5, 7)]),
        ("bytes=1-2,,5-6,", [(1, 3), (5, 7)]),
        ("bytes=5-6,1-2", [(1, 3), (5, 7)]),
        ("bytes=0-10,5-20", [(0, 21)]),
        ("bytes=0-10,11-20", [(0, 21)]),
        ("bytes=0-,20-30", [(0, 100)]),
        ("bytes=200-300,1-2", [(1, 3)]),
        ("bytes=-0,1-2", [(1, 3)]),
        ("bytes=0000000000000000001-2", [(1, 3)]),
    ],
)
def test_a_valid_range_selects_these_bytes(header, expected):
    assert parse_range(header, 100) == expected


@pytest.mark.parametrize(
    "header",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=,",
        "items=0-1",
        "bytes=a-b",
        "bytes=1_0-1_2",
        "bytes=+1-+3",
        "bytes=\u0660-\u0669",
        "bytes=1 - 2",
        "bytes=2-1",
        "bytes=-",
        "bytes=--1",
        "bytes=0-1-2",
        "bytes=0-1;2-3",
        "bytes=0x10-0x20",
        "bytes=12345678901234567890-",
        "bytes=1-2,x",
    ],
)
def test_a_malformed_range_or_unknown_unit_is_ignored(header):
    assert parse_range(header, 100) is None


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=9999999999999999999-"])
def test_a_range_outside_of_the_device_is_unsatisfiable(header):
    with pytest.raises(RangeNotSatisfiable):
        parse_range(header, 100)


def test_nothing_of_an_empty_device_is_satisfiable():
    for header in ("bytes=0-", "bytes=-1", "bytes=0-0"):
        with pytest.raises(RangeNotSatisfiable):
            parse_range(header, 0)


def test_sixteen_ranges_are_answered_and_seventeen_are_not():
    assert len(parse_range("bytes=" + ",".join(f"{2 * i}-{2 * i}" for i in range(16)), 100) or []) == 16
    with pytest.raises(RangeNotSatisfiable, match="17 separate ranges"):
        parse_range("bytes=" + ",".join(f"{2 * i}-{2 * i}" for i in range(17)), 100)


def test_many_overlapping_ranges_are_one():
    assert parse_range("bytes=" + ",".join(f"{i}-{i + 5}" for i in range(90)), 100) == [(0, 95)]


def test_an_endless_header_is_refused_before_it_is_parsed():
    with pytest.raises(RangeNotSatisfiable, match="characters"):
        parse_range("bytes=" + "0-0," * 5000, 100)


@given(st.text(), st.integers(0, 1 << 40))
def test_any_text_gives_ranges_inside_of_the_device_or_nothing(text, size):
    for header in (text, f"bytes={text}"):
        try:
            found = parse_range(header, size)
        except RangeNotSatisfiable:
            continue
        for start, stop in found or []:
            assert 0 <= start < stop <= size


@given(
    st.integers(1, 300),
    st.lists(
        st.tuples(st.integers(0, 400), st.one_of(st.none(), st.integers(0, 50))), min_size=1, max_size=12
    ),
)
def test_the_bytes_selected_are_those_of_each_spec_and_no_other(size, specs):
    header = "bytes=" + ",".join(f"{a}-{'' if n is None else a + n}" for a, n in specs)
    wanted = {b for a, n in specs for b in range(a, size if n is None else min(size, a + n + 1))}
    if not wanted:
        with pytest.raises(RangeNotSatisfiable):
            parse_range(header, size)
        return
    found = parse_range(header, size)
    assert found is not None
    assert {b for start, stop in found for b in range(start, stop)} == wanted
    assert all(a[1] < b[0] for a, b in pairwise(found))


def test_content_range_is_inclusive():
    assert content_range(0, 1, 10) == "bytes 0-0/10"
    assert ranges.unsatisfied_range(10) == "bytes */10"


@pytest.mark.parametrize(
    ("conditions", "verdict"),
    [
        ({}, Verdict.SEND),
        ({"if_match": TAG}, Verdict.SEND),
        ({"if_match": "*"}, Verdict.SEND),
        ({"if_match": '"x", "abc"'}, Verdict.SEND),
        ({"if_match": '"x"'}, Verdict.FAILED),
        ({"if_match": f"W/{TAG}"}, Verdict.FAILED),
        ({"if_match": "abc"}, Verdict.FAILED),
        ({"if_match": '"x"', "if_none_match": TAG}, Verdict.FAILED),
        ({"if_none_match": TAG}, Verdict.NOT_MODIFIED),
        ({"if_none_match": f"W/{TAG}"}, Verdict.NOT_MODIFIED),
        ({"if_none_match": "*"}, Verdict.NOT_MODIFIED),
        ({"if_none_match": '"x"'}, Verdict.SEND),
        ({"if_none_match": TAG, "if_range": '"x"'}, Verdict.NOT_MODIFIED),
        ({"if_range": TAG}, Verdict.SEND),
        ({"if_range": f"W/{TAG}"}, Verdict.SEND_WHOLE),
        ({"if_range": '"x"'}, Verdict.SEND_WHOLE),
        ({"if_range": "Tue, 24 Nov 2026 00:00:00 GMT"}, Verdict.SEND_WHOLE),
    ],
)
def test_preconditions_follow_section_13_2_2(conditions, verdict):
    assert evaluate(TAG, **conditions) is verdict


@given(st.integers(0, 2**40), st.integers(1, 2**30), st.integers(0, 2**30))
def test_what_is_written_is_read_back(start, length, after):
    stop, size = start + length, start + length + after
    written = content_range(start, stop, size)
    assert parse_content_range(written) == parse_content_range(written.encode()) == (start, stop, size)
    assert parse_content_range(f"bytes {start}-{stop - 1}/*") == (start, stop, None)
    assert parse_range(range_header(start, stop), size) == [(start, stop)]


@pytest.mark.parametrize(
    "value",
    [
        "",
        "bytes 5-8",
        "bytes 5-4/20",
        "bytes 5-4/*",
        "bytes 5-20/20",
        "bytes */20",
        "bytes ٣-8/20",
        "bytes 5-8/20, bytes 5-8/20",
    ],
)
def test_any_other_content_range_is_none(value):
    assert parse_content_range(value) is None
    assert parse_content_range(value.encode()) is None
