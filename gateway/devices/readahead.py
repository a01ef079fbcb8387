"""Telling sequential readers from random ones. PURE.

A device remembers where its last requests ended. A request that begins where an earlier one ended continues that stream; the
longer a stream, the further ahead it is read. A random reader never matches, so it costs exactly what it asks for.
"""

from __future__ import annotations

from collections import OrderedDict

_STREAMS = 64
_FIRST_BYTES = 1 << 20


class StreamTracker:
    """Up to 64 interleaved streams; the least recently continued is forgotten."""

    def __init__(self, longest_bytes: int) -> None:
        self.longest_bytes = longest_bytes
        self._runs: OrderedDict[int, int] = OrderedDict()

    def note(self, start: int, stop: int) -> int:
        """A request for ``[start, stop)`` came. Returns how many bytes behind it to read ahead.

        The second request of a stream may be chance, so reading ahead begins with the third; it doubles with each one.
        """
        run = self._runs.pop(start, 0) + 1
        self._runs[stop] = run
        if len(self._runs) > _STREAMS:
            self._runs.popitem(last=False)
        if run < 3:  # noqa: PLR2004 - see above
            return 0
        return min(_FIRST_BYTES << min(run - 3, 30), self.longest_bytes)
