"""What the registry client tells whoever counts: one protocol, with a default that does nothing."""

from __future__ import annotations

from typing import Literal, Protocol

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
