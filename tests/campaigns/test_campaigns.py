"""The campaigns in short; CAMPAIGN=full runs them at length, as ``python -m tests.campaigns.NAME`` does."""

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest

from tests.campaigns import damage, descriptors, kill, outage
from tests.campaigns.campaign import FULL, Campaign, conduct
from tests.support.gateway import cli

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


def test_a_data_folder_of_version_0_1_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    """Such a folder has no VERSION; its catalog has the table ``devices`` with these columns."""
    data = tmp_path / "data"
    (data / "layers/ab").mkdir(parents=True)
    (data / "layers/ab/index.json").write_text("{}")
    with contextlib.closing(sqlite3.connect(data / "catalog.sqlite")) as catalog, catalog:
        catalog.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
        catalog.execute("INSERT INTO alembic_version VALUES ('0001')")
        catalog.execute("CREATE TABLE devices (name VARCHAR(128) PRIMARY KEY, uid VARCHAR(32), spec JSON)")
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    # A port that cannot be bound ends a program that does not refuse the folder.
    ended = cli(
        "serve",
        "--data-dir",
        data,
        "--port",
        "1",
        "--host",
        "192.0.2.1",
        env={"BLOCKGATE_ALLOW_ANONYMOUS": "true"},
    )
    assert ended.returncode not in (0, None)
    assert "0.1" in ended.stdout + ended.stderr, ended.stderr[-500:]
    assert "data folder" in ended.stdout + ended.stderr
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before
