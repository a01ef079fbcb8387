"""What an image reference means just now."""

from __future__ import annotations

from fastapi import APIRouter, Request

from gateway import errors
from gateway.api.problems import responses
from gateway.api.schemas import ResolvedImage, ResolvedLayer
from gateway.api.worker import worker_of
from gateway.devices.images import ImageAccess
from gateway.recipes.spec import SourceSpec

router = APIRouter(prefix="/v1/images", tags=["images"])


@router.post(
    "/resolve",
    responses=responses(
        errors.InvalidRequest,
        errors.InvalidReference,
        errors.ConfigurationError,
        errors.PathNotAllowed,
        errors.PayloadTooLarge,
        errors.ImageNotFound,
        errors.PlatformNotFound,
        errors.InvalidManifest,
        errors.ManifestMismatch,
        errors.RegistryUnauthorized,
        errors.RegistryUnreachable,
        errors.RegistryOverloaded,
        errors.RegistryTimeout,
        errors.AddressRefused,
    ),
)
async def resolve(source: SourceSpec, request: Request) -> ResolvedImage:
    """Ask an image's registry what a reference means now: the platform's manifest by digest, and its layers.

    Nothing is registered or kept. A device that is registered with `pinned` shows this very image for ever, wherever its tag
    moves.
    """
    services = worker_of(request).services
    access = ImageAccess(services.sources, source)
    image = await access.resolve()
    return ResolvedImage(
        reference=image.reference,
        pinned=str(access.reference.pinned(image.digest)),
        digest=image.digest,
        platform=image.platform,
        layers=[ResolvedLayer.model_validate(layer.descriptor) for layer in image.layers],
    )
