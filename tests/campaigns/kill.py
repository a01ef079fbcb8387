"""kill -9 at random moments: no device is lost, no byte is wrong, and at the end nothing is left over."""

import contextlib
import random
import shutil
import sqlite3
import threading
from pathlib import Path

import httpx

from tests.campaigns.campaign import Table, main
from tests.support.faultregistry import FaultRegistry
from tests.support.gateway import Gateway
from tests.support.life import SETTINGS, Seen, heals, registered, seen, small_image
from tests.support.processes import wait_until


def unreferenced(gateway: Gateway) -> list[str]:
    """Layer folders that the catalog does not name: ``layers/<blob hex>/<cut>/<attempt>``."""
    with contextlib.closing(sqlite3.connect(gateway.data_dir / "catalog.sqlite")) as catalog:
        rows = catalog.execute("SELECT blob, cut, attempt FROM layer_indexes").fetchall()
    named = {(blob.removeprefix("sha256:"), str(cut), str(attempt)) for blob, cut, attempt in rows}
    found = {
        p.relative_to(gateway.data_dir / "layers").parts
        for p in gateway.data_dir.glob("layers/*/*/*")
        if p.is_dir()
    }
    return sorted("/".join(parts) for parts in found - named)


def left_over(gateway: Gateway) -> list[str]:
    """Files of writes that no longer run."""
    return [str(p) for p in [*gateway.temporary_files(), *gateway.data_dir.glob("tmp/*")]]


def campaign(folder: Path, registry: FaultRegistry, chance: random.Random, table: Table, size: int) -> None:
    """``size`` crashes during registrations, passes that make a layer again, removals and reads."""
    images = [small_image(registry, f"team/app{n}", n, size=150_000) for n in range(6)]
    with Gateway(folder / "gateway", settings=SETTINGS) as gateway:
        kept = [registered(gateway, "kept0", images[0]), registered(gateway, "kept1", images[1])]
        for turn in range(size):
            image = images[2 + turn % 4]
            gateway.drop_caches()
            if chance.random() < 0.4:
                # Absent, whatever the crashes have left of it.
                lost = images[turn % 2].blobs[0].removeprefix("sha256:")
                shutil.rmtree(gateway.data_dir / "layers" / lost, ignore_errors=True)
            put = [f"t{turn}-{n}" for n in range(2)]
            for name in put:
                assert gateway.put(name, image.spec()).status_code == 202
            dying = threading.Event()
            wrong: list[str] = []

            def read(http: httpx.Client, device: Seen, wrong: list[str] = wrong) -> None:
                answer = http.get(f"/v1/devices/{device.name}/data")
                if answer.is_success and answer.content != device.content:
                    wrong.append(device.name)

            def work(name: str, url: str = gateway.url, dying: threading.Event = dying) -> None:
                with (
                    contextlib.suppress(httpx.HTTPError),
                    httpx.Client(base_url=url, timeout=20, trust_env=False) as http,
                ):
                    read(http, kept[0])
                    http.delete(f"/v1/devices/{name}")
                    while not dying.is_set():
                        read(http, kept[1])

            other = threading.Thread(target=work, args=(put[1],))
            other.start()
            # The moment of the crash is a matter of chance, and not of a state that is waited for.
            dying.wait(chance.uniform(0, 0.4))
            gateway.kill()
            dying.set()
            other.join()
            gateway.start()
            with table.step("crashes"):
                assert not wrong, f"WRONG BYTES of {wrong} before the crash"
                for device in kept:
                    heals(gateway, device)
                seen(gateway, put[0], image)
            for name in put:
                gateway.http.delete(f"/v1/devices/{name}")
        with table.step("nothing left over"):
            wait_until(lambda: not left_over(gateway), what="the end of all writes")
            gateway.restart()
            assert not left_over(gateway), left_over(gateway)
            assert not unreferenced(gateway), unreferenced(gateway)


if __name__ == "__main__":
    main(campaign, 500)
