"""The span table against a naive model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.layers.table import RECORD, UNKNOWN, Span, SpanTable

DIGESTS = st.binary(min_size=32, max_size=32)


@st.composite
def spans(draw):
    """Contiguous spans; some are empty, some begin inside of a byte."""
    found, at_in, at_out = [], draw(st.integers(0, 30)), 0
    for _ in range(draw(st.integers(0, 12))):
        bits = draw(st.integers(0, 7)) if at_in else 0
        length = draw(st.sampled_from([0, 1, 5, 512, 1 << 20, 1 << 40]))
        compressed = draw(st.integers(0, 1000))
        start = at_in - (1 if bits else 0)
        found.append(
            Span(start, at_in + compressed, at_out, at_out + length, bits, draw(DIGESTS), draw(DIGESTS))
        )
        at_in += compressed
        at_out += length
    return found


@given(spans())
def test_a_table_gives_back_what_it_was_made_of(wanted):
    table = SpanTable.of(wanted)
    again = SpanTable(table.records)
    assert again.count == len(wanted)
    assert [again.span(i) for i in range(again.count)] == wanted
    assert again.size == (wanted[-1].out_stop if wanted else 0)


@given(spans(), st.data())
def test_find_gives_the_span_that_holds_the_byte(wanted, data):
    table = SpanTable.of(wanted)
    if not table.size:
        return
    offset = data.draw(st.integers(0, table.size - 1))
    naive = [i for i, span in enumerate(wanted) if span.out_start <= offset < span.out_stop]
    assert [table.find(offset)] == naive


@given(spans())
def test_bounds_are_those_of_the_span(wanted):
    table = SpanTable.of(wanted)
    assert [table.bounds(i) for i in range(table.count)] == [(s.out_start, s.out_stop) for s in wanted]


@pytest.mark.parametrize("offset", [-1, 10, 11])
def test_find_refuses_what_lies_outside(offset):
    table = SpanTable.of([Span(0, 5, 0, 10, 0, UNKNOWN, UNKNOWN)])
    with pytest.raises(IndexError):
        table.find(offset)


@pytest.mark.parametrize("index", [-1, 1])
def test_span_refuses_a_number_that_is_none(index):
    table = SpanTable.of([Span(0, 5, 0, 10, 0, UNKNOWN, UNKNOWN)])
    with pytest.raises(IndexError):
        table.span(index)


def test_an_empty_table_has_no_bytes():
    table = SpanTable(b"")
    assert (table.count, table.size) == (0, 0)
    with pytest.raises(IndexError):
        table.find(0)


@pytest.mark.parametrize(
    "broken",
    [
        [Span(0, 5, 1, 10, 0, UNKNOWN, UNKNOWN)],
        [Span(0, 5, 0, 10, 0, UNKNOWN, UNKNOWN), Span(5, 9, 11, 12, 0, UNKNOWN, UNKNOWN)],
        [Span(0, 5, 0, 10, 0, UNKNOWN, UNKNOWN), Span(5, 9, 9, 12, 0, UNKNOWN, UNKNOWN)],
        [Span(0, 5, 0, 10, 0, UNKNOWN, UNKNOWN), Span(9, 5, 10, 12, 0, UNKNOWN, UNKNOWN)],
    ],
    ids=["does not begin at 0", "leaves a gap", "overlaps", "ends before it begins"],
)
def test_a_table_that_is_not_contiguous_is_refused(broken):
    with pytest.raises(ValueError, match="does not follow"):
        SpanTable.of(broken)


@pytest.mark.parametrize("excess", [1, RECORD.size - 1])
def test_a_table_of_odd_length_is_refused(excess):
    with pytest.raises(ValueError, match="multiple"):
        SpanTable(bytes(RECORD.size + excess))


def test_a_record_has_the_documented_layout():
    packed = Span(1, 2, 0, 4, 5, b"i" * 32, b"o" * 32).pack()
    assert packed == (
        (1).to_bytes(8, "little")
        + (2).to_bytes(8, "little")
        + bytes(8)
        + (4).to_bytes(8, "little")
        + b"\x05"
        + bytes(7)
        + b"i" * 32
        + b"o" * 32
    )


def test_a_span_is_proven_once_its_digest_is_known():
    assert not Span(0, 5, 0, 10, 0, UNKNOWN, UNKNOWN).proven
    assert Span(0, 5, 0, 10, 0, b"i" * 32, b"o" * 32).proven
