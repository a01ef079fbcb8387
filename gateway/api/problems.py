"""Errors as RFC 9457 problem details, and the one table from errors to HTTP statuses."""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, Field

from gateway import errors
from gateway.errors import BlockgateError

MEDIA_TYPE = "application/problem+json"

# The first class of an error's ancestry that stands here decides.
_STATUS: dict[type[BlockgateError], int] = {
    errors.RangeNotSatisfiable: 416,
    errors.PreconditionFailed: 412,
    errors.PayloadTooLarge: 413,
    errors.HeadersTooLarge: 431,
    errors.ContentMismatch: 422,
    errors.InvalidZinfo: 422,
    errors.InvalidMetadata: 422,
    errors.InvalidLayer: 422,
    errors.UnsupportedLayer: 422,
    errors.PathNotAllowed: 403,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.MethodNotAllowed: 405,
    errors.UsageError: 400,
    errors.MissingError: 404,
    errors.DeviceNotReady: 503,
    errors.StateError: 409,
    errors.Overloaded: 503,
    errors.RegistryTimeout: 504,
    errors.RegistryUnreachable: 502,
    errors.RegistryOverloaded: 503,
    errors.ImageNotFound: 422,
    errors.UpstreamError: 502,
    errors.IntegrityError: 502,
    errors.StorageError: 503,
    BlockgateError: 500,
}


# A 503 without an estimate of its own asks for this much patience.
RETRY_AFTER_SECONDS = 2
# Errors that may speak of the server's files. Others quote what the client sent, or what an image has.
_OF_THE_SERVER = (errors.StorageError, errors.StateError, errors.ConfigurationError)
# The folder part of an absolute path. URLs have a scheme before the slash, references (oci:/srv/images) a colon.
_FOLDER = re.compile(r"""(?<![^\s'"(\[=])/(?!v1/)(?:[^\s/'":;,()]+/)+""")


def _codes(*roots: type[BlockgateError]) -> frozenset[str]:
    found = {root.code for root in roots}
    return frozenset(found.union(*(_codes(*root.__subclasses__()) for root in roots)))


_CODES_OF_THE_SERVER = _codes(*_OF_THE_SERVER)


class Problem(BaseModel):
    """The body of every 4xx and 5xx answer (RFC 9457)."""

    type: str = Field(description="A URI that names the kind of problem: `urn:blockgate:error:<code>`")
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable, for programs")
    retryable: bool = Field(description="Whether the same request may succeed later")


def status_of(error: type[BlockgateError]) -> int:
    """HTTP status of an error class."""
    for ancestor in error.__mro__:
        if ancestor in _STATUS:
            return _STATUS[ancestor]
    return 500


def retry_after_seconds(error: BlockgateError) -> int | None:
    """What Retry-After says. Every 503 has it, so that no client has to guess."""
    seconds = error.retry_after_seconds
    if seconds is None and status_of(type(error)) == HTTPStatus.SERVICE_UNAVAILABLE:
        seconds = RETRY_AFTER_SECONDS
    return None if seconds is None else max(1, round(seconds))


def public_detail(code: str, detail: str) -> str:
    """The text of an error as clients may see it: of the server's files it has the last path component only."""
    return _FOLDER.sub("…/", detail) if code in _CODES_OF_THE_SERVER else detail


def problem(error: BlockgateError) -> Problem:
    """The body for an error."""
    status = status_of(type(error))
    return Problem(
        type=f"urn:blockgate:error:{error.code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=public_detail(error.code, error.detail),
        code=error.code,
        retryable=error.retryable,
    )


def render(error: BlockgateError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, header fields and body of an error's answer."""
    shown = problem(error)
    body = json.dumps(shown.model_dump()).encode()
    headers = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    seconds = retry_after_seconds(error)
    if seconds is not None:
        headers.append((b"retry-after", b"%d" % seconds))
    if shown.status == HTTPStatus.UNAUTHORIZED:
        headers.append((b"www-authenticate", b'Bearer realm="blockgate"'))
    return shown.status, headers, body


def fields_of(status: int) -> dict[str, Any]:
    """OpenAPI ``headers`` that every problem of this status has."""
    if status != HTTPStatus.SERVICE_UNAVAILABLE:
        return {}
    return {"headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait"}}}


def responses(*kinds: type[BlockgateError]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI ``responses`` of an operation that may end in these errors."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        status = status_of(kind)
        entry = by_status.setdefault(
            status, {"model": Problem, "description": "", "content": {MEDIA_TYPE: {}}, **fields_of(status)}
        )
        entry["description"] = ", ".join(filter(None, [entry["description"], f"`{kind.code}`"]))
    return by_status
