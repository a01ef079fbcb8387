"""The digest lane: a second thread that hashes what the first one downloads and inflates.

Inflating and hashing take about as long as each other; on two threads the pass is as fast as the slower of them. The
lane takes bytes in order and cuts them into spans where it is told to. Its queue is short, so memory stays constant.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable

_QUEUE = 16


class DigestLane:
    """Runs calls in order on a thread of its own; the first exception is raised by the next call or by ``close``."""

    def __init__(self) -> None:
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(_QUEUE)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="digests", daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], None]) -> None:
        """Have ``call`` run after all earlier ones; waits while the queue is full."""
        if self._error is not None:
            raise self._error
        self._calls.put(call)

    def close(self) -> None:
        """Wait for all calls."""
        self._calls.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """End the thread without waiting for results. May follow ``close``."""
        if self._thread.is_alive():
            self._error = self._error or RuntimeError("the pass was abandoned")
            self._calls.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            if self._error is None:
                try:
                    call()
                except BaseException as error:  # noqa: BLE001 - raised again by submit or close
                    self._error = error


class SpanDigests:
    """sha256 of a whole stream and of each piece of it, for contiguous pieces."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.length = 0
        self._whole = hashlib.sha256()
        self._piece = hashlib.sha256()

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._whole.update(data)
        self._piece.update(data)
        self.length += len(data)

    def cut(self) -> None:
        """End the current piece here."""
        self.pieces.append(self._piece.digest())
        self._piece = hashlib.sha256()

    def hexdigest(self) -> str:
        """Digest of everything so far."""
        return self._whole.hexdigest()


class BitSpanDigests(SpanDigests):
    """As above for the compressed side, where a piece may begin inside of the byte that ended the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self._last = b""

    def update_with_cuts(self, data: bytes, cuts: list[tuple[int, int]]) -> None:
        """Take the next bytes and cut them at each ``(offset, bits)``.

        ``offset`` counts from the beginning of the stream. The piece before ends there; the next one begins there, or one
        byte earlier when ``bits`` of that byte belong to it.
        """
        begin = self.length
        self._whole.update(data)
        view = memoryview(data)
        done = 0
        for offset, bits in cuts:
            at = offset - begin
            self._piece.update(view[done:at])
            self.cut()
            done = at
            if bits:
                self._piece.update(view[at - 1 : at] if at else self._last)
        self._piece.update(view[done:])
        self.length += len(data)
        self._last = data[-1:] or self._last
