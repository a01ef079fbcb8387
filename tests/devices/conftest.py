"""Catalogs and logs for tests of devices."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.catalog.catalog import Catalog
from gateway.catalog.generation import Generation
from tests.support.inprocess import empty_folder, quiet_logs


@pytest.fixture(scope="session", autouse=True)
def _logs():
    quiet_logs()


@pytest.fixture(scope="module")
def executor():
    with ThreadPoolExecutor(4) as executor:
        yield executor


@pytest.fixture
def database(tmp_path):
    """URL of an empty, migrated catalog."""
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(empty_folder()["catalog.sqlite"])
    return f"sqlite:///{path}"


@pytest.fixture
def open_catalog(tmp_path, database):
    """Opens the catalog once more, as another worker does."""
    opened = []
    numbers = itertools.count()

    def another():
        generation = Generation(tmp_path / "generation")
        catalog = Catalog(database, generation, f"worker.{next(numbers)}.")
        opened.append((catalog, generation))
        return catalog

    yield another
    for catalog, generation in opened:
        catalog.close()
        generation.close()


@pytest.fixture
def catalog(open_catalog):
    return open_catalog()
