"""Write docs/dashboard-light.png and docs/dashboard-dark.png from a live gateway that is being read.

A registry of this machine holds the demo's image; clients read it through the gateway for --seconds (charts show 900).
With --states there is a device in each condition too: for looking at, not for docs/.
Needs docker-registry, skopeo and chromium.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
from playwright.sync_api import sync_playwright

from gateway.demo.sample import make_sample
from tests.support.browser import chromium
from tests.support.dockerregistry import docker_registry
from tests.support.faultregistry import corrupt, digest_of
from tests.support.gateway import Gateway
from tests.support.gzips import member
from tests.support.layers import content, tar_of
from tests.support.processes import free_port, wait_until
from tests.support.threadedregistry import Held, ThreadedRegistry

_DOCS = Path(__file__).resolve().parent.parent / "docs"
_MIB = 1 << 20
_HOT_SHARE = 0.85
_MAPS_DRAWN = """() => [...document.querySelectorAll(".devices tbody")]
    .every((body) => !body.querySelector("[data-tone=good]") || body.querySelector("canvas").height > 1)"""

_WAITING_SHOWN = """() => [...document.querySelectorAll(".devices small")]
    .some((note) => note.textContent.startsWith("waiting"))"""


def main() -> None:
    """Everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=900, help="how long to read before the pictures are taken"
    )
    parser.add_argument("--output", type=Path, default=_DOCS, help="folder for the pictures")
    parser.add_argument("--phone", action="store_true", help="take one at a phone's width too")
    parser.add_argument("--states", action="store_true", help="show a device in each condition")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "registry").mkdir()
        sample = make_sample(folder)
        with (
            docker_registry(folder / "registry") as registry,
            Gateway(
                folder / "gateway",
                oci_roots=[folder],
                settings={"memory_cache": 28 * _MIB, "disk_cache": 56 * _MIB, "span_size": _MIB // 4},
            ) as gateway,
        ):
            registry.push(sample.folder, "demo", "library/python")
            image = f"{registry.host}/library/python:demo"
            source = {"image": image, "insecure": True}
            sizes = {
                "python": gateway.register("python", {"source": source})["size"],
                "python-base": gateway.register(
                    "python-base", {"source": source, "layout": "tar", "layer": {"index": 0}}
                )["size"],
            }
            # One registration that fails, as they do.
            gateway.http.put(
                "/v1/devices/typo",
                json={"source": {"image": f"{registry.host}/library/pyhton:demo", "insecure": True}},
            )
            print(f"reading {gateway.url} for {options.seconds:.0f} s", flush=True)
            stop = threading.Event()
            readers = [
                threading.Thread(target=_read, args=(gateway.url, sizes, seed, stop)) for seed in range(2)
            ]
            for reader in readers:
                reader.start()
            try:
                stop.wait(options.seconds)
                _report_nodes(gateway.http)
                with _conditions(gateway) if options.states else contextlib.nullcontext():
                    _shoot(gateway.url, options.output, phone=options.phone, states=options.states)
            finally:
                stop.set()
                for reader in readers:
                    reader.join()


def _read(url: str, sizes: dict[str, int], seed: int, stop: threading.Event) -> None:
    """Read like a container: a few hot places, some strolls, runs of blocks; busier and calmer by turns."""
    rng = random.Random(seed)
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as http:
        pace, until = 0.02, 0.0
        while not stop.wait(pace):
            until -= pace
            if until <= 0:
                pace, until = rng.choice([0.01, 0.02, 0.05, 0.1]), rng.uniform(10, 40)
            name = rng.choices(list(sizes), [3, 1])[0]
            place = rng.betavariate(0.6, 2.2) if rng.random() < _HOT_SHARE else rng.random()
            start = int(place * (sizes[name] - 2 * _MIB)) // 4096 * 4096
            length = rng.choice([4096, 4096, 16384, 131072])
            http.get(f"/v1/devices/{name}/data", headers={"range": f"bytes={start}-{start + length - 1}"})


@contextlib.contextmanager
def _conditions(gateway: Gateway) -> Iterator[None]:
    """Devices that are degraded, waiting and being indexed; the one that failed is there already."""
    tars = {
        "degraded": tar_of({"data": content(3 * _MIB, 1)}),
        "indexing": tar_of({"data": content(_MIB, 2)}),
    }
    with ThreadedRegistry() as registry:
        for name, tar in tars.items():
            registry.add_image(f"team/{name}", [member(tar)], diff_ids=[digest_of(tar)])

        def body(repository: str, host: str = registry.host) -> dict[str, object]:
            return {"source": {"image": f"{host}/team/{repository}:latest", "insecure": True}}

        gateway.register("degraded", {**body("degraded"), "layout": "tar", "layer": {"index": 0}})
        gateway.get("degraded", 0, 4096)
        gateway.put("waiting", body("waiting", f"127.0.0.1:{free_port()}"))
        broken = digest_of(member(tars["degraded"]))
        with Held(registry, digest_of(member(tars["indexing"])), seconds=2):
            gateway.put("indexing", body("indexing"))
            registry.inject(corrupt, times=None, matching=lambda request: broken in request.path)
            gateway.get("degraded", 2 * _MIB, 2 * _MIB + 4096)
            wait_until(
                lambda: (gateway.show("waiting")["progress"] or {}).get("phase") == "waiting",
                what="the device that waits",
            )
            yield


def _report_nodes(http: httpx.Client) -> None:
    device = {
        "name": "python",
        "node_device": "/dev/nbd0",
        "mountpoint": "/mnt/python",
        "read_bytes": 734003200,
    }
    base = {
        "name": "python-base",
        "node_device": "/dev/nbd1",
        "state": "reconnecting",
        "read_bytes": 52428800,
    }
    for node, devices in (("worker-1", [device]), ("worker-2", [device, base])):
        http.post(
            f"/v1/nodes/{node}/report", json={"version": "0.1.0", "devices": devices}
        ).raise_for_status()


def _shoot(url: str, output: Path, *, phone: bool, states: bool) -> None:
    with sync_playwright() as playwright, chromium(playwright) as browser:
        shots = [("light", 1280, "dashboard-light"), ("dark", 1280, "dashboard-dark")]
        if phone:
            shots.append(("light", 390, "dashboard-phone"))
        for scheme, width, name in shots:
            context = browser.new_context(
                color_scheme=scheme, viewport={"width": width, "height": 900}, device_scale_factor=1.5
            )
            page = context.new_page()
            page.goto(url)
            page.wait_for_selector("#status[data-level=ok], #status[data-level=trouble]")
            # Maps are asked for when they come into view.
            for device in page.locator(".devices tbody").all():
                device.scroll_into_view_if_needed()
            page.wait_for_function(_MAPS_DRAWN)
            if states:
                page.wait_for_function(_WAITING_SHOWN)
            page.evaluate("scrollTo(0, 0)")
            page.screenshot(path=output / f"{name}.png", full_page=True)
            context.close()


if __name__ == "__main__":
    main()
