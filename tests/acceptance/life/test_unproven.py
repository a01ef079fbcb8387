"""``verify: background``: bytes that nobody has proven never pass for proven ones, and a refuted table is remembered."""

import pytest

from tests.support.faultregistry import FaultRegistry
from tests.support.gateway import Document, Gateway
from tests.support.gzips import member
from tests.support.life import SPAN_BYTES, Checkpoints, Image, Trickle, content, put_image, tar_of
from tests.support.zinfo_tables import build


@pytest.fixture
def image(registry: FaultRegistry) -> Image:
    return put_image(registry, "team/app", [tar_of({"usr/one": content(500_000, 7)})])


@pytest.fixture
def blob(image: Image) -> bytes:
    return member(image.tars[0])


@pytest.fixture
def true_table(blob: bytes) -> bytes:
    built = build(blob, SPAN_BYTES)
    points = tuple((point.in_offset, point.out_offset, point.bits) for point in built.points)
    return Checkpoints(SPAN_BYTES, points, tuple(map(bytes, built.windows))).encode()


@pytest.fixture
def forged_table(true_table: bytes, blob: bytes) -> bytes:
    return Checkpoints.parse(true_table).forged(blob).encode()


def background(gateway: Gateway, image: Image, table: bytes) -> Document:
    return image.layer_spec(zinfo=gateway.upload(table), verify="background")


def test_bytes_of_an_unproven_table_say_so_and_may_be_kept_by_nobody(
    gateway: Gateway, image: Image, registry: FaultRegistry, true_table: bytes, forged_table: bytes
) -> None:
    tar = image.tars[0]
    tags: set[str] = set()
    with Trickle(registry, image.blobs) as pass_:
        for name, table in (("true", true_table), ("forged", forged_table)):
            spec = background(gateway, image, table)
            device = gateway.register(name, spec)
            assert (device["state"], device["verification"]) == ("ready", "verifying"), device
            zinfo = spec["zinfo"].removeprefix("sha256:")
            wrong = 0
            for start in range(0, len(tar), SPAN_BYTES):
                answer = gateway.get(name, start, min(start + 3000, len(tar)))
                if answer.status_code != 206:
                    assert answer.json()["code"] == "chain_mismatch", answer.text
                    continue
                wrong += answer.content != tar[start : start + 3000]
                assert answer.headers["cache-control"] == "no-store, no-transform"
                assert answer.headers["blockgate-verification"] == "unverified"
                tag = answer.headers["etag"].strip('"')
                assert tag[40:] == f"-unproven-{zinfo[:12]}"
                tags.add(tag)
            assert (wrong > 0) == (name == "forged"), "the forged table is good for nothing in this test"
        assert pass_.running
    assert len(tags) == 2
    assert gateway.settled("true", verified=True)["verification"] == "verified"
    proven = gateway.http.head("/v1/devices/true/data")
    assert proven.headers["etag"].strip('"') not in tags
    assert proven.headers["blockgate-verification"] == "verified"


def test_after_the_pass_the_name_has_the_proven_tag_and_the_unproven_address_goes_on_answering(
    gateway: Gateway, image: Image, registry: FaultRegistry, true_table: bytes
) -> None:
    tar = image.tars[0]
    with Trickle(registry, image.blobs):
        device = gateway.register("app", background(gateway, image, true_table))
        assert (device["state"], device["verification"]) == ("ready", "verifying"), device
        unproven = gateway.http.head("/v1/devices/app/data").headers["etag"]
        address = f"/v1/content/{unproven.strip(chr(34))}/data"
        before = gateway.http.get(address)
        assert (before.status_code, before.content == tar) == (200, True), before.text[:500]
        assert before.headers["cache-control"] == "no-store, no-transform"
    assert gateway.settled("app", verified=True)["verification"] == "verified"
    after = gateway.http.get(address)
    assert (after.status_code, after.headers["etag"]) == (200, unproven), after.text[:500]
    assert after.content == tar
    by_name = gateway.http.get("/v1/devices/app/data")
    assert by_name.headers["etag"] != unproven
    assert "-unproven-" not in by_name.headers["etag"]
    assert by_name.headers["blockgate-verification"] == "verified"
    assert by_name.content == tar


def test_a_table_that_was_refuted_is_never_served_again(
    gateway: Gateway, image: Image, registry: FaultRegistry, forged_table: bytes
) -> None:
    spec = background(gateway, image, forged_table)
    device = gateway.register("first", spec, verified=True)
    assert device["state"] == "quarantined", device
    assert device["error"]["code"] == "invalid_zinfo"
    answer = gateway.get("first", 0, 512)
    assert (answer.status_code, answer.json()["code"]) == (409, "device_quarantined")
    for again in ("second", "third"):
        with Trickle(registry, image.blobs):
            device = gateway.register(again, spec)
            assert device["state"] == "failed", device
            assert device["error"]["code"] == "invalid_zinfo"
        gateway.restart()


def test_an_index_that_was_proven_is_preferred_to_any_supplied_table(
    gateway: Gateway, image: Image, registry: FaultRegistry, forged_table: bytes
) -> None:
    plain = gateway.register("plain", image.layer_spec())
    assert plain["state"] == "ready", plain
    with Trickle(registry, image.blobs):
        device = gateway.register("supplied", background(gateway, image, forged_table))
        assert (device["state"], device["verification"]) == ("ready", "verified"), device
        answer = gateway.http.get("/v1/devices/supplied/data")
        assert answer.content == image.tars[0]
        assert "-unproven-" not in answer.headers["etag"]
        assert answer.headers["blockgate-verification"] == "verified"


def test_a_forged_table_never_taints_what_is_proven_of_the_same_layer(
    gateway: Gateway, image: Image, registry: FaultRegistry, forged_table: bytes
) -> None:
    """Spans that were decoded from a forged table lie in no cache under the layer's own name."""
    tar = image.tars[0]
    with Trickle(registry, image.blobs):
        gateway.register("forged", background(gateway, image, forged_table))
        for start in range(0, len(tar), SPAN_BYTES):
            gateway.get("forged", start, min(start + 3000, len(tar)))
    gateway.settled("forged", verified=True)
    device = gateway.register("proven", image.layer_spec())
    assert (device["state"], device["verification"]) == ("ready", "verified"), device
    answer = gateway.http.get("/v1/devices/proven/data")
    assert answer.content == tar
    assert answer.headers["etag"] != gateway.http.head("/v1/devices/forged/data").headers.get("etag")
