"""Target 8: from nothing on the node to the first bytes of a file, against pulling and unpacking the image.

The image has two layers, 200 MB unpacked: the measured layer, and this Python's packages on top of it. It lies in a
docker-registry. The slow link is either in front of the gateway or in front of the registry. Needs root, EROFS and FUSE.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import pytest

from benchmarks.layers import Layer, digest_of
from benchmarks.link import Link, slow_link
from benchmarks.report import Row, in_turns
from benchmarks.servers import Gateway, gateway
from nbd_client.mount import missing_for_fuse
from tests.support.dockerregistry import DockerRegistry, docker_registry
from tests.support.kernelmount import need_kernel_mounts
from tests.support.ocilayout import OciLayout, gzip_layer
from tests.support.processes import require_program, wait_until

NOTES = (
    (
        "target 8: the link carries 25 Mbit/s in each direction, all connections together, and delays each by 10 ms (20 ms "
        "per round trip); a connection costs a round trip more, TCP's slow start nothing; bytes are those of both directions"
    ),
    (
        "target 8: the clock runs from `blockgate-nbd mount IMAGE`, no agent running, to the file's last byte; the device "
        "was registered before by somebody else and the gateway's cache is empty, except where it says new"
    ),
    "target 8: pulling is `curl BLOB | tar -xz` layer by layer over the same link, without checking a digest",
)

_IMAGE_BYTES = 200 << 20
_LINK = {"bits_per_second": 25e6, "delay_seconds": 0.010}
_REPOSITORY = "bench/image"
_SMALL_BYTES = range(2_000, 20_000)
_PROGRAM_BYTES = range(1_000_000, 4_000_000)


@dataclass(frozen=True)
class _File:
    """A file of the image: where it is in the root, and its bytes."""

    path: str
    content: bytes


@dataclass(frozen=True)
class _Image:
    """``blobs`` are digests, base first."""

    blobs: tuple[str, ...]
    small: _File
    program: _File


@dataclass
class _Cost:
    """What one way of getting at a file took, round by round."""

    seconds: list[float]
    bytes: list[int]

    def median(self) -> tuple[float, float]:
        return median(self.seconds), median(self.bytes)


def first_file(layer: Layer, folder: Path, rounds: int) -> list[Row]:
    """Rows of both set-ups. Raises pytest's ``Skipped`` where images cannot be mounted."""
    need_kernel_mounts()
    if missing := missing_for_fuse():
        pytest.skip("; ".join(missing))
    folder = folder / "first-file"
    (folder / "registry").mkdir(parents=True)
    with docker_registry(folder / "registry") as registry:
        image = _push(layer, registry, folder)
        port = int(registry.host.rpartition(":")[2])
        with slow_link(port, **_LINK) as pulling:
            pulled = _measure_in_turns(
                {"pull": partial(_pull, pulling, image, image.small, folder)}, pulling, rounds
            )["pull"]
        rows = []
        with gateway(folder / "near") as near, slow_link(near.port, **_LINK) as link:
            reference = f"{registry.host}/{_REPOSITORY}:latest"
            rows += _rows("node -> gateway", near, link.port, reference, link, image, pulled, folder, rounds)
        with slow_link(port, **_LINK) as link, gateway(folder / "far") as far:
            reference = f"127.0.0.1:{link.port}/{_REPOSITORY}:latest"
            rows += _rows(
                "gateway -> registry", far, far.port, reference, link, image, pulled, folder, rounds
            )
    return rows


def _rows(
    where: str,
    serving: Gateway,
    port: int,
    reference: str,
    link: Link,
    image: _Image,
    pulled: _Cost,
    folder: Path,
    rounds: int,
) -> list[Row]:
    """The first mount of all registers the image; every other one finds it registered, and the caches empty."""
    read = partial(_mount_and_read, port, reference, folder)
    new = _measure_in_turns({"new": partial(read, image.small)}, link, 1)["new"]

    def cold(file: _File) -> float:
        serving.forget()
        return read(file)

    costs = _measure_in_turns(
        {"file": partial(cold, image.small), "program": partial(cold, image.program)}, link, rounds
    )
    pull_seconds, pull_bytes = pulled.median()

    def sooner(what: str, cost: _Cost, wanted: str, note: str) -> Row:
        seconds, size = cost.median()
        made_of = f"{seconds:.2f} s against {pull_seconds:.1f} s, {size / 1e6:.2f} MB fetched; {note}"
        return Row(
            8, f"{what}, slow {where}, sooner than pulling", pull_seconds / seconds, wanted, "x", made_of
        )

    _, size = costs["file"].median()
    share = f"{size / 1e6:.2f} MB of {pull_bytes / 1e6:.1f} MB"
    return [
        sooner("first file", costs["file"], "≥20", f"{len(image.small.content) / 1e6:.3f} MB read"),
        Row(8, f"first file, slow {where}, of the bytes", 100 * size / pull_bytes, "≤5", "%", share),
        # Nothing is wanted of these: to carry a program of some MB alone takes longer than a twentieth of the pull.
        sooner("first program", costs["program"], "", f"{len(image.program.content) / 1e6:.2f} MB read"),
        sooner("first file, new image", new, "", "registered once, for all nodes"),
    ]


def _measure_in_turns(
    contenders: dict[str, Callable[[], float]], link: Link, rounds: int
) -> dict[str, _Cost]:
    costs = {name: _Cost([], []) for name in contenders}

    def one(name: str) -> float:
        before = link.bytes
        seconds = contenders[name]()
        costs[name].seconds.append(seconds)
        costs[name].bytes.append(link.bytes - before)
        return seconds

    in_turns({name: partial(one, name) for name in contenders}, rounds)
    return costs


def _mount_and_read(port: int, reference: str, folder: Path, file: _File) -> float:
    """Mount the image without a running agent and read the file; returns seconds. All is taken down afterwards."""
    run_dir, mountpoint = folder / "run", folder / "mnt"
    mountpoint.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "nbd_client.cli"]
    here = ["--run-dir", str(run_dir)]
    away = ["--via", "fuse", "--gateway", f"http://127.0.0.1:{port}", "-o", "oci.insecure"]
    started = time.monotonic()
    try:
        _run(*command, "mount", reference, str(mountpoint), *here, *away)
        content = (mountpoint / file.path).read_bytes()
        seconds = time.monotonic() - started
    finally:
        if mountpoint.is_mount():
            _run(*command, "umount", str(mountpoint), *here)
        if (run_dir / "agent.sock").exists():
            os.kill(int((run_dir / "agent.lock").read_text()), signal.SIGTERM)
            wait_until(lambda: not (run_dir / "agent.sock").exists(), what="the agent's end")
    if content != file.content:
        raise RuntimeError(f"{file.path} has other bytes than in the layer")
    return seconds


def _pull(link: Link, image: _Image, file: _File, folder: Path) -> float:
    """Download and unpack every layer, and read the file; returns seconds."""
    root = folder / "unpacked"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    curl = f"{require_program('curl')} --silent --show-error --fail --noproxy '*'"
    started = time.monotonic()
    for digest in image.blobs:
        url = f"http://127.0.0.1:{link.port}/v2/{_REPOSITORY}/blobs/{digest}"
        _run("/bin/bash", "-o", "pipefail", "-c", f"{curl} {url} | tar -xzpf - --numeric-owner -C {root}")
    content = (root / file.path).read_bytes()
    seconds = time.monotonic() - started
    if content != file.content:
        raise RuntimeError(f"{file.path} has other bytes than in the layer")
    return seconds


def _push(layer: Layer, registry: DockerRegistry, folder: Path) -> _Image:
    """Make the image, copy it into the registry, and choose the files that are read."""
    tar = folder / "packages.tar"
    _packages(tar, _IMAGE_BYTES - layer.tar_size)
    blob = tar.with_suffix(".tar.gz")
    with blob.open("wb") as file:
        subprocess.run(["gzip", "-6", "-n", "-c", tar], stdout=file, check=True)
    layout = OciLayout(folder / "layout")
    layout.add_image([gzip_layer(layer.blob, layer.tar), gzip_layer(blob, tar)], tag="latest")
    registry.push(layout.folder, "latest", _REPOSITORY)
    return _Image(
        (layer.digest, digest_of(blob)),
        _middle_file(layer.tar, _SMALL_BYTES),
        _middle_file(layer.tar, _PROGRAM_BYTES),
    )


def _packages(tar: Path, size: int) -> None:
    """Files of this Python's packages, until they are ``size`` bytes or there are no more."""
    site = Path(sysconfig.get_path("purelib"))
    with tarfile.open(tar, "w") as archive:
        for path in sorted(site.rglob("*")):
            if path.is_file() and not path.is_symlink():
                archive.add(path, Path("opt/app") / path.relative_to(site), recursive=False)
                if archive.offset > size:
                    return


def _middle_file(tar: Path, sizes: range) -> _File:
    """Of the regular files with such a size, the one in the middle of the tar."""
    with tarfile.open(tar) as archive:
        found = [member for member in archive if member.isreg() and member.size in sizes]
        if not found:
            pytest.skip(f"the layer has no file of {sizes.start} to {sizes.stop} bytes to read first")
        member = found[len(found) // 2]
        content = archive.extractfile(member)
        assert content is not None
        return _File(member.name.removeprefix("./").lstrip("/"), content.read())


def _run(*command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
