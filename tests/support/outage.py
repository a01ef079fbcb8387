"""A registry that is not there: connections are refused, those that exist end."""

import asyncio
from types import TracebackType
from typing import Self

from tests.support.faultregistry import FaultRegistry


class Outage:
    """The registry, which runs on another thread, is down while the block lasts, and listens on its old port again after it."""

    def __init__(self, registry: FaultRegistry) -> None:
        self._registry = registry
        self._loop = registry._servers[0].get_loop()
        self._port = int(registry.host.rpartition(":")[2])

    def __enter__(self) -> Self:
        asyncio.run_coroutine_threadsafe(self._down(), self._loop).result(20)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._up(), self._loop).result(20)

    async def _down(self) -> None:
        self._registry._servers[0].close()
        connections = list(self._registry._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _up(self) -> None:
        handler = self._registry._handler(to_storage=False)
        self._registry._servers[0] = await asyncio.start_server(handler, "127.0.0.1", self._port)
