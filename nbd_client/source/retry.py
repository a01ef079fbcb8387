"""Whole reads from a source that answers in part, late, or not at all. The only layer that retries.

The decisions are :class:`blockgate.retry.Attempts`: how long to wait before the next try, or that there is none.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

from blockgate.reader import Bytes, check_bounds
from blockgate.retry import Attempts, RetryPolicy
from nbd_client.errors import BlockgateError, SourceTimeout, TruncatedBody


class PartialSource(Protocol):
    """What ``RetryReader`` reads from: see :class:`nbd_client.source.http.HttpSource`."""

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    async def read_into(self, offset: int, target: memoryview, deadline: float) -> int:
        """Fill a prefix of ``target``; return its length, at least 1. Raises ``SourceError``.

        Done or failed by ``deadline``, a time of the loop's clock.
        """
        ...

    async def aclose(self) -> None:
        """Release what the source holds."""
        ...


class RetryReader:
    """A ``Reader``: exactly the bytes asked for, or the error that remained at the deadline."""

    def __init__(
        self,
        source: PartialSource,
        policy: RetryPolicy | None = None,
        *,
        jitter: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._source = source
        self._policy = policy or RetryPolicy()
        self._jitter = jitter
        self._sleep = sleep
        self.retries = 0
        self.stalls = 0
        self.received_bytes = 0

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._source.size

    async def read(self, offset: int, length: int) -> Bytes:
        """Return ``length`` bytes from ``offset``. Raises ``RangeNotSatisfiable`` or ``SourceError``."""
        check_bounds(offset, length, self.size)
        if not length:
            return b""
        view = memoryview(bytearray(length))
        now = asyncio.get_running_loop().time
        attempts = Attempts(self._policy, now(), self._jitter)
        filled = 0
        while filled < length:
            try:
                received = await self._source.read_into(offset + filled, view[filled:], attempts.deadline)
                filled += received
                self.received_bytes += received
            except BlockgateError as error:
                if isinstance(error, TruncatedBody):
                    filled += error.received
                    self.received_bytes += error.received
                self.stalls += isinstance(error, SourceTimeout)
                wait = attempts.wait_after(error, now())
                if wait is None:
                    raise
                self.retries += 1
                await self._sleep(wait)
        return view.toreadonly()

    async def aclose(self) -> None:
        """Close the source."""
        await self._source.aclose()
