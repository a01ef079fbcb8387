"""From fetched to verified bytes: every check refuses what it is there for."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import ChainMismatch, CorruptStream, IndexDamaged, IntegrityError, SpanMismatch
from gateway.gzran.zinfo import WINDOW_BYTES
from gateway.layers.codec import GZIP, IDENTITY
from gateway.layers.table import UNKNOWN
from gateway.layers.verify import check_chain, decode_span
from tests.support import gzips
from tests.support.layers import content, index_blob

DATA = content(400_000)
BLOB = gzips.member(DATA)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return asyncio.run(index_blob(tmp_path_factory.mktemp("index"), BLOB, GZIP))


@pytest.fixture(scope="module")
def parts(index):
    """Of each span: itself, what is fetched, its window, the next one's window."""
    found = []
    for number in range(index.table.count):
        span = index.table.span(number)
        following = index.window(number + 1) if number + 1 < index.table.count else None
        found.append((span, BLOB[span.in_start : span.in_stop], index.window(number), following))
    return found


def unproven(span):
    return span._replace(in_sha256=UNKNOWN, out_sha256=UNKNOWN)


def run(number, part):
    span, fetched, window, following = part
    return decode_span(GZIP, span, fetched, window, following, first=number == 0, where="here")


def test_every_span_decodes_to_its_bytes(parts):
    assert len(parts) > 3
    assert b"".join(run(number, part) for number, part in enumerate(parts)) == DATA


def test_without_digests_every_span_decodes_all_the_same(parts):
    for number, (span, fetched, window, following) in enumerate(parts):
        assert (
            run(number, (unproven(span), fetched, window, following)) == DATA[span.out_start : span.out_stop]
        )


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"x", lambda _: b""])
def test_another_length_than_asked_for_is_refused(parts, change):
    span, fetched, window, following = parts[1]
    with pytest.raises(SpanMismatch, match=r"here: .* bytes fetched"):
        decode_span(GZIP, span, change(fetched), window, following, first=False, where="here")


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_of_the_blob_is_refused(parts, data):
    number = data.draw(st.integers(0, len(parts) - 1))
    span, fetched, window, following = parts[number]
    at = data.draw(st.integers(0, len(fetched) - 1))
    broken = bytearray(fetched)
    broken[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(SpanMismatch, match="are not those that were indexed"):
        decode_span(GZIP, span, bytes(broken), window, following, first=number == 0, where="here")


def test_a_wrong_window_is_refused_by_the_digest(parts):
    span, fetched, window, following = parts[1]
    with pytest.raises(IndexDamaged):
        decode_span(
            GZIP, span, fetched, bytes(b ^ 0xFF for b in window), following, first=False, where="here"
        )


def test_a_window_cut_short_is_refused(parts):
    span, fetched, window, following = parts[1]
    with pytest.raises(IndexDamaged):
        decode_span(GZIP, span, fetched, window[:100], following, first=False, where="here")


def test_wrong_bits_are_refused(parts):
    span, fetched, window, following = next(part for part in parts[1:] if part[0].bits)
    with pytest.raises(IntegrityError):
        decode_span(
            GZIP,
            unproven(span)._replace(bits=(span.bits + 1) % 8),
            fetched,
            window,
            following,
            first=False,
            where="here",
        )


@pytest.mark.parametrize("difference", [-1, 1])
def test_an_unproven_span_of_another_length_is_refused(parts, difference):
    span, fetched, window, _ = parts[1]
    other = unproven(span)._replace(out_stop=span.out_stop + difference)
    with pytest.raises(CorruptStream):
        decode_span(GZIP, other, fetched, window, None, first=False, where="here")


@settings(max_examples=50, deadline=None)
@given(at=st.integers(0, WINDOW_BYTES - 1))
def test_an_unproven_span_that_the_next_window_contradicts_is_refused(parts, at):
    span, fetched, window, following = parts[1]
    broken = bytearray(following)
    broken[at] ^= 0x10
    with pytest.raises(ChainMismatch, match="here"):
        decode_span(GZIP, unproven(span), fetched, window, bytes(broken), first=False, where="here")


async def test_stored_bytes_are_their_own_decoding(tmp_path):
    tar = content(150_000, 3)
    index = await index_blob(tmp_path, tar, IDENTITY)
    span = index.table.span(1)
    piece = tar[span.in_start : span.in_stop]
    assert decode_span(IDENTITY, span, piece, b"", None, first=False, where="here") == piece
    with pytest.raises(SpanMismatch):
        decode_span(IDENTITY, span, piece[:-1] + b"\x00", b"", None, first=False, where="here")


@given(st.binary(max_size=100))
@settings(max_examples=20, deadline=None)
def test_a_short_span_fills_the_end_of_the_next_window(data):
    before = content(WINDOW_BYTES)
    check_chain(data, (before + data)[-WINDOW_BYTES:], "here")
    if data:
        wrong = bytes([data[0] ^ 1]) + data[1:]
        with pytest.raises(ChainMismatch):
            check_chain(wrong, (before + data)[-WINDOW_BYTES:], "here")
