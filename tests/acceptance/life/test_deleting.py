"""What is removed is gone: passes in every worker, and spans that were being written."""

import contextlib
import http.client
from pathlib import Path

from tests.support.faultregistry import FaultRegistry
from tests.support.gateway import Gateway
from tests.support.life import SETTINGS, Trickle, content, put_image, registered, small_image
from tests.support.processes import wait_until


def test_deleting_a_device_stops_its_pass_in_whatever_worker_it_runs(
    tmp_path: Path, registry: FaultRegistry
) -> None:
    images = [put_image(registry, f"team/app{n}", [{"one": content(1_000_000, n)}]) for n in range(6)]
    folder = tmp_path / "gateway"
    with (
        Gateway(folder, settings=SETTINGS, arguments=["--workers", "2"]) as gateway,
        Trickle(registry, [image.blobs[0] for image in images]) as passes,
    ):
        wait_until(lambda: len(gateway.workers()) == 2, what="two workers", seconds=60)
        for number, image in enumerate(images):
            assert gateway.put(f"app{number}", image.spec()).status_code == 202
        wait_until(lambda: passes.running >= 2, what="passes")
        for number in range(len(images)):
            # A connection of its own: the kernel spreads them over the workers.
            with contextlib.closing(
                http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
            ) as fresh:
                fresh.request("DELETE", f"/v1/devices/app{number}")
                assert fresh.getresponse().status == 204
        wait_until(lambda: passes.running == 0, what="the end of every pass", seconds=15)
        begun, sent = passes.begun, passes.sent_bytes
        for _ in range(50):
            assert gateway.http.get("/v1/devices").json()["devices"] == []
        assert (passes.begun, passes.sent_bytes) == (begun, sent), "the registry was asked for more"


def test_dropping_the_caches_right_after_a_cold_read_leaves_nothing(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    image = small_image(registry, "team/app")
    kept = registered(gateway, "app", image)
    start, _ = kept.layer(image, 0)
    left = []
    for number in range(60):
        gateway.drop_caches()
        assert gateway.get("app", start, start + 1000).content == kept.content[start : start + 1000]
        gateway.drop_caches()
        # A write that was under way has had these calls' time to come through.
        for _ in range(5):
            cache = gateway.http.get("/v1/cache").json()
        if gateway.span_files() or cache["memory"]["used_bytes"] or cache["disk"]["used_bytes"]:
            left.append(number)
    assert not left, f"a span stayed in {len(left)} of 60 tries"
