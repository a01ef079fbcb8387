"""The root of both programs' error trees.

``gateway/errors.py`` and ``nbd_client/errors.py`` each draw the tree that grows from it. A leaf says what happened (its
``code`` is stable and documented), whether the same request may succeed later (``retryable``), and in its text what is
wrong, where, and what to do.

::

    BlockgateError
    └── RangeNotSatisfiable    no byte of the content lies in the range
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class BlockgateError(Exception):
    """Root of the tree. ``str(error)`` is for people; ``code`` is for programs."""

    code: ClassVar[str] = "internal"
    retryable: bool = False

    def __init__(self, detail: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds


class RangeNotSatisfiable(BlockgateError):
    """No byte of the content lies in the range (RFC 9110 section 15.5.17)."""

    code = "range_not_satisfiable"


def leaves(root: type[BlockgateError] = BlockgateError) -> Iterator[type[BlockgateError]]:
    """Every error class without subclasses, depth first."""
    children = root.__subclasses__()
    if not children:
        yield root
    for child in children:
        yield from leaves(child)
