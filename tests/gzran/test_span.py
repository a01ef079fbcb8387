from gateway.gzran import span
from gateway.gzran.zinfo import ZERO_WINDOW, Checkpoint
from tests.support import zinfo_tables

TABLE = zinfo_tables.table(
    (point, ZERO_WINDOW)
    for point in (Checkpoint(10, 0, 0), Checkpoint(40, 0, 0), Checkpoint(70, 900, 3), Checkpoint(90, 1900, 0))
)


def test_compressed_ranges_start_a_byte_early_for_leftover_bits_and_end_at_the_next_checkpoint():
    assert [span.compressed_range(TABLE, i, 120) for i in range(4)] == [
        (10, 40),
        (40, 70),
        (69, 90),
        (90, 120),
    ]


def test_output_ranges_cover_the_layer_without_a_gap():
    assert [zinfo_tables.output_range(TABLE, i, 2000) for i in range(4)] == [
        (0, 0),
        (0, 900),
        (900, 1900),
        (1900, 2000),
    ]
