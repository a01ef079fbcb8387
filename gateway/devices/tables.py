"""Tables of checkpoints that somebody handed in (zinfo), before and while a pass proves them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from blockgate.reader import Blob
from gateway.artifacts import Artifacts
from gateway.errors import CorruptStream, InvalidZinfo
from gateway.gzran import zinfo
from gateway.gzran.gzip import gzip_header_length
from gateway.gzran.inflate import inflate_tail
from gateway.gzran.span import compressed_range
from gateway.layers.codec import GZIP
from gateway.layers.index import IndexFacts
from gateway.layers.key import LayerKey
from gateway.layers.store import Draft
from gateway.layers.table import UNKNOWN, Span, SpanTable

_HEADER_STEP = 4096
_HEADER_LIMIT = 1 << 17


async def load(artifacts: Artifacts, digest: str, blob: Blob) -> zinfo.ZinfoTable:
    """An uploaded table, checked by itself and against the blob's own gzip header, which a v1 table does not hold.

    Raises ``InvalidZinfo``, ``ArtifactNotFound``, ``CorruptStream``, and what the blob raises.
    """
    header = await _gzip_header(blob)
    data = await artifacts.read(digest)
    if not data:
        raise InvalidZinfo(f"the zinfo {digest} is empty")
    return await asyncio.to_thread(
        zinfo.parse, memoryview(data), gzip_header_length=header, blob_size=blob.size
    )


async def unproven_index(
    blob: Blob, key: LayerKey, table: zinfo.ZinfoTable, digest: str
) -> tuple[IndexFacts, SpanTable]:
    """Facts and spans of the index that a table alone gives, without digests.

    A zinfo does not say where the layer ends: its last span is decoded to find out. Raises what the blob raises,
    ``CorruptStream``.
    """
    last = len(table) - 1
    start, stop = compressed_range(table, last, blob.size)
    fetched = await blob.read(start, stop - start)
    tail = await asyncio.to_thread(
        inflate_tail,
        fetched,
        table.bits[last],
        bytes(table.window(last)),
        zinfo.MAX_SPAN_BYTES,
        first=last == 0,
    )
    size = table.out_offsets[last] + len(tail)
    spans = await asyncio.to_thread(lambda: SpanTable.of(_spans(table, blob.size, size)))
    facts = IndexFacts(
        blob=key.blob,
        blob_size=blob.size,
        codec=GZIP.name,
        cut=key.cut,
        span_size=table.span_size,
        size=size,
        sha256="",
        zinfo=digest,
        contents_error="the layer has not been read in full yet; supply its metadata, or register it with verify: before",
        files={},
    )
    return facts, spans


def write_checkpoints(table: zinfo.ZinfoTable, draft: Draft) -> None:
    """The table's windows, for the index; blocking."""
    draft.begin_checkpoints(table.span_size)
    for number, checkpoint in enumerate(table):
        draft.checkpoint(checkpoint, bytes(table.window(number)))


def _spans(table: zinfo.ZinfoTable, blob_size: int, size: int) -> Iterator[Span]:
    for number in range(len(table)):
        start, stop = compressed_range(table, number, blob_size)
        out_stop = table.out_offsets[number + 1] if number + 1 < len(table) else size
        yield Span(start, stop, table.out_offsets[number], out_stop, table.bits[number], UNKNOWN, UNKNOWN)


async def _gzip_header(blob: Blob) -> int:
    """Length of the blob's own gzip header. Raises ``CorruptStream`` when it has none."""
    length = min(_HEADER_STEP, blob.size)
    while True:
        head = bytes(await blob.read(0, length))
        found = gzip_header_length(head)
        if found is not None:
            return found
        if length in (blob.size, _HEADER_LIMIT):
            raise CorruptStream("the blob does not begin with a complete gzip header")
        length = min(length * 8, blob.size, _HEADER_LIMIT)
