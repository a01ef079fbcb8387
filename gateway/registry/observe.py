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

    def breaker_changed(self, host: str, state: BreakerState) -> None:
        """The host's breaker took another state."""
        ...


class SilentObserver:
    """Counts nothing."""

    def request_finished(self, host: str, outcome: str, seconds: float) -> None:
        """Do nothing."""

    def bytes_received(self, host: str, count: int) -> None:
        """Do nothing."""

    def retried(self, host: str, reason: str) -> None:
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
        self.breakers: dict[str, BreakerState] = {}
        self._hosts: set[str] = set()

    def request_finished(self, host: str, outcome: str, seconds: float) -> None:
        """Count an attempt."""
        host = self._bounded(host)
        histogram = self.attempts.get((host, outcome))
        if histogram is None:
            histogram = self.attempts[host, outcome] = Histogram()
        histogram.observe(seconds)
        if outcome == RegistryOverloaded.code:
            self.throttled[host] += 1

    def bytes_received(self, host: str, count: int) -> None:
        """Count bytes."""
        self.received_bytes[self._bounded(host)] += count

    def retried(self, host: str, reason: str) -> None:
        """Count a retry."""
        self.retries[self._bounded(host), reason] += 1

    def breaker_changed(self, host: str, state: BreakerState) -> None:
        """Remember the state, and say so in the log: it is why reads fail or succeed again."""
        self.breakers[self._bounded(host)] = state
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
