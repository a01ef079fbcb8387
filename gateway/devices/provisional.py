"""Serving under a supplied zinfo before a pass has proven it (``verify: background``).

The table gets a layer index folder of its own, without digests. Structure is checked when it is loaded; the chain between
spans is checked by the store whenever one is read.
"""

from __future__ import annotations

import asyncio
import mmap
import shutil
from pathlib import Path

from blockgate.reader import Blob
from gateway.artifacts import Artifacts
from gateway.errors import CorruptStream, InvalidZinfo, StorageError
from gateway.gzran import zinfo
from gateway.gzran.gzip import gzip_header_length
from gateway.gzran.inflate import inflate_tail
from gateway.gzran.span import compressed_range
from gateway.ingest.folder import LayerFolders, spans_digest
from gateway.spans.index import LayerFacts, LayerIndex, index_id
from gateway.spans.table import UNKNOWN, Span, SpanTable

_HEADER_STEP = 4096
_HEADER_LIMIT = 1 << 17


def name_of(supplied_digest: str) -> str:
    """Folder of a provisional index; the span size plays no part in it."""
    return f"{index_id('gzip', 0, supplied_digest)}-provisional"


def load(
    artifacts: Artifacts, digest: str, blob_size: int, gzip_header_length: int | None = None
) -> zinfo.ZinfoTable:
    """Map and check an uploaded zinfo. Raises ``InvalidZinfo`` or ``ArtifactNotFound``."""
    path: Path = artifacts.find(digest)
    try:
        with path.open("rb") as file:
            buffer = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    except ValueError:
        raise InvalidZinfo(f"the zinfo {digest} is empty") from None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    return zinfo.parse(memoryview(buffer), gzip_header_length=gzip_header_length, blob_size=blob_size)


async def gzip_header(blob: Blob) -> int:
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


async def build(
    folders: LayerFolders,
    blob: Blob,
    blob_digest: str,
    blob_size: int,
    table: zinfo.ZinfoTable,
    supplied_digest: str,
) -> LayerIndex:
    """Make the provisional index. A zinfo does not say where the layer ends: its last span is decoded to find out."""
    if table.version == 1:
        table.in_offsets[0] = await gzip_header(blob)
    last = len(table) - 1
    start, stop = compressed_range(table, last, blob_size)
    fetched = await blob.read(start, stop - start)
    tail = await asyncio.to_thread(
        inflate_tail,
        fetched,
        table.bits[last],
        bytes(table.window(last)),
        zinfo.MAX_SPAN_BYTES,
        first=last == 0,
    )
    return await asyncio.to_thread(
        _write, folders, blob_digest, blob_size, table, supplied_digest, table.out_offsets[last] + len(tail)
    )


def remove(folders: LayerFolders, blob_digest: str, supplied_digest: str | None) -> None:
    """The table is proven: the provisional index is not needed any more."""
    if supplied_digest is not None:
        shutil.rmtree(folders.path(blob_digest, name_of(supplied_digest)), ignore_errors=True)


def _write(
    folders: LayerFolders, blob: str, blob_size: int, table: zinfo.ZinfoTable, supplied_digest: str, size: int
) -> LayerIndex:
    def span(index: int) -> Span:
        start, stop = compressed_range(table, index, blob_size)
        out_stop = table.out_offsets[index + 1] if index + 1 < len(table) else size
        return Span(start, stop, table.out_offsets[index], out_stop, table.bits[index], UNKNOWN, UNKNOWN)

    spans = SpanTable.of(span(index) for index in range(len(table)))
    facts = LayerFacts(
        blob=blob,
        blob_size=blob_size,
        kind="gzip",
        span_size=table.span_size,
        size=size,
        sha256="",
        spans_sha256=spans_digest(spans),
        zinfo=supplied_digest,
        toc_error="the layer has not been read in full yet; supply its metadata, or register it with verify: before",
    )
    name = name_of(supplied_digest)
    with folders.begin(blob, name) as folder:
        folder.begin_checkpoints(table.span_size)
        for index, checkpoint in enumerate(table):
            folder.checkpoint(checkpoint, table.window(index))
        folder.commit(facts, spans)
    opened = LayerIndex.open(folders.path(blob, name))
    if opened is None:
        raise StorageError(f"the provisional index of {blob} disappeared while it was being written")
    return opened
