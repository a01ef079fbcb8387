"""A breaker per host: a registry that fails is left alone, and found again soon after it is back."""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway.registry.observe import BreakerState, RegistryObserver, SilentObserver

Clock = Callable[[], float]

# How long to wait for another request's probe before looking again.
_PROBE_POLL_SECONDS = 0.1


class Breaker:
    """Stops asking a host that fails. One per host.

    ::

        closed ── threshold failures in a row ──▶ open ── cooldown over ──▶ half open ── success ──▶ closed
                                                   ▲                           │
                                                   └── failure, cooldown x 2 ──┘

    In half open exactly one request is let through. The cooldown is capped so that a registry that is back is
    found within ``max_cooldown_seconds`` plus one request, which must stay below 10 s.
    """

    def __init__(
        self,
        host: str = "",
        *,
        threshold: int = 5,
        cooldown_seconds: float = 1.0,
        max_cooldown_seconds: float = 5.0,
        clock: Clock = time.monotonic,
        observer: RegistryObserver | None = None,
    ) -> None:
        self._host, self._threshold = host, threshold
        self._first_cooldown, self._max_cooldown = cooldown_seconds, max_cooldown_seconds
        self._clock = clock
        self._observer = observer or SilentObserver()
        self._failures = 0
        self._cooldown = cooldown_seconds
        self._open_until = 0.0
        self._probing = False
        self.state: BreakerState = "closed"

    def wait_seconds(self) -> float:
        """0 when a request may go out now; else how long until it is worth asking again. Changes nothing."""
        if self.state == "closed":
            return 0.0
        remaining = self._open_until - self._clock()
        if remaining > 0:
            return remaining
        return _PROBE_POLL_SECONDS if self._probing else 0.0

    def enter(self) -> None:
        """A request goes out. Only when ``wait_seconds()`` is 0; one of the next three must follow."""
        if self.state != "closed":
            self._probing = True
            self._set("half_open")

    def succeeded(self) -> None:
        """The host answered."""
        self._failures = 0
        self._probing = False
        self._cooldown = self._first_cooldown
        self._set("closed")

    def failed(self) -> None:
        """The host did not answer, or said that it cannot."""
        self._failures += 1
        if self.state == "closed" and self._failures >= self._threshold:
            self._open()
        elif self.state == "half_open":
            self._cooldown = min(self._cooldown * 2, self._max_cooldown)
            self._open()

    def abandoned(self) -> None:
        """The request was cancelled: it proved nothing, and another may probe."""
        self._probing = False

    def _open(self) -> None:
        self._probing = False
        self._open_until = self._clock() + self._cooldown
        self._set("open")

    def _set(self, state: BreakerState) -> None:
        if state != self.state:
            self.state = state
            self._observer.breaker_changed(self._host, state)
