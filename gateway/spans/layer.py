"""A layer as one device reads it: by which index, from which source, under which proof, and through which caches."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Awaitable, Callable
from typing import Protocol

from blockgate.reader import Reader
from gateway.errors import BlockgateError
from gateway.layers.index import LayerIndex
from gateway.layers.key import LayerKey, SpanKey
from gateway.layers.proof import Proof
from gateway.spans.memory import MemoryTier
from gateway.spans.tier import Origin, Tier

_BELIEVED_SECONDS = 60.0


class Keeper(Protocol):
    """Who opens indexes, and has what is lost or damaged made again."""

    async def open(self, layer: Layer) -> LayerIndex:
        """The layer's index. Waits a bounded time for one that is being made.

        Raises ``IndexBeingMade`` when that takes longer, ``StorageError``.
        """
        ...

    async def heal(self, layer: Layer, index: LayerIndex, error: BlockgateError) -> LayerIndex:
        """As ``open``, after what the layer was read by turned out to be damaged or gone."""
        ...


class Layer:
    """Opened when it is first read, so that opening a device touches no file.

    ``index`` is ``None`` until then. It is exchanged when its copy proves to be damaged; the new one cuts the layer
    at the same places, so that spans keep their numbers. ``tiers`` are the caches from the nearest on; the first is
    always memory. ``origin`` is where ``source`` lies: upstream, or on this machine.

    What is counted here is for showing: reads of each span, bytes fetched, and ``error``, how the last fetch ended.
    That is the layer's health, as this process sees it; it is never written anywhere else.
    """

    def __init__(
        self,
        key: LayerKey,
        source: Reader,
        origin: Origin,
        proof: Proof,
        memory: MemoryTier,
        tiers: tuple[Tier, ...],
        keeper: Keeper,
    ) -> None:
        self.key = key
        self.source = source
        self.origin = origin
        self.proof = proof
        self.memory = memory
        self.tiers = (memory, *tiers)
        self.index: LayerIndex | None = None
        # 64 bits: a 32-bit counter of a busy span would overflow within days.
        self.reads: array[int] = array("Q")
        self.fetched_bytes = 0
        self.error: BlockgateError | None = None
        self.error_at = 0.0
        self._keeper = keeper
        self._changing: asyncio.Future[LayerIndex] | None = None

    @property
    def where(self) -> str:
        """The layer's name in errors."""
        return f"layer {self.key.blob[:19]}…"

    def span_key(self, number: int) -> SpanKey:
        """Cache key of a span."""
        return SpanKey(self.key.blob, self.key.cut, number)

    async def open(self) -> LayerIndex:
        """The index. Raises as ``Keeper.open``."""
        if self.index is not None:
            return self.index
        return await self._change(None, lambda: self._keeper.open(self))

    async def heal(self, index: LayerIndex, error: BlockgateError) -> LayerIndex:
        """Something to read by after ``index`` met ``error``. Raises as ``Keeper.heal``."""
        return await self._change(index, lambda: self._keeper.heal(self, index, error))

    def note(self, error: BlockgateError | None) -> None:
        """Remember how the last fetch ended."""
        if error is not None or self.error is not None:
            self.error, self.error_at = error, time.monotonic()

    @property
    def trouble(self) -> BlockgateError | None:
        """Why its bytes cannot be had now, as far as is known: a fault that may have passed is believed for a minute."""
        if self.error is not None and self.error.retryable:
            return self.error if time.monotonic() - self.error_at < _BELIEVED_SECONDS else None
        return self.error

    async def _change(
        self, before: LayerIndex | None, work: Callable[[], Awaitable[LayerIndex]]
    ) -> LayerIndex:
        """Exchange the index ``before``.

        Who comes meanwhile shares the outcome: if they waited in turn, the last would wait for all of them.
        """
        while self._changing is not None:
            running = self._changing
            await asyncio.wait([running])
            if not running.cancelled():
                return running.result()
        if self.index is not None and self.index is not before:
            return self.index
        self._changing = running = asyncio.get_running_loop().create_future()
        try:
            index = await work()
        except Exception as error:
            if isinstance(error, BlockgateError):
                self.note(error)
            running.set_exception(error)
            running.exception()  # nobody else may want to know
            raise
        else:
            self._use(index)
            running.set_result(index)
            return index
        finally:
            self._changing = None
            running.cancel()  # for those that wait, when this reader was cancelled: one of them goes on

    def _use(self, index: LayerIndex) -> None:
        self.index = index
        if len(self.reads) != index.table.count:
            self.reads = array("Q", bytes(8 * index.table.count))
