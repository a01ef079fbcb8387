"""The campaigns in short; CAMPAIGN=full runs them at length, as ``python -m tests.campaigns.NAME`` does."""

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest

from tests.campaigns import damage, descriptors, kill, outage, storage, upgrade
from tests.campaigns.campaign import FULL, Campaign, conduct

SIZES = {
    "descriptors": (descriptors.campaign, 30, 1100),
    "outage": (outage.campaign, 5, 60),
    "damage": (damage.campaign, 8, 1000),
    "kill": (kill.campaign, 8, 500),
    "storage": (storage.campaign, 15, 500),
}


if upgrade.CHECKOUT in os.environ:
    # Its devices are made by the code of that version.
    SIZES["upgrade"] = (upgrade.campaign, 2, 4)


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


def test_a_data_folder_that_looks_like_one_of_version_0_1_is_refused_and_left_as_it_is(
    tmp_path: Path,
) -> None:
    imitated(tmp_path / "data")
    upgrade.refused(tmp_path / "data", tmp_path / "log")
