"""Registering, listing, showing and removing devices, and following their progress."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from gateway import errors
from gateway.api.problems import responses
from gateway.api.schemas import DeviceDetail, DeviceList, DeviceView, detail, summary, view
from gateway.api.worker import worker_of
from gateway.errors import DeviceNotFound
from gateway.recipes.records import DeviceRecord, Failure
from gateway.recipes.spec import DeviceSpec, check_name
from gateway.recipes.states import State

_EVENT_SECONDS = 0.5
_KEEPALIVE_EVENTS = 30

router = APIRouter(prefix="/v1/devices", tags=["devices"])

Name = Annotated[str, Path(description="Device name: `[a-z0-9][a-z0-9._-]{0,127}`", max_length=200)]


Limit = Annotated[int, Query(ge=1, le=1000, description="The most devices of one page")]
Cursor = Annotated[str | None, Query(max_length=200, description="`next` of the page before")]
Part = Annotated[str | None, Query(max_length=128, description="Only devices whose name has this part")]
OnlyState = Annotated[State | None, Query(description="Only devices in this state")]


def _base(request: Request) -> str:
    return str(request.base_url)


def _trouble(request: Request) -> dict[str, Failure]:
    """Why bytes of ready devices cannot be had, by name."""
    return worker_of(request).observation.trouble()


@router.put(
    "/{name}",
    response_model=DeviceView,
    status_code=202,
    responses={
        200: {"model": DeviceView, "description": "The device exists with this very specification"},
        **responses(
            errors.InvalidRequest,
            errors.InvalidReference,
            errors.ArtifactNotFound,
            errors.DeviceExists,
            errors.PayloadTooLarge,
            errors.StorageError,
        ),
    },
)
async def register(name: Name, spec: DeviceSpec, request: Request, response: Response) -> DeviceView:
    """Register a device.

    202 while it is being indexed (follow it with `/events`, or ask again), 200 when the same specification is ready,
    409 when another one has the name. A device whose registration failed is tried again, or makes room for another
    specification. Every failure of the registration itself is shown in the device's `state` and `error`, every fault
    that is waited out in its `progress`.
    """
    services = worker_of(request).services
    check_name(name)
    await services.check_spec(spec)
    record, begin = await services.catalog.create(name, spec)
    if begin:
        services.registrar.begin(record)
    response.status_code = HTTPStatus.ACCEPTED if record.state is State.INDEXING else HTTPStatus.OK
    response.headers["location"] = f"/v1/devices/{name}"
    return view(record, _base(request), _trouble(request).get(name))


@router.get("", responses=responses(errors.InvalidRequest, errors.StorageError))
async def listing(
    request: Request,
    limit: Limit = 100,
    cursor: Cursor = None,
    state: OnlyState = None,
    name: Part = None,
) -> DeviceList:
    """Devices by name, page by page."""
    page = await worker_of(request).services.catalog.page(limit=limit, cursor=cursor, state=state, name=name)
    base_url, trouble = _base(request), _trouble(request)
    return DeviceList(
        devices=[summary(device, base_url, trouble.get(device.name)) for device in page.devices],
        next=page.cursor,
    )


@router.get("/{name}", responses=responses(errors.DeviceNotFound, errors.StorageError))
async def show(name: Name, request: Request) -> DeviceDetail:
    """One device."""
    catalog = worker_of(request).services.catalog
    record = await catalog.get(name)
    return detail(record, _base(request), _trouble(request).get(name), await catalog.config(record))


@router.delete("/{name}", status_code=204, responses=responses(errors.DeviceNotFound, errors.StorageError))
async def remove(name: Name, request: Request) -> Response:
    """Remove a device, whatever its state. What was indexed and cached stays for other devices."""
    services = worker_of(request).services
    record = await services.catalog.delete(name)
    await services.registrar.cancel(record)
    return Response(status_code=HTTPStatus.NO_CONTENT)


@router.get(
    "/{name}/events",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {"text/event-stream": {}},
            "description": "A `device` event for each change of the device",
        },
        **responses(errors.DeviceNotFound),
    },
)
async def events(name: Name, request: Request) -> StreamingResponse:
    """Server-sent events: the device, now and whenever its state or progress changes; `gone` when it is removed.

    The stream ends by itself once the device has reached a state that does not change on its own.
    """
    record = await worker_of(request).services.catalog.get(name)
    stream = _follow(request, record)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"cache-control": "no-store"})


async def _follow(request: Request, record: DeviceRecord) -> AsyncIterator[str]:
    worker, base_url = worker_of(request), _base(request)
    shown = ""
    quiet = 0
    uid = record.uid
    while True:
        text = view(record, base_url, _trouble(request).get(record.name)).model_dump_json()
        if text != shown:
            yield f"event: device\ndata: {text}\n\n"
            shown, quiet = text, 0
        elif quiet >= _KEEPALIVE_EVENTS:
            yield ": still here\n\n"
            quiet = 0
        if not record.unfinished:
            return
        if worker.draining:
            return
        quiet += 1
        await asyncio.sleep(_EVENT_SECONDS)
        try:
            record = await worker.services.catalog.get(record.name)
        except DeviceNotFound:
            yield "event: gone\ndata: {}\n\n"
            return
        if record.uid != uid:
            yield "event: gone\ndata: {}\n\n"
            return
