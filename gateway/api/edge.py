"""What every request passes first, as one pure ASGI layer: limits of size, tokens, and a last net for errors.

uvicorn takes as many and as long header fields as a client cares to send; they are counted here. Roles: ``admin`` may do
everything, ``node`` may read devices and their bytes, ``metrics`` may read /metrics. Health needs no token. Without any
configured token there is nothing to check.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

import structlog
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api import problems
from gateway.config import TokenEntry
from gateway.errors import BlockgateError, Forbidden, HeadersTooLarge, Unauthenticated

_MAX_FIELDS = 100
_MAX_BYTES = 32768
_MAX_BODY_BYTES = 1 << 20
_UPLOADS = "/v1/artifacts/"
_OPEN = frozenset({"/livez", "/readyz"})

log = structlog.get_logger(__name__)


class Edge:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, tokens: Sequence[TokenEntry] = ()) -> None:
        self._app = app
        self._tokens = [(bytes.fromhex(token.sha256), token.role) for token in tokens]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            _check_size(scope)
            if self._tokens:
                self._check_token(scope)
            # Uploads have a limit of their own, and are not held in memory.
            limited = receive if scope["path"].startswith(_UPLOADS) else _limit(receive)
            await self._app(scope, limited, watched)
        except BlockgateError as error:
            if started:
                raise
            await answer(error, send)
        except Exception:
            log.exception("request failed", method=scope["method"], path=scope["path"][:200])
            if started:
                raise
            await answer(BlockgateError("an unexpected error; the gateway's log has the details"), send)

    def _check_token(self, scope: Scope) -> None:
        path: str = scope["path"]
        if path in _OPEN:
            return
        role = self._role(scope)
        if role == "admin":
            return
        reading = scope["method"] in ("GET", "HEAD")
        if role == "node" and reading and path.startswith("/v1/devices"):
            return
        if role == "metrics" and reading and path == "/metrics":
            return
        raise Forbidden(f"a token of role {role} may not {scope['method']} {path[:200]}")

    def _role(self, scope: Scope) -> str:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, token = given.partition(b" ")
        if scheme.lower() != b"bearer" or not token:
            raise Unauthenticated("send a token: Authorization: Bearer …")
        digest = hashlib.sha256(token.strip()).digest()
        found = ""
        for known, role in self._tokens:
            # All are compared, so that the time taken tells nothing.
            if hmac.compare_digest(known, digest):
                found = role
        if not found:
            raise Unauthenticated("this token is not known here")
        return found


async def answer(error: BlockgateError, send: Send, extra: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Send a problem document, with ``extra`` header fields."""
    status, headers, body = problems.render(error)
    headers += extra
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _check_size(scope: Scope) -> None:
    headers = scope["headers"]
    if len(headers) > _MAX_FIELDS or sum(len(n) + len(v) for n, v in headers) > _MAX_BYTES:
        raise HeadersTooLarge(
            f"at most {_MAX_FIELDS} header fields and {_MAX_BYTES} bytes of them are accepted"
        )


def _limit(receive: Receive) -> Receive:
    """``receive`` that raises once a body has become longer than any that is understood here."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > _MAX_BODY_BYTES:
            # FastAPI takes any other kind of exception for a body that cannot be parsed.
            raise HTTPException(413, f"a request body may have at most {_MAX_BODY_BYTES} bytes")
        return message

    return limited
