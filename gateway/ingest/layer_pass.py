"""One pass over one layer: bytes in as they arrive, a complete layer index folder out.

The calling thread inflates and walks; the digest lane hashes. What is proven at the end: the blob's digest and length
(manifest), the digest of the decoded bytes (configuration), CRC-32 and ISIZE of every gzip member, and, when a zinfo
was supplied, that each of its checkpoints is one and that each of its windows is what lies before it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from gateway.errors import BlobMismatch, DiffIdMismatch, InvalidZinfo
from gateway.gzran.checkpoints import CheckpointBuilder
from gateway.gzran.zinfo import Checkpoint, ZinfoTable
from gateway.ingest.contents import Contents
from gateway.ingest.folder import FolderWriter, spans_digest
from gateway.ingest.lane import BitSpanDigests, DigestLane, SpanDigests
from gateway.spans.index import Kind, LayerFacts
from gateway.spans.table import Span, SpanTable

_LANE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Promise:
    """What the manifest and the configuration promise of a blob."""

    digest: str
    size: int
    diff_id: str | None = None


class LayerPass:
    """Feed it the whole blob, then ``finish``. Blocking; one thread at a time. ``close`` it in any case."""

    def __init__(
        self,
        promise: Promise,
        kind: Kind,
        span_size: int,
        folder: FolderWriter,
        *,
        supplied: ZinfoTable | None = None,
        supplied_digest: str | None = None,
    ) -> None:
        self._promise = promise
        self._kind: Kind = kind
        self._span_size = span_size if supplied is None else supplied.span_size
        self._folder = folder
        self._supplied = supplied
        self._supplied_digest = supplied_digest
        self._contents = None if kind == "raw" else Contents(folder.toc_path)
        self._blob = BitSpanDigests()
        self._decoded = SpanDigests()
        self._lane = DigestLane()
        self._fed = 0
        self._decoded_length = 0
        self._cuts: list[tuple[int, int]] = []
        self._ins = array("Q")
        self._outs = array("Q")
        self._bits = bytearray()
        self._pending = bytearray()
        self._builder: CheckpointBuilder | None = None
        if kind == "gzip":
            folder.begin_checkpoints(self._span_size)
            self._builder = CheckpointBuilder(
                self._span_size, self._output, self._checkpoint, expected=supplied
            )

    def feed(self, data: bytes) -> None:
        """The next bytes of the blob. Raises ``IntegrityError``, ``InvalidLayer`` or ``InvalidZinfo``."""
        self._fed += len(data)
        if self._fed > self._promise.size:
            raise BlobMismatch(f"the blob is longer than the {self._promise.size} bytes of its descriptor")
        if self._builder is None:
            self._feed_flat(data)
            return
        self._builder.feed(data)
        self._lane.submit(partial(self._blob.update_with_cuts, data, self._cuts))
        self._cuts = []

    def finish(self) -> LayerFacts:
        """The blob is complete: check every promise, write the folder, give it its name."""
        if self._fed != self._promise.size:
            raise BlobMismatch(
                f"the blob ended after {self._fed} of the {self._promise.size} bytes of its descriptor"
            )
        members = 0
        if self._builder is not None:
            members = self._builder.finish().members
        self._flush()
        self._lane.submit(self._decoded.cut)
        self._lane.submit(self._blob.cut)
        self._lane.close()
        blob_digest = f"sha256:{self._blob.hexdigest() if self._builder else self._decoded.hexdigest()}"
        if blob_digest != self._promise.digest:
            raise BlobMismatch(
                f"the blob's digest is {blob_digest}, its descriptor says {self._promise.digest}"
            )
        decoded_digest = f"sha256:{self._decoded.hexdigest()}"
        if self._promise.diff_id is not None and decoded_digest != self._promise.diff_id:
            raise DiffIdMismatch(
                f"the decompressed layer's digest is {decoded_digest}, "
                f"the image's configuration says {self._promise.diff_id}"
            )
        toc_error = self._contents.finish() if self._contents else None
        table = SpanTable.of(self._spans())
        facts = LayerFacts(
            blob=self._promise.digest,
            blob_size=self._promise.size,
            kind=self._kind,
            span_size=self._span_size,
            size=table.size,
            sha256=decoded_digest,
            members=members,
            spans_sha256=spans_digest(table),
            zinfo=self._supplied_digest,
            toc_error=toc_error,
        )
        self._folder.commit(facts, table)
        return facts

    def close(self) -> None:
        """End the lane's thread."""
        if self._contents is not None:
            self._contents.close()
        self._lane.abandon()

    def _feed_flat(self, data: bytes) -> None:
        view = memoryview(data)
        self._walk(view)
        while view:
            room = self._span_size - self._decoded_length % self._span_size
            piece, view = view[:room], view[room:]
            if self._decoded_length % self._span_size == 0 and self._decoded_length:
                self._lane.submit(self._decoded.cut)
            self._decoded_length += len(piece)
            self._lane.submit(partial(self._decoded.update, piece))

    def _output(self, view: memoryview) -> None:
        self._walk(view)
        self._decoded_length += len(view)
        self._pending += view
        if len(self._pending) >= _LANE_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._lane.submit(partial(self._decoded.update, bytes(self._pending)))
            self._pending = bytearray()

    def _checkpoint(self, checkpoint: Checkpoint, window: bytes) -> None:
        index = len(self._ins)
        if index and self._supplied is not None:
            _check_window(index, bytes(self._supplied.window(index)), window)
        if index:
            self._flush()
            self._lane.submit(self._decoded.cut)
        self._ins.append(checkpoint.in_offset)
        self._outs.append(checkpoint.out_offset)
        self._bits.append(checkpoint.bits)
        self._cuts.append((checkpoint.in_offset, checkpoint.bits))
        self._folder.checkpoint(checkpoint, window)

    def _walk(self, view: memoryview) -> None:
        if self._contents is not None:
            self._contents.feed(view)

    def _spans(self) -> Iterator[Span]:
        if self._builder is None:
            for index, digest in enumerate(self._decoded.pieces):
                start = index * self._span_size
                stop = min(start + self._span_size, self._decoded_length)
                yield Span(start, stop, start, stop, 0, digest, digest)
            return
        # The first piece of the blob is what comes before the first checkpoint: the gzip header.
        digests = zip(self._blob.pieces[1:], self._decoded.pieces, strict=True)
        for index, (in_digest, out_digest) in enumerate(digests):
            last = index + 1 == len(self._ins)
            yield Span(
                in_start=self._ins[index] - (1 if self._bits[index] else 0),
                in_stop=self._promise.size if last else self._ins[index + 1],
                out_start=self._outs[index],
                out_stop=self._decoded_length if last else self._outs[index + 1],
                bits=self._bits[index],
                in_sha256=in_digest,
                out_sha256=out_digest,
            )


def _check_window(index: int, supplied: bytes, true: bytes) -> None:
    """A supplied window has to be the layer's bytes; bytes that no span refers to may have been zeroed."""
    if supplied == true:
        return
    for position, (had, should) in enumerate(zip(supplied, true, strict=True)):
        if had not in (should, 0):
            raise InvalidZinfo(
                f"zinfo checkpoint {index}: byte {position} of its window is {had:#04x}, the layer has {should:#04x} there"
            )
