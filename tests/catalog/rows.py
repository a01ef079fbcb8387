"""What tests put into a catalog."""

from __future__ import annotations

from gateway.catalog.catalog import Catalog
from gateway.layers.index import IndexRow
from gateway.layers.key import LayerKey
from gateway.recipes.recipe import LayerRecipe, Recipe
from gateway.recipes.records import DeviceRecord
from gateway.recipes.segments import Segment
from gateway.recipes.spec import DeviceSpec
from gateway.recipes.states import Verification

SPEC = DeviceSpec.model_validate({"source": {"image": "oci:/x"}, "layer": {"index": 0}})
OTHER = DeviceSpec.model_validate({"source": {"image": "oci:/y"}})
ZINFO = f"sha256:{'c' * 64}"
KEY = LayerKey(f"sha256:{'a' * 64}", "gzip-65536-v2")
UNPROVEN = LayerKey(KEY.blob, f"{KEY.cut}-unproven")
FACTS = {"files": 1, "directories": 2, "symlinks": 0, "specials": 0, "bytes": 3}


def recipe(*, manifest: str = "b", zinfo: str | None = None, size: int = 100) -> Recipe:
    layer = LayerRecipe("type", KEY.blob, 40, None, "gzip", KEY.cut, 65536, size, zinfo)
    segments = (Segment("gzip", 0, size, KEY.blob, KEY.cut),)
    return Recipe("oci:/x", f"sha256:{manifest * 64}", "linux/amd64", (layer,), None, segments, zinfo)


async def index(catalog: Catalog, key: LayerKey = KEY, attempt: str = "1", sha256: str = "5" * 64) -> None:
    """An index that counts."""
    async with catalog.lease(f"layer {key}") as lease:
        await catalog.commit_index(key, IndexRow(attempt=attempt, sha256=sha256, bytes=7), lease)


async def ready(
    catalog: Catalog,
    name: str = "one",
    made: Recipe | None = None,
    verification: Verification = Verification.VERIFIED,
    key: LayerKey = KEY,
) -> DeviceRecord:
    """A device that was published."""
    await index(catalog, key)
    record, _ = await catalog.create(name, SPEC)
    missing = await catalog.publish(
        record,
        made or recipe(),
        [key],
        verification=verification,
        config='{"config": {}}',
        contents=FACTS,
    )
    assert missing == []
    return await catalog.get(name)
