"""What one serving process answers from. The application's lifespan makes it, and every route reads it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from fastapi import Request

from gateway.observe.observation import Observation
from gateway.services import Services

T = TypeVar("T")

_SHARED_SECONDS = 0.5


class Shared(Generic[T]):
    """A value that takes long to make: made once for all who ask within half a second."""

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self._make = make
        self._made: tuple[float, T] | None = None
        self._lock = asyncio.Lock()

    async def get(self) -> T:
        """The value, half a second old at most."""
        async with self._lock:
            if self._made is None or time.monotonic() - self._made[0] > _SHARED_SECONDS:
                made = await self._make()
                # Counted from its end: else those who waited for one that takes longer would each make another.
                self._made = time.monotonic(), made
            return self._made[1]

    def forget(self) -> None:
        """Make it anew for the next who asks."""
        self._made = None


@dataclass(slots=True)
class Worker:
    """One process with all its parts; ``draining`` is set when it is about to stop."""

    services: Services
    observation: Observation
    stats: Shared[str]
    """What ``/v1/stats`` answers: many dashboards cost no more than one."""
    draining: bool = False


def worker_of(request: Request) -> Worker:
    """The worker that answers a request."""
    worker: Worker = request.app.state.worker
    return worker
