"""``blockgate demo``: the main job, shown on this machine's own files, without a network.

An OCI layout of two gzip layers is made of Python's standard library, served, registered as a whole image and layer by
layer, and read at random offsets; every answer is compared with the tars, and files are read through the device's file
system and compared with the originals. Then it stays up, to be tried.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
from rich.console import Console

from gateway.erofs.reader import Image

_LAYER_BYTES = 48 << 20
_RANGES = 400
_FILES = 200
_START_SECONDS = 30.0
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class DemoFailed(Exception):
    """Something was not as it should be; its text says what."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The image that the demo makes: its folder, its tars (base first), and the files in it by path."""

    folder: Path
    tars: tuple[Path, ...]
    files: dict[str, Path]


def make_sample(folder: Path) -> Sample:
    """An OCI layout of two gzip layers of real files: the standard library's sources, and its packages' other files."""
    library = Path(sysconfig.get_paths()["stdlib"])
    code: list[Path] = []
    other: list[Path] = []
    for path in sorted(library.rglob("*")):
        inside = path.relative_to(library)
        if (
            path.is_file()
            and not path.is_symlink()
            and not {"site-packages", "__pycache__"} & set(inside.parts)
        ):
            (code if path.suffix == ".py" else other).append(path)
    blobs = folder / "image" / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    tars, layers, diff_ids, files = [], [], [], {}
    for number, paths in enumerate((code, other)):
        tar = folder / f"layer{number}.tar"
        files.update(_write_tar(tar, library, paths))
        layer, diff_id = _add_layer(blobs, tar)
        tars.append(tar)
        layers.append(layer)
        diff_ids.append(diff_id)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "config": {"Entrypoint": ["python3"], "WorkingDir": "/python", "Env": ["PYTHONHOME=/python"]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _add(blobs, json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": layers,
    }
    described = _add(blobs, json.dumps(manifest).encode(), _MANIFEST)
    described["annotations"] = {"org.opencontainers.image.ref.name": "demo"}
    index = {"schemaVersion": 2, "manifests": [described]}
    (folder / "image" / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "image" / "index.json").write_text(json.dumps(index))
    return Sample(folder / "image", tuple(tars), files)


def run(folder: Path, port: int, *, keep_running: bool) -> None:
    """The whole demonstration. Raises ``DemoFailed``."""
    console = Console(highlight=False)
    folder.mkdir(parents=True, exist_ok=True)
    # A demo starts from nothing: what an earlier one left may be of another Python.
    for left in ("image", "data"):
        shutil.rmtree(folder / left, ignore_errors=True)
    with console.status("Making an image of Python's standard library: two gzip layers in an OCI layout"):
        sample = make_sample(folder)
    compressed = sum(path.stat().st_size for path in (sample.folder / "blobs" / "sha256").iterdir())
    unpacked = sum(tar.stat().st_size for tar in sample.tars)
    console.print(
        f"[green]✓[/] an image of {len(sample.files)} files: "
        f"{unpacked >> 20} MiB in two gzip layers of {compressed >> 20} MiB"
    )
    with _gateway(folder, port) as url:
        console.print(f"[green]✓[/] a gateway at {url}")
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
            _register(http, console, sample)
            _compare_ranges(http, console, sample)
            _compare_files(http, console, sample)
        _what_next(console, url, folder)
        if keep_running:
            console.print("\nThe gateway stays up until Ctrl-C.")
            _wait_for_signal()


def _write_tar(tar: Path, library: Path, paths: list[Path]) -> dict[str, Path]:
    files = {}
    written = 0
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in paths:
            written += path.stat().st_size
            if written > _LAYER_BYTES:
                break
            name = f"python/{path.relative_to(library)}"
            archive.add(path, name, recursive=False, filter=_anonymous)
            files[name] = path
    return files


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _add_layer(blobs: Path, tar: Path) -> tuple[dict[str, Any], str]:
    compressor = zlib.compressobj(6, zlib.DEFLATED, 31)
    diff_id, blob = hashlib.sha256(), io.BytesIO()
    with tar.open("rb") as file:
        while piece := file.read(1 << 20):
            diff_id.update(piece)
            blob.write(compressor.compress(piece))
    blob.write(compressor.flush())
    described = _add(blobs, blob.getvalue(), "application/vnd.oci.image.layer.v1.tar+gzip")
    return described, f"sha256:{diff_id.hexdigest()}"


def _add(blobs: Path, content: bytes, media_type: str) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    (blobs / digest).write_bytes(content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


@contextmanager
def _gateway(folder: Path, port: int) -> Iterator[str]:
    """A gateway of its own process, as a user would start it."""
    command = [sys.executable, "-m", "gateway", "serve", "--port", str(port)]
    command += ["--data-dir", str(folder / "data"), "--oci-root", str(folder)]
    log = folder / "gateway.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)  # noqa: S603
    try:
        yield _wait_until_ready(process, log)
    finally:
        process.terminate()
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoFailed(f"the gateway did not start:\n{log.read_text().strip()}")
        for line in log.read_text().splitlines():
            url = _listening(line)
            if url is not None and _answers(url):
                return url
        time.sleep(0.05)
    raise DemoFailed(f"the gateway was not ready after {_START_SECONDS:.0f} s; its log is {log}")


def _listening(line: str) -> str | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return str(event["url"]) if isinstance(event, dict) and event.get("event") == "listening" else None


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _register(http: httpx.Client, console: Console, sample: Sample) -> None:
    image = f"oci:{sample.folder}:demo"
    bodies: dict[str, dict[str, Any]] = {"demo": {"source": {"image": image}}}
    for number in range(len(sample.tars)):
        bodies[f"demo-layer{number}"] = {
            "source": {"image": image},
            "layout": "tar",
            "layer": {"index": number},
        }
    for name, body in bodies.items():
        answer = http.put(f"/v1/devices/{name}", json=body)
        if answer.is_error:
            raise DemoFailed(f"registering {name}: {answer.text}")
        with console.status(f"Indexing {name}") as status:
            while (device := http.get(f"/v1/devices/{name}").json())["state"] == "indexing":
                done = device["progress"] or {"done": 0, "total": 0}
                status.update(f"Indexing {name}: {done['done'] >> 20} of {done['total'] >> 20} MiB")
                time.sleep(0.1)
        if device["state"] != "ready":
            raise DemoFailed(f"device {name} is {device['state']}: {device['error']}")
        console.print(f"[green]✓[/] device {name}: {device['size'] >> 20} MiB, {device['verification']}")


def _compare_ranges(http: httpx.Client, console: Console, sample: Sample) -> None:
    """Random ranges of each layer's device against the tar that it was made of."""
    rng = random.Random(0)  # noqa: S311 - offsets, not secrets
    compared = 0
    for number, tar in enumerate(sample.tars):
        truth = tar.read_bytes()
        for _ in range(_RANGES // len(sample.tars)):
            start = rng.randrange(len(truth))
            stop = min(len(truth), start + rng.choice([1, 512, 4096, 131072, 1 << 20]))
            answer = http.get(
                f"/v1/devices/demo-layer{number}/data", headers={"range": f"bytes={start}-{stop - 1}"}
            )
            if answer.status_code != 206 or answer.content != truth[start:stop]:  # noqa: PLR2004
                raise DemoFailed(f"bytes {start}..{stop} of layer {number} differ from its tar")
            compared += stop - start
    console.print(
        f"[green]✓[/] {_RANGES} random ranges ({compared >> 20} MiB) compared with the tars: 0 different"
    )


def _compare_files(http: httpx.Client, console: Console, sample: Sample) -> None:
    """Files read through the EROFS file system on the whole image's device, against the originals."""

    def read(offset: int, length: int) -> bytes:
        answer = http.get("/v1/devices/demo/data", headers={"range": f"bytes={offset}-{offset + length - 1}"})
        answer.raise_for_status()
        return answer.content

    size = int(http.head("/v1/devices/demo/data").headers["content-length"])
    image = Image(read, size)
    names = random.Random(1).sample(sorted(sample.files), min(_FILES, len(sample.files)))  # noqa: S311
    for name in names:
        inode = image.lookup(os.fsencode(name))
        if inode is None or image.content(inode) != sample.files[name].read_bytes():
            raise DemoFailed(f"/{name} read through the device differs from {sample.files[name]}")
    console.print(f"[green]✓[/] {len(names)} files read through the device's file system: 0 different")


def _what_next(console: Console, url: str, folder: Path) -> None:
    console.print("\nTry it:")
    for line in (
        f"curl -r 0-511 {url}/v1/devices/demo-layer0/data | head -c 100",
        f"curl -s {url}/v1/devices/demo | python3 -m json.tool",
        f"{sys.argv[0] if sys.argv[0].endswith('blockgate') else 'blockgate'} device ls --gateway {url}",
        f"xdg-open {url}/        # the dashboard; /docs has the API",
    ):
        console.print(f"  [bold]{line}[/]", soft_wrap=True)
    console.print(f"Its files are in {folder}.", soft_wrap=True)


def _wait_for_signal() -> None:
    ended = False

    def end(_signal: int, _frame: FrameType | None) -> None:
        nonlocal ended
        ended = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    while not ended:
        signal.pause()
