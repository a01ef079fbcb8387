"""What the node client tells Prometheus."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from nbd_client import metrics
from nbd_client.errors import InvalidOption
from nbd_client.metrics import NAMES, Served, SourceNumbers, expose, numbers_of, serve_metrics
from nbd_client.options import metrics_address
from nbd_client.server import WAIT_BOUNDS, Counters, NbdServer
from nbd_client.source.stack import open_source
from tests.support.nbdclient import nbd_client
from tests.support.processes import free_port
from tests.support.programs import program, run, started
from tests.support.rangeserver import range_server

CONTENT = bytes(range(256)) * 4096


def samples(text: str) -> dict[str, float]:
    """Samples by name and label values."""
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def everything() -> list[Served]:
    counters = Counters(reads=7, read_bytes=70, errors=1, connections=2, hits=4)
    counters.waited(0.004)
    counters.waited(100.0)
    return [
        Served("/dev/nbd0", "connected", counters, SourceNumbers(9, 8, 7, 6, 5, 4)),
        Served('a "quoted"\npath\\', "failed", Counters(), SourceNumbers()),
    ]


def test_every_metric_is_shown_with_its_numbers():
    text = expose(everything()).decode()
    assert {family.name for family in parse(text)} == NAMES
    shown = samples(text)
    assert shown["blockgate_nbd_requests_total /dev/nbd0 ok"] == 7
    assert shown["blockgate_nbd_requests_total /dev/nbd0 error"] == 1
    assert shown["blockgate_nbd_cache_requests_total /dev/nbd0 hit"] == 4
    assert shown["blockgate_nbd_cache_requests_total /dev/nbd0 miss"] == 2
    assert shown["blockgate_nbd_wait_seconds_bucket /dev/nbd0 0.005"] == 1
    assert shown["blockgate_nbd_wait_seconds_bucket /dev/nbd0 60"] == 1
    assert shown["blockgate_nbd_wait_seconds_bucket /dev/nbd0 +Inf"] == 2
    assert shown["blockgate_nbd_wait_seconds_sum /dev/nbd0"] == pytest.approx(100.004)
    assert shown["blockgate_nbd_devices connected"] == shown["blockgate_nbd_devices failed"] == 1
    assert [
        shown[f"blockgate_nbd_{name} /dev/nbd0"] for name in ("http_connections_total", "stalls_total")
    ] == [8, 5]
    assert list(WAIT_BOUNDS) == sorted(WAIT_BOUNDS)


@pytest.mark.real
def test_promtool_finds_nothing_to_say():
    promtool = program("promtool", "prometheus")
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=expose(everything()),
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


async def test_reads_hits_misses_and_retries_are_counted(tmp_path):
    def stumble(_request, answer):
        answer.status, answer.body = 503, b""
        server.faults.remove(stumble)

    async with range_server(CONTENT) as server:
        source = await open_source(server.url)
        served = NbdServer(source)
        await served.listen_unix(tmp_path / "s")
        server.faults.append(stumble)
        async with nbd_client(tmp_path / "s") as client:
            for _ in range(2):
                assert (await client.read(4096, 512)).payload == CONTENT[4096:4608]
        counters, numbers = served.counters, numbers_of(source)
        await served.aclose()
        await source.aclose()
    assert (counters.reads, counters.hits, sum(counters.waits), counters.errors) == (2, 1, 1, 0)
    assert counters.wait_seconds > 0
    assert (numbers.retries, numbers.stalls, numbers.received_bytes) == (1, 0, 512)
    assert numbers.http_requests == 3
    assert 1 <= numbers.http_connections <= 2
    assert numbers.cached_bytes >= 512


async def get(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


async def test_only_metrics_are_shown_and_nothing_ends_the_server(monkeypatch):
    server = await serve_metrics("127.0.0.1", 0, everything)
    port = server.sockets[0].getsockname()[1]
    end = b" HTTP/1.1\r\nHost: x\r\n\r\n"
    assert (await get(port, b"GET /" + end)).startswith(b"HTTP/1.1 404")
    assert (await get(port, b"POST /metrics" + end)).startswith(b"HTTP/1.1 405")
    head = await get(port, b"HEAD /metrics" + end)
    assert head.startswith(b"HTTP/1.1 200")
    assert head.endswith(b"\r\n\r\n")
    with monkeypatch.context() as hasty:
        hasty.setattr(metrics, "_REQUEST_SECONDS", 0.1)
        for broken in (b"", b"GET", b"\r\n\r\n", b"x" * 20_000):
            await get(port, broken)
    assert b"blockgate_nbd_requests_total" in await get(port, b"GET /metrics?x=1" + end)
    with pytest.raises(InvalidOption, match="cannot listen for metrics"):
        await serve_metrics("127.0.0.1", port, everything)
    server.close()


def test_a_port_alone_is_on_loopback():
    assert metrics_address("9101") == ("127.0.0.1", 9101)
    assert metrics_address("[::]:9101") == ("::", 9101)
    for text in ("", "x", "70000", "a:b:1"):
        with pytest.raises(InvalidOption):
            metrics_address(text)


async def test_serve_and_the_agent_show_metrics_where_they_are_told_to(tmp_path):
    async with range_server(CONTENT) as server:
        port = free_port()
        argv = ["-m", "nbd_client.cli", "serve", server.url, "--unix", tmp_path / "s", "--metrics", port]
        async with started(sys.executable, *argv, until="serving"):
            answer = await get(port, b"GET /metrics HTTP/1.1\r\n\r\n")
            assert b'blockgate_nbd_devices{state="connected"} 1.0' in answer
    port = free_port()
    argv = ["-m", "nbd_client.agent_main", "--run-dir", tmp_path / "run", "--metrics", port]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *map(str, argv), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(30):
            while True:
                try:
                    answer = await get(port, b"GET /metrics HTTP/1.1\r\n\r\n")
                    break
                except OSError:
                    await asyncio.sleep(0.02)
        assert b'blockgate_nbd_devices{state="connected"} 0.0' in answer
    finally:
        process.terminate()
        await process.wait()


async def test_who_does_not_ask_for_metrics_does_not_pay_for_them(tmp_path):
    code = (
        "import sys, nbd_client.agent_main; print('prometheus_client' in sys.modules, 'httpx' in sys.modules)"
    )
    done = await run(sys.executable, "-c", code)
    assert done.out.split() == ["False", "False"]
    assert "import prometheus_client" in await asyncio.to_thread(Path(metrics.__file__).read_text)
