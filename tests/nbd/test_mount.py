from __future__ import annotations

import asyncio
import gzip
import os
import random
import signal
from pathlib import Path

import pytest

from nbd_client.errors import InvalidOption, MountFailed
from nbd_client.mount import missing_for_fuse, mount_url, umount
from tests.support.gateway import Gateway
from tests.support.layers import tar_of
from tests.support.ocilayout import OciLayout, gzip_layer
from tests.support.programs import blockgate_nbd, program, run
from tests.support.rangeserver import range_server


@pytest.fixture
async def run_dir(tmp_path):
    """A folder for an agent, which is ended when it was started."""
    folder = tmp_path / "run"
    yield folder
    try:
        pid = int((folder / "agent.lock").read_text())
    except OSError:
        return
    os.kill(pid, signal.SIGTERM)
    async with asyncio.timeout(20):
        while (folder / "agent.sock").exists():
            await asyncio.sleep(0.02)


@pytest.fixture
async def image(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("one", "two words"):
        (tree / name).write_bytes(random.Random(name).randbytes(100_000))
    done = await run(program("mkfs.erofs", "erofs-utils"), tmp_path / "image.erofs", tree)
    assert done.status == 0, done.err
    return tmp_path / "image.erofs"


def fuse_or_skip() -> None:
    for name, package in (("nbdfuse", "libnbd-bin"), ("fusermount3", "fuse3"), ("mount", "mount")):
        program(name, package)
    missing = missing_for_fuse()
    if missing:
        pytest.skip("; ".join(missing))
    if os.geteuid() != 0 or "erofs" not in Path("/proc/filesystems").read_text().split():
        pytest.skip("mounting EROFS needs root and a kernel with erofs loaded")


@pytest.mark.real
async def test_mount_and_umount_through_fuse_and_a_loop_device(image, run_dir, tmp_path):
    fuse_or_skip()
    mountpoint = tmp_path / "a mountpoint"
    mountpoint.mkdir()
    env = {"BLOCKGATE_NBD_RUN_DIR": str(run_dir)}
    async with range_server(image.read_bytes()) as server:
        done = await blockgate_nbd(
            "mount", "-t", "erofs.fuse", "-o", "noatime", server.url, mountpoint, env=env
        )
        assert done.status == 0, done.err
        assert done.out.strip().endswith("(fuse)")
        try:
            for path in (tmp_path / "tree").iterdir():
                read = await asyncio.to_thread((mountpoint / path.name).read_bytes)
                assert read == path.read_bytes()
            listed = await blockgate_nbd("list", env=env)
            assert listed.out.strip().endswith(f"{image.stat().st_size}  {server.url} on {mountpoint}")
            told = await blockgate_nbd("doctor", env=env)
            assert "lost its server" not in told.out
        finally:
            done = await blockgate_nbd("umount", mountpoint, env=env)
        assert done.status == 0, done.err
        assert (await blockgate_nbd("list", env=env)).out == ""
    assert not mountpoint.is_mount()
    assert sorted(path.name for path in run_dir.iterdir()) == ["agent.lock", "agent.log", "agent.sock"]


@pytest.mark.real
async def test_umount_takes_away_what_a_killed_agent_left(image, run_dir, tmp_path):
    fuse_or_skip()
    mountpoint = tmp_path / "mountpoint"
    mountpoint.mkdir()
    env = {"BLOCKGATE_NBD_RUN_DIR": str(run_dir)}
    async with range_server(image.read_bytes()) as server:
        done = await blockgate_nbd("mount", "--via", "fuse", server.url, mountpoint, env=env)
        assert done.status == 0, done.err
        os.kill(int((run_dir / "agent.lock").read_text()), signal.SIGKILL)
        told = await blockgate_nbd("doctor", env=env)
        assert f"{mountpoint} lost its server" in told.out
        done = await blockgate_nbd("umount", mountpoint, env=env)
        assert done.status == 0, done.err
    assert not mountpoint.is_mount()
    assert sorted(path.name for path in run_dir.iterdir()) == ["agent.lock", "agent.log", "agent.sock"]


@pytest.mark.real
async def test_what_is_no_image_is_not_mounted_and_nothing_is_left_behind(run_dir, tmp_path):
    fuse_or_skip()
    (tmp_path / "mnt").mkdir()
    async with range_server(os.urandom(65536)) as server:
        with pytest.raises(MountFailed):
            await asyncio.to_thread(
                mount_url, server.url, tmp_path / "mnt", via="fuse", options=(), run_dir=run_dir
            )
    assert not (tmp_path / "mnt").is_mount()
    assert sorted(path.name for path in run_dir.iterdir()) == ["agent.lock", "agent.log", "agent.sock"]


def test_a_mountpoint_must_be_a_folder_and_ours(tmp_path):
    with pytest.raises(InvalidOption, match="not a folder"):
        mount_url("http://h/", tmp_path / "missing", via="fuse", options=(), run_dir=tmp_path)
    with pytest.raises(InvalidOption, match="was not mounted"):
        umount(tmp_path, run_dir=tmp_path)


@pytest.mark.real
async def test_an_image_is_mounted_by_name_through_the_gateway(run_dir, tmp_path):
    fuse_or_skip()
    content = random.Random(5).randbytes(300_000)
    raw = tar_of({"etc/motd": b"hello\n", "usr/lib/big": content})
    layout = OciLayout(tmp_path / "layout")
    layout.add_image([gzip_layer(gzip.compress(raw), raw)], tag="latest")
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    image = f"oci:{tmp_path / 'layout'}:latest"
    with Gateway(tmp_path / "gateway", oci_roots=[tmp_path / "layout"]) as gateway:
        env = {"BLOCKGATE_NBD_RUN_DIR": str(run_dir), "BLOCKGATE_URL": gateway.url}
        for _ in range(2):  # asked again, it is the device that exists
            done = await blockgate_nbd("mount", image, mountpoint, "--via", "fuse", env=env)
            assert done.status == 0, done.err + gateway.log
            try:
                assert await asyncio.to_thread((mountpoint / "usr/lib/big").read_bytes) == content
                assert await asyncio.to_thread((mountpoint / "etc/motd").read_text) == "hello\n"
            finally:
                done = await blockgate_nbd("umount", mountpoint, env=env)
            assert done.status == 0, done.err
        assert len(gateway.http.get("/v1/devices").json()["devices"]) == 1
        told = await blockgate_nbd("doctor", env=env)
        assert f"ok  gateway: {gateway.url} answers and lists its devices" in told.out
        assert "ok  clock: agrees with the gateway's" in told.out
        missing = await blockgate_nbd("mount", f"{image}x", mountpoint, "--via", "fuse", env=env)
        assert missing.status == 1
        assert "Traceback" not in missing.err
