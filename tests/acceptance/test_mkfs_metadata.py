"""EROFS metadata that mkfs.erofs made, supplied to a gateway and mounted by this machine's kernel."""

import gzip
import hashlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.gateway import Gateway, cli
from tests.support.ocilayout import OciLayout, gzip_layer

pytestmark = pytest.mark.real

EROFS_UTILS = Path(os.environ.get("EROFS_UTILS", ".test-cache/erofs-utils"))


@pytest.fixture(scope="module")
def mkfs() -> Path:
    """A mkfs.erofs that knows tars."""
    program = EROFS_UTILS / "bin" / "mkfs.erofs"
    if not program.exists():
        pytest.skip(f"erofs-utils >= 1.8 is missing: scripts/fetch-erofs-utils.sh {EROFS_UTILS}")
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    return program


@pytest.fixture(scope="module")
def tars(small_tar: bytes, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base layer, and one that replaces, removes and adds."""
    folder = tmp_path_factory.mktemp("tars")
    (folder / "base.tar").write_bytes(small_tar)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in (
            ("lib/package0/file0.py", b"replaced" * 1000),
            ("lib/package1/.wh.file1.py", b""),
            ("new/file", b"x" * 70_000),
        ):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(content), 1_700_000_001, 0o600
            tar.addfile(info, io.BytesIO(content))
    (folder / "upper.tar").write_bytes(out.getvalue())
    return [folder / "base.tar", folder / "upper.tar"]


@pytest.fixture(scope="module")
def layout(tars: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two layers as an image."""
    folder = tmp_path_factory.mktemp("layout")
    blobs = [gzip.compress(tar.read_bytes(), 6, mtime=0) for tar in tars]
    OciLayout(folder).add_image([gzip_layer(b, t) for b, t in zip(blobs, tars, strict=True)], tag="two")
    return folder


@contextmanager
def mounted(gateway: Gateway, name: str, folder: Path) -> Iterator[Path]:
    """The device's bytes, downloaded and mounted."""
    image, where = folder / f"{name}.img", folder / f"{name}.mnt"
    with gateway.http.stream("GET", f"/v1/devices/{name}/data") as answer, image.open("wb") as file:
        for piece in answer.iter_bytes():
            file.write(piece)
    where.mkdir()
    subprocess.run(["mount", "-t", "erofs", "-o", "ro,loop", str(image), str(where)], check=True, timeout=60)
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True, timeout=60)


def described(root: Path) -> dict[str, tuple[object, ...]]:
    """Type, mode, owner, time and content of everything below.

    mkfs.erofs gives directories without an entry of their own the time of the build, and symbolic links the mode of their
    tar header, which no unpacker can.
    """
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(status.st_mode):
            content = str(path.readlink())
        time = None if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns
        mode = stat.S_IMODE(status.st_mode) if stat.S_ISREG(status.st_mode) else None
        found[str(path.relative_to(root))] = (stat.S_IFMT(status.st_mode), mode, status.st_uid, time, content)
    return found


def unpack(tars: list[Path], where: Path) -> Path:
    where.mkdir()
    for tar in tars:
        subprocess.run(["tar", "-xpf", str(tar), "-C", str(where)], check=True, timeout=60)
    for whiteout in list(where.rglob(".wh.*")):
        target = whiteout.with_name(whiteout.name.removeprefix(".wh."))
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        whiteout.unlink()
    return where


def test_metadata_and_zinfo_of_one_layer_mount_and_read_right(
    tmp_path: Path, mkfs: Path, tars: list[Path], layout: Path
) -> None:
    metadata, zinfo, layer = tmp_path / "meta.erofs", tmp_path / "layer.zinfo", tmp_path / "layer.tar.gz"
    subprocess.run([mkfs, "--tar=i", metadata, tars[0]], check=True, capture_output=True, timeout=60)
    layer.write_bytes(gzip.compress(tars[0].read_bytes(), 6, mtime=0))
    assert cli("index", "build", layer, "-o", zinfo, "--span-size", "1MiB").returncode == 0
    with Gateway(tmp_path / "gateway", oci_roots=[layout]) as gateway:
        body = {
            "source": {"image": f"oci:{layout}:two"},
            "layer": {"index": 0},
            "metadata": gateway.upload(metadata.read_bytes()),
            "zinfo": gateway.upload(zinfo.read_bytes()),
        }
        for verify in ("before", "background"):
            device = gateway.register(verify, body | {"verify": verify}, verified=True)
            assert (device["state"], device["verification"]) == ("ready", "verified"), device
            with mounted(gateway, verify, tmp_path) as root:
                assert described(root) == described(unpack([tars[0]], tmp_path / f"{verify}.tree"))


def test_merged_metadata_of_two_layers_mounts_and_reads_right(
    tmp_path: Path, mkfs: Path, tars: list[Path], layout: Path
) -> None:
    parts = [tmp_path / f"{tar.stem}.erofs" for tar in tars]
    for part, tar in zip(parts, tars, strict=True):
        subprocess.run([mkfs, "--tar=i", "--aufs", part, tar], check=True, capture_output=True, timeout=60)
    merged = tmp_path / "merged.erofs"
    subprocess.run([mkfs, "--ovlfs-strip=1", merged, *parts], check=True, capture_output=True, timeout=60)
    with Gateway(tmp_path / "gateway", oci_roots=[layout]) as gateway:
        body = {"source": {"image": f"oci:{layout}:two"}, "metadata": gateway.upload(merged.read_bytes())}
        device = gateway.register("merged", body)
        assert device["state"] == "ready", device
        kinds = [segment["kind"] for segment in device["segments"] if segment["kind"] != "zero"]
        assert kinds == ["metadata", "gzip", "gzip"]
        with mounted(gateway, "merged", tmp_path) as root:
            assert described(root) == described(unpack(tars, tmp_path / "tree"))


def test_metadata_of_another_layer_is_refused(
    tmp_path: Path, mkfs: Path, tars: list[Path], layout: Path
) -> None:
    """Its device table asks for more than the layer has."""
    metadata = tmp_path / "meta.erofs"
    subprocess.run([mkfs, "--tar=i", metadata, tars[0]], check=True, capture_output=True, timeout=60)
    with Gateway(tmp_path / "gateway", oci_roots=[layout]) as gateway:
        body = {"source": {"image": f"oci:{layout}:two"}, "layer": {"index": 1}}
        device = gateway.register("wrong", body | {"metadata": gateway.upload(metadata.read_bytes())})
        assert device["state"] == "failed"
        assert device["error"]["code"] == "invalid_metadata"
        assert "another layer" in device["error"]["detail"]
