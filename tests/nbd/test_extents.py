from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nbd_client.source.extents import OVERHEAD_BYTES, Extent, ExtentMap

SIZE = 200
CONTENT = bytes(range(SIZE))


def ready(extents: ExtentMap, start: int, end: int) -> None:
    extent = Extent(start, end, "pending")
    assert extents.add(extent)
    extents.complete(extent, memoryview(CONTENT)[start:end])


def test_a_part_of_an_extent_is_found_a_part_across_two_is_not():
    extents = ExtentMap(1 << 20)
    ready(extents, 10, 20)
    ready(extents, 20, 30)
    assert bytes(extents.find(12, 18)) == CONTENT[12:18]
    assert bytes(extents.find(20, 30)) == CONTENT[20:30]
    assert extents.find(15, 25) is None
    assert extents.find(5, 12) is None
    assert extents.find(30, 31) is None


def test_a_pending_extent_fills_its_gap_but_is_not_found():
    extents = ExtentMap(1 << 20)
    extents.add(Extent(10, 20, "pending"))
    assert extents.gaps(0, 30) == [(0, 10), (20, 30)]
    assert extents.find(10, 20) is None


def test_what_failed_leaves_its_gap_again():
    extents = ExtentMap(1 << 20)
    extent = Extent(10, 20, "pending")
    assert extents.add(extent)
    extents.remove(extent)
    assert extents.gaps(0, 30) == [(0, 30)]


def test_overlaps_and_empty_extents_are_refused():
    extents = ExtentMap(1 << 20)
    ready(extents, 10, 20)
    for start, end in ((9, 11), (19, 21), (12, 13), (5, 25), (30, 30)):
        assert not extents.add(Extent(start, end, "pending"))
    assert extents.gaps(0, 30) == [(0, 10), (20, 30)]


def test_the_least_recently_used_is_evicted():
    extents = ExtentMap(2 * (10 + OVERHEAD_BYTES))
    ready(extents, 0, 10)
    ready(extents, 10, 20)
    extents.find(0, 10)
    ready(extents, 20, 30)
    assert extents.gaps(0, 30) == [(10, 20)]


def test_clearing_forgets_what_is_ready_and_keeps_what_is_on_its_way():
    extents = ExtentMap(1 << 20)
    ready(extents, 0, 10)
    extents.add(Extent(10, 20, "pending"))
    extents.clear()
    assert (extents.used_bytes, extents.gaps(0, 20)) == (0, [(0, 10)])


RANGE = st.tuples(st.integers(0, SIZE - 1), st.integers(1, 40)).map(lambda t: (t[0], min(t[0] + t[1], SIZE)))
STEPS = st.lists(st.tuples(st.sampled_from(["read", "begin", "finish", "fail", "clear"]), RANGE), max_size=40)


@given(STEPS, st.integers(0, 5000))
def test_the_map_behaves_like_one_flag_per_byte(steps, budget):
    """Against a model: never an overlap, never a wrong byte, never above the budget, gaps exact."""
    extents = ExtentMap(budget)
    pending = []
    for step, (start, end) in steps:
        if step in {"begin", "read"}:
            for gap_start, gap_end in extents.gaps(start, end):
                extent = Extent(gap_start, gap_end, "pending")
                assert extents.add(extent)
                if step == "begin":
                    pending.append(extent)
                else:
                    extents.complete(extent, memoryview(CONTENT)[gap_start:gap_end])
        elif step == "clear":
            extents.clear()
        elif pending:
            extent = pending.pop(0)
            if step == "finish":
                extents.complete(extent, memoryview(CONTENT)[extent.start : extent.end])
            else:
                extents.remove(extent)
        assert extents.used_bytes <= budget
        everything = extents.overlapping(0, SIZE)
        assert len(everything) == len(extents)
        covered = [offset for extent in everything for offset in range(extent.start, extent.end)]
        assert covered == sorted(set(covered))
        uncovered = [offset for a, b in extents.gaps(0, SIZE) for offset in range(a, b)]
        assert sorted(covered + uncovered) == list(range(SIZE))
        found = extents.find(start, end)
        assert found is None or bytes(found) == CONTENT[start:end]
        cost = sum(e.end - e.start + OVERHEAD_BYTES for e in everything if e.data is not None)
        assert extents.used_bytes == cost
