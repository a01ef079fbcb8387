"""Migrations: they give the tables that the code declares; what cannot be migrated is said and left alone."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from gateway.catalog.database import migrate, open_engine
from gateway.catalog.tables import metadata
from gateway.errors import ConfigurationError, StorageError
from tests.catalog.rows import SPEC


def test_migrations_give_the_tables_that_the_code_declares(database):
    engine = open_engine(database)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        inspector = sa.inspect(connection)
        for name, table in metadata.tables.items():
            assert {column["name"] for column in inspector.get_columns(name)} == set(table.columns.keys())
    engine.dispose()


async def test_migrating_again_keeps_devices(database, catalog):
    await catalog.create("one", SPEC)
    migrate(database)
    assert [device.name for device in (await catalog.page(limit=5)).devices] == ["one"]


@pytest.mark.parametrize("revision", ["0001", "9999"], ids=["version 0.1", "a later version"])
def test_a_database_of_another_version_is_refused_and_left_alone(tmp_path, revision):
    url = f"sqlite:///{tmp_path}/catalog.sqlite"
    engine = open_engine(url)
    with engine.execution_options(writing=True).begin() as connection:
        connection.execute(sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
        connection.execute(sa.text("INSERT INTO alembic_version VALUES (:v)"), {"v": revision})
        connection.execute(sa.text("CREATE TABLE devices (name TEXT)"))
    with pytest.raises(ConfigurationError, match=r"version 0\.1"):
        migrate(url)
    with engine.connect() as connection:
        assert [column["name"] for column in sa.inspect(connection).get_columns("devices")] == ["name"]
    engine.dispose()


def test_a_catalog_that_cannot_be_migrated_is_a_storage_error(tmp_path):
    (tmp_path / "catalog.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError, match="catalog"):
        migrate(f"sqlite:///{tmp_path}/catalog.sqlite")
