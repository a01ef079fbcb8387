from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from nbd_client.source.readahead import ReadaheadPolicy, Streams

KIB, MIB = 1 << 10, 1 << 20
SIZE = 1 << 30
POLICY = ReadaheadPolicy()


def run(reads, size: int = SIZE):
    streams = Streams(size, POLICY)
    return [streams.observe(offset, length) for offset, length in reads]


def test_one_read_causes_nothing():
    assert run([(0, 128 * KIB)]) == [[]]


def test_the_second_adjacent_read_begins_to_read_ahead():
    first, second = run([(0, 128 * KIB), (128 * KIB, 128 * KIB)])
    assert first == []
    assert second
    assert second[0][0] == 256 * KIB


def test_a_long_sequential_read_has_several_mebibytes_in_flight():
    reads = [(n * 128 * KIB, 128 * KIB) for n in range(256)]
    asked = [piece for ranges in run(reads) for piece in ranges]
    assert asked[-1][1] - (reads[-1][0] + reads[-1][1]) >= 6 * MIB
    assert max(b - a for a, b in asked) == MIB


def test_an_interrupted_stream_goes_on_where_it_was():
    streams = Streams(SIZE, POLICY)
    for n in range(8):
        streams.observe(n * MIB, MIB)
    streams.observe(700 * MIB + 5, 4096)
    assert streams.observe(8 * MIB, MIB)


def test_reads_that_overtake_each_other_stay_one_stream():
    streams = Streams(SIZE, POLICY)
    order = [0, 1, 2, 3, 5, 4, 7, 6, 9, 8, 11, 10]
    asked = [piece for n in order for piece in streams.observe(n * 128 * KIB, 128 * KIB)]
    covered = sorted(asked)
    assert all(a[1] == b[0] for a, b in pairwise(covered))


def test_many_streams_share_the_budget():
    streams = Streams(SIZE, POLICY)
    ahead: dict[int, int] = {}
    for n in range(40):
        for base in range(0, 8 * 100 * MIB, 100 * MIB):
            for _, end in streams.observe(base + n * 128 * KIB, 128 * KIB):
                ahead[base] = end - (base + (n + 1) * 128 * KIB)
    assert len(ahead) == 8
    assert sum(ahead.values()) <= POLICY.total_bytes


def test_a_hundred_thousand_random_reads_cause_next_to_nothing():
    """Neighbours by chance, and reads that fall near what was read ahead, must not feed each other."""
    rng = random.Random(1)
    streams = Streams(SIZE, POLICY)
    blocks = SIZE // (4 * KIB)
    asked = [
        piece for _ in range(100_000) for piece in streams.observe(rng.randrange(blocks) * 4 * KIB, 4 * KIB)
    ]
    assert sum(end - start for start, end in asked) < 100_000 * 4 * KIB // 200


@given(st.permutations(range(64)), st.integers(1, 64 * KIB))
def test_reads_of_which_none_continues_another_cause_nothing(order, length):
    """Every second block in any order: random reads cost exactly what they need."""
    assert all(not ranges for ranges in run([(n * 2 * 64 * KIB, length) for n in order]))


READS = st.lists(
    st.tuples(st.integers(0, 64).map(lambda n: n * 64 * KIB), st.sampled_from([4 * KIB, 64 * KIB, MIB])),
    max_size=60,
)


@given(READS, st.integers(1, 5 * MIB))
def test_what_is_fetched_ahead_lies_in_the_device_and_within_the_window(reads, size):
    streams = Streams(size, POLICY)
    for offset, length in reads:
        if offset + length > size:
            continue
        ranges = streams.observe(offset, length)
        for start, end in ranges:
            assert 0 <= start < end <= size
        assert sum(end - start for start, end in ranges) <= POLICY.window_bytes + MIB


@given(st.integers(1, 300 * KIB), st.integers(0, 100))
def test_a_sequential_reader_never_has_a_range_fetched_twice_nor_one_left_out(length, count):
    asked = [piece for ranges in run([(n * length, length) for n in range(count)]) for piece in ranges]
    assert all(a[1] == b[0] for a, b in pairwise(asked))
