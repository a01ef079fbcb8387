"""The last quarter of an hour as slots of five seconds. PURE.

Each worker adds how far its counters went to the slot of the moment. Slots are named by wall-clock time, so that those
of several workers fit together; a clock that is set back adds to the slot that is already there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SLOT_SECONDS = 5
SLOTS = 180


class Timeline:
    """Up to ``SLOTS`` rows of ``width`` numbers, the oldest forgotten first."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.rows: dict[int, list[int]] = {}
        self._last: Sequence[int] | None = None

    def note(self, now: float, counters: Sequence[int]) -> None:
        """The counters stand at ``counters`` at ``now`` (Unix time): add what is new to its slot.

        The first call only says where the counters begin, which is 0 for a worker that has just started.
        """
        before = self._last
        self._last = list(counters)
        if before is None:
            return
        slot = int(now // SLOT_SECONDS)
        row = self.rows.setdefault(slot, [0] * self.width)
        for column, (new, old) in enumerate(zip(counters, before, strict=True)):
            row[column] += max(0, new - old)
        self._trim(max(self.rows))

    def absorb(self, rows: Iterable[tuple[int, Sequence[int]]]) -> None:
        """Add another worker's rows."""
        for slot, values in rows:
            row = self.rows.setdefault(slot, [0] * self.width)
            self.rows[slot] = [mine + theirs for mine, theirs in zip(row, values, strict=True)]

    def series(self, now: float) -> list[list[int]]:
        """``SLOTS`` rows, oldest first; the last one is the slot that is not over at ``now``. Silent slots are zeros."""
        last = int(now // SLOT_SECONDS)
        return [self.rows.get(slot, [0] * self.width) for slot in range(last - SLOTS + 1, last + 1)]

    def recent(self, now: float, slots: int) -> tuple[list[int], float]:
        """Sums over the latest ``slots`` slots that are over and the one under way, and the seconds that they cover."""
        last = int(now // SLOT_SECONDS)
        rows = [self.rows.get(slot, [0] * self.width) for slot in range(last - slots, last + 1)]
        return [sum(column) for column in zip(*rows, strict=True)], now - (last - slots) * SLOT_SECONDS

    def _trim(self, newest: int) -> None:
        for slot in [slot for slot in self.rows if slot <= newest - SLOTS]:
            del self.rows[slot]
