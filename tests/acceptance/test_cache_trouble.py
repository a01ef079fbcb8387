"""A cache disk that is full, read-only or of no size: reads go on, it is counted, and it recovers by itself."""

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import Figure
from tests.support.gateway import Document, Gateway
from tests.support.gzips import member
from tests.support.ocilayout import OciLayout, gzip_layer
from tests.support.processes import require_program, wait_until

_TMPFS_BYTES = 24 << 20


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory, small_tar: bytes) -> OciLayout:
    layout = OciLayout(tmp_path_factory.mktemp("layout"))
    layout.add_image([gzip_layer(member(small_tar), small_tar)], tag="one")
    return layout


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder whose ``cache`` is a disk of 24 MiB."""
    require_program("mount")
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    data = tmp_path_factory.mktemp("small-disk")
    cache = data / "cache"
    cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_TMPFS_BYTES}", "tmpfs", cache], check=True)
    try:
        yield data
    finally:
        subprocess.run(["umount", "--lazy", cache], check=True)


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, layout: OciLayout, small_disk: Path
) -> Iterator[Gateway]:
    # Without a memory every read has to do with the disk.
    settings = {"span_size": "262144", "memory_cache": 0}
    folder = tmp_path_factory.mktemp("gateway")
    with Gateway(folder, oci_roots=[layout.folder], settings=settings, data_dir=small_disk) as gateway:
        body = {"source": {"image": f"oci:{layout.folder}:one"}, "layout": "tar", "layer": {"index": 0}}
        assert gateway.register("one", body)["state"] == "ready"
        yield gateway


def cache(gateway: Gateway) -> Document:
    return dict(gateway.http.get("/v1/cache").json())


def reads_right(gateway: Gateway, tar: bytes) -> None:
    assert gateway.get("one", 0, len(tar)).content == tar


def leaves_nothing(gateway: Gateway) -> None:
    """No temporary file stays. A write that is under way has one, and it goes on after the reply: hence the wait."""
    wait_until(lambda: gateway.temporary_files() == [], what="the removal of temporary files", seconds=10)


def fills_again(gateway: Gateway, tar: bytes) -> None:
    """Writing resumes by itself; the pause after an error grows to at most half a minute."""

    def filled() -> bool:
        reads_right(gateway, tar)
        return bool(gateway.span_files())

    wait_until(filled, what="cache files", seconds=60)


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    filler = folder / "filler"
    with filler.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    assert os.statvfs(folder).f_bavail == 0
    try:
        yield
    finally:
        filler.unlink()


@pytest.mark.real
def test_a_full_disk_costs_nobody_a_read_and_is_used_again_when_there_is_room(
    gateway: Gateway, small_disk: Path, small_tar: bytes, figure: Figure
) -> None:
    gateway.drop_caches()
    with full(small_disk / "cache"):
        for _ in range(3):
            reads_right(gateway, small_tar)
        assert cache(gateway)["disk_errors"]["ENOSPC"] >= 1
        assert cache(gateway)["disk_bypassed"]
        leaves_nothing(gateway)
        assert gateway.span_files() == []
        ready = gateway.http.get("/readyz?verbose=1")
        assert ready.status_code == 200
        assert "uncached" in ready.text
    fills_again(gateway, small_tar)
    leaves_nothing(gateway)
    assert "Traceback" not in gateway.log
    figure(
        "full cache disk: write errors counted, wrong reads",
        f"{cache(gateway)['disk_errors']['ENOSPC']}, 0",
    )


@pytest.mark.real
def test_a_read_only_disk_costs_nobody_a_read_and_is_used_again_when_it_is_writable(
    gateway: Gateway, small_disk: Path, small_tar: bytes
) -> None:
    gateway.drop_caches()
    remount = ["mount", "-o", "remount,{}", small_disk / "cache"]
    subprocess.run([part.format("ro") if isinstance(part, str) else part for part in remount], check=True)
    try:
        # The pause after the trouble before may last a little yet; reads are right all the while.
        def noticed() -> bool:
            reads_right(gateway, small_tar)
            return cache(gateway)["disk_errors"].get("EROFS", 0) >= 1

        wait_until(noticed, what="the refusal", seconds=60)
        assert gateway.http.get("/readyz").status_code == 200
    finally:
        subprocess.run([part.format("rw") if isinstance(part, str) else part for part in remount], check=True)
    fills_again(gateway, small_tar)
    leaves_nothing(gateway)


def test_budgets_of_next_to_nothing_still_serve_right_bytes(
    tmp_path: Path, layout: OciLayout, small_tar: bytes
) -> None:
    memory, disk = 300_000, 700_000
    settings = {"span_size": "262144", "memory_cache": memory, "disk_cache": disk}
    with Gateway(tmp_path / "tiny", oci_roots=[layout.folder], settings=settings) as gateway:
        body = {"source": {"image": f"oci:{layout.folder}:one"}, "layout": "tar", "layer": {"index": 0}}
        assert gateway.register("one", body)["state"] == "ready"
        chance = random.Random(memory)
        ranges = [(start := chance.randrange(len(small_tar) - 1), start + 1) for _ in range(50)]
        ranges += [(0, len(small_tar)), (1, len(small_tar) - 1), (0, len(small_tar))]
        with gateway.reader("one") as reader:
            assert reader.differences(small_tar, ranges) == []
        state = cache(gateway)
        assert state["memory"]["used_bytes"] <= memory
        assert state["disk"]["used_bytes"] <= disk
        assert state["disk_errors"] == {}
