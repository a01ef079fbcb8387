"""The states of a span in one process, as a table. PURE.

Only spans of which something is to be remembered have an entry: one that is in a cache, or nowhere, and that nobody
waits for needs none (``None`` below).
"""

from __future__ import annotations

from enum import Enum, auto


class SpanState(Enum):
    """Why a span is remembered."""

    AHEAD = auto()
    """Being fetched because somebody will probably ask for it."""
    WANTED = auto()
    """Being fetched, and somebody waits."""
    UNUSED = auto()
    """Was fetched ahead and is here; nobody has asked for it yet."""
    FAILED = auto()
    """Could not be had when it was last asked for."""


class SpanEvent(Enum):
    """What happens to a span."""

    WANT = auto()
    EXPECT = auto()
    LAND = auto()
    FAIL = auto()
    EVICT = auto()


# From each state, by each event that means something there. Kept minimal: what is not here changes nothing.
_ARROWS: dict[tuple[SpanState | None, SpanEvent], SpanState | None] = {
    # Nowhere, or used from a cache: a miss begins to fetch.
    (None, SpanEvent.WANT): SpanState.WANTED,
    (None, SpanEvent.EXPECT): SpanState.AHEAD,
    # Somebody asks for what was on its way already: reading ahead was worth it.
    (SpanState.AHEAD, SpanEvent.WANT): SpanState.WANTED,
    (SpanState.AHEAD, SpanEvent.LAND): SpanState.UNUSED,
    (SpanState.AHEAD, SpanEvent.FAIL): SpanState.FAILED,
    (SpanState.WANTED, SpanEvent.LAND): None,
    (SpanState.WANTED, SpanEvent.FAIL): SpanState.FAILED,
    (SpanState.UNUSED, SpanEvent.WANT): None,
    # Fetched for nothing.
    (SpanState.UNUSED, SpanEvent.EVICT): None,
    # It is tried again whenever somebody asks.
    (SpanState.FAILED, SpanEvent.WANT): SpanState.WANTED,
    (SpanState.FAILED, SpanEvent.EXPECT): SpanState.AHEAD,
}


def after(state: SpanState | None, event: SpanEvent) -> SpanState | None:
    """The state that ``event`` leads to; the same one where it means nothing."""
    return _ARROWS.get((state, event), state)
