"""Whichever worker answers, it answers for all of them."""

import os
import signal

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.gateway import Gateway
from tests.support.inprocess import make_layout
from tests.support.processes import wait_until

WORKERS = 2
READS = 40


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    layout = make_layout(tmp_path_factory.mktemp("oci") / "images").folder
    folder = tmp_path_factory.mktemp("gateway")
    settings = {"span_size": 65536}
    with Gateway(
        folder, oci_roots=[layout.parent], arguments=["--workers", str(WORKERS)], settings=settings
    ) as gateway:
        wait_until(
            lambda: sample(gateway, "blockgate_workers") == WORKERS, what="the second worker", seconds=60
        )
        source = {"image": f"oci:{layout}:image"}
        gateway.register("base", {"source": source, "layout": "tar", "layer": {"index": 0}})
        yield gateway


def fresh(gateway, path, **fields):
    """Asked over a new connection, which any worker may take."""
    answer = httpx.get(f"{gateway.url}{path}", headers=fields, timeout=30, trust_env=False)
    answer.raise_for_status()
    return answer


def sample(gateway, name, **labels):
    families = text_string_to_metric_families(fresh(gateway, "/metrics").text)
    found = [
        each.value
        for family in families
        for each in family.samples
        if each.name == name and each.labels == labels
    ]
    return found[0] if found else 0


def data_requests(gateway):
    labels = {"method": "GET", "route": "/v1/devices/{name}/data", "code": "206"}
    return sample(gateway, "blockgate_requests_total", **labels)


def test_counts_reads_and_statistics_are_of_all_workers_and_outlive_them(gateway):
    for number in range(READS):
        fresh(gateway, "/v1/devices/base/data", range=f"bytes={number * 1000}-{number * 1000 + 99}")
    # A worker tells the others once a second.
    wait_until(lambda: data_requests(gateway) == READS, what="the sum")
    assert [data_requests(gateway) for _ in range(10)] == [READS] * 10

    def bytes_sent():
        return sum(
            sample(gateway, "blockgate_read_bytes_total", source=source)
            for source in ("memory", "disk", "upstream", "local")
        )

    assert bytes_sent() == READS * 100
    shown = fresh(gateway, "/v1/stats").json()
    assert shown["workers"] == WORKERS
    assert shown["traffic"]["requests"] == READS
    assert shown["devices"][0]["served_bytes"] == READS * 100
    assert sum(shown["series"]["requests"]) == READS

    def spans_read():
        return sum(fresh(gateway, "/v1/devices/base/map").json()["cells"]["reads"])

    def agreed():
        # What one worker knows of another's reads is up to two seconds old; then all say the same. So many are asked that
        # they are not all the same worker.
        sums = {spans_read() for _ in range(24)}
        return len(sums) == 1 and sums.pop() >= READS

    wait_until(agreed, what="the map's sum, from every worker")
    total = spans_read()
    assert [spans_read() for _ in range(6)] == [total] * 6

    fresh(gateway, "/metrics")
    wait_until(lambda: data_requests(gateway) == READS, what="the sum")
    victim = gateway.workers()[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(
        lambda: victim not in gateway.workers() and len(gateway.workers()) == WORKERS,
        what="another worker",
        seconds=60,
    )
    # What the one that was killed had counted stays counted; it may be the one that answers no more.
    assert data_requests(gateway) == READS
    wait_until((gateway.data_dir / "run" / "ended.json").exists, what="the new worker's start", seconds=60)
    assert data_requests(gateway) == READS
