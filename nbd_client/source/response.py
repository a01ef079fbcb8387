"""HTTP/1.1 response heads, and whether one answers the range that was asked for (RFC 9112, RFC 9110). PURE.

The rule of this module: any doubt is an error. Bytes are accepted only when start, end, total length and the
validator all agree with what was asked for and pinned.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from blockgate.ranges import parse_content_range
from blockgate.retry import parse_http_date, parse_retry_after
from nbd_client.errors import (
    BlockgateError,
    RangeIgnored,
    SourceChanged,
    SourceError,
    SourceOverloaded,
    SourceProtocolError,
    SourceRefused,
    WrongRange,
)

MAX_HEAD_BYTES = 32 << 10

OK, PARTIAL, PRECONDITION_FAILED, UNSATISFIABLE = 200, 206, 412, 416
REDIRECTS = frozenset({301, 302, 303, 307, 308})
# RFC 9110 section 15: those that may be different next time.
RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: .*)?", re.DOTALL)
_FIELD = re.compile(rb"^([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\r\n]*)", re.MULTILINE)
_RANGE_FIELD = b"\r\nContent-Range: "
_DIGITS = re.compile(rb"[0-9]{1,19}")
_SINGLE = (
    b"content-length",
    b"content-range",
    b"content-encoding",
    b"transfer-encoding",
    b"etag",
    b"location",
)


class Head(NamedTuple):
    """Status and fields (names in lower case, values stripped; repeated fields joined with a comma)."""

    status: int
    fields: dict[bytes, bytes]
    keep_alive: bool


@dataclass(frozen=True, slots=True)
class Pin:
    """What the content was when it was opened: its size in bytes and its validator.

    ``etag`` is the field as it came, or None; ``last_modified`` is compared only where there is no ETag.
    """

    size: int
    etag: bytes | None
    last_modified: bytes | None

    @property
    def strong(self) -> bool:
        """Whether the ETag can stand in If-Match (RFC 9110 section 13.1.1)."""
        return self.etag is not None and self.etag.startswith(b'"')


def parse_head(raw: bytes) -> Head:
    """Parse a head without its final empty line. Raises ``SourceProtocolError``."""
    status_line, _, rest = raw.partition(b"\r\n")
    matched = _STATUS_LINE.fullmatch(status_line)
    if matched is None:
        raise SourceProtocolError("the answer does not begin with an HTTP/1.1 status line")
    found = _FIELD.findall(rest)
    # One pass in C, and three counts that prove that it took every line: folded lines, bare line feeds and bare
    # returns have been used to smuggle fields past one of two parsers.
    ends = rest.count(b"\r\n") + bool(rest)
    if not len(found) == ends == rest.count(b"\n") + bool(rest) == rest.count(b"\r") + bool(rest):
        raise SourceProtocolError("the answer holds a malformed header field")
    fields = {name.lower(): value.rstrip(b" \t") for name, value in found}
    if len(fields) != len(found):
        fields = _joined(found)
    connection = fields.get(b"connection", b"").lower()
    keep_alive = b"close" not in connection and (matched[1] == b"1" or b"keep-alive" in connection)
    return Head(int(matched[2]), fields, keep_alive)


class HeadParser:
    """Parses like :func:`parse_head`, quicker for heads that differ in their Content-Range only.

    One server's answers to ranges of one length, within one second, do: identical bytes parse identically.
    """

    def __init__(self) -> None:
        self._around = b""
        self._head: Head | None = None

    def parse(self, raw: bytes) -> Head:
        """Parse a head without its final empty line. Raises ``SourceProtocolError``."""
        begin = raw.find(_RANGE_FIELD) + len(_RANGE_FIELD)
        if begin < len(_RANGE_FIELD):
            return parse_head(raw)
        end = raw.find(b"\r\n", begin)
        value = raw[begin:] if end < 0 else raw[begin:end]
        around = raw[:begin] if end < 0 else raw[:begin] + raw[end:]
        head = self._head
        # The value must be of harmless characters, or it might hide what parse_head would refuse.
        if head is not None and around == self._around and _is_plain(value):
            return Head(head.status, {**head.fields, b"content-range": value}, head.keep_alive)
        head = self._head = parse_head(raw)
        self._around = around
        return head


def _is_plain(value: bytes) -> bool:
    return value.startswith(b"bytes ") and not value[6:].strip(b"0123456789-/")


def _joined(found: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Fields of which some are repeated (RFC 9110 section 5.3)."""
    fields: dict[bytes, bytes] = {}
    for name, value in ((name.lower(), value.rstrip(b" \t")) for name, value in found):
        if name in fields and name in _SINGLE:
            raise SourceProtocolError(f"the answer holds {name.decode()} twice")
        fields[name] = fields[name] + b", " + value if name in fields else value
    return fields


def body_length(head: Head) -> int:
    """The announced length of the body in bytes. Raises ``SourceProtocolError`` when it cannot be known."""
    if b"transfer-encoding" in head.fields:
        raise SourceProtocolError("a range came in chunks of unknown length (Transfer-Encoding)")
    if b"content-encoding" in head.fields and head.fields[b"content-encoding"].lower() != b"identity":
        raise SourceProtocolError("the server compressed the bytes (Content-Encoding); that must be off")
    raw = head.fields.get(b"content-length", b"")
    if _DIGITS.fullmatch(raw) is None:
        raise SourceProtocolError("the answer has no usable Content-Length")
    return int(raw)


def content_range(head: Head) -> tuple[int, int, int]:
    """Start, end (exclusive) and total of a 206. Raises ``WrongRange`` when it does not tell or is absurd."""
    found = parse_content_range(head.fields.get(b"content-range", b""))
    if found is None or found[2] is None:
        raise WrongRange("the answer to a range has no usable Content-Range")
    return found[0], found[1], found[2]


def pin_of(head: Head) -> Pin:
    """What to hold later answers against, from the answer to the first range. Raises ``SourceError``."""
    if head.status == OK:
        raise RangeIgnored("the server ignores ranges (200 for bytes=0-0); it must support Range requests")
    if head.status != PARTIAL:
        raise error_of(head)
    start, end, total = content_range(head)
    if (start, end) != (0, 1) or body_length(head) != 1:
        raise WrongRange(f"asked for byte 0, the server sent {start}..{end}")
    return Pin(total, head.fields.get(b"etag"), head.fields.get(b"last-modified"))


def check_range(head: Head, offset: int, length: int, pin: Pin) -> int:
    """How many bytes of the body are the first bytes of ``[offset, offset + length)``: 1 to ``length``.

    Raises the ``SourceError`` that says why this answer must not be used.
    """
    if head.status == PARTIAL:
        start, end, total = content_range(head)
    elif head.status == OK:
        if (offset, length) != (0, pin.size):
            raise RangeIgnored(f"200 for bytes {offset}+{length}: the server ignored the range")
        start, end, total = 0, length, length
    else:
        raise error_of(head)
    _check_same_content(head, total, pin)
    if start != offset or end > offset + length:
        raise WrongRange(f"asked for {offset}..{offset + length}, the server sent {start}..{end}")
    announced = body_length(head)
    if announced != end - start:
        raise WrongRange(f"a body of {announced} bytes for {start}..{end}")
    return announced


def _check_same_content(head: Head, total: int, pin: Pin) -> None:
    if total != pin.size:
        raise SourceChanged(f"the content changed: {total} bytes instead of {pin.size}")
    if pin.etag is not None:
        if head.fields.get(b"etag") != pin.etag:
            raise SourceChanged("the content changed: its ETag is another one than at the start")
    elif head.fields.get(b"last-modified") != pin.last_modified:
        raise SourceChanged("the content changed: its Last-Modified is another one than at the start")


def error_of(head: Head) -> SourceError:
    """What a status other than 200 and 206 stands for."""
    status = head.status
    if status in RETRYABLE:
        return SourceOverloaded(
            f"the server answered {status}",
            retry_after_seconds=parse_retry_after(
                _text(head, b"retry-after"), parse_http_date(_text(head, b"date"))
            ),
        )
    if status == PRECONDITION_FAILED:
        return SourceChanged("the content changed: the server no longer has what was opened (412)")
    return SourceRefused(f"the server answered {status}")


def _text(head: Head, name: bytes) -> str:
    return head.fields.get(name, b"").decode("latin-1")


def traced(error: BlockgateError, trace_id: str) -> BlockgateError:
    """The same error, its text ending with the trace id of the request that met it."""
    error.detail = f"{error.detail} (trace {trace_id})"
    error.args = (error.detail,)
    return error


def named(error: BlockgateError, shown_url: str) -> BlockgateError:
    """The same error, its text beginning with the URL that it is about."""
    error.detail = f"{shown_url}: {error.detail}"
    error.args = (error.detail,)
    return error
