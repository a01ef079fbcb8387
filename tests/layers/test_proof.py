"""What vouches for spans: digests of their own, or the spans before them."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ChainMismatch, IndexDamaged, SpanMismatch
from gateway.gzran.zinfo import WINDOW_BYTES
from gateway.layers.proof import Chained, Proven
from gateway.layers.table import UNKNOWN, Span, SpanTable
from tests.support.layers import content, failure

LENGTHS = [40_000, 10_000, 0, 5_000, 20_000, 100_000, 1_000, 32_768, 7]


class Fake:
    """An index by the lengths of its spans, and who fetches them."""

    def __init__(self, lengths=LENGTHS):
        self.ends = [0, *itertools.accumulate(lengths)]
        self.data = content(self.ends[-1] + 1, 8)
        self.table = SpanTable.of(
            Span(at, at + 1, start, stop, 0, UNKNOWN, UNKNOWN)
            for at, (start, stop) in enumerate(itertools.pairwise(self.ends))
        )
        padded = bytes(WINDOW_BYTES) + self.data
        self.windows = [bytearray(padded[start : start + WINDOW_BYTES]) for start in self.ends[:-1]]
        self.fetched = []

    def window(self, number):
        return bytes(self.windows[number])

    def truth(self, number):
        return self.data[self.ends[number] : self.ends[number + 1]]

    async def fetch(self, number):
        self.fetched.append(number)
        await asyncio.sleep(0)
        return self.truth(number)


async def test_a_proven_span_needs_nothing_but_itself():
    index = Fake()
    assert await Proven().read(index, 5, index.fetch) == index.truth(5)
    assert index.fetched == [5]


def test_only_what_is_proven_may_be_kept_where_others_read():
    assert Proven().shared
    assert not Chained("here").shared


@pytest.mark.parametrize(
    ("number", "before"),
    [
        (0, []),
        (1, [0]),
        (2, [0, 1]),
        (3, [0, 1]),
        (4, [0, 1, 3]),
        (5, [1, 3, 4]),
        (6, [5]),
        (7, [5, 6]),
        (8, [7]),
    ],
)
async def test_a_chained_span_looks_back_as_far_as_a_window_reaches(number, before):
    """Empty spans are no part of it."""
    index = Fake()
    assert await Chained("here").read(index, number, index.fetch) == index.truth(number)
    assert sorted(index.fetched) == [*before, number]


async def test_what_was_confirmed_needs_no_second_look():
    index, proof = Fake(), Chained("here")
    await proof.read(index, 4, index.fetch)
    index.fetched.clear()
    await proof.read(index, 4, index.fetch)
    assert index.fetched == [4]


async def test_a_span_as_long_as_a_window_confirms_the_next_one():
    index, proof = Fake(), Chained("here")
    for number in (5, 7):
        await proof.read(index, number, index.fetch)
    index.fetched.clear()
    for number in (6, 8):
        await proof.read(index, number, index.fetch)
    assert index.fetched == [6, 8]


async def test_a_shorter_one_does_not():
    index, proof = Fake(), Chained("here")
    await proof.read(index, 4, index.fetch)
    index.fetched.clear()
    await proof.read(index, 5, index.fetch)
    assert index.fetched == [1, 3, 4, 5]


async def test_the_first_span_confirms_the_second_only_when_it_fills_its_window():
    index, proof = Fake([10_000, 5_000]), Chained("here")
    await proof.read(index, 0, index.fetch)
    index.windows[1][-1] ^= 1
    with pytest.raises(ChainMismatch):
        await proof.read(index, 1, index.fetch)


@given(number=st.integers(1, len(LENGTHS) - 1), at=st.integers(0, WINDOW_BYTES - 1), bit=st.integers(0, 7))
async def test_a_window_that_is_not_what_comes_before_is_found_wherever_it_differs(number, at, bit):
    index = Fake()
    if at < WINDOW_BYTES - index.ends[number]:
        return  # nothing comes before the layer's first byte
    index.windows[number][at] ^= 1 << bit
    with pytest.raises(ChainMismatch, match="here"):
        await Chained("here").read(index, number, index.fetch)


@pytest.mark.parametrize("confirmed_by", [5, 6])
async def test_a_window_that_changed_since_it_was_confirmed_is_damage(confirmed_by):
    index, proof = Fake(), Chained("here")
    await proof.read(index, confirmed_by, index.fetch)
    index.windows[6][0] ^= 1
    index.fetched.clear()
    with pytest.raises(IndexDamaged):
        await proof.read(index, 6, index.fetch)
    assert index.fetched == []
    # Made again, it is what it was.
    index.windows[6][0] ^= 1
    assert await proof.read(index, 6, index.fetch) == index.truth(6)


async def test_what_could_not_be_looked_at_confirms_nothing():
    index, proof = Fake(), Chained("here")

    async def fetch(number):
        if number == 0:
            raise failure(SpanMismatch)
        return await index.fetch(number)

    with pytest.raises(SpanMismatch):
        await proof.read(index, 1, fetch)
    index.fetched.clear()
    await proof.read(index, 1, index.fetch)
    assert sorted(index.fetched) == [0, 1]


async def test_when_one_cannot_be_had_nothing_of_the_others_goes_on():
    index = Fake()
    ended = []

    async def fetch(number):
        if number == 0:
            raise failure(SpanMismatch)
        try:
            return await asyncio.Event().wait()
        finally:
            ended.append(number)

    with pytest.raises(SpanMismatch):
        await asyncio.wait_for(Chained("here").read(index, 3, fetch), 20)
    assert sorted(ended) == [1, 3]


async def test_windows_that_bytes_have_none_of_are_not_asked_for():
    index = Fake([50_000])
    index = SimpleNamespace(table=index.table, window=lambda _: b"", fetch=index.fetch)
    assert len(await Chained("here").read(index, 0, index.fetch)) == 50_000
