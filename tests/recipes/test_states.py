"""The table of states: every arrow, and nothing that is none."""

from __future__ import annotations

import pytest

from gateway.recipes.states import Event, State, sources, target

ARROWS = {
    (State.INDEXING, Event.PUBLISHED): State.READY,
    (State.INDEXING, Event.GAVE_UP): State.FAILED,
    (State.FAILED, Event.ASKED_AGAIN): State.INDEXING,
    (State.READY, Event.REFUTED): State.QUARANTINED,
}


@pytest.mark.parametrize("event", list(Event))
@pytest.mark.parametrize("state", list(State))
def test_an_event_means_something_in_the_states_of_its_arrow_only(state, event):
    after = ARROWS.get((state, event))
    assert (state in sources(event)) == (after is not None)
    if after is not None:
        assert target(event) is after


def test_nothing_leads_out_of_quarantine():
    assert not any(State.QUARANTINED in sources(event) for event in Event)
