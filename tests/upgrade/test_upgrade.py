"""What earlier versions wrote is opened by this one, or refused in words; never misread."""

import sqlite3
import tarfile
from pathlib import Path

import pytest

from gateway.config import Settings
from gateway.errors import ConfigurationError
from gateway.services import prepared
from tests.support.inprocess import BASE, BASE_BLOB, quiet_logs, running
from tests.upgrade.make_folder import DEVICES

HERE = Path(__file__).parent
FOLDERS = sorted(HERE.glob("folder-*.tar.gz"))


@pytest.fixture(autouse=True)
def _logs():
    quiet_logs()


def test_there_is_a_folder_to_open():
    assert FOLDERS


@pytest.mark.parametrize("kept", FOLDERS, ids=lambda path: path.name)
async def test_the_devices_of_an_earlier_folder_are_there_with_the_same_bytes(kept, tmp_path):
    with tarfile.open(kept) as archive:
        archive.extractall(tmp_path, filter="data")
    before = {path.name for path in (tmp_path / "data/layers").glob("*/*/*")}
    async with running(tmp_path, tmp_path / "images") as gateway:
        found = (await gateway.client.get("/v1/devices")).json()["devices"]
        assert {device["name"]: device["state"] for device in found} == dict.fromkeys(DEVICES, "ready")
        etags = {device["name"]: device["etag"] for device in found}
        for name, truth in (("tar", BASE), ("raw", BASE_BLOB)):
            answer = await gateway.client.get(f"/v1/devices/{name}/data")
            assert (answer.content, answer.headers["etag"]) == (truth, etags[name])
        shown = (await gateway.client.get("/v1/devices/whole")).json()
        answer = await gateway.client.get("/v1/devices/whole/data")
        assert len(answer.content) == shown["size"]
        base = next(segment for segment in shown["segments"] if segment["kind"] == "gzip")
        assert answer.content[base["offset"] :][: base["length"]] == BASE
    # Nothing had to be made again.
    assert {path.name for path in (tmp_path / "data/layers").glob("*/*/*")} == before


def test_a_folder_of_version_0_1_is_refused_and_left_as_it_is(tmp_path):
    with sqlite3.connect(tmp_path / "catalog.sqlite") as catalog:
        catalog.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        catalog.execute("INSERT INTO alembic_version VALUES ('0001')")
    catalog.close()
    before = (tmp_path / "catalog.sqlite").read_bytes()
    with pytest.raises(ConfigurationError, match=r"version 0\.1"), prepared(Settings(data_dir=tmp_path)):
        pass
    assert (tmp_path / "catalog.sqlite").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["catalog.sqlite"]
