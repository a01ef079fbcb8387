"""The last quarter of an hour, slot by slot."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.observe.timeline import SLOT_SECONDS, SLOTS, Timeline

START = 1_800_000_000


def test_what_is_new_belongs_to_the_slot_of_the_moment():
    timeline = Timeline(2)
    timeline.note(START, [0, 0])
    timeline.note(START + 1, [3, 1])
    timeline.note(START + SLOT_SECONDS, [5, 1])
    series = timeline.series(START + SLOT_SECONDS)
    assert series[-2:] == [[3, 1], [2, 0]]
    assert len(series) == SLOTS


def test_silence_is_zeros():
    assert Timeline(3).series(START) == [[0, 0, 0]] * SLOTS


def test_old_slots_are_forgotten():
    timeline = Timeline(1)
    timeline.note(START, [0])
    for slot in range(2 * SLOTS):
        timeline.note(START + slot * SLOT_SECONDS, [slot])
    assert len(timeline.rows) == SLOTS


def test_a_clock_set_back_loses_nothing():
    timeline = Timeline(1)
    timeline.note(START, [0])
    timeline.note(START + 100, [10])
    timeline.note(START + 50, [15])
    assert sum(row[0] for row in timeline.series(START + 100)) == 15


def test_recent_covers_whole_slots_and_the_one_under_way():
    timeline = Timeline(1)
    timeline.note(START, [0])
    timeline.note(START + 1, [4])
    timeline.note(START + SLOT_SECONDS + 2, [6])
    assert timeline.recent(START + SLOT_SECONDS + 2, 1) == ([6], SLOT_SECONDS + 2)


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 5), st.integers(0, 1)), min_size=1, max_size=60)
)
def test_workers_together_count_what_one_would_have(steps):
    """Each step: seconds that pass, how much is counted, by which of two workers."""
    one, workers = Timeline(1), [Timeline(1), Timeline(1)]
    counters = [0, 0]
    now = START
    for timeline in (one, *workers):
        timeline.note(now, [0])
    for seconds, count, worker in steps:
        now += seconds
        counters[worker] += count
        workers[worker].note(now, [counters[worker]])
        one.note(now, [sum(counters)])
    together = Timeline(1)
    for timeline in workers:
        together.absorb(timeline.rows.items())
    assert together.series(now) == one.series(now)
