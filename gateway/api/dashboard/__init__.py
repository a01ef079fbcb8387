"""The dashboard and the API's reference: static files that need no build step, no network, no inline script or style."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

_FILES = Path(__file__).parent / "static"
_HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'",
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class _Files(StaticFiles):
    """The scripts and styles, with the page's own header fields."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                fields = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *fields]
            await send(message)

        await super().__call__(scope, receive, guarded)


def add(app: FastAPI) -> None:
    """Serve the page at ``/``, the API's reference at ``/docs``, and their files below ``/dashboard/``."""
    app.router.routes.append(Route("/", _page, include_in_schema=False))
    app.router.routes.append(Route("/docs", _reference, include_in_schema=False))
    app.router.routes.append(Mount("/dashboard", _Files(directory=_FILES), name="dashboard"))


async def _page(_request: Request) -> Response:
    return FileResponse(_FILES / "index.html", headers=_HEADERS)


async def _reference(_request: Request) -> Response:
    return FileResponse(_FILES / "reference.html", headers=_HEADERS)
