"""From a specification to the image, its layers and their blobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Protocol

from blockgate.reader import Blob, Bytes
from gateway.devices.records import ImageFacts
from gateway.devices.spec import DeviceSpec, LayerByDigest, LayerByIndex, SourceSpec
from gateway.errors import InvalidRequest, UnsupportedLayer
from gateway.registry.reference import Reference, parse_reference
from gateway.registry.source import Descriptor, Image, ImageSource, Layer
from gateway.spans.index import Kind

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"


class Sources(Protocol):
    """Opens the source that a reference belongs to."""

    def open_source(self, reference: Reference, *, insecure: bool, credentials: str | None) -> ImageSource:
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
        self._source = sources.open_source(
            self.reference, insecure=source.insecure, credentials=source.credentials
        )

    async def choose(self, spec: DeviceSpec) -> Chosen:
        """Resolve the image and pick the layers. Raises ``InvalidRequest`` when there is no such layer."""
        image = await self.resolve()
        return Chosen(image, _pick(image, spec))

    async def resolve(self) -> Image:
        """The image that the reference means now. Raises what the source raises."""
        return await self._source.resolve(self.reference, self._platform)

    def blob(self, descriptor: Descriptor) -> Blob:
        """A reader of one blob, opened when it is first read: cached bytes of a blob that is gone can still be served."""
        return LazyBlob(self._source, self.reference, descriptor)

    @staticmethod
    def recall(facts: ImageFacts) -> Chosen:
        """What was chosen when the device was registered: a tag may have moved since."""
        layers = tuple(
            Layer(
                Descriptor(row["media_type"], row["digest"], row["size"], row.get("annotations") or {}),
                row.get("diff_id"),
            )
            for row in facts.layers
        )
        image = Image(facts.reference, facts.digest, facts.platform, facts.config.encode(), layers)
        return Chosen(image, layers)


class LazyBlob:
    """Opens a blob for its first read. Closing waits for reads that are under way; a late one opens and closes again."""

    def __init__(self, source: ImageSource, reference: Reference, descriptor: Descriptor) -> None:
        self._source = source
        self._reference = reference
        self._descriptor = descriptor
        self._opened: Blob | None = None
        self._opening = asyncio.Lock()
        self._readers = 0
        self._closing = False

    @property
    def size(self) -> int:
        """Bytes, as the descriptor says."""
        return self._descriptor.size

    async def read(self, offset: int, length: int) -> Bytes:
        """Exactly these bytes."""
        async with self._use() as blob:
            return await blob.read(offset, length)

    async def stream(self, start: int = 0) -> AsyncIterator[Bytes]:
        """All bytes from ``start``."""
        async with self._use() as blob:
            async for piece in blob.stream(start):
                yield piece

    async def aclose(self) -> None:
        """Close when nobody reads."""
        self._closing = True
        if self._readers == 0:
            await self._close()

    @asynccontextmanager
    async def _use(self) -> AsyncIterator[Blob]:
        self._readers += 1
        try:
            async with self._opening:
                if self._opened is None:
                    self._opened = await self._source.open_blob(self._reference, self._descriptor)
            yield self._opened
        finally:
            self._readers -= 1
            if self._closing and self._readers == 0:
                await self._close()

    async def _close(self) -> None:
        blob, self._opened = self._opened, None
        if blob is not None:
            await blob.aclose()


async def compression(blob: Blob, descriptor: Descriptor) -> Kind:
    """How a layer's blob is to be read: by its media type, or by its first bytes where that says nothing.

    Raises ``UnsupportedLayer`` for zstd and others.
    """
    media_type = descriptor.media_type
    if media_type.endswith(("+gzip", ".tar.gzip", "-gzip", "/gzip", "/x-gzip")):
        return "gzip"
    if media_type.endswith((".tar", "/x-tar")):
        return "tar"
    if media_type.endswith("+zstd"):
        raise UnsupportedLayer(
            f"layer {descriptor.digest} is compressed with zstd, which is not supported yet; use layout raw"
        )
    head = bytes(await blob.read(0, min(4, blob.size)))
    if head.startswith(_GZIP):
        return "gzip"
    if head.startswith(_ZSTD):
        raise UnsupportedLayer(
            f"layer {descriptor.digest} is compressed with zstd, which is not supported yet; use layout raw"
        )
    return "tar"


def _pick(image: Image, spec: DeviceSpec) -> tuple[Layer, ...]:
    layers: Sequence[Layer] = image.layers
    if isinstance(spec.layer, LayerByIndex):
        if spec.layer.index >= len(layers):
            raise InvalidRequest(
                f"the image has {len(layers)} layers, there is no layer {spec.layer.index} (0 is the base)"
            )
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
