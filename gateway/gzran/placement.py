"""Where checkpoints fall. PURE.

Stopping libz at every block boundary costs a call for each, and a hostile stream holds millions of empty
blocks. So a placement says how far the stream can run before a boundary could matter (``run``), and judges
only the boundaries after that (``is_checkpoint``).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from gateway.errors import InvalidLayer, InvalidZinfo, UsageError
from gateway.gzran.zinfo import Checkpoint, ZinfoTable

#: More than any stream has left; fits what a C ``unsigned int`` holds.
UNLIMITED = 1 << 30


class Run(NamedTuple):
    """How far to inflate without looking at boundaries: bytes of input and of output.

    ``None`` in place of a ``Run`` means: stop at the next boundary.
    """

    input_bytes: int
    output_bytes: int


class Placement(Protocol):
    """Decides which block boundaries become checkpoints."""

    def run(self, in_offset: int, out_offset: int) -> Run | None:
        """What may be inflated in one go from here, or ``None`` when the next boundary matters."""
        ...

    def blocked(self) -> None:
        """The stream used up its run's output and the next bit of it yields more."""
        ...

    def is_checkpoint(self, boundary: Checkpoint) -> bool:
        """Whether a checkpoint falls here: a block's start, or right behind a member's header."""
        ...

    def oversized(self, found: str) -> UsageError:
        """The error for a span beyond its cap."""
        ...


class EverySpan:
    """The rule of zran, SOCI and erofs-utils.

    The first checkpoint stands right behind the first gzip header; each further one on the first boundary
    that is more than ``span_size`` bytes of output behind the last. (zran also takes every boundary before
    the first byte of output, where they are worth nothing; erofs-utils does not.)
    """

    def __init__(self, span_size: int) -> None:
        self._span_size = span_size
        self._limit = -1
        self._near = True

    def run(self, in_offset: int, out_offset: int) -> Run | None:
        """Up to ``span_size`` behind the last checkpoint, then boundary by boundary."""
        del in_offset
        return None if self._near else Run(UNLIMITED, self._limit - out_offset)

    def blocked(self) -> None:
        """Every boundary from here on lies more than ``span_size`` behind the last checkpoint."""
        self._near = True

    def is_checkpoint(self, boundary: Checkpoint) -> bool:
        """Whether ``boundary`` is far enough behind the last checkpoint."""
        if boundary.out_offset <= self._limit:
            return False
        self._limit = boundary.out_offset + self._span_size
        self._near = False
        return True

    def oversized(self, found: str) -> UsageError:
        """The layer is to blame: one of its deflate blocks is too large, or endless ones are empty."""
        return InvalidLayer(f"the gzip layer cannot be cut into spans: {found}")


class ByTable:
    """The checkpoints of a table that somebody handed in; each has to be a true boundary."""

    def __init__(self, table: ZinfoTable) -> None:
        self._table = table
        self._next = 0

    @property
    def complete(self) -> bool:
        """Whether every checkpoint of the table was met."""
        return self._next == len(self._table)

    def run(self, in_offset: int, out_offset: int) -> Run | None:
        """Up to the byte that the next expected checkpoint's last bit is in."""
        if self.complete:
            return Run(UNLIMITED, UNLIMITED)
        target = self._table.checkpoint(self._next)
        if out_offset > target.out_offset:
            raise self.refusal(f"the stream is at out {out_offset} before in {target.in_offset} is reached")
        # Byte in-1 holds the boundary's last bit, so every boundary in the bytes before it is an earlier one.
        ahead = target.in_offset - 1 - in_offset
        return Run(min(ahead, UNLIMITED), UNLIMITED) if ahead > 0 else None

    def blocked(self) -> None:
        """Nothing to do: runs end by input."""

    def is_checkpoint(self, boundary: Checkpoint) -> bool:
        """Whether ``boundary`` is the next expected checkpoint; ``InvalidZinfo`` when it is past it."""
        target = self._table.checkpoint(self._next)
        if boundary == target:
            self._next += 1
            return True
        if boundary.bit_position < target.bit_position:
            return False
        raise self.refusal(
            f"the next one starts at in {boundary.in_offset}, bits {boundary.bits}, out {boundary.out_offset}"
        )

    def oversized(self, found: str) -> UsageError:
        """The table is to blame."""
        return InvalidZinfo(f"zinfo checkpoint {max(self._next - 1, 0)} is too early to be the last: {found}")

    def refusal(self, found: str) -> InvalidZinfo:
        """The error for the checkpoint that is looked for, telling what was found in its place."""
        target = self._table.checkpoint(self._next)
        return InvalidZinfo(
            f"zinfo checkpoint {self._next}: no deflate block starts at in {target.in_offset}, "
            f"bits {target.bits}, out {target.out_offset}; {found}"
        )
