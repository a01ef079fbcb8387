"""Uploads, server-sent events, caches, health."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway.api import devices as module
from tests.support.inprocess import running
from tests.support.layers import content, sha256
from tests.support.zinfo_tables import build as build_table
from tests.support.zinfo_tables import encode

DATA = content(100_000, 6)
URL = f"/v1/artifacts/{sha256(DATA)}"


async def test_an_upload_is_201_then_200_and_comes_back_whole(gateway):
    first = await gateway.client.put(URL, content=DATA)
    assert (first.status_code, first.json()) == (201, {"digest": sha256(DATA), "size": len(DATA)})
    assert (await gateway.client.put(URL, content=DATA)).status_code == 200
    got = await gateway.client.get(URL)
    assert (got.status_code, got.content) == (200, DATA)
    assert got.headers["etag"] == f'"{sha256(DATA)}"'
    assert "immutable" in got.headers["cache-control"]
    head = await gateway.client.head(URL)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(DATA))


async def test_an_upload_in_pieces_is_the_same(gateway):
    async def pieces():
        for at in range(0, len(DATA), 999):
            yield DATA[at : at + 999]

    assert (await gateway.client.put(URL, content=pieces())).status_code == 201
    assert (await gateway.client.get(URL)).content == DATA


async def test_an_empty_upload_is_an_artifact_too(gateway):
    url = f"/v1/artifacts/{sha256(b'')}"
    assert (await gateway.client.put(url, content=b"")).status_code == 201
    assert (await gateway.client.get(url)).content == b""


async def test_another_digest_is_422_and_nothing_is_kept(gateway):
    answer = await gateway.client.put(URL, content=DATA + b"x")
    assert (answer.status_code, answer.json()["code"]) == (422, "digest_mismatch")
    assert (await gateway.client.get(URL)).status_code == 404
    assert list((gateway.services.settings.data_dir / "artifacts" / "sha256").iterdir()) == []


async def test_too_large_an_upload_is_413_and_nothing_is_kept(tmp_path, images):
    async with running(tmp_path, images, max_artifact=50_000) as gateway:
        answer = await gateway.client.put(URL, content=DATA)
        assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")
        assert list((tmp_path / "data" / "artifacts" / "sha256").iterdir()) == []


@pytest.mark.parametrize(
    "digest", ["sha256:123", "md5:" + "a" * 32, "sha256:" + "A" * 64, "sha256:" + "a" * 64 + "%0A", "x" * 201]
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_what_is_no_digest_is_400(gateway, method, digest):
    answer = await gateway.client.request(method, f"/v1/artifacts/{digest}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


async def test_no_digest_leads_out_of_the_folder(gateway):
    for digest in ("..%2f..%2fcatalog.sqlite", "sha256:..%2f..%2fcatalog.sqlite"):
        assert (await gateway.client.get(f"/v1/artifacts/{digest}")).status_code in (400, 404)


def parse_events(text):
    """(event, data) of a text/event-stream."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


class Followed:
    """The events of the device ``base``, whose registration does not begin by itself."""

    def __init__(self, gateway, monkeypatch) -> None:
        self._gateway = gateway
        self._begin = gateway.services.registrar.begin
        self._record = None
        self._looks = asyncio.Semaphore(0)
        self._get = gateway.services.catalog.get
        monkeypatch.setattr(module, "_EVENT_SECONDS", 0.001)
        monkeypatch.setattr(gateway.services.registrar, "begin", self._keep)
        monkeypatch.setattr(gateway.services.catalog, "get", self._look)

    def _keep(self, record) -> None:
        self._record = record

    async def _look(self, name):
        self._looks.release()
        return await self._get(name)

    async def follow(self, looks: int = 2) -> asyncio.Task:
        """Ask for the events; returns when the device was looked at so often. The first event is sent before the second."""
        await self._gateway.put("base", layout="tar", layer={"index": 0})
        self._looks = asyncio.Semaphore(0)
        following = asyncio.create_task(self._gateway.client.get("/v1/devices/base/events"))
        async with asyncio.timeout(30):
            for _ in range(looks):
                await self._looks.acquire()
        return following

    def begin(self) -> None:
        self._begin(self._record)


@pytest.fixture
def followed(gateway, monkeypatch):
    return Followed(gateway, monkeypatch)


async def test_events_follow_a_registration_to_its_end(followed):
    following = await followed.follow()
    followed.begin()
    answer = await asyncio.wait_for(following, 30)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    found = parse_events(answer.text)
    assert {event for event, _ in found} == {"device"}
    assert found[0][1]["state"] == "indexing"
    assert found[-1][1]["state"] == "ready"
    assert found[-1][1]["name"] == "base"


async def test_events_of_a_finished_device_are_one(gateway):
    await gateway.layer()
    found = parse_events((await gateway.client.get("/v1/devices/base/events")).text)
    assert [(event, data["state"]) for event, data in found] == [("device", "ready")]


@pytest.mark.parametrize("anew", [False, True])
async def test_events_of_a_device_that_is_removed_end_with_gone(gateway, followed, anew):
    following = await followed.follow()
    await gateway.client.delete("/v1/devices/base")
    if anew:
        await gateway.put("base", layout="tar", layer={"index": 0})
    answer = await asyncio.wait_for(following, 30)
    assert parse_events(answer.text)[-1] == ("gone", {})


async def test_a_quiet_stream_says_that_it_is_still_there(gateway, followed, monkeypatch):
    monkeypatch.setattr(module, "_KEEPALIVE_EVENTS", 2)
    following = await followed.follow(looks=5)
    await gateway.client.delete("/v1/devices/base")
    assert ": still here" in (await asyncio.wait_for(following, 30)).text


async def test_the_cache_tells_what_it_holds_and_forgets_it_when_told(gateway):
    await gateway.layer()
    await gateway.client.get("/v1/devices/base/data")
    if gateway.services.store._tasks:
        await asyncio.wait(gateway.services.store._tasks, timeout=20)
    held = (await gateway.client.get("/v1/cache")).json()
    assert held["memory"]["spans"] >= 1
    assert held["memory"]["used_bytes"] > 400_000
    assert held["disk"]["used_bytes"] > held["memory"]["used_bytes"]
    assert held["disk_bypassed"] is False
    freed = (await gateway.client.delete("/v1/cache")).json()["freed_bytes"]
    assert freed == held["memory"]["used_bytes"] + held["disk"]["used_bytes"]
    held = (await gateway.client.get("/v1/cache")).json()
    assert held["memory"]["used_bytes"] == held["disk"]["used_bytes"] == 0


async def test_a_catalog_that_does_not_answer_makes_the_gateway_unready(gateway, monkeypatch):
    from gateway.errors import StorageError

    assert (await gateway.client.get("/readyz")).json()["status"] == "ok"

    async def check():
        raise StorageError("the catalog does not answer: locked")

    monkeypatch.setattr(gateway.services.catalog, "check", check)
    answer = await gateway.client.get("/readyz?verbose")
    assert (answer.status_code, answer.json()["status"]) == (503, "failing")
    assert {"name": "catalog", "ok": False, "detail": "the catalog does not answer: locked"} in answer.json()[
        "checks"
    ]
    assert (await gateway.client.get("/livez")).status_code == 200


async def test_while_draining_the_gateway_is_not_ready_and_serves_on(gateway):
    await gateway.layer()
    gateway.worker.draining = True
    answer = await gateway.client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (503, "draining")
    assert int(answer.headers["retry-after"]) >= 1
    assert (await gateway.client.get("/v1/devices/base/data")).status_code == 200


async def test_a_supplied_table_cuts_a_device_and_changes_no_byte(gateway):
    from tests.support.inprocess import BASE, BASE_BLOB

    built = build_table(BASE_BLOB, 100_000)
    zinfo = encode(zip(built.points, built.windows, strict=True), 100_000)
    assert (await gateway.client.put(f"/v1/artifacts/{sha256(zinfo)}", content=zinfo)).status_code == 201
    plain = await gateway.layer("plain")
    fields = {"layout": "tar", "layer": {"index": 0}, "zinfo": sha256(zinfo)}
    cut = await gateway.add("cut", **fields)
    assert (cut["state"], cut["verification"]) == ("ready", "verified")
    assert cut["etag"] == plain["etag"]
    assert (await gateway.client.get("/v1/devices/cut/data")).content[: len(BASE)] == BASE
