"""A node mounts images of a real gateway by their names, and ``mount -t blockgate`` does the same. No NBD driver is needed."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import random
import signal
import stat
import sys
from pathlib import Path

import pytest

from tests.support.gateway import Gateway, cli
from tests.support.ocilayout import OciLayout, gzip_layer
from tests.support.programs import blockgate_nbd, program, run
from tests.support.unpacked import Member, pack

pytestmark = pytest.mark.real

REPOSITORY = Path(__file__).parents[2]
EROFS_UTILS = Path(os.environ.get("EROFS_UTILS", ".test-cache/erofs-utils"))


@pytest.fixture
def need_fuse():
    for name, package in (("nbdfuse", "libnbd-bin"), ("fusermount3", "fuse3"), ("mount", "mount")):
        program(name, package)
    if os.geteuid() != 0 or "erofs" not in Path("/proc/filesystems").read_text().split():
        pytest.skip("mounting EROFS needs root and a kernel with erofs loaded")


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


class Image:
    """A base layer and one above it that replaces, removes and adds; what the base alone, and both together, hold."""

    def __init__(self, folder: Path) -> None:
        rng = random.Random(77)
        sizes = [0, 1, 4096, 4097, 50_000, 400_000, 1_500_000]
        files = {f"folder {n % 3}/file{n}": rng.randbytes(sizes[n % len(sizes)]) for n in range(21)}
        upper = {"folder 0/file6": rng.randbytes(300_001), "new/file": b"new\n" * 9999}
        link = Member(b"link", stat.S_IFLNK, 0o777, target=b"folder 0/file0")
        bases = [*(Member(name.encode(), content=content) for name, content in files.items()), link]
        uppers = [Member(name.encode(), content=content) for name, content in upper.items()]
        self.tars = [pack(bases), pack([*uppers, Member(b"folder 1/.wh.file4")])]
        self.blobs = [gzip.compress(tar, 6, mtime=0) for tar in self.tars]
        self.base = digests_of(files)
        self.merged = digests_of({**files, **upper})
        del self.merged["folder 1/file4"]
        layers = [gzip_layer(blob, tar) for blob, tar in zip(self.blobs, self.tars, strict=True)]
        self.layout = folder / "layout"
        OciLayout(self.layout).add_image(layers, tag="latest")
        self.name = f"oci:{self.layout}:latest"
        self.paths = []
        for number, (tar, blob) in enumerate(zip(self.tars, self.blobs, strict=True)):
            path = folder / f"layer{number}.tar.gz"
            path.write_bytes(blob)
            path.with_suffix("").write_bytes(tar)
            self.paths.append(path)


def digests_of(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def digests(folder: Path) -> dict[str, str]:
    """Every regular file's SHA-256 by its path."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def image(tmp_path):
    return Image(tmp_path)


async def mounted_digests(image: Image, mountpoint: Path, env: dict[str, str], *options: str):
    """Mount with these options, read everything, unmount."""
    words = ["-o", ",".join(options)] if options else []
    done = await blockgate_nbd("mount", image.name, mountpoint, "--via", "fuse", *words, env=env)
    assert done.status == 0, done.err
    try:
        assert (mountpoint / "link").readlink() == Path("folder 0/file0")
        return await asyncio.to_thread(digests, mountpoint)
    finally:
        done = await blockgate_nbd("umount", mountpoint, env=env)
        assert done.status == 0, done.err


async def test_a_whole_image_and_one_layer_of_it_with_its_own_metadata_and_checkpoints(
    need_fuse, image, run_dir, tmp_path
):
    mkfs = EROFS_UTILS / "bin" / "mkfs.erofs"
    if not mkfs.exists():
        pytest.skip(f"erofs-utils >= 1.8 is missing: scripts/fetch-erofs-utils.sh {EROFS_UTILS}")
    layer = image.paths[0]
    ours, theirs, merged, zinfo = (tmp_path / name for name in ("ours", "theirs", "merged", "zinfo"))
    for argv in (
        ("index", "build", layer, "-o", zinfo, "--span-size", "256KiB"),
        ("metadata", "build", layer, "-o", ours),
        ("metadata", "build", *image.paths, "-o", merged),
    ):
        done = await asyncio.to_thread(cli, *argv)
        assert done.returncode == 0, done.stderr
    done = await run(mkfs, "--tar=i", theirs, layer.with_suffix(""))
    assert done.status == 0, done.err
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    blob = f"oci.blob=sha256:{hashlib.sha256(image.blobs[0]).hexdigest()}"
    with Gateway(tmp_path / "gateway", oci_roots=[image.layout]) as gateway:
        env = {"BLOCKGATE_NBD_RUN_DIR": str(run_dir), "BLOCKGATE_URL": gateway.url}
        assert await mounted_digests(image, mountpoint, env) == image.merged
        options = (f"oci.local_meta={merged}",)
        assert await mounted_digests(image, mountpoint, env, *options) == image.merged
        for metadata in (ours, theirs):
            options = (blob, f"oci.local_meta={metadata}", f"oci.zinfo={zinfo}")
            assert await mounted_digests(image, mountpoint, env, *options) == image.base
        devices = gateway.http.get("/v1/devices").json()["devices"]
        assert len(devices) == 4
        assert {device["state"] for device in devices} == {"ready"}


IN_A_NAMESPACE = """\
set -e
mount -t overlay overlay -o lowerdir="$HELPERS":/usr/sbin /usr/sbin
mount -t blockgate "$@"
cd "$MOUNTPOINT"
find . -type f -print0 | xargs -0 sha256sum
cat /proc/self/mounts >&2
cd /
umount "$MOUNTPOINT"
! mountpoint -q "$MOUNTPOINT"
"""


@pytest.fixture
def helpers(tmp_path):
    """The entry points as an installation has them, in a folder that takes the place of /sbin where a test mounts it."""
    if "overlay" not in Path("/proc/filesystems").read_text().split():
        pytest.skip("the kernel has no overlay file system: modprobe overlay")
    folder = tmp_path / "helpers"
    folder.mkdir()
    for what in ("mount", "umount"):
        script = folder / f"{what}.blockgate"
        script.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n"
            f"from nbd_client.mount_helper import {what}_main\nsys.exit({what}_main())\n"
        )
        script.chmod(0o755)
    return folder


async def test_mount_and_umount_know_the_type_blockgate(need_fuse, image, run_dir, tmp_path, helpers):
    mountpoint = tmp_path / "a mountpoint"
    mountpoint.mkdir()
    fstab = tmp_path / "fstab"
    with Gateway(tmp_path / "gateway", oci_roots=[image.layout]) as gateway:
        options = f"_netdev,nofail,via=fuse,gateway={gateway.url},x-systemd.automount"
        escaped = str(mountpoint).replace(" ", "\\040")
        fstab.write_text(f"{image.name} {escaped} blockgate {options} 0 0\n")
        env = {
            "BLOCKGATE_NBD_RUN_DIR": str(run_dir),
            "HELPERS": str(helpers),
            "MOUNTPOINT": str(mountpoint),
        }
        for argv in (
            ["-o", f"via=fuse,gateway={gateway.url}", image.name, mountpoint],
            ["--fstab", fstab, mountpoint],
        ):
            shell = ["unshare", "--mount", "--propagation", "private", "sh", "-c", IN_A_NAMESPACE, "sh"]
            if argv[0] == "--fstab":
                shell[6] = IN_A_NAMESPACE.replace("mount -t blockgate", "mount")
            done = await run(*shell, *argv, env=env)
            assert done.status == 0, done.err
            found = {}
            for line in done.out.splitlines():
                digest, _, name = line.partition("  ./")
                if name:
                    found[name] = digest
            assert found == image.merged
            (line,) = (one for one in done.err.splitlines() if "\\040mountpoint" in one and " erofs " in one)
            assert {"ro", "nosuid", "nodev"} <= set(line.split()[3].split(","))
            # umount(8) had our helper end everything, not the mount alone.
            assert sorted(path.name for path in run_dir.iterdir()) == [
                "agent.lock",
                "agent.log",
                "agent.sock",
            ]
