"""The parts of devices: layer indexes and metadata, made the first time or again.

Registering and restoring differ in where they begin (a tag, or a recipe) and in what they may conclude; the parts are
made by one way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.artifacts import Artifacts
from gateway.catalog.catalog import Catalog
from gateway.devices import tables
from gateway.devices.images import ImageAccess, Sources
from gateway.devices.plan import LayerPlan, build_source, codec_needs_look, plan_layer, plan_of, unproven
from gateway.errors import (
    ArtifactDamaged,
    ArtifactNotFound,
    BlobMismatch,
    IntegrityError,
    InvalidLayer,
    StorageError,
)
from gateway.ingest.ingest import Ingest, OnProgress
from gateway.ingest.layer_pass import Cutting, Promise
from gateway.ingest.metadata import BuiltMetadata, build_in_process
from gateway.layers.codec import IDENTITY, codec_by_magic
from gateway.layers.index import TOC, IndexFacts
from gateway.layers.key import LayerKey, cut_name
from gateway.recipes.recipe import LayerRecipe, MetadataRecipe
from gateway.recipes.records import DeviceRecord
from gateway.recipes.spec import DeviceSpec
from gateway.registry.source import Layer

_HEAD_BYTES = 4


@dataclass(frozen=True, slots=True)
class Built:
    """Generated metadata: the artifact, and what building found out."""

    digest: str
    facts: BuiltMetadata


class Parts:
    """Makes parts. Each exists once, however many devices want it: the layer's lease and the store see to that."""

    def __init__(self, ingest: Ingest, artifacts: Artifacts, catalog: Catalog, sources: Sources) -> None:
        self.ingest = ingest
        self._artifacts = artifacts
        self._catalog = catalog
        self._sources = sources

    def access(self, spec: DeviceSpec) -> ImageAccess:
        """The image source of a specification."""
        return ImageAccess(self._sources, spec.source)

    async def plan(self, access: ImageAccess, spec: DeviceSpec, layer: Layer) -> LayerPlan:
        """How a layer is to be cut; looks at its first bytes where its media type does not say how it is coded."""
        looked = None
        if codec_needs_look(spec, layer):
            blob = access.blob(layer.descriptor)
            try:
                looked = codec_by_magic(bytes(await blob.read(0, min(_HEAD_BYTES, blob.size))))
            finally:
                await blob.aclose()
        return plan_layer(spec, layer, looked, self.ingest.span_size)

    async def layer(self, access: ImageAccess, plan: LayerPlan, progress: OnProgress) -> IndexFacts:
        """The layer's proven index. Raises what the source and the pass raise, naming the layer."""
        descriptor = plan.layer.descriptor
        blob = access.blob(descriptor)
        try:
            found = await self.ingest.find(plan.key)
            table = None
            if found is None and plan.zinfo is not None:
                table = await tables.load(self._artifacts, plan.zinfo, blob)
            cutting = Cutting(plan.codec, plan.cut, plan.span_size, table, plan.zinfo)
            promise = Promise(descriptor.digest, descriptor.size, plan.diff_id)
            return await self.ingest.index(blob, promise, cutting, progress)
        except (InvalidLayer, IntegrityError) as error:
            raise type(error)(f"layer {descriptor.digest}: {error.detail}") from error
        finally:
            await blob.aclose()

    async def unproven(self, access: ImageAccess, plan: LayerPlan) -> IndexFacts:
        """An index that only the supplied table vouches for."""
        key = unproven(plan.key)
        found = await self.ingest.find(key)
        if found is not None:
            return found
        assert plan.zinfo is not None  # noqa: S101 - that is what vouches
        blob = access.blob(plan.layer.descriptor)
        try:
            table = await tables.load(self._artifacts, plan.zinfo, blob)
            facts, spans = await tables.unproven_index(blob, key, table, plan.zinfo)
        finally:
            await blob.aclose()
        await self.ingest.put(key, facts, spans.records, lambda draft: tables.write_checkpoints(table, draft))
        return facts

    async def build(self, layers: Sequence[tuple[LayerKey, IndexFacts]]) -> Built:
        """The metadata of these layers, base first; made in a process of its own unless it is here already.

        Raises ``InvalidLayer`` naming an entry that cannot be shown, ``StorageError``.
        """
        source = build_source([facts.files[TOC].sha256 for _, facts in layers])
        known = await self._catalog.build(source)
        if known is not None:
            digest, facts = known
            try:
                await self._artifacts.verified(digest)
                return Built(digest, BuiltMetadata.from_json(facts))
            except (ArtifactNotFound, ArtifactDamaged):
                pass
        built = await self._build([key for key, _ in layers])
        await self._catalog.keep_build(source, built.digest, built.facts.to_json())
        return built

    async def metadata(self, digest: str, *, generated: bool) -> MetadataRecipe:
        """Metadata that is an artifact here, cut and digested like a layer. Raises ``ArtifactNotFound``."""
        size = await self._artifacts.size(digest)
        span_size = self.ingest.span_size
        part = MetadataRecipe(digest, size, cut_name(IDENTITY.name, span_size), span_size, generated)
        await self._index_metadata(part)
        return part

    async def restore(self, record: DeviceRecord, key: LayerKey) -> None:
        """Make an index of a ready device again, and what it is made of, as the device's recipe says.

        Raises ``StorageError`` where that comes out otherwise, and what the parts raise.
        """
        recipe = record.recipe
        assert recipe is not None  # noqa: S101 - a ready device has one
        access = self.access(record.spec)
        if recipe.metadata is not None and key == recipe.metadata.key:
            await self._restore_metadata(access, recipe.metadata, recipe.layers)
            return
        for layer in recipe.layers:
            if key == layer.key:
                await self._restore_layer(access, layer)
            elif key == unproven(layer.key):
                await self.unproven(access, plan_of(layer))

    async def _restore_layer(self, access: ImageAccess, layer: LayerRecipe) -> IndexFacts:
        facts = await self.layer(access, plan_of(layer), _silent)
        if facts.size != layer.length:
            raise StorageError(
                f"layer {layer.digest} came out with {facts.size} bytes, the device's recipe says {layer.length}"
            )
        return facts

    async def _restore_metadata(
        self, access: ImageAccess, metadata: MetadataRecipe, layers: Sequence[LayerRecipe]
    ) -> None:
        try:
            await self._artifacts.verified(metadata.digest)
        except (ArtifactNotFound, ArtifactDamaged):
            if not metadata.generated:
                raise
            found = [(layer.key, await self._restore_layer(access, layer)) for layer in layers]
            built = await self.build(found)
            if built.digest != metadata.digest:
                raise StorageError(
                    f"the metadata came out as {built.digest}, the device's recipe says {metadata.digest}; "
                    "this version builds it otherwise, so the device has to be registered again"
                ) from None
        await self._index_metadata(metadata)

    async def _index_metadata(self, metadata: MetadataRecipe) -> None:
        blob = self._artifacts.blob(metadata.digest, metadata.size)
        promise = Promise(metadata.digest, metadata.size)
        cutting = Cutting(IDENTITY, metadata.cut, metadata.span_size)
        try:
            await self.ingest.index(blob, promise, cutting, _silent)
        except BlobMismatch as error:
            raise ArtifactDamaged(
                f"the metadata {metadata.digest} is damaged in the data folder; it is made or has to be uploaded again"
            ) from error

    async def _build(self, keys: Sequence[LayerKey]) -> Built:
        output = self._artifacts.scratch()
        try:
            opened = [await self.ingest.open(key) for key in keys]
            contents = [await self.ingest.contents(index) for index in opened]
            facts = await build_in_process(contents, output)
            return Built(await self._artifacts.adopt(output), facts)
        finally:
            await asyncio.to_thread(output.unlink, missing_ok=True)


def _silent(_done: int, _total: int) -> None:
    return None
