"""A whole image of three layers from a real registry, exported over HTTP and mounted by this machine's kernel,
against what GNU tar unpacks. Needs root."""

import gzip
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import Figure
from tests.support.debianroot import debian_root_tar, debian_root_tar_gz
from tests.support.dockerregistry import docker_registry
from tests.support.gateway import Gateway
from tests.support.gzips import member, members
from tests.support.kernelmount import (
    base_layer,
    describe,
    made_directories,
    mounted,
    need_kernel_mounts,
    unpack_with_tar,
    upper_layer,
)
from tests.support.ocilayout import Layer, OciLayout, gzip_layer
from tests.support.processes import require_program
from tests.support.sourcearchive import source_archive
from tests.support.unpacked import Member, pack

pytestmark = pytest.mark.real


@pytest.fixture(scope="module", autouse=True)
def needs() -> None:
    need_kernel_mounts()


def top_layer() -> list[Member]:
    return [
        Member(b"etc/.wh.passwd-hard"),
        # Without an entry of its own here it would have the time of the unpacking.
        Member(b"etc/", stat.S_IFDIR, 0o711, mtime_ns=1_700_000_000_000_000_007),
        Member(b"sizes/.wh..wh..opq"),
        Member(b"sizes/one", content=b"only one is left", mtime_ns=1_700_000_000_000_000_001),
        Member(b"tmp", stat.S_IFDIR, 0o1777, mtime_ns=1_700_000_000_000_000_000),
        Member(b"shared-4", 0, target=b"shared"),
        Member(b"dev/null", stat.S_IFCHR, 0o600, rdev=(1, 3)),
        Member(b"attributes", content=b"other", xattrs={b"user.one": b"2"}),
    ]


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    with Gateway(tmp_path / "gateway") as gateway:
        yield gateway


def export(gateway: Gateway, layers: list[Layer], folder: Path) -> Path:
    """Push the layers as an image, register it, and download the device as a file."""
    require_program("skopeo")
    layout = OciLayout(folder / "layout")
    layout.add_image(layers, tag="three")
    registry_folder = folder / "registry"
    registry_folder.mkdir()
    with docker_registry(registry_folder) as registry:
        registry.push(layout.folder, "three", "team/three")
        source = {"image": f"{registry.host}/team/three:three", "insecure": True}
        device = gateway.register("three", {"source": source})
        assert device["state"] == "ready", device["error"]
        assert [segment["kind"] for segment in device["segments"] if segment["kind"] != "zero"] == [
            "metadata",
            *("gzip" for _ in layers),
        ]
        image = folder / "device"
        with image.open("wb") as file, gateway.http.stream("GET", "/v1/devices/three/data") as answer:
            assert answer.status_code == 200
            for piece in answer.iter_raw():
                file.write(piece)
        assert image.stat().st_size == device["size"]
    return image


def differences(image: Path, unpacked: Path, made: set[str], folder: Path) -> tuple[int, dict[str, object]]:
    with mounted(image, folder / "mnt") as mount:
        actual = describe(mount, made)
    wanted = describe(unpacked, made)
    assert sorted(actual) == sorted(wanted)
    return len(wanted), {
        path: (actual[path], wanted[path]) for path in wanted if actual[path] != wanted[path]
    }


def test_three_layers_of_every_kind_of_file_are_what_gnu_tar_unpacks(
    gateway: Gateway, tmp_path: Path, figure: Figure
) -> None:
    layers = [base_layer(), upper_layer(), top_layer()]
    tars = [pack(layer) for layer in layers]
    stored = [
        gzip_layer(member(tars[0]), tars[0]),
        gzip_layer(members(tars[1], 64 << 10), tars[1]),
        gzip_layer(member(tars[2]), tars[2]),
    ]
    image = export(gateway, stored, tmp_path)
    unpack_with_tar(layers, tmp_path / "unpacked")
    count, different = differences(image, tmp_path / "unpacked", made_directories(layers), tmp_path)
    assert different == {}
    assert count > 400
    figure("three layers mounted: entries compared / different", f"{count} / 0")


def on_top() -> list[Member]:
    """Every kind of entry there is, and what only a layer above others can do to them."""
    time = 1_700_000_000_123_456_789
    return [
        *base_layer(),
        Member(b"etc/.wh.motd"),
        Member(b"usr/share/doc/.wh..wh..opq"),
        Member(b"usr/share/doc/README", content=b"no documentation", mtime_ns=time),
        Member(b"os-release-too", 0, target=b"usr/lib/os-release"),
        *(Member(b"tiny/%04d" % n, content=b"%d" % n, mtime_ns=time + n) for n in range(3000)),
    ]


def test_a_debian_root_a_source_archive_and_every_kind_of_entry_are_what_gnu_tar_unpacks(
    gateway: Gateway, tmp_path: Path, figure: Figure
) -> None:
    """Content, mode, owner, time, links, link target, attributes and device numbers of every entry."""
    archive = source_archive()
    sources = gzip.decompress(archive.read_bytes())
    kept = on_top()
    stored = [
        gzip_layer(debian_root_tar_gz(), debian_root_tar()),
        # As it was published, with the name in its gzip header.
        gzip_layer(archive, sources),
        gzip_layer(members(pack(kept), 1 << 20), pack(kept)),
    ]
    image = export(gateway, stored, tmp_path)
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    options = ["--numeric-owner", "--xattrs", "--xattrs-include=*"]
    for tar in (debian_root_tar(), archive):
        subprocess.run(["tar", "-C", unpacked, "-xpf", tar, *options], check=True, timeout=60)
    unpack_with_tar([kept], unpacked)
    # "bin" is a symbolic link of the base layer: what is put below it touches "usr/bin".
    made = made_directories([kept]) | {"usr/bin"}
    # The archive has no entries for its directories: their time is the unpacker's clock.
    for folder, _, _ in os.walk(next(unpacked.glob("docutils-*"))):
        made.add(os.path.relpath(folder, unpacked))
    count, different = differences(image, unpacked, made, tmp_path)
    assert different == {}
    assert count > 6_000  # Debian's releases differ
    assert os.path.islink(unpacked / "bin")  # noqa: PTH114
    figure(
        "Debian root, source archive, every kind of entry, mounted: entries compared / different",
        f"{count} / 0",
    )
