"""The map of a device: for each stretch of its address space, where its bytes are and how often they were read. PURE.

Workers exchange one record per span, 9 bytes, layer after layer: reads (u64, little-endian) of all spans of a layer, then
one byte of flags for each of them.
"""

from __future__ import annotations

import operator
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Literal

from gateway.layers.table import SpanTable
from gateway.recipes.segments import Segment

MAX_CELLS = 2048

CellState = Literal["never", "dropped", "disk", "memory", "fetching", "failed"]


class Held(IntFlag):
    """What is so of a span at one moment."""

    MEMORY = 1
    DISK = 2
    FETCHING = 4
    FAILED = 8


@dataclass(slots=True)
class LayerSpans:
    """The spans of one segment's layer: reads and flags of each."""

    reads: array[int]
    held: bytearray

    def add(self, other: LayerSpans, *, alive: bool) -> None:
        """Add another worker's. What one that ended had in memory is gone, its reads are not."""
        if len(other.reads) != len(self.reads):
            return
        self.reads = array("Q", map(operator.add, self.reads, other.reads))
        if alive:
            self.held = bytearray(map(operator.or_, self.held, other.held))


@dataclass(frozen=True, slots=True)
class Cell:
    """A stretch of a device in one state. ``cached`` is the share of its bytes in memory or on disk."""

    offset: int
    length: int
    spans: int
    state: CellState
    cached: float
    reads: int


def dump(layers: Sequence[LayerSpans]) -> bytes:
    """For the other workers."""
    return b"".join(_little(layer.reads).tobytes() + bytes(layer.held) for layer in layers)


def load(content: bytes, counts: Sequence[int]) -> list[LayerSpans] | None:
    """What ``dump`` gave, for layers of so many spans; ``None`` when it is of a device that is cut differently."""
    if len(content) != 9 * sum(counts):
        return None
    layers, at = [], 0
    for count in counts:
        reads = array("Q", content[at : at + 8 * count])
        layers.append(LayerSpans(_little(reads), bytearray(content[at + 8 * count : at + 9 * count])))
        at += 9 * count
    return layers


def cells(
    segments: Sequence[Segment], tables: Sequence[SpanTable | None], layers: Sequence[LayerSpans | None]
) -> list[Cell]:
    """The cells of a device in order, at most ``MAX_CELLS`` and about equally long where spans are put together.

    ``tables`` and ``layers`` run parallel to ``segments``; ``None`` for zeros, which are no cells. A cell belongs to one
    segment, so a device of more segments than cells may get one cell for each.
    """
    spans = sum(table.count for table in tables if table is not None)
    parts = sum(1 for table in tables if table is not None and table.count)
    # Every segment may round up by one cell.
    group = 1 if spans <= MAX_CELLS else -(-spans // max(1, MAX_CELLS - parts))
    return [
        cell
        for segment, table, layer in zip(segments, tables, layers, strict=True)
        if table is not None and layer is not None
        for cell in _of_segment(segment, table, layer, group)
    ]


def _of_segment(segment: Segment, table: SpanTable, layer: LayerSpans, group: int) -> Iterator[Cell]:
    for first in range(0, table.count, group):
        last = min(first + group, table.count) - 1
        start, stop = table.bounds(first)[0], min(table.bounds(last)[1], segment.length)
        if stop <= start:
            continue
        together, cached = Held(0), 0
        for span in range(first, last + 1):
            flags = layer.held[span]
            together |= flags
            if flags & (Held.MEMORY | Held.DISK):
                low, high = table.bounds(span)
                cached += max(0, min(high, segment.length) - low)
        reads = sum(layer.reads[first : last + 1])
        yield Cell(
            offset=segment.offset + start,
            length=stop - start,
            spans=last - first + 1,
            state=_state(together, reads),
            cached=cached / (stop - start),
            reads=reads,
        )


def _state(held: int, reads: int) -> CellState:
    """What is most worth seeing of the spans of a cell."""
    if held & Held.FAILED:
        return "failed"
    if held & Held.FETCHING:
        return "fetching"
    if held & Held.MEMORY:
        return "memory"
    if held & Held.DISK:
        return "disk"
    return "dropped" if reads else "never"


def _little(reads: array[int]) -> array[int]:
    if sys.byteorder == "big":
        reads = array("Q", reads)
        reads.byteswap()
    return reads
