"""Many more devices than descriptors: each is registered and read, then all are read again."""

import random
from pathlib import Path

from tests.campaigns.campaign import Table, descriptors_of, main
from tests.support.faultregistry import FaultRegistry
from tests.support.gateway import Gateway
from tests.support.life import SETTINGS, heals, put_image, seen

#: The descriptors allowed and the most that may be open, for a campaign at length and in short.
FULL_LIMIT, SHORT_LIMIT = (256, 150), (80, 79)


def campaign(folder: Path, registry: FaultRegistry, chance: random.Random, table: Table, size: int) -> None:
    """``size`` devices of three layers, the base shared, under a limit of 256 descriptors, or 80 for few devices."""
    limit, most = FULL_LIMIT if size > 300 else SHORT_LIMIT
    base = {"base": chance.randbytes(2000)}
    wrapper = ["prlimit", f"--nofile={limit}:{limit}"]
    with Gateway(folder / "gateway", settings=SETTINGS, wrapper=wrapper) as gateway:
        kept = []
        for number in range(size):
            own = [{"own": b"%d" % number}, {"data": chance.randbytes(1000)}]
            image = put_image(registry, f"team/app{number}", [base, *own])
            with table.step("registered and read"):
                assert gateway.put(f"app{number}", image.spec()).status_code == 202
                kept.append(seen(gateway, f"app{number}", image))
        gateway.restart()
        for device in kept:
            with table.step("read again"):
                heals(gateway, device)
                assert descriptors_of(gateway) <= most, f"{descriptors_of(gateway)} descriptors"


if __name__ == "__main__":
    main(campaign, 1100)
