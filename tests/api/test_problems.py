"""Every failure of the API is a problem document with its stable code and its documented status."""

from __future__ import annotations

import hmac
import json

import httpx
import pytest

from gateway import errors
from gateway.api import problems
from gateway.api.problems import status_of
from gateway.api.schemas import FailureView
from gateway.errors import BlockgateError
from gateway.recipes.records import Failure
from gateway.recipes.states import Event
from tests.support.inprocess import BASE_BLOB, bearer, running, token_entries
from tests.support.layers import failure, sha256

DIGEST = "sha256:" + "ab" * 32
DATA = "/v1/devices/base/data"


def check(answer, status, code):
    """``answer`` is this problem, complete and well formed."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert set(body) == {"type", "title", "status", "detail", "code", "retryable"}
    assert body["status"] == status
    assert body["code"] == code
    assert body["type"] == f"urn:blockgate:error:{code}"
    assert body["detail"]
    assert "Traceback" not in answer.text
    return body


IMAGE = {"source": {"image": "oci:/x"}}


@pytest.mark.parametrize(
    ("name", "body", "code"),
    [
        ("UPPER", IMAGE, "invalid_request"),
        ("-a", IMAGE, "invalid_request"),
        ("a" * 129, IMAGE, "invalid_request"),
        ("a" * 201, IMAGE, "invalid_request"),
        ("a%0A", IMAGE, "invalid_request"),
        ("%C3%A4", IMAGE, "invalid_request"),
        ("ok", {}, "invalid_request"),
        ("ok", [], "invalid_request"),
        ("ok", None, "invalid_request"),
        ("ok", {"source": {}}, "invalid_request"),
        ("ok", {"source": {"image": ""}}, "invalid_request"),
        ("ok", {"source": {"image": "x" * 1025}}, "invalid_request"),
        ("ok", {"source": {"image": "oci:/x", "unknown": 1}}, "invalid_request"),
        ("ok", {**IMAGE, "unknown": 1}, "invalid_request"),
        ("ok", {**IMAGE, "layout": "cube"}, "invalid_request"),
        ("ok", {**IMAGE, "layout": "tar"}, "invalid_request"),
        ("ok", {**IMAGE, "layout": "raw"}, "invalid_request"),
        ("ok", {**IMAGE, "layer": {"index": -1}}, "invalid_request"),
        ("ok", {**IMAGE, "layer": {"index": 1024}}, "invalid_request"),
        ("ok", {**IMAGE, "layer": {"digest": "sha256:1"}}, "invalid_request"),
        ("ok", {**IMAGE, "layer": {"index": 0, "digest": DIGEST}}, "invalid_request"),
        ("ok", {**IMAGE, "layer": 0}, "invalid_request"),
        ("ok", {**IMAGE, "verify": "never"}, "invalid_request"),
        ("ok", {**IMAGE, "metadata": "md5:1"}, "invalid_request"),
        ("ok", {**IMAGE, "zinfo": DIGEST}, "invalid_request"),
        ("ok", {**IMAGE, "zinfo": DIGEST, "layout": "raw", "layer": {"index": 0}}, "invalid_request"),
        ("ok", {**IMAGE, "metadata": DIGEST, "layout": "tar", "layer": {"index": 0}}, "invalid_request"),
        ("ok", {"source": {"image": "oci:/x", "platform": "linux"}}, "invalid_request"),
        ("ok", {"source": {"image": "oci:/x", "platform": "linux/amd64\n"}}, "invalid_request"),
        ("ok", {"source": {"image": "oci:/x", "insecure": "perhaps"}}, "invalid_request"),
        ("ok", {"source": {"image": "https://registry/x"}}, "invalid_reference"),
        ("ok", {"source": {"image": "UPPER/Case"}}, "invalid_reference"),
        ("ok", {"source": {"image": "x@sha256:123"}}, "invalid_reference"),
        ("ok", {"source": {"image": "\ud800"}}, "invalid_request"),
    ],
    ids=lambda value: (
        str(value)[:40].encode("ascii", "replace").decode() if isinstance(value, dict) else None
    ),
)
async def test_a_wrong_registration_is_400(gateway, name, body, code):
    answer = await gateway.client.put(
        f"/v1/devices/{name}", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    check(answer, 400, code)
    assert (await gateway.client.get("/v1/devices")).json()["devices"] == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"nul", b'{"source":' * 5000], ids=range(6)
)
async def test_a_body_that_is_no_json_is_400(gateway, content):
    answer = await gateway.client.put(
        "/v1/devices/ok", content=content, headers={"content-type": "application/json"}
    )
    check(answer, 400, "invalid_request")


async def test_a_registration_body_has_a_limit(gateway):
    async def endless():
        for _ in range(100):
            yield b" " * 100_000

    for content in (b" " * 3_000_000, endless()):
        answer = await gateway.client.put(
            "/v1/devices/ok", content=content, headers={"content-type": "application/json"}
        )
        check(answer, 413, "payload_too_large")


@pytest.mark.parametrize("field", ["metadata", "zinfo"])
async def test_an_artifact_that_was_not_uploaded_is_404(gateway, field):
    answer = await gateway.put("ok", layer={"index": 0}, **{field: DIGEST})
    body = check(answer, 404, "artifact_not_found")
    assert DIGEST in body["detail"]


@pytest.mark.parametrize(
    ("method", "url", "code"),
    [
        ("GET", "/v1/devices/none", "device_not_found"),
        ("DELETE", "/v1/devices/none", "device_not_found"),
        ("GET", "/v1/devices/none/events", "device_not_found"),
        ("GET", "/v1/devices/none/data", "device_not_found"),
        ("GET", "/v1/devices/%00/data", "device_not_found"),
        ("GET", "/v1/devices/%00", "device_not_found"),
        ("GET", f"/v1/artifacts/{DIGEST}", "artifact_not_found"),
        ("GET", "/v2/", "route_not_found"),
        ("GET", "/v1/devices/", "route_not_found"),
        ("GET", "/v1/devices/a/b", "route_not_found"),
        ("GET", "//v1/devices", "route_not_found"),
        ("GET", "/v1/devices/../../etc/passwd", "route_not_found"),
        ("GET", "/v1/devices/%2e%2e%2fetc/data", "route_not_found"),
    ],
)
async def test_what_is_not_there_is_404(gateway, method, url, code):
    check(await gateway.client.request(method, url), 404, code)


@pytest.mark.parametrize("url", [f"/v1/artifacts/{DIGEST}", "/v1/devices/none/data"])
async def test_head_of_what_is_not_there_is_404(gateway, url):
    assert (await gateway.client.head(url)).status_code == 404


@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("POST", "/v1/devices/a"),
        ("POST", "/v1/devices/a/data"),
        ("PUT", "/v1/devices/a/data"),
        ("DELETE", "/v1/devices/a/data"),
        ("OPTIONS", "/v1/devices/a/data"),
        ("PATCH", "/v1/devices/a"),
        ("DELETE", "/v1/devices"),
        ("DELETE", f"/v1/artifacts/{DIGEST}"),
        ("PUT", "/v1/cache"),
        ("POST", "/livez"),
    ],
)
async def test_another_method_is_405_and_says_which_ones_there_are(gateway, method, url):
    answer = await gateway.client.request(method, url)
    check(answer, 405, "method_not_allowed")
    assert answer.headers["allow"]


async def test_the_same_registration_is_200_and_another_one_is_409(gateway):
    first = await gateway.put("base", layout="tar", layer={"index": 0})
    assert (first.status_code, first.json()["state"]) == (202, "indexing")
    assert first.headers["location"] == "/v1/devices/base"
    again = await gateway.put("base", layout="tar", layer={"index": 0})
    assert again.status_code == 202
    check(await gateway.put("base"), 409, "device_exists")
    await gateway.settle()
    ready = await gateway.put("base", layout="tar", layer={"index": 0})
    assert (ready.status_code, ready.json()["state"]) == (200, "ready")


async def test_a_device_that_is_being_indexed_is_503_and_says_when_to_come_back(gateway):
    await gateway.put("base", layout="tar", layer={"index": 0})
    answer = await gateway.client.get(DATA)
    body = check(answer, 503, "device_not_ready")
    assert body["retryable"]
    assert int(answer.headers["retry-after"]) >= 1
    await gateway.settle()
    assert (await gateway.client.get(DATA)).status_code == 200


@pytest.mark.parametrize(
    ("tag", "fields", "code"),
    [
        ("none", {}, "image_not_found"),
        ("image", {"layer": {"index": 7}}, "invalid_request"),
        ("image", {"layer": {"digest": DIGEST}}, "invalid_request"),
        ("notar", {}, "invalid_layer"),
        ("lying", {}, "diff_id_mismatch"),
        ("zstd", {"layout": "tar", "layer": {"index": 0}}, "unsupported_layer"),
    ],
)
async def test_a_registration_that_fails_says_why_and_its_bytes_are_409(gateway, tag, fields, code):
    device = await gateway.add("bad", tag, **fields)
    assert (device["state"], device["error"]["code"]) == ("failed", code)
    assert device["error"]["detail"]
    body = check(await gateway.client.get("/v1/devices/bad/data"), 409, "device_failed")
    assert device["error"]["detail"] in body["detail"]
    # It can be removed and tried again.
    assert (await gateway.client.delete("/v1/devices/bad")).status_code == 204
    assert (await gateway.layer("bad"))["state"] == "ready"


async def test_a_folder_outside_of_the_roots_is_refused(gateway, tmp_path):
    await gateway.client.put("/v1/devices/bad", json={"source": {"image": f"oci:{tmp_path}"}})
    await gateway.settle()
    device = (await gateway.client.get("/v1/devices/bad")).json()
    assert (device["state"], device["error"]["code"]) == ("failed", "path_not_allowed")


async def test_a_quarantined_device_serves_nothing(gateway):
    await gateway.layer()
    record = await gateway.services.catalog.get("base")
    await gateway.services.catalog.end(record, Event.REFUTED, Failure("invalid_zinfo", "of another layer"))
    body = check(await gateway.client.get(DATA), 409, "device_quarantined")
    assert "of another layer" in body["detail"]
    shown = (await gateway.client.get("/v1/devices/base")).json()
    assert (shown["state"], shown["error"]["code"]) == ("quarantined", "invalid_zinfo")
    # What it was is found by its content no more either.
    check(await gateway.client.get(shown["data_url"]), 404, "content_not_found")


# Nothing but a problem document ever reaches a client, whatever breaks inside.

LEAVES = sorted(errors.leaves(), key=lambda leaf: leaf.__name__)
ARMED = [leaf for leaf in LEAVES if leaf.__module__ == "gateway.errors"]


@pytest.mark.parametrize("leaf", ARMED, ids=lambda leaf: leaf.__name__)
async def test_every_error_becomes_its_problem_on_both_ways_out(gateway, monkeypatch, leaf):
    """The data endpoint answers by itself, the rest through FastAPI's handlers."""

    async def broken(*_args, **_options):
        raise failure(leaf, "as the test wants it")

    monkeypatch.setattr(gateway.services.shelf, "get", broken)
    monkeypatch.setattr(gateway.services.catalog, "page", broken)
    for url in (DATA, "/v1/devices"):
        body = check(await gateway.client.get(url), status_of(leaf), leaf.code)
        assert body["retryable"] == leaf.retryable
        assert body["detail"] == "as the test wants it"


@pytest.mark.parametrize(
    ("part", "method", "url"),
    [
        ("catalog.page", "GET", "/v1/devices"),
        ("catalog.get", "GET", "/v1/devices/base"),
        ("catalog.get", "GET", "/v1/devices/base/events"),
        ("catalog.delete", "DELETE", "/v1/devices/base"),
        ("catalog.create", "PUT", "/v1/devices/other"),
        ("registrar.begin", "PUT", "/v1/devices/other"),
        ("shelf.get", "GET", "/v1/devices/base/data"),
        ("shelf.peek", "HEAD", "/v1/devices/base/data"),
        ("store.begin", "GET", "/v1/devices/base/data"),
        ("store.peek", "GET", "/v1/devices/base/data"),
        ("store.drop", "DELETE", "/v1/cache"),
        ("disk.measure", "GET", "/v1/cache"),
        ("artifacts.size", "GET", f"/v1/artifacts/{DIGEST}"),
        ("artifacts.put", "PUT", f"/v1/artifacts/{DIGEST}"),
        ("catalog.check", "GET", "/readyz"),
    ],
)
async def test_a_defect_is_500_without_a_traceback(gateway, monkeypatch, part, method, url):
    await gateway.layer()

    def broken(*_args, **_options):
        raise RuntimeError("secret detail of a defect")

    *owners, name = part.split(".")
    target = gateway.services
    for owner in owners:
        target = getattr(target, owner)
    monkeypatch.setattr(target, name, broken)
    content = json.dumps(gateway.body()) if "devices" in url else None
    answer = await gateway.client.request(
        method, url, content=content, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 500
    if method != "HEAD":
        check(answer, 500, "internal")
    assert "secret" not in answer.text


async def test_a_body_without_its_end_is_a_broken_answer(gateway, monkeypatch):
    """After the status went out there is only one honest way to fail."""
    await gateway.layer()
    device = await gateway.services.shelf.get("base")

    async def stream(start, _stop):
        yield b"x" * 10
        raise failure(errors.RegistryTimeout)

    monkeypatch.setattr(device, "stream", stream)
    monkeypatch.setattr(device, "peek", lambda *_: None)
    with pytest.raises(AssertionError):  # httpx' transport insists on the end of the body
        await gateway.client.get(DATA)


async def test_a_span_that_cannot_be_had_is_502_before_any_byte_and_the_device_is_degraded_until_it_can(
    gateway, images
):
    await gateway.layer()
    blob = images / "blobs/sha256" / sha256(BASE_BLOB).removeprefix("sha256:")
    away = blob.rename(blob.with_suffix(".away"))
    try:
        check(await gateway.client.get(DATA, headers={"range": "bytes=0-9"}), 502, "blob_not_found")
        await gateway.settle()
        shown = (await gateway.client.get("/v1/devices/base")).json()
        assert (shown["state"], shown["health"], shown["error"]["code"]) == (
            "ready",
            "degraded",
            "blob_not_found",
        )
        (listed,) = (await gateway.client.get("/v1/devices")).json()["devices"]
        assert (listed["state"], listed["health"], listed["error"]) == ("ready", "degraded", shown["error"])
        check(await gateway.client.get(DATA, headers={"range": "bytes=0-9,200-300"}), 502, "blob_not_found")
    finally:
        away.rename(blob)
    assert (await gateway.client.get(DATA, headers={"range": "bytes=0-9"})).status_code == 206
    shown = (await gateway.client.get("/v1/devices/base")).json()
    assert (shown["state"], shown["health"], shown["error"]) == ("ready", "ok", None)


# The tables


def test_every_error_has_its_own_code_and_a_status_that_says_whose_fault_it_is():
    codes = [leaf.code for leaf in ARMED]
    assert len(set(codes)) == len(codes)
    for leaf in ARMED:
        status = status_of(leaf)
        if leaf is errors.ImageNotFound:  # a registry said so, of a name that the client sent
            assert status == 422
        elif issubclass(leaf, errors.UsageError | errors.MissingError):
            assert 400 <= status < 500, leaf
        elif issubclass(leaf, errors.UpstreamError | errors.IntegrityError):
            assert status in (502, 503, 504), leaf
        if leaf.retryable:
            assert status in (502, 503, 504), leaf


def test_no_error_falls_through_to_the_last_row_of_the_table():
    for leaf in ARMED:
        assert status_of(leaf) != 500, leaf
    assert status_of(BlockgateError) == 500


def test_every_row_of_the_table_is_used():
    used = set()
    for leaf in errors.leaves():
        used.add(next(kind for kind in leaf.__mro__ if kind in problems._STATUS))
    assert set(problems._STATUS) - used <= {BlockgateError}


def test_the_errors_docstring_draws_every_leaf():
    for leaf in ARMED:
        assert f" {leaf.__name__} " in f" {errors.__doc__} ".replace("\n", " "), leaf


@pytest.mark.parametrize(("seconds", "shown"), [(0.2, "1"), (1, "1"), (29.6, "30")])
async def test_retry_after_is_whole_seconds(seconds, shown):
    _, headers, _ = problems.render(errors.Overloaded("later", retry_after_seconds=seconds))
    assert dict(headers)[b"retry-after"] == shown.encode()


@pytest.mark.parametrize("leaf", ARMED, ids=lambda leaf: leaf.__name__)
def test_every_503_says_when_to_come_back(leaf):
    status, headers, _ = problems.render(failure(leaf))
    assert (b"retry-after" in dict(headers)) == (status == 503)
    if status == 503:
        assert 1 <= int(dict(headers)[b"retry-after"]) <= 5


@pytest.mark.parametrize(
    ("kind", "detail", "shown"),
    [
        (
            errors.IndexAbsent,
            "/srv/gateway/layers/ab12/gzip-4/77/index.json is not there",
            "…/index.json is not there",
        ),
        (
            errors.StorageError,
            "'/data/tmp' cannot be made: No space left",
            "'…/tmp' cannot be made: No space left",
        ),
        (
            errors.DeviceNotReady,
            "device 'a' is still being indexed; it waits: /srv/d/toc.bin cannot be read: EIO",
            "device 'a' is still being indexed; it waits: …/toc.bin cannot be read: EIO",
        ),
        (
            errors.ConfigurationError,
            "/root/.docker/config.json cannot be read",
            "…/config.json cannot be read",
        ),
        # These say what the client knows, or needs.
        (errors.ArtifactDamaged, f"upload it with PUT /v1/artifacts/{DIGEST}", None),
        (errors.StorageError, "oci:/srv/images:tag: blob sha256:12: Input/output error", None),
        (errors.StorageError, "https://registry/v2/x/blobs/y: the catalog and/or the disk failed", None),
        (errors.RouteNotFound, "there is nothing at /a/b/c; /docs lists what there is", None),
        (errors.InvalidLayer, "member '/etc/ssl/passwd' is refused", None),
    ],
)
def test_of_the_servers_files_a_client_is_told_the_last_part_only(kind, detail, shown):
    assert problems.problem(failure(kind, detail)).detail == (shown or detail)
    assert FailureView.model_validate(Failure(kind.code, detail)).detail == (shown or detail)


# The edge: header limits, tokens


@pytest.mark.parametrize(
    "headers",
    [[(f"x-{i}", "1") for i in range(101)], [("x-long", "a" * 33_000)], [("a" * 33_000, "1")]],
    ids=["too many", "too long a value", "too long a name"],
)
async def test_more_header_fields_than_accepted_are_431(gateway, headers):
    check(await gateway.client.get("/livez", headers=headers), 431, "headers_too_large")


async def test_a_hundred_short_fields_are_accepted(gateway):
    async with httpx.AsyncClient(transport=gateway.client._transport, base_url="http://gateway") as client:
        client.headers.clear()
        answer = await client.get("/livez", headers=[(f"x-{i}", "1") for i in range(95)])
    assert answer.status_code == 200


ADMIN, NODE, METRICS = "admin-secret", "node-secret", "metrics-secret"


@pytest.fixture
async def guarded(tmp_path, images):
    tokens = token_entries(admin=ADMIN, admin_next="admin-next", node=NODE, metrics=METRICS)
    async with running(tmp_path, images, tokens=tokens) as gateway:
        gateway.client.headers.update(bearer(ADMIN))
        await gateway.layer()
        del gateway.client.headers["authorization"]
        yield gateway


CALLS = [
    ("GET", "/v1/devices"),
    ("GET", "/v1/devices/base"),
    ("GET", "/v1/devices/base/events"),
    ("GET", DATA),
    ("HEAD", DATA),
    ("PUT", "/v1/devices/other"),
    ("DELETE", "/v1/devices/none"),
    ("PUT", f"/v1/artifacts/{DIGEST}"),
    ("GET", f"/v1/artifacts/{DIGEST}"),
    ("GET", "/v1/cache"),
    ("DELETE", "/v1/cache"),
    ("GET", "/openapi.json"),
    ("GET", "/nothing"),
]
READS = set(CALLS[:5])


async def test_without_a_token_there_is_health_and_nothing_else(guarded):
    for method, url in CALLS:
        answer = await guarded.client.request(method, url)
        assert answer.status_code == 401
        if method != "HEAD":
            check(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"].startswith("Bearer")
    for url in ("/livez", "/readyz"):
        assert (await guarded.client.get(url)).status_code == 200


async def test_a_node_reads_devices_and_nothing_else(guarded):
    for method, url in CALLS:
        answer = await guarded.client.request(method, url, headers=bearer(NODE))
        assert answer.status_code == (200 if (method, url) in READS else 403), (method, url)
    check(await guarded.client.get("/v1/cache", headers=bearer(NODE)), 403, "forbidden")


async def test_the_metrics_role_reads_no_device(guarded):
    for method, url in CALLS:
        answer = await guarded.client.request(method, url, headers=bearer(METRICS))
        assert answer.status_code == 403, (method, url)
    assert (await guarded.client.get("/metrics", headers=bearer(METRICS))).status_code in (200, 404)


async def test_two_admin_tokens_are_valid_at_once(guarded):
    for token in (ADMIN, "admin-next"):
        assert (await guarded.client.get("/v1/cache", headers=bearer(token))).status_code == 200


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic YTpi",
        ADMIN,
        f"Token {ADMIN}",
        "Bearer wrong",
        f"Bearer {ADMIN}x",
        "Bearer \xff",
    ],
)
async def test_anything_but_a_known_token_is_401_and_is_not_repeated(guarded, value):
    answer = await guarded.client.get("/v1/cache", headers={"authorization": value.encode("latin-1")})
    check(answer, 401, "unauthenticated")
    assert "wrong" not in answer.text
    assert ADMIN not in answer.text


async def test_the_scheme_may_be_written_in_any_case(guarded):
    for scheme in ("bearer", "BEARER"):
        answer = await guarded.client.get("/v1/cache", headers={"authorization": f"{scheme} {ADMIN}"})
        assert answer.status_code == 200


async def test_every_known_token_is_compared_in_constant_time(guarded, monkeypatch):
    compared = []
    real = hmac.compare_digest

    def compare_digest(one, other):
        compared.append(one)
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare_digest)
    for token in (ADMIN, METRICS, "wrong"):
        compared.clear()
        await guarded.client.get("/v1/cache", headers=bearer(token))
        assert len(compared) == 4


async def test_with_tokens_bytes_are_private_to_caches_between(guarded):
    named = await guarded.client.head(DATA, headers=bearer(NODE))
    # Without "public", no shared cache keeps the answer to a request with a token (RFC 9111 section 3.5).
    assert named.headers["cache-control"] == "no-cache, no-transform"
    content = await guarded.client.get(named.headers["content-location"], headers=bearer(NODE))
    assert content.headers["cache-control"] == "private, max-age=31536000, immutable, no-transform"
    refused = await guarded.client.get(named.headers["content-location"], headers=bearer(METRICS))
    check(refused, 403, "forbidden")
