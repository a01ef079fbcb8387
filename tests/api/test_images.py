"""Resolving references."""

from __future__ import annotations

import httpx
import pytest

from tests.support.inprocess import TOKENS, bearer, running, token_entries


async def resolve(gateway, tag: str = "image", **fields) -> httpx.Response:
    source = {"image": f"oci:{gateway.images}:{tag}", **fields}
    return await gateway.client.post("/v1/images/resolve", json=source)


async def test_a_reference_is_told_by_digest_with_its_layers(gateway):
    answer = await resolve(gateway)
    assert answer.status_code == 200
    found = answer.json()
    device = await gateway.add("app")
    assert found["digest"] == device["image"]["digest"]
    assert found["reference"] == f"oci:{gateway.images}:image"
    assert found["pinned"] == f"oci:{gateway.images}@{found['digest']}"
    assert found["platform"] == "linux/amd64"
    by_index = await gateway.add("upper", layout="raw", layer={"index": 1})
    assert found["layers"][1]["digest"] == by_index["segments"][0]["digest"]
    assert set(found["layers"][0]) == {"digest", "size", "media_type"}


async def test_what_is_pinned_can_be_registered(gateway):
    found = (await resolve(gateway)).json()
    await gateway.client.put("/v1/devices/pinned", json={"source": {"image": found["pinned"]}})
    await gateway.settle()
    device = (await gateway.client.get("/v1/devices/pinned")).json()
    assert (device["state"], device["image"]["digest"]) == ("ready", found["digest"])


@pytest.mark.parametrize(
    ("source", "status", "code"),
    [
        ({}, 400, "invalid_request"),
        ({"image": "UPPER/Case"}, 400, "invalid_reference"),
        ({"image": "oci:/x", "unknown": 1}, 400, "invalid_request"),
        ({"image": "oci:/etc"}, 403, "path_not_allowed"),
        ({"image": "oci:{images}:missing"}, 422, "image_not_found"),
        ({"image": "oci:{images}:image", "platform": "linux/s390x"}, 502, "platform_not_found"),
        ({"image": "127.0.0.1:1/a:b", "insecure": True}, 502, "registry_unreachable"),
    ],
)
async def test_what_cannot_be_resolved_is_a_problem(tmp_path, images, source, status, code):
    async with running(tmp_path, images, registry_deadline_seconds=0.2) as gateway:
        if "image" in source:
            source = source | {"image": source["image"].replace("{images}", gateway.images)}
        answer = await gateway.client.post("/v1/images/resolve", json=source)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_node_may_not_resolve(tmp_path, images):
    async with running(tmp_path, images, tokens=token_entries(**TOKENS)) as gateway:
        for role, status in (("node", 403), ("metrics", 403), ("admin", 200)):
            gateway.client.headers.update(bearer(TOKENS[role]))
            assert (await resolve(gateway)).status_code == status
