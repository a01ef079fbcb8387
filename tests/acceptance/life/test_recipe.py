"""A device is its recipe: nothing that happens to the tag or to local copies gives it other bytes."""

import shutil

import pytest

from tests.support import gzips
from tests.support.faultregistry import FaultRegistry
from tests.support.gateway import Gateway
from tests.support.life import (
    artifact,
    heals,
    index_folder,
    metadata_digest,
    put_image,
    registered,
    seen,
    small_image,
)


@pytest.mark.parametrize(
    "lost", [("layers",), ("artifacts",), ("layers", "artifacts", "cache")], ids="+".join
)
def test_a_moved_tag_changes_nothing_of_a_device_whose_local_copies_are_lost(
    lost: tuple[str, ...], gateway: Gateway, registry: FaultRegistry
) -> None:
    kept = registered(gateway, "app", small_image(registry, "team/app"))
    assert small_image(registry, "team/app", seed=2).digest != kept.device["image"]["digest"]
    gateway.stop()
    for folder in lost:
        shutil.rmtree(gateway.data_dir / folder, ignore_errors=True)
    gateway.start()
    heals(gateway, kept)
    assert gateway.show("app")["image"]["digest"] == kept.device["image"]["digest"]


def test_local_copies_that_vanish_from_a_running_gateway_are_made_again(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    kept = registered(gateway, "app", small_image(registry, "team/app"))
    small_image(registry, "team/app", seed=2)
    shutil.rmtree(gateway.data_dir / "layers")
    artifact(gateway, metadata_digest(kept.device)).unlink()
    gateway.drop_caches()
    heals(gateway, kept)
    gateway.restart()
    heals(gateway, kept)


def test_generated_metadata_that_is_missing_is_made_again_with_the_same_digest(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    kept = registered(gateway, "app", small_image(registry, "team/app"))
    digest = metadata_digest(kept.device)
    gateway.stop()
    artifact(gateway, digest).unlink()
    gateway.start()
    heals(gateway, kept)
    assert artifact(gateway, digest).stat().st_size
    assert metadata_digest(gateway.show("app")) == digest


def test_one_lost_layer_is_made_again_while_the_others_are_served(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    image = small_image(registry, "team/app")
    kept = registered(gateway, "app", image)
    gateway.stop()
    shutil.rmtree(index_folder(gateway, image.blobs[0]))
    gateway.start()
    registry.latency_seconds = 0.2
    start, stop = kept.layer(image, 1)
    answer = gateway.get("app", start, stop)
    assert answer.status_code == 206, answer.text
    assert answer.content == kept.content[start:stop]
    heals(gateway, kept)


def test_a_name_that_is_registered_anew_follows_the_tag(gateway: Gateway, registry: FaultRegistry) -> None:
    """The recipe belongs to one registration: the next one asks what the tag means."""
    old = registered(gateway, "app", small_image(registry, "team/app"))
    moved = small_image(registry, "team/app", seed=2)
    assert gateway.http.delete("/v1/devices/app").status_code == 204
    gateway.put("app", moved.spec())
    new = seen(gateway, "app", moved)
    assert new.etag != old.etag


def test_layers_and_metadata_begin_at_multiples_of_4096(gateway: Gateway, registry: FaultRegistry) -> None:
    image = put_image(registry, "team/odd", [{"one": b"1"}, {"two": bytes(700)}, {"three": b"3" * 5000}])
    kept = registered(gateway, "odd", image)
    assert len(kept.content) % 4096 == 0
    for number in range(3):
        start, stop = kept.layer(image, number)
        assert start % 4096 == 0
        assert not any(kept.content[stop : -(-stop // 4096) * 4096])


def test_a_tar_has_its_exact_length(gateway: Gateway, registry: FaultRegistry) -> None:
    odd = bytes(512) + b"\x01" * 77
    image = put_image(registry, "team/odd", [odd])
    device = gateway.register("odd", image.layer_spec())
    assert device["state"] == "ready", device
    assert device["size"] == len(odd)
    answer = gateway.http.get("/v1/devices/odd/data")
    assert answer.headers["content-length"] == str(len(odd))
    assert answer.content == odd


def test_a_raw_device_is_the_blob_with_its_exact_length(gateway: Gateway, registry: FaultRegistry) -> None:
    image = small_image(registry, "team/app")
    blob = gzips.member(image.tars[0])
    assert len(blob) % 512
    device = gateway.register("raw", image.spec(layout="raw", layer={"index": 0}))
    assert (device["state"], device["size"]) == ("ready", len(blob)), device
    answer = gateway.http.get("/v1/devices/raw/data")
    assert answer.content == blob
