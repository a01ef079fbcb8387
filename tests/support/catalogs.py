"""Fixtures: catalogs on SQLite, as the workers of one data folder have them. A conftest imports them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.catalog.catalog import Catalog
from gateway.catalog.generation import Generation
from tests.support.inprocess import empty_folder

OpenCatalog = Callable[[], Catalog]


@pytest.fixture
def database(tmp_path: Path) -> str:
    """URL of an empty, migrated catalog."""
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(empty_folder()["catalog.sqlite"])
    return f"sqlite:///{path}"


@pytest.fixture
def open_catalog(tmp_path: Path, database: str) -> Iterator[OpenCatalog]:
    """Opens the catalog once more, as another worker does."""
    opened: list[Catalog] = []
    numbers = itertools.count()

    def another() -> Catalog:
        catalog = Catalog(database, Generation(tmp_path / "generation"), f"folder.{next(numbers)}.")
        opened.append(catalog)
        return catalog

    yield another
    for catalog in opened:
        catalog.close()
        catalog.generation.close()


@pytest.fixture
def catalog(open_catalog: OpenCatalog) -> Catalog:
    return open_catalog()
