"""The FastAPI application: routers, the data route, error handling, OpenAPI."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from blockgate.names import DATA_PATH
from gateway import __version__, errors
from gateway.api import artifacts, credentials, dashboard, devices, images, nodes, operations, problems, stats
from gateway.api.connection import ADMISSION
from gateway.api.data import DataEndpoint
from gateway.api.edge import Edge, Net
from gateway.api.openapi import PATHS, document
from gateway.api.worker import Shared, Worker
from gateway.config import Settings
from gateway.errors import BlockgateError
from gateway.observe.observation import Observation
from gateway.observe.requests import RequestCounts
from gateway.services import Services

_DESCRIPTION = """Container images as devices: verified byte ranges of unmodified images that stay in their registry.

Register a device with `PUT /v1/devices/{name}`, wait until its state is `ready`, then read its `data_url`
with Range requests. Every error is an RFC 9457 problem document with a stable `code`."""

_ROUTERS = (
    devices.router,
    images.router,
    artifacts.router,
    credentials.router,
    operations.router,
    stats.router,
    nodes.router,
)


class _Application(FastAPI):
    """FastAPI with the edge around all of it, instead of among its middlewares."""

    edge: Edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            scope["app"] = self
            await self.edge(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def inside(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI behind the edge."""
        await super().__call__(scope, receive, send)


def create_app(settings: Settings) -> FastAPI:
    """Build the application; its services open when its lifespan starts."""
    counts = RequestCounts()
    data = DataEndpoint(counts, private=bool(settings.tokens), cors_origins=settings.cors_origins)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        services = await Services.open(settings)
        data.shelf = services.shelf
        observation = Observation(services, counts)
        app.state.worker = Worker(services, observation, Shared(lambda: stats.document(observation)))
        try:
            await observation.start()
            yield {ADMISSION: services.store.admission}
        finally:
            await observation.aclose()
            await services.aclose()

    app = _Application(
        title="blockgate",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's page runs scripts of other hosts, beside the dashboard's token; ours is in dashboard/
        redoc_url=None,
    )
    # A route like any other, but raw ASGI, and the edge goes to it directly: no framework layer is paid for per block.
    for path in PATHS:
        app.router.routes.insert(0, Route(path, data, methods=["GET", "HEAD"], include_in_schema=False))
    for router in _ROUTERS:
        app.include_router(router)
    dashboard.add(app)
    # Both routes of device bytes are counted as one: they are the same bytes.
    counts.name({**_templates(app), data: DATA_PATH})
    app.edge = Edge(
        app.inside, data, counts, tokens=settings.tokens, access_log=settings.log_level == "debug"
    )
    app.add_middleware(Net)
    app.add_exception_handler(BlockgateError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    return app


def _templates(app: FastAPI) -> dict[Any, str]:
    """The route template of each endpoint."""
    names: dict[Any, str] = {}
    for route in (*app.routes, *(route for router in _ROUTERS for route in router.routes)):
        if isinstance(route, Route):
            names[route.endpoint] = route.path
        elif isinstance(route, Mount):
            names[route.app] = route.path
    return names


def _response(error: BlockgateError) -> Response:
    status, headers, body = problems.render(error)
    response = Response(body, status)
    response.raw_headers = headers
    return response


async def _on_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, BlockgateError)  # noqa: S101 - that is what the handler is registered for
    return _response(error)


async def _on_validation(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:10])
    return _response(errors.InvalidRequest(wrong))


async def _on_http(request: Request, error: Exception) -> Response:
    """Starlette's own answers: no route, or no such method on it; and the edge's for a body that is too large."""
    assert isinstance(error, HTTPException)  # noqa: S101
    method, path = request.method, request.url.path[:200]
    if error.status_code == 405:  # noqa: PLR2004
        response = _response(errors.MethodNotAllowed(f"{method} is not possible on {path}"))
        if error.headers and "Allow" in error.headers:
            response.headers["allow"] = error.headers["Allow"]
        return response
    if error.status_code == 404:  # noqa: PLR2004
        return _response(errors.RouteNotFound(f"there is nothing at {path}; /docs lists what there is"))
    if error.status_code == 413:  # noqa: PLR2004
        return _response(errors.PayloadTooLarge(error.detail))
    return _response(errors.InvalidRequest(str(error.detail)))
