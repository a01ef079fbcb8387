"""What the registry client tells whoever counts: one protocol, one that does nothing, one that counts."""

from __future__ import annotations

from collections import Counter
from typing import Literal, Protocol

import structlog

from gateway.errors import RegistryOverloaded
from gateway.metrics import Histogram

# More registries than this are counted together, so that registrations cannot make metrics grow without bound.
_MAX_HOSTS = 64
OTHERS = "other"

log = structlog.get_logger(__name__)

BreakerState = Literal["closed", "open", "half_open"]

# A breaker that nobody has asked for so long says nothing about its registry any more.
_FORGOTTEN_AFTER_SECONDS = 300.0
_BEST_FIRST: tuple[BreakerState, ...] = ("closed", "half_open", "open")


class BreakerView(Protocol):
    """A breaker, as it is reported."""

    @property
    def state(self) -> BreakerState:
        """By the clock, not by the latest request."""
        ...

    @property
    def idle_seconds(self) -> float:
        """Since the latest request."""
        ...


class RegistryObserver(Protocol):
    """Called on the event loop; must not block or raise. ``host`` is ``host[:port]``."""

    def request_finished(self, host: str, outcome: str, seconds: float) -> None:
        """An attempt ended (for a stream: its opening).

        ``outcome`` is ``ok``, an error's ``code``, or ``abandoned`` where the caller went away.
        """
        ...

    def bytes_received(self, host: str, count: int) -> None:
        """So many bytes of a body arrived, wanted or not."""
        ...

    def retried(self, host: str, reason: str) -> None:
        """An attempt will be repeated because of the error ``code`` in ``reason``."""
        ...

    def breaker_made(self, host: str, breaker: BreakerView) -> None:
        """A breaker that speaks for the host began; there is one for each scheme."""
        ...

    def breaker_changed(self, host: str, state: BreakerState) -> None:
        """A request moved the host's breaker to another state."""
        ...


class SilentObserver:
    def request_finished(self, host: str, outcome: str, seconds: float) -> None:
        """Do nothing."""

    def bytes_received(self, host: str, count: int) -> None:
        """Do nothing."""

    def retried(self, host: str, reason: str) -> None:
        """Do nothing."""

    def breaker_made(self, host: str, breaker: BreakerView) -> None:
        """Do nothing."""

    def breaker_changed(self, host: str, state: BreakerState) -> None:
        """Do nothing."""


class CountingObserver:
    """Keeps plain numbers by ``host``, read when metrics are scraped."""

    def __init__(self) -> None:
        self.attempts: dict[tuple[str, str], Histogram] = {}
        """By host and outcome."""
        self.received_bytes: Counter[str] = Counter()
        self.retries: Counter[tuple[str, str]] = Counter()
        """By host and reason."""
        self.throttled: Counter[str] = Counter()
        self._breakers: list[tuple[str, BreakerView]] = []
        self._hosts: set[str] = set()

    def request_finished(self, host: str, outcome: str, seconds: float) -> None:
        host = self._bounded(host)
        histogram = self.attempts.get((host, outcome))
        if histogram is None:
            histogram = self.attempts[host, outcome] = Histogram()
        histogram.observe(seconds)
        if outcome == RegistryOverloaded.code:
            self.throttled[host] += 1

    def bytes_received(self, host: str, count: int) -> None:
        self.received_bytes[self._bounded(host)] += count

    def retried(self, host: str, reason: str) -> None:
        self.retries[self._bounded(host), reason] += 1

    def breaker_made(self, host: str, breaker: BreakerView) -> None:
        """Keep it, to ask for its state when somebody wants to know."""
        self._breakers.append((host, breaker))

    def breaker_states(self) -> dict[str, BreakerState]:
        """The state of each host that was asked in the latest minutes.

        Where it was asked both ways, http and https, the better state counts: one forgotten ``insecure`` does not make
        a registry that answers one that does not.
        """
        states: dict[str, BreakerState] = {}
        for host, breaker in self._breakers:
            if breaker.idle_seconds < _FORGOTTEN_AFTER_SECONDS:
                label, state = self._bounded(host), breaker.state
                states[label] = min(states.get(label, state), state, key=_BEST_FIRST.index)
        return states

    def breaker_changed(self, host: str, state: BreakerState) -> None:
        """Say so in the log: it is why reads fail or succeed again."""
        if state == "open":
            log.warning("registry is not asked for a while", registry=host)
        elif state == "closed":
            log.info("registry answers again", registry=host)

    def _bounded(self, host: str) -> str:
        if host in self._hosts:
            return host
        if len(self._hosts) >= _MAX_HOSTS:
            return OTHERS
        self._hosts.add(host)
        return host
