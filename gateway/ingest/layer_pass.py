"""One pass over one layer: bytes in as they arrive, a complete index out.

The calling thread decodes and walks; the digest lane hashes. What is proven at the end: the blob's digest and length
(manifest), the digest of the decoded bytes (configuration), the codec's own checks (CRC-32 and ISIZE of every gzip
member), and, when a table was supplied, that each of its checkpoints is one and that each of its windows is what lies
before it.

What the decoder objects to is judged at the end only: until the blob has its digest, a bit that flipped on its way looks the
same as a layer that is broken or a table that lies. So an objection stops decoding, the rest of the blob is hashed, and
``finish`` raises ``BlobMismatch`` where the blob is another one, the objection where it is not.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from gateway.errors import (
    BlobMismatch,
    BlockgateError,
    CorruptStream,
    DiffIdMismatch,
    InvalidLayer,
    InvalidZinfo,
)
from gateway.gzran.zinfo import Checkpoint, ZinfoTable
from gateway.ingest.lane import BitSpanDigests, DigestLane, SpanDigests
from gateway.ingest.leaves import Leaves
from gateway.layers.codec import Codec
from gateway.layers.contents import Walk
from gateway.layers.index import IndexFacts
from gateway.layers.store import Draft
from gateway.layers.table import Span, SpanTable

_LANE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Promise:
    """What the manifest and the configuration promise of a blob."""

    digest: str
    size: int
    diff_id: str | None = None


@dataclass(frozen=True, slots=True)
class Cutting:
    """How a layer is to be decoded and cut: its codec, where spans begin, and the name of that."""

    codec: Codec
    cut: str
    span_size: int
    supplied: ZinfoTable | None = None
    zinfo: str | None = None


class LayerPass:
    """Feed it the whole blob, then ``finish``. Blocking; one thread at a time. ``close`` it in any case."""

    def __init__(self, promise: Promise, cutting: Cutting, draft: Draft) -> None:
        self._promise = promise
        self._cutting = cutting
        self._draft = draft
        self._supplied = cutting.supplied
        self._windowed = cutting.codec.windowed
        self._walk = Walk(draft.contents_path)
        self._blob = BitSpanDigests()
        self._decoded = SpanDigests()
        self._leaves = Leaves()
        self._lane = DigestLane()
        self._fed = 0
        self._length = 0
        self._cuts: list[tuple[int, int]] = []
        self._ins = array("Q")
        self._outs = array("Q")
        self._bits = bytearray()
        self._pending = bytearray()
        self._objection: BlockgateError | None = None
        try:
            if self._windowed:
                draft.begin_checkpoints(cutting.span_size)
            self._indexer = cutting.codec.indexer(cutting.span_size, self._output, self._cut, self._supplied)
        except BaseException:
            self.close()
            raise

    def feed(self, data: bytes) -> None:
        """The next bytes of the blob. Raises ``BlobMismatch`` when it is longer than promised."""
        self._fed += len(data)
        if self._fed > self._promise.size:
            raise BlobMismatch(f"the blob is longer than the {self._promise.size} bytes of its descriptor")
        if self._objection is None:
            try:
                self._indexer.feed(data)
            except (CorruptStream, InvalidLayer, InvalidZinfo) as error:
                self._objection = error
        if self._windowed:
            self._lane.submit(partial(self._blob.update_with_cuts, data, self._cuts))
            self._cuts = []
        elif self._objection is None:
            self._flush()

    def finish(self) -> None:
        """The blob is complete: check every promise, complete the draft.

        Raises ``BlobMismatch``, ``DiffIdMismatch``, ``CorruptStream``, ``InvalidLayer``, ``InvalidZinfo`` or ``OSError``.
        """
        if self._fed != self._promise.size:
            raise BlobMismatch(
                f"the blob ended after {self._fed} of the {self._promise.size} bytes of its descriptor"
            )
        members = 0
        if self._objection is None:
            try:
                members = self._indexer.finish()
            except (CorruptStream, InvalidZinfo) as error:
                self._objection = error
        self._flush()
        if self._ins:
            self._lane.submit(self._decoded.cut)
        self._lane.submit(self._blob.cut)
        self._lane.close()
        self._check()
        refused = self._walk.finish()
        table = SpanTable.of(self._spans())
        facts = IndexFacts(
            blob=self._promise.digest,
            blob_size=self._promise.size,
            codec=self._cutting.codec.name,
            cut=self._cutting.cut,
            span_size=self._cutting.span_size,
            size=table.size,
            sha256=f"sha256:{self._decoded.hexdigest()}",
            members=members,
            zinfo=self._cutting.zinfo,
            contents_error=refused,
            files={},
        )
        self._draft.complete(facts, table.records, self._leaves.finish())

    def close(self) -> None:
        """End the lane's thread."""
        self._walk.close()
        self._lane.abandon()

    def _check(self) -> None:
        # Bytes that are stored as they are need one digest, not the same one twice.
        digest = f"sha256:{(self._blob if self._windowed else self._decoded).hexdigest()}"
        if digest != self._promise.digest:
            raise BlobMismatch(f"the blob's digest is {digest}, its descriptor says {self._promise.digest}")
        if self._objection is not None:
            raise self._objection
        decoded = f"sha256:{self._decoded.hexdigest()}"
        if self._promise.diff_id is not None and decoded != self._promise.diff_id:
            raise DiffIdMismatch(
                f"the decompressed layer's digest is {decoded}, "
                f"the image's configuration says {self._promise.diff_id}"
            )

    def _output(self, view: memoryview) -> None:
        self._walk.feed(view)
        self._length += len(view)
        self._pending += view
        if len(self._pending) >= _LANE_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._lane.submit(partial(self._hash, bytes(self._pending)))
            self._pending = bytearray()

    def _hash(self, data: bytes) -> None:
        self._decoded.update(data)
        self._leaves.update(data)

    def _cut(self, checkpoint: Checkpoint, window: bytes) -> None:
        index = len(self._ins)
        if index and self._supplied is not None:
            _check_window(index, bytes(self._supplied.window(index)), window)
        if index:
            self._flush()
            self._lane.submit(self._decoded.cut)
        self._ins.append(checkpoint.in_offset)
        self._outs.append(checkpoint.out_offset)
        self._bits.append(checkpoint.bits)
        if self._windowed:
            self._cuts.append((checkpoint.in_offset, checkpoint.bits))
            self._draft.checkpoint(checkpoint, window)

    def _spans(self) -> Iterator[Span]:
        # The first piece of a coded blob is what comes before the first checkpoint: the gzip header.
        fetched = self._blob.pieces[1:] if self._windowed else self._decoded.pieces
        for index, (in_digest, out_digest) in enumerate(zip(fetched, self._decoded.pieces, strict=True)):
            last = index + 1 == len(self._ins)
            yield Span(
                in_start=self._ins[index] - (1 if self._bits[index] else 0),
                in_stop=self._promise.size if last else self._ins[index + 1],
                out_start=self._outs[index],
                out_stop=self._length if last else self._outs[index + 1],
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
