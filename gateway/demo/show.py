"""``blockgate demo``: the main job, shown on this machine's own files, without a network.

An OCI layout of two gzip layers is made of Python's standard library, served, registered as a whole image and layer by
layer, and read at random offsets; every answer is compared with the tars, and files are read through the device's file
system and compared with the originals. Then it stays up, to be tried.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
from rich.console import Console

from gateway.demo import node
from gateway.demo.sample import Sample, make_sample
from gateway.erofs.reader import Image

_RANGES = 400
_FILES = 200
_START_SECONDS = 30.0
MARK = ".blockgate-demo"


class DemoFailed(Exception):
    """Something was not as it should be; its text says what."""


def run(folder: Path, port: int, *, keep_running: bool) -> None:
    """The whole demonstration. Raises ``DemoFailed``."""
    console = Console(highlight=False)
    prepare(folder)
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
        with node.mounted(f"{url}/v1/devices/demo/data", folder) as mount:
            _compare_mounted(console, sample, mount)
            _what_next(console, url, folder, mount)
            if keep_running:
                console.print("\nIt stays up until Ctrl-C.")
                _wait_for_signal()


def prepare(folder: Path) -> None:
    """An empty place for a demo: what an earlier demo left is removed, for it may be of another Python.

    Nothing is removed from a folder without the demo's mark. Raises ``DemoFailed`` for one that has other files.
    """
    mark = folder / MARK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not mark.is_file():
            if any(folder.iterdir()):
                raise DemoFailed(
                    f"{folder} has files that no demo made ({MARK} is not there), and a demo begins with an empty folder: "
                    "name another one with --folder"
                )
            mark.write_text(
                "blockgate demo made the files of this folder, and removes image/ and data/ when it starts.\n"
            )
    except OSError as error:
        raise DemoFailed(f"{folder}: {error.strerror}") from error
    for left in ("image", "data"):
        shutil.rmtree(folder / left, ignore_errors=True)


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
                status.update(f"Indexing {name}: {progress_text(device['progress'])}")
                time.sleep(0.1)
        if device["state"] != "ready":
            raise DemoFailed(f"device {name} is {device['state']}: {device['error']}")
        console.print(f"[green]✓[/] device {name}: {device['size'] >> 20} MiB, {device['verification']}")


def progress_text(progress: dict[str, Any] | None) -> str:
    """How far a registration is, or what it waits for."""
    if progress is None:
        return "it begins"
    if progress.get("error") is not None:
        return f"attempt {progress['attempt']} met {progress['error']['detail']}; it is tried again"
    return f"{progress['done'] >> 20} of {progress['total'] >> 20} MiB"


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


def _compare_mounted(console: Console, sample: Sample, mount: node.Mount) -> None:
    """Files read through the kernel's mount, where this machine can have one."""
    if mount.folder is None:
        console.print(f"[yellow]-[/] not mounted here: {mount.reason}", soft_wrap=True)
        return
    names = random.Random(2).sample(sorted(sample.files), min(_FILES, len(sample.files)))  # noqa: S311
    for name in names:
        if (mount.folder / name).read_bytes() != sample.files[name].read_bytes():
            raise DemoFailed(f"{mount.folder / name} differs from {sample.files[name]}")
    console.print(
        f"[green]✓[/] mounted on {mount.folder} ({mount.way}), {len(names)} files read through the kernel: 0 different",
        soft_wrap=True,
    )


def _what_next(console: Console, url: str, folder: Path, mount: node.Mount) -> None:
    console.print("\nTry it:")
    device = f"{url}/v1/devices/demo/data"
    for line in (
        f"ls {mount.folder}/python" if mount.folder else f"blockgate-nbd mount {device} /mnt",
        f"curl -r 0-511 {url}/v1/devices/demo-layer0/data | head -c 100",
        f"curl -s {url}/v1/devices/demo | python3 -m json.tool",
        f"{sys.argv[0] if sys.argv[0].endswith('blockgate') else 'blockgate'} device ls --gateway {url}",
    ):
        console.print(f"  [bold]{line}[/]", soft_wrap=True)
    console.print(
        f"\nThe dashboard is {url}/, the API {url}/docs. The demo's files are in {folder}.", soft_wrap=True
    )


def _wait_for_signal() -> None:
    ended = False

    def end(_signal: int, _frame: FrameType | None) -> None:
        nonlocal ended
        ended = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    while not ended:
        signal.pause()
