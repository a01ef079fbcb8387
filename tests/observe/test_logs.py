"""What a line of the log carries, and what it never does."""

import io
import json
import logging
import sys

import pytest
import structlog
from pydantic import SecretStr

from gateway import logs
from gateway.logs import REQUEST, RequestContext
from tests.support.faultregistry import FaultRegistry
from tests.support.gzips import member
from tests.support.inprocess import BASE, running

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.fixture
def written(monkeypatch):
    """Lines of a log set up as a service's, at level debug; what it was before is restored."""
    output = io.StringIO()
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers, root.level
    monkeypatch.setattr(sys, "stderr", output)
    logs.configure("json", "debug")
    structlog.configure(cache_logger_on_first_use=False)
    logs._events.clear()
    yield lambda: [json.loads(line) for line in output.getvalue().splitlines()]
    root.handlers, root.level = handlers, level
    structlog.configure(**before)
    logs._events.clear()


def test_secrets_are_redacted_by_type_and_by_name(written):
    structlog.get_logger("test").info(
        "signing in",
        given=SecretStr("hunter2"),
        nested={"password": "hunter2", "user": "me", "list": [SecretStr("hunter2")]},
        Authorization="Bearer hunter2",
    )
    (line,) = written()
    assert "hunter2" not in json.dumps(line)
    assert line["nested"] == {"password": "[redacted]", "user": "me", "list": ["[redacted]"]}
    assert line["given"] == line["Authorization"] == "[redacted]"


def test_a_line_is_one_line_whatever_is_in_it(written):
    structlog.get_logger("test").info("odd", text='a\nb"}\n{"event": "forged"', long="x" * 5000)
    (line,) = written()
    assert line["text"].startswith("a\nb")
    assert len(line["long"]) < 2100


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1.2_3", True), ("", False), ("a b", False), ("x" * 65, False), ("a\nb", False), ("<b>", False)],
)
def test_a_request_id_is_taken_over_when_it_is_a_plain_word(given, kept):
    request = RequestContext([(b"x-request-id", given.encode())])
    assert (request.id == given) == kept
    assert request.id == request.id
    assert 1 <= len(request.id) <= 64


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (PARENT, TRACE),
        (f"cc-{TRACE}-00f067aa0ba902b7-01-what-the-future-will-be", TRACE),
        (PARENT.upper(), ""),
        (f"ff-{TRACE}-00f067aa0ba902b7-01", ""),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (f"00-{TRACE}-00f067aa0ba902b7", ""),
        ("", ""),
    ],
)
def test_a_trace_is_taken_over_when_it_is_valid(given, found):
    assert RequestContext([(b"traceparent", given.encode())]).trace_id == found


def test_lines_carry_the_request_that_is_being_answered(written):
    token = REQUEST.set(RequestContext([(b"x-request-id", b"mine"), (b"traceparent", PARENT.encode())]))
    try:
        structlog.get_logger("test").info("inside")
    finally:
        REQUEST.reset(token)
    structlog.get_logger("test").info("outside")
    inside, outside = written()
    assert (inside["request_id"], inside["trace_id"]) == ("mine", TRACE)
    assert "request_id" not in outside


def test_notable_lines_are_kept_for_the_dashboard(written):
    log = structlog.get_logger("test")
    log.debug("chatter")
    log.error("registration", device="python", state="failed", code="blob_not_found", error="gone")
    log.info("request", path="/")
    (event,) = logs.recent_events()
    assert (event["level"], event["device"]) == ("error", "python")
    assert event["text"] == "registration: failed: blob_not_found: gone"


async def test_each_request_is_a_line_and_of_device_reads_one_in_many(written, tmp_path, images):
    async with running(tmp_path, images, log_level="debug") as gateway:
        await gateway.layer("base")
        for _ in range(200):
            await gateway.client.get("/v1/devices/base/data", headers={"range": "bytes=0-99"})
        await gateway.client.get("/livez", headers={"x-request-id": "look-here"})
    lines = [line for line in written() if line["event"] == "request"]
    reads = [line for line in lines if line["path"].endswith("/data")]
    assert len(reads) == 2
    assert reads[0]["one_in"] == 128
    (health,) = [line for line in lines if line["path"] == "/livez"]
    assert (health["request_id"], health["status"], health["level"]) == ("look-here", 200, "debug")


async def test_a_failed_answer_names_its_request_and_the_log_has_it(written, tmp_path, images, monkeypatch):
    async with running(tmp_path, images) as gateway:

        async def broken(**asked):
            raise RuntimeError("a defect")

        monkeypatch.setattr(gateway.services.catalog, "page", broken)
        answer = await gateway.client.get("/v1/devices")
        assert answer.status_code == 500
        assert "defect" not in answer.text
    lines = [line for line in written() if line.get("request_id") == answer.headers["x-request-id"]]
    assert {line["event"] for line in lines} >= {"request failed", "request"}


async def test_what_names_a_request_never_goes_to_a_registry(tmp_path, images):
    async with FaultRegistry() as registry, running(tmp_path, images) as gateway:
        image = registry.add_image("team/app", [member(BASE)])
        named = {"traceparent": PARENT, "tracestate": "vendor=1", "x-request-id": "mine", "baggage": "user=1"}
        gateway.client.headers.update(named)
        body = {
            "source": {"image": f"{registry.host}/{image.repository}:{image.tag}", "insecure": True},
            "layout": "tar",
            "layer": {"index": 0},
        }
        assert (await gateway.client.put("/v1/devices/base", json=body)).status_code == 202
        await gateway.settle()
        answer = await gateway.client.get("/v1/devices/base/data", headers={"range": "bytes=0-99"})
        assert answer.content == BASE[:100]
        assert registry.requests
        for request in registry.requests:
            assert not {name.lower() for name in request.headers} & set(named)
            assert TRACE not in str(request.headers)
