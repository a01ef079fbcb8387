"""Lists of devices, page by page; registrations that wait, fail, are tried again or replaced."""

from __future__ import annotations

import asyncio
import shutil
from datetime import datetime

import pytest

from gateway.devices import shelf
from gateway.errors import RegistryUnreachable
from gateway.recipes.spec import DeviceSpec
from tests.support.inprocess import BASE, UPPER

SUMMARY = {
    "name",
    "state",
    "health",
    "verification",
    "layout",
    "size",
    "block_size",
    "etag",
    "data_url",
    "image",
    "progress",
    "error",
    "created_at",
}


async def names(gateway, **query):
    """Names and the next cursor of one page."""
    answer = await gateway.client.get("/v1/devices", params=query)
    assert answer.status_code == 200, answer.text
    page = answer.json()
    assert set(page) == {"devices", "next"}
    return [device["name"] for device in page["devices"]], page["next"]


@pytest.fixture
async def five(gateway):
    """Devices that nobody begins to index."""
    spec = DeviceSpec.model_validate(gateway.body())
    for name in ("b_1", "a.1", "c-1", "a.2", "bx1"):
        await gateway.services.catalog.create(name, spec)
    return sorted(("b_1", "a.1", "c-1", "a.2", "bx1"))


async def test_pages_follow_one_another_by_name_without_a_gap(gateway, five):
    assert await names(gateway) == (five, None)
    assert await names(gateway, limit=5) == (five, None)
    found, cursor = await names(gateway, limit=2)
    while cursor is not None:
        more, cursor = await names(gateway, limit=2, cursor=cursor)
        found += more
    assert found == five


async def test_what_is_removed_or_added_meanwhile_disturbs_no_other(gateway, five):
    _, cursor = await names(gateway, limit=2)
    await gateway.client.delete(f"/v1/devices/{five[1]}")
    await gateway.services.catalog.create("b_0", DeviceSpec.model_validate(gateway.body()))
    assert await names(gateway, cursor=cursor) == (sorted([*five[2:], "b_0"]), None)


async def test_a_part_of_the_name_and_the_state_choose(gateway, five):
    assert (await names(gateway, name="a."))[0] == ["a.1", "a.2"]
    assert (await names(gateway, name="1"))[0] == ["a.1", "b_1", "bx1", "c-1"]
    # No wildcards of SQL.
    assert (await names(gateway, name="_"))[0] == ["b_1"]
    assert (await names(gateway, name="%"))[0] == []
    await gateway.layer("ready")
    assert (await names(gateway, state="ready"))[0] == ["ready"]
    assert (await names(gateway, state="indexing", name="a", limit=1))[0] == ["a.1"]
    assert (await names(gateway, state="quarantined"))[0] == []


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "state=degraded",
        "state=READY",
        "name=" + "x" * 129,
        "cursor=" + "x" * 201,
    ],
)
async def test_a_query_that_makes_no_sense_is_400(gateway, query):
    answer = await gateway.client.get(f"/v1/devices?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


async def test_a_list_shows_summaries_and_the_device_everything(gateway):
    device = await gateway.add("app")
    (listed,) = (await gateway.client.get("/v1/devices")).json()["devices"]
    assert set(listed) == SUMMARY
    assert set(device) == SUMMARY | {"segments", "contents", "image_config"}
    assert listed == {name: device[name] for name in SUMMARY}
    assert (listed["state"], listed["health"], listed["error"]) == ("ready", "ok", None)
    assert listed["image"]["reference"] == f"oci:{gateway.images}:image"
    assert listed["block_size"] == 512
    assert device["contents"]["files"] == 4


async def test_a_fault_that_can_pass_is_waited_out_and_the_progress_says_so(gateway, monkeypatch):
    catalog, parts = gateway.services.catalog, gateway.services.registrar._parts
    waits, plan, write = asyncio.Event(), parts.plan, catalog.progress

    async def away(*_arguments):
        raise RegistryUnreachable("registry.example does not answer")

    async def progress(record, shown):
        await write(record, shown)
        if shown.phase == "waiting":
            waits.set()

    monkeypatch.setattr(catalog, "progress", progress)
    monkeypatch.setattr(parts, "plan", away)
    await gateway.put("base", layout="tar", layer={"index": 0})
    async with asyncio.timeout(30):
        await waits.wait()
    device = (await gateway.client.get("/v1/devices/base")).json()
    assert (device["state"], device["health"], device["error"]) == ("indexing", "ok", None)
    shown = device["progress"]
    assert shown["phase"] == "waiting"
    assert shown["error"] == {
        "code": "registry_unreachable",
        "detail": "registry.example does not answer",
    }
    assert shown["attempt"] == 1
    at = datetime.fromisoformat(shown["retry_at"])
    assert at.tzinfo is not None
    assert at > datetime.fromisoformat(device["created_at"])
    (listed,) = (await gateway.client.get("/v1/devices")).json()["devices"]
    assert listed["progress"]["error"] == shown["error"]
    answer = await gateway.client.get("/v1/devices/base/data")
    assert (answer.status_code, answer.json()["code"]) == (503, "device_not_ready")
    assert "registry.example does not answer" in answer.json()["detail"]
    assert answer.headers["retry-after"]

    monkeypatch.setattr(parts, "plan", plan)
    await gateway.settle()
    device = (await gateway.client.get("/v1/devices/base")).json()
    assert (device["state"], device["progress"]) == ("ready", None)
    assert (await gateway.client.get("/v1/devices/base/data")).content == BASE


async def test_a_failed_device_is_tried_again_by_the_same_specification(gateway):
    device = await gateway.add("app", "none")
    assert (device["state"], device["error"]["code"]) == ("failed", "image_not_found")
    again = await gateway.put("app", "none")
    assert (again.status_code, again.json()["state"], again.json()["error"]) == (202, "indexing", None)
    await gateway.settle()
    device = (await gateway.client.get("/v1/devices/app")).json()
    assert (device["state"], device["error"]["code"]) == ("failed", "image_not_found")


async def test_a_failed_device_makes_room_for_another_specification(gateway):
    await gateway.add("base", "none")
    device = await gateway.layer("base")
    assert (device["state"], device["error"], device["layout"]) == ("ready", None, "tar")
    assert (await gateway.client.get("/v1/devices/base/data")).content == BASE
    # A ready one does not.
    answer = await gateway.put("base", "none")
    assert (answer.status_code, answer.json()["code"]) == (409, "device_exists")


async def test_a_read_whose_index_is_being_made_again_is_503_while_other_layers_are_served(
    gateway, monkeypatch
):
    device = await gateway.add("app")
    lost, kept = [segment for segment in device["segments"] if segment["kind"] in ("gzip", "tar")]
    services, parts, go = gateway.services, gateway.services.registrar._parts, asyncio.Event()
    shutil.rmtree(services.data.layers / lost["digest"].removeprefix("sha256:"))
    restore = parts.restore

    async def waits(*arguments):
        await go.wait()
        await restore(*arguments)

    monkeypatch.setattr(parts, "restore", waits)
    monkeypatch.setattr(shelf, "_PATIENCE_SECONDS", 0.01)

    async def read(segment):
        where = segment["offset"]
        return await gateway.client.get(device["data_url"], headers={"range": f"bytes={where}-{where + 99}"})

    answer = await read(lost)
    assert (answer.status_code, answer.json()["code"]) == (503, "index_being_made")
    assert int(answer.headers["retry-after"]) >= 1
    assert str(services.data.root) not in answer.text
    assert (await read(kept)).content == UPPER[:100]
    shown = (await gateway.client.get("/v1/devices/app")).json()
    assert (shown["state"], shown["etag"]) == ("ready", device["etag"])

    go.set()
    await gateway.settle()
    assert (await read(lost)).content == BASE[:100]
