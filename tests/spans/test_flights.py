"""Flights and their one budget: a span counts once, from when it is begun until the last reader has sent it."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.errors import RegistryTimeout
from gateway.layers.key import LayerKey, SpanKey
from gateway.spans.flights import Admission, Flights
from gateway.spans.tier import Origin
from tests.support.layers import failure

LAYER = LayerKey("sha256:aa", "gzip")
KEY = SpanKey(*LAYER, 3)


@pytest.fixture
async def flights():
    return Flights(Admission(100))


def land(flight):
    flight.future.set_result((b"bytes", Origin.UPSTREAM))
    flight._flights.settle(flight)


def fail(flight):
    flight.future.set_exception(failure(RegistryTimeout))
    flight._flights.settle(flight)


def test_room_is_what_both_kinds_leave():
    admission = Admission(100)
    seen = []
    for fetching, sending in ((0, 0), (50, 0), (26, 25), (100, 0), (1, 100)):
        admission.fetching_bytes, admission.sending_bytes = fetching, sending
        seen.append((admission.used_bytes, admission.scarce, admission.full))
    assert seen == [
        (0, False, False),
        (50, False, False),
        (51, True, False),
        (100, True, False),
        (101, True, True),
    ]


async def test_a_span_counts_once_however_many_hold_it_until_all_have_sent_it(flights):
    flight = flights.begin(KEY, 40)
    for _ in range(5):
        assert flights.find(KEY) is flight.hold() if flight.holders else flight.hold()
    assert flights.admission.fetching_bytes == 40
    assert flights.of(LAYER) == {3}
    land(flight)
    assert flights.of(LAYER) == set()
    for _ in range(5):
        assert flights.find(KEY) is flight
        assert flights.admission.fetching_bytes == 40
        flight.release()
    assert flights.admission.fetching_bytes == 0
    assert flights.find(KEY) is None


async def test_one_that_nobody_holds_counts_until_it_has_landed(flights):
    flight = flights.begin(KEY, 40)
    flights.settle(flight)
    assert flights.admission.fetching_bytes == 40
    land(flight)
    assert flights.admission.fetching_bytes == 0


async def test_readers_that_gave_up_release_nothing_that_is_still_fetched(flights):
    flight = flights.begin(KEY, 40).hold()
    flight.release()
    assert flights.admission.fetching_bytes == 40
    assert flights.find(KEY) is flight
    land(flight)
    assert flights.admission.fetching_bytes == 0


async def test_a_flight_that_failed_is_none_and_the_next_one_is_not_touched_by_its_end(flights):
    first = flights.begin(KEY, 40).hold()
    fail(first)
    assert flights.find(KEY) is None
    assert flights.admission.fetching_bytes == 40
    second = flights.begin(KEY, 40).hold()
    first.release()
    assert flights.find(KEY) is second
    assert flights.admission.fetching_bytes == 40
    land(second)
    second.release()
    assert flights.admission.fetching_bytes == 0


async def test_a_flight_that_was_cancelled_is_none(flights):
    flight = flights.begin(KEY, 40).hold()
    flight.future.cancel()
    assert flights.find(KEY) is None
    flight.release()
    assert flights.admission.fetching_bytes == 0


async def test_settling_twice_counts_once(flights):
    flight = flights.begin(KEY, 40).hold()
    land(flight)
    flight.release()
    flights.settle(flight)
    assert flights.admission.fetching_bytes == 0


async def test_flights_of_other_layers_are_not_told(flights):
    flights.begin(KEY._replace(cut="other"), 1)
    flights.begin(KEY._replace(blob="sha256:bb"), 1)
    assert flights.of(LAYER) == set()


class FlightsMachine(RuleBasedStateMachine):
    """The model: for each flight its length, whether it has ended, and how many hold it."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.flights = Flights(Admission(100))
        self.known = []

    def teardown(self):
        self.loop.run_until_complete(asyncio.sleep(0))  # what ended says so to its futures
        self.loop.close()

    @rule(span=st.integers(0, 3), length=st.integers(0, 50), held=st.booleans())
    def want(self, span, length, held):
        async def want():
            key = KEY._replace(span=span)
            flight = self.flights.find(key)
            if flight is None:
                flight = self.flights.begin(key, length)
                self.known.append(flight)
            if held:
                flight.hold()

        self.loop.run_until_complete(want())

    @rule(data=st.data(), ending=st.sampled_from([land, fail]))
    def end(self, data, ending):
        under_way = [flight for flight in self.known if not flight.future.done()]
        if under_way:
            ending(data.draw(st.sampled_from(under_way)))

    @rule(data=st.data())
    def release(self, data):
        held = [flight for flight in self.known if flight.holders]
        if held:
            data.draw(st.sampled_from(held)).release()

    @invariant()
    def the_budget_is_the_sum_of_what_is_under_way_or_held(self):
        counted = [flight for flight in self.known if flight.holders or not flight.future.done()]
        assert self.flights.admission.fetching_bytes == sum(flight.bytes for flight in counted)
        under_way = {flight.key.span for flight in self.known if not flight.future.done()}
        assert self.flights.of(LAYER) == under_way


FlightsMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestFlights = FlightsMachine.TestCase
