"""How far a layer's index is proven, and what is checked of each span because of that.

*Proven*: a full pass read the whole blob, found the digests that the manifest and the configuration promise, and
recorded those of every span. A span is checked against its own digests, alone.

*Chained*: somebody supplied the checkpoints and no pass has ended yet. Structure is checked when the table is opened;
a span is served only when the window it was decoded with is what the spans before it end with, and when it ends as
the next window begins. That finds damage and accidents. It does not find forgery: windows that were computed to fit
pass. So nothing of it may enter a cache that others read, and whoever serves it says that it is unproven.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from blockgate.reader import Bytes
from gateway.errors import IndexDamaged
from gateway.gzran.zinfo import WINDOW_BYTES
from gateway.layers.index import LayerIndex
from gateway.layers.verify import check_chain

Fetch = Callable[[int], Coroutine[Any, Any, Bytes]]
"""Fetches and decodes one span by its number, checked as far as that is possible for it alone."""


class Proof(Protocol):
    """What vouches for the spans of a layer."""

    @property
    def shared(self) -> bool:
        """Whether its spans may be kept where other devices and processes find them."""
        ...

    async def read(self, index: LayerIndex, number: int, fetch: Fetch) -> Bytes:
        """A span, with all checks made that this proof asks for."""
        ...


class Proven:
    """Each span has digests of its own."""

    shared = True

    async def read(self, index: LayerIndex, number: int, fetch: Fetch) -> Bytes:
        """The span."""
        del index
        return await fetch(number)


class Chained:
    """A span needs the one before it, or several where they are shorter than a window.

    That costs a second fetch per random read while the pass runs; a sequential reader has it already.
    """

    shared = False

    def __init__(self, where: str) -> None:
        self._where = where
        # Windows that were found to be what comes before their checkpoint, by their digests: they are read from a disk
        # each time, and what has changed since is not confirmed.
        self._confirmed: dict[int, bytes] = {}

    async def read(self, index: LayerIndex, number: int, fetch: Fetch) -> Bytes:
        """The span behind a confirmed window."""
        window = await asyncio.to_thread(index.window, number)
        digest = hashlib.sha256(window).digest()
        if number == 0 or self._confirmed.get(number) == digest:
            data = await fetch(number)
        elif number in self._confirmed:
            raise IndexDamaged(f"{self._where}: the window of checkpoint {number} is not what it was")
        else:
            *before, data = await _all(fetch, [*_look_behind(index, number), number])
            check_chain(b"".join(before), window, self._where)
            self._confirmed[number] = digest
        if len(data) >= WINDOW_BYTES:
            # It ended as the next window is: decoding compared the two.
            tail = memoryview(data)[len(data) - WINDOW_BYTES :]
            self._confirmed[number + 1] = hashlib.sha256(tail).digest()
        return data


async def _all(fetch: Fetch, numbers: Sequence[int]) -> list[Bytes]:
    """Several spans side by side. When one cannot be had, the others are wanted no more."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(fetch(number)) for number in numbers]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _look_behind(index: LayerIndex, number: int) -> list[int]:
    """Numbers of the spans that make up the window of checkpoint ``number``, in order."""
    found: list[int] = []
    length = 0
    while number and length < WINDOW_BYTES:
        number -= 1
        start, stop = index.table.bounds(number)
        if stop > start:
            found.append(number)
            length += stop - start
    return found[::-1]
