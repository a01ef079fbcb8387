"""What can pass is tried again without end, what is in doubt several times, and what cannot pass ends at once."""

import json
import time
from typing import Any

import pytest

from tests.campaigns.campaign import FULL
from tests.support import faultregistry
from tests.support.faultregistry import (
    LAYER_TYPE,
    MANIFEST_TYPE,
    Fault,
    FaultRegistry,
    Matching,
    any_request,
    blob_requests,
    digest_of,
)
from tests.support.gateway import Document, Gateway
from tests.support.life import Image, put_image, seen, small_image, to_manifests, waiting
from tests.support.outage import Outage


def followed(gateway: Gateway, name: str, *, seconds: float = 90) -> tuple[Document, list[Document]]:
    """The device at its end, and each progress that it told on the way there."""
    told: list[Document] = []
    deadline = time.monotonic() + seconds
    while True:
        device = gateway.show(name)
        if device["state"] != "indexing":
            return device, told
        if device["progress"] and device["progress"] not in told:
            told.append(device["progress"])
        assert time.monotonic() < deadline, f"{name} comes to no end: {told[-3:]}"
        time.sleep(0.02)


DOUBTS: dict[str, tuple[Fault, Matching]] = {
    "401 for a manifest": (faultregistry.status(401), to_manifests),
    "403 for a manifest": (faultregistry.status(403), to_manifests),
    "403 for a blob": (faultregistry.status(403), blob_requests),
    "other bytes of a manifest": (faultregistry.corrupt, to_manifests),
    "other bytes of a blob": (faultregistry.corrupt, blob_requests),
}


# Each doubt lasts as long as its tries: all of them are for the long form.
@pytest.mark.parametrize("doubt", DOUBTS if FULL else ["403 for a blob"])
def test_a_doubtful_fault_that_stays_ends_in_failed_after_several_tries(
    doubt: str, gateway: Gateway, registry: FaultRegistry
) -> None:
    image = small_image(registry, "team/app")
    fault, matching = DOUBTS[doubt]
    registry.inject(fault, times=None, matching=matching)
    assert gateway.put("app", image.spec()).status_code == 202
    device, told = followed(gateway, "app")
    assert device["state"] == "failed", device
    waits = [progress for progress in told if progress["phase"] == "waiting"]
    # The error that it waited with is the one that it fails with.
    assert {progress["error"]["code"] for progress in waits} == {device["error"]["code"]}, told
    attempts = [progress["attempt"] for progress in waits]
    assert attempts == sorted(attempts)
    assert attempts[-1] >= 3, attempts
    registry.heal()
    assert gateway.put("app", image.spec()).status_code == 202
    seen(gateway, "app", image)


def test_a_registry_that_refuses_connections_is_waited_for_longer_than_any_doubt_lasts(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    image = small_image(registry, "team/app")
    with Outage(registry):
        assert gateway.put("app", image.spec()).status_code == 202
        progress = waiting(gateway, "app")
        assert progress["error"]["code"] == "registry_unreachable"
        deadline = time.monotonic() + 90
        # In the long form more tries than a fault in doubt gets.
        while progress["attempt"] < (6 if FULL else 3):
            assert time.monotonic() < deadline, progress
            time.sleep(0.05)
            progress = waiting(gateway, "app", seconds=60)
    seen(gateway, "app", image, seconds=60)


def no_zstd(registry: FaultRegistry) -> Image:
    """An image whose layer says that it is zstd, and is none: one version cannot read it, another finds it invalid."""
    image = small_image(registry, "team/app")
    document = {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [digest_of(b"no tar")]},
    }
    config = registry.add_blob(json.dumps(document).encode())
    layer = registry.add_blob(b"no layer")
    registry.add_manifest(
        "team/app",
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": faultregistry.CONFIG_TYPE, "digest": config.digest, "size": config.size},
            "layers": [
                {
                    "mediaType": LAYER_TYPE.replace("gzip", "zstd"),
                    "digest": layer.digest,
                    "size": layer.size,
                }
            ],
        },
        MANIFEST_TYPE,
        "latest",
    )
    return image


def no_tar(registry: FaultRegistry) -> Image:
    """An image whose layer is a whole gzip, and its content no tar."""
    return put_image(registry, "team/app", [b"no tar at all" * 1000])


FINAL = {"no zstd": no_zstd, "no tar": no_tar}


@pytest.mark.parametrize("layer", FINAL)
def test_a_layer_that_can_never_be_read_is_a_final_failure_at_once(
    layer: str, gateway: Gateway, registry: FaultRegistry
) -> None:
    image = FINAL[layer](registry)
    assert gateway.put("app", image.spec()).status_code == 202
    device, told = followed(gateway, "app")
    assert device["state"] == "failed", device
    assert device["error"]["code"] in ("unsupported_layer", "invalid_layer"), device
    assert not [progress for progress in told if progress["phase"] == "waiting"], told


def test_a_platform_that_an_image_does_not_have_is_a_final_failure_at_once(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    image = small_image(registry, "team/app")
    spec = image.spec()
    spec["source"]["platform"] = "linux/riscv64"
    assert gateway.put("app", spec).status_code == 202
    device, told = followed(gateway, "app")
    assert (device["state"], device["error"]["code"]) == ("failed", "platform_not_found"), device
    assert not [progress for progress in told if progress["phase"] == "waiting"], told


@pytest.mark.parametrize("reference", ["", "team/Upper:x", "host/name:tag:tag", "oci:"])
def test_a_malformed_reference_is_refused_and_keeps_no_name(reference: str, gateway: Gateway) -> None:
    answer = gateway.put("app", {"source": {"image": reference}})
    assert answer.status_code in (400, 422), answer.text
    assert gateway.http.get("/v1/devices/app").status_code == 404


def test_a_fault_that_passes_after_some_tries_leaves_no_trace(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    image = small_image(registry, "team/app")
    registry.inject(faultregistry.status(403), times=2, matching=any_request)
    assert gateway.put("app", image.spec()).status_code == 202
    kept = seen(gateway, "app", image)
    shown: dict[str, Any] = gateway.show("app")
    assert (shown["health"], shown["error"], shown["progress"]) == ("ok", None, None)
    assert shown["etag"] == kept.etag
