"""Cache, health and metrics: what operators ask."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import PlainTextResponse

from gateway import errors
from gateway.api.problems import RETRY_AFTER_SECONDS, fields_of, public_detail, responses
from gateway.api.schemas import CacheDropped, CacheView, CheckView, HealthView, TierView
from gateway.api.worker import worker_of
from gateway.errors import BlockgateError
from gateway.metrics import expose

router = APIRouter()

Verbose = Annotated[str | None, Query(description="List the checks")]


@router.get("/v1/cache", tags=["cache"])
async def occupancy(request: Request) -> CacheView:
    """How full the caches are."""
    services = worker_of(request).services
    memory, disk = services.store.memory, services.disk
    return CacheView(
        memory=TierView(
            spans=len(memory),
            used_bytes=memory.used_bytes,
            budget_bytes=memory.high_bytes,
            evicted=memory.evicted,
        ),
        disk=TierView(
            spans=None,
            used_bytes=await asyncio.to_thread(disk.measure),
            budget_bytes=disk.high_bytes,
            evicted=disk.evicted,
        ),
        disk_bypassed=disk.bypassed,
        disk_errors=dict(disk.errors),
    )


@router.delete("/v1/cache", tags=["cache"], responses=responses(errors.StorageError))
async def drop(request: Request) -> CacheDropped:
    """Drop everything that can be fetched again. Indexes and artifacts stay."""
    return CacheDropped(freed_bytes=await worker_of(request).services.store.drop())


@router.get(
    "/metrics",
    tags=["observation"],
    response_class=PlainTextResponse,
    responses={
        200: {
            "content": {"text/plain": {}, "application/openmetrics-text": {}},
            "description": "All workers' metrics; the format is the one that Accept prefers",
        }
    },
)
async def metrics(request: Request, accept: Annotated[str, Header()] = "") -> Response:
    """Metrics for Prometheus."""
    numbers = await worker_of(request).observation.numbers()
    body, content_type = await asyncio.to_thread(expose, numbers, accept)
    return Response(body, headers={"content-type": content_type, "cache-control": "no-store"})


@router.get("/livez", tags=["health"])
async def livez() -> HealthView:
    """The process runs. Nothing else is checked."""
    return HealthView(status="ok")


@router.get(
    "/readyz",
    tags=["health"],
    responses={503: {"model": HealthView, "description": "Not ready", **fields_of(503)}},
)
async def readyz(request: Request, response: Response, verbose: Verbose = None) -> HealthView:
    """Ready to serve: the catalog answers, and the process is not draining. A registry that is down does not matter."""
    worker = worker_of(request)
    services = worker.services
    checks = []
    try:
        await services.catalog.check()
        checks.append(CheckView(name="catalog", ok=True, detail="answers"))
    except BlockgateError as error:
        checks.append(CheckView(name="catalog", ok=False, detail=public_detail(error.code, error.detail)))
    disk = services.disk
    checks.append(
        CheckView(
            name="cache",
            ok=True,
            detail="bypassed after a write error; reads are served uncached" if disk.bypassed else "writable",
        )
    )
    draining = worker.draining
    checks.append(
        CheckView(name="accepting", ok=not draining, detail="draining" if draining else "accepting")
    )
    if not all(check.ok for check in checks):
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
        response.headers["retry-after"] = str(RETRY_AFTER_SECONDS)
    status = "draining" if draining else "ok" if all(check.ok for check in checks) else "failing"
    return HealthView(status=status, checks=checks if verbose is not None else [])
