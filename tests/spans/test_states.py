"""The states of a span: every arrow, and that there is no other."""

from __future__ import annotations

import itertools

import pytest

from gateway.spans.states import SpanEvent, SpanState, after

AHEAD, WANTED, UNUSED, FAILED = SpanState.AHEAD, SpanState.WANTED, SpanState.UNUSED, SpanState.FAILED
WANT, EXPECT, LAND, FAIL, EVICT = (
    SpanEvent.WANT,
    SpanEvent.EXPECT,
    SpanEvent.LAND,
    SpanEvent.FAIL,
    SpanEvent.EVICT,
)
ARROWS = {
    (None, WANT): WANTED,
    (None, EXPECT): AHEAD,
    (AHEAD, WANT): WANTED,
    (AHEAD, LAND): UNUSED,
    (AHEAD, FAIL): FAILED,
    (WANTED, LAND): None,
    (WANTED, FAIL): FAILED,
    (UNUSED, WANT): None,
    (UNUSED, EVICT): None,
    (FAILED, WANT): WANTED,
    (FAILED, EXPECT): AHEAD,
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product([None, *SpanState], SpanEvent)))
def test_each_event_leads_where_it_should_and_else_nowhere(state, event):
    assert after(state, event) is ARROWS.get((state, event), state)


def test_from_every_state_a_span_can_be_forgotten():
    for state in SpanState:
        found = {state}
        for _ in SpanState:
            found |= {after(each, event) for each in found for event in SpanEvent}
        assert None in found
