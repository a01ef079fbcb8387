"""A registry that is down for a while, during registrations and while layers are made again."""

import random
import shutil
import time
from pathlib import Path

from tests.campaigns.campaign import Table, main
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
    waiting,
)
from tests.support.outage import Outage


def campaign(folder: Path, registry: FaultRegistry, chance: random.Random, table: Table, size: int) -> None:
    """The registry is down for ``size`` seconds."""
    with Gateway(folder / "gateway", settings=SETTINGS) as gateway:
        old = [
            registered(gateway, f"old{n}", small_image(registry, f"team/old{n}", n, size=80_000))
            for n in range(4)
        ]
        gateway.stop()
        shutil.rmtree(gateway.data_dir / "layers")
        shutil.rmtree(gateway.data_dir / "cache", ignore_errors=True)
        gateway.start()
        new = {f"new{n}": small_image(registry, f"team/new{n}", 10 + n, size=80_000) for n in range(4)}
        with Outage(registry):
            for name, image in new.items():
                assert gateway.put(name, image.spec()).status_code == 202
            end = time.monotonic() + size
            while time.monotonic() < end:
                for kept in chance.sample(old, 2):
                    with table.step("read during the outage"):
                        attempt(gateway, kept.name, kept.content, kept.etag, trouble=REGISTRY_TROUBLE)
            for name in new:
                with table.step("says what it waits for"):
                    assert waiting(gateway, name, seconds=30)["error"]["code"]
        for name, image in new.items():
            with table.step("registered during the outage"):
                seen(gateway, name, image, seconds=60)
        for kept in old:
            with table.step("made again after the outage"):
                heals(gateway, kept, seconds=60, trouble=REGISTRY_TROUBLE)


if __name__ == "__main__":
    main(campaign, 60)
