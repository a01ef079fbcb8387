"""Counting requests where they pass: additions to plain integers, nothing else, for each block that a node reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.metrics import IN_FLIGHT, REQUEST_SECONDS, REQUESTS, Histogram, Numbers

OTHER = "other"
_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH"})
_CLIENT_GONE = 499


class RequestCounts:
    """Requests of one worker. ``endpoint`` is the ASGI scope's; ``None`` where no route was found."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.cut_short = 0
        self.names: dict[Any, str] = {}
        """Route templates by endpoint, filled in when the application is complete; what is missing is ``other``."""
        self._answered: dict[tuple[str, Any, int], int] = {}
        self._seconds: dict[Any, Histogram] = {}

    def finished(self, method: str, endpoint: Any, status: int, seconds: float) -> None:
        """A request ended. ``status`` is 0 when the client left before there was an answer."""
        key = (method if method in _METHODS else OTHER, endpoint, status or _CLIENT_GONE)
        answered = self._answered
        answered[key] = answered.get(key, 0) + 1
        histogram = self._seconds.get(endpoint)
        if histogram is None:
            histogram = self._seconds[endpoint] = Histogram()
        histogram.observe(seconds)

    def add_to(self, numbers: Numbers) -> None:
        """Add everything to what is exposed."""
        numbers.add(IN_FLIGHT, self.in_flight)
        for (method, endpoint, status), count in self._answered.items():
            numbers.add(REQUESTS, count, method, self.names.get(endpoint, OTHER), str(status))
        for endpoint, histogram in self._seconds.items():
            numbers.add_histogram(REQUEST_SECONDS, histogram, self.names.get(endpoint, OTHER))

    def name(self, templates: Mapping[Any, str]) -> None:
        """Say which route each endpoint serves."""
        self.names.update(templates)
