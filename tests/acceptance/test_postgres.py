"""PostgreSQL as the catalog, and the schema that migrations make in both databases."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from gateway.catalog import tables
from gateway.catalog.database import migrate, open_engine
from tests.support import postgres
from tests.support.gateway import Gateway
from tests.support.gzips import member
from tests.support.ocilayout import OciLayout, gzip_layer


@pytest.fixture(scope="module")
def database_url() -> Iterator[str]:
    with postgres.running() as url:
        yield url


def differences(url: str) -> list[object]:
    """Between the database and ``tables.metadata``, types included."""
    engine = open_engine(url)
    try:
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            return list(compare_metadata(context, tables.metadata))
    finally:
        engine.dispose()


def test_migrations_make_the_schema_that_the_code_expects_in_sqlite(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'catalog.sqlite'}"
    migrate(url)
    migrate(url)
    assert differences(url) == []
    engine = open_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE devices ADD COLUMN other INTEGER"))
    engine.dispose()
    assert differences(url) != []


@pytest.mark.real
def test_migrations_make_the_schema_that_the_code_expects_in_postgresql(database_url: str) -> None:
    migrate(database_url)
    assert differences(database_url) == []


@pytest.mark.real
def test_devices_are_registered_found_after_a_restart_and_removed(
    tmp_path: Path, database_url: str, small_tar: bytes
) -> None:
    layout = OciLayout(tmp_path / "layout")
    layout.add_image([gzip_layer(member(small_tar), small_tar)], tag="one")
    body = {"source": {"image": f"oci:{layout.folder}:one"}}
    settings = {"database_url": database_url}
    with Gateway(tmp_path / "gateway", oci_roots=[layout.folder], settings=settings) as gateway:
        first = gateway.register("first", body)
        assert first["state"] == "ready", first
        assert gateway.put("first", body).status_code == 200
        assert gateway.put("first", body | {"layout": "tar", "layer": {"index": 0}}).status_code == 409
        assert gateway.register("second", body | {"layout": "tar", "layer": {"index": 0}})["state"] == "ready"
        gateway.restart(crash=True)
        listed = gateway.http.get("/v1/devices").json()["devices"]
        assert [device["name"] for device in listed] == ["first", "second"]
        assert listed[0] == {key: first[key] for key in listed[0]}
        assert gateway.get("second", 0, len(small_tar)).content == small_tar
        assert gateway.http.delete("/v1/devices/first").status_code == 204
        assert gateway.http.get("/v1/devices/first").status_code == 404
        password = database_url.partition(":")[2].rpartition("@")[0].rpartition(":")[2]
        assert password not in gateway.log
        assert not list(gateway.data_dir.glob("*.sqlite*"))
