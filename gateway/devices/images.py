"""From a specification to the image, its layers and their blobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from gateway.devices.records import ImageFacts
from gateway.devices.spec import DeviceSpec, LayerByDigest, LayerByIndex, SourceSpec
from gateway.errors import InvalidRequest, UnsupportedLayer
from gateway.reader import Blob
from gateway.registry.reference import Reference, parse_reference
from gateway.registry.source import Descriptor, Image, ImageSource, Layer
from gateway.spans.index import Kind

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"


class Sources(Protocol):
    """Opens the source that a reference belongs to."""

    def open(self, reference: Reference, *, insecure: bool, credentials: str | None) -> ImageSource:
        """A source bound to how its registry is to be spoken to."""
        ...


@dataclass(frozen=True, slots=True)
class Chosen:
    """An image with the layers of it that a device is made of, each with its place in the image."""

    image: Image
    layers: tuple[Layer, ...]

    def facts(self) -> ImageFacts:
        """For the catalog."""
        return ImageFacts(
            reference=self.image.reference,
            digest=self.image.digest,
            platform=self.image.platform,
            config=self.image.config.decode("utf-8", "replace"),
            layers=[{**asdict(layer.descriptor), "diff_id": layer.diff_id} for layer in self.layers],
        )


class ImageAccess:
    """One device's image source."""

    def __init__(self, sources: Sources, source: SourceSpec) -> None:
        self.reference = parse_reference(source.image)
        self._platform = source.platform
        self._source = sources.open(self.reference, insecure=source.insecure, credentials=source.credentials)

    async def choose(self, spec: DeviceSpec) -> Chosen:
        """Resolve the image and pick the layers. Raises ``InvalidRequest`` when there is no such layer."""
        image = await self._source.resolve(self.reference, self._platform)
        return Chosen(image, _pick(image, spec))

    async def blob(self, descriptor: Descriptor) -> Blob:
        """A reader of one blob."""
        return await self._source.open_blob(self.reference, descriptor)

    @staticmethod
    def descriptors(image: ImageFacts) -> dict[str, Descriptor]:
        """The layers of a recorded image by digest."""
        return {
            row["digest"]: Descriptor(row["media_type"], row["digest"], row["size"], row.get("annotations") or {})
            for row in image.layers
        }


async def compression(blob: Blob, descriptor: Descriptor) -> Kind:
    """How a layer's blob is to be read: by its media type, or by its first bytes where that says nothing.

    Raises ``UnsupportedLayer`` for zstd and others.
    """
    media_type = descriptor.media_type
    if media_type.endswith(("+gzip", ".tar.gzip", "-gzip", "/gzip", "/x-gzip")):
        return "gzip"
    if media_type.endswith((".tar", "/x-tar")):
        return "flat"
    if media_type.endswith("+zstd"):
        raise UnsupportedLayer(f"layer {descriptor.digest} is compressed with zstd, which is not supported yet; use layout raw")
    head = bytes(await blob.read(0, min(4, blob.size)))
    if head.startswith(_GZIP):
        return "gzip"
    if head.startswith(_ZSTD):
        raise UnsupportedLayer(f"layer {descriptor.digest} is compressed with zstd, which is not supported yet; use layout raw")
    return "flat"


def _pick(image: Image, spec: DeviceSpec) -> tuple[Layer, ...]:
    layers: Sequence[Layer] = image.layers
    if isinstance(spec.layer, LayerByIndex):
        if spec.layer.index >= len(layers):
            raise InvalidRequest(f"the image has {len(layers)} layers, there is no layer {spec.layer.index} (0 is the base)")
        return (layers[spec.layer.index],)
    if isinstance(spec.layer, LayerByDigest):
        found = [layer for layer in layers if layer.descriptor.digest == spec.layer.digest]
        if not found:
            known = ", ".join(layer.descriptor.digest for layer in layers)
            raise InvalidRequest(f"the image has no layer {spec.layer.digest}; it has {known}")
        return (found[0],)
    if not layers:
        raise InvalidRequest("the image has no layers")
    return tuple(layers)
