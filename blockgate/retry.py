"""When to ask again: Retry-After, full jitter, and the attempts that fit before a deadline.

Decisions only: who uses them sleeps, and hands in time and chance. Full jitter (a wait anywhere between 0 and an
exponential bound) because many clients meet one fault at one moment, and must not come back at one moment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from blockgate.errors import BlockgateError

RETRY_AFTER_CAP_SECONDS = 30.0
_DOUBLINGS = 30  # by then every bound is above every cap


def parse_http_date(text: str | None) -> datetime | None:
    """The moment that a Date field names (RFC 9110 section 5.6.7); None when it names none."""
    try:
        moment = parsedate_to_datetime(text or "")
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds to wait by a Retry-After field (RFC 9110 section 10.2.3: seconds or a date); None if unusable.

    ``now`` is best the answer's own Date, so that clocks need not agree; by default it is this machine's time.
    Never negative, never more than ``RETRY_AFTER_CAP_SECONDS``.
    """
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), RETRY_AFTER_CAP_SECONDS)
    moment = parse_http_date(text)
    if moment is None:
        return None
    seconds = (moment - (now or datetime.now(UTC))).total_seconds()
    return min(max(seconds, 0.0), RETRY_AFTER_CAP_SECONDS)


def backoff_bound(failures: int, *, first_seconds: float, longest_seconds: float) -> float:
    """The longest wait after ``failures`` (1, 2, …) in a row: doubled with each, up to ``longest_seconds``."""
    return min(longest_seconds, first_seconds * 2.0 ** min(failures - 1, _DOUBLINGS))


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Seconds for one operation altogether, and the bounds of its backoff after the first and after many failures."""

    total_seconds: float = 60.0
    first_backoff_seconds: float = 0.1
    longest_backoff_seconds: float = 5.0


class Attempts:
    """The retries of one operation. ``jitter`` gives a number in [0, 1)."""

    def __init__(self, policy: RetryPolicy, now: float, jitter: Callable[[], float]) -> None:
        self._policy = policy
        self._jitter = jitter
        self._failures = 0
        self.deadline = now + policy.total_seconds
        """The time after which nothing is tried any more."""

    def wait_after(self, error: BlockgateError, now: float) -> float | None:
        """Seconds until the next try, or None when there must be none.

        What the server asked for (Retry-After) is a minimum, not a maximum: below it, asking is rude and in vain.
        A wait that would end after the deadline is not begun.
        """
        if not error.retryable:
            return None
        self._failures += 1
        bound = backoff_bound(
            self._failures,
            first_seconds=self._policy.first_backoff_seconds,
            longest_seconds=self._policy.longest_backoff_seconds,
        )
        wait = self._jitter() * bound + (error.retry_after_seconds or 0.0)
        return wait if now + wait < self.deadline else None
