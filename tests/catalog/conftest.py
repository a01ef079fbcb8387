"""Catalogs on SQLite and on a real PostgreSQL: the same tests run over both."""

from __future__ import annotations

import itertools

import pytest
import sqlalchemy as sa

from gateway.catalog.catalog import Catalog
from gateway.catalog.database import migrate, open_engine
from gateway.catalog.generation import Generation
from gateway.catalog.tables import metadata
from tests.support import postgres
from tests.support.inprocess import empty_folder


@pytest.fixture(scope="session")
def postgres_url():
    with postgres.running() as url:
        migrate(url)
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.real)])
def database(request, tmp_path):
    """URL of an empty, migrated catalog."""
    if request.param == "sqlite":
        path = tmp_path / "catalog.sqlite"
        path.write_bytes(empty_folder()["catalog.sqlite"])
        return f"sqlite:///{path}"
    url = request.getfixturevalue("postgres_url")
    engine = open_engine(url)
    with engine.begin() as connection:
        tables = ", ".join(metadata.tables)
        connection.execute(sa.text(f"TRUNCATE {tables} RESTART IDENTITY CASCADE"))
    engine.dispose()
    return url


@pytest.fixture
def open_catalog(tmp_path, database):
    """Opens the catalog once more, as another worker does."""
    opened = []
    numbers = itertools.count()

    def another(generation="generation"):
        catalog = Catalog(database, Generation(tmp_path / generation), f"folder.{next(numbers)}.")
        opened.append(catalog)
        return catalog

    yield another
    for catalog in opened:
        catalog.close()
        catalog.generation.close()


@pytest.fixture
def catalog(open_catalog):
    return open_catalog()


@pytest.fixture
def execute(database):
    """Runs SQL behind the catalog's back."""
    engine = open_engine(database).execution_options(writing=True)

    def run(statement, **values):
        with engine.begin() as connection:
            result = connection.execute(sa.text(statement), values)
            return result.fetchall() if result.returns_rows else []

    yield run
    engine.dispose()
