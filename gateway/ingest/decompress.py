"""Reading a local layer, compressed or not, from its beginning: for offline commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gateway.gzran.zinfo import MAX_SPAN_BYTES
from gateway.layers.codec import codec_by_magic

_READ_BYTES = 1 << 18


def decompressed(layer: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (bytes of the file read so far, decoded bytes). Raises ``CorruptStream``, ``UnsupportedLayer``, ``OSError``."""
    pending: list[bytes] = []
    with layer.open("rb") as file:
        piece = file.read(_READ_BYTES)
        done = len(piece)
        indexer = codec_by_magic(piece).indexer(
            MAX_SPAN_BYTES // 2, lambda view: pending.append(bytes(view)), lambda *_: None, None
        )
        while piece:
            indexer.feed(piece)
            yield done, b"".join(pending)
            pending.clear()
            piece = file.read(_READ_BYTES)
            done += len(piece)
        if done:
            indexer.finish()
        yield done, b"".join(pending)
