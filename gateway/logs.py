"""Logs: JSON lines on a pipe, readable ones on a terminal.

Each line written while a request is answered carries the request's id and, where the client sent one, its W3C trace.
Long strings are cut, what is a secret by its type or its key's name is replaced, and the latest notable lines are
kept for the dashboard.
"""

from __future__ import annotations

import logging
import re
import secrets
import sys
import time
from collections import deque
from collections.abc import Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any

import structlog
from pydantic import SecretBytes, SecretStr

_LONGEST = 2000
_LONGEST_EVENT = 300
_EVENTS = 50
_REDACTED = "[redacted]"
_SECRET_KEYS = frozenset(
    {"authorization", "password", "token", "secret", "identity_token", "identitytoken", "auth", "cookie"}
)
# https://www.w3.org/TR/trace-context/#traceparent-header: version-trace id-parent id-flags; all zeros are invalid.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

_events: deque[dict[str, Any]] = deque(maxlen=_EVENTS)


class RequestContext:
    """Who asked. Nothing is looked at before a line is written, so that a request without one costs nothing."""

    __slots__ = ("_headers", "_id", "_trace", "status")

    def __init__(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = 0
        """Of the answer, once it has begun."""
        self._headers = headers
        self._id: str | None = None
        self._trace: str | None = None

    @property
    def id(self) -> str:
        """The client's X-Request-ID where it is a plain word, else a random one."""
        if self._id is None:
            given = self._header(b"x-request-id")
            self._id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        return self._id

    @property
    def trace_id(self) -> str:
        """The trace id of a valid ``traceparent``, else the empty string."""
        if self._trace is None:
            match = _TRACEPARENT.fullmatch(self._header(b"traceparent"))
            self._trace = match[1] if match else ""
        return self._trace

    def _header(self, wanted: bytes) -> str:
        return next((value.decode("latin-1") for name, value in self._headers if name == wanted), "")


REQUEST: ContextVar[RequestContext | None] = ContextVar("blockgate_request", default=None)
"""The request that is being answered; tasks that it starts inherit it."""


def configure(format_: str, level: str) -> None:
    """Set logging up for this process; ``format_`` is ``auto``, ``json`` or ``console``."""
    console = format_ == "console" or (format_ == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _name_request,
        _redact,
        _cut,
    ]
    structlog.configure(
        processors=[*shared, _remember, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        cache_logger_on_first_use=True,
    )
    renderer: Any = structlog.processors.JSONRenderer()
    if console:
        # The default shows the variables of every frame: secrets among them, and seconds of rendering.
        renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *([] if console else [structlog.processors.format_exc_info]),
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "alembic", "uvicorn.error", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def recent_events() -> list[dict[str, Any]]:
    """The latest lines of level info and above that this process wrote, oldest first.

    Each is ``at`` (Unix time), ``level``, ``text`` and ``device`` (a name or ``None``).
    """
    return list(_events)


def _name_request(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    request = REQUEST.get()
    if request is not None:
        event.setdefault("request_id", request.id)
        if request.trace_id:
            event.setdefault("trace_id", request.trace_id)
    return event


def _redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        event[key] = _safe(key, value)
    return event


def _safe(key: Any, value: Any) -> Any:
    if isinstance(value, SecretStr | SecretBytes) or (isinstance(key, str) and key.lower() in _SECRET_KEYS):
        return _REDACTED
    if isinstance(value, Mapping):
        return {inner: _safe(inner, held) for inner, held in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return [_safe(None, held) for held in value]
    return value


def _cut(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if isinstance(value, str) and len(value) > _LONGEST and key != "exception":
            event[key] = value[:_LONGEST] + "…"
    return event


def _remember(_logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if method != "debug" and event.get("event") != "request":
        told = [str(event.get("event", ""))]
        told += [str(event[key]) for key in ("state", "code", "registry", "error", "image") if event.get(key)]
        device = event.get("device")
        _events.append(
            {
                "at": time.time(),
                "level": "error" if method in ("exception", "critical") else method,
                "text": ": ".join(told)[:_LONGEST_EVENT],
                "device": None if device is None else str(device),
            }
        )
    return event
