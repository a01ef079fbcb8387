"""Uploads, content-addressed: EROFS metadata and zinfo tables."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import FileResponse

from gateway import errors
from gateway.api.problems import responses
from gateway.api.schemas import ArtifactView
from gateway.api.worker import worker_of

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"])

Digest = Annotated[str, Path(description="`sha256:` and 64 hexadecimal digits", max_length=200)]


@router.put(
    "/{digest}",
    status_code=201,
    responses={
        200: {"model": ArtifactView, "description": "It was there already"},
        **responses(
            errors.InvalidRequest, errors.ContentMismatch, errors.PayloadTooLarge, errors.StorageError
        ),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def upload(digest: Digest, request: Request, response: Response) -> ArtifactView:
    """Upload an artifact; 422 when its bytes have another digest than the URL says."""
    services = worker_of(request).services
    created = await services.artifacts.put(digest, request.stream())
    response.status_code = 201 if created else 200
    return ArtifactView(digest=digest, size=await services.artifacts.size(digest))


@router.get(
    "/{digest}",
    response_class=FileResponse,
    responses={
        200: {"content": {"application/octet-stream": {}}, "description": "The artifact's bytes"},
        **responses(errors.InvalidRequest, errors.ArtifactNotFound, errors.StorageError),
    },
)
@router.head("/{digest}", response_class=Response, responses=responses(errors.ArtifactNotFound))
async def download(digest: Digest, request: Request) -> Response:
    """An artifact's bytes. Their digest is the entity tag, so they are checked before any of them is sent."""
    artifacts = worker_of(request).services.artifacts
    size = await artifacts.size(digest)
    headers = {"etag": f'"{digest}"', "cache-control": "max-age=31536000, immutable", "accept-ranges": "none"}
    if request.method == "HEAD":
        headers |= {"content-length": str(size), "content-type": "application/octet-stream"}
        return Response(headers=headers)
    return FileResponse(
        await artifacts.verified(digest), headers=headers, media_type="application/octet-stream"
    )
