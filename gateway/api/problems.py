"""Errors as RFC 9457 problem details, and the one table from errors to HTTP statuses."""

from __future__ import annotations

import json
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


def problem(error: BlockgateError) -> Problem:
    """The body for an error."""
    status = status_of(type(error))
    return Problem(
        type=f"urn:blockgate:error:{error.code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=error.detail,
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
    if error.retry_after_seconds is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after_seconds))).encode()))
    if shown.status == HTTPStatus.UNAUTHORIZED:
        headers.append((b"www-authenticate", b'Bearer realm="blockgate"'))
    return shown.status, headers, body


def responses(*kinds: type[BlockgateError]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI ``responses`` of an operation that may end in these errors."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        status = status_of(kind)
        entry = by_status.setdefault(
            status, {"model": Problem, "description": "", "content": {MEDIA_TYPE: {}}}
        )
        entry["description"] = ", ".join(filter(None, [entry["description"], f"`{kind.code}`"]))
    return by_status
