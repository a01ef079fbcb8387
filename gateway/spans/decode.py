"""From fetched bytes to verified bytes, on a thread: digest, inflate, digest, chain. Pure computation."""

from __future__ import annotations

import hashlib

from blockgate.reader import Bytes
from gateway.errors import ChainMismatch, CorruptStream, IndexDamaged, SpanMismatch
from gateway.gzran.inflate import inflate_span
from gateway.gzran.zinfo import WINDOW_BYTES
from gateway.spans.table import Span


def decode(
    span: Span, fetched: Bytes, window: Bytes | None, next_window: Bytes | None, *, first: bool, where: str
) -> Bytes:
    """Decode one span and return its ``out_length`` bytes, or raise; nothing unverified is returned.

    ``window`` is ``None`` for bytes that are stored as they are. ``next_window`` is what the decoded span has to end
    with (the chain check); ``None`` where there is no next checkpoint. ``where`` names the layer in errors.

    Raises ``SpanMismatch`` or ``CorruptStream`` when the fetched bytes are wrong, ``ChainMismatch`` when an unproven
    checkpoint is, ``IndexDamaged`` when the bytes are right and what was recorded of them here is not.
    """
    if len(fetched) != span.in_length:
        raise SpanMismatch(f"{where}: {len(fetched)} bytes fetched where {span.in_length} belong")
    if span.proven and hashlib.sha256(fetched).digest() != span.in_sha256:
        raise SpanMismatch(
            f"{where}: bytes {span.in_start}..{span.in_stop} of the blob are not those that were indexed; "
            "the registry or something on the way to it changed them"
        )
    if window is None:
        return fetched
    if span.proven:
        return _decode_proven(span, fetched, window, first=first, where=where)
    data = inflate_span(fetched, span.bits, window, span.out_length, first=first, exact=True)
    if next_window is not None:
        check_chain(data, next_window, where)
    return data


def _decode_proven(span: Span, fetched: Bytes, window: Bytes, *, first: bool, where: str) -> Bytes:
    """The compressed bytes have their digest: whatever goes wrong from here on is the local checkpoint's fault."""
    try:
        data = inflate_span(fetched, span.bits, window, span.out_length, first=first)
    except CorruptStream as error:
        raise IndexDamaged(
            f"{where}: the local checkpoint at {span.out_start} is damaged; indexing again"
        ) from error
    if hashlib.sha256(data).digest() != span.out_sha256:
        raise IndexDamaged(f"{where}: the local checkpoint at {span.out_start} is damaged; indexing again")
    return data


def check_chain(data: Bytes, next_window: Bytes, where: str) -> None:
    """Raise ``ChainMismatch`` unless ``data`` ends like the window of the next checkpoint.

    A span shorter than a window fills only the window's end.
    """
    length = min(len(data), WINDOW_BYTES)
    if memoryview(data)[len(data) - length :] != memoryview(next_window)[WINDOW_BYTES - length :]:
        raise ChainMismatch(f"{where}: the next checkpoint's window is not what this span ends with")
