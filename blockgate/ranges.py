"""Range and conditional requests of RFC 9110 as pure functions.

Inside, a range is half-open: ``(start, stop)``. The inclusive form exists only in the two header functions.
The rules chosen where the RFC leaves a choice:

- an unknown unit or a malformed specifier is ignored (section 14.2: the answer is the whole representation);
- a well-formed set of which nothing overlaps the representation is 416 (section 15.5.17);
- ranges that overlap or touch are joined; more than ``MAX_RANGES`` after that, or a header longer than
  ``MAX_HEADER`` characters, is 416 too, as section 15.5.17 allows for excessive requests.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

from blockgate.errors import RangeNotSatisfiable

MAX_RANGES = 16
MAX_HEADER = 8192

Range = tuple[int, int]

# ASCII digits only, and no more than fit 64 bits: int() would take "1_0", "+1" and other scripts' digits.
_ONE = re.compile(r"bytes=([0-9]{1,19})-([0-9]{1,19})", re.ASCII)
_SPEC = re.compile(r"(?:([0-9]{1,19})-([0-9]{1,19})?|-([0-9]{1,19}))", re.ASCII)
_CONTENT_RANGE = r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)"
_CONTENT_RANGES: dict[type, re.Pattern[Any]] = {
    str: re.compile(_CONTENT_RANGE, re.ASCII),
    bytes: re.compile(_CONTENT_RANGE.encode()),
}
_ETAG = re.compile(r'(W/)?"[\x21\x23-\x7e\x80-\xff]*"')


def parse_range(header: str, size: int) -> list[Range] | None:
    """Ranges of a ``Range`` header within ``size`` bytes, sorted and joined; ``None`` when it is to be ignored.

    Raises ``RangeNotSatisfiable`` when nothing of it can be served (416).
    """
    # One closed range inside of the representation is what nearly every request has.
    one = _ONE.fullmatch(header)
    if one is not None:
        start, last = int(one[1]), int(one[2])
        if start <= last < size:
            return [(start, last + 1)]
    unit, equals, specs = header.partition("=")
    if not equals or unit.strip(" \t").lower() != "bytes":
        return None
    if len(header) > MAX_HEADER:
        raise RangeNotSatisfiable(f"a Range header of {len(header)} characters exceeds {MAX_HEADER}")
    # Section 5.6.1.2: recipients accept empty list elements.
    parsed = [_parse_spec(spec, size) for part in specs.split(",") if (spec := part.strip(" \t"))]
    wanted = [each for each in parsed if each is not None]
    if not wanted or len(wanted) < len(parsed):
        return None
    found = [(start, stop) for start, stop in wanted if start < stop]
    if not found:
        raise RangeNotSatisfiable(f"no byte of 0..{size} lies in the range asked for")
    joined = _join(found)
    if len(joined) > MAX_RANGES:
        raise RangeNotSatisfiable(
            f"{len(joined)} separate ranges asked for, at most {MAX_RANGES} are answered"
        )
    return joined


def _parse_spec(spec: str, size: int) -> Range | None:
    """One range-spec; empty when it lies behind the end, ``None`` when it is malformed."""
    match = _SPEC.fullmatch(spec)
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        return max(0, size - int(suffix)), size
    start = int(first)
    if last is not None and int(last) < start:
        return None
    return start, size if last is None else min(int(last) + 1, size)


def _join(found: list[Range]) -> list[Range]:
    found.sort()
    joined = [found[0]]
    for start, stop in found[1:]:
        if start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def range_header(start: int, stop: int) -> str:
    """The ``Range`` field that asks for ``[start, stop)``."""
    return f"bytes={start}-{stop - 1}"


def content_range(start: int, stop: int, size: int) -> str:
    """``Content-Range`` of ``[start, stop)`` (section 14.4)."""
    return f"bytes {start}-{stop - 1}/{size}"


def parse_content_range(value: str | bytes) -> tuple[int, int, int | None] | None:
    """Start, stop and size (``None`` for ``*``) of a single-part 206; ``None`` for anything else, and for the absurd.

    Bytes are taken as they are: the node does not decode the heads of its answers.
    """
    match = _CONTENT_RANGES[type(value)].fullmatch(value)
    if match is None:
        return None
    first, last, total = match.groups()
    start, stop = int(first), int(last) + 1
    if total in ("*", b"*"):
        return (start, stop, None) if start < stop else None
    size = int(total)
    return (start, stop, size) if start < stop <= size else None


def unsatisfied_range(size: int) -> str:
    """``Content-Range`` of a 416 answer."""
    return f"bytes */{size}"


class Verdict(Enum):
    """What the preconditions of a GET or HEAD ask for."""

    SEND = "send"
    SEND_WHOLE = "send the whole representation, If-Range does not match"
    NOT_MODIFIED = "304"
    FAILED = "412"


def evaluate(
    etag: str, *, if_match: str | None = None, if_none_match: str | None = None, if_range: str | None = None
) -> Verdict:
    """Preconditions in the order of section 13.2.2, for a representation whose strong tag is ``etag``.

    There is no Last-Modified, so dates never match: If-Unmodified-Since and If-Modified-Since do not apply, and
    an If-Range date makes the answer whole (section 13.1.5).
    """
    if if_match is not None and not _listed(etag, if_match, weak=False):
        return Verdict.FAILED
    if if_none_match is not None and _listed(etag, if_none_match, weak=True):
        return Verdict.NOT_MODIFIED
    if if_range is not None and if_range.strip(" \t") != etag:
        return Verdict.SEND_WHOLE
    return Verdict.SEND


def _listed(etag: str, header: str, *, weak: bool) -> bool:
    if header.strip(" \t") == "*":
        return True
    for match in _ETAG.finditer(header):
        tag = match.group()
        if tag == etag or (weak and tag == f"W/{etag}"):
            return True
    return False
