"""The map: cells cover every segment, whatever is put together."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from gateway.layers.table import UNKNOWN, Span, SpanTable
from gateway.observe.spanmap import MAX_CELLS, Held, LayerSpans, cells, dump, load
from gateway.recipes.segments import Segment


def table_of(lengths):
    spans, at = [], 0
    for length in lengths:
        spans.append(Span(at, at + length, at, at + length, 0, UNKNOWN, UNKNOWN))
        at += length
    return SpanTable.of(spans)


def spans_of(reads, held=None):
    return LayerSpans(array("Q", reads), bytearray(held or len(reads)))


layers = st.lists(st.lists(st.integers(0, 1 << 20), min_size=1, max_size=30), min_size=1, max_size=6)


@given(layers, st.data())
def test_cells_cover_each_segment_and_count_each_read_once(lengths, data):
    tables = [table_of(each) for each in lengths]
    segments, at = [], 0
    for table in tables:
        segments.append(Segment("gzip", at, table.size))
        at += table.size
    spans = [spans_of([data.draw(st.integers(0, 9)) if length else 0 for length in each]) for each in lengths]
    made = cells(segments, tables, spans)
    assert sum(cell.length for cell in made) == at
    assert sum(cell.reads for cell in made) == sum(sum(each.reads) for each in spans)
    position = 0
    for cell in made:
        assert cell.offset == position
        position += cell.length


def test_zeros_are_no_cells():
    table = table_of([512])
    segments = [Segment("gzip", 0, 512), Segment("zero", 512, 512)]
    assert [cell.offset for cell in cells(segments, [table, None], [spans_of([1]), None])] == [0]


def test_a_segment_that_shows_only_the_beginning_of_its_layer_ends_there():
    table = table_of([1000, 1000])
    made = cells([Segment("gzip", 0, 1500)], [table], [spans_of([0, 0], [2, 2])])
    assert [(cell.length, cell.cached) for cell in made] == [(1000, 1), (500, 1)]


def test_big_devices_get_at_most_so_many_cells():
    tables = [table_of([4096] * 50_000), table_of([4096] * 1000), table_of([512])]
    segments, at = [], 0
    for table in tables:
        segments.append(Segment("gzip", at, table.size))
        at += table.size
    made = cells(segments, tables, [spans_of([1] * table.count) for table in tables])
    assert MAX_CELLS // 2 < len(made) <= MAX_CELLS
    assert sum(cell.reads for cell in made) == sum(cell.spans for cell in made) == 51_001


def test_the_state_is_what_is_most_worth_seeing():
    table = table_of([512] * 6)
    held = [0, 0, Held.DISK, Held.DISK | Held.MEMORY, Held.FETCHING, Held.FAILED | Held.DISK]
    made = cells([Segment("gzip", 0, table.size)], [table], [spans_of([0, 1, 1, 1, 0, 0], held)])
    assert [cell.state for cell in made] == ["never", "dropped", "disk", "memory", "fetching", "failed"]


@given(st.lists(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 15)), min_size=1), min_size=1))
def test_what_workers_exchange_is_read_as_it_was_written(drawn):
    spans = [spans_of([reads for reads, _ in each], [held for _, held in each]) for each in drawn]
    assert load(dump(spans), [len(each) for each in drawn]) == spans


def test_another_cut_is_not_misread():
    assert load(dump([spans_of([1, 2])]), [3]) is None


def test_workers_add_reads_and_only_living_ones_hold_anything():
    mine = spans_of([1, 2], [Held.MEMORY, 0])
    mine.add(spans_of([10, 20], [0, Held.MEMORY]), alive=False)
    assert (list(mine.reads), list(mine.held)) == ([11, 22], [1, 0])
    mine.add(spans_of([0, 0], [0, Held.FETCHING]), alive=True)
    assert list(mine.held) == [1, 4]
