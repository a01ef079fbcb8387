"""When to ask again: backoff, Retry-After, a budget, and the loop that joins them with the breakers.

``Retrier.run`` repeats one exchange: a document, a token, a range. Everything below it makes one attempt and says
what happened. Two layers above repeat longer things, with the last error of this one: ``blob.RegistryBlob.stream``
resumes a transfer of many minutes where it broke (each opening is one pass of ``Retrier.once``, so the two do not
multiply), and ``devices.registration`` begins a registration again. Clock, randomness and sleep are handed in.

Theory of operation. The process has one ``Retrier``. It owns the budget of retries; the breakers belong to the
targets. A run is passes over the targets: mirrors in order (one whose breaker is open is left out, none gets more than
half of the time that is left), then the origin, whose breaker is waited for if it soon lets a request through. Between
two passes it sleeps: full jitter, and at least Retry-After.

What must never happen: a run outlives its deadline; retries multiply the load on a registry that is sick; an attempt
begins without time to succeed, so that its own timeout hides the real error; a cancelled request counts for or
against a host.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from blockgate.retry import backoff_bound
from gateway.errors import RegistryOverloaded, RegistryTimeout, RegistryUnreachable, UpstreamError
from gateway.registry.breaker import Breaker, Clock
from gateway.registry.observe import RegistryObserver

Sleep = Callable[[float], Awaitable[None]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounds of one request.

    ``attempt_seconds`` is for one exchange with one host, ``deadline_seconds`` for all of them together.
    A stream has no deadline; it gives up after ``stream_attempts`` transfers in a row that brought next to
    nothing.
    """

    attempts: int = 6
    stream_attempts: int = 10
    deadline_seconds: float = 25.0
    attempt_seconds: float = 10.0
    backoff_base_seconds: float = 0.4
    backoff_cap_seconds: float = 5.0
    breaker_patience_seconds: float = 3.0

    @property
    def least_seconds(self) -> float:
        """An attempt with less than this ahead of it could only report a timeout of its own, so it is not begun."""
        return min(1.0, self.attempt_seconds / 4, self.deadline_seconds / 4)

    def backoff_seconds(self, failures: int, rng: random.Random) -> float:
        """Full jitter: uniform between 0 and the exponential bound after ``failures`` (1, 2, …)."""
        return rng.uniform(
            0,
            backoff_bound(
                failures, first_seconds=self.backoff_base_seconds, longest_seconds=self.backoff_cap_seconds
            ),
        )


class RetryBudget:
    """Retries are at most a share of requests, so that a sick registry is not asked several times over.

    A token bucket: a request adds ``ratio``, a retry takes 1. ``floor`` tokens are there at the start and
    come back at ``floor_per_second`` without any requests, so that a quiet gateway still gets over a broken
    connection.
    """

    def __init__(
        self,
        *,
        ratio: float = 0.1,
        floor: float = 10.0,
        floor_per_second: float = 1.0,
        ceiling: float = 100.0,
        clock: Clock = time.monotonic,
    ) -> None:
        self._ratio, self._floor, self._ceiling = ratio, floor, ceiling
        self._floor_per_second = floor_per_second
        self._clock = clock
        self._tokens = floor
        self._refilled_at = clock()

    def deposit(self) -> None:
        """A request was made."""
        self._refill()
        self._tokens = min(self._ceiling, self._tokens + self._ratio)

    def withdraw(self) -> bool:
        """Take one retry; False when there is none to take."""
        self._refill()
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _refill(self) -> None:
        now = self._clock()
        if self._tokens < self._floor:
            gained = (now - self._refilled_at) * self._floor_per_second
            self._tokens = min(self._floor, self._tokens + gained)
        self._refilled_at = now


class Target(Protocol):
    """A host to ask, as the loop sees it."""

    @property
    def host(self) -> str:
        """``host[:port]``, for texts and metrics."""
        ...

    @property
    def breaker(self) -> Breaker: ...


TargetT = TypeVar("TargetT", bound=Target)


class Retrier:
    """Runs operations against targets: mirrors in order and once each, then the origin, the last."""

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        budget: RetryBudget,
        observer: RegistryObserver,
        rng: random.Random,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.policy, self.budget, self.observer = policy, budget, observer
        self.clock, self.sleep, self.rng = clock, sleep, rng

    async def run(self, targets: Sequence[TargetT], operation: Callable[[TargetT], Awaitable[T]]) -> T:
        """The result of the first success. Raises the origin's last ``UpstreamError``.

        Each pass over the targets is one attempt. It is repeated while the error is retryable, attempts and
        budget last, and the wait (jittered, at least Retry-After) leaves a useful attempt before the deadline.
        """
        deadline = self.clock() + self.policy.deadline_seconds
        self.budget.deposit()
        failures = 0
        while True:
            try:
                return await self._pass(targets, operation, deadline)
            except UpstreamError as error:
                failures += 1
                delay = max(self.policy.backoff_seconds(failures, self.rng), error.retry_after_seconds or 0.0)
                if (
                    not error.retryable
                    or failures >= self.policy.attempts
                    or self.clock() + delay > deadline - self.policy.least_seconds
                    or not self.budget.withdraw()
                ):
                    raise
                self.observer.retried(targets[-1].host, error.code)
                await self.sleep(delay)

    async def once(self, targets: Sequence[TargetT], operation: Callable[[TargetT], Awaitable[T]]) -> T:
        """One pass over the targets without a retry, for a caller that repeats by itself."""
        self.budget.deposit()
        return await self._pass(targets, operation, self.clock() + self.policy.deadline_seconds)

    async def _pass(
        self, targets: Sequence[TargetT], operation: Callable[[TargetT], Awaitable[T]], deadline: float
    ) -> T:
        latest: UpstreamError | None = None
        for mirror in targets[:-1]:
            # Half of what is left: a mirror that hangs must leave time for the origin.
            seconds = min(self.policy.attempt_seconds, (deadline - self.clock()) / 2)
            if mirror.breaker.wait_seconds() > 0 or seconds < self.policy.least_seconds:
                continue
            try:
                return await self._attempt(mirror, operation, seconds)
            except UpstreamError as error:
                latest = error
                self.observer.retried(mirror.host, error.code)
        origin = targets[-1]
        await self._wait_for_breaker(origin, deadline - self.policy.least_seconds)
        seconds = min(self.policy.attempt_seconds, deadline - self.clock())
        if latest is not None and seconds < self.policy.least_seconds:
            raise latest
        return await self._attempt(origin, operation, seconds)

    async def _wait_for_breaker(self, target: Target, until: float) -> None:
        """A breaker that is about to let a probe through is waited for; else the request fails at once."""
        patience_ends = min(until, self.clock() + self.policy.breaker_patience_seconds)
        while (wait := target.breaker.wait_seconds()) > 0:
            if self.clock() + wait > patience_ends:
                raise RegistryUnreachable(
                    f"{target.host} failed several times in a row and is not asked again for {wait:.1f} s",
                    retry_after_seconds=wait,
                )
            await self.sleep(wait * self.rng.uniform(1.0, 1.2))

    async def _attempt(
        self, target: TargetT, operation: Callable[[TargetT], Awaitable[T]], seconds: float
    ) -> T:
        breaker = target.breaker
        breaker.enter()
        started = self.clock()
        outcome: str | None = None
        try:
            try:
                async with asyncio.timeout(max(seconds, 0.0)) as limit:
                    result = await operation(target)
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise RegistryTimeout(f"{target.host} did not deliver within {seconds:.1f} s") from error
            breaker.succeeded()
            outcome = "ok"
            return result
        except UpstreamError as error:
            outcome = error.code
            if _is_failure(error):
                breaker.failed()
            else:
                breaker.succeeded()
            raise
        finally:
            if outcome is None:
                breaker.abandoned()
            self.observer.request_finished(target.host, outcome or "abandoned", self.clock() - started)


def _is_failure(error: UpstreamError) -> bool:
    """Whether the error speaks against the host. One that says when to come back is alive."""
    if isinstance(error, RegistryOverloaded):
        return error.retry_after_seconds is None
    return isinstance(error, RegistryUnreachable | RegistryTimeout)
