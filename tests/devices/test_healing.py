"""What is lost or damaged on the disk is made again by the recipe, for the reader that meets it."""

from __future__ import annotations

import shutil

import pytest

from gateway.devices import parts
from tests.devices.rig import TAR, Rig, finish


@pytest.fixture
async def rig(tmp_path, catalog, executor):
    rig = Rig(tmp_path, catalog, executor)
    yield rig
    await rig.aclose()


async def ready(rig, **fields):
    await rig.add(rig.main, **fields)
    await finish(rig.main)
    record = await rig.catalog.get("one")
    assert record.state == "ready"
    return record


async def test_an_index_that_is_gone_is_made_again_though_the_tag_shows_something_else_by_now(rig):
    record = await ready(rig)
    for path in rig.attempts():
        shutil.rmtree(path)
    rig.source.layers.clear()
    device = await rig.shelf.get("one")
    assert bytes(await device.read(0, device.size)) == TAR
    assert await rig.catalog.get("one") == record
    assert len(rig.attempts()) == 1


@pytest.mark.parametrize("name", ["index.json", "spans.bin", "checkpoints.zinfo"])
@pytest.mark.parametrize("harm", ["reversed", "cut short", "removed", "a folder in its place"])
async def test_an_index_that_is_damaged_is_made_again_with_the_same_content(rig, name, harm):
    record = await ready(rig)
    path = rig.attempts()[0] / name
    before = path.read_bytes()
    path.unlink()
    if harm == "reversed":
        path.write_bytes(before[::-1])
    elif harm == "cut short":
        path.write_bytes(before[: len(before) // 2])
    elif harm == "a folder in its place":
        path.mkdir()
    device = await rig.shelf.get("one")
    assert bytes(await device.read(0, device.size)) == TAR
    (attempt,) = rig.attempts()
    assert (attempt / name).read_bytes() == before
    assert await rig.catalog.get("one") == record


async def test_generated_metadata_that_is_gone_or_damaged_is_made_again(rig):
    record = await ready(rig, layout="filesystem", layer={"index": 0})
    metadata = record.recipe.metadata
    path = rig.folder / "artifacts" / metadata.digest.removeprefix("sha256:")
    truth = path.read_bytes()
    for content in (None, truth[:-1], bytes(len(truth))):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        await rig.store.drop()
        device = await rig.shelf.get("one")
        assert bytes(await device.read(0, metadata.size)) == truth
        assert path.read_bytes() == truth
    assert await rig.catalog.get("one") == record


async def test_a_known_image_takes_no_second_build(rig, monkeypatch):
    first = await ready(rig, layout="filesystem", layer={"index": 0})

    async def never(*_args):
        raise AssertionError

    monkeypatch.setattr(parts, "build_in_process", never)
    await rig.add(rig.main, "two", layout="filesystem", layer={"index": 0})
    await finish(rig.main)
    second = await rig.catalog.get("two")
    assert (second.state, second.etag, second.contents) == ("ready", first.etag, first.contents)
