"""A fault that can pass makes no device ``failed``: it waits, says so, and is ready afterwards untouched by hand."""

import contextlib
import datetime as dt
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import faultregistry
from tests.support.faultregistry import Fault, FaultRegistry, Matching, any_request, blob_requests
from tests.support.gateway import Gateway
from tests.support.life import (
    REGISTRY_TROUBLE,
    SETTINGS,
    attempt,
    content,
    heals,
    index_folder,
    overwrite,
    put_image,
    registered,
    seen,
    small_image,
    stays_ready,
    to_manifests,
    waiting,
)
from tests.support.outage import Outage
from tests.support.processes import require_program, wait_until

ONCE: dict[str, tuple[Fault, Matching]] = {
    "a flipped bit in a manifest": (faultregistry.corrupt, to_manifests),
    "403 for a manifest": (faultregistry.status(403), to_manifests),
    "503 for a manifest": (faultregistry.status(503), to_manifests),
    "429 for a manifest": (faultregistry.status(429), to_manifests),
    "a flipped bit in a blob": (faultregistry.corrupt, blob_requests),
    "403 for a blob": (faultregistry.status(403), blob_requests),
    "503 for a blob": (faultregistry.status(503), blob_requests),
    "a blob cut short": (faultregistry.truncate(100), blob_requests),
}


@pytest.mark.parametrize("fault", ONCE)
def test_one_fault_during_a_registration_only_delays_it(
    fault: str, gateway: Gateway, registry: FaultRegistry
) -> None:
    image = small_image(registry, "team/app")
    registry.inject(ONCE[fault][0], matching=ONCE[fault][1])
    gateway.put("app", image.spec())
    seen(gateway, "app", image)


def test_a_registry_that_is_down_delays_a_registration_which_says_what_it_waits_for(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    image = small_image(registry, "team/app")
    with Outage(registry):
        assert gateway.put("app", image.spec()).status_code == 202
        progress = waiting(gateway, "app")
        assert progress["error"]["code"] == "registry_unreachable"
        assert progress["error"]["detail"]
        assert progress["attempt"] >= 1
        assert dt.datetime.fromisoformat(progress["retry_at"]).tzinfo is not None
        gateway.restart()
        assert waiting(gateway, "app")["error"]["code"] == "registry_unreachable"
    seen(gateway, "app", image)


def test_a_registry_that_is_down_while_a_layer_is_made_again_delays_its_reads_alone(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    image = small_image(registry, "team/app")
    kept = registered(gateway, "app", image)
    upper = kept.layer(image, 1)
    window = 12 + 2 * 32785 + 17
    gateway.drop_caches()
    assert attempt(gateway, "app", kept.content, kept.etag, span=upper)
    overwrite(index_folder(gateway, image.blobs[0]) / "checkpoints.zinfo", window, b"\x5a" * 32768)
    registry.inject(faultregistry.status(503), times=None, matching=any_request)
    lower = kept.layer(image, 0)
    for _ in range(2):
        assert not attempt(gateway, "app", kept.content, kept.etag, span=lower, trouble=REGISTRY_TROUBLE)
        assert attempt(gateway, "app", kept.content, kept.etag, span=upper), "a cached layer has stopped too"
        device = stays_ready(gateway, kept)
    assert device["health"] == "degraded"
    assert device["error"]["code"]
    gateway.restart()
    stays_ready(gateway, kept)
    registry.heal()
    heals(gateway, kept, trouble=REGISTRY_TROUBLE)
    wait_until(lambda: stays_ready(gateway, kept)["health"] == "ok", what="health")


def test_an_image_that_does_not_exist_is_a_final_failure_at_once(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    reference = {"image": f"{registry.host}/team/nothing:latest", "insecure": True}
    resolved = gateway.http.post("/v1/images/resolve", json=reference)
    assert (resolved.status_code, resolved.json()["code"]) == (422, "image_not_found")
    device = gateway.register("app", {"source": reference})
    assert (device["state"], device["error"]["code"]) == ("failed", "image_not_found")


def test_putting_the_specification_of_a_failed_device_tries_again(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    spec = {"source": {"image": f"{registry.host}/team/app:latest", "insecure": True}}
    assert gateway.register("app", spec)["state"] == "failed"
    image = small_image(registry, "team/app")
    answer = gateway.put("app", spec)
    assert (answer.status_code, answer.json()["state"]) == (202, "indexing"), answer.text
    seen(gateway, "app", image)


def test_another_specification_replaces_a_failed_device_and_no_other(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    spec = {"source": {"image": f"{registry.host}/team/nothing:latest", "insecure": True}}
    assert gateway.register("app", spec)["state"] == "failed"
    image = small_image(registry, "team/app")
    answer = gateway.put("app", image.spec())
    assert (answer.status_code, answer.json()["state"]) == (202, "indexing"), answer.text
    seen(gateway, "app", image)
    refused = gateway.put("app", spec)
    assert (refused.status_code, refused.json()["code"]) == (409, "device_exists")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MiB."""
    require_program("mount")
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24M", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.real
def test_a_disk_that_is_full_for_a_while_delays_a_registration(
    tmp_path: Path, small_disk: Path, registry: FaultRegistry
) -> None:
    image = put_image(registry, "team/app", [{"usr/one": content(3_000_000, 5)}])
    with Gateway(tmp_path / "gateway", settings=SETTINGS, data_dir=small_disk / "data") as gateway:
        filler = small_disk / "filler"
        with filler.open("wb") as file, contextlib.suppress(OSError):
            # Room for the catalog, none for the windows of 46 checkpoints.
            while os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize > 512 << 10:
                file.write(bytes(1 << 16))
                file.flush()
        assert gateway.put("app", image.spec()).status_code == 202
        assert waiting(gateway, "app")["error"]["code"] == "storage"
        filler.unlink()
        seen(gateway, "app", image)
