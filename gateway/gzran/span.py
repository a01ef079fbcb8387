"""Which bytes belong to a span. PURE. All ranges are half-open."""

from __future__ import annotations

from gateway.gzran.zinfo import ZinfoTable


def compressed_range(table: ZinfoTable, index: int, blob_size: int) -> tuple[int, int]:
    """Bytes of the blob from which span ``index`` inflates.

    Begins one byte early when the checkpoint has bits left in it. Ends at the next checkpoint's ``in``
    (whose own leftover bits lie before that); the last span ends with the blob.
    """
    start = table.in_offsets[index] - (1 if table.bits[index] else 0)
    following = index + 1
    return start, table.in_offsets[following] if following < len(table) else blob_size
