"""A registry that misbehaves: what a client of the gateway gets, never wrong bytes, and health again afterwards."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from gateway.layers.index import SPANS
from gateway.layers.table import SpanTable
from tests.acceptance.conftest import Figure
from tests.support import faultregistry
from tests.support.faultregistry import Fault, FaultRegistry, Reply, Request, StoredBlob
from tests.support.gateway import Gateway
from tests.support.gzips import member
from tests.support.processes import wait_until

_SETTINGS = {
    "span_size": "262144",
    "registry_attempt_seconds": 2,
    "registry_deadline_seconds": 4,
    "allow_addresses": ["127.0.0.0/8"],
}


@pytest.fixture(scope="module")
def layer(faulty: FaultRegistry, small_tar: bytes) -> StoredBlob:
    return faulty.add_image("team/app", [member(small_tar)]).layers[0]


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, faulty: FaultRegistry, layer: StoredBlob
) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("gateway"), settings=_SETTINGS) as gateway:
        source = {"image": f"{faulty.host}/team/app:latest", "insecure": True}
        body = {"source": source, "layout": "tar", "layer": {"index": 0}}
        device = gateway.register("app", body)
        assert device["state"] == "ready", device["error"]
        yield gateway


@pytest.fixture(scope="module")
def bounds(gateway: Gateway, layer: StoredBlob) -> list[tuple[int, int]]:
    table = SpanTable((gateway.index_folder(layer.digest) / SPANS).read_bytes())
    return [table.bounds(number) for number in range(table.count)]


@pytest.fixture(autouse=True)
def cold(gateway: Gateway, faulty: FaultRegistry) -> None:
    gateway.drop_caches()


def ranged(request: Request) -> bool:
    return request.range is not None and ("/blobs/" in request.path or request.to_storage)


def recovered(gateway: Gateway, tar: bytes, start: int, stop: int) -> None:
    """Right bytes again, and a device that says so, within the time that a breaker may stay open."""

    def right() -> bool:
        answer = gateway.get("app", start, stop)
        assert answer.status_code != 206 or answer.content == tar[start:stop]
        return answer.status_code == 206

    wait_until(right, what="a right read", seconds=60)
    wait_until(lambda: gateway.show("app")["state"] == "ready", what="the device", seconds=60)
    assert gateway.show("app")["error"] is None


# First of all: lasting faults use up the budget of retries, and then one fault is enough to be seen.
PASSING = {
    "one wrong range": faultregistry.wrong_content_range,
    "one truncated body": faultregistry.truncate(1000),
    "one reset": faultregistry.reset(10),
    "one 429": faultregistry.status(429, Retry_After="0"),
    "one 500": faultregistry.status(500),
}


@pytest.mark.parametrize("name", PASSING)
def test_a_fault_that_passes_costs_a_client_nothing_but_time(
    name: str, gateway: Gateway, faulty: FaultRegistry, bounds: list[tuple[int, int]], small_tar: bytes
) -> None:
    recovered(gateway, small_tar, *bounds[1])
    faulty.inject(PASSING[name], times=1, matching=ranged)
    answer = gateway.get("app", *bounds[7])
    assert answer.status_code == 206
    assert answer.content == small_tar[slice(*bounds[7])]


LASTING: dict[str, tuple[Fault, set[tuple[int, str]], bool]] = {
    "a wrong Content-Range": (
        faultregistry.wrong_content_range,
        {(502, "registry_wrong_range")},
        True,
    ),
    "a wrong total": (faultregistry.wrong_total, {(502, "registry_wrong_range")}, True),
    "another range": (faultregistry.other_range, {(502, "registry_wrong_range")}, True),
    "multipart": (faultregistry.multipart, {(502, "registry_wrong_range")}, True),
    "a truncated body": (faultregistry.truncate(1000), {(502, "registry_truncated")}, True),
    "a body truncated without a length": (
        faultregistry.truncate(1000, chunked=True),
        {(502, "registry_truncated")},
        True,
    ),
    "a drip": (faultregistry.drip(1, 0.05), {(504, "registry_timeout")}, True),
    "a stall": (faultregistry.stall(1000), {(504, "registry_timeout")}, True),
    "a reset": (
        faultregistry.reset(1000),
        {(502, "registry_unreachable"), (502, "registry_truncated")},
        True,
    ),
    "corrupted bytes": (faultregistry.corrupt, {(502, "span_mismatch")}, False),
    "401 for good": (faultregistry.status(401), {(502, "registry_unauthorized")}, False),
    "403 for good": (faultregistry.status(403), {(502, "registry_unauthorized")}, False),
    "404": (faultregistry.status(404), {(502, "blob_not_found")}, False),
    "429 with Retry-After": (
        faultregistry.status(429, Retry_After="1"),
        {(503, "registry_overloaded")},
        True,
    ),
    "500": (faultregistry.status(500), {(503, "registry_overloaded")}, True),
}


@pytest.mark.parametrize("name", LASTING)
def test_while_it_lasts_a_cold_read_fails_with_a_code_and_afterwards_all_is_well(
    name: str,
    gateway: Gateway,
    faulty: FaultRegistry,
    layer: StoredBlob,
    bounds: list[tuple[int, int]],
    small_tar: bytes,
    figure: Figure,
) -> None:
    fault, expected, passing = LASTING[name]
    warm, cold = bounds[2], bounds[random.Random(name).randrange(4, len(bounds))]
    recovered(gateway, small_tar, *warm)
    faulty.inject(fault, times=None, matching=ranged)
    try:
        answer = gateway.get("app", *cold)
        assert (answer.status_code, answer.json()["code"]) in expected, answer.text
        assert answer.json()["retryable"] is passing
        if "Retry-After" in name:
            assert int(answer.headers["retry-after"]) >= 1
        assert gateway.get("app", *warm).content == small_tar[slice(*warm)]
        shown = gateway.show("app")
        assert (shown["state"], shown["health"]) == ("ready", "degraded")
        assert shown["error"]["code"] == answer.json()["code"]
        assert gateway.http.get("/readyz").status_code == 200
    finally:
        faulty.heal()
    recovered(gateway, small_tar, *cold)
    figure(f"registry fault, {name}", f"{answer.status_code} {answer.json()['code']}")


def test_tokens_and_signed_urls_that_expire_in_mid_life_are_renewed(
    gateway: Gateway, faulty: FaultRegistry, bounds: list[tuple[int, int]], small_tar: bytes
) -> None:
    faulty.scheme, faulty.redirects = "bearer", True
    try:
        for number, expire in enumerate(
            [lambda: None, faulty.expire_tokens, faulty.expire_signatures, faulty.expire_tokens]
        ):
            expire()
            answer = gateway.get("app", *bounds[number])
            assert answer.status_code == 206, answer.text
            assert answer.content == small_tar[slice(*bounds[number])]
        assert gateway.show("app")["state"] == "ready"
        assert "X-Amz-Signature" not in gateway.log
    finally:
        faulty.scheme, faulty.redirects = "anonymous", False


def test_a_failure_in_mid_answer_ends_the_connection_short_and_never_pads(
    gateway: Gateway,
    faulty: FaultRegistry,
    layer: StoredBlob,
    bounds: list[tuple[int, int]],
    small_tar: bytes,
) -> None:
    """The first spans are there; the registry breaks on the later ones."""
    recovered(gateway, small_tar, 0, bounds[5][1])
    faulty.inject(faultregistry.status(404), times=None, matching=ranged)
    received = b""
    try:
        with gateway.http.stream("GET", "/v1/devices/app/data") as answer:
            assert answer.status_code == 200
            assert int(answer.headers["content-length"]) == len(small_tar)
            with pytest.raises(httpx.RemoteProtocolError, match=r"peer closed connection|incomplete"):
                for piece in answer.iter_raw():
                    received += piece
    finally:
        faulty.heal()
    assert bounds[4][1] <= len(received) < len(small_tar)
    assert small_tar.startswith(received)
    recovered(gateway, small_tar, 0, len(small_tar))


def down(request: Request, reply: Reply) -> None:
    """The connection is closed without an answer."""
    raise ConnectionResetError


def test_a_registry_that_is_down_leaves_cached_reads_and_readiness_alone(
    gateway: Gateway, faulty: FaultRegistry, bounds: list[tuple[int, int]], small_tar: bytes, figure: Figure
) -> None:
    recovered(gateway, small_tar, 0, bounds[9][1])
    before = len(faulty.requests)
    faulty.inject(down, times=None, matching=faultregistry.any_request)
    try:
        with gateway.reader("app") as reader:
            # Not from edge to edge: a sequential reader would be read ahead of.
            warm = [(start + 1, stop - 1) for start, stop in bounds[:10]]
            assert reader.differences(small_tar, warm) == []
        assert len(faulty.requests) == before
        with ThreadPoolExecutor(30) as clients:
            answers = list(clients.map(lambda at: gateway.get("app", *bounds[10 + at % 6]), range(30)))
        for answer in answers:
            assert answer.status_code in (502, 503, 504)
            assert answer.json()["code"] in {"registry_unreachable", "registry_timeout"}, answer.text
            assert answer.json()["retryable"]
        storm = len(faulty.requests) - before
        assert 1 <= storm <= 30
        assert gateway.http.get("/readyz").status_code == 200
        assert gateway.show("app")["state"] == "ready"
    finally:
        faulty.heal()
    recovered(gateway, small_tar, *bounds[12])
    figure("registry down: requests it got from 30 cold and 10 cached reads", storm)


def test_a_registry_that_ignores_ranges_is_left_alone_until_the_gateway_asks_again(
    gateway: Gateway, faulty: FaultRegistry, bounds: list[tuple[int, int]], small_tar: bytes, figure: Figure
) -> None:
    """It is remembered for a minute (or until a restart): such a registry cannot serve a device."""
    faulty.inject(faultregistry.ignore_range, times=None, matching=ranged)
    try:
        before = len(faulty.requests)
        for start, stop in bounds[3:6]:
            answer = gateway.get("app", start, stop)
            assert (answer.status_code, answer.json()["code"]) == (502, "registry_range_ignored")
        assert len(faulty.requests) == before + 1
        assert gateway.show("app")["health"] == "degraded"
        figure("registry fault, 200 for a range", f"{answer.status_code} {answer.json()['code']}")
    finally:
        faulty.heal()
    gateway.restart()
    recovered(gateway, small_tar, *bounds[3])
