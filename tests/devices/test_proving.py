"""The pass behind a device that is served: what was lost while it ran is made again before the device is proven."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gateway.devices.registration import _PUBLISH_TRIES, Registration
from gateway.errors import StorageError
from gateway.layers.key import LayerKey
from gateway.recipes.recipe import LayerRecipe, MetadataRecipe, Recipe
from gateway.recipes.records import DeviceRecord
from gateway.recipes.segments import Segment
from gateway.recipes.states import State, Verification
from tests.catalog.rows import SPEC, ZINFO

LAYER = LayerRecipe("type", f"sha256:{'a' * 64}", 40, None, "gzip", "zinfo-x-v2", 65536, 100, ZINFO)
METADATA = MetadataRecipe(f"sha256:{'d' * 64}", 512, "identity-65536-v2", 65536, generated=True)
SEGMENTS = (Segment("metadata", 0, 512, METADATA.digest, METADATA.cut),)
RECIPE = Recipe("oci:/x", f"sha256:{'e' * 64}", "linux/amd64", (LAYER,), METADATA, SEGMENTS, ZINFO)


class Catalog:
    """Finds these indexes missing, one answer per call; afterwards none."""

    def __init__(self, *missing: list[LayerKey]) -> None:
        self.missing = list(missing)
        self.proofs = 0

    async def prove(self, record, keys):
        self.proofs += 1
        assert keys == RECIPE.keys
        return self.missing.pop(0) if self.missing else []

    async def remove_index(self, key):
        return None

    async def progress(self, record, progress):
        pass


class Parts:
    """Counts what is made."""

    def __init__(self) -> None:
        self.passes: list[LayerKey] = []
        self.restored: list[LayerKey] = []

    def access(self, spec):
        return None

    async def layer(self, access, plan, progress):
        self.passes.append(plan.key)

    async def restore(self, record, key):
        assert record.recipe == RECIPE
        self.restored.append(key)


def record():
    return DeviceRecord("one", "u", SPEC, State.READY, Verification.VERIFYING, datetime.now(UTC), RECIPE)


@pytest.mark.parametrize(
    ("missing", "passes", "restored"),
    [([], 1, []), ([[LAYER.key]], 2, []), ([[METADATA.key], RECIPE.keys], 3, [METADATA.key] * 2)],
    ids=["nothing", "the layer's index", "the metadata's, twice"],
)
async def test_an_index_that_went_missing_is_made_again(missing, passes, restored):
    catalog, parts = Catalog(*missing), Parts()
    await Registration(catalog, parts, None, record()).run()
    assert parts.passes == [LAYER.key] * passes
    assert parts.restored == restored
    assert catalog.proofs == passes


async def test_one_that_is_lost_again_and_again_is_a_storage_error():
    catalog = Catalog(*[[LAYER.key]] * _PUBLISH_TRIES)
    with pytest.raises(StorageError, match="lost"):
        await Registration(catalog, Parts(), None, record()).run()
