from __future__ import annotations

import asyncio
import gzip
import os
import random
import signal
from pathlib import Path

import httpx
import pytest

from nbd_client.errors import GatewayError, InvalidOption, MountFailed
from nbd_client.gateway import GatewayClient
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


class FakeGateway:
    """The contract's control calls, in memory."""

    def __init__(self, *states: dict, conflict: bool = False) -> None:
        self.conflict = conflict
        self.states = list(states)
        self.artifacts: dict[str, bytes] = {}
        self.registered: dict[str, bytes] = {}
        self.calls: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        kind, name = request.url.path.split("/")[2:4]
        self.calls.append(request.method)
        if kind == "artifacts":
            if request.method == "PUT":
                self.artifacts[name] = request.read()
            return httpx.Response(200 if name in self.artifacts else 404)
        if request.method == "PUT":
            if self.conflict:
                return httpx.Response(409, json={"title": "Conflict"})
            self.registered[name] = request.read()
            return httpx.Response(202, json={})
        if request.method == "DELETE":
            return httpx.Response(204)
        if not self.states[0]:
            self.states.pop(0)
            return httpx.Response(404, json={"title": "Not Found"})
        return httpx.Response(200, json=self.states.pop(0))

    def client(self) -> GatewayClient:
        return GatewayClient("http://gateway:1", transport=httpx.MockTransport(self))


READY = {"state": "ready", "data_url": "/v1/devices/a/data", "image": {"digest": "sha256:1"}}


def test_an_image_is_registered_and_waited_for(monkeypatch):
    monkeypatch.setattr("nbd_client.gateway._POLL_SECONDS", 0)
    gateway = FakeGateway(
        {},
        {"state": "indexing", "progress": {"phase": "download", "done": 1, "total": 2}},
        {"state": "indexing", "progress": None},
        READY,
    )
    steps = []
    with gateway.client() as client:
        client.register("a", {"source": {"image": "x"}})
        url = client.wait_ready("a", "sha256:1", lambda *step: steps.append(step))
    assert url == "http://gateway:1/v1/devices/a/data"
    assert steps == [("download", 1, 2), ("indexing", 0, None)]
    assert gateway.registered["a"] == b'{"source":{"image":"x"}}'


def test_a_device_that_exists_is_used_and_one_that_failed_is_made_anew():
    gateway = FakeGateway({"state": "degraded"}, {"state": "failed"})
    with gateway.client() as client:
        client.register("a", {})
        assert gateway.calls == ["GET"]
        client.register("a", {})
    assert gateway.calls == ["GET", "GET", "DELETE", "PUT"]


def test_a_device_that_another_node_registered_meanwhile_is_used_if_it_is_of_the_image():
    with FakeGateway({}, READY, READY, conflict=True).client() as client:
        client.register("a", {})
        assert client.wait_ready("a", "sha256:1", lambda *_: None)
        with pytest.raises(GatewayError, match="instead of sha256:2"):
            client.wait_ready("a", "sha256:2", lambda *_: None)


def test_a_gateway_behind_a_proxy_is_read_through_the_proxy():
    gateway = FakeGateway({**READY, "data_url": "http://inside:8080/v1/devices/a/data"})
    with GatewayClient("https://edge/blockgate", transport=httpx.MockTransport(_below(gateway))) as client:
        assert (
            client.wait_ready("a", "sha256:1", lambda *_: None) == "https://edge/blockgate/v1/devices/a/data"
        )


def _below(gateway: FakeGateway):
    """The gateway as a proxy offers it below a path."""

    def handle(request: httpx.Request) -> httpx.Response:
        inside = request.url.copy_with(path=request.url.path.removeprefix("/blockgate"))
        return gateway(httpx.Request(request.method, inside))

    return handle


def test_a_file_is_uploaded_once(tmp_path):
    (tmp_path / "zinfo").write_bytes(b"checkpoints" * 1000)
    gateway = FakeGateway()
    with gateway.client() as client:
        digest = client.upload(tmp_path / "zinfo")
        assert client.upload(tmp_path / "zinfo") == digest
        assert gateway.artifacts == {digest: b"checkpoints" * 1000}
        with pytest.raises(InvalidOption, match="cannot read"):
            client.upload(tmp_path / "missing")


def test_a_device_that_failed_says_why():
    gateway = FakeGateway({"state": "failed", "error": {"detail": "no such image"}})
    with gateway.client() as client, pytest.raises(GatewayError, match="no such image"):
        client.wait_ready("a", "sha256:1", lambda *_: None)


def test_a_problem_and_a_silent_gateway_are_told():
    def refuse(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(403, json={"title": "Conflict", "detail": "not by a node"})

    transport = httpx.MockTransport(refuse)
    with (
        GatewayClient("http://g", transport=transport) as client,
        pytest.raises(GatewayError, match="not by a node"),
    ):
        client.register("a", {})
    with GatewayClient("http://127.0.0.1:1") as client, pytest.raises(GatewayError, match="BLOCKGATE_URL"):
        client.register("a", {})


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
        assert f"ok  gateway: {gateway.url} answers and has 1 devices" in told.out
        assert "ok  clock: agrees with the gateway's" in told.out
        missing = await blockgate_nbd("mount", f"{image}x", mountpoint, "--via", "fuse", env=env)
        assert missing.status == 1
        assert "Traceback" not in missing.err
