"""A data folder as version 0.1 makes it is refused with a clear message and left as it is."""

import hashlib
import os
import random
import sys
from pathlib import Path

from tests.campaigns.campaign import Table, main
from tests.support.faultregistry import FaultRegistry
from tests.support.gateway import Gateway
from tests.support.life import SETTINGS, small_image
from tests.support.processes import Process, free_port, http_answers, wait_until

#: A checkout of version 0.1: its code makes the folder.
CHECKOUT = "CHECKOUT_OF_0_1"


def fingerprint(data: Path) -> dict[str, str]:
    """Each file, folder and link of a data folder with what it holds and when it was changed."""
    found = {}
    for path in sorted(data.rglob("*")):
        status = path.lstat()
        held = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        found[str(path.relative_to(data))] = f"{held} {status.st_mode:o} {status.st_mtime_ns}"
    return found


def make_old(folder: Path, registry: FaultRegistry, checkout: Path) -> Path:
    """A folder with devices of each state and each kind, made by the checkout's code."""
    # The program's own folder is not looked into: the code is that of the checkout.
    env = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(checkout)}
    with Gateway(folder / "old", settings=SETTINGS, env=env) as old:
        assert old.register("app", small_image(registry, "team/app").spec())["state"] == "ready"
        other = small_image(registry, "team/other", seed=2)
        assert old.register("layer", other.layer_spec())["state"] == "ready"
        nothing = {"source": {"image": f"{registry.host}/team/nothing:latest", "insecure": True}}
        assert old.register("failed", nothing)["state"] == "failed"
        assert old.http.get("/v1/devices/app/data").status_code == 200
        assert old.stop() == 0
        return old.data_dir


def refused(data: Path, log: Path, *arguments: str) -> None:
    """Today's program ends soon, says why in one sentence, and has touched nothing."""
    before = fingerprint(data)
    port = free_port()
    argv = [sys.executable, "-m", "gateway", "serve", "--data-dir", data, "--port", str(port), *arguments]
    serves = http_answers(f"http://127.0.0.1:{port}/readyz")
    with Process(argv, log=log, cwd=Path(__file__).parents[2]) as new:
        wait_until(lambda: new.returncode is not None or serves(), what="an end", seconds=60)
        assert new.returncode is not None, "a folder of version 0.1 is served"
    assert new.returncode != 0
    assert "0.1" in new.output, new.output
    assert str(data) in new.output, "the message does not name the folder"
    assert "Traceback" not in new.output
    assert fingerprint(data) == before, "the folder was touched"


def campaign(folder: Path, registry: FaultRegistry, chance: random.Random, table: Table, size: int) -> None:
    """A folder with devices is offered ``size`` times, with one worker and with two; then version 0.1 goes on with it."""
    data = make_old(folder, registry, Path(os.environ[CHECKOUT]))
    for turn in range(size):
        workers = ["--workers", "2"] if turn % 2 else []
        with table.step("refused, and untouched"):
            refused(data, folder / f"log.{turn}", *workers)
    env = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.environ[CHECKOUT]}
    with (
        table.step("version 0.1 goes on with it"),
        Gateway(folder / "old", settings=SETTINGS, env=env) as old,
    ):
        assert old.show("app")["state"] == "ready"
        assert old.http.get("/v1/devices/app/data").status_code == 200


if __name__ == "__main__":
    if CHECKOUT not in os.environ:
        raise SystemExit(f"{CHECKOUT} has to name a checkout of version 0.1")
    main(campaign, 4)
