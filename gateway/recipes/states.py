"""The states of a device, as a table. PURE.

State says what was decided about a device, once and for everybody. Whether its bytes can be had just now is *health*: each
replica observes that for itself, and it is never written here.
"""

from __future__ import annotations

from enum import Enum, StrEnum


class State(StrEnum):
    """What a device is."""

    INDEXING = "indexing"
    READY = "ready"
    FAILED = "failed"
    QUARANTINED = "quarantined"


class Event(Enum):
    """What can happen to it."""

    PUBLISHED = "its recipe is complete"
    GAVE_UP = "a fault that cannot pass"
    REFUTED = "the pass contradicts the supplied table under which it is served"
    ASKED_AGAIN = "somebody registers it again"


# Kept minimal: what is no arrow here changes no state, whoever asks for it. Deleting removes the row from any state.
_ARROWS: dict[tuple[State, Event], State] = {
    # Every layer has an index and the metadata is made. The recipe is written in the same step, and never again.
    (State.INDEXING, Event.PUBLISHED): State.READY,
    # No image of that name, a layer that no reader could read, a doubtful fault that stayed.
    (State.INDEXING, Event.GAVE_UP): State.FAILED,
    # The cause may be gone: the same specification is tried from the beginning.
    (State.FAILED, Event.ASKED_AGAIN): State.INDEXING,
    # Unproven bytes were served, and they were wrong. There is no way back; the table is remembered as refuted.
    (State.READY, Event.REFUTED): State.QUARANTINED,
}


def target(event: Event) -> State:
    """The state that ``event`` leads to; each event leads to one."""
    (state,) = {after for (_, on), after in _ARROWS.items() if on is event}
    return state


def sources(event: Event) -> frozenset[State]:
    """The states in which ``event`` means something."""
    return frozenset(before for before, on in _ARROWS if on is event)


class Verification(StrEnum):
    """How far the bytes of a device are proven."""

    UNVERIFIED = "unverified"
    VERIFYING = "verifying"
    """Served under a supplied table while the pass that will prove or refute it runs."""
    VERIFIED = "verified"
