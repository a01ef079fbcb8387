"""Open indexes: each once in a process, however many devices read by it."""

from __future__ import annotations

import asyncio
from typing import Protocol
from weakref import WeakValueDictionary

from gateway.errors import IndexAbsent, IndexDamaged
from gateway.layers.index import IndexRow, LayerIndex
from gateway.layers.key import LayerKey
from gateway.layers.store import LayerStore


class IndexRows(Protocol):
    """The catalog's side: which attempt of an index counts."""

    async def index_row(self, key: LayerKey) -> IndexRow | None:
        """The row; ``None`` where no pass has ended. Raises ``StorageError``."""
        ...

    async def drop_index(self, key: LayerKey, attempt: str) -> None:
        """Forget this attempt, if it still is the one that counts. Raises ``StorageError``."""
        ...


class OpenIndexes:
    """Gives out open indexes. One stays open as long as somebody holds it: Python counts the holders.

    An index that turns out to be damaged is dropped: its copy is removed, the catalog forgets the attempt, and whoever
    opens the key next finds it absent. Holders go on with what they have in memory, where every read of it is
    verified. Lives on one event loop.
    """

    def __init__(self, store: LayerStore, rows: IndexRows) -> None:
        self._store = store
        self._rows = rows
        self._open: WeakValueDictionary[LayerKey, LayerIndex] = WeakValueDictionary()
        self._opening: WeakValueDictionary[LayerKey, asyncio.Lock] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._open)

    async def open(self, key: LayerKey) -> LayerIndex:
        """The index. Raises ``IndexAbsent`` or ``StorageError``. A damaged one is dropped and is absent."""
        found = self._open.get(key)
        if found is not None:
            return found
        async with self._opening.setdefault(key, asyncio.Lock()):
            found = self._open.get(key)
            if found is None:
                found = self._open[key] = await self._load(key)
            return found

    def forget(self, index: LayerIndex) -> None:
        """The copy behind the index is gone: whoever opens the key next looks anew."""
        if self._open.get(index.key) is index:
            del self._open[index.key]

    async def drop(self, index: LayerIndex) -> None:
        """The copy behind the index is damaged: remove it. Raises ``StorageError`` when the catalog does not answer."""
        self.forget(index)
        await self._remove(index.key, index.row)

    async def _load(self, key: LayerKey) -> LayerIndex:
        row = await self._rows.index_row(key)
        if row is None:
            raise IndexAbsent(f"layer {key.blob} has no index")
        try:
            return await self._store.open(key, row)
        except IndexDamaged as error:
            await self._remove(key, row)
            raise IndexAbsent(f"{error.detail}; it is dropped") from error

    async def _remove(self, key: LayerKey, row: IndexRow) -> None:
        await self._rows.drop_index(key, row.attempt)
        await self._store.drop_copies(key, row)
