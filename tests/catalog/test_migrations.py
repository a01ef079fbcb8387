"""Migrations: they give the tables that the code declares; what cannot be migrated is said and left alone."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

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


@pytest.mark.real
def test_replicas_that_start_together_migrate_one_after_the_other(postgres_url):
    name = f"fresh_{uuid.uuid4().hex[:8]}"
    engine = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
        url = sa.make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
        code = "import sys; from gateway.catalog.database import migrate; migrate(sys.argv[1])"
        replicas = [
            subprocess.Popen([sys.executable, "-c", code, url], cwd=Path(__file__).parents[2])
            for _ in range(3)
        ]
        assert [replica.wait(60) for replica in replicas] == [0] * 3
        made = open_engine(url)
        with made.connect() as other:
            assert set(metadata.tables) < set(sa.inspect(other).get_table_names())
        made.dispose()
        connection.execute(sa.text(f"DROP DATABASE {name}"))
    engine.dispose()
