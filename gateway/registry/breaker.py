"""A breaker per host: a registry that fails is left alone, and found again soon after it is back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from gateway.registry.observe import BreakerState, RegistryObserver

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

    ``state`` is a function of the clock: a cooldown that is over reads as half open although nobody has asked since.
    """

    def __init__(
        self,
        host: str,
        *,
        observer: RegistryObserver,
        threshold: int = 5,
        cooldown_seconds: float = 1.0,
        max_cooldown_seconds: float = 5.0,
        clock: Clock = time.monotonic,
    ) -> None:
        self._host, self._threshold = host, threshold
        self._first_cooldown, self._max_cooldown = cooldown_seconds, max_cooldown_seconds
        self._clock = clock
        self._observer = observer
        self._failures = 0
        self._cooldown = cooldown_seconds
        self._open_until = 0.0
        self._probing = False
        self._asked_at: float | None = None
        # The latest transition that a request made; ``state`` adds what time alone does.
        self._state: BreakerState = "closed"

    @property
    def state(self) -> BreakerState:
        """What a request would meet now."""
        if self._state == "open" and self._clock() >= self._open_until:
            return "half_open"
        return self._state

    @property
    def idle_seconds(self) -> float:
        """How long ago the latest request went out; infinite when none did."""
        return math.inf if self._asked_at is None else self._clock() - self._asked_at

    def wait_seconds(self) -> float:
        """0 when a request may go out now; else how long until it is worth asking again. Changes nothing."""
        if self._state == "closed":
            return 0.0
        remaining = self._open_until - self._clock()
        if remaining > 0:
            return remaining
        return _PROBE_POLL_SECONDS if self._probing else 0.0

    def enter(self) -> None:
        """A request goes out. Only when ``wait_seconds()`` is 0; one of the next three must follow."""
        self._asked_at = self._clock()
        if self._state != "closed":
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
        if self._state == "closed" and self._failures >= self._threshold:
            self._open()
        elif self._state == "half_open":
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
        if state != self._state:
            self._state = state
            self._observer.breaker_changed(self._host, state)
