"""The fault-injecting registry for tests that are not asynchronous, and a fault that holds a transfer up."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Self

from tests.support.faultregistry import FaultRegistry, Reply, Request


class ThreadedRegistry:
    """The fault-injecting registry on an event loop of its own, for tests that are not asynchronous."""

    def __init__(self) -> None:
        self.registry = FaultRegistry()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="registry")

    def __enter__(self) -> FaultRegistry:
        self._thread.start()
        self._run(self.registry.__aenter__())
        return self.registry

    def __exit__(self, *exc_info: object) -> None:
        self._run(self.registry.__aexit__(*exc_info))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(20)


class Held:
    """A fault that lets a transfer of a whole blob arrive slowly until it is released."""

    def __init__(self, registry: FaultRegistry, digest: str, *, seconds: float = 1.0) -> None:
        self._registry = registry
        self._digest = digest
        self._seconds = seconds
        self._replies: list[Reply] = []

    def __enter__(self) -> Self:
        self._registry.inject(self._hold, times=None, matching=self._matches)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._registry.heal()
        for reply in self._replies:
            reply.piece_seconds = 0

    @property
    def begun(self) -> bool:
        """Whether a transfer has begun."""
        return bool(self._replies)

    def _matches(self, request: Request) -> bool:
        return self._digest in request.path and request.range is None

    def _hold(self, request: Request, reply: Reply) -> None:
        reply.piece_bytes, reply.piece_seconds = 1 << 16, self._seconds
        self._replies.append(reply)
