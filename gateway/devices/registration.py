"""How a device comes to be: resolve → plan → index each layer → arrange → publish.

This is one attempt. It raises what stops it; whether that is waited out is the registrar's business. Everything it
makes stays when it fails, so that the next attempt goes on where this one ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

import structlog

from gateway.artifacts import Artifacts
from gateway.catalog.catalog import Catalog
from gateway.devices import plan as planning
from gateway.devices.parts import Parts
from gateway.devices.plan import LayerPlan
from gateway.erofs import superblock, validate
from gateway.errors import InvalidZinfo, StorageError
from gateway.layers.index import IndexFacts
from gateway.recipes.recipe import LayerRecipe, MetadataRecipe, Recipe
from gateway.recipes.records import DeviceRecord, Progress
from gateway.recipes.segments import Segment, padded, total
from gateway.recipes.states import State, Verification
from gateway.registry.source import Image

_REPORT_SECONDS = 0.5
# An index can be damaged or collected between the moment it was found and the moment the device refers to it.
_PUBLISH_TRIES = 3

log = structlog.get_logger(__name__)

Indexed = tuple[LayerPlan, IndexFacts]


class Registration:
    """One attempt at one device."""

    def __init__(self, catalog: Catalog, parts: Parts, artifacts: Artifacts, record: DeviceRecord) -> None:
        self._catalog = catalog
        self._parts = parts
        self._artifacts = artifacts
        self._record = record
        self._spec = record.spec
        self._access = parts.access(record.spec)
        self._progress = _Reporter(catalog, record)
        self.serving = record.state is State.READY

    async def run(self) -> None:
        """From what the record is to a device that is ready and proven."""
        try:
            if self.serving:
                assert self._record.recipe is not None  # noqa: S101 - a ready device has one
                await self._prove(self._record.recipe)
            else:
                await self._register()
        finally:
            await self._progress.settle()

    async def _register(self) -> None:
        self._progress.phase("resolving")
        image = await self._access.resolve()
        layers = planning.chosen(self._spec, image)
        plans = [await self._parts.plan(self._access, self._spec, layer) for layer in layers]
        if self._spec.zinfo is not None:
            plans = [await self._best_table(plans[0])]
            if self._spec.verify == "background" and await self._parts.ingest.find(plans[0].key) is None:
                await self._serve_unproven(image, plans[0])
                return
        for _ in range(_PUBLISH_TRIES):
            recipe, contents = await self._make(image, await self._index(plans))
            if await self._publish(image, recipe, contents):
                return
        raise StorageError("indexes of the device were lost while it was being published")

    async def _best_table(self, plan: LayerPlan) -> LayerPlan:
        """A cut that is proven already, if there is one. Raises ``InvalidZinfo`` for a table that is known to be wrong."""
        if plan.zinfo is None or await self._parts.ingest.find(plan.key) is not None:
            return plan
        digest = plan.layer.descriptor.digest
        reason = await self._catalog.refuted(plan.zinfo, digest)
        if reason is not None:
            raise InvalidZinfo(f"a pass over layer {digest} has refuted the zinfo {plan.zinfo}: {reason}")
        if self._spec.verify == "background":
            bare = self._spec.model_copy(update={"zinfo": None})
            own = await self._parts.plan(self._access, bare, plan.layer)
            if await self._parts.ingest.find(own.key) is not None:
                return own
        return plan

    async def _index(self, plans: Sequence[LayerPlan]) -> list[Indexed]:
        sizes = [plan.layer.descriptor.size for plan in plans]
        self._progress.phase("verifying" if self.serving else "indexing", sum(sizes))
        indexed = []
        for plan, size in zip(plans, sizes, strict=True):
            indexed.append((plan, await self._parts.layer(self._access, plan, self._progress.layer)))
            self._progress.layer_ended(size)
        return indexed

    async def _make(
        self, image: Image, indexed: Sequence[Indexed], *, unproven_zinfo: str | None = None
    ) -> tuple[Recipe, dict[str, int] | None]:
        """The recipe, and counts of a file system."""
        layers = [planning.layer_recipe(plan, facts) for plan, facts in indexed]
        metadata: MetadataRecipe | None = None
        contents: dict[str, int] | None = None
        segments: Sequence[Segment]
        if self._spec.layout != "filesystem":
            segments = planning.arrange_bytes(self._spec.layout, layers[0])
        elif self._spec.metadata is not None:
            metadata = await self._parts.metadata(self._spec.metadata, generated=False)
            segments = await self._arrange_supplied(metadata, layers)
        else:
            planning.need_contents(indexed)
            self._progress.phase("metadata")
            built = await self._parts.build([(plan.key, facts) for plan, facts in indexed])
            metadata = await self._parts.metadata(built.digest, generated=True)
            segments = planning.arrange_generated(metadata, layers)
            planning.check_generated(segments, built.facts.layer_offsets, layers)
            contents = built.facts.counts()
        recipe = planning.recipe_of(image, layers, metadata, segments, unproven_zinfo=unproven_zinfo)
        return recipe, contents

    async def _arrange_supplied(
        self, metadata: MetadataRecipe, layers: Sequence[LayerRecipe]
    ) -> list[Segment]:
        data = await self._artifacts.read(metadata.digest)

        def work() -> list[Segment]:
            segments = planning.arrange_supplied(metadata, superblock.parse(data), layers)
            validate.validate(data, padded(total(segments)))
            return segments

        return await asyncio.to_thread(work)

    async def _publish(
        self,
        image: Image,
        recipe: Recipe,
        contents: dict[str, int] | None,
        verification: Verification = Verification.VERIFIED,
    ) -> bool:
        await self._progress.settle()
        keys = recipe.keys
        if verification is Verification.VERIFYING:
            proven = {layer.key for layer in recipe.layers}
            keys = tuple(planning.unproven(key) if key in proven else key for key in keys)
        missing = await self._catalog.publish(
            self._record,
            recipe,
            keys,
            verification=verification,
            config=image.config.decode("utf-8", "replace"),
            contents=contents,
        )
        if not missing:
            log.info("ready", device=self._record.name, image=recipe.reference, bytes=recipe.size)
        return not missing

    async def _serve_unproven(self, image: Image, plan: LayerPlan) -> None:
        """Publish what only the supplied table vouches for, then prove it."""
        for _ in range(_PUBLISH_TRIES):
            facts = await self._parts.unproven(self._access, plan)
            recipe, contents = await self._make(image, [(plan, facts)], unproven_zinfo=plan.zinfo)
            if await self._publish(image, recipe, contents, Verification.VERIFYING):
                break
        else:
            raise StorageError("indexes of the device were lost while it was being published")
        self.serving = True
        await self._prove(recipe)

    async def _prove(self, recipe: Recipe) -> None:
        """The pass behind a device that is being served."""
        plans = [planning.plan_of(layer) for layer in recipe.layers]
        for _ in range(_PUBLISH_TRIES):
            await self._index(plans)
            await self._progress.settle()
            if not await self._catalog.prove(self._record, recipe.keys):
                break
        else:
            raise StorageError("indexes of the device were lost while it was being proven")
        for layer in recipe.layers:
            key = planning.unproven(layer.key)
            # Devices that still are read by it keep it: the row goes when the last one is proven.
            attempt = await self._catalog.remove_index(key)
            if attempt:
                await self._parts.ingest.remove(key, attempt)


class _Reporter:
    """Writes progress now and then; a catalog that does not answer costs nothing but that."""

    def __init__(self, catalog: Catalog, record: DeviceRecord) -> None:
        self._catalog = catalog
        self._record = record
        # What the attempt before met stays in sight until this one succeeds.
        past = record.progress or Progress("")
        self._shown = Progress("", error=past.error, attempt=past.attempt)
        self._before = 0
        self._reported = 0.0
        self._writing: asyncio.Task[None] | None = None

    def phase(self, phase: str, total_bytes: int = 0) -> None:
        """A phase begins."""
        self._before = 0
        self._shown = replace(self._shown, phase=phase, done=0, total=total_bytes)
        self._report(at_once=True)

    def layer(self, done: int, _total: int) -> None:
        """Bytes of the present layer."""
        self._shown = replace(self._shown, done=self._before + done)
        self._report()

    def layer_ended(self, size: int) -> None:
        """The present layer has its index."""
        self._before += size

    async def settle(self) -> None:
        """Wait for what is being written, so that it does not overwrite what comes next."""
        if self._writing is not None:
            await asyncio.wait([self._writing])

    def _report(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if (at_once or now - self._reported >= _REPORT_SECONDS) and (
            self._writing is None or self._writing.done()
        ):
            self._reported = now
            self._writing = asyncio.create_task(self._write(self._shown))

    async def _write(self, progress: Progress) -> None:
        try:
            await self._catalog.progress(self._record, progress)
        except StorageError as error:
            log.warning("catalog", device=self._record.name, error=error.detail)
