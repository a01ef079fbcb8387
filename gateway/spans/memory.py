"""The memory tier: least recently used spans under a byte budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from blockgate.reader import Bytes


class SpanKey(NamedTuple):
    """What a span is cached under: content and the way it was cut, never a URL or a tag."""

    blob: str
    index_id: str
    span: int


class MemoryTier:
    """Spans in memory; not thread-safe, it lives on the event loop.

    When more than ``high_bytes`` are held, the least recently used are dropped until ``low_bytes`` are left.
    """

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

    def get(self, key: SpanKey) -> Bytes | None:
        """The span, which becomes the most recently used."""
        data = self._spans.get(key)
        if data is not None:
            self._spans.move_to_end(key)
        return data

    def put(self, key: SpanKey, data: Bytes) -> None:
        """Hold a verified span; one that exceeds the whole budget is not held."""
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

    def drop(self, blob: str | None = None, index_id: str | None = None) -> int:
        """Forget all spans, or those of one blob (and one index of it). Returns the bytes freed."""
        before = self.used_bytes
        for key in list(self._spans):
            if (blob is None or key.blob == blob) and (index_id is None or key.index_id == index_id):
                self.used_bytes -= len(self._spans.pop(key))
                self.on_evict(key)
        return before - self.used_bytes

    def spans_of(self, blob: str, index_id: str) -> set[int]:
        """Numbers of the spans of one layer index that are held."""
        return {key.span for key in self._spans if key.blob == blob and key.index_id == index_id}


def _ignore(_key: SpanKey) -> None:
    return None
