"""What nodes tell the gateway of themselves."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from gateway import errors
from gateway.api.problems import responses
from gateway.api.worker import worker_of
from gateway.observe.nodes import NodeReport
from gateway.recipes.spec import check_name

router = APIRouter(prefix="/v1/nodes", tags=["observation"])

Name = Annotated[str, Path(description="Node name: `[a-z0-9][a-z0-9._-]{0,127}`", max_length=200)]


@router.post(
    "/{name}/report",
    status_code=204,
    responses=responses(errors.InvalidRequest, errors.Overloaded, errors.StorageError),
)
async def report(name: Name, body: NodeReport, request: Request) -> Response:
    """Say which devices a node has attached.

    The latest report of a node is shown; one that is silent for 15 minutes is forgotten.
    """
    check_name(name)
    await asyncio.to_thread(worker_of(request).observation.nodes.report, name, body)
    return Response(status_code=HTTPStatus.NO_CONTENT)
