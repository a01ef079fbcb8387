"""Counting requests where they pass: additions to plain integers, nothing else, for each block that a node reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blockgate.names import DATA_PATH
from gateway.metrics import IN_FLIGHT, REQUEST_SECONDS, REQUESTS, Histogram, Numbers

OTHER = "other"
DATA_ROUTE = DATA_PATH
_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH"})
_CLIENT_GONE = 499


class RequestCounts:
    """Requests of one worker. ``endpoint`` is the ASGI scope's; ``None`` where no route was found."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.cut_short = 0
        self.ranges = Histogram()
        """Answers of one range of a device from memory: nearly all there are."""
        self.names: dict[Any, str] = {}
        """Route templates by endpoint, filled in when the application is complete; what is missing is ``other``."""
        self._answered: dict[tuple[str, Any, int], Histogram] = {}

    def finished(self, method: str, endpoint: Any, status: int, seconds: float) -> None:
        """A request ended. ``status`` is 0 when the client left before there was an answer."""
        histogram = self._answered.get((method, endpoint, status))
        if histogram is None:
            # Clients may invent methods without end; those are one.
            key = (method if method in _METHODS else OTHER, endpoint, status)
            histogram = self._answered.setdefault(key, Histogram())
        histogram.observe(seconds)

    def add_to(self, numbers: Numbers) -> None:
        """Add everything to what is exposed."""
        numbers.add(IN_FLIGHT, self.in_flight)
        for (method, endpoint, status), histogram in self._answered.items():
            route = self.names.get(endpoint, OTHER)
            numbers.add(REQUESTS, histogram.count, method, route, str(status or _CLIENT_GONE))
            numbers.add_histogram(REQUEST_SECONDS, histogram, route)
        if self.ranges.count:
            numbers.add(REQUESTS, self.ranges.count, "GET", DATA_ROUTE, "206")
            numbers.add_histogram(REQUEST_SECONDS, self.ranges, DATA_ROUTE)

    def name(self, templates: Mapping[Any, str]) -> None:
        """Say which route each endpoint serves."""
        self.names.update(templates)
