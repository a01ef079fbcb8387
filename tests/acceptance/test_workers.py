"""Several workers behave as one gateway; a thousand clients of one cold span are one fetch."""

import asyncio
import contextlib
import http.client
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.layers.index import SPANS
from gateway.layers.table import SpanTable
from tests.acceptance.conftest import Figure
from tests.support.faultregistry import FaultRegistry, StoredBlob
from tests.support.gateway import Gateway
from tests.support.gzips import member
from tests.support.processes import wait_until
from tests.support.threadedregistry import Held

_CLIENTS = 1000


@pytest.fixture(scope="module")
def layer(faulty: FaultRegistry, small_tar: bytes) -> StoredBlob:
    return faulty.add_image("team/app", [member(small_tar)]).layers[0]


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def gateway(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, layer: StoredBlob
) -> Iterator[Gateway]:
    settings = {"span_size": "262144"}
    arguments = ["--workers", str(request.param)]
    folder = tmp_path_factory.mktemp("gateway")
    with Gateway(folder, settings=settings, arguments=arguments) as gateway:
        if request.param > 1:
            wait_until(lambda: len(listening(gateway)) == request.param, what="all workers", seconds=60)
        yield gateway


def listening(gateway: Gateway) -> set[int]:
    """Workers that have opened their services: the catalog's generation is mapped."""
    found = set()
    for pid in gateway.workers():
        with Path(f"/proc/{pid}/maps").open() as maps:
            if "locks/generation" in maps.read():
                found.add(pid)
    return found


def body(faulty: FaultRegistry) -> dict:
    source = {"image": f"{faulty.host}/team/app:latest", "insecure": True}
    return {"source": source, "layout": "tar", "layer": {"index": 0}}


def seen_by_new_connections(gateway: Gateway, path: str, count: int = 24) -> set[int]:
    """Statuses that fresh connections get: the kernel spreads them over the workers."""
    statuses = set()
    for _ in range(count):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)) as fresh:
            fresh.request("GET", path, headers={"Range": "bytes=0-99"})
            statuses.add(fresh.getresponse().status)
    return statuses


async def test_a_thousand_clients_of_one_cold_span_are_one_fetch(
    gateway: Gateway, faulty: FaultRegistry, layer: StoredBlob, small_tar: bytes, figure: Figure
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _CLIENTS + 500:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    device = await asyncio.to_thread(gateway.register, "herd", body(faulty))
    assert device["state"] == "ready", device
    table = SpanTable((gateway.index_folder(layer.digest) / SPANS).read_bytes())
    number = 5
    start, stop = table.bounds(number)
    faulty.latency_seconds = 1.0
    before = faulty.count(layer.digest, ranges_only=True)

    async def client() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        head = f"GET /v1/devices/herd/data HTTP/1.1\r\nHost: x\r\nRange: bytes={start}-{start + 999}\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 206"), answer[:300]
        return answer.partition(b"\r\n\r\n")[2]

    try:
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*(client() for _ in range(_CLIENTS)))
    finally:
        faulty.latency_seconds = 0.0
    assert set(answers) == {small_tar[start : start + 1000]}
    fetches = faulty.count(layer.digest, ranges_only=True) - before
    assert fetches == 1
    # Whatever worker is asked from now on has it from the disk.
    for _ in range(8):
        answer = await asyncio.to_thread(
            httpx.get, gateway.data_url("herd"), headers={"Range": f"bytes={start}-{stop - 1}"}
        )
        assert answer.content == small_tar[start:stop]
    assert faulty.count(layer.digest, ranges_only=True) - before == 1
    workers = len(gateway.workers()) or 1
    figure(f"upstream fetches for {_CLIENTS} clients of one cold span, {workers} worker(s)", fetches)


def test_registering_and_deleting_is_seen_by_every_worker(gateway: Gateway, faulty: FaultRegistry) -> None:
    assert gateway.register("seen", body(faulty))["state"] == "ready"
    assert seen_by_new_connections(gateway, "/v1/devices/seen/data") == {206}
    assert seen_by_new_connections(gateway, "/v1/devices/seen") == {200}
    assert gateway.http.delete("/v1/devices/seen").status_code == 204
    assert seen_by_new_connections(gateway, "/v1/devices/seen/data") == {404}
    assert seen_by_new_connections(gateway, "/v1/devices/seen") == {404}


def test_a_registration_whose_worker_is_killed_is_taken_over(
    gateway: Gateway, faulty: FaultRegistry, small_tar: bytes
) -> None:
    if len(gateway.workers()) < 2:
        return  # a lone worker is the gateway; its crash is another file's matter
    digest = faulty.add_image("team/orphan", [member(small_tar, level=3)]).layers[0].digest
    source = {"image": f"{faulty.host}/team/orphan:latest", "insecure": True}
    with Held(faulty, digest):
        gateway.put("orphan", {"source": source, "layout": "tar", "layer": {"index": 0}})
        wait_until(lambda: bool(gateway.temporary_files()), what="a pass")
        owner = int(gateway.temporary_files()[0].name.split(".")[-3])
        assert owner in gateway.workers()
        gateway.http.close()
        gateway.http = httpx.Client(base_url=gateway.url, timeout=60, trust_env=False)
        os.kill(owner, signal.SIGKILL)
        wait_until(lambda: len(listening(gateway) - {owner}) == 2, what="a new worker", seconds=60)
    device = gateway.settled("orphan")
    assert device["state"] == "ready", device
    assert gateway.get("orphan", 0, len(small_tar)).content == small_tar
    assert gateway.temporary_files() == []


def test_a_killed_worker_is_replaced_and_a_killed_gateway_leaves_none(
    gateway: Gateway, faulty: FaultRegistry, small_tar: bytes
) -> None:
    workers = gateway.workers()
    if not workers:
        assert gateway.stop() == 0  # one worker is the gateway itself
        return
    assert gateway.register("killed", body(faulty))["state"] == "ready"
    gateway.http.close()
    gateway.http = httpx.Client(base_url=gateway.url, timeout=60, trust_env=False)
    os.kill(workers[0], signal.SIGKILL)
    wait_until(
        lambda: len(listening(gateway)) == 2 and workers[0] not in gateway.workers(),
        what="a new worker",
        seconds=60,
    )
    assert gateway.get("killed", 0, 5000).content == small_tar[:5000]
    assert seen_by_new_connections(gateway, "/v1/devices/killed/data") == {206}

    workers = gateway.workers()
    gateway.kill()
    wait_until(lambda: not any(alive(pid) for pid in workers), what="the workers' end", seconds=30)


def alive(pid: int) -> bool:
    try:
        with Path(f"/proc/{pid}/stat").open() as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
