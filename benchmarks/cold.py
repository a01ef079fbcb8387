"""Reads of what is in no cache: random (target 2), a whole layer in order (target 3), everybody at once (target 9)."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import random
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median

from benchmarks.layers import Layer
from benchmarks.report import Row, in_turns
from benchmarks.servers import Gateway, Registry, cpu_seconds
from tests.support.processes import require_program

NOTES = (
    (
        "target 3: curl | gzip -dc and curl | igzip -dc use up to two processors and check a CRC-32 only; the gateway "
        "checks a sha256 of each span's compressed and of its decoded bytes, and keeps all of it on disk"
    ),
    (
        "target 3: CPU time is that of the gateway and of every program but nginx; where other work takes the second "
        "processor away, the ratios fall to those of CPU time"
    ),
    "target 3: the page cache holds blob and disk cache; nginx, gateway and reader share the same processors",
    "target 9: the clients connect first and ask at the same moment; the registry answers after 10 ms",
)


def random_reads(gateway: Gateway, registry: Registry, layer: Layer, *, reads: int) -> list[Row]:
    """Target 2: ``reads`` random blocks of 4 KiB from empty caches, then the same ones once more."""
    rng = random.Random(2)
    offsets = [rng.randrange(layer.tar_size // 4096) * 4096 for _ in range(reads)]
    gateway.forget()
    registry.clear()
    _read_blocks(gateway, layer, offsets)
    ranges, fetched = registry.ranges(), registry.ranges_bytes()
    registry.clear()
    _read_blocks(gateway, layer, offsets)
    repeated = sum(registry.ranges().values())
    return [
        Row(
            2,
            "upstream requests per missing span, at most",
            max(ranges.values()),
            "≤1",
            "",
            f"{sum(ranges.values())} requests for {len(ranges)} spans in {reads} reads",
        ),
        Row(
            2,
            "fetched per missing span",
            fetched / len(ranges) / 1e6,
            "≤0.45",
            "MB",
            f"{fetched / 1e6:.1f} MB; {fetched / reads / 1e6:.2f} MB per read",
        ),
        Row(2, "upstream requests when all is read again", repeated, "=0", ""),
    ]


def whole_layer(
    gateway: Gateway, registry: Registry, layer: Layer, device: str, label: str, rounds: int
) -> list[Row]:
    """Target 3: the layer's bytes in order, from empty caches, against fetching and decompressing the blob."""
    url = gateway.data_url(device)
    curl = f"{require_program('curl')} --silent --show-error --fail --noproxy '*'"
    igzip = require_program("igzip", package="isal")
    gateway.forget()
    got = subprocess.run(f"{curl} {url} | sha256sum", shell=True, check=True, capture_output=True).stdout
    if got.split()[0].decode() != layer.diff_id.removeprefix("sha256:"):
        raise RuntimeError(f"{url} does not have the layer's bytes")

    cpu: dict[str, list[float]] = {"gateway": [], "gzip": [], "igzip": []}

    def timed(name: str, command: str) -> float:
        if name == "gateway":
            gateway.forget()
        before = cpu_seconds(gateway.pid), _children_seconds()
        started = time.monotonic()
        subprocess.run(f"set -o pipefail; {command}", shell=True, check=True, executable="/bin/bash")
        seconds = time.monotonic() - started
        own, children = cpu_seconds(gateway.pid) - before[0], _children_seconds() - before[1]
        cpu[name].append(own + children)
        return seconds

    commands = {
        "gateway": f"{curl} {url} >/dev/null",
        "gzip": f"{curl} {registry.blob_url} | gzip -dc >/dev/null",
        "igzip": f"{curl} {registry.blob_url} | {igzip} -dc >/dev/null",
    }
    seconds = in_turns({name: partial(timed, name, command) for name, command in commands.items()}, rounds)
    detail = ", ".join(f"{name} {seconds[name]:.2f} s ({median(cpu[name]):.2f} s CPU)" for name in commands)
    return [
        Row(
            3,
            f"cold layer, {label}, vs curl | gzip -dc",
            seconds["gzip"] / seconds["gateway"],
            "≥2",
            "x",
            detail,
        ),
        Row(3, f"cold layer, {label}, vs curl | igzip -dc", seconds["igzip"] / seconds["gateway"], "≥1", "x"),
    ]


def crowd(gateway: Gateway, registry: Registry, layer: Layer, device: str, *, clients: int) -> list[Row]:
    """Target 9: so many clients ask for bytes of one cold span."""
    offset = layer.tar_size // 2 // 4096 * 4096
    with layer.tar.open("rb") as file:
        file.seek(offset)
        expected = hashlib.sha256(file.read(512)).digest()
    gateway.forget()
    registry.clear()
    wrong = asyncio.run(_crowd(gateway.port, f"/v1/devices/{device}/data", offset, expected, clients))
    ranges = registry.ranges()
    return [
        Row(9, f"upstream requests of {clients} clients on one cold span", sum(ranges.values()), "=1", ""),
        Row(9, "wrong or missing answers", wrong, "=0", ""),
    ]


def _children_seconds() -> float:
    """CPU time of all programs that this process has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _read_blocks(gateway: Gateway, layer: Layer, offsets: list[int]) -> None:
    with _connected(gateway) as connection, layer.tar.open("rb") as tar:
        for offset in offsets:
            connection.request(
                "GET", "/v1/devices/layer/data", headers={"range": f"bytes={offset}-{offset + 4095}"}
            )
            answer = connection.getresponse()
            tar.seek(offset)
            if answer.status != 206 or answer.read() != tar.read(4096):
                raise RuntimeError(
                    f"the 4 KiB at {offset} are not those of the layer (status {answer.status})"
                )


@contextmanager
def _connected(gateway: Gateway) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    try:
        yield connection
    finally:
        connection.close()


async def _crowd(port: int, path: str, offset: int, expected: bytes, clients: int) -> int:
    """Returns how many did not get the right bytes."""
    everybody = asyncio.Event()
    connected = asyncio.Semaphore(0)
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nRange: bytes={offset}-{offset + 511}\r\n\r\n".encode()

    async def client() -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            connected.release()
            await everybody.wait()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(512)
            return b" 206 " in head.partition(b"\r\n")[0] and hashlib.sha256(body).digest() == expected
        finally:
            writer.close()

    async with asyncio.timeout(120):
        tasks = [asyncio.create_task(client()) for _ in range(clients)]
        for _ in tasks:
            await connected.acquire()
        everybody.set()
        return sum(result is not True for result in await asyncio.gather(*tasks, return_exceptions=True))
