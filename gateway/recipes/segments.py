"""The address space of a device as a list of segments. PURE.

A segment is a run of device bytes that comes from one place: EROFS metadata, the decoded bytes of a layer, a blob as it
is, or zeros. Segments are contiguous from 0 to the device's size.

Layout version 2: the metadata and each layer begin at a multiple of 4096 bytes and are padded with zeros to one, so
that each 4 KiB block of the device belongs to one of them (its hash-tree leaf is then a fact of the layer). Two
exceptions: a single layer that is served as bytes has its exact length, and supplied metadata with a device table
says itself where layers lie.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from gateway.erofs.ondisk import ALIGN_BYTES
from gateway.errors import InvalidMetadata

BLOCK_BYTES = 512
"""What a device's block device counts in; EROFS blocks are as long."""
LAYOUT_VERSION = 2

SegmentKind = Literal["metadata", "gzip", "tar", "raw", "zero"]


@dataclass(frozen=True, slots=True)
class Segment:
    """``[offset, offset + length)`` of the device; it shows its source's first ``length`` bytes.

    ``digest`` names the content (the blob as it lies in its source, or the metadata), ``cut`` the way that it is cut
    into spans. Zeros have neither.
    """

    kind: SegmentKind
    offset: int
    length: int
    digest: str | None = None
    cut: str | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Something to put into a device: ``size`` decoded bytes, content and cut as in ``Segment``."""

    kind: SegmentKind
    size: int
    digest: str
    cut: str


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a device table wants a layer: both in bytes."""

    offset: int
    length: int


def padded(size: int, unit: int = ALIGN_BYTES) -> int:
    """``size`` rounded up to a multiple of ``unit``."""
    return -(-size // unit) * unit


def bare(piece: Piece) -> list[Segment]:
    """One layer as bytes: nothing in front, nothing behind."""
    return [Segment(piece.kind, 0, piece.size, piece.digest, piece.cut)] if piece.size else []


def concatenate(pieces: Iterable[Piece]) -> list[Segment]:
    """Pieces one behind the other, each padded."""
    segments: list[Segment] = []
    offset = 0
    for piece in pieces:
        if piece.size:
            segments.append(Segment(piece.kind, offset, piece.size, piece.digest, piece.cut))
        offset += piece.size
        if padded(offset) > offset:
            segments.append(Segment("zero", offset, padded(offset) - offset))
            offset = padded(offset)
    return segments


def place(metadata: Piece, slots: Sequence[Slot], layers: Sequence[Piece]) -> list[Segment]:
    """Metadata with a device table: layer *i* lies where slot *i* says, and is as long as that says.

    A slot may end before its layer does (at the tar's end-of-archive records); between segments there are zeros.
    Raises ``InvalidMetadata`` when slots and layers do not fit each other or overlap.
    """
    if len(slots) != len(layers):
        raise InvalidMetadata(f"the metadata's device table has {len(slots)} slots for {len(layers)} layers")
    segments = [Segment(metadata.kind, 0, metadata.size, metadata.digest, metadata.cut)]
    end = metadata.size
    order = sorted(range(len(slots)), key=lambda i: slots[i].offset)
    for i in order:
        slot, layer = slots[i], layers[i]
        if not slot.length:
            continue  # an empty layer is nowhere, and may share its place with another one
        if slot.offset < end:
            raise InvalidMetadata(
                f"slot {i} of the device table begins at byte {slot.offset}, inside of what is before it"
            )
        if slot.length > padded(layer.size, BLOCK_BYTES):
            raise InvalidMetadata(
                f"slot {i} of the device table is {slot.length} bytes long, its layer has only {layer.size}: "
                "the metadata is of another layer"
            )
        if slot.offset > end:
            segments.append(Segment("zero", end, slot.offset - end))
        length = min(slot.length, layer.size)
        if length:
            segments.append(Segment(layer.kind, slot.offset, length, layer.digest, layer.cut))
        end = slot.offset + length
    if padded(end) > end:
        segments.append(Segment("zero", end, padded(end) - end))
    return segments


def total(segments: Sequence[Segment]) -> int:
    """Size of the device in bytes."""
    return segments[-1].offset + segments[-1].length if segments else 0


def identity(segments: Sequence[Segment]) -> str:
    """The strong entity tag: it depends on content and its arrangement alone, so it is the same on every replica.

    How a layer is cut into spans is left out: it does not change a byte.
    """
    content = [(s.kind, s.offset, s.length, s.digest) for s in segments]
    text = json.dumps([LAYOUT_VERSION, content], separators=(",", ":"))
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:40]}"'


class SegmentMap:
    """Finds the segment that holds an offset."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = list(segments)
        self.size = total(segments)
        self._offsets = [segment.offset for segment in segments]

    def find(self, offset: int) -> int:
        """Index of the segment that holds byte ``offset``."""
        if not 0 <= offset < self.size:
            raise IndexError(offset)
        return bisect_right(self._offsets, offset) - 1
