"""Reading a local layer, compressed or not, from its beginning: for offline commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gateway.gzran.checkpoints import CheckpointBuilder
from gateway.gzran.zinfo import MAX_SPAN_BYTES

_READ_BYTES = 1 << 18
_GZIP = b"\x1f\x8b"


def decompressed(layer: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (bytes of the file read so far, decoded bytes). Raises ``CorruptStream``, ``OSError``."""
    with layer.open("rb") as file:
        piece = file.read(_READ_BYTES)
        done = len(piece)
        if not piece.startswith(_GZIP):
            while piece:
                yield done, piece
                piece = file.read(_READ_BYTES)
                done += len(piece)
            return
        pending: list[bytes] = []
        builder = CheckpointBuilder(
            MAX_SPAN_BYTES // 2, lambda view: pending.append(bytes(view)), lambda *_: None
        )
        while piece:
            builder.feed(piece)
            yield done, b"".join(pending)
            pending.clear()
            piece = file.read(_READ_BYTES)
            done += len(piece)
        builder.finish()
        yield done, b"".join(pending)
