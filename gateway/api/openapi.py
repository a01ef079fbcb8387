"""The OpenAPI document: FastAPI's, and the data endpoint's part of it, which a raw ASGI route cannot describe itself."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from blockgate.names import CONTENT_PATH, DATA_PATH
from gateway import errors
from gateway.api.problems import MEDIA_TYPE, fields_of, status_of

PATHS = (DATA_PATH, CONTENT_PATH)

_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_PROBLEM = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_FAILURES = (
    errors.InvalidRequest,
    errors.PreconditionFailed,
    errors.RangeNotSatisfiable,
    errors.SpanMismatch,
    errors.BlobNotFound,
    errors.RegistryUnreachable,
    errors.IndexBeingMade,
    errors.StorageError,
    errors.Overloaded,
    errors.RegistryOverloaded,
    errors.RegistryTimeout,
)
_BY_NAME = (
    errors.DeviceNotFound,
    errors.DeviceFailed,
    errors.DeviceQuarantined,
    errors.NewerFormat,
    errors.DeviceNotReady,
)
_BY_CONTENT = (errors.ContentNotFound,)


def document(app: FastAPI) -> dict[str, Any]:
    """The whole document, made once."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            openapi_version="3.1.0",
        )
        made["paths"] = dict(sorted({**made["paths"], **{path: _data(path) for path in PATHS}}.items()))
        # FastAPI documents its own validation answer, which is never sent: ours is a problem document of status 400.
        for operations in made["paths"].values():
            for operation in operations.values():
                if "HTTPValidationError" in str(operation["responses"].get("422")):
                    del operation["responses"]["422"]
        for name in ("HTTPValidationError", "ValidationError"):
            made["components"]["schemas"].pop(name, None)
        app.openapi_schema = made
    return app.openapi_schema


def _data(path: str) -> dict[str, Any]:
    """GET and HEAD of one of ``PATHS``."""
    content = path == CONTENT_PATH
    name, what = ("etag", "content") if content else ("name", "device")
    return {
        "get": {
            "tags": ["devices"],
            "operationId": f"read_{what}",
            "summary": "Bytes that have an entity tag" if content else "The bytes of a device",
            "description": "The device's bytes, whole or by Range (RFC 9110): one range gives 206, several give "
            "multipart/byteranges, at most 16 after joining those that touch. "
            "A malformed Range or an unknown unit is ignored. "
            "Every byte is verified before it is sent; when a later part of an answer cannot be had, the connection ends "
            "short of Content-Length. "
            + (
                "The bytes of an entity tag never change: the answer may be kept for ever."
                if content
                else "A name can be given to other content: Content-Location names the address at which these bytes stay."
            ),
            "parameters": _parameters(name),
            "responses": {
                "200": {
                    "description": "The whole device",
                    "headers": _headers(content=content),
                    "content": _BINARY,
                },
                "206": {
                    "description": "The range or ranges",
                    "headers": _headers(content=content)
                    | {"Content-Range": {"schema": {"type": "string"}, "description": "Of a single range"}},
                    "content": _BINARY
                    | {"multipart/byteranges": {"schema": {"type": "string", "format": "binary"}}},
                },
                "304": {
                    "description": "If-None-Match names the device's content",
                    "headers": _headers(content=content),
                },
                **_failures(content=content),
            },
        },
        "head": {
            "tags": ["devices"],
            "operationId": f"stat_{what}",
            "summary": "Their size" if content else "The device's size and entity tag",
            "description": "Range has no effect on HEAD.",
            "parameters": _parameters(name),
            "responses": {
                "200": {"description": "Size and entity tag", "headers": _headers(content=content)},
                "304": {
                    "description": "If-None-Match names the device's content",
                    "headers": _headers(content=content),
                },
                **{
                    status: {"description": answer["description"]}
                    for status, answer in _failures(content=content).items()
                },
            },
        },
    }


def _parameters(name: str) -> list[dict[str, Any]]:
    fields = [
        ("Range", "`bytes=0-4095`, `bytes=-512`, `bytes=0-0,4096-8191`"),
        ("If-Range", "An entity tag: when it is not the device's, Range is ignored"),
        ("If-Match", "Entity tags: 412 when the device's is not among them"),
        ("If-None-Match", "Entity tags: 304 when the device's is among them"),
    ]
    place = {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
    return [place] + [
        {"name": field, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}
        for field, text in fields
    ]


def _headers(*, content: bool) -> dict[str, Any]:
    headers = {
        "ETag": {
            "schema": {"type": "string"},
            "description": "Strong; names the content, the same on every replica",
        },
        "Accept-Ranges": {"schema": {"type": "string", "const": "bytes"}},
        "Content-Length": {"schema": {"type": "integer"}},
        "Blockgate-Verification": {
            "schema": {"type": "string", "enum": ["verified", "unverified"]},
            "description": "unverified: only a supplied table vouches for the bytes, which are not to be kept",
        },
        "Cache-Control": {
            "schema": {"type": "string"},
            "description": "no-store while the bytes are unverified; else "
            + ("immutable" if content else "no-cache: the name can be given to other content"),
        },
    }
    if not content:
        headers["Content-Location"] = {
            "schema": {"type": "string"},
            "description": "The address of these very bytes: `/v1/content/{etag}/data`",
        }
    return headers


def _failures(*, content: bool) -> dict[str, Any]:
    by_status: dict[str, list[str]] = {}
    for kind in (*(_BY_CONTENT if content else _BY_NAME), *_FAILURES):
        by_status.setdefault(str(status_of(kind)), []).append(f"`{kind.code}`")
    return {
        status: {"description": ", ".join(codes), "content": _PROBLEM, **fields_of(int(status))}
        for status, codes in sorted(by_status.items())
    }
