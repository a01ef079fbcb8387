"""Catalogs for tests of passes: leases and the rows of indexes are in them."""

from __future__ import annotations

from tests.support.catalogs import catalog, database, open_catalog  # noqa: F401 - fixtures
