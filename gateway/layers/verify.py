"""From fetched bytes to verified bytes, on a thread: digest, decode, digest, chain. Pure computation."""

from __future__ import annotations

import hashlib

from blockgate.reader import Bytes
from gateway.errors import ChainMismatch, CorruptStream, IndexDamaged, SpanMismatch
from gateway.gzran.zinfo import WINDOW_BYTES
from gateway.layers.codec import Codec
from gateway.layers.table import Span


def decode_span(
    codec: Codec,
    span: Span,
    fetched: Bytes,
    window: Bytes,
    next_window: Bytes | None,
    *,
    first: bool,
    where: str,
) -> Bytes:
    """Decode one span and return its ``out_length`` bytes, or raise; nothing unverified is returned.

    ``next_window`` is what the decoded span has to end with (the chain check); ``None`` where there is no next
    checkpoint, or the span's digests say more. ``where`` names the layer in errors.

    Raises ``SpanMismatch`` or ``CorruptStream`` when the fetched bytes are wrong, ``ChainMismatch`` when an unproven
    checkpoint is, ``IndexDamaged`` when the bytes are right and what was recorded of them here is not.
    """
    if len(fetched) != span.in_length:
        raise SpanMismatch(f"{where}: {len(fetched)} bytes fetched where {span.in_length} belong")
    if not span.proven:
        data = codec.decode(span, fetched, window, first=first, exact=True)
        if next_window is not None:
            check_chain(data, next_window, where)
        return data
    if hashlib.sha256(fetched).digest() != span.in_sha256:
        raise SpanMismatch(
            f"{where}: bytes {span.in_start}..{span.in_stop} of the blob are not those that were indexed; "
            "the registry or something on the way to it changed them"
        )
    if not codec.windowed:
        return fetched
    # The compressed bytes have their digest: whatever goes wrong from here on is the local checkpoint's fault.
    damaged = f"{where}: the local checkpoint at {span.out_start} is damaged; it is being made again"
    try:
        data = codec.decode(span, fetched, window, first=first, exact=False)
    except CorruptStream as error:
        raise IndexDamaged(damaged) from error
    if hashlib.sha256(data).digest() != span.out_sha256:
        raise IndexDamaged(damaged)
    return data


def check_chain(data: Bytes, next_window: Bytes, where: str) -> None:
    """Raise ``ChainMismatch`` unless ``data`` ends like the window of the next checkpoint.

    A span shorter than a window fills only the window's end.
    """
    length = min(len(data), WINDOW_BYTES)
    if memoryview(data)[len(data) - length :] != memoryview(next_window)[WINDOW_BYTES - length :]:
        raise ChainMismatch(f"{where}: the next checkpoint's window is not what this span ends with")
