"""Spans that somebody waits for or has not sent yet, each once; and the one budget of the bytes that they take."""

from __future__ import annotations

import asyncio
from typing import TypeAlias

from blockgate.reader import Bytes
from gateway.layers.key import SpanKey
from gateway.spans.tier import Origin

Found: TypeAlias = tuple[Bytes, Origin]


class Admission:
    """Bytes that this process holds for its readers outside of the caches, and how many it may hold.

    ``fetching_bytes`` are of spans that are being fetched, or that a reader has and has not handed on.
    ``sending_bytes`` wait in the buffers of connections whose clients do not read.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.fetching_bytes = 0
        self.sending_bytes = 0

    @property
    def used_bytes(self) -> int:
        """Both kinds."""
        return self.fetching_bytes + self.sending_bytes

    @property
    def full(self) -> bool:
        """Whether nothing more may begin."""
        return self.used_bytes > self.limit_bytes

    @property
    def scarce(self) -> bool:
        """Whether what is left is for those who wait: nothing is to be begun ahead of a reader."""
        return self.used_bytes > self.limit_bytes // 2


class Flight:
    """One span on its way to one reader or many. Hold it while its bytes are needed; release it as often.

    ``future`` has the verified bytes and where they came from, or the error. Nobody cancels it by being cancelled:
    shield it.
    """

    __slots__ = ("_flights", "bytes", "counted", "future", "holders", "key")

    def __init__(self, key: SpanKey, length: int, flights: Flights) -> None:
        self.key = key
        self.bytes = length
        self.holders = 0
        self.counted = True
        self.future: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        # Nobody may be left to take the outcome when all readers were cancelled: that is no error.
        self.future.add_done_callback(lambda done: None if done.cancelled() else done.exception())
        self._flights = flights

    def hold(self) -> Flight:
        """One more reader needs it."""
        self.holders += 1
        return self

    def release(self) -> None:
        """One reader has handed its bytes on, or gave up."""
        self.holders -= 1
        self._flights.settle(self)


class Flights:
    """All flights of a process by span. A flight counts against the budget once, however many hold it."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self._by_key: dict[SpanKey, Flight] = {}

    def find(self, key: SpanKey) -> Flight | None:
        """The flight of a span. One that failed is none."""
        flight = self._by_key.get(key)
        if flight is None or (flight.future.done() and not _succeeded(flight.future)):
            return None
        return flight

    def begin(self, key: SpanKey, length: int) -> Flight:
        """A new flight, which nobody holds yet."""
        flight = Flight(key, length, self)
        self._by_key[key] = flight
        self.admission.fetching_bytes += length
        return flight

    def settle(self, flight: Flight) -> None:
        """Forget a flight that has ended and that nobody holds."""
        if flight.counted and flight.holders == 0 and flight.future.done():
            flight.counted = False
            self.admission.fetching_bytes -= flight.bytes
            if self._by_key.get(flight.key) is flight:
                del self._by_key[flight.key]

    def under_way(self) -> list[SpanKey]:
        """Spans that are being fetched."""
        return [key for key, flight in self._by_key.items() if not flight.future.done()]


def _succeeded(future: asyncio.Future[Found]) -> bool:
    return not future.cancelled() and future.exception() is None
