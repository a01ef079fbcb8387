"""A layer that is made again from the recipe: who needs it waits for a bounded time, and nobody else does."""

import random
import shutil
from concurrent.futures import ThreadPoolExecutor

from tests.support.faultregistry import FaultRegistry
from tests.support.gateway import Gateway
from tests.support.life import (
    Trickle,
    attempt,
    heals,
    index_folder,
    put_image,
    registered,
    small_image,
    stays_ready,
)
from tests.support.processes import wait_until


def test_a_read_of_a_layer_that_is_not_there_yet_ends_with_a_time_to_come_again(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    # Bytes that do not compress: a pass over them, which comes at 5 KB/s, outlasts the read by far.
    lower_files = {"one": random.Random(5).randbytes(200_000)}
    image = put_image(registry, "team/app", [lower_files, {"two": b"2" * 1000}])
    kept = registered(gateway, "app", image)
    gateway.stop()
    shutil.rmtree(index_folder(gateway, image.blobs[0]))
    lower, upper = kept.layer(image, 0), kept.layer(image, 1)
    with Trickle(registry, image.blobs[:1], ranges=True) as passes, ThreadPoolExecutor() as pool:
        gateway.start()
        gateway.drop_caches()
        reading = pool.submit(gateway.get, "app", *lower)
        wait_until(lambda: passes.running == 1, what="a pass")
        # While that read waits.
        assert attempt(gateway, "app", kept.content, kept.etag, span=upper)
        assert attempt(gateway, "app", kept.content, kept.etag, span=(0, 4096))
        stays_ready(gateway, kept)
        answer = reading.result(40)
        assert (answer.status_code, answer.json()["code"]) == (503, "index_being_made"), answer.text
        assert answer.json()["retryable"]
        assert int(answer.headers["retry-after"]) >= 1
        device = stays_ready(gateway, kept)
        assert (device["health"], bool(device["error"])) == ("degraded", True)
        assert passes.running <= 1, "the layer is made several times at once"
    heals(gateway, kept)
    wait_until(lambda: stays_ready(gateway, kept)["health"] == "ok", what="health")


def test_a_layer_that_several_devices_have_is_made_again_once(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    image = small_image(registry, "team/app")
    devices = [registered(gateway, f"app{number}", image) for number in range(4)]
    gateway.stop()
    shutil.rmtree(gateway.data_dir / "layers")
    before = [sum(r.range is None for r in registry.matching(blob)) for blob in image.blobs]
    gateway.start()
    gateway.drop_caches()
    for kept in devices:
        heals(gateway, kept)
    after = [sum(r.range is None for r in registry.matching(blob)) for blob in image.blobs]
    assert [new - old for old, new in zip(before, after, strict=True)] == [1, 1]


def test_a_layer_whose_blob_has_become_another_is_never_served(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    """A registry that gives other bytes under the layer's digest is refused, for as long as it does."""
    image = small_image(registry, "team/app")
    other = small_image(registry, "team/other", seed=9)
    kept = registered(gateway, "app", image)
    gateway.stop()
    shutil.rmtree(index_folder(gateway, image.blobs[0]))
    shutil.rmtree(gateway.data_dir / "cache", ignore_errors=True)
    blobs = registry._blobs
    true = blobs[image.blobs[0]]
    blobs[image.blobs[0]] = blobs[other.blobs[0]]
    gateway.start()
    for _ in range(3):
        assert not attempt(
            gateway,
            "app",
            kept.content,
            kept.etag,
            span=kept.layer(image, 0),
            trouble={502, 503, 504},
        )
    stays_ready(gateway, kept)
    assert attempt(gateway, "app", kept.content, kept.etag, span=kept.layer(image, 1))
    blobs[image.blobs[0]] = true
    heals(gateway, kept, trouble={502, 503, 504}, seconds=40)
