"""Both clients against a gateway that is made up: the same calls, the same requests, the same errors."""

from __future__ import annotations

import asyncio
import inspect
import json

import httpx
import pytest

import blockgate
from blockgate.calls import DeviceUnusable, GatewayRefused, GatewayUnreachable, GatewayWaits
from blockgate.client import AsyncClient, Client


class FakeGateway:
    """Answers by method and path, in order; the last answer of a path stays."""

    def __init__(self, answers: dict[tuple[str, str], list]) -> None:
        self.answers = answers
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answers = self.answers.get((request.method, request.url.path))
        if answers is None:
            problem = {"code": "route_not_found", "detail": "no such URL", "retryable": False}
            return httpx.Response(404, json=problem)
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)

    async def aside(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        return self(request)

    @property
    def calls(self) -> list[str]:
        return [f"{request.method} {request.url.raw_path.decode()}" for request in self.requests]


class Both:
    """Makes a call with the client of the test's kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(
        self, gateway: FakeGateway, method: str, *arguments, url="http://gateway:1", token=None, **named
    ):
        if self.kind == "sync":
            with Client(url, token=token, transport=httpx.MockTransport(gateway)) as client:
                found = getattr(client, method)(*arguments, **named)
                return list(found) if inspect.isgenerator(found) else found

        async def run():
            transport = httpx.MockTransport(gateway.aside)
            async with AsyncClient(url, token=token, transport=transport) as client:
                found = getattr(client, method)(*arguments, **named)
                return [each async for each in found] if inspect.isasyncgen(found) else await found

        return asyncio.run(run())


@pytest.fixture(params=["sync", "async"])
def call(request, monkeypatch):
    for name in ("BLOCKGATE_URL", "BLOCKGATE_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return Both(request.param)


def problem(status: int, code: str, *, retryable: bool = False, **headers: str) -> httpx.Response:
    body = {"code": code, "detail": "it is said why", "retryable": retryable}
    return httpx.Response(status, json=body, headers=headers)


READY = {"name": "a", "state": "ready", "image": {"digest": "sha256:1"}}
INDEXING = {"name": "a", "state": "indexing", "progress": {"phase": "download", "done": 1, "total": 2}}


def test_lists_are_read_page_by_page(call):
    gateway = FakeGateway(
        {
            ("GET", "/v1/devices"): [
                {"devices": [{"name": "a"}], "next": "a"},
                {"devices": [{"name": "b"}], "next": None},
            ]
        }
    )
    assert [device["name"] for device in call(gateway, "devices", state="ready")] == ["a", "b"]
    first, second = (dict(request.url.params) for request in gateway.requests)
    assert first == {"limit": "1000", "state": "ready"}
    assert second == {**first, "cursor": "a"}


@pytest.mark.parametrize(
    ("method", "arguments", "request_line", "body"),
    [
        ("device", ["a/b"], "GET /v1/devices/a%2Fb", None),
        ("register", ["a", {"source": {}}], "PUT /v1/devices/a", {"source": {}}),
        ("delete", ["a"], "DELETE /v1/devices/a", None),
        ("resolve", [{"image": "x"}], "POST /v1/images/resolve", {"image": "x"}),
        ("cache", [], "GET /v1/cache", None),
        ("drop_cache", [], "DELETE /v1/cache", None),
        ("stats", [], "GET /v1/stats", None),
        ("report", ["n", {"devices": []}], "POST /v1/nodes/n/report", {"devices": []}),
        (
            "store_credentials",
            ["c", ["ghcr.io"], "me", "secret"],
            "PUT /v1/credentials/c",
            {"hosts": ["ghcr.io"], "username": "me", "password": "secret"},
        ),
    ],
)
def test_a_call_is_one_request_with_the_token_in_its_header(call, method, arguments, request_line, body):
    gateway = FakeGateway({(request_line.split()[0], httpx.URL(request_line.split()[1]).path): [{}]})
    call(gateway, method, *arguments, token="secret-token")
    (request,) = gateway.requests
    assert gateway.calls == [request_line]
    assert request.headers["authorization"] == "Bearer secret-token"
    assert (json.loads(request.content) if request.content else None) == body


def test_a_gateway_below_a_path_is_asked_below_it(call):
    gateway = FakeGateway({("GET", "/blockgate/v1/cache"): [{"memory": {}}]})
    assert call(gateway, "cache", url="https://edge/blockgate/") == {"memory": {}}


def test_a_problem_says_its_code_its_detail_and_when_to_come_again(call):
    answer = problem(503, "overloaded", retryable=True, **{"retry-after": "7"})
    with pytest.raises(GatewayRefused, match=r"it is said why \[overloaded\]") as caught:
        call(FakeGateway({("GET", "/v1/cache"): [answer]}), "cache")
    error = caught.value
    assert (error.status, error.problem, error.retryable, error.retry_after_seconds) == (
        503,
        "overloaded",
        True,
        7,
    )
    assert error.code == "gateway_refused"


@pytest.mark.parametrize(
    ("status", "text"),
    [(200, "<html>sign in</html>"), (200, "[1]"), (502, "bad gateway"), (500, '["x"]')],
)
def test_what_is_no_gateway_is_told_so(call, status, text):
    gateway = FakeGateway({("GET", "/v1/cache"): [httpx.Response(status, text=text)]})
    with pytest.raises(GatewayRefused, match=r"no gateway|is it one") as caught:
        call(gateway, "cache")
    assert caught.value.status == status


def test_a_redirect_is_not_followed_with_the_token(call):
    gateway = FakeGateway(
        {("GET", "/v1/cache"): [httpx.Response(307, headers={"location": "http://elsewhere/"})]}
    )
    with pytest.raises(GatewayRefused) as caught:
        call(gateway, "cache", token="secret-token")
    assert caught.value.status == 307
    assert len(gateway.requests) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1:1", "http://[::1"])
def test_a_silent_gateway_is_told_with_its_url(call, url):
    with pytest.raises(GatewayUnreachable, match="BLOCKGATE_URL") as caught:
        if call.kind == "sync":
            with Client(url) as client:
                client.cache()
        else:

            async def run():
                async with AsyncClient(url) as client:
                    await client.cache()

            asyncio.run(run())
    assert url in caught.value.detail
    assert caught.value.retryable


def test_a_file_is_uploaded_once(call, tmp_path):
    (tmp_path / "zinfo").write_bytes(b"checkpoints" * 1000)
    gateway = FakeGateway({})
    with pytest.raises(GatewayRefused):
        call(gateway, "upload", tmp_path / "zinfo")  # neither HEAD nor PUT is known there
    digest = gateway.requests[0].url.path.rpartition("/")[2]
    path = f"/v1/artifacts/{digest}"
    gateway = FakeGateway({("HEAD", path): [httpx.Response(404), httpx.Response(200)], ("PUT", path): [{}]})
    assert (
        call(gateway, "upload", tmp_path / "zinfo") == call(gateway, "upload", tmp_path / "zinfo") == digest
    )
    assert [request.method for request in gateway.requests] == ["HEAD", "PUT", "HEAD"]
    assert gateway.requests[1].content == b"checkpoints" * 1000
    assert gateway.requests[1].headers["content-length"] == "11000"
    with pytest.raises(FileNotFoundError):
        call(gateway, "upload", tmp_path / "missing")


def test_a_device_is_waited_for_through_faults_of_the_gateway_itself(call):
    looks = [INDEXING, httpx.ConnectError("restarts"), problem(503, "storage", retryable=True), READY]
    told = []
    gateway = FakeGateway({("GET", "/v1/devices/a"): looks})
    assert call(gateway, "wait_ready", "a", report=lambda *step: told.append(step)) == READY
    assert told[0] == ("download", 1, 2)
    assert "restarts" in told[1][0]
    assert "storage" in told[2][0]


def test_a_gateway_that_is_away_from_the_start_is_not_waited_for(call):
    with pytest.raises(GatewayUnreachable):
        call(FakeGateway({("GET", "/v1/devices/a"): [httpx.ConnectError("no")]}), "wait_ready", "a")


@pytest.mark.parametrize(
    ("device", "error"),
    [
        (
            {"name": "a", "state": "failed", "error": {"code": "invalid_layer", "detail": "no tar"}},
            DeviceUnusable,
        ),
        ({**INDEXING, "progress": {"phase": "waiting", "done": 0, "total": 0, "error": None}}, GatewayWaits),
    ],
)
def test_waiting_ends_with_what_the_device_ended_in(call, device, error):
    gateway = FakeGateway({("GET", "/v1/devices/a"): [device]})
    with pytest.raises(error):
        call(gateway, "wait_ready", "a", patience_seconds=0)


def test_a_device_that_is_removed_meanwhile_is_waited_for_no_longer(call):
    gateway = FakeGateway({("GET", "/v1/devices/a"): [INDEXING, problem(404, "device_not_found")]})
    with pytest.raises(GatewayRefused, match="device_not_found"):
        call(gateway, "wait_ready", "a")


def test_events_are_read_as_they_come(call):
    text = 'event: device\ndata: {"state": "indexing"}\n\n: still here\n\nevent: gone\ndata: {}\n\n'
    gateway = FakeGateway({("GET", "/v1/devices/a/events"): [httpx.Response(200, text=text)]})
    assert call(gateway, "events", "a") == [("device", {"state": "indexing"}), ("gone", {})]
    with pytest.raises(GatewayRefused, match="route_not_found"):
        call(gateway, "events", "b")


def test_the_environment_says_where_and_as_whom(monkeypatch):
    monkeypatch.setenv("BLOCKGATE_URL", "http://there:1/")
    monkeypatch.setenv("BLOCKGATE_TOKEN", "of the environment")
    with blockgate.connect() as client:
        assert client.url == "http://there:1"
        assert client._http.headers["authorization"] == "Bearer of the environment"
    with blockgate.connect("http://here:2", token="given") as client:
        assert client.url == "http://here:2"
        assert client._http.headers["authorization"] == "Bearer given"


def test_each_call_says_what_it_does():
    assert Client.device.__doc__ == AsyncClient.device.__doc__ == "Everything about one device."
