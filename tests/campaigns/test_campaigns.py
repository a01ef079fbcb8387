"""The campaigns in short; CAMPAIGN=full runs them at length, as ``python -m tests.campaigns.NAME`` does."""

import contextlib
import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.campaigns import damage, descriptors, kill, outage
from tests.campaigns.campaign import FULL, Campaign, conduct
from tests.support.processes import Process, free_port, http_answers, wait_until

SIZES = {
    "descriptors": (descriptors.campaign, 30, 1100),
    "outage": (outage.campaign, 5, 60),
    "damage": (damage.campaign, 8, 1000),
    "kill": (kill.campaign, 4, 500),
}


@pytest.mark.timeout(7200 if FULL else 300)
@pytest.mark.parametrize("name", SIZES)
def test_a_campaign_ends_without_a_problem(name: str, tmp_path: Path) -> None:
    campaign: Campaign
    campaign, short, full = SIZES[name]
    seed = int(os.environ.get("CAMPAIGN_SEED", "1"))
    table = conduct(campaign, tmp_path, full if FULL else short, seed)
    assert not table.problems, f"\n{table}"


def imitated(data: Path) -> None:
    """What version 0.1 leaves, made by hand: no VERSION, a catalog of its schema, a layer's folder."""
    (data / "layers/ab/gzip-1048576-v1").mkdir(parents=True)
    (data / "layers/ab/gzip-1048576-v1/index.json").write_text("{}")
    with contextlib.closing(sqlite3.connect(data / "catalog.sqlite")) as catalog, catalog:
        catalog.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
        catalog.execute("INSERT INTO alembic_version VALUES ('0001')")
        catalog.execute("CREATE TABLE devices (name VARCHAR(128) PRIMARY KEY, uid VARCHAR(32), spec JSON)")


def made_by(checkout: str) -> Callable[[Path], None]:
    """What version 0.1 leaves, made by a checkout of it."""

    def make(data: Path) -> None:
        port = free_port()
        argv = [sys.executable, "-m", "gateway", "serve", "--data-dir", data, "--port", str(port)]
        ready = http_answers(f"http://127.0.0.1:{port}/readyz")
        log = data.parent / "old.log"
        # The folder that a module is run from is where it is looked for first.
        with Process(argv, log=log, ready=ready, cwd=Path(checkout), start_seconds=60) as old:
            assert old.stop() == 0, old.output

    return make


OLD = {"by hand": imitated}
if "CHECKOUT_OF_0_1" in os.environ:
    OLD["by version 0.1"] = made_by(os.environ["CHECKOUT_OF_0_1"])


@pytest.mark.parametrize("make", OLD)
def test_a_data_folder_of_version_0_1_is_refused_and_left_as_it_is(make: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    OLD[make](data)
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    port = free_port()
    argv = [sys.executable, "-m", "gateway", "serve", "--data-dir", data, "--port", str(port)]
    serves = http_answers(f"http://127.0.0.1:{port}/readyz")
    with Process(argv, log=tmp_path / "log", cwd=Path(__file__).parents[2]) as new:
        wait_until(lambda: new.returncode is not None or serves(), what="an end", seconds=60)
        assert new.returncode is not None, "a folder of version 0.1 is served"
    assert new.returncode != 0
    assert "0.1" in new.output
    assert "Traceback" not in new.output
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before
