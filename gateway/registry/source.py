"""Where images come from: the interface that registries and OCI layout folders share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from blockgate.reader import Blob
from gateway.registry.reference import Reference


@dataclass(frozen=True, slots=True)
class Descriptor:
    """An OCI content descriptor (image-spec, descriptor.md): its type, digest and size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an image. ``diff_id`` is the digest of its tar, as the configuration promises."""

    descriptor: Descriptor
    diff_id: str | None


@dataclass(frozen=True, slots=True)
class Image:
    """One platform's image, its manifest and configuration verified against their digests.

    ``reference`` is the canonical text of what was asked for (no secrets), ``digest`` the manifest's own
    digest, ``config`` the configuration's JSON in UTF-8, as ``manifest.document_text`` mends it.
    ``layers`` are in order, base first.
    """

    reference: str
    digest: str
    platform: str
    config: bytes
    layers: tuple[Layer, ...]


class ImageSource(Protocol):
    """A place that has images. Errors are of the ``UpstreamError`` and ``IntegrityError`` branches."""

    async def resolve(self, reference: Reference, platform: str) -> Image:
        """Find the image for ``platform`` (``os/arch[/variant]``)."""
        ...

    async def open_blob(self, reference: Reference, descriptor: Descriptor) -> Blob:
        """A reader of one blob of the image's repository. Opening asks nothing of the network."""
        ...

    async def aclose(self) -> None: ...
