"""From a specification and an image to what is to be indexed and how it is arranged. PURE."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.erofs import superblock
from gateway.errors import InvalidLayer, InvalidMetadata, InvalidRequest
from gateway.layers.codec import GZIP, IDENTITY, Codec, codec_by_media_type, codec_of
from gateway.layers.index import IndexFacts
from gateway.layers.key import LayerKey, cut_name
from gateway.recipes.recipe import LayerRecipe, MetadataRecipe, Recipe
from gateway.recipes.segments import (
    LAYOUT_VERSION,
    Piece,
    Segment,
    SegmentKind,
    Slot,
    bare,
    concatenate,
    place,
)
from gateway.recipes.spec import DeviceSpec, LayerByDigest, LayerByIndex
from gateway.registry.source import Descriptor, Image, Layer

# Changes with what is generated for the same layers.
_GENERATOR = 1


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """A layer of the device: what its bytes are and how they are to be cut."""

    layer: Layer
    codec: Codec
    cut: str
    span_size: int
    zinfo: str | None = None

    @property
    def key(self) -> LayerKey:
        """Name of its index."""
        return LayerKey(self.layer.descriptor.digest, self.cut)

    @property
    def diff_id(self) -> str | None:
        """What the configuration promises of the layer's bytes; nothing of a blob that is served as it is."""
        return self.layer.diff_id


def chosen(spec: DeviceSpec, image: Image) -> tuple[Layer, ...]:
    """The layers that the device is made of. Raises ``InvalidRequest`` when there is no such layer."""
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


def codec_needs_look(spec: DeviceSpec, layer: Layer) -> bool:
    """Whether only the blob's first bytes tell how the layer is coded. Raises ``UnsupportedLayer``."""
    return spec.layout != "raw" and codec_by_media_type(layer.descriptor.media_type) is None


def plan_layer(spec: DeviceSpec, layer: Layer, looked: Codec | None, span_size: int) -> LayerPlan:
    """How one layer is cut; ``looked`` is what its first bytes say, where that was needed."""
    if spec.layout == "raw":
        # The blob as it is: the configuration's digest is of something else.
        blob = Layer(layer.descriptor, None)
        return LayerPlan(blob, IDENTITY, cut_name(IDENTITY.name, span_size), span_size)
    codec = looked or codec_by_media_type(layer.descriptor.media_type) or IDENTITY
    if spec.zinfo is not None and codec is not GZIP:
        raise InvalidRequest(f"layer {layer.descriptor.digest} is not gzip and has no use for a zinfo")
    return LayerPlan(layer, codec, cut_name(codec.name, span_size, spec.zinfo), span_size, spec.zinfo)


def plan_of(layer: LayerRecipe) -> LayerPlan:
    """The plan that made a layer of a recipe."""
    descriptor = Descriptor(layer.media_type, layer.digest, layer.size)
    return LayerPlan(
        Layer(descriptor, layer.diff_id), codec_of(layer.codec), layer.cut, layer.span_size, layer.zinfo
    )


def unproven(key: LayerKey) -> LayerKey:
    """Name of the index by which a layer is read while no pass has proven the supplied table."""
    return LayerKey(key.blob, f"{key.cut}-unproven")


def layer_recipe(plan: LayerPlan, facts: IndexFacts) -> LayerRecipe:
    """What the recipe holds of an indexed layer."""
    descriptor = plan.layer.descriptor
    return LayerRecipe(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
        diff_id=plan.diff_id,
        codec=facts.codec,
        cut=plan.cut,
        span_size=plan.span_size,
        length=facts.size,
        zinfo=plan.zinfo,
    )


def need_contents(layers: Sequence[tuple[LayerPlan, IndexFacts]]) -> None:
    """Raise ``InvalidLayer`` for a layer of which no file system can be made."""
    for plan, facts in layers:
        if facts.contents_error is not None:
            raise InvalidLayer(
                f"layer {plan.layer.descriptor.digest} cannot be shown as a file system: {facts.contents_error}; "
                "layouts tar and raw can still serve it"
            )


def build_source(contents: Sequence[str]) -> str:
    """Name of the metadata that is generated of these layers, by the digests of their tables of contents, base first."""
    text = json.dumps([LAYOUT_VERSION, _GENERATOR, *contents], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def arrange_bytes(layout: str, layer: LayerRecipe) -> list[Segment]:
    """The address space of one layer served as bytes."""
    return bare(_piece(layout, layer))


def arrange_generated(metadata: MetadataRecipe, layers: Sequence[LayerRecipe]) -> list[Segment]:
    """The address space of a file system whose metadata is made here."""
    return concatenate([_front(metadata), *(_piece("filesystem", layer) for layer in layers)])


def arrange_supplied(
    metadata: MetadataRecipe, parsed: superblock.Superblock, layers: Sequence[LayerRecipe]
) -> list[Segment]:
    """The address space of a file system whose metadata was handed in: its device table says where layers lie.

    Raises ``InvalidMetadata``.
    """
    pieces = [_piece("filesystem", layer) for layer in layers]
    if not parsed.devices:
        return concatenate([_front(metadata), *pieces])
    slots = [Slot(s.uniaddr * parsed.block_size, s.blocks * parsed.block_size) for s in parsed.devices]
    return place(_front(metadata), slots, pieces)


def check_generated(
    segments: Sequence[Segment], offsets: Sequence[int], layers: Sequence[LayerRecipe]
) -> None:
    """Raise ``InvalidMetadata`` unless the device has its layers where the generated metadata says."""
    starts = {segment.offset for segment in segments if segment.kind != "zero"}
    wanted = {offset for offset, layer in zip(offsets, layers, strict=True) if layer.length}
    if not wanted <= starts:
        raise InvalidMetadata(
            "the metadata places layers elsewhere than the device does; this is a defect of blockgate"
        )


def recipe_of(
    image: Image,
    layers: Sequence[LayerRecipe],
    metadata: MetadataRecipe | None,
    segments: Sequence[Segment],
    *,
    unproven_zinfo: str | None = None,
) -> Recipe:
    """The whole of it."""
    return Recipe(
        reference=image.reference,
        manifest=image.digest,
        platform=image.platform,
        layers=tuple(layers),
        metadata=metadata,
        segments=tuple(segments),
        unproven_zinfo=unproven_zinfo,
    )


def _front(metadata: MetadataRecipe) -> Piece:
    return Piece("metadata", metadata.size, metadata.digest, metadata.cut)


def _piece(layout: str, layer: LayerRecipe) -> Piece:
    kind: SegmentKind = "raw" if layout == "raw" else "gzip" if layer.codec == GZIP.name else "tar"
    return Piece(kind, layer.length, layer.digest, layer.cut)
