"""Random readers never cause reading ahead; streams do, doubling, also when they interleave."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.devices.readahead import StreamTracker

MIB = 1 << 20
LONGEST = 8 * MIB


@given(st.lists(st.integers(0, 1000), unique=True, max_size=200))
def test_a_random_reader_never_matches(places):
    tracker = StreamTracker(LONGEST)
    for place in places:
        # Blocks with a gap between them: none begins where another one ended.
        assert tracker.note(place * 10_000, place * 10_000 + 4096) == 0


@given(st.integers(0, 1 << 40), st.lists(st.integers(1, MIB), min_size=3, max_size=20))
def test_a_sequential_reader_is_read_ahead_of_twice_as_far_each_time(start, lengths):
    tracker = StreamTracker(LONGEST)
    seen = []
    for length in lengths:
        seen.append(tracker.note(start, start + length))
        start += length
    assert seen[:2] == [0, 0]
    assert seen[2:] == [min(MIB << i, LONGEST) for i in range(len(seen) - 2)]


@given(st.integers(2, 64))
def test_interleaved_streams_are_told_apart(count):
    tracker = StreamTracker(LONGEST)
    for turn in range(4):
        for stream in range(count):
            at = stream * (1 << 30) + turn * 4096
            assert tracker.note(at, at + 4096) == (0 if turn < 2 else MIB << (turn - 2))


def test_of_too_many_streams_the_least_recently_continued_is_forgotten():
    tracker = StreamTracker(LONGEST)
    for turn in range(3):
        for stream in range(65):
            at = stream * (1 << 30) + turn * 4096
            assert tracker.note(at, at + 4096) == 0
    assert len(tracker._runs) == 64


def test_a_very_long_stream_stays_within_its_bound():
    tracker = StreamTracker(LONGEST)
    assert {tracker.note(i * 512, i * 512 + 512) for i in range(500)} == {0, MIB, 2 * MIB, 4 * MIB, LONGEST}


def test_reading_the_same_place_again_is_no_stream():
    tracker = StreamTracker(LONGEST)
    assert {tracker.note(0, 4096) for _ in range(20)} == {0}
