"""Calls to the file system fail at random, of every kind that a disk or a full process gives, during all that a gateway does."""

import contextlib
import errno
import random
from pathlib import Path

from tests.campaigns.campaign import Table, main
from tests.support.diskfault import DiskFaults
from tests.support.faultregistry import FaultRegistry
from tests.support.gateway import Gateway
from tests.support.life import (
    REGISTRY_TROUBLE,
    SETTINGS,
    attempt,
    heals,
    registered,
    seen,
    small_image,
    stays_ready,
)
from tests.support.processes import wait_until

ERRORS = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.ENOSPC, errno.EROFS)
#: Parts of a data folder; the catalog's own files are its database's matter.
PLACES = (r"data/layers/", r"data/artifacts/", r"data/cache/", r"data/tmp/", r"data/(?!catalog|locks|run)")


def ended(gateway: Gateway, name: str) -> bool:
    """Whether a registration is over, or was not taken."""
    answer = gateway.http.get(f"/v1/devices/{name}")
    return answer.status_code != 200 or answer.json()["state"] != "indexing"


def campaign(folder: Path, registry: FaultRegistry, chance: random.Random, table: Table, size: int) -> None:
    """``size`` faults: each fails one to five calls, or every call for as long as some reads last."""
    images = [small_image(registry, f"team/app{n}", n, size=150_000) for n in range(5)]
    faults = DiskFaults(folder / "faults")
    settings = SETTINGS | {"memory_cache": 0}
    with Gateway(folder / "gateway", settings=settings, env=faults.env) as gateway:
        kept = [registered(gateway, f"kept{n}", images[n]) for n in range(2)]
        for turn in range(size):
            error, place = chance.choice(ERRORS), chance.choice(PLACES)
            times = chance.choice([1, 1, 2, 5, None])
            image, name = images[2 + turn % 3], f"t{turn}"
            lost = chance.random() < 0.25
            gateway.drop_caches()
            if lost:
                # Taken away by hand, so that it has to be made again on the failing disk.
                blob = images[turn % 2].blobs[0].removeprefix("sha256:")
                for path in (gateway.data_dir / "layers" / blob).rglob("spans.bin"):
                    path.unlink()
            with table.step(f"{errno.errorcode[error]}{' (a layer is lost too)' if lost else ''}"):
                with faults.failing(
                    error, place, times=times, writing=chance.choice([None, None, True, False])
                ):
                    answer = gateway.put(name, image.spec())
                    assert answer.status_code in (202, 503), answer.text
                    for device in kept:
                        attempt(gateway, device.name, device.content, device.etag, trouble=REGISTRY_TROUBLE)
                        stays_ready(gateway, device)
                    # It lasts until something has failed, or all is done without any call that could.
                    with contextlib.suppress(TimeoutError):
                        wait_until(
                            lambda name=name: faults.hits or ended(gateway, name), what="a fault", seconds=3
                        )
                    table.rows["calls that failed"] += faults.hits
                if answer.status_code == 503:
                    assert gateway.put(name, image.spec()).status_code == 202
                for device in kept:
                    heals(gateway, device, seconds=40)
                seen(gateway, name, image, seconds=60)
            if gateway.running.returncode is not None:
                gateway.start()
            gateway.http.delete(f"/v1/devices/{name}")


if __name__ == "__main__":
    main(campaign, 500)
