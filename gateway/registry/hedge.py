"""A second request for a read that takes unusually long: the first answer of the two counts.

Off unless asked for. It shortens the tail of a registry whose requests are slow at random; where they are
slow because it is overloaded, the retry budget, from which every hedge is paid, keeps it from getting worse.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gateway.registry.breaker import Clock
from gateway.registry.retry import RetryBudget

T = TypeVar("T")

_SAMPLES = 200
_ENOUGH_SAMPLES = 20
_QUANTILE = 0.95


class Hedge:
    """Runs operations, each a second time after the 95th percentile of the latest durations."""

    def __init__(self, budget: RetryBudget, *, clock: Clock = time.monotonic) -> None:
        self._budget, self._clock = budget, clock
        self._durations: deque[float] = deque(maxlen=_SAMPLES)

    def after_seconds(self) -> float | None:
        """How long to wait for the first request; None while too little is known."""
        if len(self._durations) < _ENOUGH_SAMPLES:
            return None
        ordered = sorted(self._durations)
        return ordered[math.ceil(len(ordered) * _QUANTILE) - 1]

    async def run(self, operation: Callable[[], Awaitable[T]]) -> T:
        """The first success of at most two runs; the first run's error where none succeeds."""
        patience = self.after_seconds()
        if patience is None:
            return await self._timed(operation)
        first = asyncio.ensure_future(self._timed(operation))
        running = {first}
        try:
            await asyncio.wait(running, timeout=patience)
            if not first.done() and self._budget.withdraw():
                running.add(asyncio.ensure_future(self._timed(operation)))
            while running:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if task.exception() is None:
                        return task.result()
            return first.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _timed(self, operation: Callable[[], Awaitable[T]]) -> T:
        started = self._clock()
        result = await operation()
        self._durations.append(self._clock() - started)
        return result
