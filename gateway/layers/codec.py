"""Codecs: how the bytes of a blob become the bytes of a layer, and from where that can begin.

A codec does three things, and nothing outside this package and ``gzran`` knows more of it: it *indexes* a blob that
streams by (decoded bytes and the places where spans begin), it *decodes* one span, and it says whether a span begins
from a *window* of what was decoded before it. ``identity`` serves blobs whose bytes are the layer's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from blockgate.reader import Bytes
from gateway.errors import UnsupportedLayer
from gateway.gzran.checkpoints import CheckpointBuilder
from gateway.gzran.inflate import inflate_span
from gateway.gzran.zinfo import Checkpoint, ZinfoTable
from gateway.layers.table import Span

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

OnOutput = Callable[[memoryview], object]
"""Gets every decoded byte in order; the view is valid during the call only."""
OnCut = Callable[[Checkpoint, bytes], object]
"""A span begins: exactly the decoded bytes before it were handed out. The window is empty where none is needed."""


class Indexer(Protocol):
    """A blob that streams by. Blocking, one thread at a time."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the blob."""
        ...

    def finish(self) -> int:
        """The blob is complete. Returns how many members it has, 0 where the codec knows none."""
        ...


class Codec(Protocol):
    """One coding."""

    @property
    def name(self) -> str:
        """Its name in cuts and recipes."""
        ...

    @property
    def windowed(self) -> bool:
        """Whether a span is decoded behind a window of what comes before it."""
        ...

    def indexer(
        self, span_size: int, on_output: OnOutput, on_cut: OnCut, supplied: ZinfoTable | None
    ) -> Indexer:
        """Begin a pass. ``supplied`` says where spans begin instead of ``span_size``; each place is checked."""
        ...

    def decode(self, span: Span, fetched: Bytes, window: Bytes, *, first: bool, exact: bool) -> Bytes:
        """The ``span.out_length`` bytes of a span. Raises ``CorruptStream``.

        With ``exact`` nothing more may come out of ``fetched`` than the span.
        """
        ...


class _IdentityIndexer:
    def __init__(self, span_size: int, on_output: OnOutput, on_cut: OnCut) -> None:
        self._span_size, self._on_output, self._on_cut = span_size, on_output, on_cut
        self._length = 0

    def feed(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            into = self._length % self._span_size
            if not into:
                self._on_cut(Checkpoint(self._length, self._length, 0), b"")
            piece, view = view[: self._span_size - into], view[self._span_size - into :]
            self._on_output(piece)
            self._length += len(piece)

    def finish(self) -> int:
        return 0


class Identity:
    """Bytes as they are."""

    name = "identity"
    windowed = False

    def indexer(
        self, span_size: int, on_output: OnOutput, on_cut: OnCut, supplied: ZinfoTable | None
    ) -> Indexer:
        """A cut at each multiple of ``span_size``."""
        if supplied is not None:
            raise ValueError("bytes that are stored as they are have no use for a table of checkpoints")
        return _IdentityIndexer(span_size, on_output, on_cut)

    def decode(self, span: Span, fetched: Bytes, window: Bytes, *, first: bool, exact: bool) -> Bytes:
        """What was fetched."""
        del span, window, first, exact
        return fetched


class _GzipIndexer:
    def __init__(self, builder: CheckpointBuilder) -> None:
        self._builder = builder
        self.feed = builder.feed

    def finish(self) -> int:
        return self._builder.finish().members


class Gzip:
    """gzip (RFC 1952) of any number of members; spans begin at deflate block boundaries (``gzran``)."""

    name = "gzip"
    windowed = True

    def indexer(
        self, span_size: int, on_output: OnOutput, on_cut: OnCut, supplied: ZinfoTable | None
    ) -> Indexer:
        """libz, which checks each member's CRC-32 and length."""
        return _GzipIndexer(CheckpointBuilder(span_size, on_output, on_cut, expected=supplied))

    def decode(self, span: Span, fetched: Bytes, window: Bytes, *, first: bool, exact: bool) -> Bytes:
        """Inflate from the span's checkpoint."""
        return inflate_span(fetched, span.bits, window, span.out_length, first=first, exact=exact)


IDENTITY: Codec = Identity()
GZIP: Codec = Gzip()
_BY_NAME: dict[str, Codec] = {codec.name: codec for codec in (IDENTITY, GZIP)}


def codec_of(name: str) -> Codec:
    """The codec of that name. Raises ``UnsupportedLayer``."""
    try:
        return _BY_NAME[name]
    except KeyError:
        raise UnsupportedLayer(f"this version cannot decode {name!r}") from None


def codec_by_media_type(media_type: str) -> Codec | None:
    """The codec that a layer's media type names; ``None`` where it says nothing.

    Raises ``UnsupportedLayer`` for one that cannot be read here (image-spec, layer.md).
    """
    if media_type.endswith(("+gzip", ".tar.gzip", "-gzip", "/gzip", "/x-gzip")):
        return GZIP
    if media_type.endswith((".tar", "/x-tar")):
        return IDENTITY
    if media_type.endswith("+zstd"):
        raise UnsupportedLayer(
            "a layer is compressed with zstd, which is not supported yet; use layout raw for it"
        )
    return None


def codec_by_magic(head: bytes) -> Codec:
    """The codec that a blob's first bytes show. Raises ``UnsupportedLayer``."""
    if head.startswith(_ZSTD_MAGIC):
        raise UnsupportedLayer(
            "a layer is compressed with zstd, which is not supported yet; use layout raw for it"
        )
    return GZIP if head.startswith(_GZIP_MAGIC) else IDENTITY
