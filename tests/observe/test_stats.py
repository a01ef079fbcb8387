"""/metrics, /v1/stats, maps and nodes of a whole gateway, against what was done to it."""

import asyncio
import gc
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.api import worker
from gateway.errors import BlobNotFound, RegistryUnreachable, StorageError
from gateway.recipes.records import Failure
from gateway.recipes.states import Event
from gateway.registry.breaker import Breaker
from gateway.spans.tier import Origin
from tests.support.inprocess import TOKENS, bearer, running, token_entries


async def samples(gateway):
    answer = await gateway.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    return {
        (sample.name, *sorted(sample.labels.values(), key=str)): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def read(gateway, name, start, stop):
    """One range; returns when what it fetched is on disk too."""
    path, field = f"/v1/devices/{name}/data", f"bytes={start}-{stop - 1}"
    answer = await gateway.client.get(path, headers={"range": field})
    if gateway.services.store._tasks:
        await asyncio.wait(gateway.services.store._tasks)
    return answer


async def stats(gateway):
    gateway.worker.stats.forget()
    answer = await gateway.client.get("/v1/stats")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_each_byte_counts_by_where_it_was_at_that_moment(gateway):
    await gateway.layer("base")
    await read(gateway, "base", 0, 1000)
    await read(gateway, "base", 500, 4000)
    await gateway.services.store.memory.drop()
    await read(gateway, "base", 0, 10)
    shown = await samples(gateway)
    sent = {
        source: shown["blockgate_read_bytes_total", source]
        for source in ("memory", "disk", "upstream", "local")
    }
    assert sent == {"upstream": 1000, "memory": 3500, "disk": 10, "local": 0}
    assert shown["blockgate_cache_requests_total", "hit", "memory"] == 1
    assert shown["blockgate_cache_requests_total", "disk", "hit"] == 1
    assert shown["blockgate_cache_requests_total", "disk", "miss"] == 1
    assert shown["blockgate_read_amplification_ratio",] == shown["blockgate_fetched_bytes_total",] / 1000


async def test_bytes_of_a_deleted_device_stay_counted(gateway):
    await gateway.layer("base")
    await read(gateway, "base", 0, 1000)
    await gateway.client.delete("/v1/devices/base")
    await read(gateway, "base", 0, 1000)
    await gateway.settle()
    assert sum(gateway.services.shelf.served().values()) == 1000
    # The catalog's thread may still have the error of the last look in its hands, and with it the device.
    async with asyncio.timeout(20):
        while gateway.services.shelf._closing:
            await asyncio.sleep(0.01)
            gc.collect()
    assert sum(gateway.services.shelf.served().values()) == 1000


async def test_a_read_under_way_counts_although_its_device_is_gone(gateway):
    await gateway.layer("base")
    device = await gateway.services.shelf.get("base")
    pieces = device.stream(0, 130_000)
    await anext(pieces)
    await gateway.client.delete("/v1/devices/base")
    await read(gateway, "base", 0, 1)
    async for _ in pieces:
        pass
    del pieces, device
    gc.collect()
    assert sum(gateway.services.shelf.served().values()) == 130_000


async def test_requests_count_by_route_and_status(gateway):
    await gateway.layer("base")
    for _ in range(3):
        await read(gateway, "base", 0, 100)
    await read(gateway, "base", 10**9, 10**9 + 1)
    await read(gateway, "nothing", 0, 1)
    await gateway.client.get("/v1/devices/base")
    await gateway.client.get("/no/such/thing")
    await gateway.client.request("INVENTED", "/v1/devices/base")
    await gateway.client.request("INVENTED2", "/v1/devices/base")
    shown = await samples(gateway)
    data = "/v1/devices/{name}/data"

    def key(*labels):
        return ("blockgate_requests_total", *sorted(labels))

    assert shown[key("206", "GET", data)] == 3
    assert shown[key("416", "GET", data)] == 1
    assert shown[key("404", "GET", data)] == 1
    assert shown[key("200", "GET", "/v1/devices/{name}")] >= 1
    assert shown[key("404", "GET", "other")] == 1
    assert not any("INVENTED" in label for sample in shown for label in sample)
    assert shown["blockgate_request_seconds_count", data] == 5
    assert shown["blockgate_requests_in_flight",] == 1


async def test_openmetrics_is_sent_to_whoever_prefers_it(gateway):
    answer = await gateway.client.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


async def test_readahead_is_used_or_wasted(gateway):
    await gateway.layer("base")
    device = await gateway.services.shelf.get("base")
    store, (layer,) = gateway.services.store, [each for each in device.layers if each is not None]
    await layer.open()
    futures = []
    for span in (1, 2, 3):
        store.prefetch(layer, span)
        futures.append(store.flights.find(layer.span_key(span)).future)
    await asyncio.wait(futures)
    assert store.peek(layer, 1) is not None
    assert store.peek(layer, 1) is not None
    await store.memory.drop()
    flight = store.begin(layer, 2, ahead=False)
    await flight.future
    flight.release()
    shown = await samples(gateway)
    ahead = {
        outcome: shown["blockgate_readahead_spans_total", outcome]
        for outcome in ("started", "used", "wasted")
    }
    assert ahead == {"started": 3, "used": 1, "wasted": 2}


async def test_statistics_are_of_what_was_read(gateway):
    await gateway.layer("base")
    await read(gateway, "base", 0, 1000)
    await read(gateway, "base", 0, 3000)
    await gateway.put("wrong", "no-such-tag")
    await gateway.settle()
    shown = await stats(gateway)
    assert shown["status"] == {"level": "ok", "reason": "1 device ready, 1 registration failed"}
    assert shown["traffic"]["requests"] == 2
    assert shown["traffic"]["errors"] == 0
    assert shown["traffic"]["per_second"] > 0
    assert 0 < shown["traffic"]["p50_seconds"] <= shown["traffic"]["p99_seconds"]
    assert (shown["bytes"]["upstream"], shown["bytes"]["memory"]) == (1000, 3000)
    assert shown["bytes"]["hit_ratio"] == 0.75
    series = shown["series"]
    assert {len(values) for values in series.values() if isinstance(values, list)} == {180}
    assert sum(series["memory"]) == 3000
    assert sum(series["requests"]) == 2
    base, wrong = shown["devices"]
    assert (base["name"], base["state"], base["served_bytes"], base["hit_ratio"]) == (
        "base",
        "ready",
        4000,
        0.75,
    )
    assert base["amplification"] > 1
    assert (wrong["state"], wrong["error"]["code"]) == ("failed", "image_not_found")


async def test_many_who_ask_at_once_cost_one_look(gateway, monkeypatch):
    observation = gateway.worker.observation
    looks = 0
    overview = observation.overview

    async def counted():
        nonlocal looks
        looks += 1
        return await overview()

    monkeypatch.setattr(observation, "overview", counted)
    answers = await asyncio.gather(*(gateway.client.get("/v1/stats") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert looks == 1


async def test_a_device_in_quarantine_is_trouble(gateway):
    await gateway.layer("base")
    record = await gateway.services.catalog.get("base")
    failure = Failure("span_mismatch", "its supplied table is wrong")
    assert await gateway.services.catalog.end(record, Event.REFUTED, failure)
    shown = await stats(gateway)
    assert shown["status"] == {"level": "trouble", "reason": "1 device quarantined (base)"}
    (device,) = shown["devices"]
    assert (device["state"], device["health"]) == ("quarantined", "ok")
    assert device["error"] == {"code": "span_mismatch", "detail": "its supplied table is wrong"}


async def test_a_device_whose_bytes_cannot_be_had_is_ready_and_degraded_until_they_can(gateway):
    await gateway.layer("base")
    (layer,) = (await gateway.services.shelf.get("base")).layers
    layer.note(BlobNotFound("the registry has it no more"))
    shown = await stats(gateway)
    assert shown["status"] == {"level": "trouble", "reason": "1 device degraded (base)"}
    (device,) = shown["devices"]
    assert (device["state"], device["health"]) == ("ready", "degraded")
    assert device["error"] == {"code": "blob_not_found", "detail": "the registry has it no more"}
    assert (await samples(gateway))["blockgate_degraded_devices",] == 1
    assert (await samples(gateway))["blockgate_devices", "ready"] == 1
    layer.note(None)
    shown = await stats(gateway)
    assert (shown["status"]["level"], shown["devices"][0]["health"]) == ("ok", "ok")
    assert (await samples(gateway))["blockgate_degraded_devices",] == 0


async def test_a_registry_that_is_not_asked_is_trouble_and_counts_are_by_registry(gateway):
    upstream = gateway.services.upstream
    upstream.request_finished("registry.test", "ok", 0.02)
    upstream.request_finished("registry.test", "registry_overloaded", 0.01)
    upstream.retried("registry.test", "registry_overloaded")
    upstream.bytes_received("registry.test", 500)
    breaker = Breaker("registry.test", clock=lambda: 0.0, observer=upstream)
    upstream.breaker_made("registry.test", breaker)
    for _ in range(5):
        breaker.enter()
        breaker.failed()
    shown = await stats(gateway)
    assert shown["status"] == {"level": "trouble", "reason": "registry.test does not answer"}
    (entry,) = shown["upstream"]
    seconds = entry.pop("p50_seconds"), entry.pop("p99_seconds")
    assert all(0.01 < each <= 0.025 for each in seconds)
    assert entry == {
        "registry": "registry.test",
        "breaker": "open",
        "attempts": 2,
        "failures": 1,
        "retries": 1,
        "throttled": 1,
        "received_bytes": 500,
    }
    metrics = await samples(gateway)
    assert metrics["blockgate_upstream_breaker_state", "registry.test"] == 2
    assert metrics["blockgate_upstream_throttled_total", "registry.test"] == 1


async def test_registries_without_end_are_counted_together(gateway):
    for number in range(200):
        gateway.services.upstream.request_finished(f"host-{number}.test", "ok", 0.1)
    shown = await samples(gateway)
    hosts = [sample for sample in shown if sample[0] == "blockgate_upstream_seconds_count"]
    assert len(hosts) == 65
    assert shown["blockgate_upstream_seconds_count", "ok", "other"] == 136


async def test_integrity_failures_of_reads_and_registrations_are_trouble(gateway, images):
    await gateway.put("lying", "lying")
    await gateway.settle()
    await gateway.layer("base")
    shown = await samples(gateway)
    assert shown["blockgate_integrity_failures_total", "diff_id_mismatch"] == 1
    assert shown["blockgate_registrations_total", "failed"] == 1
    assert shown["blockgate_registrations_total", "ready"] == 1
    assert (await stats(gateway))["status"] == {
        "level": "trouble",
        "reason": "1 integrity failure since the start",
    }


async def test_the_map_tells_reads_and_where_spans_are(gateway):
    await gateway.layer("base")
    await read(gateway, "base", 0, 10)
    await read(gateway, "base", 5, 6)
    second = (await gateway.services.shelf.get("base")).layers[0].index.table.bounds(1)[0]
    await read(gateway, "base", second, second + 1)
    await gateway.services.store.memory.drop()
    await read(gateway, "base", 0, 10)
    answer = await gateway.client.get("/v1/devices/base/map")
    assert answer.status_code == 200
    shown = answer.json()
    cells = shown["cells"]
    assert cells["reads"][:3] == [3, 1, 0]
    assert cells["state"][:3] == ["memory", "disk", "never"]
    assert sum(cells["length"]) == sum(s["length"] for s in shown["segments"] if s["kind"] != "zero")
    await gateway.client.delete("/v1/cache")
    cells = (await gateway.client.get("/v1/devices/base/map")).json()["cells"]
    assert cells["state"][:3] == ["dropped", "dropped", "never"]


async def test_a_read_that_is_partly_in_memory_counts_each_span_once(gateway):
    await gateway.layer("base")
    await read(gateway, "base", 0, 10)
    await read(gateway, "base", 0, 131_072)
    device = await gateway.services.shelf.get("base")
    assert list(device.layers[0].reads[:3]) == [2, 1, 0]


async def test_spans_that_cannot_be_had_show_as_failed_until_they_can(gateway, monkeypatch):
    await gateway.layer("base")
    device = await gateway.services.shelf.get("base")
    layer = device.layers[0]
    source = layer.source

    class Broken:
        size = source.size

        async def read(self, offset, length):
            raise RegistryUnreachable("gone <b>for</b> now")

        async def aclose(self):
            await source.aclose()

    layer.source = Broken()
    assert (await read(gateway, "base", 0, 10)).status_code == 502
    cells = (await gateway.client.get("/v1/devices/base/map")).json()["cells"]
    assert cells["state"][:2] == ["failed", "never"]
    (entry,) = (await stats(gateway))["devices"]
    assert entry["error"] == {"code": "registry_unreachable", "detail": "gone <b>for</b> now"}
    told = await stats(gateway)
    assert told["traffic"]["errors"] == 1
    assert told["status"] == {
        "level": "trouble",
        "reason": "1 device degraded (base); 1 read failed in the last half minute",
    }
    layer.source = source
    assert (await read(gateway, "base", 0, 10)).status_code == 206
    cells = (await gateway.client.get("/v1/devices/base/map")).json()["cells"]
    assert cells["state"][0] == "memory"


async def test_an_answer_that_is_cut_short_is_an_error(gateway):
    await gateway.layer("base")
    device = await gateway.services.shelf.get("base")
    layer = device.layers[0]
    whole = layer.source

    class Ending:
        size = whole.size

        async def read(self, offset, length):
            if offset > 100_000:
                raise BlobNotFound("the rest is gone")
            return await whole.read(offset, length)

        async def aclose(self):
            await whole.aclose()

    layer.source = Ending()
    with pytest.raises(AssertionError):  # of httpx' transport: the answer is not complete
        await gateway.client.get("/v1/devices/base/data")
    shown = await samples(gateway)
    assert shown["blockgate_reads_cut_short_total",] == 1
    assert (await stats(gateway))["traffic"]["errors"] == 1


@pytest.mark.parametrize(("name", "code"), [("nothing", "device_not_found"), ("wrong", "device_failed")])
async def test_a_device_that_does_not_serve_has_no_map(gateway, name, code):
    await gateway.put("wrong", "no-such-tag")
    await gateway.settle()
    answer = await gateway.client.get(f"/v1/devices/{name}/map")
    assert answer.json()["code"] == code


async def test_a_node_is_shown_with_its_devices(gateway):
    device = {
        "name": "python",
        "node_device": "/dev/nbd0",
        "mountpoint": "/mnt/a",
        "read_bytes": 7,
        "errors": 1,
    }
    answer = await gateway.client.post(
        "/v1/nodes/worker-1/report", json={"version": "1.0", "devices": [device]}
    )
    assert answer.status_code == 204
    (node,) = (await stats(gateway))["nodes"]
    assert (node["name"], node["version"], node["silent"]) == ("worker-1", "1.0", False)
    assert node["devices"] == [{**device, "state": "connected"}]
    assert (await samples(gateway))["blockgate_nodes",] == 1


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("Upper", {}),
        ("..%2Fescape", {}),
        ("worker", {"unknown": 1}),
        ("worker", {"devices": [{"name": "a", "read_bytes": -1}]}),
        ("worker", {"devices": [{"name": "x" * 501}]}),
    ],
)
async def test_a_report_that_is_none_is_refused(gateway, name, body):
    answer = await gateway.client.post(f"/v1/nodes/{name}/report", json=body)
    assert answer.status_code in (400, 404)
    assert (await stats(gateway))["nodes"] == []


async def test_roles_see_what_is_theirs(tmp_path, images):
    async with running(tmp_path, images, tokens=token_entries(**TOKENS)) as gateway:
        asked = {
            ("admin", "GET", "/v1/stats"): 200,
            ("admin", "GET", "/metrics"): 200,
            ("node", "GET", "/v1/stats"): 403,
            ("node", "GET", "/metrics"): 403,
            ("node", "POST", "/v1/nodes/a/report"): 204,
            ("metrics", "GET", "/metrics"): 200,
            ("metrics", "GET", "/v1/stats"): 403,
            ("metrics", "POST", "/v1/nodes/a/report"): 403,
        }
        for (role, method, path), status in asked.items():
            json = {} if method == "POST" else None
            answer = await gateway.client.request(method, path, json=json, headers=bearer(TOKENS[role]))
            assert answer.status_code == status, (role, path)
        open_to_all = {"/": 200, "/docs": 200, "/dashboard/app.js": 200}
        for path, status in {**open_to_all, "/v1/stats": 401, "/openapi.json": 401, "/metrics": 401}.items():
            assert (await gateway.client.get(path)).status_code == status, path


async def test_all_origins_are_in_the_statistics(gateway):
    shown = await stats(gateway)
    assert {origin.value for origin in Origin} <= set(shown["bytes"])
    assert {origin.value for origin in Origin} <= set(shown["series"])


async def test_a_catalog_that_does_not_answer_is_trouble_and_hides_nothing_else(gateway, monkeypatch):
    await gateway.layer("base")
    await read(gateway, "base", 0, 100)

    async def broken(**asked):
        raise StorageError("the catalog does not answer")

    for question in ("counts", "page", "unfinished"):
        monkeypatch.setattr(gateway.services.catalog, question, broken)
    shown = await stats(gateway)
    assert shown["status"] == {"level": "trouble", "reason": "the catalog does not answer"}
    assert (shown["traffic"]["requests"], shown["devices"]) == (1, [])
    assert (await samples(gateway))["blockgate_read_bytes_total", "upstream"] == 100


async def test_a_disk_cache_that_cannot_be_written_is_trouble(gateway):
    disk = gateway.services.disk
    disk.errors["ENOSPC"] += 2
    disk._bypass_until = float("inf")
    shown = await stats(gateway)
    assert shown["status"] == {"level": "trouble", "reason": "the disk cache cannot be written"}
    assert shown["caches"]["disk_errors"] == 2
    assert (await samples(gateway))["blockgate_cache_write_errors_total", "ENOSPC"] == 2


async def test_who_waited_for_a_look_that_took_long_makes_no_other(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    looks = 0

    async def look():
        nonlocal looks
        looks += 1
        await asyncio.sleep(0)
        clock[0] += 10
        return looks

    shared = worker.Shared(look)
    assert await asyncio.gather(*(shared.get() for _ in range(5))) == [1] * 5
