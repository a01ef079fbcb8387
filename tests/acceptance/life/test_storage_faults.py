"""No resource is no damage: a call to the file system that fails deletes nothing, and is made again once it can pass."""

import errno
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.diskfault import DiskFaults
from tests.support.faultregistry import FaultRegistry
from tests.support.gateway import Gateway
from tests.support.life import (
    SETTINGS,
    artifact,
    attempt,
    heals,
    index_folder,
    metadata_digest,
    registered,
    seen,
    small_image,
    stays_ready,
)
from tests.support.processes import wait_until

ERRORS = {name: getattr(errno, name) for name in ("EIO", "EMFILE", "ENOMEM", "EACCES")}


@pytest.fixture
def faults(tmp_path: Path) -> DiskFaults:
    return DiskFaults(tmp_path / "faults")


@pytest.fixture
def gateway(tmp_path: Path, registry: FaultRegistry, faults: DiskFaults) -> Iterator[Gateway]:
    settings = SETTINGS | {"memory_cache": 0}
    with Gateway(tmp_path / "gateway", settings=settings, env=faults.env) as gateway:
        yield gateway


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Which files there are: a file that was written anew is another one."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("moment", ["running", "at the start"])
def test_a_layer_whose_index_cannot_be_read_for_a_while_is_kept_and_others_are_served(
    error: str, moment: str, gateway: Gateway, registry: FaultRegistry, faults: DiskFaults
) -> None:
    image = small_image(registry, "team/app")
    kept = registered(gateway, "app", image)
    lower, upper = kept.layer(image, 0), kept.layer(image, 1)
    folder = index_folder(gateway, image.blobs[0])
    before = files_of(folder)
    passes = len([r for r in registry.matching(image.blobs[0]) if r.range is None])
    if moment == "at the start":
        gateway.stop()
    with faults.failing(ERRORS[error], f"layers/{image.blobs[0].removeprefix('sha256:')}"):
        if moment == "at the start":
            gateway.start()
        gateway.drop_caches()
        assert attempt(gateway, "app", kept.content, kept.etag, span=upper), "the other layer is not served"
        # What is held open may be read without any call that fails.
        attempt(gateway, "app", kept.content, kept.etag, span=lower)
        device = stays_ready(gateway, kept)
        if faults.hits:
            assert (device["health"], bool(device["error"])) == ("degraded", True)
        assert files_of(folder) == before, "an index was removed or written anew"
    heals(gateway, kept)
    wait_until(lambda: stays_ready(gateway, kept)["health"] == "ok", what="health")
    assert files_of(folder) == before, "an index was removed or written anew"
    assert len([r for r in registry.matching(image.blobs[0]) if r.range is None]) == passes


@pytest.mark.parametrize("error", ["EIO", "EMFILE", "EACCES"])
def test_metadata_that_cannot_be_read_for_a_while_is_kept(
    error: str, gateway: Gateway, registry: FaultRegistry, faults: DiskFaults
) -> None:
    image = small_image(registry, "team/app")
    kept = registered(gateway, "app", image)
    path = artifact(gateway, metadata_digest(kept.device))
    inode = path.stat().st_ino
    with faults.failing(ERRORS[error], path.name):
        for span in ((0, 4096), None):
            attempt(gateway, "app", kept.content, kept.etag, span=span)
        stays_ready(gateway, kept)
        assert attempt(gateway, "app", kept.content, kept.etag, span=kept.layer(image, 1))
    heals(gateway, kept)
    assert path.stat().st_ino == inode, "metadata that could not be read was written anew"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EMFILE], ids=errno.errorcode.get)
@pytest.mark.parametrize("pattern", ["data/layers/", "data/(artifacts|tmp)/"], ids=["layers", "artifacts"])
def test_a_disk_that_fails_for_a_moment_only_delays_a_registration(
    error: int, pattern: str, gateway: Gateway, registry: FaultRegistry, faults: DiskFaults
) -> None:
    image = small_image(registry, "team/app")
    with faults.failing(error, pattern, times=2, writing=True):
        assert gateway.put("app", image.spec()).status_code == 202
        seen(gateway, "app", image)
        assert faults.hits, "nothing has failed in this test"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_a_disk_that_fails_while_a_layer_is_made_again_only_delays_it(
    error: int, gateway: Gateway, registry: FaultRegistry, faults: DiskFaults
) -> None:
    image = small_image(registry, "team/app")
    kept = registered(gateway, "app", image)
    gateway.stop()
    (index_folder(gateway, image.blobs[0]) / "spans.bin").unlink()
    with faults.failing(error, "data/(layers|tmp)/", writing=True):
        gateway.start()
        gateway.drop_caches()
        assert attempt(gateway, "app", kept.content, kept.etag, span=kept.layer(image, 1))
        assert not attempt(gateway, "app", kept.content, kept.etag, span=kept.layer(image, 0))
        stays_ready(gateway, kept)
        assert faults.hits, "nothing has failed in this test"
    heals(gateway, kept)


def test_the_soft_limit_of_descriptors_is_raised_at_the_start(tmp_path: Path) -> None:
    with Gateway(
        tmp_path / "gateway", settings=SETTINGS, wrapper=["prlimit", "--nofile=256:4000"]
    ) as gateway:
        soft, hard = resource.prlimit(gateway.running.pid, resource.RLIMIT_NOFILE)
    assert (soft, hard) == (4000, 4000)
