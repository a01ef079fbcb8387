"""Is a 206 what was asked for? Pure.

HTTP libraries hand through whatever a server sends: other bytes, honestly labelled or not, all of the blob,
several parts, compressed bodies. Each would become wrong data if its header were not read (RFC 9110 §14.4,
§15.3.7).
"""

from __future__ import annotations

from collections.abc import Mapping

from blockgate.ranges import parse_content_range
from gateway.errors import RangeIgnored, RegistryProtocolError, WrongRange

_OK, _PARTIAL, _NOT_SATISFIABLE = 200, 206, 416


def check_partial(
    status: int, headers: Mapping[str, str], start: int, stop: int, *, size: int, where: str
) -> None:
    """Accept a 206 for exactly ``[start, stop)`` of ``size`` bytes, not encoded.

    Raises ``RangeIgnored`` for a 200, ``WrongRange`` for other bytes, ``RegistryProtocolError`` for the rest.
    ``where`` begins the error's text. Header names are lower case.
    """
    if status == _OK:
        raise RangeIgnored(
            f"{where}: ranges are ignored (status 200); layers cannot be read at random from there"
        )
    if status == _NOT_SATISFIABLE:
        raise RegistryProtocolError(
            f"{where}: bytes {start}-{stop - 1} are outside of what is there "
            f"({shown(headers.get('content-range', 'no Content-Range'))}); the manifest says {size} bytes"
        )
    if status != _PARTIAL:
        raise RegistryProtocolError(f"{where}: status {status} for a range")
    check_encoding(headers, where)
    value = headers.get("content-range", "")
    found = parse_content_range(value.strip())
    if found is None:
        kind = headers.get("content-type", "")
        what = "several parts" if kind.startswith("multipart/") else f"Content-Range {shown(value)}"
        raise WrongRange(f"{where}: asked for bytes {start}-{stop - 1}, was sent {what}")
    if found[:2] != (start, stop):
        raise WrongRange(f"{where}: asked for bytes {start}-{stop - 1}, was sent {shown(value)}")
    if found[2] not in (None, size):
        raise WrongRange(f"{where}: the blob is said to have {found[2]} bytes, the manifest says {size}")
    check_length(headers, stop - start, where)


def check_whole(status: int, headers: Mapping[str, str], size: int, where: str) -> None:
    """Accept a 200 for a blob of ``size`` bytes, not encoded, or raise ``RegistryProtocolError``."""
    if status != _OK:
        raise RegistryProtocolError(f"{where}: status {status} for a whole blob")
    check_encoding(headers, where)
    check_length(headers, size, where)


def check_encoding(headers: Mapping[str, str], where: str) -> None:
    """Refuse any Content-Encoding: identity was asked for, and digests are of the bytes as stored."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"identity", ""}:
        raise RegistryProtocolError(
            f"{where}: the body is encoded ({shown(encoding)}) although identity was asked for"
        )


def check_length(headers: Mapping[str, str], expected: int, where: str) -> None:
    """Refuse a Content-Length, where there is one, of other than ``expected`` bytes."""
    value = headers.get("content-length")
    if value is not None and value.strip() != str(expected):
        raise WrongRange(f"{where}: expected {expected} bytes, Content-Length is {shown(value)}")


def shown(text: str) -> str:
    """A registry's text, safe and short enough for an error: escaped, at most 80 characters."""
    return repr(text[:80])
