"""The memory tier: least recently used spans under a byte budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from blockgate.reader import Bytes
from gateway.layers.key import LayerKey, SpanKey
from gateway.spans.tier import Origin


class MemoryTier:
    """A ``Tier`` of one process; not thread-safe, it lives on the event loop.

    When more than ``high_bytes`` are held, the least recently used are dropped until ``low_bytes`` are left.
    """

    origin = Origin.MEMORY

    def __init__(self, high_bytes: int, low_bytes: int | None = None) -> None:
        self.high_bytes = high_bytes
        self.low_bytes = high_bytes * 9 // 10 if low_bytes is None else low_bytes
        self.used_bytes = 0
        self.evicted = 0
        self.on_evict: Callable[[SpanKey], None] = _ignore
        self._spans: OrderedDict[SpanKey, Bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._spans)

    def __contains__(self, key: SpanKey) -> bool:
        return key in self._spans

    def peek(self, key: SpanKey) -> Bytes | None:
        """The span, which becomes the most recently used."""
        data = self._spans.get(key)
        if data is not None:
            self._spans.move_to_end(key)
        return data

    def keep(self, key: SpanKey, data: Bytes) -> None:
        """Hold a span; one that exceeds the whole budget is not held."""
        if len(data) > self.high_bytes:
            return
        previous = self._spans.pop(key, None)
        self.used_bytes += len(data) - (0 if previous is None else len(previous))
        self._spans[key] = data
        if self.used_bytes > self.high_bytes:
            while self.used_bytes > self.low_bytes:
                evicted, dropped = self._spans.popitem(last=False)
                self.used_bytes -= len(dropped)
                self.evicted += 1
                self.on_evict(evicted)

    async def get(self, key: SpanKey, sha256: bytes) -> Bytes | None:
        """As ``peek``: what is in memory was verified when it came."""
        del sha256
        return self.peek(key)

    async def put(self, key: SpanKey, data: Bytes, sha256: bytes) -> None:
        """As ``keep``."""
        del sha256
        self.keep(key, data)

    async def drop(self) -> int:
        """Forget all spans."""
        freed = self.used_bytes
        spans, self._spans = self._spans, OrderedDict()
        self.used_bytes = 0
        for key in spans:
            self.on_evict(key)
        return freed

    @asynccontextmanager
    async def alone(self, key: SpanKey) -> AsyncIterator[bool]:
        """Nobody shares this process' memory."""
        del key
        yield False

    def keys(self) -> list[SpanKey]:
        """Of all spans that are held: a copy."""
        return list(self._spans)

    def held(self, layer: LayerKey) -> set[int]:
        """Numbers of the spans that are held."""
        blob, cut = layer
        return {key.span for key in self._spans if key.cut == cut and key.blob == blob}


def _ignore(_key: SpanKey) -> None:
    return None
