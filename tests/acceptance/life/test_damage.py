"""Local copies that are damaged are made again; the process lives, and other layers are served meanwhile."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.faultregistry import FaultRegistry
from tests.support.gateway import Gateway
from tests.support.life import (
    SETTINGS,
    Image,
    artifact,
    attempt,
    cut_short,
    flip,
    heals,
    index_folder,
    metadata_digest,
    registered,
    seen,
    small_image,
    stays_ready,
)

DAMAGE: dict[str, Callable[[Path], None]] = {"cut short": cut_short, "removed": Path.unlink, "flipped": flip}


def test_checkpoints_cut_short_under_a_running_gateway_cost_their_layer_a_pass_and_nothing_else(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    image = small_image(registry, "team/app")
    kept = registered(gateway, "app", image)
    process = gateway.running.pid
    gateway.drop_caches()
    cut_short(index_folder(gateway, image.blobs[0]) / "checkpoints.zinfo")
    assert attempt(gateway, "app", kept.content, kept.etag, span=kept.layer(image, 1))
    heals(gateway, kept)
    assert gateway.running.returncode is None
    assert gateway.running.pid == process


@pytest.mark.parametrize("damage", DAMAGE)
def test_metadata_that_is_damaged_while_the_gateway_is_stopped_is_made_again(
    damage: str, gateway: Gateway, registry: FaultRegistry
) -> None:
    kept = registered(gateway, "app", small_image(registry, "team/app"))
    gateway.stop()
    DAMAGE[damage](artifact(gateway, metadata_digest(kept.device)))
    gateway.start()
    heals(gateway, kept)


@pytest.mark.parametrize("damage", ["cut short", "removed"])
def test_metadata_that_is_damaged_under_a_running_gateway_is_made_again(
    damage: str, gateway: Gateway, registry: FaultRegistry
) -> None:
    kept = registered(gateway, "app", small_image(registry, "team/app"))
    DAMAGE[damage](artifact(gateway, metadata_digest(kept.device)))
    for span in ((0, 4096), (1024, 2048), None):
        heals(gateway, kept, span=span)


def test_supplied_metadata_that_is_lost_heals_when_it_is_uploaded_again(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    image = small_image(registry, "team/app")
    made = registered(gateway, "made", image)
    metadata = artifact(gateway, metadata_digest(made.device)).read_bytes()
    gateway.http.delete("/v1/devices/made")
    kept = registered(gateway, "app", image, metadata=gateway.upload(metadata))
    cut_short(artifact(gateway, metadata_digest(kept.device)))
    gateway.restart()
    # The half that is there may be served or not; the other cannot be.
    attempt(gateway, "app", kept.content, kept.etag, span=(0, 512))
    assert not attempt(gateway, "app", kept.content, kept.etag)
    stays_ready(gateway, kept)
    gateway.upload(metadata)
    heals(gateway, kept)


@pytest.fixture
def damaged(gateway: Gateway, registry: FaultRegistry) -> Image:
    """An image whose lower layer was indexed for a device that is gone."""
    image = small_image(registry, "team/app")
    assert gateway.register("before", image.layer_spec())["state"] == "ready"
    gateway.stop()
    return image


def test_facts_of_an_index_that_were_changed_never_make_a_device_short(
    gateway: Gateway, damaged: Image
) -> None:
    facts = index_folder(gateway, damaged.blobs[0]) / "index.json"
    document = json.loads(facts.read_text())
    document["size"] -= 1024
    facts.write_text(json.dumps(document))
    gateway.start()
    device = gateway.register("after", damaged.layer_spec())
    assert (device["state"], device["size"]) == ("ready", len(damaged.tars[0])), device
    for name in ("before", "after"):
        answer = gateway.http.get(f"/v1/devices/{name}/data")
        assert answer.content == damaged.tars[0], answer.status_code


def test_a_table_of_contents_that_was_changed_never_makes_another_tree(
    gateway: Gateway, damaged: Image
) -> None:
    contents = index_folder(gateway, damaged.blobs[0]) / "toc.bin"
    changed = contents.read_bytes().replace(b"usr/one", b"usr/0ne")
    assert changed != contents.read_bytes()
    contents.write_bytes(changed)
    gateway.start()
    gateway.put("after", damaged.spec())
    seen(gateway, "after", damaged)


@pytest.mark.timeout(240)
def test_more_devices_than_descriptors_are_all_served_and_nothing_is_taken_for_damaged(
    tmp_path: Path, registry: FaultRegistry
) -> None:
    limit, count = 80, 60
    wrapper = ["prlimit", f"--nofile={limit}:{limit}"]
    with Gateway(tmp_path / "gateway", settings=SETTINGS, wrapper=wrapper) as gateway:
        images = [small_image(registry, f"team/app{number}", number, size=3000) for number in range(count)]
        for number, image in enumerate(images):
            assert gateway.put(f"app{number}", image.spec()).status_code == 202
        kept = [seen(gateway, f"app{number}", image) for number, image in enumerate(images)]
        indexes = {path: path.stat().st_ino for path in (gateway.data_dir / "layers").rglob("index.json")}
        gateway.restart()
        for _ in range(2):
            for device in kept:
                heals(gateway, device)
            assert len(os.listdir(f"/proc/{gateway.running.pid}/fd")) < limit
        after = {path: path.stat().st_ino for path in (gateway.data_dir / "layers").rglob("index.json")}
        assert after == indexes, "an index was made again for want of a descriptor"
